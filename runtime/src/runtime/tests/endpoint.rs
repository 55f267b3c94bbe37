//! What a task is told inside, its connections to its endpoint, and what it uses.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const ROLE: &str = "arn:aws:iam::000000000000:role/app";

async fn start(runtime: &Runtime, role: Option<&str>) -> TaskId {
    let mut request = request(runtime, 1).await;
    request.overrides.task_role_arn = role.map(str::to_owned);
    let id = runtime.run_task(request).await.unwrap().remove(0).id;
    until(runtime, &id, TaskStatus::Running).await;
    id
}

#[tokio::test]
async fn a_connection_arrives_with_the_task_that_made_it() {
    let world = World::new(b"", None);
    let runtime = world.daemon().await;
    let mut calls = runtime.endpoint_calls().unwrap();
    assert!(runtime.endpoint_calls().is_none());
    let (one, two) = (start(&runtime, None).await, start(&runtime, None).await);
    for id in [&two, &one] {
        let mut inside = world.host.connect_endpoint(id).await;
        inside.write_all(b"GET").await.unwrap();
        let mut call = calls.recv().await.unwrap();
        assert_eq!(call.task, *id);
        let mut heard = [0; 3];
        call.stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"GET");
    }
}

#[tokio::test]
async fn a_task_knows_where_its_credentials_are_as_long_as_it_lives() {
    let world = World::new(b"", None);
    let runtime = world.daemon().await;
    let id = start(&runtime, Some(ROLE)).await;
    let role = runtime.task_role(&id).await.unwrap().unwrap();
    assert_eq!(role.arn, ROLE);
    let told = world.host.told.lock().unwrap()[0].containers[0].env.clone();
    assert_eq!(
        told["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"],
        format!("/v2/credentials/{}", role.credentials_id)
    );
    assert!(told["ECS_CONTAINER_METADATA_URI_V4"].starts_with("http://169.254.170.2/v4/"));
    let without = start(&runtime, None).await;
    assert_eq!(runtime.task_role(&without).await.unwrap(), None);
    runtime.stop_task(&id, StopCode::UserInitiated, "").await.unwrap();
    until(&runtime, &id, TaskStatus::Stopped).await;
    assert_eq!(runtime.task_role(&id).await.unwrap(), None);
}

#[tokio::test]
async fn protection_lasts_as_long_as_it_was_asked_for_and_outlives_the_daemon() {
    let world = World::new(b"", None);
    let runtime = world.daemon().await;
    let id = start(&runtime, None).await;
    let task = runtime.task(&id).await.unwrap();
    assert_eq!(runtime.protection(&task), None);
    let minute = Duration::from_secs(60);
    let task = runtime.protect_task(&id, Some(minute)).await.unwrap();
    let until = Timestamp(world.clock.now().0 + 60_000);
    assert_eq!(runtime.protection(&task), Some(until));
    drop(runtime);
    let runtime = world.daemon().await;
    let task = runtime.task(&id).await.unwrap();
    assert_eq!(runtime.protection(&task), Some(until));
    world.clock.advance_millis(60_000);
    assert_eq!(runtime.protection(&task), None);
    runtime.protect_task(&id, Some(minute)).await.unwrap();
    let task = runtime.protect_task(&id, None).await.unwrap();
    assert_eq!(runtime.protection(&task), None);
}

#[tokio::test]
async fn a_guest_measures_because_somebody_looks() {
    let world = World::new(b"", None);
    let runtime = world.daemon().await;
    let id = start(&runtime, None).await;
    // This guest measures once.
    let usage = runtime.usage(&id).await.unwrap();
    assert_eq!(usage.len(), 1);
    assert_eq!(usage[0].usage.containers[0].name, "app");
    world.host.kill(&id);
    until(&runtime, &id, TaskStatus::Stopped).await;
    assert!(runtime.usage(&id).await.unwrap().is_empty());
}
