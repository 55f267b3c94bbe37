//! `environmentFiles`.

use super::*;

fn with_files(files: &Value) -> Value {
    let mut input = minimal();
    input["executionRoleArn"] = json!("arn:aws:iam::123456789012:role/execution");
    input["containerDefinitions"][0]["environmentFiles"] = files.clone();
    input
}

#[test]
fn environment_files_are_shown_again() {
    let files = json!([
        { "value": "arn:aws:s3:::config/web.env", "type": "s3" },
        { "value": "arn:aws:s3:::config/all/every one.env", "type": "s3" },
    ]);
    let spec = decode::spec(&parse(&with_files(&files)), REGION).unwrap();
    assert_eq!(spec.containers[0].environment_files[1].key, "all/every one.env");
    let shown = encode::definition(
        &owner(),
        &TaskDefinition {
            spec,
            ..registered(&minimal())
        },
    );
    assert_eq!(shown["containerDefinitions"][0]["environmentFiles"], files);
    let attributes = shown["requiresAttributes"].as_array().unwrap();
    assert!(attributes.contains(&json!({ "name": "ecs.capability.env-files.s3" })));
}

#[test]
fn environment_files_must_be_ones_that_can_be_read() {
    let refused = |input: &Value| decode::spec(&parse(input), REGION).unwrap_err().to_string();
    let one = |value: &str, kind: &str| with_files(&json!([{ "value": value, "type": kind }]));
    for value in ["x", "arn:aws:s3:::config/web", "arn:aws:s3:::Config/web.env"] {
        let message = refused(&one(value, "s3"));
        assert!(
            message.starts_with(&format!("Invalid environmentFiles value '{value}': ")),
            "{message}"
        );
    }
    assert_eq!(
        refused(&one("arn:aws:s3:::config/web.env", "file")),
        "Invalid environmentFiles type 'file': must be s3."
    );
    assert_eq!(
        refused(&with_files(&json!([{ "type": "s3" }]))),
        "EnvironmentFile.value should not be null or empty."
    );

    let good = json!({ "value": "arn:aws:s3:::config/web.env", "type": "s3" });
    let mut no_role = with_files(&json!([good]));
    no_role["executionRoleArn"] = Value::Null;
    assert_eq!(refused(&no_role), crate::ecs::definition::files::NEED_A_ROLE);
    // Of all containers together.
    let many: Vec<_> = std::iter::repeat_n(&good, 6).collect();
    let mut two = with_files(&json!(many));
    let mut second = two["containerDefinitions"][0].clone();
    second["name"] = json!("second");
    two["containerDefinitions"].as_array_mut().unwrap().push(second);
    assert_eq!(refused(&two), "There can be at most 10 environmentFiles, not 12.");
}
