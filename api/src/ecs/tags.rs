//! Tags of clusters, task definitions and tasks.

use berth_runtime::RuntimeError;
use berth_runtime::model::Tag;
use serde_json::{Value, json};

use super::cluster::cluster_error;
use super::shapes;
use super::values::{MAX_TAGS, cluster_tags, tags, tags_json};
use crate::app::App;
use crate::error::{ApiError, unexpected};

/// What tags belong to.
enum Resource {
    Cluster(String),
    Definition(String, Option<u32>),
    Task(String),
}

pub(super) async fn list(app: &App, input: shapes::ListTagsForResource) -> Result<Value, ApiError> {
    let tags = match resource(app, input.resource_arn)? {
        Resource::Cluster(name) => {
            let mut clusters = app.runtime.clusters().await.map_err(|error| unexpected(&error))?;
            clusters.retain(|cluster| cluster.name == name);
            clusters.pop().ok_or_else(missing)?.tags
        }
        Resource::Definition(family, revision) => {
            let found = app.runtime.definition(&family, revision).await;
            found.map_err(|_| missing())?.tags
        }
        Resource::Task(arn) => {
            let id = app.owner.parse_task(&arn)?.id.ok_or_else(missing)?;
            app.runtime.task(&id).await.map_err(|_| missing())?.tags
        }
    };
    Ok(json!({ "tags": tags_json(&tags) }))
}

pub(super) async fn tag(app: &App, input: shapes::TagResource) -> Result<Value, ApiError> {
    let resource = resource(app, input.resource_arn)?;
    let added = match resource {
        Resource::Cluster(_) => cluster_tags(input.tags.as_deref())?,
        _ => tags(input.tags.as_deref())?,
    };
    change(app, resource, |tags| {
        tags.retain(|tag| added.iter().all(|it| it.key != tag.key));
        tags.extend(added.iter().cloned());
        if tags.len() > MAX_TAGS {
            return Err(ApiError::InvalidParameter(format!(
                "The number of tags cannot be more than {MAX_TAGS}."
            )));
        }
        Ok(())
    })
    .await
}

pub(super) async fn untag(app: &App, input: shapes::UntagResource) -> Result<Value, ApiError> {
    let keys = input.tag_keys.unwrap_or_default();
    change(app, resource(app, input.resource_arn)?, |tags| {
        tags.retain(|tag| !keys.contains(&tag.key));
        Ok(())
    })
    .await
}

async fn change(
    app: &App,
    resource: Resource,
    change: impl Fn(&mut Vec<Tag>) -> Result<(), ApiError>,
) -> Result<Value, ApiError> {
    match resource {
        Resource::Cluster(name) => {
            let changed = app
                .runtime
                .change_cluster(&name, |cluster| change(&mut cluster.tags).map_err(Refusal::Api));
            changed.await.map_err(|refusal| refusal.answer(cluster_error))?;
        }
        Resource::Definition(family, revision) => {
            let id = app
                .runtime
                .definition(&family, revision)
                .await
                .map_err(|_| missing())?
                .id;
            let changed = app.runtime.change_definition(&id, |definition| {
                change(&mut definition.tags).map_err(Refusal::Api)
            });
            changed.await.map_err(|refusal| refusal.answer(|_| missing()))?;
        }
        Resource::Task(_) => {
            return Err(ApiError::UnsupportedFeature(
                "Berth does not support other tags of a task than those that it was run with.".to_owned(),
            ));
        }
    }
    Ok(json!({}))
}

/// Why tags were not changed.
enum Refusal {
    Api(ApiError),
    Runtime(RuntimeError),
}

impl From<RuntimeError> for Refusal {
    fn from(error: RuntimeError) -> Self {
        Self::Runtime(error)
    }
}

impl Refusal {
    fn answer(self, of_runtime: impl Fn(RuntimeError) -> ApiError) -> ApiError {
        match self {
            Self::Api(error) => error,
            Self::Runtime(error) => of_runtime(error),
        }
    }
}

fn resource(app: &App, arn: Option<String>) -> Result<Resource, ApiError> {
    let arn = arn.unwrap_or_default();
    if arn.contains(":cluster/") {
        Ok(Resource::Cluster(app.owner.parse_cluster(&arn)?))
    } else if arn.contains(":task-definition/") {
        let name = app.owner.parse_definition(&arn)?;
        Ok(Resource::Definition(name.family, name.revision))
    } else {
        Ok(Resource::Task(arn))
    }
}

fn missing() -> ApiError {
    ApiError::InvalidParameter("The specified resource was not found.".to_owned())
}
