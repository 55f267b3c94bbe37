//! Pulling the images of a task.

use std::collections::BTreeSet;
use std::sync::Mutex;

use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::*;
use crate::task::host::HostError;

/// A task of containers with these images.
async fn run_all(runtime: &Runtime, images: &[&str]) -> TaskId {
    let one = definition().containers.remove(0);
    let container = |image: &&str| ContainerDefinition {
        name: format!("of-{image}"),
        image: (*image).to_owned(),
        ..one.clone()
    };
    let containers = images.iter().map(container).collect();
    let spec = DefinitionSpec {
        containers,
        ..definition()
    };
    let registered = runtime.register("all", spec, vec![], "root").await.unwrap();
    let mut request = request(runtime, 1).await;
    request.definition = registered.id;
    runtime.run_task(request).await.unwrap().remove(0).id
}

fn pulling(
    pull: impl Fn(String) -> BoxFuture<'static, Result<(), HostError>> + Send + Sync + 'static,
) -> World {
    let mut world = World::new(b"", None);
    Arc::get_mut(&mut world.host).unwrap().pull = Box::new(pull);
    world
}

async fn why_not_started(runtime: &Runtime, id: &TaskId) -> String {
    let task = until(runtime, id, TaskStatus::Stopped).await;
    let cause = task.stop.unwrap();
    assert_eq!(cause.code, StopCode::TaskFailedToStart);
    cause.reason
}

#[tokio::test]
async fn a_failed_pull_stops_the_task_before_it_starts() {
    let world = pulling(|_| Box::pin(async { Err(HostError("no such image".into())) }));
    let runtime = world.daemon().await;
    let id = run_one(&runtime).await;
    let reason = why_not_started(&runtime, &id).await;
    assert_eq!(reason, "CannotPullContainerError: no such image");
    assert_eq!(world.host.left(), (0, 0));
}

#[tokio::test]
async fn some_images_of_a_task_are_pulled_at_once_and_each_container_gets_its_own() {
    let [begun, allowed, ended] = std::array::from_fn(|_| watch::Sender::new(BTreeSet::<String>::new()));
    let world = {
        let (begun, allowed, ended) = (begun.clone(), allowed.clone(), ended.clone());
        pulling(move |image| {
            begun.send_modify(|begun| begun.extend([image.clone()]));
            let (mut allowed, ended) = (allowed.subscribe(), ended.clone());
            Box::pin(async move {
                allowed
                    .wait_for(|allowed| allowed.contains(&image))
                    .await
                    .unwrap();
                ended.send_modify(|ended| ended.extend([image]));
                Ok(())
            })
        })
    };
    let runtime = world.daemon().await;
    let id = run_all(&runtime, &["a", "b", "c", "d", "e"]).await;
    let mut seen = begun.subscribe();
    let names = |names: &[&str]| BTreeSet::from_iter(names.iter().map(|name| (*name).to_owned()));
    let begin = async {
        seen.wait_for(|begun| *begun == names(&["a", "b", "c"]))
            .await
            .unwrap();
        // There is room for no other one before one of them is done.
        allowed.send_replace(names(&["a"]));
        seen.wait_for(|begun| *begun == names(&["a", "b", "c", "d"]))
            .await
            .unwrap();
        // They need not end in the order of their containers.
        allowed.send_replace(names(&["a", "c", "d"]));
        let mut seen = ended.subscribe();
        seen.wait_for(|ended| *ended == names(&["a", "c", "d"]))
            .await
            .unwrap();
        allowed.send_replace(names(&["a", "b", "c", "d", "e"]));
    };
    tokio::time::timeout(Duration::from_secs(30), begin)
        .await
        .expect("three images are pulled at once, and no more");
    let task = until(&runtime, &id, TaskStatus::Activating).await;
    for container in &task.containers {
        let digest = hex::encode(Sha256::digest(container.image.as_bytes()));
        assert_eq!(
            container.image_digest,
            Some(format!("sha256:{digest}")),
            "{}",
            container.name
        );
    }
    assert_eq!(runtime.pull_status(&id), None);
}

#[tokio::test]
async fn of_several_pulls_that_fail_the_first_containers_is_told_and_the_others_are_given_up() {
    /// Says which image's pull is dropped unfinished.
    struct Dropped(Arc<Mutex<Vec<String>>>, String);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.lock().unwrap().push(self.1.clone());
        }
    }
    let dropped = Arc::new(Mutex::new(Vec::new()));
    let c_has_failed = watch::Sender::new(false);
    let world = {
        let dropped = Arc::clone(&dropped);
        pulling(move |image| {
            let (dropped, c_has_failed) = (Arc::clone(&dropped), c_has_failed.clone());
            Box::pin(async move {
                let unfinished = Dropped(dropped, image.clone());
                match image.as_str() {
                    "b" => drop(c_has_failed.subscribe().wait_for(|failed| *failed).await),
                    "d" => std::future::pending().await,
                    _ => {}
                }
                std::mem::forget(unfinished);
                if image == "c" {
                    c_has_failed.send_replace(true);
                }
                match image.as_str() {
                    "a" => Ok(()),
                    _ => Err(HostError(format!("no such image: {image}"))),
                }
            })
        })
    };
    let runtime = world.daemon().await;
    let id = run_all(&runtime, &["a", "b", "c", "d", "e"]).await;
    let reason = why_not_started(&runtime, &id).await;
    assert_eq!(reason, "CannotPullContainerError: no such image: b");
    assert_eq!(*dropped.lock().unwrap(), ["d"]);
    assert_eq!(world.host.left(), (0, 0));
}
