//! `cargo xtask test`: the checks, the unit and property tests, a moment of fuzzing, and the end-to-end tests in one start of the lab,
//! each a step with a time; the last line totals all tests.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::product::Product;
use crate::setup::{self, Consent};
use crate::step::{capture, run as run_command, show, step};
use crate::tally::{Tally, journal, journal_failures, passed_idly, summary_line};
use crate::{fuzz, guest, lab, workspace};

/// The whole end-to-end suite ends well within this time, even in nested labs of which some are lost.
const END_TO_END_LIMIT: Duration = Duration::from_secs(4300);

/// A test says how it ended within fifteen minutes; after that it is the lab that has stalled, in seconds.
const END_TO_END_SILENCE: u64 = 1100;

/// What the tests of the jail need besides the product itself.
const PROBES: &str = "berth-vmm/jail-probes";

/// Seconds that each target is fuzzed.
const FUZZING_SECONDS: u64 = 3;

/// How many labs one run of the suite may use up.
const MOST_LABS: u32 = 8;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Only the checks, unit and property tests, and a moment of fuzzing
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
        note(step("format", || format(true)));
        note(step("lint", lint));
        note(step("unit and property tests", || {
            unit_tests(Consent::new(options.yes), &mut tally)
        }));
        note(licences(&mut tally));
        note(fuzzing(Consent::new(options.yes), &mut tally));
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

/// Formats all code, or looks whether it is formatted.
pub(crate) fn format(check: bool) -> Result<()> {
    // The fuzz targets are a workspace of their own.
    for manifest in ["Cargo.toml", "fuzz/Cargo.toml"] {
        let mut fmt = cargo();
        fmt.args(["fmt", "--all", "--manifest-path", manifest]);
        if check {
            fmt.arg("--check");
        }
        run_command(&mut fmt)?;
    }
    Ok(())
}

fn lint() -> Result<()> {
    run_command(cargo().args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--",
        "--deny",
        "warnings",
    ]))
}

fn unit_tests(consent: Consent, tally: &mut Tally) -> Result<()> {
    setup::ensure(&[setup::TESTS], consent)?;
    let mut command = cargo();
    let report = workspace::cargo_target().join("nextest/default/junit.xml");
    // An old report must not pass for this run's.
    drop(fs::remove_file(&report));
    if has("nextest") {
        command.args([
            "nextest",
            "run",
            "--workspace",
            "--features",
            PROBES,
            "--no-fail-fast",
            "--no-tests=pass",
        ]);
    } else {
        eprintln!("    cargo-nextest is not installed: cargo test does it");
        command.args(["test", "--workspace", "--features", PROBES, "--no-fail-fast"]);
    }
    let (mut found, ok) = run_counting(&mut command)?;
    for test in passed_idly(&fs::read_to_string(&report).unwrap_or_default()) {
        eprintln!("SKIPPED: {test} could not run here");
        found.passed = found.passed.saturating_sub(1);
        found.skipped += 1;
    }
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
    let stderr = child
        .stderr
        .take()
        .context("the test runner has no error output")?;
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

fn licences(tally: &mut Tally) -> Result<()> {
    if !has("deny") {
        eprintln!("==> licences: SKIPPED, cargo-deny is not installed (cargo install cargo-deny)");
        tally.skipped += 1;
        return Ok(());
    }
    step("licences", || {
        run_command(cargo().args(["deny", "check", "bans", "licenses", "sources"]))
    })
}

/// Runs every fuzz target for a moment: enough to see that it still builds, that no input once found crashes, and little more.
fn fuzzing(consent: Consent, tally: &mut Tally) -> Result<()> {
    if !fuzz::can_build() {
        eprintln!(
            "==> fuzzing: SKIPPED, there is no nightly compiler ({})",
            fuzz::install_hint()
        );
        tally.skipped += 1;
        return Ok(());
    }
    step("fuzzing", || fuzz::briefly(consent, FUZZING_SECONDS))
}

/// Builds the runtime's tests that need a real host; where they are, as the end-to-end suite wants to know it.
fn host_tests() -> Result<OsString> {
    let mut build = cargo();
    build.args([
        "test",
        "--no-run",
        "--message-format=json",
        "--package",
        "berth-runtime",
    ]);
    build.args([
        "--features",
        "host-tests",
        "--test",
        "cgroup",
        "--test",
        "network",
    ]);
    let messages = step("build the tests of host and networks", || capture(&mut build))?;
    let programs = String::from_utf8_lossy(&messages)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(str::to_owned))
        .collect::<Vec<_>>();
    ensure!(
        programs.len() == 2,
        "expected two test programs, not {programs:?}"
    );
    Ok(format!("BERTH_HOST_TESTS={}", programs.join(":")).into())
}

fn end_to_end(options: &Options, tally: &mut Tally) -> Result<()> {
    let product = Product::build(Consent::new(options.yes))?;
    let probing = step("build berth-vmm for the tests of its jail", || {
        guest::build_probing(PROBES)
    })?;
    let results = lab::results();
    fs::create_dir_all(&results).with_context(|| format!("cannot create {}", results.display()))?;
    let journal_path = results.join("e2e-journal");
    // Else an old journal could pass for this run's.
    fs::write(&journal_path, "").with_context(|| format!("cannot empty {}", journal_path.display()))?;
    let setting = |name: &str, path: &Path| {
        let mut setting = OsString::from(name);
        setting.push(path);
        setting
    };
    let mut line: Vec<OsString> = vec![
        "env".into(),
        host_tests()?,
        setting("BERTH_E2E_JOURNAL=", &journal_path),
        setting("BERTH_VMM_PROBING=", &probing),
    ];
    line.extend(product.python(["-m", "pytest", "-v", "-p", "no:cacheprovider", "--color=yes"]));
    line.push(setting("--junitxml=", &results.join("e2e.xml")));
    if let Some(expression) = &options.expression {
        line.extend(["-k".into(), expression.into()]);
    }
    line.push(workspace::root().join("tests/e2e").into());
    let mut in_lab = lab::Options::for_command(line, options.yes);

    let (status, lost) = step("end-to-end tests in the lab", || run_to_the_end(&mut in_lab))?;
    let lines = fs::read_to_string(&journal_path)
        .with_context(|| format!("cannot read {}", journal_path.display()))?;
    let found = journal(&lines);
    *tally += found;
    for failure in journal_failures(&lines) {
        println!("{failure}");
    }
    if lost > 0 {
        println!("labs that were lost on the way: {lost}");
    }
    ensure!(
        status == 0 && found != Tally::default(),
        "the end-to-end tests ended with status {status}: {found}"
    );
    Ok(())
}

/// Runs the suite, and after a lab was lost what had not ended, in a new one. An emulated host can panic by itself; a test
/// that was running is run again, and one that takes every lab with it leaves the suite failed. Returns the status and
/// how many labs were lost.
fn run_to_the_end(in_lab: &mut lab::Options) -> Result<(u8, u32)> {
    let start = Instant::now();
    for lost in 0..MOST_LABS {
        if lost > 0 {
            println!("==> A LAB WAS LOST ({lost}): what had not ended in it goes on in a new one");
        }
        let left = END_TO_END_LIMIT.saturating_sub(start.elapsed());
        in_lab.timeout = Some(left.as_secs());
        in_lab.silence = Some(END_TO_END_SILENCE);
        let status = lab::run(in_lab)?;
        if status != lab::LAB_FAILED {
            return Ok((status, lost));
        }
    }
    Ok((lab::LAB_FAILED, MOST_LABS))
}
