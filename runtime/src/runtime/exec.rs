//! Commands that are run in a container of a task beside its own program.

use std::collections::BTreeMap;

use berth_protocol::EXEC_PORT;
use berth_protocol::exec::{TerminalSize, ToCommand};
use berth_protocol::frame::encode_message;
use tokio::io::AsyncWriteExt;

use super::{Runtime, RuntimeError};
use crate::model::task::{ContainerStatus, TaskId};
use crate::task::host::GuestStream;

/// What is to be run, and where.
#[derive(Clone, Debug)]
pub struct Command {
    /// The task's first container where not said.
    pub container: Option<String>,
    /// Never empty.
    pub argv: Vec<String>,
    /// On top of the container's own.
    pub env: BTreeMap<String, String>,
    pub terminal: Option<TerminalSize>,
}

impl Runtime {
    /// Begins a command. What is said over the stream from then on is in [`berth_protocol::exec`]: `ToCommand` from here,
    /// `FromCommand` from the guest, which is hostile. The command ends when the stream does.
    pub async fn execute(&self, id: &TaskId, command: Command) -> Result<Box<dyn GuestStream>, RuntimeError> {
        let task = self.task(id).await?;
        let container = match &command.container {
            Some(name) => task.containers.iter().find(|container| container.name == *name),
            None => task.containers.first(),
        };
        let name = command.container.clone().unwrap_or_default();
        let container = container.ok_or(RuntimeError::ContainerNotFound(name))?;
        if container.status != ContainerStatus::Running {
            return Err(RuntimeError::ContainerNotRunning(container.name.clone()));
        }
        if task.pauses.since.is_some() {
            return Err(RuntimeError::Paused);
        }
        let start = ToCommand::Start {
            container: container.name.clone(),
            argv: command.argv,
            env: command.env,
            terminal: command.terminal,
        };
        let mut frame = Vec::new();
        encode_message(&start, &mut frame).map_err(|error| RuntimeError::Internal(error.to_string()))?;
        let failed = |error: &dyn std::fmt::Display| RuntimeError::Internal(error.to_string());
        let stream = self.shared.context.host.connect_guest(id, EXEC_PORT).await;
        let gone = || RuntimeError::ContainerNotRunning(container.name.clone());
        let mut stream = stream.map_err(|error| failed(&error))?.ok_or_else(gone)?;
        stream.write_all(&frame).await.map_err(|error| failed(&error))?;
        tracing::info!(task = %id, container = container.name, "a command begins");
        Ok(stream)
    }
}
