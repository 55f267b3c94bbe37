//! What a task can say of its volume, and what it cannot.

use serde_json::{Value, json};

use super::tests::{definition, with};
use super::volume::launch_volume;
use berth_runtime::model::definition::TaskDefinition;
use berth_runtime::runtime::LaunchVolume;

const ROLE: &str = "arn:aws:iam::123456789012:role/volumes";

pub(super) fn with_launch_volume() -> TaskDefinition {
    let mut definition = definition();
    definition.spec.volumes = vec!["data".to_owned()];
    definition.spec.launch_volume = Some("data".to_owned());
    definition
}

fn launch(volume: Value) -> Result<LaunchVolume, String> {
    let input = with(
        "volumeConfigurations",
        json!([{ "name": "data", "managedEBSVolume": volume }]),
    );
    let taken = launch_volume(&input, &with_launch_volume()).map_err(|error| error.to_string());
    taken.map(|volume| volume.expect("there is one"))
}

#[test]
fn what_is_said_is_kept_and_the_rest_is_as_on_aws() {
    let volume = launch(json!({ "sizeInGiB": 8, "roleArn": ROLE })).unwrap();
    let expected = LaunchVolume {
        name: "data".to_owned(),
        from: None,
        size_gib: Some(8),
        delete_on_termination: None,
        tags: vec![],
        role_arn: Some(ROLE.to_owned()),
    };
    assert_eq!(volume, expected);
    let volume = launch(json!({
        "snapshotId": "monday", "roleArn": ROLE, "volumeType": "gp3", "filesystemType": "ext4", "encrypted": false,
        "terminationPolicy": { "deleteOnTermination": false },
        "tagSpecifications": [{
            "resourceType": "volume", "tags": [{ "key": "team", "value": "own" }], "propagateTags": "TASK_DEFINITION",
        }],
    }))
    .unwrap();
    assert_eq!(
        (
            volume.from.as_deref(),
            volume.size_gib,
            volume.delete_on_termination
        ),
        (Some("monday"), None, Some(false))
    );
    let tags: Vec<_> = volume
        .tags
        .iter()
        .map(|tag| (tag.key.as_str(), tag.value.as_str()))
        .collect();
    assert_eq!(tags, [("team", "own"), ("stage", "test")]);
}

#[test]
fn what_makes_no_sense_here_is_refused_by_its_name() {
    for (member, value) in [
        ("kmsKeyId", json!("key")),
        ("iops", json!(3000)),
        ("throughput", json!(125)),
        ("volumeInitializationRate", json!(100)),
        ("encrypted", json!(true)),
        ("volumeType", json!("io2")),
        ("filesystemType", json!("xfs")),
        ("roleArn", json!("")),
        ("roleArn", json!("a\nb")),
        ("snapshotId", json!("x".repeat(3000))),
        ("sizeInGiB", json!(-1)),
        ("tagSpecifications", json!([{ "resourceType": "task" }])),
        (
            "propagateTags",
            json!([{ "resourceType": "volume", "propagateTags": "SERVICE" }]),
        ),
    ] {
        let mut volume = json!({ "sizeInGiB": 8, "roleArn": ROLE });
        let place = match member {
            "propagateTags" => "tagSpecifications",
            member => member,
        };
        volume[place] = value;
        let refused = launch(volume).unwrap_err();
        assert!(refused.contains(member), "{member}: {refused}");
    }
    let refused = launch(json!({ "roleArn": ROLE })).unwrap_err();
    assert_eq!(refused, "managedEBSVolume must have sizeInGiB or snapshotId.");
}

#[test]
fn configurations_and_the_definition_must_fit() {
    let message = |configurations: Value, definition: &TaskDefinition| {
        let input = with("volumeConfigurations", configurations);
        launch_volume(&input, definition).unwrap_err().to_string()
    };
    let one = json!({ "name": "data", "managedEBSVolume": { "sizeInGiB": 8, "roleArn": ROLE } });
    assert!(
        launch_volume(&with("group", json!("g")), &definition())
            .unwrap()
            .is_none()
    );
    assert!(message(json!([]), &with_launch_volume()).contains("must have volume 'data'"));
    assert!(message(json!([one]), &definition()).contains("can only be given"));
    assert!(message(json!([one, one]), &with_launch_volume()).contains("must have one item"));
    assert!(message(json!([{ "name": "other" }]), &with_launch_volume()).contains("named 'data'"));
    assert!(message(json!([{ "name": "data" }]), &with_launch_volume()).contains("managedEBSVolume"));
}
