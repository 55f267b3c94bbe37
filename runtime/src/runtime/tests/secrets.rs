//! The secrets of a task: to the guest, and nowhere else.

use std::path::PathBuf;

use super::*;
use crate::model::NameValue;
use crate::model::parameter::ParameterType;
use crate::model::secret::{SecretReference, SecretSource};
use crate::model::task::ContainerStatus;
use crate::secrets::{CreateSecret, NewValue, PutParameter, SecretBytes, SecretText};
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
