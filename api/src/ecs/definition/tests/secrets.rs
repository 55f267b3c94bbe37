//! `secrets` of a container: what is taken, and what it names.

use berth_runtime::model::secret::SecretSource;

use super::*;

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
    let refused = super::super::secrets::check_account(&spec, &owner)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("'999999999999' alone"), "{refused}");
}
