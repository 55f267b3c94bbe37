//! Whether a container's log configuration can be registered. Pure.

use berth_runtime::model::definition::byte_size;

use super::container::Task;
use super::validate::{refuse, unsupported, unsupported_value};
use crate::ecs::shapes::LogConfigurationShape;

/// Options of the awslogs driver that are honoured.
const LOG_OPTIONS: [&str; 6] = [
    "awslogs-create-group",
    "awslogs-group",
    "awslogs-region",
    "awslogs-stream-prefix",
    "max-buffer-size",
    "mode",
];

pub(super) fn errors(log: &LogConfigurationShape, task: &Task<'_>, errors: &mut Vec<String>) {
    match log.log_driver.as_deref().unwrap_or_default() {
        "awslogs" => {}
        other @ ("splunk" | "awsfirelens") => return errors.push(unsupported_value("logDriver", other)),
        other => {
            return errors.push(format!(
                "{other} is not a valid log driver. Must be one of [awslogs,splunk,awsfirelens]"
            ));
        }
    }
    let option = |name: &str| {
        log.options
            .as_ref()
            .and_then(|options| options.get(name))
            .filter(|value| !value.is_empty())
    };
    let missing: Vec<&str> = ["awslogs-group", "awslogs-region"]
        .into_iter()
        .filter(|name| option(name).is_none())
        .collect();
    if !missing.is_empty() {
        errors.push(format!(
            "Log driver awslogs requires options: {}",
            missing.join(", ")
        ));
    }
    if option("awslogs-stream-prefix").is_none() {
        errors.push(
            "Fargate requires log configuration options to include awslogs-stream-prefix to support log driver \
             awslogs."
                .to_owned(),
        );
    }
    if task
        .input
        .execution_role_arn
        .as_deref()
        .unwrap_or_default()
        .is_empty()
    {
        errors.push(
            "Fargate requires task definition to have execution role ARN to support log driver awslogs."
                .to_owned(),
        );
    }
    if let Some(region) = option("awslogs-region").filter(|region| *region != task.region) {
        errors.push(format!(
            "Berth keeps logs in its own region '{}', so it does not support 'awslogs-region' with the value \
             '{region}'.",
            task.region
        ));
    }
    if option("awslogs-group").is_some_and(|group| !crate::logs::is_group_name(group)) {
        errors.push(
            "Invalid 'awslogs-group': a name has 1 to 512 of the characters a-z A-Z 0-9 _ - / . #".to_owned(),
        );
    }
    if option("awslogs-stream-prefix").is_some_and(|prefix| !crate::logs::is_stream_name(prefix)) {
        errors.push("Invalid 'awslogs-stream-prefix': it must not contain ':' or '*'.".to_owned());
    }
    if let Some(mode) = option("mode").filter(|mode| !matches!(mode.as_str(), "blocking" | "non-blocking")) {
        errors.push(format!(
            "Invalid 'mode' of the log driver: '{mode}' is neither blocking nor non-blocking."
        ));
    }
    if let Some(size) =
        option("max-buffer-size").filter(|size| byte_size(size).is_none_or(|bytes| bytes == 0))
    {
        errors.push(format!(
            "Invalid 'max-buffer-size': '{size}' is not a size such as 512k, 10m or 1g."
        ));
    }
    if option("awslogs-create-group").is_some_and(|it| !matches!(it.as_str(), "true" | "false")) {
        errors.push("Invalid 'awslogs-create-group': it must be true or false.".to_owned());
    }
    for name in log.options.iter().flat_map(|options| options.keys()) {
        if !LOG_OPTIONS.contains(&name.as_str()) {
            errors.push(unsupported(name));
        }
    }
    refuse(&[("secretOptions", &log.secret_options)], errors);
}
