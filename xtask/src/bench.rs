//! `cargo xtask bench`: builds Berth and measures it: `tests/bench.py` in the lab.

use anyhow::Result;

use crate::product::Product;
use crate::setup::Consent;
use crate::{lab, workspace};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Rounds of each measurement
    #[arg(long, default_value_t = 9)]
    rounds: u32,
    /// Installs what is needed without asking (as do CI=true and BERTH_YES=1)
    #[arg(long)]
    yes: bool,
}

/// Returns the status of the script.
pub(crate) fn run(options: &Options) -> Result<u8> {
    let product = Product::build(Consent::new(options.yes))?;
    let script = workspace::root().join("tests/bench.py");
    let mut line = product.python([script]);
    // The figures stay, for comparing runs.
    let figures = lab::results().join("bench.json");
    line.extend([
        "--rounds".into(),
        options.rounds.to_string().into(),
        "--json".into(),
        figures.into(),
    ]);
    lab::run(&lab::Options::for_command(line, options.yes))
}
