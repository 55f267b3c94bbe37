//! The Parameter Store as its clients see it.

use berth_runtime::secrets::SecretStore;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::names::{check_new, is_below, parse, parse_path};
use super::*;

const CLEAR: &str = "correct horse battery staple";

struct World {
    _dir: tempfile::TempDir,
    store: SecretStore,
}

fn owner() -> Owner {
    Owner {
        region: "us-east-1".to_owned(),
        account_id: "123456789012".to_owned(),
    }
}

impl World {
    async fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = SecretStore::open_in(dir.path()).await.unwrap();
        World { _dir: dir, store }
    }

    async fn try_ask(&self, operation: &str, input: Value) -> Result<Value, ApiError> {
        call(&self.store, &owner(), operation, input.to_string().as_bytes()).await
    }

    async fn ask(&self, operation: &str, input: Value) -> Value {
        self.try_ask(operation, input).await.unwrap()
    }

    /// The refusal's name and text.
    async fn refused(&self, operation: &str, input: Value) -> (String, String) {
        let error = self.try_ask(operation, input).await.unwrap_err();
        assert!(!error.to_string().contains(CLEAR), "{error}");
        (error.code().to_owned(), error.to_string())
    }

    async fn put(&self, name: &str, kind: &str, value: &str) -> Value {
        let input = json!({ "Name": name, "Type": kind, "Value": value, "Overwrite": true });
        self.ask("PutParameter", input).await
    }
}

