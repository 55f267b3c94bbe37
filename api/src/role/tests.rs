//! What is a task's own.

use serde_json::{Value, json};

use super::*;
use crate::ecs::task::tests::{definition, owner, task};

/// With a log, a secret and a parameter of its own.
fn own() -> (Task, TaskDefinition) {
    let (mut task, mut definition) = (task(), definition());
    task.containers[0].log = Some(berth_runtime::model::task::LogTarget {
        group: "/web".to_owned(),
        stream: "web/app/1".to_owned(),
    });
    let secrets = json!([
        { "name": "A", "value_from": "x", "source": { "Secret": {
            "resource": "web/key-AbCdEf", "json_key": null, "version_stage": null, "version_id": null } } },
        { "name": "B", "value_from": "y", "source": { "Parameter": { "names": ["/web/key"], "version": null } } },
    ]);
    definition.spec.containers[0].secrets = serde_json::from_value(secrets).unwrap();
    (task, definition)
}

fn may(service: Service, name: &str, body: &Value) -> bool {
    let (task, definition) = own();
    let about: About = shape(body.to_string().as_bytes()).unwrap_or_default();
    about.is_of(&Operation::new(service, name), &owner(), &task, &definition)
}

#[test]
fn what_is_its_own_a_task_may_read() {
    let id = "0123456789abcdef0123456789abcdef";
    let arn = format!("arn:aws:ecs:us-east-1:123456789012:task/default/{id}");
    for (service, name, body) in [
        (Service::Ecs, "DescribeTasks", json!({ "tasks": [id, arn] })),
        (
            Service::Ecs,
            "DescribeTaskDefinition",
            json!({ "taskDefinition": "web:1" }),
        ),
        (
            Service::Logs,
            "GetLogEvents",
            json!({ "logGroupName": "/web", "logStreamName": "web/app/1" }),
        ),
        (
            Service::SecretsManager,
            "GetSecretValue",
            json!({ "SecretId": "arn:aws:secretsmanager:us-east-1:123456789012:secret:web/key-AbCdEf" }),
        ),
        (
            Service::Ssm,
            "GetParameter",
            json!({ "Name": "/web/key", "WithDecryption": true }),
        ),
        (
            Service::Ssm,
            "GetParameters",
            json!({ "Names": ["/web/key", "/web/key:3"] }),
        ),
    ] {
        assert!(may(service, name, &body), "{name} {body}");
    }
}

#[test]
fn what_is_anothers_or_changes_anything_it_may_not() {
    let (id, other) = ("0123456789abcdef0123456789abcdef", "f".repeat(32));
    for (service, name, body) in [
        (Service::Ecs, "DescribeTasks", json!({ "tasks": [id, other] })),
        (Service::Ecs, "DescribeTasks", json!({ "tasks": [] })),
        (Service::Ecs, "DescribeTasks", json!({ "tasks": null })),
        (
            Service::Ecs,
            "DescribeTaskDefinition",
            json!({ "taskDefinition": "web" }),
        ),
        (
            Service::Ecs,
            "DescribeTaskDefinition",
            json!({ "taskDefinition": "web:2" }),
        ),
        (
            Service::Ecs,
            "UntagResource",
            json!({ "resourceArn": "arn:aws:ecs:us-east-1:123456789012:cluster/default", "tagKeys": ["berth:isolation"] }),
        ),
        (Service::Ecs, "StopTask", json!({ "task": id, "tasks": [id] })),
        (Service::Ecs, "RunTask", json!({ "taskDefinition": "web:1" })),
        (
            Service::Logs,
            "GetLogEvents",
            json!({ "logGroupName": "/web", "logStreamName": "web/app/2" }),
        ),
        (
            Service::Logs,
            "GetLogEvents",
            json!({ "logGroupName": "/web", "logStreamName": "web/app/1", "logGroupIdentifier": "/other" }),
        ),
        (
            Service::Logs,
            "FilterLogEvents",
            json!({ "logGroupName": "/web", "logStreamName": "web/app/1" }),
        ),
        (
            Service::SecretsManager,
            "GetSecretValue",
            json!({ "SecretId": "web/other" }),
        ),
        (Service::SecretsManager, "GetSecretValue", json!({})),
        (
            Service::SecretsManager,
            "DeleteSecret",
            json!({ "SecretId": "web/key-AbCdEf" }),
        ),
        (Service::Ssm, "GetParameter", json!({ "Name": "/other" })),
        (
            Service::Ssm,
            "GetParameters",
            json!({ "Names": ["/web/key", "/other"] }),
        ),
        (
            Service::Ssm,
            "GetParametersByPath",
            json!({ "Path": "/", "Name": "/web/key" }),
        ),
        (
            Service::Berth,
            "ExecuteCommand",
            json!({ "task": id, "tasks": [id] }),
        ),
        (
            Service::Ecs,
            "ExecuteCommand",
            json!({ "task": id, "tasks": [id] }),
        ),
    ] {
        assert!(!may(service, name, &body), "{name} {body}");
    }
}
