//! Secrets Manager as its clients see it.

use serde_json::{Value, json};

use super::*;

const CLEAR: &str = "correct horse battery staple";
const FIRST: &str = "11111111-1111-1111-1111-111111111111";
const SECOND: &str = "22222222-2222-2222-2222-222222222222";

struct World {
    _dir: tempfile::TempDir,
    store: SecretStore,
}

impl World {
    async fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = SecretStore::open_in(dir.path()).await.unwrap();
        World { _dir: dir, store }
    }

    async fn try_ask(&self, operation: &str, input: Value) -> Result<Value, ApiError> {
        let owner = Owner {
            region: "us-east-1".to_owned(),
            account_id: "123456789012".to_owned(),
        };
        call(&self.store, &owner, operation, input.to_string().as_bytes()).await
    }

    async fn ask(&self, operation: &str, input: Value) -> Value {
        self.try_ask(operation, input).await.unwrap()
    }

    async fn refused(&self, operation: &str, input: Value) -> (String, String) {
        let error = self.try_ask(operation, input).await.unwrap_err();
        assert!(!error.to_string().contains(CLEAR), "{error}");
        (error.code().to_owned(), error.to_string())
    }
}

fn created(token: &str, value: &str) -> Value {
    json!({ "Name": "web/db", "ClientRequestToken": token, "SecretString": value })
}

