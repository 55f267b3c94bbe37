//! RunTask's checks and the shape of a task.

use berth_runtime::RuntimeError;
use berth_runtime::model::definition::TaskDefinition;

use berth_runtime::model::Tag;
use berth_runtime::model::task::{ContainerStatus, TaskStatus};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::encode::Zones;
use super::request::{client_token, network, overrides, precheck, task_tags};
use super::run::refusal;
use super::volume::launch_volume;
use super::volume_tests::with_launch_volume;
use super::*;
use crate::arn::Owner;
use crate::ecs::members::{members, names, set};
use crate::ecs::shapes::RunTaskShape;

pub(crate) fn owner() -> Owner {
    Owner {
        region: "us-east-1".to_owned(),
        account_id: "123456789012".to_owned(),
    }
}

pub(crate) fn definition() -> TaskDefinition {
    serde_json::from_value(json!({
        "id": { "family": "web", "revision": 1 },
        "status": "Active",
        "spec": {
            "cpu_units": 256, "memory_mib": 512, "ephemeral_storage_gib": null, "execution_role_arn": null,
            "task_role_arn": null, "network_mode": "awsvpc", "requires_compatibilities": ["FARGATE"],
            "operating_system_family": null, "cpu_architecture": null,
            "containers": [{
                "name": "app", "image": "busybox", "essential": true, "cpu": 0, "memory_mib": null,
                "memory_reservation_mib": null, "entry_point": null, "command": null, "environment": [],
                "working_directory": null, "user": null, "readonly_root_filesystem": false, "port_mappings": [],
                "stop_timeout_s": null, "start_timeout_s": null, "ulimits": [], "init_process_enabled": null,
                "capabilities_add": [], "capabilities_drop": [], "docker_labels": {}, "log": null,
            }],
        },
        "tags": [{ "key": "team", "value": "definition" }, { "key": "stage", "value": "test" }],
        "registered_at": 0, "registered_by": "", "deregistered_at": null,
    }))
    .unwrap()
}

fn shape(input: &Value) -> RunTaskShape {
    crate::decode::shape(input.to_string().as_bytes()).unwrap()
}

fn minimal() -> Value {
    json!({
        "taskDefinition": "web",
        "networkConfiguration": { "awsvpcConfiguration": { "subnets": ["subnet-0"] } },
    })
}

pub(super) fn with(member: &str, value: Value) -> RunTaskShape {
    let mut input = minimal();
    input[member] = value;
    shape(&input)
}

#[test]
fn a_minimal_request_is_taken() {
    let input = shape(&minimal());
    assert_eq!(precheck(&input, &owner()).unwrap().family, "web");
    let network = network(&input, &definition()).unwrap();
    assert_eq!(network.subnets, ["subnet-0"]);
    assert!(!network.internet);
}

#[test]
fn the_texts_of_the_first_checks_are_exact() {
    let strategy = json!([{ "capacityProvider": "FARGATE" }]);
    let mut both = minimal();
    both["launchType"] = json!("FARGATE");
    both["capacityProviderStrategy"] = strategy.clone();
    let cases = [
        (
            shape(&both),
            "Specifying both a launch type and capacity provider strategy is not supported. Remove one and try again.",
        ),
        (
            with("placementConstraints", json!([{ "type": "distinctInstance" }])),
            "Placement constraints are not supported with FARGATE launch type.",
        ),
        (
            with("placementStrategy", json!([{ "type": "spread" }])),
            "Placement strategies are not supported with FARGATE launch type.",
        ),
        (
            with("taskDefinition", json!("web:x")),
            "Invalid revision number. Number: x",
        ),
        (with("taskDefinition", json!("web:")), "Revision is missing."),
        (
            with("launchType", json!("EC2")),
            "No Container Instances were found in your cluster.",
        ),
        (with("count", json!(0)), "count must be between 1 and 10."),
        (with("count", json!(11)), "count must be between 1 and 10."),
    ];
    for (input, expected) in cases {
        assert_eq!(precheck(&input, &owner()).unwrap_err().to_string(), expected);
    }
    assert!(precheck(&with("capacityProviderStrategy", strategy), &owner()).is_ok());
    assert!(precheck(&with("platformVersion", json!("LATEST")), &owner()).is_ok());
    let old = precheck(&with("platformVersion", json!("1.3.0")), &owner()).unwrap_err();
    assert_eq!(old.code(), "PlatformUnknownException");
    let spot = precheck(
        &with(
            "capacityProviderStrategy",
            json!([{ "capacityProvider": "FARGATE_SPOT" }]),
        ),
        &owner(),
    );
    assert!(
        spot.unwrap_err()
            .to_string()
            .starts_with("Berth does not support")
    );
}

