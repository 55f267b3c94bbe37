//! `berth-vmm` with what the tests of its jail have it do besides, under a name of its own, so that it never takes the place of
//! the one that is released.

use std::process::ExitCode;

#[path = "../main.rs"]
mod vmm;

fn main() -> ExitCode {
    vmm::main()
}
