//! `berth stop`: ends a task.

use clap::Args;
use serde_json::json;

use super::client::{Client, Connection, Service};
use super::{output, task};

#[derive(Args)]
#[command(after_help = "\
The container gets its stop signal, and SIGKILL when its stop timeout (30 s by default) is over.

Examples:
  berth stop 3f2a
  berth stop 3f2a --reason 'too expensive'")]
pub(super) struct StopArgs {
    /// The task's id, or any unique beginning of it
    #[arg(value_name = "TASK")]
    task: String,
    /// Kept as the task's stoppedReason
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Return at once, without waiting for the task to stop
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn stop(args: StopArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.connection)?;
    let found = task::Task::from_json(&task::find(&client, &args.task).await?)?;
    stop_task(&client, found.cluster(), found.id(), args.reason.as_deref()).await?;
    if !args.no_wait {
        task::wait_stopped(&client, found.id()).await?;
    }
    output::print(&format!("{}\n", found.id()))?;
    Ok(())
}

/// Asks for the end of a task; asking twice does no harm.
pub(super) async fn stop_task(
    client: &Client,
    cluster: &str,
    id: &str,
    reason: Option<&str>,
) -> Result<(), super::client::ClientError> {
    let mut input = json!({"cluster": cluster, "task": id});
    if let Some(reason) = reason {
        input["reason"] = json!(reason);
    }
    client.call(Service::Ecs, "StopTask", &input).await.map(|_| ())
}
