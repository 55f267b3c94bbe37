//! The task's endpoint, 169.254.170.2 in its guest: what its containers are told of it, and their connections to it, which
//! are handed on to whoever answers them. What is asked and answered there is not known here.
//!
//! Whose connection it is follows from the machine that it came from, so no task can ask for another.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::host::GuestStream;
use crate::model::definition::DefinitionSpec;
use crate::model::task::{Task, TaskId};

/// Where containers find it, from the environment that they are given.
const ADDRESS: &str = "http://169.254.170.2";
/// Connections of one task at once.
const MOST_OF_A_TASK: usize = 16;
/// Connections of all tasks that nobody has taken yet.
const MOST_WAITING: usize = 256;

/// A connection that a container of this task has made.
pub struct EndpointCall {
    pub task: TaskId,
    /// The guest is hostile.
    pub stream: Box<dyn GuestStream>,
    /// To be kept until the connection ends.
    pub place: OwnedSemaphorePermit,
}

/// Where all connections arrive.
pub(crate) struct Endpoints {
    calls: mpsc::Sender<EndpointCall>,
    receiver: Mutex<Option<mpsc::Receiver<EndpointCall>>>,
}

impl Default for Endpoints {
    fn default() -> Endpoints {
        let (calls, receiver) = mpsc::channel(MOST_WAITING);
        Endpoints {
            calls,
            receiver: Mutex::new(Some(receiver)),
        }
    }
}

impl Endpoints {
    /// Once.
    pub(crate) fn take(&self) -> Option<mpsc::Receiver<EndpointCall>> {
        self.receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    pub(crate) fn of(&self, task: TaskId) -> TaskEndpoint {
        TaskEndpoint {
            task,
            calls: self.calls.clone(),
            places: Arc::new(Semaphore::new(MOST_OF_A_TASK)),
        }
    }
}

/// One task's.
#[derive(Clone)]
pub(crate) struct TaskEndpoint {
    task: TaskId,
    calls: mpsc::Sender<EndpointCall>,
    places: Arc<Semaphore>,
}

impl TaskEndpoint {
    /// Hands a connection on; one too many is closed.
    pub(crate) fn call(&self, stream: Box<dyn GuestStream>) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return;
        };
        let call = EndpointCall {
            task: self.task.clone(),
            stream,
            place,
        };
        if self.calls.try_send(call).is_err() {
            tracing::warn!(task = %self.task, "nobody takes the connections of tasks to their endpoints");
        }
    }
}

/// The role whose credentials the task's containers get.
pub(crate) fn role<'a>(task: &'a Task, definition: &'a DefinitionSpec) -> Option<&'a str> {
    let role = task.overrides.task_role_arn.as_deref();
    role.or(definition.task_role_arn.as_deref())
}

/// What nobody can guess who does not know the session.
pub(crate) fn credentials_id(session: &str) -> String {
    let digest = Sha256::new()
        .chain_update("the id of the credentials\0")
        .chain_update(session)
        .finalize();
    hex::encode(&digest[..16])
}

/// What a container is told.
pub(super) fn environment(
    runtime_id: &str,
    session: &str,
    role: Option<&str>,
    region: &str,
) -> BTreeMap<String, String> {
    let mut told = BTreeMap::from([
        (
            "ECS_CONTAINER_METADATA_URI_V4".to_owned(),
            format!("{ADDRESS}/v4/{runtime_id}"),
        ),
        ("ECS_AGENT_URI".to_owned(), format!("{ADDRESS}/api/{runtime_id}")),
        ("AWS_EXECUTION_ENV".to_owned(), "AWS_ECS_FARGATE".to_owned()),
        ("AWS_REGION".to_owned(), region.to_owned()),
        ("AWS_DEFAULT_REGION".to_owned(), region.to_owned()),
    ]);
    if role.is_some() {
        let path = format!("/v2/credentials/{}", credentials_id(session));
        told.insert("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI".to_owned(), path);
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_task_with_a_role_is_told_of_credentials() {
        let name = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
        let with = environment("c", "session", Some("role"), "us-east-1");
        assert_eq!(
            with[name],
            format!("/v2/credentials/{}", credentials_id("session"))
        );
        assert!(!with.values().any(|value| value.contains("session")));
        assert_ne!(credentials_id("session"), credentials_id("another"));
        assert!(!environment("c", "session", None, "us-east-1").contains_key(name));
    }

    #[tokio::test]
    async fn a_task_has_so_many_connections_and_no_more() {
        let endpoints = Endpoints::default();
        let mut calls = endpoints.take().unwrap();
        assert!(endpoints.take().is_none());
        let (greedy, other) = (endpoints.of(TaskId::random()), endpoints.of(TaskId::random()));
        let connect = |task: &TaskEndpoint| task.call(Box::new(tokio::io::duplex(1).0));
        for _ in 0..MOST_OF_A_TASK * 2 {
            connect(&greedy);
        }
        connect(&other);
        let mut taken = Vec::new();
        while let Ok(call) = calls.try_recv() {
            taken.push(call);
        }
        assert_eq!(taken.len(), MOST_OF_A_TASK + 1);
        assert_eq!(taken.last().unwrap().task, other.task);
        taken.clear();
        connect(&greedy);
        assert_eq!(
            calls.try_recv().unwrap().task,
            greedy.task,
            "a place that is free again is used"
        );
    }
}
