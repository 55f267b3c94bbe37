//! The input shapes of the Secrets Manager operations that are answered here.

use berth_runtime::secrets::SecretText;
use serde_json::Value;

use crate::decode::pascal_shapes;

pascal_shapes! {
    Tag { key: String, value: String, }
    CreateSecret {
        name: String,
        client_request_token: String,
        description: String,
        kms_key_id: String,
        secret_binary: SecretText,
        secret_string: SecretText,
        tags: Vec<Tag>,
        add_replica_regions: Value,
        #[serde(rename = "Type")]
        kind: String,
    }
    GetSecretValue { secret_id: String, version_id: String, version_stage: String, }
    PutSecretValue {
        secret_id: String,
        client_request_token: String,
        secret_binary: SecretText,
        secret_string: SecretText,
        version_stages: Vec<String>,
    }
    UpdateSecret {
        secret_id: String,
        client_request_token: String,
        description: String,
        kms_key_id: String,
        secret_binary: SecretText,
        secret_string: SecretText,
        #[serde(rename = "Type")]
        kind: String,
    }
    UpdateSecretVersionStage {
        secret_id: String,
        version_stage: String,
        remove_from_version_id: String,
        move_to_version_id: String,
    }
    OneSecret { secret_id: String, }
    DeleteSecret {
        secret_id: String,
        recovery_window_in_days: i64,
        force_delete_without_recovery: bool,
    }
    ListSecrets {
        include_planned_deletion: bool,
        max_results: i32,
        next_token: String,
        filters: Vec<Filter>,
        sort_order: String,
        sort_by: String,
    }
    Filter { key: String, values: Vec<String>, }
    ListSecretVersionIds {
        secret_id: String,
        max_results: i32,
        next_token: String,
        include_deprecated: bool,
    }
    TagResource { secret_id: String, tags: Vec<Tag>, }
    UntagResource { secret_id: String, tag_keys: Vec<String>, }
}