#[test]
fn the_texts_about_networks_are_exact() {
    let message = |configuration: Value, definition: &TaskDefinition| {
        network(&with("networkConfiguration", configuration), definition)
            .unwrap_err()
            .to_string()
    };
    let missing = "Network Configuration must be provided when networkMode 'awsvpc' is specified.";
    assert_eq!(message(Value::Null, &definition()), missing);
    assert_eq!(message(json!({}), &definition()), missing);
    let empty = json!({ "awsvpcConfiguration": { "subnets": [] } });
    assert_eq!(message(empty, &definition()), "subnets can not be empty.");
    let mut for_ec2 = definition();
    for_ec2.spec.requires_compatibilities = vec!["EC2".to_owned()];
    assert_eq!(
        message(Value::Null, &for_ec2),
        "Task definition does not support launch_type FARGATE."
    );
}

#[test]
fn what_the_runtime_does_not_find_is_told_in_the_words_of_aws() {
    let told = |error| refusal(&owner(), error).to_string();
    assert_eq!(
        told(RuntimeError::SubnetNotFound("subnet-9".to_owned())),
        "Error retrieving subnet information for [subnet-9]: The subnet ID 'subnet-9' does not exist (ErrorCode: \
         InvalidSubnetID.NotFound)"
    );
    assert!(
        told(RuntimeError::SecurityGroupNotFound("sg-9".to_owned()))
            .contains("(ErrorCode: InvalidGroup.NotFound)")
    );
    let conflict = refusal(&owner(), RuntimeError::TokenConflict(vec![task()]));
    assert_eq!(conflict.code(), "ConflictException");
    let body: Value = serde_json::from_slice(&conflict.to_reply().body).unwrap();
    assert_eq!(body["resourceIds"], json!([owner().task("default", &task().id)]));
    assert!(!told(RuntimeError::Internal("secret".to_owned())).contains("secret"));
}

#[test]
fn overrides_must_fit_the_definition() {
    let checked = |input: Value| {
        let input = with("overrides", input);
        overrides(input.overrides.as_ref(), &definition()).map_err(|error| error.to_string())
    };
    let taken = checked(json!({
        "cpu": "1 vCPU", "memory": "2GB",
        "containerOverrides": [{ "name": "app", "command": ["true"], "environment": [{ "name": "A", "value": "1" }] }],
    }))
    .unwrap();
    assert_eq!((taken.cpu_units, taken.memory_mib), (Some(1024), Some(2048)));
    assert_eq!(
        taken.containers[0].command.as_deref(),
        Some(["true".to_owned()].as_slice())
    );
    assert_eq!(
        checked(json!({ "cpu": "512" })).unwrap_err(),
        "No Fargate configuration exists for given values: 512 CPU, 512 memory. See the Amazon ECS documentation for \
         the valid values."
    );
    assert_eq!(
        checked(json!({ "containerOverrides": [{ "name": "db" }] })).unwrap_err(),
        "Override for container named db is not a container in the TaskDefinition."
    );
    assert!(checked(json!({ "containerOverrides": [{ "name": "app", "memory": 513 }] })).is_err());
    assert!(checked(json!({ "containerOverrides": [{ "name": "app", "cpu": -1 }] })).is_err());
    assert!(checked(json!({ "ephemeralStorage": { "sizeInGiB": 1 } })).is_err());
    let long = json!({ "containerOverrides": [{ "name": "app", "command": ["x".repeat(8192)] }] });
    assert_eq!(
        checked(long).unwrap_err(),
        "Container Overrides length must be at most 8192"
    );
}

#[test]
fn tags_of_the_definition_are_propagated_if_asked_and_yield_to_the_callers() {
    let tag = |key: &str, value: &str| Tag {
        key: key.to_owned(),
        value: value.to_owned(),
    };
    let mut input = with("tags", json!([{ "key": "team", "value": "mine" }]));
    assert_eq!(
        task_tags(&input, &definition(), "c").unwrap(),
        [tag("team", "mine")]
    );
    input.propagate_tags = Some("TASK_DEFINITION".to_owned());
    input.enable_ecs_managed_tags = Some(true);
    let expected = [
        tag("team", "mine"),
        tag("stage", "test"),
        tag("aws:ecs:clusterName", "c"),
    ];
    assert_eq!(task_tags(&input, &definition(), "c").unwrap(), expected);
    input.propagate_tags = Some("SERVICE".to_owned());
    assert!(task_tags(&input, &definition(), "c").is_err());
}

