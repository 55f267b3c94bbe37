//! `cargo xtask demo`: builds Berth and shows it at work: `tests/demo.py` in the lab.

use anyhow::Result;

use crate::product::Product;
use crate::setup::Consent;
use crate::{lab, workspace};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Installs what is needed without asking (as do CI=true and BERTH_YES=1)
    #[arg(long)]
    yes: bool,
}

/// Returns the status of the script.
pub(crate) fn run(options: &Options) -> Result<u8> {
    let product = Product::build(Consent::new(options.yes))?;
    let script = workspace::root().join("tests/demo.py");
    lab::run(&lab::Options::for_command(product.python([script]), options.yes))
}
