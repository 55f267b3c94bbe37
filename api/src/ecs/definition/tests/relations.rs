//! What containers say of each other: dependencies, health, restarts, mounts.

use super::*;

/// Four containers, one of everything that they can say of each other.
pub(super) fn related() -> Value {
    let mut input = minimal();
    input["volumes"] =
        json!([{ "name": "shared", "host": {} }, { "name": "lasting", "configuredAtLaunch": true }]);
    input["containerDefinitions"] = json!([
        { "name": "migrate", "image": "busybox", "essential": false,
          "mountPoints": [{ "sourceVolume": "shared", "containerPath": "/data/", "readOnly": false }] },
        { "name": "db", "image": "busybox", "startTimeout": 30,
          "healthCheck": { "command": ["CMD-SHELL", "true"], "interval": 5, "timeout": 2, "retries": 2, "startPeriod": 10 } },
        { "name": "app", "image": "busybox",
          "dependsOn": [
            { "containerName": "migrate", "condition": "SUCCESS" },
            { "containerName": "db", "condition": "HEALTHY" }],
          "restartPolicy": { "enabled": true, "ignoredExitCodes": [0, 3], "restartAttemptPeriod": 60 },
          "linuxParameters": { "tmpfs": [{ "containerPath": "/tmp", "size": 64, "mountOptions": ["noexec", "mode=1777"] }] } },
        { "name": "shipper", "image": "busybox", "essential": false,
          "dependsOn": [{ "containerName": "app", "condition": "START" }],
          "volumesFrom": [{ "sourceContainer": "migrate", "readOnly": true }] },
    ]);
    input
}

#[test]
fn what_containers_say_of_each_other_is_taken_and_described_as_given() {
    let input = related();
    assert_eq!(errors(&parse(&input), REGION), Vec::<String>::new());
    let described = encode::definition(&owner(), &registered(&input));
    assert_eq!(described["volumes"], input["volumes"]);
    let (given, described) = (&input["containerDefinitions"], &described["containerDefinitions"]);
    for (container, member) in [
        (1, "healthCheck"),
        (2, "dependsOn"),
        (2, "restartPolicy"),
        (2, "linuxParameters"),
        (3, "dependsOn"),
        (3, "volumesFrom"),
    ] {
        assert_eq!(described[container][member], given[container][member], "{member}");
    }
    assert_eq!(described[0]["mountPoints"][0]["containerPath"], "/data");
}

#[test]
fn a_health_check_has_defaults() {
    let mut input = related();
    input["containerDefinitions"][1]["healthCheck"] = json!({ "command": ["true"] });
    let described = encode::definition(&owner(), &registered(&input));
    assert_eq!(
        described["containerDefinitions"][1]["healthCheck"],
        json!({ "command": ["true"], "interval": 30, "timeout": 5, "retries": 3 })
    );
}

#[test]
fn what_containers_cannot_say_of_each_other_is_refused() {
    let cases = [
        (
            "/2/dependsOn/0/containerName",
            json!("nobody"),
            "Cannot depend on container + 'nobody' because it does not exist",
        ),
        (
            "/2/dependsOn/0/containerName",
            json!("db"),
            "A dependency container with SUCCESS or COMPLETE condition cannot be an essential container",
        ),
        (
            "/2/dependsOn/1/containerName",
            json!("migrate"),
            "Container 'migrate' is depended on with the HEALTHY condition and has no 'healthCheck'.",
        ),
        (
            "/2/dependsOn/0/condition",
            json!("READY"),
            "Invalid 'condition' setting 'READY': must be START, COMPLETE, SUCCESS or HEALTHY.",
        ),
        (
            "/3/dependsOn/0/containerName",
            json!("shipper"),
            "Container dependencies must not form a circle.",
        ),
        (
            "/0/mountPoints/0/sourceVolume",
            json!("other"),
            "Unknown volume 'other'",
        ),
        (
            "/0/mountPoints/0/containerPath",
            json!("/a/../b"),
            "Invalid 'containerPath' setting '/a/../b' in 'mountPoints'",
        ),
        (
            "/0/mountPoints/0/containerPath",
            json!("/proc/x"),
            "Invalid 'containerPath' setting '/proc/x' in 'mountPoints'",
        ),
        (
            "/3/volumesFrom/0/sourceContainer",
            json!("shipper"),
            "Container 'shipper' in 'volumesFrom' is no other container of the task.",
        ),
        (
            "/1/healthCheck/command",
            json!(["CMD"]),
            "Container.healthCheck.command should not be null or empty.",
        ),
        (
            "/1/healthCheck/interval",
            json!(4),
            "Container.healthCheck.interval must be between 5 and 300.",
        ),
        (
            "/1/healthCheck/retries",
            json!(11),
            "Container.healthCheck.retries must be between 1 and 10.",
        ),
        (
            "/2/restartPolicy/restartAttemptPeriod",
            json!(59),
            "Container.restartPolicy.restartAttemptPeriod must be between 60 and 1800.",
        ),
        (
            "/2/linuxParameters/tmpfs/0/size",
            json!(0),
            "Container.linuxParameters.tmpfs.size must be at least 1 MiB.",
        ),
    ];
    for (member, value, expected) in cases {
        let mut input = related();
        *input["containerDefinitions"].pointer_mut(member).unwrap() = value;
        let refusal = refusal(&input);
        assert!(refusal.starts_with(expected), "{member}: {refusal}");
    }
}
