//! Task definitions: what is refused, with which words, and that what is taken is shown again as it was.

use berth_runtime::model::Timestamp;
use berth_runtime::model::definition::{DefinitionId, DefinitionStatus, TaskDefinition};
use berth_runtime::model::secret::SecretSource;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::validate::errors;
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
        with("/volumes", json!([{ "name": "v" }])),
        with("/pidMode", json!("task")),
        with("/proxyConfiguration", json!({ "containerName": "x" })),
        with("/runtimePlatform", json!({ "cpuArchitecture": "ARM64" })),
        with(
            "/runtimePlatform",
            json!({ "operatingSystemFamily": "WINDOWS_SERVER_2022_CORE" }),
        ),
        with(
            "/containerDefinitions",
            json!([{ "name": "a", "image": "busybox" }, { "name": "b", "image": "busybox" }]),
        ),
        in_container("healthCheck", json!({ "command": ["CMD", "true"] })),
        in_container("environmentFiles", json!([{ "type": "s3", "value": "x" }])),
        in_container("repositoryCredentials", json!({ "credentialsParameter": "x" })),
        in_container("restartPolicy", json!({ "enabled": true })),
        in_container(
            "systemControls",
            json!([{ "namespace": "net.core.somaxconn", "value": "1" }]),
        ),
        in_container("firelensConfiguration", json!({ "type": "fluentbit" })),
        in_container(
            "linuxParameters",
            json!({ "tmpfs": [{ "containerPath": "/x", "size": 1 }] }),
        ),
        in_container(
            "ulimits",
            json!([{ "name": "nproc", "softLimit": 1, "hardLimit": 1 }]),
        ),
        in_container("logConfiguration", json!({ "logDriver": "splunk" })),
        in_container("pseudoTerminal", json!(true)),
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

fn with_secrets(secrets: Value) -> Value {
    let mut input = in_container("secrets", secrets);
    input["executionRoleArn"] = json!("arn:aws:iam::123456789012:role/execution");
    input
}

fn source_of(value_from: &str) -> SecretSource {
    let input = with_secrets(json!([{ "name": "A", "valueFrom": value_from }]));
    let spec = decode::spec(&parse(&input), REGION).unwrap();
    spec.containers[0].secrets[0].source.clone()
}

#[test]
fn a_secret_is_named_by_parameter_or_arn() {
    let parameter = |names: &[&str], version| SecretSource::Parameter {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        version,
    };
    let ssm = "arn:aws:ssm:us-east-1:123456789012:parameter";
    assert_eq!(source_of("/a/b"), parameter(&["/a/b"], None));
    assert_eq!(source_of("a:7"), parameter(&["a"], Some(7)));
    assert_eq!(source_of(&format!("{ssm}/a/b:3")), parameter(&["/a/b"], Some(3)));
    assert_eq!(source_of(&format!("{ssm}/a")), parameter(&["a", "/a"], None));
    let secret = |json_key: &str, stage: &str, id: &str| {
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        SecretSource::Secret {
            resource: "web/db-AbCdEf".to_owned(),
            json_key: given(json_key),
            version_stage: given(stage),
            version_id: given(id),
        }
    };
    let arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:web/db-AbCdEf";
    assert_eq!(source_of(arn), secret("", "", ""));
    assert_eq!(source_of(&format!("{arn}:user::")), secret("user", "", ""));
    assert_eq!(
        source_of(&format!("{arn}::AWSPREVIOUS:")),
        secret("", "AWSPREVIOUS", "")
    );
    assert_eq!(source_of(&format!("{arn}:user::id")), secret("user", "", "id"));
}

