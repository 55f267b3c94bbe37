//! The command line: what can be said, and who carries it out. `serve`, `doctor` and `version` work on this machine;
//! every other command is a client of the daemon's HTTP API and can run anywhere.

mod bill;
mod client;
mod describe;
mod doctor;
mod exec;
mod follow;
mod images;
mod logs;
mod metrics;
mod networks;
mod output;
mod pause;
mod progress;
mod ps;
mod run;
mod secrets;
mod serve;
mod stop;
mod table;
mod task;
mod terminal;
mod time;
mod top;
mod volume;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

/// What a shell makes of a program that a SIGINT ended.
const EXIT_INTERRUPTED: u8 = 130;

#[derive(Parser)]
#[command(
    name = "berth",
    version,
    about = "A Fargate for your own metal: containers as tasks, each in its own microVM, behind the ECS API",
    after_help = "\
Examples:
  sudo berth doctor                          # can this machine run tasks?
  sudo berth serve                           # the daemon; prints the exports that clients need
  berth run busybox echo hello               # run a task, see its output, get its exit code
  berth run -d --name web -e PORT=80 nginx   # run it in the background
  berth ps                                   # what runs
  berth exec -it 3f2a -- sh                  # a shell in it
  berth logs -f 3f2a                         # any unique beginning of a task id will do
  berth bill --since 1h                      # what it cost

The aws CLI and the AWS SDKs work too: paste the exports that `berth serve` prints, then
  aws ecs list-tasks",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon: API, scheduler and meter (needs root and /dev/kvm)
    Serve(serve::ServeArgs),
    /// Run an image as a task, show its output and exit with its exit code
    Run(run::RunArgs),
    /// List tasks
    Ps(ps::PsArgs),
    /// Show what a task's container wrote
    Logs(logs::LogsArgs),
    /// Run a command in a container of a task, and exit with its exit code
    Exec(exec::ExecArgs),
    /// Stop a task and wait until it has stopped
    Stop(stop::StopArgs),
    /// Have a task stand still: it runs nothing and keeps its memory
    Pause(pause::PauseArgs),
    /// Have a paused task go on
    Resume(pause::PauseArgs),
    /// Show all that is known of a task
    Describe(describe::DescribeArgs),
    /// Show the subnets and security groups that tasks can be put into
    Networks(networks::NetworksArgs),
    /// Show what containers use now: processor, memory, disk, network
    Top(top::TopArgs),
    /// List, pull and remove the images that are kept for tasks
    Images(images::ImagesArgs),
    /// Make, list, copy and delete volumes: disks that outlive tasks
    Volume(volume::VolumeArgs),
    /// Show what a task's machine counts: bytes, operations, exits, time to start
    Metrics(metrics::MetricsArgs),
    /// List parameters and secrets, put a SecureString, rotate the keys they are sealed with
    Secrets(secrets::SecretsArgs),
    /// Show what tasks cost
    Bill(bill::BillArgs),
    /// Check whether this machine can run tasks, and say what to do if not
    Doctor(doctor::DoctorArgs),
    /// Print the version
    Version,
}

/// How long work that cannot be broken off holds up the end of the program.
const UNFINISHED_WORK_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads the command line, carries it out and says how it went. Errors are one line on stderr.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| {
            let outcome = runtime.block_on(dispatch(cli.command));
            // Such as the copy of a large volume, which the next daemon takes back.
            runtime.shutdown_timeout(UNFINISHED_WORK_TIMEOUT);
            outcome
        });
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("berth: {}", table::printable(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

/// The exit code of a command that was carried out.
async fn dispatch(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Serve(args) => serve::serve(args).await.map(|()| 0),
        Command::Run(args) => Ok(run::run(args).await),
        Command::Ps(args) => ps::ps(args).await.map(|()| 0),
        Command::Logs(args) => logs::logs(args).await.map(|()| 0),
        Command::Exec(args) => exec::exec(args).await,
        Command::Stop(args) => stop::stop(args).await.map(|()| 0),
        Command::Pause(args) => pause::pause(args).await.map(|()| 0),
        Command::Resume(args) => pause::resume(args).await.map(|()| 0),
        Command::Describe(args) => describe::describe(args).await.map(|()| 0),
        Command::Networks(args) => networks::networks(args).await.map(|()| 0),
        Command::Top(args) => top::top(args).await.map(|()| 0),
        Command::Images(args) => images::images(args).await.map(|()| 0),
        Command::Volume(args) => volume::volume(args).await.map(|()| 0),
        Command::Metrics(args) => metrics::metrics(args).await.map(|()| 0),
        Command::Secrets(args) => secrets::secrets(args).await.map(|()| 0),
        Command::Bill(args) => bill::bill(args).await.map(|()| 0),
        Command::Doctor(args) => doctor::doctor(args),
        Command::Version => {
            output::print(&format!("berth {}\n", env!("CARGO_PKG_VERSION"))).map_err(anyhow::Error::from)?;
            Ok(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
