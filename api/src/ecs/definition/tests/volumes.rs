//! Volumes that a definition leaves to its tasks.

use super::*;

fn with_volumes(volumes: Value) -> Value {
    let mut input = minimal();
    input["volumes"] = volumes;
    input
}

#[test]
fn a_volume_that_is_configured_at_launch_is_kept_and_described_as_such() {
    let input = with_volumes(
        json!([{ "name": "a", "configuredAtLaunch": false }, { "name": "b", "configuredAtLaunch": true }]),
    );
    let definition = registered(&input);
    assert_eq!(definition.spec.volumes, ["a", "b"]);
    assert_eq!(definition.spec.launch_volume.as_deref(), Some("b"));
    let described = encode::definition(&owner(), &definition);
    assert_eq!(
        described["volumes"],
        json!([{ "name": "a", "host": {} }, { "name": "b", "configuredAtLaunch": true }])
    );
}

#[test]
fn no_more_than_one_volume_is_configured_at_launch() {
    let at_launch = |name: &str| json!({ "name": name, "configuredAtLaunch": true });
    assert_eq!(
        refusal(&with_volumes(json!([at_launch("a"), at_launch("b")]))),
        "Only one volume of a task definition can have 'configuredAtLaunch'."
    );
}
