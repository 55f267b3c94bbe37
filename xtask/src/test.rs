//! `cargo xtask test`: the checks, the unit and property tests, and the end-to-end tests in one start of the lab,
//! each a step with a time; the last line totals all tests.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::setup::{self, Consent};
use crate::step::{run as run_command, show, step};
use crate::tally::{Tally, junit, summary_line};
use crate::{guest, lab, workspace};

/// The whole end-to-end suite ends well within this time, in seconds, even in the nested lab.
const END_TO_END_LIMIT: u64 = 5400;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Only the checks, unit and property tests
    #[arg(long, conflicts_with = "e2e")]
    unit: bool,
    /// Only the end-to-end tests
    #[arg(long)]
    e2e: bool,
    /// Only the end-to-end tests that match (pytest's -k)
    #[arg(short = 'k', value_name = "EXPR")]
    expression: Option<String>,
    /// Installs what is needed without asking (as do CI=true and BERTH_YES=1)
    #[arg(long)]
    yes: bool,
}

/// Runs what is asked for, all of it whatever fails, and returns 0 only if nothing failed.
pub(crate) fn run(options: &Options) -> Result<u8> {
    let mut tally = Tally::default();
    let mut failures: Vec<String> = Vec::new();
    let mut note = |result: Result<()>| {
        if let Err(error) = result {
            eprintln!("error: {error:#}");
            failures.push(format!("{error:#}"));
        }
    };
    if !options.e2e {
        note(step("format", || run_command(cargo().args(["fmt", "--all", "--check"]))));
        note(step("lint", lint));
        note(step("unit and property tests", || unit_tests(&mut tally)));
        note(licences());
    }
    if !options.unit {
        note(end_to_end(options, &mut tally));
    }
    for failure in &failures {
        println!("FAILED: {failure}");
    }
    println!("{tally}");
    Ok(u8::from(!failures.is_empty() || tally.failed > 0))
}

fn cargo() -> Command {
    let mut cargo = Command::new(workspace::cargo());
    cargo.current_dir(workspace::root());
    cargo
}

/// Whether cargo has this subcommand.
fn has(subcommand: &str) -> bool {
    let output = cargo().args([subcommand, "--version"]).output();
    output.is_ok_and(|output| output.status.success())
}

fn lint() -> Result<()> {
    run_command(cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"]))
}

fn unit_tests(tally: &mut Tally) -> Result<()> {
    let mut command = cargo();
    if has("nextest") {
        command.args(["nextest", "run", "--workspace", "--no-fail-fast", "--no-tests=pass"]);
    } else {
        eprintln!("    cargo-nextest is not installed: cargo test does it");
        command.args(["test", "--workspace", "--no-fail-fast"]);
    }
    let (found, ok) = run_counting(&mut command)?;
    *tally += found;
    match (ok, found.failed) {
        (true, _) => Ok(()),
        (false, 0) => bail!("{} failed outside of any test", show(&command)),
        (false, failed) => bail!("{failed} unit or property tests failed"),
    }
}

/// Runs a test runner with its output shown as it comes, and counts the summaries in it.
fn run_counting(command: &mut Command) -> Result<(Tally, bool)> {
    let shown = show(command);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {shown}"))?;
    let stdout = child.stdout.take().context("the test runner has no output")?;
    let stderr = child.stderr.take().context("the test runner has no error output")?;
    let errors = thread::spawn(move || count(stderr, |line| eprintln!("{line}")));
    let mut tally = count(stdout, |line| println!("{line}"));
    if let Ok(more) = errors.join() {
        tally += more;
    }
    let status = child.wait().with_context(|| format!("cannot wait for {shown}"))?;
    Ok((tally, status.success()))
}

fn count(output: impl Read, show: impl Fn(&str)) -> Tally {
    let mut tally = Tally::default();
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        show(&line);
        if let Some(found) = summary_line(&line) {
            tally += found;
        }
    }
    tally
}

fn licences() -> Result<()> {
    if !has("deny") {
        eprintln!("==> licences: SKIPPED, cargo-deny is not installed");
        return Ok(());
    }
    step("licences", || run_command(cargo().args(["deny", "check", "licenses"])))
}