#[tokio::test]
async fn a_secret_is_read_back_by_name_and_arn() {
    let world = World::new().await;
    let made = world.ask("CreateSecret", created(FIRST, CLEAR)).await;
    let arn = made["ARN"].as_str().unwrap();
    let (start, suffix) = arn.split_at(arn.len() - 6);
    assert_eq!(
        start,
        "arn:aws:secretsmanager:us-east-1:123456789012:secret:web/db-"
    );
    assert!(suffix.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{arn}");
    assert_eq!(made["VersionId"], FIRST);
    for id in ["web/db", arn, &start[..start.len() - 1]] {
        let found = world.ask("GetSecretValue", json!({ "SecretId": id })).await;
        assert_eq!(found["SecretString"], CLEAR, "{id}");
        assert_eq!(found["VersionStages"], json!(["AWSCURRENT"]));
        assert!(found["SecretBinary"].is_null());
    }
    let described = world.ask("DescribeSecret", json!({ "SecretId": arn })).await;
    assert_eq!(described["VersionIdsToStages"], json!({ FIRST: ["AWSCURRENT"] }));
    assert!(described["LastAccessedDate"].is_number() && !described.to_string().contains(CLEAR));
    let elsewhere = arn.replace("us-east-1", "eu-west-1");
    assert_eq!(
        world
            .refused("GetSecretValue", json!({ "SecretId": elsewhere }))
            .await
            .0,
        "InvalidParameterException"
    );
    let other = format!("{start}000000");
    let (code, text) = world
        .refused("GetSecretValue", json!({ "SecretId": other }))
        .await;
    assert_eq!(
        (code.as_str(), text.as_str()),
        (
            "ResourceNotFoundException",
            "Secrets Manager can't find the specified secret."
        )
    );
}

#[tokio::test]
async fn the_same_request_twice_makes_one_secret_and_another_is_refused() {
    let world = World::new().await;
    let made = world.ask("CreateSecret", created(FIRST, CLEAR)).await;
    assert_eq!(world.ask("CreateSecret", created(FIRST, CLEAR)).await, made);
    for other in [created(FIRST, "other"), created(SECOND, CLEAR)] {
        assert_eq!(
            world.refused("CreateSecret", other).await.0,
            "ResourceExistsException"
        );
    }
    let put = json!({ "SecretId": "web/db", "ClientRequestToken": SECOND, "SecretString": "two" });
    let answer = world.ask("PutSecretValue", put.clone()).await;
    assert_eq!(answer["VersionStages"], json!(["AWSCURRENT"]));
    assert_eq!(world.ask("PutSecretValue", put).await, answer);
    let clash = json!({ "SecretId": "web/db", "ClientRequestToken": SECOND, "SecretString": CLEAR });
    assert_eq!(
        world.refused("PutSecretValue", clash).await.0,
        "ResourceExistsException"
    );
    let previous = json!({ "SecretId": "web/db", "VersionStage": "AWSPREVIOUS" });
    assert_eq!(world.ask("GetSecretValue", previous).await["SecretString"], CLEAR);
    let by_id = json!({ "SecretId": "web/db", "VersionId": FIRST });
    assert_eq!(world.ask("GetSecretValue", by_id).await["SecretString"], CLEAR);
}

#[tokio::test]
async fn bytes_come_back_as_bytes() {
    let world = World::new().await;
    world
        .ask("CreateSecret", json!({ "Name": "b", "SecretBinary": "AP8B" }))
        .await;
    let found = world.ask("GetSecretValue", json!({ "SecretId": "b" })).await;
    assert_eq!(found["SecretBinary"], "AP8B");
    assert!(found["SecretString"].is_null());
}

#[tokio::test]
async fn bad_requests_are_refused_with_the_names_that_clients_know() {
    let world = World::new().await;
    world.ask("CreateSecret", created(FIRST, "x")).await;
    world.ask("CreateSecret", json!({ "Name": "empty" })).await;
    let large = format!("{CLEAR}{}", "x".repeat(65_536));
    let cases = [
        (
            "CreateSecret",
            json!({ "Name": "a b", "SecretString": CLEAR }),
            "ValidationException",
        ),
        (
            "CreateSecret",
            json!({ "SecretString": CLEAR }),
            "ValidationException",
        ),
        (
            "CreateSecret",
            json!({ "Name": "a", "SecretString": large }),
            "InvalidParameterException",
        ),
        (
            "CreateSecret",
            json!({ "Name": "a", "SecretString": "" }),
            "InvalidParameterException",
        ),
        (
            "CreateSecret",
            json!({ "Name": "a", "SecretString": CLEAR, "SecretBinary": "AA==" }),
            "InvalidParameterException",
        ),
        (
            "CreateSecret",
            json!({ "Name": "a", "SecretBinary": CLEAR }),
            "SerializationException",
        ),
        (
            "CreateSecret",
            json!({ "Name": "a", "SecretString": { "a": CLEAR } }),
            "SerializationException",
        ),
        (
            "CreateSecret",
            json!({ "Name": "a", "ClientRequestToken": "short" }),
            "InvalidParameterException",
        ),
        (
            "CreateSecret",
            json!({ "Name": "a", "KmsKeyId": "alias/mine" }),
            "InvalidParameterException",
        ),
        (
            "CreateSecret",
            json!({ "Name": "a", "AddReplicaRegions": [{}] }),
            "InvalidParameterException",
        ),
        (
            "PutSecretValue",
            json!({ "SecretId": "web/db" }),
            "InvalidRequestException",
        ),
        (
            "PutSecretValue",
            json!({ "SecretId": "none", "SecretString": CLEAR }),
            "ResourceNotFoundException",
        ),
        (
            "PutSecretValue",
            json!({ "SecretId": "web/db", "SecretString": CLEAR, "VersionStages": [""] }),
            "InvalidParameterException",
        ),
        (
            "GetSecretValue",
            json!({ "SecretId": "empty" }),
            "ResourceNotFoundException",
        ),
        (
            "GetSecretValue",
            json!({ "SecretId": "" }),
            "InvalidParameterException",
        ),
        (
            "GetSecretValue",
            json!({ "SecretId": "web/db", "VersionId": SECOND }),
            "ResourceNotFoundException",
        ),
        (
            "GetSecretValue",
            json!({ "SecretId": "web/db", "VersionId": FIRST, "VersionStage": "AWSPENDING" }),
            "InvalidRequestException",
        ),
        (
            "DeleteSecret",
            json!({ "SecretId": "web/db", "RecoveryWindowInDays": 6 }),
            "InvalidParameterException",
        ),
        (
            "DeleteSecret",
            json!({ "SecretId": "web/db", "RecoveryWindowInDays": 31 }),
            "InvalidParameterException",
        ),
        (
            "DeleteSecret",
            json!({ "SecretId": "web/db", "RecoveryWindowInDays": 7, "ForceDeleteWithoutRecovery": true }),
            "InvalidParameterException",
        ),
        (
            "UpdateSecretVersionStage",
            json!({ "SecretId": "web/db", "VersionStage": "AWSCURRENT", "RemoveFromVersionId": FIRST }),
            "InvalidParameterException",
        ),
        (
            "ListSecrets",
            json!({ "Filters": [{ "Key": "size", "Values": ["1"] }] }),
            "InvalidParameterException",
        ),
        (
            "ListSecrets",
            json!({ "NextToken": "x" }),
            "InvalidNextTokenException",
        ),
        (
            "RotateSecret",
            json!({ "SecretId": "web/db" }),
            "InvalidRequestException",
        ),
        ("PutParameter", json!({}), "UnknownOperationException"),
    ];
    for (operation, input, code) in cases {
        assert_eq!(
            world.refused(operation, input.clone()).await.0,
            code,
            "{operation} {input}"
        );
    }
    let found = world.ask("GetSecretValue", json!({ "SecretId": "web/db" })).await;
    assert_eq!(found["SecretString"], "x");
}

#[tokio::test]
async fn an_update_changes_what_it_says() {
    let world = World::new().await;
    world.ask("CreateSecret", created(FIRST, "one")).await;
    let answer = world
        .ask(
            "UpdateSecret",
            json!({ "SecretId": "web/db", "Description": "d" }),
        )
        .await;
    assert!(answer["VersionId"].is_null(), "{answer}");
    let update = json!({ "SecretId": "web/db", "SecretString": "two", "ClientRequestToken": SECOND });
    assert_eq!(world.ask("UpdateSecret", update).await["VersionId"], SECOND);
    let described = world.ask("DescribeSecret", json!({ "SecretId": "web/db" })).await;
    assert_eq!(described["Description"], "d");
    assert_eq!(
        described["VersionIdsToStages"],
        json!({ FIRST: ["AWSPREVIOUS"], SECOND: ["AWSCURRENT"] })
    );
    let back = json!({
        "SecretId": "web/db", "VersionStage": "AWSCURRENT", "RemoveFromVersionId": SECOND, "MoveToVersionId": FIRST,
    });
    world.ask("UpdateSecretVersionStage", back).await;
    let versions = world
        .ask("ListSecretVersionIds", json!({ "SecretId": "web/db" }))
        .await;
    let stages: Vec<_> = versions["Versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| {
            (
                it["VersionId"].as_str().unwrap(),
                it["VersionStages"][0].as_str().unwrap(),
            )
        })
        .collect();
    assert!(
        stages.contains(&(FIRST, "AWSCURRENT")) && stages.contains(&(SECOND, "AWSPREVIOUS")),
        "{stages:?}"
    );
}

