//! Running other programs with an announcement, a time and a readable failure. Knows nothing of what they do.

use std::fmt::Display;
use std::io::{IsTerminal, Write, stderr};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Announces a step, runs it, and says how long it took.
pub(crate) fn step<T>(name: impl Display, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("==> {name}");
    let start = Instant::now();
    let result = work();
    let end = if result.is_ok() { "done" } else { "FAILED" };
    eprintln!("    {name}: {end} in {:.1} s", start.elapsed().as_secs_f64());
    result
}

/// Runs a command to its end; anything but success is an error that names it.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command.status().with_context(|| format!("cannot run {shown}"))?;
    if !status.success() {
        bail!("{shown} failed: {status}");
    }
    Ok(())
}

/// Runs a command to its end and returns what it wrote to standard output.
pub(crate) fn capture(command: &mut Command) -> Result<Vec<u8>> {
    let shown = show(command);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        bail!("{shown} failed: {}", output.status);
    }
    Ok(output.stdout)
}

/// The program and its arguments on one line, cut where it gets long.
pub(crate) fn show(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    match line.char_indices().nth(160) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// Shows that something goes on: a line redrawn on a terminal, a line now and then anywhere else.
pub(crate) struct Progress {
    name: String,
    start: Instant,
    shown: Instant,
    every: Duration,
    terminal: bool,
}

impl Progress {
    pub(crate) fn new(name: impl Into<String>) -> Self {
        let terminal = stderr().is_terminal();
        let every = Duration::from_secs(if terminal { 1 } else { 30 });
        let now = Instant::now();
        Self {
            name: name.into(),
            start: now,
            shown: now,
            every,
            terminal,
        }
    }

    /// Tells the present state; shown at most once per interval.
    pub(crate) fn tick(&mut self, state: impl Display) {
        if self.shown.elapsed() < self.every {
            return;
        }
        self.shown = Instant::now();
        let seconds = self.start.elapsed().as_secs();
        if self.terminal {
            eprint!("\r    {}: {state}, {seconds} s\x1b[K", self.name);
            // A progress line that cannot be drawn is not worth an error.
            let _ = stderr().flush();
        } else {
            eprintln!("    {}: {state}, {seconds} s", self.name);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}

/// Waits for a child while `tick` is called several times a second.
pub(crate) fn wait_with(
    child: &mut std::process::Child,
    mut tick: impl FnMut(),
) -> Result<std::process::ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for a child process")? {
            return Ok(status);
        }
        tick();
        thread::sleep(Duration::from_millis(100));
    }
}
