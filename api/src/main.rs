//! The `berth` program: everything is in [`berth_api::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    berth_api::cli::main()
}
