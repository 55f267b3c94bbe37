//! Clusters, and what their tasks have of them.

use super::*;
use crate::Isolation;
use crate::model::Tag;
use crate::model::isolation::ISOLATION_TAG;

async fn choose(runtime: &Runtime, value: Option<&str>) {
    let changed = runtime.change_cluster("default", |cluster| {
        cluster.tags.retain(|tag| tag.key != ISOLATION_TAG);
        cluster.tags.extend(value.map(|value| Tag {
            key: ISOLATION_TAG.to_owned(),
            value: value.to_owned(),
        }));
        Ok::<_, RuntimeError>(())
    });
    changed.await.unwrap();
}

#[tokio::test]
async fn a_task_has_the_isolation_that_its_cluster_had_chosen_when_it_was_run() {
    let world = World::new(b"", None);
    let runtime = world.daemon().await;
    let shared = run_one(&runtime).await;
    choose(&runtime, Some("strict")).await;
    let strict = run_one(&runtime).await;
    choose(&runtime, Some("shared")).await;
    let again_shared = run_one(&runtime).await;
    choose(&runtime, Some("strict")).await;
    choose(&runtime, None).await;
    let back = run_one(&runtime).await;
    let expected = [
        (&shared, Isolation::Shared),
        (&strict, Isolation::Strict),
        (&again_shared, Isolation::Shared),
        (&back, Isolation::Shared),
    ];
    for (id, isolation) in expected {
        until(&runtime, id, TaskStatus::Running).await;
        // Its record says so, and its machine was started so.
        assert_eq!(runtime.task(id).await.unwrap().isolation, isolation);
        assert_eq!(world.host.isolation(id), isolation);
    }
}

#[tokio::test]
async fn a_task_keeps_its_isolation_over_a_daemons_death() {
    let world = World::new(b"", None);
    let runtime = world.daemon().await;
    choose(&runtime, Some("strict")).await;
    let id = run_one(&runtime).await;
    until(&runtime, &id, TaskStatus::Running).await;
    // As good as kill -9: nobody is told.
    drop(runtime);
    let runtime = world.daemon().await;
    assert_eq!(runtime.task(&id).await.unwrap().isolation, Isolation::Strict);
    let next = run_one(&runtime).await;
    until(&runtime, &next, TaskStatus::Running).await;
    assert_eq!(world.host.isolation(&next), Isolation::Strict);
}

#[tokio::test]
async fn a_cluster_that_is_not_active_is_not_changed() {
    let world = World::new(b"", None);
    let runtime = world.daemon().await;
    let change = |name| runtime.change_cluster(name, |_| Ok::<_, RuntimeError>(()));
    assert!(matches!(
        change("none").await,
        Err(RuntimeError::ClusterNotFound(_))
    ));
    runtime.create_cluster("gone", vec![], vec![]).await.unwrap();
    change("gone").await.unwrap();
    runtime.delete_cluster("gone").await.unwrap();
    assert!(matches!(
        change("gone").await,
        Err(RuntimeError::ClusterNotFound(_))
    ));
}
