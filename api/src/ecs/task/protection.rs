//! GetTaskProtection and UpdateTaskProtection. There are no services yet that would stop a task for having fewer, so this is
//! kept and told for any task.

use std::time::Duration;

use berth_runtime::model::task::{DesiredStatus, Task};
use serde_json::{Map, Value, json};

use super::{cluster, find, shapes};
use crate::app::App;
use crate::ecs::values::{put, seconds};
use crate::error::{ApiError, unexpected};

const MOST_TASKS: usize = 10;
const DEFAULT_MINUTES: i64 = 120;
const MOST_MINUTES: i64 = 2880;

pub(crate) async fn get(app: &App, input: shapes::TaskProtection) -> Result<Value, ApiError> {
    each(app, input, None).await
}

pub(crate) async fn update(app: &App, input: shapes::TaskProtection) -> Result<Value, ApiError> {
    let enabled = input
        .protection_enabled
        .ok_or_else(|| ApiError::InvalidParameter("protectionEnabled can not be blank.".to_owned()))?;
    let time = time(enabled, input.expires_in_minutes)?;
    each(app, input, Some(time)).await
}

/// For how long; none where it is taken away.
pub(crate) fn time(enabled: bool, minutes: Option<i64>) -> Result<Option<Duration>, ApiError> {
    let minutes = minutes.unwrap_or(DEFAULT_MINUTES);
    let seconds = u64::try_from(minutes)
        .ok()
        .filter(|_| (1..=MOST_MINUTES).contains(&minutes))
        .map(|minutes| minutes * 60);
    let seconds = seconds.ok_or_else(|| {
        ApiError::InvalidParameter(format!("expiresInMinutes must be within 1 to {MOST_MINUTES}."))
    })?;
    Ok(enabled.then(|| Duration::from_secs(seconds)))
}

pub(crate) async fn set(app: &App, task: &Task, time: Option<Duration>) -> Result<Task, ApiError> {
    let protected = app.runtime.protect_task(&task.id, time).await;
    protected.map_err(|error| unexpected(&error))
}

async fn each(
    app: &App,
    input: shapes::TaskProtection,
    change: Option<Option<Duration>>,
) -> Result<Value, ApiError> {
    let cluster = cluster::active(app, input.cluster.as_deref()).await?;
    let asked = input.tasks.unwrap_or_default();
    if !(1..=MOST_TASKS).contains(&asked.len()) {
        return Err(ApiError::InvalidParameter(format!(
            "tasks must have 1 to {MOST_TASKS} elements."
        )));
    }
    let (mut protected, mut failures) = (Vec::new(), Vec::new());
    for name in &asked {
        let found = find(app, &cluster, name).await?;
        match found.filter(|task| task.desired_status == DesiredStatus::Running) {
            Some(task) => {
                let task = match change {
                    Some(time) => set(app, &task, time).await?,
                    None => task,
                };
                protected.push(shape(app, &task));
            }
            None => failures.push(json!({ "arn": name, "reason": "MISSING" })),
        }
    }
    Ok(json!({ "protectedTasks": protected, "failures": failures }))
}

fn shape(app: &App, task: &Task) -> Value {
    let until = app.runtime.protection(task);
    let mut shape = Map::new();
    put(
        &mut shape,
        "taskArn",
        Some(app.owner.task(&task.cluster, &task.id)),
    );
    put(&mut shape, "protectionEnabled", Some(until.is_some()));
    put(&mut shape, "expirationDate", until.map(seconds));
    Value::Object(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protection_lasts_two_hours_unless_said_and_two_days_at_most() {
        let seconds = |minutes| time(true, minutes).unwrap().unwrap().as_secs();
        assert_eq!(
            (seconds(None), seconds(Some(1)), seconds(Some(2880))),
            (7200, 60, 172_800)
        );
        assert_eq!(time(false, None), Ok(None));
        for minutes in [0, -1, 2881, i64::MIN, i64::MAX] {
            assert!(time(true, Some(minutes)).is_err(), "{minutes}");
        }
    }
}
