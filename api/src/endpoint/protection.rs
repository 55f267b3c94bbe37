//! The task's protection, asked for and set by its own containers, in the shapes of the ECS agent.

use berth_runtime::model::task::{Task, TaskId};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::metadata::time;
use super::{inside, own, reply};
use crate::app::App;
use crate::ecs::task::protection;
use crate::ecs::values::put;
use crate::error::ApiError;
use crate::reply::Reply;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Wish {
    protection_enabled: bool,
    expires_in_minutes: Option<i64>,
}

/// With `change`, sets it to what that says.
pub(super) async fn answer(app: &App, id: &TaskId, container: &str, change: Option<&[u8]>) -> Reply {
    let task = match app.runtime.task(id).await {
        Ok(task) => task,
        Err(error) => return inside(error).reply(),
    };
    if let Err(refusal) = own(&task, container) {
        return refusal.reply();
    }
    let arn = app.owner.task(&task.cluster, &task.id);
    let task = match change {
        None => Ok(task),
        Some(body) => changed(app, &task, body).await,
    };
    match task {
        Ok(task) => reply(200, &shape(app, &task)),
        Err(error) => {
            let error = json!({ "Arn": arn, "Code": error.code(), "Message": error.to_string() });
            reply(400, &json!({ "error": error }))
        }
    }
}

async fn changed(app: &App, task: &Task, body: &[u8]) -> Result<Task, ApiError> {
    let wish: Wish = serde_json::from_slice(body).map_err(|_| {
        ApiError::InvalidParameter(
            "the body must have ProtectionEnabled, true or false, and may have ExpiresInMinutes.".to_owned(),
        )
    })?;
    let time = protection::time(wish.protection_enabled, wish.expires_in_minutes)?;
    protection::set(app, task, time).await
}

fn shape(app: &App, task: &Task) -> Value {
    let until = app.runtime.protection(task);
    let mut shape = Map::new();
    put(&mut shape, "ProtectionEnabled", Some(until.is_some()));
    put(&mut shape, "ExpirationDate", until.map(time));
    put(
        &mut shape,
        "TaskArn",
        Some(app.owner.task(&task.cluster, &task.id)),
    );
    json!({ "protection": shape })
}
