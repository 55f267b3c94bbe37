//! Tasks as the ECS API describes them, and finding one by the beginning of its id.

use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, ClientError, Service};

/// Most tasks in one DescribeTasks.
const DESCRIBE_AT_ONCE: usize = 100;

/// Of a described task, what the command line shows.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Task {
    pub(super) task_arn: String,
    pub(super) cluster_arn: String,
    pub(super) task_definition_arn: String,
    pub(super) last_status: String,
    pub(super) desired_status: String,
    pub(super) stop_code: Option<String>,
    pub(super) stopped_reason: Option<String>,
    pub(super) cpu: String,
    pub(super) memory: String,
    /// Seconds since the epoch, as are all the times below.
    pub(super) created_at: Option<f64>,
    pub(super) pull_started_at: Option<f64>,
    pub(super) pull_stopped_at: Option<f64>,
    pub(super) started_at: Option<f64>,
    pub(super) execution_stopped_at: Option<f64>,
    pub(super) stopped_at: Option<f64>,
    pub(super) started_by: Option<String>,
    pub(super) group: Option<String>,
    pub(super) containers: Vec<Container>,
    pub(super) attachments: Vec<Attachment>,
    attributes: Vec<Detail>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) image: String,
    pub(super) image_digest: Option<String>,
    pub(super) last_status: String,
    pub(super) exit_code: Option<i32>,
    pub(super) reason: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Attachment {
    details: Vec<Detail>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Detail {
    name: String,
    value: String,
}

impl Task {
    pub(super) fn from_json(value: &Value) -> Result<Task, TaskError> {
        serde_json::from_value(value.clone()).map_err(|error| TaskError::Malformed(error.to_string()))
    }

    pub(super) fn id(&self) -> &str {
        last_part(&self.task_arn)
    }

    pub(super) fn cluster(&self) -> &str {
        last_part(&self.cluster_arn)
    }

    /// `family:revision`.
    pub(super) fn definition(&self) -> &str {
        last_part(&self.task_definition_arn)
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.last_status == "STOPPED"
    }

    /// Since when it is paused, in seconds since the epoch.
    pub(super) fn paused_at(&self) -> Option<f64> {
        let mut attributes = self.attributes.iter();
        attributes
            .find(|attribute| attribute.name == "berth.paused-at")
            .and_then(|attribute| attribute.value.parse().ok())
    }

    /// Still on its way to RUNNING.
    pub(super) fn is_starting(&self) -> bool {
        matches!(
            self.last_status.as_str(),
            "PROVISIONING" | "PENDING" | "ACTIVATING"
        )
    }

    /// A detail of the network interface, such as `privateIPv4Address`.
    pub(super) fn interface_detail(&self, name: &str) -> Option<&str> {
        let mut details = self.attachments.iter().flat_map(|attachment| &attachment.details);
        details
            .find(|detail| detail.name == name)
            .map(|detail| detail.value.as_str())
    }
}

/// What follows the last slash of an ARN.
fn last_part(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or(arn)
}

#[derive(Debug, thiserror::Error)]
pub(super) enum TaskError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("no task begins with {0:?}; `berth ps -a` lists them")]
    NotFound(String),
    #[error("{count} tasks begin with {prefix:?}; give more of the id")]
    Ambiguous { prefix: String, count: usize },
    #[error("{0:?} is no task id (hex digits) nor the beginning of one; `berth ps -a` lists them")]
    NotAnId(String),
    #[error("the daemon's answer is not understood: {0}; is it of another version?")]
    Malformed(String),
}

/// The described tasks of one cluster, or of all of them, newest first.
pub(super) async fn list(
    client: &Client,
    cluster: Option<&str>,
    stopped_too: bool,
) -> Result<Vec<Value>, TaskError> {
    let clusters = match cluster {
        Some(cluster) => vec![cluster.to_owned()],
        None => pages(client, "ListClusters", json!({}), "clusterArns").await?,
    };
    let mut tasks = Vec::new();
    for cluster in clusters {
        let mut arns = Vec::new();
        for status in if stopped_too {
            &["RUNNING", "STOPPED"][..]
        } else {
            &["RUNNING"]
        } {
            let input = json!({"cluster": cluster, "desiredStatus": status});
            arns.extend(pages(client, "ListTasks", input, "taskArns").await?);
        }
        if !stopped_too {
            // A task that was told to stop and still runs is not listed as RUNNING, but it is not gone either.
            let input = json!({"cluster": cluster, "desiredStatus": "STOPPED"});
            arns.extend(pages(client, "ListTasks", input, "taskArns").await?);
        }
        arns.sort_unstable();
        arns.dedup();
        for some in arns.chunks(DESCRIBE_AT_ONCE) {
            let input = json!({"cluster": cluster, "tasks": some, "include": ["TAGS"]});
            let mut answer = client.call(Service::Ecs, "DescribeTasks", &input).await?;
            if let Some(Value::Array(described)) = answer.get_mut("tasks").map(Value::take) {
                tasks.extend(described);
            }
        }
    }
    if !stopped_too {
        tasks.retain(|task| task.get("lastStatus").and_then(Value::as_str) != Some("STOPPED"));
    }
    let created = |task: &Value| task.get("createdAt").and_then(Value::as_f64).unwrap_or(0.0);
    tasks.sort_by(|a, b| created(b).total_cmp(&created(a)));
    Ok(tasks)
}