fn names_of(answer: &Value) -> Vec<&str> {
    let parameters = answer["Parameters"].as_array().unwrap();
    parameters.iter().map(|it| it["Name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_parameter_is_read_back_by_name_version_and_arn() {
    let world = World::new().await;
    assert_eq!(
        world.put("/a/b", "SecureString", "one").await,
        json!({ "Version": 1, "Tier": "Standard" })
    );
    assert_eq!(world.put("/a/b", "SecureString", CLEAR).await["Version"], 2);
    let get = |name: &str| world.ask("GetParameter", json!({ "Name": name, "WithDecryption": true }));
    let found = get("/a/b").await["Parameter"].clone();
    assert_eq!(found["Value"], CLEAR);
    assert_eq!(found["ARN"], "arn:aws:ssm:us-east-1:123456789012:parameter/a/b");
    assert_eq!(
        (&found["Type"], &found["DataType"]),
        (&json!("SecureString"), &json!("text"))
    );
    assert_eq!(
        get("arn:aws:ssm:us-east-1:123456789012:parameter/a/b").await["Parameter"],
        found
    );
    let first = get("/a/b:1").await["Parameter"].clone();
    assert_eq!(
        (&first["Value"], &first["Selector"]),
        (&json!("one"), &json!(":1"))
    );
    world.put("flat", "String", "x").await;
    for name in ["flat", "arn:aws:ssm:us-east-1:123456789012:parameter/flat"] {
        assert_eq!(get(name).await["Parameter"]["Name"], "flat");
    }
    let sealed = world.ask("GetParameter", json!({ "Name": "/a/b" })).await;
    assert_eq!(sealed["Parameter"]["Value"], "(encrypted)");
    let plain = world.ask("GetParameter", json!({ "Name": "flat" })).await;
    assert_eq!(plain["Parameter"]["Value"], "x");
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let world = World::new().await;
    world.put("/a", "String", "x").await;
    let (code, text) = world.refused("GetParameter", json!({ "Name": "/b" })).await;
    assert_eq!(
        (code.as_str(), text.as_str()),
        ("ParameterNotFound", "Parameter /b not found.")
    );
    for selector in ["7", "label"] {
        let (code, text) = world
            .refused("GetParameter", json!({ "Name": format!("/a:{selector}") }))
            .await;
        assert_eq!(code, "ParameterVersionNotFound");
        assert!(text.contains(selector), "{text}");
    }
    let names = json!({ "Names": ["/a", "/b", "/a:7", "/a:1"] });
    let answer = world.ask("GetParameters", names).await;
    assert_eq!(names_of(&answer), ["/a", "/a"]);
    assert_eq!(answer["InvalidParameters"], json!(["/b", "/a:7"]));
    assert_eq!(
        world.refused("DeleteParameter", json!({ "Name": "/b" })).await.0,
        "ParameterNotFound"
    );
    let answer = world
        .ask("DeleteParameters", json!({ "Names": ["/a", "/b"] }))
        .await;
    assert_eq!(
        answer,
        json!({ "DeletedParameters": ["/a"], "InvalidParameters": ["/b"] })
    );
    assert_eq!(
        world
            .refused("GetParameterHistory", json!({ "Name": "/a" }))
            .await
            .0,
        "ParameterNotFound"
    );
}

#[tokio::test]
async fn bad_puts_are_refused_with_the_names_that_clients_know() {
    let world = World::new().await;
    world.put("/there", "SecureString", "x").await;
    let long = |bytes: usize| format!("{CLEAR}{}", "x".repeat(bytes));
    let deep = "/a".repeat(16);
    let put = |name: &str, more: Value| {
        let mut input = json!({ "Name": name, "Type": "String", "Value": CLEAR });
        input
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        input
    };
    let cases = [
        (put("/there", json!({})), "ParameterAlreadyExists"),
        (
            put("/there", json!({ "Overwrite": true })),
            "HierarchyTypeMismatchException",
        ),
        (put("aws/a", json!({})), "ValidationException"),
        (put("/aws/a", json!({})), "AccessDeniedException"),
        (put("awsome", json!({})), "AccessDeniedException"),
        (put("/SSM-a", json!({})), "ValidationException"),
        (put("a/b", json!({})), "ValidationException"),
        (put("/a//b", json!({})), "ValidationException"),
        (put("/a/", json!({})), "ValidationException"),
        (put("/ä", json!({})), "ValidationException"),
        (put("", json!({})), "ValidationException"),
        (put(&deep, json!({})), "HierarchyLevelLimitExceededException"),
        (put("/a", json!({ "Type": null })), "ValidationException"),
        (put("/a", json!({ "Type": "Secure" })), "ValidationException"),
        (put("/a", json!({ "Value": "" })), "ValidationException"),
        (put("/a", json!({ "Value": long(4096) })), "ValidationException"),
        (
            put("/a", json!({ "Value": long(8192), "Tier": "Advanced" })),
            "ValidationException",
        ),
        (
            put("/a", json!({ "AllowedPattern": "^[0-9]+$" })),
            "ParameterPatternMismatchException",
        ),
        (
            put("/a", json!({ "AllowedPattern": "(" })),
            "InvalidAllowedPatternException",
        ),
        (
            put("/a", json!({ "AllowedPattern": "(a{1000}){1000}" })),
            "InvalidAllowedPatternException",
        ),
        (put("/a", json!({ "KeyId": "alias/mine" })), "InvalidKeyId"),
        (
            put("/a", json!({ "DataType": "aws:ec2:image" })),
            "ValidationException",
        ),
        (
            put("/a", json!({ "Policies": "[{}]" })),
            "InvalidPolicyTypeException",
        ),
        (
            put("/a", json!({ "Overwrite": true, "Tags": [{ "Key": "a" }] })),
            "ValidationException",
        ),
        (put("/a", json!({ "Overwrite": CLEAR })), "SerializationException"),
        (put("/a", json!({ "Value": [CLEAR] })), "SerializationException"),
    ];
    for (input, code) in cases {
        assert_eq!(
            world.refused("PutParameter", input.clone()).await.0,
            code,
            "{input}"
        );
    }
    assert_eq!(
        names_of(&world.ask("DescribeParameters", json!({})).await),
        ["/there"]
    );
}

#[tokio::test]
async fn large_values_need_the_advanced_tier_and_a_pattern_stays() {
    let world = World::new().await;
    let large = "x".repeat(5000);
    let input = json!({ "Name": "/a", "Type": "String", "Value": large, "Tier": "Intelligent-Tiering" });
    assert_eq!(world.ask("PutParameter", input).await["Tier"], "Advanced");
    let back = json!({ "Name": "/a", "Value": "x", "Tier": "Standard", "Overwrite": true });
    assert_eq!(world.refused("PutParameter", back).await.0, "ValidationException");
    let input = json!({ "Name": "/n", "Type": "String", "Value": "12", "AllowedPattern": "^[0-9]+$" });
    world.ask("PutParameter", input).await;
    let input = json!({ "Name": "/n", "Value": CLEAR, "Overwrite": true });
    assert_eq!(
        world.refused("PutParameter", input).await.0,
        "ParameterPatternMismatchException"
    );
}

#[tokio::test]
async fn paths_filters_and_pages_find_what_they_name() {
    let world = World::new().await;
    for name in ["/a/1", "/a/2", "/a/b/3", "/ab/4", "flat"] {
        world.put(name, "String", name).await;
    }
    world.put("/a/s", "SecureString", CLEAR).await;
    let ask = |input: Value| world.ask("GetParametersByPath", input);
    assert_eq!(
        names_of(&ask(json!({ "Path": "/a" })).await),
        ["/a/1", "/a/2", "/a/s"]
    );
    let all = ask(json!({ "Path": "/a/", "Recursive": true })).await;
    assert_eq!(names_of(&all), ["/a/1", "/a/2", "/a/b/3", "/a/s"]);
    assert!(!all.to_string().contains(CLEAR));
    let clear = ask(json!({ "Path": "/a/", "WithDecryption": true })).await;
    assert!(clear.to_string().contains(CLEAR));
    let (mut paged, mut token) = (Vec::new(), Value::Null);
    loop {
        let page = ask(json!({ "Path": "/", "Recursive": true, "MaxResults": 2, "NextToken": token })).await;
        paged.extend(names_of(&page).into_iter().map(str::to_owned));
        token = page["NextToken"].clone();
        if token.is_null() {
            break;
        }
    }
    assert_eq!(paged, ["/a/1", "/a/2", "/a/b/3", "/a/s", "/ab/4"]);
    let bad = json!({ "Path": "/", "NextToken": "x" });
    assert_eq!(
        world.refused("GetParametersByPath", bad).await.0,
        "InvalidNextToken"
    );
    assert_eq!(
        world
            .refused("GetParametersByPath", json!({ "Path": "a" }))
            .await
            .0,
        "ValidationException"
    );

    world.ask("AddTagsToResource", json!({ "ResourceType": "Parameter", "ResourceId": "flat", "Tags": [{ "Key": "k", "Value": "v" }] })).await;
    let filters = [
        (
            json!({ "Key": "Name", "Values": ["/a/1", "flat"] }),
            vec!["/a/1", "flat"],
        ),
        (
            json!({ "Key": "Name", "Option": "BeginsWith", "Values": ["/a/"] }),
            vec!["/a/1", "/a/2", "/a/b/3", "/a/s"],
        ),
        (
            json!({ "Key": "Name", "Option": "Contains", "Values": ["b/"] }),
            vec!["/a/b/3", "/ab/4"],
        ),
        (json!({ "Key": "Type", "Values": ["SecureString"] }), vec!["/a/s"]),
        (
            json!({ "Key": "Path", "Option": "Recursive", "Values": ["/a/b", "/ab"] }),
            vec!["/a/b/3", "/ab/4"],
        ),
        (json!({ "Key": "tag:k", "Values": ["v"] }), vec!["flat"]),
        (json!({ "Key": "tag:k", "Values": ["w"] }), vec![]),
    ];
    for (filter, names) in filters {
        let found = world
            .ask("DescribeParameters", json!({ "ParameterFilters": [filter] }))
            .await;
        assert_eq!(names_of(&found), names, "{filter}");
        assert!(!found.to_string().contains("Value"), "{found}");
    }
    for (filter, code) in [
        (json!({ "Key": "Label", "Values": ["a"] }), "InvalidFilterKey"),
        (
            json!({ "Key": "Type", "Option": "BeginsWith", "Values": ["S"] }),
            "InvalidFilterOption",
        ),
    ] {
        assert_eq!(
            world
                .refused("DescribeParameters", json!({ "ParameterFilters": [filter] }))
                .await
                .0,
            code
        );
    }
}

#[tokio::test]
async fn history_has_every_version_once() {
    let world = World::new().await;
    for number in 1..=5 {
        world.put("/a", "SecureString", &format!("v{number}")).await;
    }
    let first = json!({ "Name": "/a", "WithDecryption": true, "MaxResults": 3 });
    let page = world.ask("GetParameterHistory", first.clone()).await;
    let mut next = first;
    next["NextToken"] = page["NextToken"].clone();
    let rest = world.ask("GetParameterHistory", next).await;
    let all: Vec<&Value> = [&page, &rest]
        .into_iter()
        .flat_map(|it| it["Parameters"].as_array().unwrap())
        .collect();
    let values: Vec<&str> = all.iter().map(|it| it["Value"].as_str().unwrap()).collect();
    assert_eq!(values, ["v1", "v2", "v3", "v4", "v5"]);
    assert_eq!(all[4]["KeyId"], "alias/aws/ssm");
    assert!(rest["NextToken"].is_null());
    let sealed = world
        .ask("GetParameterHistory", json!({ "Name": "/a" }))
        .await
        .to_string();
    assert!(!sealed.contains("v1"), "{sealed}");
}

#[tokio::test]
async fn tags_come_and_go() {
    let world = World::new().await;
    let tags = json!([{ "Key": "a", "Value": "1" }, { "Key": "b", "Value": "2" }]);
    world
        .ask(
            "PutParameter",
            json!({ "Name": "/a", "Type": "String", "Value": "x", "Tags": tags }),
        )
        .await;
    let of = json!({ "ResourceType": "Parameter", "ResourceId": "/a" });
    assert_eq!(
        world.ask("ListTagsForResource", of.clone()).await["TagList"],
        tags
    );
    let mut change = of.clone();
    change["Tags"] = json!([{ "Key": "a", "Value": "3" }]);
    world.ask("AddTagsToResource", change).await;
    let mut change = of.clone();
    change["TagKeys"] = json!(["b"]);
    world.ask("RemoveTagsFromResource", change).await;
    let left = world.ask("ListTagsForResource", of).await;
    assert_eq!(left["TagList"], json!([{ "Key": "a", "Value": "3" }]));
    let other = json!({ "ResourceType": "Document", "ResourceId": "/a" });
    assert_eq!(
        world.refused("ListTagsForResource", other).await.0,
        "InvalidResourceType"
    );
}

#[tokio::test]
async fn the_rest_of_systems_manager_is_told_from_what_exists_nowhere() {
    let world = World::new().await;
    assert_eq!(
        world.refused("SendCommand", json!({})).await.0,
        "UnsupportedOperationException"
    );
    assert_eq!(
        world.refused("LabelParameterVersion", json!({})).await.0,
        "UnsupportedOperationException"
    );
    assert_eq!(
        world.refused("PutSecret", json!({})).await.0,
        "UnknownOperationException"
    );
}

proptest! {
    #[test]
    fn a_name_that_is_taken_is_found_again_by_its_arn(name in "(/[b-r0-9._-]{1,4}){1,15}|[b-r0-9._-]{1,9}", version in proptest::option::of(1u64..200)) {
        let owner = owner();
        prop_assert!(check_new(&name, &owner).is_ok());
        let suffix = version.map(|version| format!(":{version}")).unwrap_or_default();
        for text in [name.clone(), owner.parameter(&name)] {
            let named = parse(&format!("{text}{suffix}"), &owner).unwrap();
            prop_assert!(named.names.contains(&name));
            prop_assert_eq!(named.version(), version);
        }
    }

    #[test]
    fn no_text_is_too_strange_to_be_read(text: String) {
        let _ = (check_new(&text, &owner()), parse(&text, &owner()), parse_path(&text));
    }

    #[test]
    fn what_is_below_a_path_is_below_it_recursively(name in "(/[a-c]{1,2}){1,4}", path in "(/[a-c]{1,2}){0,3}/") {
        let path = parse_path(&path).unwrap();
        prop_assert!(!is_below(&name, &path, false) || is_below(&name, &path, true));
        prop_assert_eq!(is_below(&name, &path, true), name.starts_with(&path));
    }
}
