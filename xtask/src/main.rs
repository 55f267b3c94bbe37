//! `cargo xtask …`: every developer command of Berth. This file is the command line; each command has its own module.

mod bench;
mod cpio;
mod demo;
mod fuzz;
mod guest;
mod kernel;
mod lab;
mod park;
mod product;
mod setup;
mod step;
mod tally;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::setup::Consent;

/// Developer commands of Berth
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Runs a command as root where KVM boots real guests: here, or in an emulated machine
    Lab(lab::Options),
    /// Builds everything that a host needs into target/dist (bin, share/berth)
    Build {
        /// Installs what is needed without asking
        #[arg(long)]
        yes: bool,
    },
    /// Builds the guest's kernel and initial RAM file system into target/guest
    Guest {
        /// Installs what is needed without asking
        #[arg(long)]
        yes: bool,
    },
    /// Runs every check and test
    Test(test::Options),
    /// Shows Berth at work
    Demo(demo::Options),
    /// Measures Berth
    Bench(bench::Options),
    /// Feeds made-up input to whatever a guest or a client can reach
    Fuzz(fuzz::Options),
    /// Formats the code
    Fmt,
    /// Holds one idle virtual machine open (the lab starts it)
    #[command(hide = true)]
    Park,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Task::Lab(options) => lab::run(&options),
        Task::Build { yes } => product::distribution(Consent::new(yes)).map(|folder| {
            eprintln!("{}", folder.display());
            0
        }),
        Task::Guest { yes } => guest::build(Consent::new(yes)).map(|folder| {
            eprintln!("{}", folder.display());
            0
        }),
        Task::Test(options) => test::run(&options),
        Task::Demo(options) => demo::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Fmt => test::format(false).map(|()| 0),
        Task::Park => park::park().map(|()| 0),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
