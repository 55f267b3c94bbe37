//! `berth pause` and `berth resume`: a task stands still, and goes on.

use clap::Args;
use serde_json::json;

use super::client::{Client, Connection, Service};
use super::{output, task};

#[derive(Args)]
#[command(after_help = "\
A paused task runs nothing and costs no processor time; it keeps its memory, its address and its connections, and what
comes for it waits. Stopping it lets it go on first, so that its containers can end in order.

Examples:
  berth pause 3f2a
  berth resume 3f2a")]
pub(super) struct PauseArgs {
    /// The task's id, or any unique beginning of it
    #[arg(value_name = "TASK")]
    task: String,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn pause(args: PauseArgs) -> anyhow::Result<()> {
    ask(args, "PauseTask").await
}

pub(super) async fn resume(args: PauseArgs) -> anyhow::Result<()> {
    ask(args, "ResumeTask").await
}

async fn ask(args: PauseArgs, operation: &str) -> anyhow::Result<()> {
    let client = Client::new(&args.connection)?;
    let found = task::Task::from_json(&task::find(&client, &args.task).await?)?;
    client
        .call(Service::Berth, operation, &json!({"task": found.id()}))
        .await?;
    output::print(&format!("{}\n", found.id()))?;
    Ok(())
}
