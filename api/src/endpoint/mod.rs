//! The task's endpoint: what a container finds at 169.254.170.2. The connections come over vsock, each with the task that it
//! is of, so the task is never a matter of what is asked; which of its containers is, and the id in the path says it.
//!
//! | path | answer |
//! |---|---|
//! | `/v2/credentials/ID` | temporary credentials of the task's role |
//! | `/v4/ID`, `/v4/ID/task`, `/v4/ID/taskWithTags` | metadata of a container, and of the task |
//! | `/v4/ID/stats`, `/v4/ID/task/stats` | what containers use, as Docker tells it |
//! | `/api/ID/task-protection/v1/state` | the task's protection; `PUT` sets it |

mod metadata;
mod protection;
mod stats;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_runtime::EndpointCall;
use berth_runtime::model::task::{Task, TaskId};
use bytes::Bytes;
use hyper::Method;
use hyper::http::request::Parts;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::error::ApiError;
use crate::reply::Reply;
use crate::server::{Answer, Handler, Limits, connection};

const JSON: &str = "application/json";
/// Requests of a connection are answered no faster than so one after the other; a change is written to the disk.
const PACE: Duration = Duration::from_millis(20);
const PACE_OF_CHANGES: Duration = Duration::from_millis(500);

/// Everything here is small, and the caller is hostile.
fn limits() -> Limits {
    Limits {
        connections: 0,
        head: Duration::from_secs(10),
        body: Duration::from_secs(5),
        body_bytes: 16 * 1024,
        large_bodies: Arc::new(Semaphore::new(0)),
        write_stall: Duration::from_secs(10),
        linger: Duration::from_secs(1),
        shutdown: Duration::ZERO,
        // As `… | nc` does in a script.
        half_closed: true,
    }
}

/// Answers all tasks, until the daemon ends.
pub async fn serve(app: Arc<App>) {
    let Some(mut calls) = app.runtime.endpoint_calls() else {
        return tracing::error!("somebody else answers the tasks");
    };
    let limits = Arc::new(limits());
    while let Some(EndpointCall { task, stream, place }) = calls.recv().await {
        let app = Arc::clone(&app);
        let next = Mutex::new(Instant::now());
        let handler = Arc::new(Endpoint { app, task, next });
        let never = CancellationToken::new();
        tokio::spawn(connection(stream, handler, Arc::clone(&limits), never, place));
    }
}