/// All names that an operation lists, page by page.
async fn pages(
    client: &Client,
    operation: &str,
    mut input: Value,
    member: &str,
) -> Result<Vec<String>, TaskError> {
    let mut names = Vec::new();
    loop {
        let mut answer = client.call(Service::Ecs, operation, &input).await?;
        let page = answer.get_mut(member).map(Value::take).unwrap_or_default();
        names.extend(
            serde_json::from_value::<Vec<String>>(page)
                .map_err(|error| TaskError::Malformed(error.to_string()))?,
        );
        match answer.get_mut("nextToken").map(Value::take) {
            Some(token @ Value::String(_)) => input["nextToken"] = token,
            _ => return Ok(names),
        }
    }
}

/// The one task whose id begins with `prefix`; a whole ARN will do too.
pub(super) async fn find(client: &Client, prefix: &str) -> Result<Value, TaskError> {
    let wanted = last_part(prefix);
    if wanted.is_empty()
        || wanted.len() > 32
        || !wanted.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    {
        return Err(TaskError::NotAnId(prefix.to_owned()));
    }
    let mut found = list(client, None, true).await?;
    found.retain(|task| {
        task.get("taskArn")
            .and_then(Value::as_str)
            .is_some_and(|arn| last_part(arn).starts_with(wanted))
    });
    match found.len() {
        0 => Err(TaskError::NotFound(prefix.to_owned())),
        1 => Ok(found.swap_remove(0)),
        count => Err(TaskError::Ambiguous {
            prefix: prefix.to_owned(),
            count,
        }),
    }
}

/// The task once its version is above `version`, or as it is after `wait_seconds`; and its version then.
pub(super) async fn wait(
    client: &Client,
    id: &str,
    version: u64,
    wait_seconds: u64,
) -> Result<(Task, u64), TaskError> {
    let input = json!({"task": id, "version": version, "waitSeconds": wait_seconds});
    let answer = client.call_patiently(Service::Berth, "WaitTask", &input).await?;
    let version = answer.get("version").and_then(Value::as_u64);
    match (answer.get("task"), version) {
        (Some(task), Some(version)) => Ok((Task::from_json(task)?, version)),
        _ => Err(TaskError::Malformed(
            "WaitTask without task or version".to_owned(),
        )),
    }
}

/// Waits until the task is STOPPED.
pub(super) async fn wait_stopped(client: &Client, id: &str) -> Result<Task, TaskError> {
    let mut version = 0;
    loop {
        let (task, now) = wait(client, id, version, 20).await?;
        if task.is_stopped() {
            return Ok(task);
        }
        version = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described() -> Task {
        Task::from_json(&json!({
            "taskArn": "arn:aws:ecs:us-east-1:000000000000:task/default/00ff",
            "clusterArn": "arn:aws:ecs:us-east-1:000000000000:cluster/default",
            "taskDefinitionArn": "arn:aws:ecs:us-east-1:000000000000:task-definition/web:3",
            "lastStatus": "ACTIVATING",
            "attachments": [{"details": [{"name": "privateIPv4Address", "value": "10.0.0.4"}]}],
            "unknown": 1,
        }))
        .unwrap()
    }

    #[test]
    fn names_are_read_from_arns() {
        let task = described();
        assert_eq!(
            (task.id(), task.cluster(), task.definition()),
            ("00ff", "default", "web:3")
        );
        assert_eq!(task.interface_detail("privateIPv4Address"), Some("10.0.0.4"));
    }

    #[test]
    fn a_task_is_starting_until_it_runs() {
        let mut task = described();
        assert!(task.is_starting() && !task.is_stopped());
        for status in ["RUNNING", "DEACTIVATING", "STOPPING", "DEPROVISIONING", "STOPPED"] {
            task.last_status = status.to_owned();
            assert!(!task.is_starting(), "{status}");
        }
    }
}