#[tokio::test]
async fn a_deleted_secret_says_so_and_can_be_restored() {
    let world = World::new().await;
    world.ask("CreateSecret", created(FIRST, CLEAR)).await;
    let id = json!({ "SecretId": "web/db" });
    let deleted = world.ask("DeleteSecret", id.clone()).await;
    let described = world.ask("DescribeSecret", id.clone()).await;
    let days =
        (deleted["DeletionDate"].as_f64().unwrap() - described["DeletedDate"].as_f64().unwrap()) / 86_400.0;
    assert_eq!(days, 30.0);
    let (code, text) = world.refused("GetSecretValue", id.clone()).await;
    assert_eq!(code, "InvalidRequestException");
    assert!(text.ends_with("because it was marked for deletion."), "{text}");
    assert_eq!(
        world.refused("DeleteSecret", id.clone()).await.0,
        "InvalidRequestException"
    );
    let (code, text) = world.refused("CreateSecret", created(FIRST, CLEAR)).await;
    assert_eq!(code, "InvalidRequestException");
    assert!(text.contains("already scheduled for deletion"), "{text}");
    assert_eq!(world.ask("ListSecrets", json!({})).await["SecretList"], json!([]));
    let all = world
        .ask("ListSecrets", json!({ "IncludePlannedDeletion": true }))
        .await;
    assert_eq!(all["SecretList"].as_array().unwrap().len(), 1);
    world.ask("RestoreSecret", id.clone()).await;
    assert_eq!(
        world.ask("GetSecretValue", id.clone()).await["SecretString"],
        CLEAR
    );
    let forced = json!({ "SecretId": "web/db", "ForceDeleteWithoutRecovery": true });
    world.ask("DeleteSecret", forced.clone()).await;
    assert_eq!(
        world.refused("RestoreSecret", id).await.0,
        "ResourceNotFoundException"
    );
    // Who wants it gone is content that it is.
    world.ask("DeleteSecret", forced).await;
}

#[tokio::test]
async fn lists_are_filtered_sorted_and_paged() {
    let world = World::new().await;
    for (name, description, tag) in [
        ("b/1", "the Blue one", "x"),
        ("a/2", "", "y"),
        ("b/3", "red", "y"),
    ] {
        let tags = json!([{ "Key": tag, "Value": "1" }]);
        world
            .ask(
                "CreateSecret",
                json!({ "Name": name, "Description": description, "Tags": tags }),
            )
            .await;
    }
    let names = |answer: Value| -> Vec<String> {
        answer["SecretList"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["Name"].as_str().unwrap().to_owned())
            .collect()
    };
    let listed = async |input: Value| names(world.ask("ListSecrets", input).await);
    let filtered = async |key: &str, value: &str| {
        listed(json!({ "SortBy": "name", "Filters": [{ "Key": key, "Values": [value] }] })).await
    };
    assert_eq!(filtered("name", "b/").await, ["b/1", "b/3"]);
    assert_eq!(filtered("name", "!b/").await, ["a/2"]);
    assert_eq!(filtered("description", "blue").await, ["b/1"]);
    assert_eq!(filtered("tag-key", "y").await, ["a/2", "b/3"]);
    assert_eq!(filtered("all", "RED").await, ["b/3"]);
    assert_eq!(
        listed(json!({ "SortBy": "name", "SortOrder": "desc" })).await,
        ["b/3", "b/1", "a/2"]
    );
    let page = world
        .ask("ListSecrets", json!({ "SortBy": "name", "MaxResults": 2 }))
        .await;
    let rest = json!({ "SortBy": "name", "MaxResults": 2, "NextToken": page["NextToken"] });
    assert_eq!(names(page), ["a/2", "b/1"]);
    assert_eq!(listed(rest).await, ["b/3"]);
    world
        .ask(
            "TagResource",
            json!({ "SecretId": "a/2", "Tags": [{ "Key": "z", "Value": "2" }] }),
        )
        .await;
    world
        .ask("UntagResource", json!({ "SecretId": "a/2", "TagKeys": ["y"] }))
        .await;
    let described = world.ask("DescribeSecret", json!({ "SecretId": "a/2" })).await;
    assert_eq!(described["Tags"], json!([{ "Key": "z", "Value": "2" }]));
}
