//! ListImages, PullImage, RemoveImage, PruneImages.

use std::time::{Duration, SystemTime};

use berth_runtime::RuntimeError;
use berth_runtime::image::{Image, StoredImage};
use berth_runtime::runtime::{ImageUsage, PullState};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{progress, wait_time};
use crate::app::App;
use crate::error::{ApiError, unexpected};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ImageInput {
    image: Option<String>,
    wait_seconds: Option<u64>,
    unused_seconds: Option<u64>,
}

pub(super) async fn list(app: &App) -> Result<Value, ApiError> {
    let (
        images,
        ImageUsage {
            used_bytes,
            budget_bytes,
        },
    ) = app.runtime.images().await.map_err(refusal)?;
    let images: Vec<Value> = images.iter().map(stored).collect();
    Ok(json!({ "images": images, "usedBytes": used_bytes, "budgetBytes": budget_bytes }))
}

pub(super) async fn pull(app: &App, input: ImageInput) -> Result<Value, ApiError> {
    let reference = name(&input)?;
    let wait = wait_time(input.wait_seconds)?;
    match app.runtime.pull_image(reference, wait).await.map_err(refusal)? {
        PullState::Underway(status) => Ok(json!({ "pull": status.map(progress) })),
        PullState::Done(pulled) => Ok(json!({ "image": image(&pulled) })),
    }
}

pub(super) async fn remove(app: &App, input: ImageInput) -> Result<Value, ApiError> {
    let freed = app.runtime.remove_image(name(&input)?).await.map_err(refusal)?;
    Ok(json!({ "removed": freed.is_some(), "freedBytes": freed.unwrap_or(0) }))
}

pub(super) async fn prune(app: &App, input: ImageInput) -> Result<Value, ApiError> {
    let unused = Duration::from_secs(input.unused_seconds.unwrap_or(0));
    let (images, freed) = app.runtime.prune_images(unused).await.map_err(refusal)?;
    Ok(json!({ "images": images, "freedBytes": freed }))
}

fn name(input: &ImageInput) -> Result<&str, ApiError> {
    let name = input.image.as_deref().filter(|name| !name.is_empty());
    name.ok_or_else(|| ApiError::InvalidParameter("image can not be blank.".to_owned()))
}

fn stored(stored: &StoredImage) -> Value {
    let mut shape = image(&stored.image);
    let since_epoch = stored.last_used.duration_since(SystemTime::UNIX_EPOCH);
    shape["lastUsedAt"] = json!(since_epoch.map_or(0, |at| at.as_secs()));
    shape["tasks"] = json!(stored.users);
    shape
}

fn image(image: &Image) -> Value {
    json!({ "image": image.reference, "digest": image.digest, "sizeBytes": image.size_bytes })
}

fn refusal(error: RuntimeError) -> ApiError {
    match error {
        RuntimeError::ImageInUse { image, users } => ApiError::InvalidParameter(format!(
            "The image {image} is used by a task that has not stopped: {users}."
        )),
        RuntimeError::Image(reason) => ApiError::InvalidParameter(reason),
        error => unexpected(&error),
    }
}
