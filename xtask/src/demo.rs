//! `cargo xtask demo`: builds Berth and runs `tests/demo.sh` in the lab.

use anyhow::{Result, ensure};

use crate::setup::{self, Consent};
use crate::{lab, test, workspace};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Installs what is needed without asking (as do CI=true and BERTH_YES=1)
    #[arg(long)]
    yes: bool,
}

pub(crate) fn run(options: &Options) -> Result<u8> {
    let script = workspace::root().join("tests/demo.sh");
    ensure!(script.exists(), "there is no demonstration: {} is missing", script.display());
    let consent = Consent::new(options.yes);
    setup::ensure(&[setup::LAB, setup::END_TO_END], consent)?;
    test::build_product(consent)?;
    lab::run(&lab::Options::for_command(test::with_product(vec![script.into()]), options.yes))
}
