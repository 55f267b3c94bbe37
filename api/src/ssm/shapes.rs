//! The input shapes of the Systems Manager operations that are answered here.

use berth_runtime::secrets::SecretText;
use serde_json::Value;

use crate::decode::pascal_shapes;

pascal_shapes! {
    Tag { key: String, value: String, }
    PutParameter {
        name: String,
        description: String,
        value: SecretText,
        #[serde(rename = "Type")]
        kind: String,
        key_id: String,
        overwrite: bool,
        allowed_pattern: String,
        tags: Vec<Tag>,
        tier: String,
        policies: Value,
        data_type: String,
    }
    GetParameter { name: String, with_decryption: bool, }
    GetParameters { names: Vec<String>, with_decryption: bool, }
    GetParametersByPath {
        path: String,
        recursive: bool,
        parameter_filters: Vec<ParameterStringFilter>,
        with_decryption: bool,
        max_results: i32,
        next_token: String,
    }
    ParameterStringFilter { key: String, option: String, values: Vec<String>, }
    ParametersFilter { key: String, values: Vec<String>, }
    GetParameterHistory { name: String, with_decryption: bool, max_results: i32, next_token: String, }
    DescribeParameters {
        filters: Vec<ParametersFilter>,
        parameter_filters: Vec<ParameterStringFilter>,
        max_results: i32,
        next_token: String,
        shared: bool,
    }
    DeleteParameter { name: String, }
    DeleteParameters { names: Vec<String>, }
    AddTagsToResource { resource_type: String, resource_id: String, tags: Vec<Tag>, }
    RemoveTagsFromResource { resource_type: String, resource_id: String, tag_keys: Vec<String>, }
    ListTagsForResource { resource_type: String, resource_id: String, }
}
