//! What is taken is shown again as it was.

use super::*;

/// A definition that says nearly all there is to say.
pub(super) fn full() -> Value {
    json!({
        "family": "web",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "1024",
        "memory": "2048",
        "pidMode": "task",
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
            "portMappings": [
                { "containerPort": 80, "hostPort": 80, "protocol": "tcp", "name": "http", "appProtocol": "http" },
                { "containerPortRange": "8000-8010", "protocol": "udp" },
            ],
            "startTimeout": 30,
            "stopTimeout": 5,
            "ulimits": [
                { "name": "nofile", "softLimit": 1024, "hardLimit": 2048 },
                { "name": "memlock", "softLimit": 65536, "hardLimit": -1 },
            ],
            "systemControls": [{ "namespace": "net.core.somaxconn", "value": "1024" }],
            "interactive": true,
            "pseudoTerminal": true,
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
    let shown = encode::definition(&owner(), &registered(&full()));
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
    for input in [minimal(), full(), related()] {
        let first = registered(&input);
        let shown = encode::definition(&owner(), &first);
        assert_eq!(registered(&shown).spec, first.spec);
    }
}
