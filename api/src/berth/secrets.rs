//! RotateSecretKeys, DescribeSecretKeys.

use berth_runtime::secrets::Rotation;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiError;

pub(super) async fn rotate(app: &App) -> Result<Value, ApiError> {
    let rotated = app.runtime.secrets().rotate().await;
    let Rotation { key, values } = rotated.map_err(|error| ApiError::server(&error))?;
    Ok(json!({ "key": key, "values": values }))
}

pub(super) fn keys(app: &App) -> Value {
    json!({ "keys": app.runtime.secrets().key_ids() })
}
