//! The ECS API, `AmazonEC2ContainerServiceV20141113`: which operation is which function.

mod cluster;
mod definition;
#[cfg(test)]
mod members;
pub(crate) mod shapes;
mod tags;
pub(crate) mod task;
pub(crate) mod values;

pub(crate) use task::execute::{EXECUTE_COMMAND, execute};

use serde_json::Value;

use crate::app::App;
use crate::decode::shape;
use crate::error::ApiError;
use crate::operations;

pub(crate) async fn call(app: &App, operation: &str, body: &[u8]) -> Result<Value, ApiError> {
    match operation {
        "CreateCluster" => cluster::create(app, shape(body)?).await,
        "DescribeClusters" => cluster::describe(app, shape(body)?).await,
        "ListClusters" => cluster::list(app, shape(body)?).await,
        "DeleteCluster" => cluster::delete(app, shape(body)?).await,
        "ListTagsForResource" => tags::list(app, shape(body)?).await,
        "TagResource" => tags::tag(app, shape(body)?).await,
        "UntagResource" => tags::untag(app, shape(body)?).await,
        "RegisterTaskDefinition" => definition::register(app, shape(body)?, body.len()).await,
        "DescribeTaskDefinition" => definition::describe(app, shape(body)?).await,
        "DeregisterTaskDefinition" => definition::deregister(app, shape(body)?).await,
        "ListTaskDefinitions" => definition::list(app, shape(body)?).await,
        "ListTaskDefinitionFamilies" => definition::list_families(app, shape(body)?).await,
        "RunTask" => task::run(app, shape(body)?, body).await,
        "StartTask" => task::start(),
        "StopTask" => task::stop(app, shape(body)?).await,
        "DescribeTasks" => task::describe(app, shape(body)?).await,
        "ListTasks" => task::list(app, shape(body)?).await,
        "GetTaskProtection" => task::protection::get(app, shape(body)?).await,
        "UpdateTaskProtection" => task::protection::update(app, shape(body)?).await,
        other => Err(not_here(other)),
    }
}

fn not_here(operation: &str) -> ApiError {
    if operations::ECS.binary_search(&operation).is_ok() {
        ApiError::UnsupportedFeature(format!("Berth does not support {operation} yet."))
    } else {
        let operation: String = operation.chars().take(100).collect();
        ApiError::UnknownOperation(format!("There is no operation '{operation}' in ECS."))
    }
}