/// The endpoint of one task.
struct Endpoint {
    app: Arc<App>,
    task: TaskId,
    /// When this connection's next request is answered at the soonest.
    next: Mutex<Instant>,
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    NotFound(&'static str),
    Method,
    Inside,
}

impl Refusal {
    fn reply(&self) -> Reply {
        let (status, code, message) = match self {
            Refusal::NotFound(message) => (404, "NotFound", *message),
            Refusal::Method => (405, "MethodNotAllowed", "this method is not answered here"),
            Refusal::Inside => (500, "ServerError", "try again later"),
        };
        reply(status, &json!({ "code": code, "message": message }))
    }
}

fn reply(status: u16, body: &Value) -> Reply {
    Reply {
        content_type: JSON.into(),
        ..Reply::json(status, body)
    }
}

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
enum Question<'a> {
    Credentials { id: &'a str },
    Container { id: &'a str },
    Task { id: &'a str, tags: bool },
    Stats { id: &'a str },
    TaskStats { id: &'a str },
    Protection { id: &'a str },
}

impl<'a> Question<'a> {
    fn of(path: &'a str) -> Option<Question<'a>> {
        let path = path.strip_prefix('/')?;
        let parts: Vec<&str> = path
            .strip_suffix('/')
            .unwrap_or(path)
            .split('/')
            .take(6)
            .collect();
        Some(match parts[..] {
            ["v2", "credentials", id] => Question::Credentials { id },
            ["v4", id] => Question::Container { id },
            ["v4", id, "task"] => Question::Task { id, tags: false },
            ["v4", id, "taskWithTags"] => Question::Task { id, tags: true },
            ["v4", id, "stats"] => Question::Stats { id },
            ["v4", id, "task", "stats"] => Question::TaskStats { id },
            ["api", id, "task-protection", "v1", "state"] => Question::Protection { id },
            _ => return None,
        })
    }
}

impl Handler for Endpoint {
    type Admission = ();

    fn admit(&self, head: &Parts) -> Result<(), Reply> {
        match head.method {
            Method::GET | Method::PUT => Ok(()),
            _ => Err(Refusal::Method.reply()),
        }
    }

    async fn handle(self: Arc<Self>, (): (), head: Parts, body: Bytes) -> Answer {
        self.wait_for_its_turn(&head.method).await;
        let question = Question::of(head.uri.path());
        if let Some(Question::Protection { id }) = question {
            let change = (head.method == Method::PUT).then_some(body.as_ref());
            return Answer::Reply(protection::answer(&self.app, &self.task, id, change).await);
        }
        let answer = match head.method {
            Method::GET => self.answer(question).await,
            _ => Err(Refusal::Method),
        };
        Answer::Reply(match answer {
            Ok(body) => reply(200, &body),
            Err(refusal) => refusal.reply(),
        })
    }
}

impl Endpoint {
    async fn wait_for_its_turn(&self, method: &Method) {
        let takes = match *method {
            Method::PUT => PACE_OF_CHANGES,
            _ => PACE,
        };
        let turn = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*next).max(Instant::now());
            *next = turn + takes;
            turn
        };
        tokio::time::sleep_until(turn).await;
    }

    async fn answer(&self, question: Option<Question<'_>>) -> Result<Value, Refusal> {
        let question = question.ok_or(Refusal::NotFound("there is nothing at this path"))?;
        if let Question::Credentials { id } = question {
            return self.credentials(id).await;
        }
        let task = self.app.runtime.task(&self.task).await.map_err(inside)?;
        match question {
            // Answered before this.
            Question::Credentials { .. } | Question::Protection { .. } => Err(Refusal::Inside),
            Question::Container { id } => {
                let container = own(&task, id)?;
                let facts = metadata::Facts::of(&self.app, &task).await?;
                Ok(facts.container(container))
            }
            Question::Task { id, tags } => {
                own(&task, id)?;
                let facts = metadata::Facts::of(&self.app, &task).await?;
                Ok(facts.task(tags))
            }
            Question::Stats { id } => {
                let container = own(&task, id)?;
                let usage = self.app.runtime.usage(&self.task).await.map_err(inside)?;
                Ok(stats::container(&task, container, &usage))
            }
            Question::TaskStats { id } => {
                own(&task, id)?;
                let usage = self.app.runtime.usage(&self.task).await.map_err(inside)?;
                Ok(stats::task(&task, &usage))
            }
        }
    }

    async fn credentials(&self, id: &str) -> Result<Value, Refusal> {
        let role = self.app.runtime.task_role(&self.task).await.map_err(inside)?;
        let role = role.filter(|role| role.credentials_id == id);
        let role = role.ok_or(Refusal::NotFound("there are no credentials of this id"))?;
        let given = self.app.temporary_credentials(&self.task);
        Ok(json!({
            "RoleArn": role.arn,
            "AccessKeyId": given.credentials.access_key_id(),
            "SecretAccessKey": given.credentials.secret_access_key(),
            "Token": given.token,
            "Expiration": metadata::time(given.expires),
        }))
    }
}

/// The container that is asked for.
fn own<'a>(task: &'a Task, id: &str) -> Result<&'a berth_runtime::model::task::Container, Refusal> {
    let mut containers = task.containers.iter();
    containers
        .find(|container| container.runtime_id == id)
        .ok_or(Refusal::NotFound("this task has no container of this id"))
}

fn inside(error: berth_runtime::RuntimeError) -> Refusal {
    let _ = ApiError::server(&error);
    Refusal::Inside
}