#[test]
fn secrets_that_cannot_be_looked_up_are_refused() {
    let named = |name: &str, value_from: &str| json!([{ "name": name, "valueFrom": value_from }]);
    let arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:s-AbCdEf";
    for (secrets, part) in [
        (named("", "a"), "secrets.name should not be null"),
        (named("A=B", "a"), "invalid characters"),
        (named("A", ""), "valueFrom should not be null"),
        (named("A", "a b"), "Invalid 'valueFrom' 'a b'"),
        (named("A", "a:label"), "Invalid 'valueFrom' 'a:label'"),
        (named("A", &format!("{arn}:a:b:c:d")), "Invalid 'valueFrom'"),
        (named("A", "arn:aws:s3:::bucket/x"), "Berth has the region"),
        (
            named("A", "arn:aws:kms:us-east-1:123456789012:key/a"),
            "Invalid 'valueFrom'",
        ),
        (
            named("A", "arn:aws:ssm:eu-west-1:123456789012:parameter/a"),
            "Berth has the region 'us-east-1' alone",
        ),
        (
            json!([{ "name": "A", "valueFrom": "a" }, { "name": "A", "valueFrom": "b" }]),
            "such as 'A'",
        ),
    ] {
        let refused = refusal(&with_secrets(secrets.clone()));
        assert!(refused.contains(part), "{secrets}: {refused}");
    }
    let mut input = with_secrets(named("A", "a"));
    input["containerDefinitions"][0]["environment"] = json!([{ "name": "A", "value": "1" }]);
    assert_eq!(
        refusal(&input),
        "The secret name must be unique and not shared with any new or existing environment variables set on the \
         container, such as 'A'."
    );
    let owner = Owner {
        region: REGION.to_owned(),
        account_id: "999999999999".to_owned(),
    };
    let spec = decode::spec(&parse(&with_secrets(named("A", arn))), REGION).unwrap();
    let refused = secrets::check_account(&spec, &owner).unwrap_err().to_string();
    assert!(refused.contains("'999999999999' alone"), "{refused}");
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

fn full() -> Value {
    json!({
        "family": "web",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "1024",
        "memory": "2048",
        "taskRoleArn": "arn:aws:iam::123456789012:role/task",
        "executionRoleArn": "arn:aws:iam::123456789012:role/execution",
        "ephemeralStorage": { "sizeInGiB": 30 },
        "runtimePlatform": { "cpuArchitecture": "X86_64", "operatingSystemFamily": "LINUX" },
        "containerDefinitions": [{
            "name": "app",
            "image": "registry.example:5000/a/b@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "cpu": 512,
            "memory": 1024,
            "memoryReservation": 512,
            "essential": true,
            "entryPoint": ["/bin/sh", "-c"],
            "command": ["exit 7"],
            "environment": [{ "name": "B", "value": "2" }, { "name": "A", "value": "" }],
            "workingDirectory": "/srv",
            "user": "1000:1000",
            "readonlyRootFilesystem": true,
            "portMappings": [{ "containerPort": 80, "hostPort": 80, "protocol": "tcp", "name": "http", "appProtocol": "http" }],
            "startTimeout": 30,
            "stopTimeout": 5,
            "ulimits": [{ "name": "nofile", "softLimit": 1024, "hardLimit": 2048 }],
            "linuxParameters": { "initProcessEnabled": true, "capabilities": { "add": ["SYS_PTRACE"], "drop": ["ALL"] } },
            "dockerLabels": { "a": "b" },
            "secrets": [
                { "name": "C", "valueFrom": "/a/b:3" },
                { "name": "D", "valueFrom": "arn:aws:secretsmanager:us-east-1:123456789012:secret:s-AbCdEf:key::" },
            ],
            "logConfiguration": {
                "logDriver": "awslogs",
                "options": { "awslogs-group": "/ecs/web", "awslogs-region": "us-east-1", "awslogs-stream-prefix": "p" },
                "secretOptions": [],
            },
        }],
    })
}

#[test]
fn a_definition_is_shown_as_it_was_registered() {
    let owner = Owner {
        region: REGION.to_owned(),
        account_id: "123456789012".to_owned(),
    };
    let shown = encode::definition(&owner, &registered(&full()));
    let shown_container = &shown["containerDefinitions"][0];
    for (member, value) in full().as_object().unwrap() {
        if member != "containerDefinitions" {
            assert_eq!(&shown[member], value, "{member}");
        }
    }
    for (member, value) in full()["containerDefinitions"][0].as_object().unwrap() {
        assert_eq!(&shown_container[member], value, "{member}");
    }
    assert_eq!(
        shown["taskDefinitionArn"],
        "arn:aws:ecs:us-east-1:123456789012:task-definition/web:3"
    );
    assert_eq!(shown["revision"], 3);
    assert_eq!(shown["status"], "ACTIVE");
    assert_eq!(shown["registeredAt"], 1_793_534_400.5);
    assert_eq!(shown["compatibilities"], json!(["EC2", "FARGATE"]));
}

#[test]
fn what_is_shown_can_be_registered_again() {
    let owner = Owner {
        region: REGION.to_owned(),
        account_id: "123456789012".to_owned(),
    };
    for input in [minimal(), full()] {
        let first = registered(&input);
        let shown = encode::definition(&owner, &first);
        assert_eq!(registered(&shown).spec, first.spec);
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
