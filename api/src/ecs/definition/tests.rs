//! Task definitions: what is refused, with which words, and that what is taken is shown again as it was.

mod files;
mod members;
mod relations;
mod repository;
mod secrets;
mod shown;
mod volumes;

use berth_runtime::model::Timestamp;
use berth_runtime::model::definition::{DefinitionId, DefinitionStatus, TaskDefinition};
use proptest::prelude::*;
use serde_json::{Value, json};

use self::relations::related;
use self::shown::full;
use super::validate::flaws;
use super::*;
use crate::arn::Owner;
use crate::ecs::shapes::RegisterTaskDefinition;

const REGION: &str = "us-east-1";

fn minimal() -> Value {
    json!({
        "family": "web",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "256",
        "memory": "512",
        "containerDefinitions": [{ "name": "app", "image": "busybox" }],
    })
}

/// The minimal definition with one thing changed.
fn with(pointer: &str, value: Value) -> Value {
    let mut input = minimal();
    let (parent, member) = pointer.rsplit_once('/').unwrap();
    input.pointer_mut(parent).unwrap()[member] = value;
    input
}

fn in_container(member: &str, value: Value) -> Value {
    with(&format!("/containerDefinitions/0/{member}"), value)
}

fn parse(input: &Value) -> RegisterTaskDefinition {
    crate::decode::shape(input.to_string().as_bytes()).unwrap()
}

fn errors(input: &RegisterTaskDefinition, region: &str) -> Vec<String> {
    flaws(input, region).into_iter().map(|flaw| flaw.text).collect()
}

/// What the caller is told first.
fn refusal(input: &Value) -> String {
    errors(&parse(input), REGION)
        .into_iter()
        .next()
        .unwrap_or_else(|| "it was taken".to_owned())
}

#[test]
fn a_minimal_definition_is_taken() {
    assert_eq!(errors(&parse(&minimal()), REGION), Vec::<String>::new());
}

#[test]
fn the_options_of_a_log_driver_are_checked() {
    let options = json!({ "mode": "drop", "max-buffer-size": "1.5m", "awslogs-create-group": "yes" });
    let log = json!({ "logDriver": "awslogs", "options": options });
    let found = errors(&parse(&in_container("logConfiguration", log)), REGION);
    for expected in [
        "Invalid 'mode' of the log driver: 'drop' is neither blocking nor non-blocking.",
        "Invalid 'max-buffer-size': '1.5m' is not a size such as 512k, 10m or 1g.",
        "Invalid 'awslogs-create-group': it must be true or false.",
    ] {
        assert!(
            found.iter().any(|error| error == expected),
            "{expected}: {found:?}"
        );
    }
}

