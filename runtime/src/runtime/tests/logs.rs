//! Log groups and streams: what clients put, what retention and deletion leave of the files, and whose output stays.

use super::*;
use crate::model::log::LogPage;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
const ALL: LogQuery = LogQuery {
    position: None,
    forward: true,
    start: None,
    end: None,
    from_order: None,
    limit: usize::MAX,
    max_bytes: usize::MAX,
    max_scanned_bytes: u64::MAX,
};

fn texts(page: &LogPage) -> Vec<&str> {
    page.events
        .iter()
        .map(|event| std::str::from_utf8(&event.bytes).unwrap())
        .collect()
}

/// The files of all logs, without their indexes.
fn files(world: &World) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for dir in std::fs::read_dir(world.dir.path().join("logs")).unwrap() {
        let entries = std::fs::read_dir(dir.unwrap().path()).unwrap();
        found.extend(entries.map(|entry| entry.unwrap().path()));
    }
    found.retain(|path| path.extension().is_some_and(|it| it == "log"));
    found
}

async fn put(runtime: &Runtime, texts: &[&str]) {
    let now = runtime.now();
    let events = texts.iter().map(|text| (now, (*text).to_owned())).collect();
    runtime.put_log_events("/g", "s", events).await.unwrap();
}

#[tokio::test]
async fn what_a_group_does_not_keep_is_hidden_at_once_and_freed_by_the_sweep() {
    let world = World::new(b"", Some(0));
    let runtime = world.daemon().await;
    runtime.create_log_group("/g", vec![]).await.unwrap();
    runtime.create_log_stream("/g", "s").await.unwrap();
    let long = "x".repeat(20_000);
    put(&runtime, &[&long, &long, &long]).await;
    world.clock.advance_millis(2 * DAY_MS);
    put(&runtime, &["new"]).await;
    let stored = async || runtime.log_streams("/g").await.unwrap()[0].1.stored_bytes;
    let before = stored().await;
    runtime.sweep_logs().await.unwrap();
    assert_eq!(
        stored().await,
        before,
        "a group without a policy keeps everything"
    );
    runtime
        .change_log_group("/g", |group| group.retention_days = Some(1))
        .await
        .unwrap();
    let page = runtime.log_events("/g", "s", ALL).await.unwrap();
    assert_eq!(texts(&page), ["new"]);
    runtime.sweep_logs().await.unwrap();
    // What is freed ends where the index has an entry.
    assert!(stored().await < before / 2, "{} of {before}", stored().await);
    let page = runtime.log_events("/g", "s", ALL).await.unwrap();
    assert_eq!(texts(&page), ["new"]);
}

#[tokio::test]
async fn deleting_streams_and_groups_removes_what_clients_put() {
    let world = World::new(b"", Some(0));
    let runtime = world.daemon().await;
    runtime.create_log_group("/g", vec![]).await.unwrap();
    for stream in ["s", "t"] {
        runtime.create_log_stream("/g", stream).await.unwrap();
        let events = vec![(runtime.now(), "text".to_owned())];
        runtime.put_log_events("/g", stream, events).await.unwrap();
    }
    assert!(matches!(
        runtime.create_log_stream("/g", "s").await,
        Err(RuntimeError::LogStreamExists(_))
    ));
    assert_eq!(files(&world).len(), 2);
    runtime.delete_log_stream("/g", "s").await.unwrap();
    assert_eq!(files(&world).len(), 1);
    // A file that nothing leads to, as a crash between two steps leaves it.
    std::fs::write(world.dir.path().join("logs/put/0123.log"), "x").unwrap();
    runtime.sweep_logs().await.unwrap();
    assert_eq!(files(&world).len(), 1);
    runtime.delete_log_group("/g").await.unwrap();
    assert!(files(&world).is_empty());
    assert!(matches!(
        runtime.log_streams("/g").await,
        Err(RuntimeError::LogGroupNotFound(_))
    ));
}

#[tokio::test]
async fn a_containers_stream_is_its_own_and_its_output_stays_as_long_as_its_task() {
    let world = World::new(b"one\n", Some(0));
    let runtime = world.daemon().await;
    let id = run_one(&runtime).await;
    let task = until(&runtime, &id, TaskStatus::Stopped).await;
    let log = task.containers[0].log.clone().unwrap();
    let events = vec![(runtime.now(), "forged".to_owned())];
    assert!(matches!(
        runtime.put_log_events(&log.group, &log.stream, events).await,
        Err(RuntimeError::LogStreamOfContainer(_))
    ));
    runtime.delete_log_group(&log.group).await.unwrap();
    assert_eq!(files(&world).len(), 1, "berth logs still shows it");
    world.clock.advance_millis(3_601_000);
    runtime.sweep().await.unwrap();
    assert!(files(&world).is_empty());
}

#[tokio::test]
async fn a_task_whose_group_must_not_be_made_is_refused() {
    let world = World::new(b"", Some(0));
    let runtime = world.daemon().await;
    let mut spec = definition();
    let options = [("awslogs-create-group".to_owned(), "false".to_owned())];
    if let Some(log) = &mut spec.containers[0].log {
        log.options = options.into();
    }
    let definition = runtime.register("strict", spec, vec![], "root").await.unwrap();
    let request = RunTask {
        definition: definition.id,
        ..request(&runtime, 1).await
    };
    assert!(matches!(
        runtime.run_task(request.clone()).await,
        Err(RuntimeError::LogGroupNotFound(_))
    ));
    runtime.create_log_group("/app", vec![]).await.unwrap();
    assert_eq!(runtime.run_task(request).await.unwrap().len(), 1);
}
