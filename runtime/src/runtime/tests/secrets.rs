//! The secrets of a task: to the guest, and nowhere else.

use std::path::PathBuf;

use super::*;
use crate::model::NameValue;
use crate::model::object::EnvironmentFile;
use crate::model::parameter::ParameterType;
use crate::model::secret::{SecretReference, SecretSource};
use crate::model::task::{ContainerOverride, ContainerStatus};
use crate::secrets::{CreateSecret, NewValue, PutObject, PutParameter, SecretBytes, SecretText};
use crate::state::keys;
use crate::store::Transaction;
use crate::task::host::Host;

fn secret(name: &str, source: SecretSource) -> SecretReference {
    SecretReference {
        name: name.into(),
        value_from: format!("from-{name}"),
        source,
    }
}

fn parameter(name: &str) -> SecretSource {
    SecretSource::Parameter {
        names: vec![name.into(), format!("/{name}")],
        version: None,
    }
}

fn json_key(key: &str) -> SecretSource {
    SecretSource::Secret {
        resource: "db".into(),
        json_key: Some(key.into()),
        version_stage: None,
        version_id: None,
    }
}

/// Starts a task whose container has these secrets beside the variable `PLAIN`.
async fn run_with_secrets(runtime: &Runtime, secrets: Vec<SecretReference>) -> TaskId {
    let mut request = request(runtime, 1).await;
    let mut spec = definition();
    spec.containers[0].environment = vec![NameValue {
        name: "PLAIN".into(),
        value: "found in the file".into(),
    }];
    spec.containers[0].secrets = secrets;
    request.definition = runtime.register("web", spec, vec![], "root").await.unwrap().id;
    runtime.run_task(request).await.unwrap().remove(0).id
}