#[test]
fn the_texts_that_tools_match_on_are_exact() {
    let awslogs = |options: Value| json!({ "logDriver": "awslogs", "options": options });
    let grouped = json!({ "awslogs-group": "g", "awslogs-region": REGION });
    let cases = [
        (
            with("/networkMode", json!("bridge")),
            "Fargate only supports network mode ‘awsvpc’.",
        ),
        (
            with("/networkMode", Value::Null),
            "Fargate only supports network mode ‘awsvpc’.",
        ),
        (
            with("/cpu", Value::Null),
            "Fargate requires that 'cpu' be defined at the task level.",
        ),
        (
            with("/memory", Value::Null),
            "Fargate requires that 'memory' be defined at the task level.",
        ),
        (
            with("/memory", json!("3 GB")),
            "No Fargate configuration exists for given values: 256 CPU, 3072 memory. See the Amazon ECS documentation \
             for the valid values.",
        ),
        (
            with("/ephemeralStorage", json!({ "sizeInGiB": 20 })),
            "EphemeralStorage size should be at least 21",
        ),
        (
            with("/ephemeralStorage", json!({ "sizeInGiB": 201 })),
            "EphemeralStorage size should be at most 200",
        ),
        (
            in_container("privileged", json!(true)),
            "Fargate requires that the ‘privileged’ setting be ‘false’ at the container level.",
        ),
        (
            in_container("linuxParameters", json!({ "sharedMemorySize": 64 })),
            "Fargate compatible task definitions do not support sharedMemorySize",
        ),
        (
            in_container(
                "linuxParameters",
                json!({ "devices": [{ "hostPath": "/dev/null" }] }),
            ),
            "Fargate compatible task definitions do not support devices",
        ),
        (
            in_container("linuxParameters", json!({ "maxSwap": 0 })),
            "Fargate compatible task definitions do not support maxSwap",
        ),
        (
            in_container("dockerSecurityOptions", json!(["no-new-privileges"])),
            "Fargate compatible task definitions do not support dockerSecurityOptions",
        ),
        (
            with("/ipcMode", json!("host")),
            "Fargate compatible task definitions do not support ipcMode",
        ),
        (
            with(
                "/volumes",
                json!([{ "name": "v", "host": { "sourcePath": "/" } }]),
            ),
            "Fargate compatible task definitions do not support sourcePath",
        ),
        (
            with(
                "/volumes",
                json!([{ "name": "v", "dockerVolumeConfiguration": { "scope": "task" } }]),
            ),
            "Fargate compatible task definitions do not support dockerVolumeConfiguration",
        ),
        (
            with("/pidMode", json!("host")),
            "Tasks using the Fargate launch type do not support pidMode 'host'. The supported value for pidMode is \
             'task'.",
        ),
        (
            in_container("resourceRequirements", json!([{ "type": "GPU", "value": "1" }])),
            "Tasks using the Fargate launch type do not support GPU resource requirements",
        ),
        (
            in_container(
                "linuxParameters",
                json!({ "capabilities": { "add": ["SYS_PTRACE", "NET_ADMIN"] } }),
            ),
            "NET_ADMIN is not allowed on Fargate.",
        ),
        (
            in_container("logConfiguration", json!({ "logDriver": "json-file" })),
            "json-file is not a valid log driver. Must be one of [awslogs,splunk,awsfirelens]",
        ),
        (
            in_container("logConfiguration", awslogs(json!({ "awslogs-region": REGION }))),
            "Log driver awslogs requires options: awslogs-group",
        ),
        (
            in_container("logConfiguration", awslogs(grouped)),
            "Fargate requires log configuration options to include awslogs-stream-prefix to support log driver awslogs.",
        ),
        (
            in_container(
                "logConfiguration",
                awslogs(
                    json!({ "awslogs-group": "g", "awslogs-region": REGION, "awslogs-stream-prefix": "p" }),
                ),
            ),
            "Fargate requires task definition to have execution role ARN to support log driver awslogs.",
        ),
        (
            in_container("secrets", json!([{ "name": "a", "valueFrom": "b" }])),
            "When you are specifying container secrets, you must also specify a value for 'executionRoleArn'",
        ),
        (
            in_container("portMappings", json!([{ "containerPort": 80, "hostPort": 8080 }])),
            "When networkMode=awsvpc, the host ports and container ports in port mappings must match.",
        ),
        (
            in_container("stopTimeout", json!(121)),
            "Tasks using the Fargate launch type must have a container stop timeout of less than 120 seconds.",
        ),
        (
            in_container("cpu", json!(257)),
            "The sum of all container 'cpu' values cannot be greater than the value of the task 'cpu'.",
        ),
        (
            in_container("memory", json!(513)),
            "The 'memory' setting for container 'app' is greater than for the task",
        ),
        (
            in_container("essential", json!(false)),
            "Task definition doesn't have any essential container",
        ),
        (
            in_container("mountPoints", json!([{ "sourceVolume": "v" }])),
            "Unknown volume 'v'",
        ),
        (
            in_container(
                "dependsOn",
                json!([{ "containerName": "db", "condition": "START" }]),
            ),
            "Cannot depend on container + 'db' because it does not exist",
        ),
        (
            in_container("name", Value::Null),
            "Container.name should not be null or empty.",
        ),
        (
            in_container("image", json!("")),
            "Container.image should not be null or empty.",
        ),
    ];
    for (input, expected) in cases {
        assert_eq!(refusal(&input), expected, "{input}");
    }
}

