//! Questions and their paths, and the statistics that are told.

use berth_runtime::Measurement;
use berth_runtime::model::Timestamp;
use berth_runtime::protocol::message::{ContainerUsage, NetworkUsage, TaskUsage};
use proptest::prelude::*;

use super::*;
use crate::ecs::task::tests::{definition, owner, task as example};

#[test]
fn a_path_asks_for_one_thing() {
    assert_eq!(
        Question::of("/v2/credentials/a"),
        Some(Question::Credentials { id: "a" })
    );
    assert_eq!(Question::of("/v4/c"), Some(Question::Container { id: "c" }));
    assert_eq!(Question::of("/v4/c/"), Some(Question::Container { id: "c" }));
    let task = |tags| Some(Question::Task { id: "c", tags });
    assert_eq!(Question::of("/v4/c/task"), task(false));
    assert_eq!(Question::of("/v4/c/taskWithTags"), task(true));
    assert_eq!(Question::of("/v4/c/stats"), Some(Question::Stats { id: "c" }));
    assert_eq!(
        Question::of("/v4/c/task/stats"),
        Some(Question::TaskStats { id: "c" })
    );
    let path = "/api/c/task-protection/v1/state";
    assert_eq!(Question::of(path), Some(Question::Protection { id: "c" }));
    for nothing in [
        "",
        "/",
        "/v2/credentials",
        "/v3/c",
        "/v4/c/task/stats/more",
        "v4/c",
        "//v4/c",
    ] {
        assert_eq!(Question::of(nothing), None, "{nothing:?}");
    }
}

proptest! {
    #[test]
    fn no_path_is_too_strange(path in "(/|v4|v2|credentials|task|[a-z.%é]){0,12}") {
        let _ = Question::of(&path);
    }
}

fn measured(name: &str, at: u64, count: u64) -> Measurement {
    Measurement {
        at: Timestamp(at),
        usage: TaskUsage {
            system_cpu_us: count,
            network: NetworkUsage {
                rx_bytes: count,
                ..NetworkUsage::default()
            },
            containers: vec![ContainerUsage {
                name: name.to_owned(),
                cpu_us: count,
                ..ContainerUsage::default()
            }],
            ..TaskUsage::default()
        },
    }
}

#[test]
fn statistics_have_the_measurement_before_beside_them() {
    let task = example();
    let container = &task.containers[0];
    let usage = [
        measured(&container.name, 0, 9),
        measured(&container.name, 1000, 10),
        measured(&container.name, 3000, 2010),
    ];
    let told = stats::container(&task, container, &usage);
    assert_eq!(told["cpu_stats"]["cpu_usage"]["total_usage"], 2_010_000);
    assert_eq!(told["precpu_stats"]["cpu_usage"]["total_usage"], 10_000);
    assert_eq!(told["network_rate_stats"]["rx_bytes_per_sec"], 1000.0);
    assert_eq!(told["read"], "1970-01-01T00:00:03Z");
    let first = stats::container(&task, container, &usage[..1]);
    assert_eq!(first["preread"], "0001-01-01T00:00:00Z");
    assert_eq!(first["network_rate_stats"]["rx_bytes_per_sec"], 0.0);
}

#[test]
fn a_container_of_which_nothing_is_known_is_null() {
    let task = example();
    let every = stats::task(&task, &[measured("another", 0, 1)]);
    assert!(every[&task.containers[0].runtime_id].is_null());
    assert_eq!(every.as_object().unwrap().len(), task.containers.len());
    assert!(stats::container(&task, &task.containers[0], &[]).is_null());
}

#[test]
fn any_number_that_a_guest_tells_is_borne() {
    let task = example();
    let name = &task.containers[0].name;
    let wild = [
        measured(name, 5, u64::MAX),
        measured(name, 5, 0),
        measured(name, 0, u64::MAX),
    ];
    for count in 1..=wild.len() {
        assert!(stats::container(&task, &task.containers[0], &wild[..count]).is_object());
    }
}

#[test]
fn metadata_has_the_names_and_forms_of_fargate() {
    let (task, owner) = (example(), owner());
    let facts = metadata::Facts {
        owner: &owner,
        task: &task,
        definition: definition(),
        subnet: serde_json::from_value(json!({
            "id": "subnet-0", "vpc_id": "vpc-0", "cidr": "172.31.0.0/20", "availability_zone": "us-east-1a", "is_default": true,
        }))
        .unwrap(),
        dns_servers: vec!["10.0.0.2".to_owned()],
        newest: None,
    };
    let told = facts.task(true);
    let container = &told["Containers"][0];
    assert_eq!(*container, facts.container(&task.containers[0]));
    assert_eq!(told["TaskTags"], json!({ "a": "b" }));
    assert_eq!(told["Limits"], json!({ "CPU": 0.25, "Memory": 512 }));
    assert_eq!(
        (&told["Revision"], &told["PullStartedAt"]),
        (&json!("1"), &json!("1970-01-01T00:00:02.5Z"))
    );
    assert_eq!(
        told["EphemeralStorageMetrics"],
        json!({ "Utilized": 0, "Reserved": 20480 })
    );
    assert_eq!(container["ExitCode"], 7);
    assert_eq!(container["Limits"], json!({ "CPU": 128, "Memory": 256 }));
    assert_eq!(
        container["Networks"],
        json!([{
            "NetworkMode": "awsvpc", "IPv4Addresses": ["172.31.0.9"], "AttachmentIndex": 0, "MACAddress": "02:00:00:00:00:01",
            "IPv4SubnetCIDRBlock": "172.31.0.0/20", "DomainNameServers": ["10.0.0.2"],
            "PrivateDNSName": "ip-172-31-0-9.ec2.internal", "SubnetGatewayIpv4Address": "172.31.0.1/20",
        }])
    );
    assert!(container.get("LogDriver").is_none() && container.get("Health").is_none());
}

#[test]
fn a_container_of_another_task_is_none_of_this_one() {
    let task = example();
    assert!(own(&task, &task.containers[0].runtime_id).is_ok());
    assert!(own(&task, "00000000000000000000000000000000-0000000000").is_err());
    assert!(own(&task, "").is_err());
}