/// What an end-to-end run needs: release binaries, and the guest.
pub(crate) fn build_product(consent: Consent) -> Result<()> {
    step("build berth", || {
        run_command(cargo().args(["build", "--quiet", "--release", "--package", "berth-api"]))
    })?;
    step("build berth-vmm", || {
        run_command(cargo().args(["build", "--quiet", "--profile", "machine", "--package", "berth-vmm"]))
    })?;
    step("build the guest", || guest::build(consent)).map(drop)
}

/// The command, told by its environment where the product is.
pub(crate) fn with_product(command: Vec<OsString>) -> Vec<OsString> {
    let target = workspace::cargo_target();
    let product = [
        ("BERTH_BIN", target.join("release/berth")),
        ("BERTH_VMM", target.join("machine/berth-vmm")),
        ("BERTH_GUEST", workspace::output().join("guest")),
    ];
    let mut line: Vec<OsString> = vec!["env".into()];
    for (name, path) in product {
        let mut pair = OsString::from(format!("{name}="));
        pair.push(path);
        line.push(pair);
    }
    line.extend(command);
    line
}

fn end_to_end(options: &Options, tally: &mut Tally) -> Result<()> {
    let suite = workspace::root().join("tests/e2e");
    let requirements = suite.join("requirements.txt");
    if !requirements.exists() {
        bail!("there is no end-to-end suite: {} is missing", requirements.display());
    }
    let consent = Consent::new(options.yes);
    setup::ensure(&[setup::LAB, setup::END_TO_END], consent)?;
    build_product(consent)?;
    let python = virtual_environment(&requirements)?;

    let results = lab::results();
    fs::create_dir_all(&results).with_context(|| format!("cannot create {}", results.display()))?;
    let report = results.join("e2e.xml");
    // Else an old report could pass for this run's.
    if report.exists() {
        fs::remove_file(&report).with_context(|| format!("cannot remove {}", report.display()))?;
    }
    let mut junit_option = OsString::from("--junitxml=");
    junit_option.push(&report);
    let mut line: Vec<OsString> = vec![python.into()];
    line.extend(["-m", "pytest", "-p", "no:cacheprovider", "--color=yes"].map(OsString::from));
    line.push(junit_option);
    if let Some(expression) = &options.expression {
        line.extend(["-k".into(), expression.into()]);
    }
    line.push(suite.into());
    let mut in_lab = lab::Options::for_command(with_product(line), options.yes);
    in_lab.timeout = Some(END_TO_END_LIMIT);
    let status = step("end-to-end tests in the lab", || lab::run(&in_lab))?;

    let xml = fs::read_to_string(&report)
        .with_context(|| format!("the end-to-end tests ended with status {status} and without a report"))?;
    let found = junit(&xml)?;
    *tally += found;
    ensure!(status == 0, "the end-to-end tests ended with status {status}: {found}");
    Ok(())
}

/// The Python of a virtual environment with exactly these requirements, in the cache.
fn virtual_environment(requirements: &Path) -> Result<PathBuf> {
    let text = fs::read(requirements).with_context(|| format!("cannot read {}", requirements.display()))?;
    let key = hex::encode(&Sha256::digest(&text)[..8]);
    let folder = workspace::cache()?.join(format!("e2e-venv-{key}"));
    let python = folder.join("bin/python");
    let complete = folder.join("complete");
    if complete.exists() {
        return Ok(python);
    }
    step("install the end-to-end tests' Python packages (once)", || {
        // Debian's own: a shim of a version chooser would be a shell script, slow in the lab.
        run_command(Command::new("/usr/bin/python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
        run_command(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(requirements))?;
        // Compiled here, once, and not at every start in the lab, where what is written is thrown away.
        run_command(Command::new(&python).args(["-m", "compileall", "-q"]).arg(folder.join("lib")))?;
        fs::write(&complete, "").with_context(|| format!("cannot write {}", complete.display()))
    })?;
    Ok(python)
}