#[test]
fn everything_that_is_wrong_is_told_at_once_and_awss_first_error_leads() {
    let mut input = minimal();
    input["cpu"] = json!("300");
    input["containerDefinitions"] = json!([
        { "name": "app", "image": "busybox", "stopTimeout": 1, "ulimits": [{ "name": "as", "softLimit": 1, "hardLimit": 1 }] },
        { "name": "no name", "image": "busybox", "environmentFiles": [{ "type": "s3", "value": "arn:aws:s3:::b/f" }] },
        { "name": "db", "image": "busybox", "dependsOn": [{ "containerName": "nobody", "condition": "START" }] },
    ]);
    let message = decode::spec(&parse(&input), REGION).unwrap_err().to_string();
    let lines: Vec<&str> = message.lines().collect();
    let expected = [
        "Container.name contains invalid characters.",
        "Also: No Fargate configuration exists for given values: 300 CPU, 512 memory.",
        "Also, container 'app': Container.stopTimeout must be at least 2 seconds.",
        "Also, container 'app': Invalid 'ulimits' name 'as': must be one of core, cpu, ",
        "Also, container number 2: When you are specifying container environment files, you must also specify a value for ",
        "Also, container number 2: Invalid environmentFiles value 'arn:aws:s3:::b/f': it must be the ARN of an object",
        "Also, container 'db': Cannot depend on container + 'nobody' because it does not exist",
    ];
    assert_eq!(lines.len(), expected.len(), "{message}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}: {expected}");
    }
}

#[test]
fn limits_and_kernel_parameters_that_make_no_sense_are_refused_by_name() {
    let ulimit = |name: &str, soft: i32, hard: i32| {
        in_container(
            "ulimits",
            json!([{ "name": name, "softLimit": soft, "hardLimit": hard }]),
        )
    };
    let control = |namespace: &str, value: &str| {
        in_container(
            "systemControls",
            json!([{ "namespace": namespace, "value": value }]),
        )
    };
    let cases = [
        (
            ulimit("nofile", 1, -1),
            "Invalid ulimit 'nofile': hardLimit must be 0 to 1048576.",
        ),
        (
            ulimit("core", -1, 5),
            "Invalid ulimit 'core': softLimit must be 0 to hardLimit",
        ),
        (ulimit("as", 1, 1), "Invalid 'ulimits' name 'as'"),
        (
            in_container("ulimits", json!([{ "name": "cpu" }])),
            "Invalid ulimit 'cpu': softLimit and hardLimit should not be null.",
        ),
        (
            in_container("portMappings", json!([{ "containerPortRange": "90-80" }])),
            "Invalid 'containerPortRange' setting '90-80'",
        ),
        (
            in_container("portMappings", json!([{ "containerPortRange": "0-80" }])),
            "Invalid 'containerPortRange' setting '0-80'",
        ),
        (
            in_container(
                "portMappings",
                json!([{ "containerPortRange": "80-90", "containerPort": 80 }]),
            ),
            "A port mapping with a 'containerPortRange' must have neither",
        ),
        (
            control("kernel.panic", "1"),
            "Invalid 'namespace' setting 'kernel.panic' in 'systemControls'",
        ),
        (
            control("net.ipv4.ip_forward", "1\n2"),
            "Invalid 'value' setting of 'net.ipv4.ip_forward' in 'systemControls'",
        ),
        (
            with("/proxyConfiguration", json!({ "containerName": "envoy" })),
            "Berth does not support 'proxyConfiguration'",
        ),
    ];
    for (input, expected) in cases {
        assert!(
            refusal(&input).starts_with(expected),
            "{input}: {}",
            refusal(&input)
        );
    }
    assert_eq!(
        errors(&parse(&ulimit("memlock", -1, -1)), REGION),
        Vec::<String>::new()
    );
}

#[test]
fn names_and_images_are_checked_before_sizes() {
    let mut input = in_container("image", Value::Null);
    input["cpu"] = json!("1");
    input["networkMode"] = json!("host");
    assert_eq!(refusal(&input), "Container.image should not be null or empty.");
}

#[test]
fn two_containers_of_one_name_are_told_so() {
    let container = json!({ "name": "app", "image": "busybox" });
    let input = with("/containerDefinitions", json!([container, container]));
    assert_eq!(
        refusal(&input),
        "Container names must be unique within a task definition"
    );
}

#[test]
fn containers_need_memory_when_neither_the_task_nor_fargate_gives_it() {
    let mut input = with("/memory", Value::Null);
    input["requiresCompatibilities"] = json!(["EC2"]);
    assert_eq!(
        refusal(&input),
        "Invalid setting for container 'app'. At least one of 'memory' or 'memoryReservation' must be specified."
    );
}

