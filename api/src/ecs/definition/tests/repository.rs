//! `repositoryCredentials` of a container: what is taken, and what it names.

use super::*;

fn with_credentials(parameter: &str) -> Value {
    let shape = json!({ "credentialsParameter": parameter });
    let mut input = in_container("repositoryCredentials", shape);
    input["executionRoleArn"] = json!("arn:aws:iam::123456789012:role/execution");
    input
}

#[test]
fn credentials_are_named_by_arn_or_name_and_described_as_given() {
    let arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:team/registry-AbCdEf";
    for (parameter, resource) in [(arn, "team/registry-AbCdEf"), ("team/registry", "team/registry")] {
        let spec = decode::spec(&parse(&with_credentials(parameter)), REGION).unwrap();
        let credentials = spec.containers[0].repository_credentials.clone().unwrap();
        assert_eq!(
            (credentials.parameter.as_str(), credentials.resource.as_str()),
            (parameter, resource)
        );
    }
    let spec = decode::spec(&parse(&with_credentials("")), REGION).unwrap();
    assert_eq!(spec.containers[0].repository_credentials, None);
}

#[test]
fn credentials_that_cannot_be_looked_up_are_refused() {
    for (parameter, part) in [
        ("a b", "Invalid 'credentialsParameter' 'a b'"),
        ("arn:aws:s3:::bucket/x", "must be the ARN or the name of a secret"),
        (
            "arn:aws:secretsmanager:us-east-1:123456789012:secret:s-AbCdEf:key::",
            "must be the ARN or the name of a secret",
        ),
        (
            "arn:aws:secretsmanager:eu-west-1:123456789012:secret:s-AbCdEf",
            "cannot be in 'eu-west-1'",
        ),
    ] {
        let errors = errors(&parse(&with_credentials(parameter)), REGION);
        assert!(
            errors.len() == 1 && errors[0].contains(part),
            "{parameter}: {errors:?}"
        );
    }
    let mut input = with_credentials("s");
    input["executionRoleArn"] = json!("");
    let errors = errors(&parse(&input), REGION);
    assert!(errors[0].contains("'executionRoleArn'"), "{errors:?}");
}