async fn put_secrets(runtime: &Runtime) {
    let put = PutParameter {
        name: "/password".into(),
        value: SecretText::new("hunter2 hunter2".into()),
        kind: Some(ParameterType::SecureString),
        tier: None,
        data_type: None,
        description: None,
        allowed_pattern: None,
        overwrite: true,
        tags: vec![],
        by: "root".into(),
    };
    runtime.secrets().put_parameter(put).await.unwrap();
    let value = NewValue {
        version: "1".into(),
        binary: false,
        bytes: SecretBytes::new(br#"{"user": "swordfish \"s\"", "port": 5432, "bad": "a\u0000b"}"#.to_vec()),
        stages: Default::default(),
    };
    let create = CreateSecret {
        name: "db".into(),
        description: None,
        tags: vec![],
        value: Some(value),
    };
    runtime.secrets().create_secret(create).await.unwrap();
}

#[tokio::test]
async fn secrets_reach_the_guest_and_no_file() {
    let world = World::new(b"", None);
    let first = world.daemon().await;
    put_secrets(&first).await;
    let secrets = vec![
        secret("A", parameter("password")),
        secret("B", json_key("user")),
        secret("C", json_key("port")),
    ];
    let id = run_with_secrets(&first, secrets).await;
    until(&first, &id, TaskStatus::Running).await;
    let told = world.host.told.lock().unwrap().remove(0);
    let env = &told.containers[0].env;
    assert_eq!(env["PLAIN"], "found in the file");
    assert_eq!(env["A"], "hunter2 hunter2");
    assert_eq!(env["B"], "swordfish \"s\"");
    assert_eq!(env["C"], "5432");

    // A task that runs needs them no more, whoever takes it over.
    first.secrets().delete_parameter("/password").await.unwrap();
    drop(first);
    let second = world.daemon().await;
    let task = until(&second, &id, TaskStatus::Running).await;
    second
        .stop_task(&id, StopCode::UserInitiated, "enough")
        .await
        .unwrap();
    let task = until(&second, &task.id, TaskStatus::Stopped).await;
    assert_eq!(task.stop.unwrap().code, StopCode::UserInitiated);

    let holds = |needle: &str| -> Vec<PathBuf> {
        let files = std::fs::read_dir(world.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let holds = |path: &PathBuf| {
            let bytes = std::fs::read(path).unwrap();
            bytes
                .windows(needle.len())
                .any(|window| window == needle.as_bytes())
        };
        files.filter(|path| path.is_file()).filter(holds).collect()
    };
    assert!(
        !holds("found in the file").is_empty(),
        "the search finds nothing at all"
    );
    for clear in ["hunter2", "swordfish"] {
        assert_eq!(holds(clear), Vec::<PathBuf>::new());
    }
}

fn file(bucket: &str, key: &str) -> EnvironmentFile {
    EnvironmentFile {
        value: format!("arn:aws:s3:::{bucket}/{key}"),
        bucket: bucket.into(),
        key: key.into(),
    }
}

async fn put_file(runtime: &Runtime, key: &str, content: &[u8]) {
    let put = PutObject {
        bucket: "config".into(),
        key: key.into(),
        content: SecretBytes::new(content.to_vec()),
        etag: String::new(),
        content_type: None,
    };
    runtime.secrets().put_object(put).await.unwrap();
}

/// Starts a task whose container says `A` by itself, and `B` by a secret.
async fn run_with_files(
    runtime: &Runtime,
    files: Vec<EnvironmentFile>,
    over: Vec<EnvironmentFile>,
) -> TaskId {
    let mut request = request(runtime, 1).await;
    let mut spec = definition();
    let container = &mut spec.containers[0];
    container.environment = vec![NameValue {
        name: "A".into(),
        value: "definition".into(),
    }];
    container.secrets = vec![secret("B", parameter("password"))];
    container.environment_files = files;
    request.overrides.containers = vec![ContainerOverride {
        name: container.name.clone(),
        command: None,
        environment: vec![NameValue {
            name: "C".into(),
            value: "override".into(),
        }],
        environment_files: over,
        cpu: None,
        memory_mib: None,
        memory_reservation_mib: None,
    }];
    request.definition = runtime.register("web", spec, vec![], "root").await.unwrap().id;
    runtime.run_task(request).await.unwrap().remove(0).id
}

#[tokio::test]
async fn environment_files_say_what_nothing_else_says_and_the_first_counts() {
    let world = World::new(b"", None);
    let runtime = world.daemon().await;
    put_secrets(&runtime).await;
    runtime.secrets().create_bucket("config").await.unwrap();
    put_file(&runtime, "1.env", b"A=file\nB=file\nC=file\nD=first\nPATH=/file").await;
    put_file(&runtime, "2.env", b"D=second\nE=second\n").await;
    put_file(&runtime, "over.env", b"D=over\n").await;
    let files = || vec![file("config", "1.env"), file("config", "2.env")];
    for (over, d, e) in [
        (vec![], "first", Some("second")),
        (vec![file("config", "over.env")], "over", None),
    ] {
        let id = run_with_files(&runtime, files(), over).await;
        until(&runtime, &id, TaskStatus::Running).await;
        let told = world.host.told.lock().unwrap().remove(0);
        let env = &told.containers[0].env;
        let found = ["A", "B", "C", "D"].map(|name| env[name].as_str());
        assert_eq!(found, ["definition", "hunter2 hunter2", "override", d]);
        assert_eq!(env.get("E").map(String::as_str), e);
        // Over what the image says.
        assert_eq!(env.get("PATH").is_some_and(|path| path == "/file"), e.is_some());
    }

    for (name, content, end) in [
        (
            file("none", "1.env"),
            None,
            "NoSuchBucket: The specified bucket does not exist",
        ),
        (
            file("config", "none.env"),
            None,
            "NoSuchKey: The specified key does not exist.",
        ),
        (
            file("config", "bad.env"),
            Some(b"A=\xff".as_slice()),
            "it is no UTF-8 text",
        ),
        (
            file("config", "bad.env"),
            Some(b"A=1\nB=\0"),
            "line 2 has a null character, which no environment variable can have",
        ),
    ] {
        if let Some(content) = content {
            put_file(&runtime, &name.key, content).await;
        }
        let id = run_with_files(&runtime, vec![name.clone()], vec![]).await;
        let task = until(&runtime, &id, TaskStatus::Stopped).await;
        assert_eq!(
            task.stop.unwrap().reason,
            format!(
                "ResourceInitializationError: failed to download env files: {}: {end}",
                name.value
            )
        );
    }
}

#[tokio::test]
async fn a_daemon_that_starts_before_the_guest_has_its_task_looks_the_secrets_up_again() {
    let world = World::new(b"", None);
    let first = world.daemon().await;
    put_secrets(&first).await;
    let id = run_with_secrets(&first, vec![secret("A", parameter("password"))]).await;
    let mut task = until(&first, &id, TaskStatus::Running).await;
    // As it was stored when the first daemon ended before it had started a machine.
    task.status = TaskStatus::Activating;
    task.containers[0].status = ContainerStatus::Pending;
    task.started_at = None;
    let records = first.shared.context.records.clone();
    drop(first);
    world.host.remove_machine(&id).await.unwrap();
    let stored = Transaction::default().put(keys::task(&id), &task).unwrap();
    records.commit(stored).await.unwrap();
    drop(records);
    let second = world.daemon().await;
    until(&second, &id, TaskStatus::Running).await;
    let told = world.host.told.lock().unwrap().clone();
    assert_eq!(told.len(), 2);
    assert_eq!(told[0].containers[0].env["A"], told[1].containers[0].env["A"]);
}

#[tokio::test]
async fn a_missing_secret_stops_the_task_before_it_begins_and_costs_nothing() {
    let world = World::new(b"", None);
    let runtime = world.daemon().await;
    put_secrets(&runtime).await;
    let version = SecretSource::Parameter {
        names: vec!["/password".into()],
        version: Some(7),
    };
    for (source, end) in [
        (
            parameter("none"),
            "unable to retrieve secrets from ssm: invalid parameters: from-X",
        ),
        (
            version,
            "unable to retrieve secrets from ssm: invalid parameters: from-X",
        ),
        (
            json_key("none"),
            "unable to retrieve secret from asm: retrieved secret from Secrets Manager did not contain json key none",
        ),
        (
            SecretSource::Secret {
                resource: "other".into(),
                json_key: None,
                version_stage: None,
                version_id: None,
            },
            "unable to retrieve secret from asm: failed to fetch secret from-X from secrets manager: \
             ResourceNotFoundException: Secrets Manager can't find the specified secret.",
        ),
        (
            json_key("bad"),
            "the value of from-X has a null character, which no environment variable can have",
        ),
    ] {
        let id = run_with_secrets(&runtime, vec![secret("X", source)]).await;
        let task = until(&runtime, &id, TaskStatus::Stopped).await;
        let cause = task.stop.unwrap();
        assert_eq!(cause.code, StopCode::TaskFailedToStart);
        assert_eq!(
            cause.reason,
            format!(
                "ResourceInitializationError: unable to pull secrets or registry auth: execution resource retrieval \
                 failed: {end}"
            )
        );
        assert_eq!(world.host.left(), (0, 0));
    }
    assert!(runtime.bill(BillQuery::default()).await.unwrap().lines.is_empty());
}