#[test]
fn what_is_not_there_yet_is_refused_by_name() {
    let cases = [
        with(
            "/volumes",
            json!([{ "name": "v", "efsVolumeConfiguration": { "fileSystemId": "fs-1" } }]),
        ),
        with("/proxyConfiguration", json!({ "containerName": "x" })),
        with("/runtimePlatform", json!({ "cpuArchitecture": "ARM64" })),
        with(
            "/runtimePlatform",
            json!({ "operatingSystemFamily": "WINDOWS_SERVER_2022_CORE" }),
        ),
        in_container("firelensConfiguration", json!({ "type": "fluentbit" })),
        in_container(
            "linuxParameters",
            json!({ "tmpfs": [{ "containerPath": "/x", "size": 1, "mountOptions": ["dev"] }] }),
        ),
        in_container("logConfiguration", json!({ "logDriver": "splunk" })),
        in_container("hostname", json!("x")),
    ];
    for input in cases {
        let refusal = refusal(&input);
        assert!(
            refusal.starts_with("Berth does not support "),
            "{input}: {refusal}"
        );
    }
}

#[test]
fn members_that_say_nothing_are_taken() {
    let mut input = minimal();
    for member in ["volumes", "placementConstraints", "inferenceAccelerators", "tags"] {
        input[member] = json!([]);
    }
    for member in [
        "mountPoints",
        "volumesFrom",
        "links",
        "secrets",
        "dependsOn",
        "systemControls",
        "environment",
    ] {
        input["containerDefinitions"][0][member] = json!([]);
    }
    input["containerDefinitions"][0]["privileged"] = json!(false);
    input["containerDefinitions"][0]["restartPolicy"] = json!({ "enabled": false });
    input["containerDefinitions"][0]["stopTimeout"] = json!(120);
    assert_eq!(errors(&parse(&input), REGION), Vec::<String>::new());
}

fn owner() -> Owner {
    Owner {
        region: REGION.to_owned(),
        account_id: "123456789012".to_owned(),
    }
}

fn registered(input: &Value) -> TaskDefinition {
    TaskDefinition {
        id: DefinitionId {
            family: "web".to_owned(),
            revision: 3,
        },
        status: DefinitionStatus::Active,
        spec: decode::spec(&parse(input), REGION).unwrap(),
        tags: Vec::new(),
        registered_at: Timestamp(1_793_534_400_500),
        registered_by: "arn:aws:iam::123456789012:root".to_owned(),
        deregistered_at: None,
    }
}

#[test]
fn a_definition_for_ec2_does_not_run_on_fargate() {
    assert!(encode::runs_on_fargate(&registered(&minimal())));
    assert!(encode::runs_on_fargate(&registered(&with(
        "/requiresCompatibilities",
        json!([])
    ))));
    assert!(!encode::runs_on_fargate(&registered(&with(
        "/requiresCompatibilities",
        json!(["EC2"])
    ))));
}

proptest! {
    #[test]
    fn exactly_the_sizes_of_the_table_are_taken(cpu in 0u32..20_000, memory in 0u32..130_000, snap: bool) {
        let (cpu, memory) = if snap { (256 << (cpu % 8), (memory / 512) * 512) } else { (cpu, memory) };
        let mut input = with("/cpu", json!(cpu.to_string()));
        input["memory"] = json!(memory.to_string());
        prop_assert_eq!(errors(&parse(&input), REGION).is_empty(), size::exists(cpu, memory));
    }

    #[test]
    fn a_definition_that_is_taken_becomes_a_spec(
        cpu: i32, memory: i32, stop: i32, port: i32, soft: i32, hard: i32, storage: i32, name: String, image: String,
    ) {
        let small = |value: i32, bound: i32| if value % 3 == 0 { value } else { value.rem_euclid(bound) };
        let mut input = minimal();
        let container = &mut input["containerDefinitions"][0];
        container["cpu"] = json!(small(cpu, 300));
        container["memory"] = json!(small(memory, 600));
        container["stopTimeout"] = json!(small(stop, 130));
        container["portMappings"] = json!([{ "containerPort": small(port, 70_000) }]);
        container["ulimits"] = json!([{ "name": "nofile", "softLimit": small(soft, 10), "hardLimit": small(hard, 2000) }]);
        if !name.is_empty() { container["name"] = json!(name); }
        if !image.is_empty() { container["image"] = json!(image); }
        input["ephemeralStorage"] = json!({ "sizeInGiB": small(storage, 220) });
        let input = parse(&input);
        prop_assert_eq!(decode::spec(&input, REGION).is_ok(), errors(&input, REGION).is_empty());
    }
}
