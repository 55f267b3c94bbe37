//! Operations on clusters.

use berth_runtime::RuntimeError;
use berth_runtime::model::Tag;
use berth_runtime::model::cluster::{Cluster, ClusterCounts, ClusterStatus, DEFAULT_CLUSTER};
use berth_runtime::model::isolation::ISOLATION_TAG;
use serde_json::{Map, Value, json};

use super::definition::validate::{unsupported, unsupported_value};
use super::shapes;
use super::values::{
    MAX_RESULTS, cluster_tags, includes, limit, listed, name_values, name_values_json, put, tags_json,
};
use crate::app::App;
use crate::arn::is_name;
use crate::decode::says_nothing;
use crate::error::{ApiError, unexpected};
use crate::page::{Order, page};

pub(super) async fn create(app: &App, input: shapes::CreateCluster) -> Result<Value, ApiError> {
    for (name, member) in [
        ("configuration", &input.configuration),
        ("serviceConnectDefaults", &input.service_connect_defaults),
    ] {
        if !says_nothing(member) {
            return Err(ApiError::Client(unsupported(name)));
        }
    }
    let strategy = input.default_capacity_provider_strategy.iter().flatten();
    let strategy = strategy.map(|item| item.capacity_provider.clone().unwrap_or_default());
    for provider in input.capacity_providers.iter().flatten().cloned().chain(strategy) {
        super::task::capacity_provider(&provider)?;
    }
    let settings = name_values(input.settings.as_deref());
    for setting in &settings {
        if setting.name != "containerInsights" {
            return Err(ApiError::InvalidParameter(format!(
                "Invalid cluster setting '{}'.",
                setting.name
            )));
        }
        if !["enabled", "disabled", "enhanced"].contains(&setting.value.as_str()) {
            return Err(ApiError::Client(unsupported_value(
                "containerInsights",
                &setting.value,
            )));
        }
    }
    let name = input.cluster_name.unwrap_or_else(|| DEFAULT_CLUSTER.to_owned());
    if !is_name(&name) {
        return Err(ApiError::InvalidParameter(
            "clusterName must have 1 to 255 letters, digits, hyphens and underscores.".to_owned(),
        ));
    }
    let tags = cluster_tags(input.tags.as_deref())?;
    let chosen = isolation(&tags);
    let cluster = app
        .runtime
        .create_cluster(&name, settings, tags)
        .await
        .map_err(cluster_error)?;
    // One that was there is answered as it is, as AWS does, which must not pass for what was asked.
    if chosen.is_some() && isolation(&cluster.tags) != chosen {
        return Err(ApiError::InvalidParameter(format!(
            "The cluster is there already without this value of the tag '{ISOLATION_TAG}'; TagResource changes it."
        )));
    }
    Ok(json!({ "cluster": encoded(app, &cluster, Some(&["SETTINGS".to_owned(), "TAGS".to_owned()])).await? }))
}

/// The value of the tag.
fn isolation(tags: &[Tag]) -> Option<String> {
    let tag = tags.iter().find(|tag| tag.key == ISOLATION_TAG);
    tag.map(|tag| tag.value.clone())
}

pub(super) async fn describe(app: &App, input: shapes::DescribeClusters) -> Result<Value, ApiError> {
    let asked = input.clusters.unwrap_or_default();
    let asked = if asked.is_empty() {
        vec![DEFAULT_CLUSTER.to_owned()]
    } else {
        asked
    };
    if asked.len() > MAX_RESULTS {
        return Err(ApiError::InvalidParameter(format!(
            "clusters cannot have more than {MAX_RESULTS} elements."
        )));
    }
    let known = clusters(app).await?;
    let mut found = Vec::new();
    let mut failures = Vec::new();
    for name in &asked {
        let name = app.owner.parse_cluster(name)?;
        match known.iter().find(|cluster| cluster.name == name) {
            Some(cluster) => found.push(encoded(app, cluster, input.include.as_deref()).await?),
            None => failures.push(json!({ "arn": app.owner.cluster(&name), "reason": "MISSING" })),
        }
    }
    Ok(json!({ "clusters": found, "failures": failures }))
}

pub(super) async fn list(app: &App, input: shapes::ListClusters) -> Result<Value, ApiError> {
    let active = clusters(app)
        .await?
        .into_iter()
        .filter(|cluster| cluster.status == ClusterStatus::Active);
    let names = active.map(|cluster| cluster.name).collect();
    let token = input.next_token.as_deref();
    let limit = limit(input.max_results)?;
    let (names, next) = page(
        names,
        String::clone,
        Order::Ascending,
        "ListClusters",
        token,
        limit,
    )?;
    let arns = names.iter().map(|name| app.owner.cluster(name)).collect();
    Ok(listed("clusterArns", arns, next))
}

