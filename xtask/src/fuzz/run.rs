//! One run of one target: its command line, what libFuzzer says meanwhile, and what comes of it.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use anyhow::{Context, Result, ensure};
use regex::Regex;

use super::Target;
use super::corpus::Inputs;
use crate::step::{Progress, show};

/// What an input may take, and how long it may be: whoever is fuzzed here reads lists of small steps, and a run is better
/// off with many short ones than with few long ones. All lengths from the start, as a short run does not come to the longer.
pub(super) const LIMITS: [&str; 4] = [
    "-timeout=10",
    "-rss_limit_mb=2048",
    "-max_len=512",
    "-len_control=0",
];

/// Most lines of a crash that are shown; the log has them all.
const SHOWN_LINES: usize = 12;

/// What a run did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    executions: u64,
    /// Edges of the program that some input reached.
    coverage: u64,
    seconds: u64,
    pub(super) crash: Option<Crash>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each_second = self.executions / self.seconds.max(1);
        write!(
            f,
            "{} executions ({each_second} a second), {} edges, {} crashes",
            self.executions,
            self.coverage,
            u8::from(self.crash.is_some())
        )
    }
}

/// An input that must not be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Crash {
    input: PathBuf,
    /// What was printed of it.
    pub(super) said: String,
}

impl Crash {
    /// The command that runs the input again.
    pub(super) fn command(&self, target: Target) -> String {
        format!("cargo xtask fuzz {target} --input {}", self.input.display())
    }
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.input.display())
    }
}

/// What the lines of libFuzzer say.
#[derive(Default)]
struct Report {
    executions: u64,
    coverage: u64,
    input: Option<PathBuf>,
    said: Vec<String>,
}

#[expect(
    clippy::expect_used,
    reason = "each pattern is a constant, compiled by a test"
)]
fn pattern(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a constant pattern compiles")
}

static STATUS: LazyLock<Regex> = LazyLock::new(|| pattern(r"^#(\d+)\s.*\bcov: (\d+)"));
static TOTAL: LazyLock<Regex> = LazyLock::new(|| pattern(r"^stat::number_of_executed_units:\s*(\d+)"));
static WRITTEN: LazyLock<Regex> = LazyLock::new(|| pattern(r"Test unit written to (.+)$"));
static CRASH: LazyLock<Regex> = LazyLock::new(|| pattern(r"panicked at|^==\d+== ?ERROR|^==\d+==ERROR"));

impl Report {
    fn line(&mut self, line: &str) {
        if let Some(status) = STATUS.captures(line) {
            self.executions = status[1].parse().unwrap_or(self.executions);
            self.coverage = status[2].parse().unwrap_or(self.coverage);
        } else if let Some(total) = TOTAL.captures(line) {
            self.executions = total[1].parse().unwrap_or(self.executions);
        } else if let Some(written) = WRITTEN.captures(line) {
            self.input = Some(PathBuf::from(&written[1]));
        } else if (CRASH.is_match(line) || !self.said.is_empty()) && self.said.len() < SHOWN_LINES {
            self.said.push(format!("    {line}"));
        }
    }

    fn outcome(self, seconds: u64) -> Outcome {
        let said = self.said.join("\n");
        Outcome {
            executions: self.executions,
            coverage: self.coverage,
            seconds,
            crash: self.input.map(|input| Crash { input, said }),
        }
    }
}

/// Fuzzes for so long, or to the first crash.
pub(super) fn run(target: Target, program: &Path, inputs: &Inputs, seconds: u64) -> Result<Outcome> {
    let mut artifact_prefix = OsString::from("-artifact_prefix=");
    artifact_prefix.push(inputs.crashes.join(""));
    let mut command = Command::new(program);
    command
        .args(LIMITS)
        .args([
            format!("-max_total_time={seconds}"),
            "-print_final_stats=1".into(),
        ])
        .arg(artifact_prefix)
        // libFuzzer adds to the first folder and only reads the others.
        .args([&inputs.found, &inputs.kept])
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let shown = show(&command);
    let log = || format!("cannot write {}", inputs.log.display());
    let mut log_file = BufWriter::new(File::create(&inputs.log).with_context(log)?);
    let mut child = command.spawn().with_context(|| format!("cannot run {shown}"))?;
    let errors = child.stderr.take().context("the target has no error output")?;
    let mut report = Report::default();
    let mut progress = Progress::new(target.to_string());
    for line in BufReader::new(errors).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        writeln!(log_file, "{line}").with_context(log)?;
        report.line(&line);
        progress.tick(format_args!(
            "{} executions, {} edges",
            report.executions, report.coverage
        ));
    }
    drop(progress);
    log_file.flush().with_context(log)?;
    let status = child.wait().with_context(|| format!("cannot wait for {shown}"))?;
    let outcome = report.outcome(seconds);
    ensure!(
        status.success() || outcome.crash.is_some(),
        "{shown} ended with {status}, see {}",
        inputs.log.display()
    );
    Ok(outcome)
}

/// Runs one input, with all that it prints, and returns 0 if it does not crash.
pub(super) fn again(program: &Path, input: &Path) -> Result<u8> {
    let mut command = Command::new(program);
    command.args(LIMITS).arg(input).env("RUST_BACKTRACE", "1");
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", show(&command)))?;
    Ok(u8::from(!status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(lines: &str) -> Outcome {
        let mut report = Report::default();
        lines.lines().for_each(|line| report.line(line));
        report.outcome(10)
    }

    #[test]
    fn a_run_without_a_crash_is_summed_up() {
        let outcome = outcome(
            "INFO: seed corpus: files: 2 min: 1b max: 9b total: 10b rss: 36Mb\n\
             #3\tINITED cov: 91 ft: 92 corp: 2/10b exec/s: 0 rss: 37Mb\n\
             #4096\tpulse  cov: 120 ft: 330 corp: 9/99b lim: 1024 exec/s: 2048 rss: 40Mb\n\
             #5000\tDONE   cov: 121 ft: 331 corp: 9/99b lim: 1024 exec/s: 500 rss: 40Mb\n\
             stat::number_of_executed_units: 5002\n",
        );
        assert_eq!(
            outcome.to_string(),
            "5002 executions (500 a second), 121 edges, 0 crashes"
        );
    }

    #[test]
    fn a_crash_is_named_with_what_was_said_of_it_and_how_to_run_it_again() {
        let outcome = outcome(
            "#7\tNEW    cov: 12 ft: 13 corp: 2/3b lim: 4 exec/s: 0 rss: 37Mb\n\
             thread '<unnamed>' panicked at targets/rng.rs:5:1:\n\
             it broke\n\
             ==7== ERROR: libFuzzer: deadly signal\n\
             artifact_prefix='/t/'; Test unit written to /t/crash-0a\n",
        );
        let crash = outcome.crash.unwrap();
        assert_eq!(crash.said.lines().nth(1), Some("    it broke"));
        assert_eq!(
            crash.command(Target::Rng),
            "cargo xtask fuzz rng --input /t/crash-0a"
        );
        assert!(Report::default().outcome(1).crash.is_none());
    }
}
