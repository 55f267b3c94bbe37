//! `cargo xtask bench`: builds Berth and measures it: `tests/bench` in the lab.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::product::Product;
use crate::setup::{self, Consent};
use crate::{lab, workspace};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Also writes the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rounds of each measurement
    #[arg(long, default_value_t = 9)]
    rounds: u32,
    /// Measures this group alone: boots, clones, starts, logs, compute or data; can be given several times
    #[arg(long, value_name = "GROUP")]
    only: Vec<String>,
    #[command(flatten)]
    emulated: lab::Emulated,
    /// Installs what is needed without asking (as do CI=true and BERTH_YES=1)
    #[arg(long)]
    yes: bool,
}

/// Returns the status of the script.
pub(crate) fn run(options: &Options) -> Result<u8> {
    setup::ensure(&[setup::BENCH], Consent::new(options.yes))?;
    let product = Product::build(Consent::new(options.yes))?;
    let script = workspace::root().join("tests/bench/bench.py");
    let mut line = product.python([script]);
    // The only folder of the lab that stays.
    let figures = lab::results().join("bench.json");
    line.extend([
        "--rounds".into(),
        options.rounds.to_string().into(),
        "--json".into(),
        figures.clone().into(),
    ]);
    for group in &options.only {
        line.extend(["--only".into(), group.into()]);
    }
    let mut in_lab = lab::Options::for_command(line, options.yes);
    in_lab.emulated = lab::Emulated {
        awake: true,
        ..options.emulated.clone()
    };
    let status = lab::run(&in_lab)?;
    if let (0, Some(wanted)) = (status, &options.json) {
        std::fs::copy(&figures, wanted).with_context(|| format!("cannot write {}", wanted.display()))?;
    }
    Ok(status)
}