pub(super) async fn delete(app: &App, input: shapes::DeleteCluster) -> Result<Value, ApiError> {
    let name = input.cluster.unwrap_or_default();
    if name.is_empty() {
        return Err(ApiError::InvalidParameter("Cluster can not be blank.".to_owned()));
    }
    let name = app.owner.parse_cluster(&name)?;
    let cluster = app.runtime.delete_cluster(&name).await.map_err(cluster_error)?;
    Ok(json!({ "cluster": encoded(app, &cluster, None).await? }))
}

/// The name of the active cluster that a request means.
pub(super) async fn active(app: &App, cluster: Option<&str>) -> Result<String, ApiError> {
    let name = match cluster {
        None | Some("") => DEFAULT_CLUSTER.to_owned(),
        Some(cluster) => app.owner.parse_cluster(cluster)?,
    };
    let known = clusters(app).await?;
    let active = |cluster: &Cluster| cluster.name == name && cluster.status == ClusterStatus::Active;
    if known.iter().any(active) {
        Ok(name)
    } else {
        Err(ApiError::ClusterNotFound)
    }
}

async fn clusters(app: &App) -> Result<Vec<Cluster>, ApiError> {
    app.runtime.clusters().await.map_err(|error| unexpected(&error))
}

async fn encoded(app: &App, cluster: &Cluster, include: Option<&[String]>) -> Result<Value, ApiError> {
    let counts = match cluster.status {
        ClusterStatus::Active => app
            .runtime
            .cluster_counts(&cluster.name)
            .await
            .map_err(cluster_error)?,
        ClusterStatus::Inactive => ClusterCounts::default(),
    };
    Ok(encode(
        &app.owner.cluster(&cluster.name),
        cluster,
        counts,
        include,
    ))
}

fn encode(arn: &str, cluster: &Cluster, counts: ClusterCounts, include: Option<&[String]>) -> Value {
    let mut shape = Map::new();
    put(&mut shape, "clusterArn", Some(arn));
    put(&mut shape, "clusterName", Some(&cluster.name));
    let status = match cluster.status {
        ClusterStatus::Active => "ACTIVE",
        ClusterStatus::Inactive => "INACTIVE",
    };
    put(&mut shape, "status", Some(status));
    put(&mut shape, "registeredContainerInstancesCount", Some(0));
    put(&mut shape, "runningTasksCount", Some(counts.running));
    put(&mut shape, "pendingTasksCount", Some(counts.pending));
    put(&mut shape, "activeServicesCount", Some(0));
    // Every cluster has this one, whether or not it was asked for.
    put(&mut shape, "capacityProviders", Some(["FARGATE"]));
    put(&mut shape, "defaultCapacityProviderStrategy", Some(json!([])));
    let settings = includes(include, "SETTINGS").then(|| name_values_json(&cluster.settings));
    put(
        &mut shape,
        "settings",
        Some(settings.unwrap_or_else(|| json!([]))),
    );
    let tags = includes(include, "TAGS").then(|| tags_json(&cluster.tags));
    put(&mut shape, "tags", Some(tags.unwrap_or_else(|| json!([]))));
    let statistics = includes(include, "STATISTICS").then(|| statistics(counts));
    put(
        &mut shape,
        "statistics",
        Some(statistics.unwrap_or_else(|| json!([]))),
    );
    Value::Object(shape)
}

fn statistics(counts: ClusterCounts) -> Value {
    let statistics = [
        ("runningEC2TasksCount", 0),
        ("runningFargateTasksCount", counts.running),
        ("pendingEC2TasksCount", 0),
        ("pendingFargateTasksCount", counts.pending),
        ("activeEC2ServiceCount", 0),
        ("activeFargateServiceCount", 0),
    ];
    statistics
        .iter()
        .map(|(name, value)| json!({ "name": name, "value": value.to_string() }))
        .collect()
}

pub(super) fn cluster_error(error: RuntimeError) -> ApiError {
    match error {
        RuntimeError::ClusterNotFound(_) => ApiError::ClusterNotFound,
        RuntimeError::ClusterHasTasks { .. } => ApiError::ClusterContainsTasks,
        error => unexpected(&error),
    }
}
