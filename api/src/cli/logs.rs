//! `berth logs`: what a task's container wrote.

use clap::Args;

use super::client::{Client, Connection};
use super::follow::Follower;
use super::task;

#[derive(Args)]
#[command(after_help = "\
Examples:
  berth logs 3f2a                 # everything so far; stdout to stdout, stderr to stderr
  berth logs -f 3f2a | grep GET   # and what comes, until the container ends

Where a container wrote faster than its lines could be stored, and its log driver's mode is non-blocking (the
default with awslogs), a line `berth: N lines (M bytes) were dropped here: ...` stands for what is missing.")]
pub(super) struct LogsArgs {
    /// The task's id, or any unique beginning of it
    #[arg(value_name = "TASK")]
    task: String,
    /// Go on with what the container writes, until it ends
    #[arg(short, long)]
    follow: bool,
    /// The container, where the task has several
    #[arg(long, value_name = "NAME")]
    container: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn logs(args: LogsArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.connection)?;
    let found = task::Task::from_json(&task::find(&client, &args.task).await?)?;
    let mut follower = Follower::new(&client, found.id(), args.container.as_deref());
    follower.drain().await?;
    if args.follow && !(found.is_stopped() && found.started_at.is_none()) {
        while !follower.is_unread() && !follower.next().await? {}
    }
    Ok(())
}
