//! ExecuteCommand: what it checks, and the session that it offers. The session itself is [`crate::session`].

use std::time::Instant;

use berth_runtime::model::task::{Container, ContainerStatus, Task, TaskStatus};
use hyper::HeaderMap;
use serde_json::{Value, json};

use super::{NOT_FOUND, cluster, find, shapes};
use crate::app::App;
use crate::error::ApiError;
use crate::session::{MAX_SESSIONS, SessionCommand, websocket, words};

/// The operation's name; it is not answered as others are, since the answer says where the caller came to.
pub(crate) const EXECUTE_COMMAND: &str = "ExecuteCommand";
const MAX_COMMAND_BYTES: usize = 8192;
const NOT_ENABLED: &str = "The execute command failed because execute command was not enabled when the task was run or the \
                           execute command agent isn’t running. Wait and try again or run a new task with execute command \
                           enabled and try again.";

pub(crate) async fn execute(app: &App, headers: &HeaderMap, body: &[u8]) -> Result<Value, ApiError> {
    let input: shapes::ExecuteCommand = crate::decode::shape(body)?;
    let argv = argv(&input)?;
    let cluster = cluster::active(app, input.cluster.as_deref()).await?;
    let name = input.task.as_deref().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| refused("task can not be blank."))?;
    let task = find(app, &cluster, name)
        .await?
        .ok_or_else(|| refused(NOT_FOUND))?;
    let container = container(&task, input.container.as_deref())?;
    let command = SessionCommand {
        task: task.id.clone(),
        container: container.name.clone(),
        argv,
    };
    let ticket = app.sessions.offer(command, Instant::now()).ok_or_else(|| {
        ApiError::Client(format!(
            "Unable to start new execute sessions because the maximum session limit of {MAX_SESSIONS} has been reached."
        ))
    })?;
    Ok(json!({
        "clusterArn": app.owner.cluster(&cluster),
        "containerArn": app.owner.container(&cluster, &task.id, &container.name),
        "containerName": container.name,
        "interactive": true,
        "session": {
            "sessionId": ticket.session,
            "streamUrl": websocket::url(headers, &ticket.session)?,
            "tokenValue": ticket.token,
        },
        "taskArn": app.owner.task(&cluster, &task.id),
    }))
}

fn refused(text: &str) -> ApiError {
    ApiError::InvalidParameter(text.to_owned())
}

/// The command's words.
fn argv(input: &shapes::ExecuteCommand) -> Result<Vec<String>, ApiError> {
    if input.interactive != Some(true) {
        return Err(refused("Interactive is the only mode supported currently."));
    }
    let command = input.command.as_deref().unwrap_or_default();
    if command.len() > MAX_COMMAND_BYTES || command.contains('\0') {
        return Err(refused(&format!(
            "command must have at most {MAX_COMMAND_BYTES} bytes, and no NUL."
        )));
    }
    let argv = words::split(command)
        .map_err(|error| refused(&format!("command cannot be parted into words: {error}.")))?;
    // A first word that is empty names no program.
    match argv.first() {
        Some(program) if !program.is_empty() => Ok(argv),
        _ => Err(refused("command can not be blank.")),
    }
}

/// The container that it is to run in; it can be left out of a task that has just one.
fn container<'a>(task: &'a Task, name: Option<&str>) -> Result<&'a Container, ApiError> {
    if task.status != TaskStatus::Running || !task.enable_execute_command {
        return Err(refused(NOT_ENABLED));
    }
    if task.pauses.since.is_some() {
        return Err(refused("The task is paused; resume it first."));
    }
    let container = match (name.filter(|name| !name.is_empty()), task.containers.as_slice()) {
        (Some(name), containers) => containers.iter().find(|container| container.name == name),
        (None, [only]) => Some(only),
        (None, _) => {
            return Err(refused(
                "container can not be blank: the task has more than one container.",
            ));
        }
    };
    let container =
        container.ok_or_else(|| refused("The specified container was not found in the specified task."))?;
    if container.status != ContainerStatus::Running {
        return Err(ApiError::of_service(
            "TargetNotConnectedException",
            "The execute command failed due to an internal error. Try again later.",
        ));
    }
    Ok(container)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(command: &str) -> shapes::ExecuteCommand {
        shapes::ExecuteCommand {
            command: Some(command.to_owned()),
            interactive: Some(true),
            ..Default::default()
        }
    }

    fn task() -> Task {
        let mut task = super::super::tests::task();
        task.status = TaskStatus::Running;
        task.enable_execute_command = true;
        task.containers[0].status = ContainerStatus::Running;
        task
    }

    fn why(result: Result<impl Sized, ApiError>) -> (&'static str, String) {
        let error = result.err().unwrap();
        (error.code(), error.to_string())
    }

    #[test]
    fn a_command_is_words_and_interactive() {
        assert_eq!(
            argv(&input("sh -c 'a b'")),
            Ok(vec!["sh".into(), "-c".into(), "a b".into()])
        );
        for blank in ["", "  ", "''", "# all"] {
            assert_eq!(why(argv(&input(blank))).1, "command can not be blank.", "{blank}");
        }
        assert!(why(argv(&input("a 'b"))).1.contains("a ' is not closed"));
        assert!(argv(&input("a\0b")).is_err() && argv(&input(&"x".repeat(8193))).is_err());
        for interactive in [None, Some(false)] {
            let input = shapes::ExecuteCommand {
                interactive,
                ..input("sh")
            };
            assert_eq!(
                why(argv(&input)).1,
                "Interactive is the only mode supported currently."
            );
        }
    }

    #[test]
    fn a_container_is_named_unless_it_is_alone() {
        let mut task = task();
        assert_eq!(container(&task, None).unwrap().name, "app");
        assert_eq!(container(&task, Some("app")).unwrap().name, "app");
        assert_eq!(why(container(&task, Some("web"))).0, "InvalidParameterException");
        let second = task.containers[0].clone();
        task.containers.push(Container {
            name: "web".to_owned(),
            ..second
        });
        assert!(why(container(&task, None)).1.contains("more than one container"));
        assert_eq!(container(&task, Some("web")).unwrap().name, "web");
        task.containers[1].status = ContainerStatus::Stopped;
        assert_eq!(
            why(container(&task, Some("web"))).0,
            "TargetNotConnectedException"
        );
    }

    #[test]
    fn it_must_have_been_enabled_and_the_task_must_run() {
        let mut paused = task();
        paused.pauses.since = paused.started_at;
        assert_eq!(
            why(container(&paused, None)).1,
            "The task is paused; resume it first."
        );
        let not_enabled = ("InvalidParameterException", NOT_ENABLED.to_owned());
        let task = task();
        let off = Task {
            enable_execute_command: false,
            ..task.clone()
        };
        assert_eq!(why(container(&off, None)), not_enabled);
        let ended = Task {
            status: TaskStatus::Deactivating,
            ..task
        };
        assert_eq!(why(container(&ended, None)), not_enabled);
    }
}
