//! `cargo xtask fuzz`: what a guest, a client or a file says to Berth, made up by libFuzzer. Here: which targets there are,
//! how they are built, and what is told of them in the end. A target's run is in `run`, the inputs that are kept in `corpus`.

mod corpus;
mod run;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::setup::{self, Consent};
use crate::step::{run as run_command, step};
use crate::workspace;
use run::Outcome;

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
const TOOLCHAIN: &str = "nightly";

/// What `cargo fuzz` passes to the compiler as well: counters at every edge and the operands of comparisons for libFuzzer,
/// and AddressSanitizer. With them written down here, cargo alone builds the targets and nothing has to be installed
/// beside the compiler. They are given by target, so that build scripts and macros are built without.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
    -Zsanitizer=address -Cforce-frame-pointers";

/// What is fuzzed; each has a program of its name in fuzz/targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// Registers of a virtio-mmio transport, with a whole device behind them
    Mmio,
    /// Memory that is given to the balloon, or reported as free
    Balloon,
    /// Requests to a block device
    Block,
    /// Frames from and to a network device
    Net,
    /// Requests to the entropy device
    Rng,
    /// Packets to the vsock device, and what the host does with its connections
    Vsock,
    /// Requests at a machine's control socket
    Control,
    /// The state of a machine, and devices that take theirs up
    Snapshot,
    /// Frames between host and guest, both ways
    Protocol,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", format!("{self:?}").to_lowercase())
    }
}

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Builds the targets with a nightly compiler and runs one after the other. Each starts from the inputs kept in
fuzz/corpus; what reaches code that they do not is added to them, as far as there is room. A crash is an input that
panics, breaks memory, leaks, takes longer than ten seconds or more than 2 GiB; its file and the command that runs
it again are named at the end.

    cargo xtask fuzz                            all targets, a minute each
    cargo xtask fuzz --seconds 3600 vsock net   two of them, an hour each
    cargo xtask fuzz block --input FILE         one input again, with what it prints")]
pub(crate) struct Options {
    /// Targets to run [default: all]
    #[arg(value_name = "TARGET")]
    targets: Vec<Target>,
    /// Seconds for each target
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Runs the one target with this input alone
    #[arg(long, value_name = "FILE", requires = "targets", conflicts_with = "seconds")]
    input: Option<PathBuf>,
    /// Installs what is needed without asking (as do CI=true and BERTH_YES=1)
    #[arg(long)]
    yes: bool,
}

/// Returns 0 if nothing crashed.
pub(crate) fn run(options: &Options) -> Result<u8> {
    ensure!(
        can_build(),
        "the fuzz targets need a nightly compiler: {}",
        install_hint()
    );
    let all = Target::value_variants();
    let targets = match options.targets.as_slice() {
        [] => all,
        some => some,
    };
    let programs = build(Consent::new(options.yes))?;
    if let Some(input) = &options.input {
        let &[target] = targets else {
            anyhow::bail!("an input belongs to one target");
        };
        return run::again(&programs.join(target.to_string()), input);
    }
    let outcomes = fuzz(&programs, targets, options.seconds, Found::Kept)?;
    for (target, outcome) in &outcomes {
        println!("{target}: {outcome}");
    }
    let mut crashed = 0;
    for (target, outcome) in &outcomes {
        if let Some(crash) = &outcome.crash {
            crashed += 1;
            println!("CRASH: {crash}; run it again with `{}`", crash.command(*target));
        }
    }
    Ok(u8::from(crashed > 0))
}

/// What becomes of the inputs that a run finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Kept,
    Forgotten,
}

/// Runs all targets briefly from the inputs that are kept. An error if anything crashes.
pub(crate) fn briefly(consent: Consent, seconds: u64) -> Result<()> {
    let programs = build(consent)?;
    let outcomes = fuzz(&programs, Target::value_variants(), seconds, Found::Forgotten)?;
    let crashes: Vec<_> = outcomes
        .iter()
        .filter_map(|(target, outcome)| outcome.crash.as_ref().map(|crash| (target, crash)))
        .map(|(target, crash)| format!("{crash}; run it again with `{}`", crash.command(*target)))
        .collect();
    ensure!(crashes.is_empty(), "fuzzing found {}", crashes.join(" and "));
    Ok(())
}

/// Whether the compiler is there that the targets need.
pub(crate) fn can_build() -> bool {
    let mut rustc = Command::new("rustup");
    rustc.args(["run", TOOLCHAIN, "rustc", "--version"]);
    rustc.output().is_ok_and(|output| output.status.success())
}

pub(crate) fn install_hint() -> String {
    format!("rustup toolchain install {TOOLCHAIN} --profile minimal")
}

fn folder() -> PathBuf {
    workspace::cargo_target().join("fuzz")
}

/// Builds all targets and returns the folder of their programs.
fn build(consent: Consent) -> Result<PathBuf> {
    setup::ensure(&[setup::FUZZ], consent)?;
    let folder = folder();
    step("build the fuzz targets", || {
        // Not the cargo that runs this, which has another compiler.
        run_command(
            Command::new("rustup")
                .args([
                    "run",
                    TOOLCHAIN,
                    "cargo",
                    "build",
                    "--quiet",
                    "--release",
                    "--bins",
                ])
                .args(["--target", TRIPLE, "--manifest-path"])
                .arg(workspace::root().join("fuzz/Cargo.toml"))
                .arg("--target-dir")
                .arg(&folder)
                .env_remove("RUSTFLAGS")
                .env_remove("CARGO_ENCODED_RUSTFLAGS")
                .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", FLAGS),
        )
    })?;
    Ok(folder.join(TRIPLE).join("release"))
}

fn fuzz(programs: &Path, targets: &[Target], seconds: u64, found: Found) -> Result<Vec<(Target, Outcome)>> {
    let mut outcomes = Vec::with_capacity(targets.len());
    for &target in targets {
        let program = programs.join(target.to_string());
        let inputs = corpus::Inputs::of(target, &folder(), found == Found::Forgotten)?;
        let outcome = step(format!("fuzz {target}"), || {
            let outcome = run::run(target, &program, &inputs, seconds)?;
            if found == Found::Kept && outcome.crash.is_none() {
                inputs.keep(&program).context("cannot keep what was found")?;
            }
            Ok(outcome)
        })?;
        if let Some(crash) = &outcome.crash {
            eprintln!("    CRASHED:\n{}", crash.said);
        }
        outcomes.push((target, outcome));
    }
    Ok(outcomes)
}