#[test]
fn a_client_token_goes_with_what_was_asked_and_not_with_how() {
    let digest = |body: &str| client_token(Some("t"), body.as_bytes()).unwrap().unwrap().1;
    let same = digest(r#"{"taskDefinition":"a","count":1,"clientToken":"t"}"#);
    assert_eq!(
        digest(r#"{ "clientToken":"t", "count":1, "group":null, "taskDefinition":"a" }"#),
        same
    );
    assert_ne!(
        digest(r#"{"taskDefinition":"a","count":2,"clientToken":"t"}"#),
        same
    );
    assert_eq!(client_token(None, b"{}"), Ok(None));
}

pub(crate) fn task() -> Task {
    serde_json::from_value(json!({
        "id": "0123456789abcdef0123456789abcdef",
        "cluster": "default",
        "definition": { "family": "web", "revision": 1 },
        "cpu_units": 256, "memory_mib": 512, "ephemeral_storage_gib": 20,
        "overrides": {
            "cpu_units": null, "memory_mib": null, "ephemeral_storage_gib": null, "execution_role_arn": null,
            "task_role_arn": null,
            "containers": [{
                "name": "app", "command": ["sh"], "environment": [], "cpu": null, "memory_mib": 100,
                "memory_reservation_mib": null,
            }],
        },
        "group": "family:web", "started_by": "me", "enable_execute_command": false,
        "tags": [{ "key": "a", "value": "b" }],
        "status": "STOPPED", "desired_status": "STOPPED",
        "stop": { "code": "EssentialContainerExited", "reason": "Essential container in task exited" },
        "containers": [{
            "name": "app", "image": "busybox", "image_digest": "sha256:00", "runtime_id": "0123-1",
            "essential": true, "status": "STOPPED", "exit_code": 7, "reason": null, "cpu": 128, "memory_mib": 256,
            "memory_reservation_mib": null, "log": null,
        }],
        "eni": {
            "id": "eni-0", "attachment_id": "a-b", "subnet_id": "subnet-0", "vpc_id": "vpc-0",
            "address": "172.31.0.9", "mac": "02:00:00:00:00:01", "security_groups": ["sg-0"], "internet": true,
        },
        "version": 9, "created_at": 1000, "connectivity_at": 2000, "pull_started_at": 2500, "pull_stopped_at": 3001,
        "started_at": 4000, "stopping_at": 5000, "execution_stopped_at": 5100, "stopped_at": 6000,
    }))
    .unwrap()
}

#[test]
fn a_task_that_shares_nothing_says_so() {
    let mut task = task();
    task.isolation = berth_runtime::Isolation::Strict;
    let shown = encode::task(&owner(), &Zones::default(), &task, true);
    assert_eq!(
        shown["attributes"][1],
        json!({ "name": "berth.isolation", "value": "strict" })
    );
}

#[test]
fn a_stopped_task_has_every_member_of_a_fargate_task() {
    let zones = Zones::from([("subnet-0".to_owned(), "us-east-1a".to_owned())]);
    let shown = encode::task(&owner(), &zones, &task(), true);
    let arn = "arn:aws:ecs:us-east-1:123456789012:task/default/0123456789abcdef0123456789abcdef";
    let expected = json!({
        "taskArn": arn,
        "clusterArn": "arn:aws:ecs:us-east-1:123456789012:cluster/default",
        "taskDefinitionArn": "arn:aws:ecs:us-east-1:123456789012:task-definition/web:1",
        "attachments": [{
            "id": "a-b", "type": "ElasticNetworkInterface", "status": "DELETED",
            "details": [
                { "name": "subnetId", "value": "subnet-0" },
                { "name": "networkInterfaceId", "value": "eni-0" },
                { "name": "macAddress", "value": "02:00:00:00:00:01" },
                { "name": "privateDnsName", "value": "ip-172-31-0-9.ec2.internal" },
                { "name": "privateIPv4Address", "value": "172.31.0.9" },
            ],
        }],
        "attributes": [{ "name": "ecs.cpu-architecture", "value": "x86_64" }],
        "availabilityZone": "us-east-1a",
        "connectivity": "CONNECTED", "connectivityAt": 2.0,
        "containers": [{
            "containerArn": shown["containers"][0]["containerArn"],
            "taskArn": arn,
            "name": "app", "image": "busybox", "imageDigest": "sha256:00", "runtimeId": "0123-1",
            "lastStatus": "STOPPED", "exitCode": 7, "networkBindings": [],
            "networkInterfaces": [{ "attachmentId": "a-b", "privateIpv4Address": "172.31.0.9" }],
            "healthStatus": "UNKNOWN", "cpu": "128", "memory": "256",
        }],
        "cpu": "256", "memory": "512",
        "createdAt": 1.0, "desiredStatus": "STOPPED", "enableExecuteCommand": false, "group": "family:web",
        "healthStatus": "UNKNOWN", "lastStatus": "STOPPED", "launchType": "FARGATE",
        "platformFamily": "Linux", "platformVersion": "1.4.0",
        "overrides": {
            "containerOverrides": [{ "name": "app", "command": ["sh"], "memory": 100 }],
            "inferenceAcceleratorOverrides": [],
        },
        "pullStartedAt": 2.5, "pullStoppedAt": 3.001, "startedAt": 4.0, "startedBy": "me",
        "stoppingAt": 5.0, "executionStoppedAt": 5.1, "stoppedAt": 6.0,
        "stopCode": "EssentialContainerExited", "stoppedReason": "Essential container in task exited",
        "tags": [{ "key": "a", "value": "b" }],
        "version": 9,
        "ephemeralStorage": { "sizeInGiB": 20 }, "fargateEphemeralStorage": { "sizeInGiB": 20 },
    });
    assert_eq!(shown, expected);
}

#[test]
fn the_agent_is_shown_where_commands_can_be_run() {
    let agents = |task: &Task| {
        encode::task(&owner(), &Zones::new(), task, false)["containers"][0]["managedAgents"].clone()
    };
    let mut task = task();
    assert_eq!(agents(&task), serde_json::Value::Null);
    task.enable_execute_command = true;
    task.containers[0].status = ContainerStatus::Running;
    let running = json!([{ "name": "ExecuteCommandAgent", "lastStatus": "RUNNING", "lastStartedAt": 4.0 }]);
    assert_eq!(agents(&task), running);
    task.containers[0].status = ContainerStatus::Pending;
    assert_eq!(
        agents(&task),
        json!([{ "name": "ExecuteCommandAgent", "lastStatus": "PENDING" }])
    );
}

#[test]
fn a_task_that_has_not_begun_leaves_out_what_it_has_not() {
    let mut task = task();
    task.status = TaskStatus::Provisioning;
    task.connectivity_at = None;
    task.pull_started_at = None;
    task.stop = None;
    task.containers[0].status = ContainerStatus::Pending;
    task.containers[0].exit_code = None;
    let shown = encode::task(&owner(), &Zones::new(), &task, false);
    for member in [
        "connectivity",
        "connectivityAt",
        "pullStartedAt",
        "stopCode",
        "stoppedReason",
    ] {
        assert!(shown.get(member).is_none(), "{member} is there");
    }
    for member in ["exitCode", "runtimeId", "reason"] {
        assert!(shown["containers"][0].get(member).is_none(), "{member} is there");
    }
    assert_eq!(shown["attachments"][0]["status"], "PRECREATED");
    assert_eq!(shown["tags"], json!([]));
}

#[test]
fn tasks_are_listed_by_what_they_are_meant_to_be() {
    let input =
        |value: Value| crate::decode::shape::<shapes::ListTasks>(value.to_string().as_bytes()).unwrap();
    let (mut running, stopped) = (task(), task());
    running.desired_status = DesiredStatus::Running;
    assert!(wanted(&input(json!({})), &running) && !wanted(&input(json!({})), &stopped));
    let of_stopped = input(json!({ "desiredStatus": "STOPPED" }));
    assert!(wanted(&of_stopped, &stopped) && !wanted(&of_stopped, &running));
    assert!(!wanted(&input(json!({ "desiredStatus": "PENDING" })), &running));
    for (member, fits, other) in [
        ("family", "web", "db"),
        ("startedBy", "me", "you"),
        ("launchType", "FARGATE", "EC2"),
    ] {
        assert!(wanted(&input(json!({ member: fits })), &running), "{member}");
        assert!(!wanted(&input(json!({ member: other })), &running), "{member}");
    }
}

#[test]
fn everything_that_is_wrong_with_overrides_is_told_at_once() {
    let input = with(
        "overrides",
        json!({
            "ephemeralStorage": { "sizeInGiB": 20 },
            "taskRoleArn": "a b",
            "inferenceAcceleratorOverrides": [{ "deviceName": "x" }],
            "containerOverrides": [
                { "name": "app", "memory": 5, "environment": [{ "value": "x" }], "environmentFiles": [{ "type": "s3" }] },
                { "name": "app", "resourceRequirements": [{ "type": "GPU", "value": "1" }], "memoryReservation": -1 },
                { "name": "db" },
            ],
        }),
    );
    let error = overrides(input.overrides.as_ref(), &definition()).unwrap_err();
    assert_eq!(error.code(), "InvalidParameterException");
    let message = error.to_string();
    let lines: Vec<&str> = message.lines().collect();
    let expected = [
        "Berth does not support 'inferenceAcceleratorOverrides' yet.",
        "Also: EphemeralStorage size should be at least 21",
        "Also: Invalid 'taskRoleArn' setting: ",
        "Also, the override of container 'app': EnvironmentFile.value should not be null or empty.",
        "Also, the override of container 'app': Environment variable name should not be null or empty.",
        "Also, the override of container 'app': Invalid 'memory' setting 5: must be at least 6.",
        "Also, the override of container 'app': Berth does not support 'resourceRequirements' yet.",
        "Also, the override of container 'app': Invalid 'memoryReservation' setting -1: must be at least 6.",
        "Also, the override of container 'app': containerOverrides has container 'app' twice.",
        "Also: Override for container named db is not a container in the TaskDefinition.",
        "Also: When you are specifying container environment files, you must also specify a value for 'executionRoleArn'",
    ];
    assert_eq!(lines.len(), expected.len(), "{message}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}: {expected}");
    }
}

#[test]
fn overrides_and_definition_together_must_fit_the_task() {
    let refused = |container: Value, task: Value| {
        let mut input = json!({ "containerOverrides": [container] });
        for (member, value) in task.as_object().unwrap() {
            input[member] = value.clone();
        }
        let mut definition = definition();
        definition.spec.containers[0].memory_mib = Some(400);
        definition.spec.containers[0].memory_reservation_mib = Some(300);
        let input = with("overrides", input);
        let taken = overrides(input.overrides.as_ref(), &definition);
        taken.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let none = json!({});
    assert_eq!(
        refused(json!({ "name": "app", "memory": 512, "cpu": 256 }), none.clone()),
        ""
    );
    assert_eq!(
        refused(json!({ "name": "app", "cpu": 257 }), none.clone()),
        "The sum of all container 'cpu' values cannot be greater than the value of the task 'cpu'."
    );
    assert_eq!(
        refused(
            json!({ "name": "app", "cpu": 257 }),
            json!({ "cpu": "512", "memory": "1024" })
        ),
        ""
    );
    assert_eq!(
        refused(json!({ "name": "app", "memory": 299 }), none.clone()),
        "Invalid setting for container 'app'. 'memory' must not be less than 'memoryReservation'."
    );
    assert_eq!(
        refused(json!({ "name": "app", "memoryReservation": 401 }), none),
        "Invalid setting for container 'app'. 'memory' must not be less than 'memoryReservation'."
    );
}

/// Everything that RunTask says before anything is looked up.
fn refused(input: &Value) -> Option<String> {
    let checked = || {
        let input: RunTaskShape = crate::decode::shape(input.to_string().as_bytes())?;
        precheck(&input, &owner())?;
        network(&input, &definition())?;
        overrides(input.overrides.as_ref(), &definition())?;
        if input.volume_configurations.is_some() {
            launch_volume(&input, &with_launch_volume())?;
        }
        task_tags(&input, &definition(), "default")
    };
    checked().err().map(|error| error.to_string())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_refusal_of_a_task_names_the_member_that_is_wrong(
        (member, value) in select(members(include_str!("members.txt")))
            .prop_flat_map(|member| (Just(member.clone()), member.any_value())),
    ) {
        let mut input = minimal();
        input["overrides"] = json!({ "containerOverrides": [{ "name": "app", "command": ["true"] }] });
        set(&mut input, member.path, value.clone());
        if let Some(message) = refused(&input) {
            let first = message.lines().next().unwrap_or_default();
            prop_assert!(names(first, &member, &members(include_str!("members.txt"))), "{} with {value}: {message}", member.path);
        }
    }

    #[test]
    fn any_request_for_a_task_is_taken_or_refused_with_words(
        changes in proptest::collection::vec(
            select(members(include_str!("members.txt")))
                .prop_flat_map(|member| (Just(member.clone()), member.any_value())),
            1..8,
        ),
    ) {
        let mut input = minimal();
        for (member, value) in changes {
            set(&mut input, member.path, value);
        }
        prop_assert_ne!(refused(&input), Some(String::new()));
    }
}
