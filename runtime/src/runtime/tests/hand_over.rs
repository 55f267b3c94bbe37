//! What a daemon does that starts while a task is being started: who is given the task, and who is not.

use super::*;
use crate::model::task::ContainerStatus;
use crate::state::keys;
use crate::store::Transaction;

/// A task as it was stored when the daemon ended before it had heard that the container runs. Its guest has the task.
async fn left_activating(world: &World) -> TaskId {
    let first = world.daemon().await;
    let id = run_one(&first).await;
    let mut task = until(&first, &id, TaskStatus::Running).await;
    task.status = TaskStatus::Activating;
    task.containers[0].status = ContainerStatus::Pending;
    task.started_at = None;
    let records = first.shared.context.records.clone();
    drop(first);
    let stored = Transaction::default().put(keys::task(&id), &task).unwrap();
    records.commit(stored).await.unwrap();
    id
}

fn times_told(world: &World) -> usize {
    world.host.told.lock().unwrap().len()
}

#[tokio::test]
async fn a_guest_that_has_its_task_goes_on_with_it() {
    let world = World::new(b"one\n", None);
    let id = left_activating(&world).await;
    let second = world.daemon().await;
    until(&second, &id, TaskStatus::Running).await;
    assert_eq!((world.host.booted(), times_told(&world)), (1, 1));
}

#[tokio::test]
async fn who_does_not_show_that_it_has_the_task_is_not_given_it_but_a_new_machine_is() {
    let world = World::new(b"", None);
    let id = left_activating(&world).await;
    // It says what a container of the first one could say, and what init would if the task had never been sent.
    world.host.boot(id.clone());
    let second = world.daemon().await;
    until(&second, &id, TaskStatus::Running).await;
    assert_eq!((world.host.booted(), times_told(&world)), (3, 2));
    second
        .stop_task(&id, StopCode::UserInitiated, "enough")
        .await
        .unwrap();
    until(&second, &id, TaskStatus::Stopped).await;
    let records = &second.shared.context.records;
    let mark = records.get::<bool>(&keys::handed_over(&id)).await.unwrap();
    assert_eq!((mark, world.host.left()), (None, (0, 0)));
}

#[tokio::test]
async fn a_guest_that_was_never_to_be_given_its_task_is_given_it_by_the_next_daemon() {
    let world = World::new(b"", None);
    let id = left_activating(&world).await;
    world.host.boot(id.clone());
    let store = SqliteStore::open(&world.dir.path().join("state.db")).unwrap();
    let records = Records::new(Arc::new(store));
    let unmarked = Transaction::default().delete(keys::handed_over(&id));
    records.commit(unmarked).await.unwrap();
    drop(records);
    let second = world.daemon().await;
    until(&second, &id, TaskStatus::Running).await;
    assert_eq!((world.host.booted(), times_told(&world)), (2, 2));
}

#[tokio::test]
async fn a_task_of_which_there_is_output_does_not_begin_again() {
    let world = World::new(b"one\n", None);
    let id = left_activating(&world).await;
    world.host.boot(id.clone());
    let second = world.daemon().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!((world.host.booted(), times_told(&world)), (2, 1));
    second
        .stop_task(&id, StopCode::UserInitiated, "enough")
        .await
        .unwrap();
    let task = until(&second, &id, TaskStatus::Stopping).await;
    assert_eq!(task.stop.unwrap().reason, "enough");
}
