//! Volumes: one task's at a time, through whatever ends of daemons and machines.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::model::volume::{Holder, Volume, VolumeId, VolumeKind, VolumeState};
use crate::state::keys;
use crate::store::{Record, Transaction};

const WAIT: Duration = Duration::from_secs(10);

fn volume(name: &str) -> CreateVolume {
    CreateVolume {
        name: name.into(),
        size_gib: Some(2),
        snapshot: None,
    }
}

fn launch(from: Option<&str>) -> LaunchVolume {
    LaunchVolume {
        name: "data".into(),
        from: from.map(str::to_owned),
        size_gib: from.is_none().then_some(3),
        delete_on_termination: None,
        tags: vec![],
        role_arn: None,
    }
}

async fn run_with(runtime: &Runtime, asked: LaunchVolume) -> Result<Task, RuntimeError> {
    let mut request = request(runtime, 1).await;
    let mut spec = definition();
    spec.volumes = vec!["data".into()];
    spec.launch_volume = Some("data".into());
    // A guest that a daemon died without handing it its task is asked for so long, and ten seconds, to stop it.
    spec.containers[0].stop_timeout_s = Some(2);
    request.definition = runtime.register("web", spec, vec![], "root").await?.id;
    request.volume = Some(asked);
    Ok(runtime.run_task(request).await?.remove(0))
}

async fn stop(runtime: &Runtime, task: &TaskId) -> Task {
    runtime
        .stop_task(task, StopCode::UserInitiated, "enough")
        .await
        .unwrap();
    until(runtime, task, TaskStatus::Stopped).await
}

async fn status(runtime: &Runtime, name: &str) -> VolumeStatus {
    let all = runtime.volumes().await.unwrap();
    let found = all
        .into_iter()
        .find(|it| it.volume.name.as_deref() == Some(name) || it.volume.id.as_str() == name);
    found.expect("the volume is there")
}

fn text<T>(result: Result<T, RuntimeError>) -> String {
    result.map(|_| ()).unwrap_err().to_string()
}

#[tokio::test]
async fn a_volume_is_one_tasks_at_a_time_and_outlives_them() {
    let world = World::new(b"", None);
    let runtime = world.daemon().await;
    let made = runtime.create_volume(volume("db"), WAIT).await.unwrap();
    assert_eq!(made.volume.state, VolumeState::Available);
    assert!(matches!(
        runtime.create_volume(volume("db"), WAIT).await,
        Err(RuntimeError::VolumeExists(name)) if name == "db"
    ));
    let first = run_with(&runtime, launch(Some("db"))).await.unwrap();
    let own = first.volume.clone().unwrap();
    assert_eq!(
        (own.id.clone(), own.made, own.delete_on_termination),
        (made.volume.id.clone(), false, false)
    );
    let busy = format!("volume db is in use by task {}", first.id);
    assert_eq!(
        text(run_with(&runtime, launch(Some(own.id.as_str()))).await),
        busy
    );
    assert_eq!(text(runtime.snapshot_volume("db", None, WAIT).await), busy);
    assert_eq!(text(runtime.delete_volume("db").await), busy);
    until(&runtime, &first.id, TaskStatus::Running).await;
    let told = world.host.told.lock().unwrap()[0].clone();
    assert_eq!(
        (told.volumes.as_slice(), told.volume_drives[0].volume.as_str()),
        (&["data".to_owned()][..], "data")
    );
    stop(&runtime, &first.id).await;
    assert_eq!(status(&runtime, "db").await.holder, None);
    let second = run_with(&runtime, launch(Some("db"))).await.unwrap();
    until(&runtime, &second.id, TaskStatus::Running).await;
    world.host.kill(&second.id);
    until(&runtime, &second.id, TaskStatus::Stopped).await;
    assert_eq!(world.host.volumes().len(), 1);
    runtime.delete_volume("db").await.unwrap();
    assert!(world.host.volumes().is_empty() && runtime.volumes().await.unwrap().is_empty());
    // Its name is free again.
    runtime.create_volume(volume("db"), WAIT).await.unwrap();
}

#[tokio::test]
async fn what_a_volume_is_being_made_of_stays() {
    let world = World::new(b"", None);
    let runtime = world.daemon().await;
    runtime.create_volume(volume("db"), WAIT).await.unwrap();
    let snapshot = runtime
        .snapshot_volume("db", Some("monday".into()), WAIT)
        .await
        .unwrap()
        .volume;
    let copy = Volume {
        id: VolumeId::random(VolumeKind::Volume),
        kind: VolumeKind::Volume,
        name: Some("copy".into()),
        state: VolumeState::Creating,
        source: Some(snapshot.id.clone()),
        ..snapshot
    };
    let records = &runtime.shared.context.records;
    let begun = Transaction::default()
        .create(keys::volume(&copy.id), &copy)
        .unwrap();
    records.commit(begun).await.unwrap();
    assert_eq!(
        text(runtime.delete_volume("monday").await),
        "volume monday is in use by volume copy, which is being made of it"
    );
    let done = Transaction::default().delete(keys::volume(&copy.id));
    records.commit(done).await.unwrap();
    runtime.delete_volume("monday").await.unwrap();
}

#[tokio::test]
async fn a_deletion_that_comes_late_leaves_the_name_to_whoever_has_it_now() {
    let world = World::new(b"", None);
    let runtime = world.daemon().await;
    let context = &runtime.shared.context;
    let old = runtime.create_volume(volume("db"), WAIT).await.unwrap().volume;
    let seen: Record<Volume> = context
        .records
        .get(&keys::volume(&old.id))
        .await
        .unwrap()
        .unwrap();
    runtime.delete_volume("db").await.unwrap();
    let new = runtime.create_volume(volume("db"), WAIT).await.unwrap().volume;
    super::super::volumes::delete(context, &seen).await.unwrap();
    assert_eq!(status(&runtime, "db").await.volume.id, new.id);
    let refused = text(runtime.create_volume(volume("db"), WAIT).await);
    assert!(refused.contains("db"), "{refused}");
}

#[tokio::test]
async fn a_volume_that_is_made_for_a_task_goes_with_it_unless_it_is_to_stay() {
    let world = World::new(b"", None);
    let runtime = world.daemon().await;
    let first = run_with(&runtime, launch(None)).await.unwrap();
    until(&runtime, &first.id, TaskStatus::Running).await;
    assert_eq!(world.host.volumes().len(), 1);
    stop(&runtime, &first.id).await;
    assert!(world.host.volumes().is_empty() && runtime.volumes().await.unwrap().is_empty());
    let mut stays = launch(None);
    stays.delete_on_termination = Some(false);
    let second = run_with(&runtime, stays).await.unwrap();
    until(&runtime, &second.id, TaskStatus::Running).await;
    stop(&runtime, &second.id).await;
    let id = second.volume.unwrap().id;
    assert_eq!(
        status(&runtime, id.as_str()).await.volume.state,
        VolumeState::Available
    );
    // And can be another task's by its id.
    let third = run_with(&runtime, launch(Some(id.as_str()))).await.unwrap();
    until(&runtime, &third.id, TaskStatus::Running).await;
    stop(&runtime, &third.id).await;
    assert_eq!(world.host.volumes(), HashSet::from([id]));
}

#[tokio::test]
async fn snapshots_are_copied_and_never_attached() {
    let world = World::new(b"", None);
    let runtime = world.daemon().await;
    runtime.create_volume(volume("db"), WAIT).await.unwrap();
    let snapshot = runtime
        .snapshot_volume("db", Some("monday".into()), WAIT)
        .await
        .unwrap()
        .volume;
    assert_eq!(
        (snapshot.kind, snapshot.size_gib, snapshot.state),
        (VolumeKind::Snapshot, 2, VolumeState::Available)
    );
    assert_eq!(status(&runtime, "db").await.holder, None);
    let refused = text(runtime.snapshot_volume("monday", None, WAIT).await);
    assert_eq!(refused, "monday is a snapshot, not a volume");
    let mut asked = launch(Some("monday"));
    let task = run_with(&runtime, asked.clone()).await.unwrap();
    let own = task.volume.clone().unwrap();
    assert!(own.made && own.id != snapshot.id && own.size_gib == 2);
    until(&runtime, &task.id, TaskStatus::Running).await;
    stop(&runtime, &task.id).await;
    asked.size_gib = Some(3);
    let refused = text(run_with(&runtime, asked).await);
    assert_eq!(
        refused,
        "sizeInGiB must be 2, the size of snapshot monday, or left out"
    );
    let copy = CreateVolume {
        name: "copy".into(),
        size_gib: None,
        snapshot: Some(snapshot.id.to_string()),
    };
    let copy = runtime.create_volume(copy, WAIT).await.unwrap().volume;
    assert_eq!(
        (copy.kind, copy.source, copy.size_gib),
        (VolumeKind::Volume, Some(snapshot.id), 2)
    );
    runtime.delete_volume("monday").await.unwrap();
    assert_eq!(world.host.volumes().len(), 2);
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_words() {
    let world = World::new(b"", None);
    let runtime = world.daemon().await;
    runtime.create_volume(volume("db"), WAIT).await.unwrap();
    assert!(text(runtime.create_volume(volume("../x"), WAIT).await).starts_with("\"../x\" is no name"));
    for size_gib in [None, Some(0), Some(16_385)] {
        let bad = CreateVolume {
            size_gib,
            ..volume("x")
        };
        assert!(text(runtime.create_volume(bad, WAIT).await).contains("must be 1 to 16384"));
    }
    for missing in ["other", "vol-00000000000000000", "", "a/b"] {
        let refused = runtime.delete_volume(missing).await;
        assert!(
            matches!(refused, Err(RuntimeError::VolumeNotFound(_))),
            "{missing}"
        );
        assert!(matches!(
            run_with(&runtime, launch(Some(missing))).await,
            Err(RuntimeError::VolumeNotFound(_))
        ));
    }
    let asked = launch(Some("db"));
    for (change, says) in [
        (
            LaunchVolume {
                delete_on_termination: Some(true),
                ..asked.clone()
            },
            "deleteOnTermination cannot be true",
        ),
        (
            LaunchVolume {
                size_gib: Some(1),
                ..asked
            },
            "sizeInGiB must be 2",
        ),
    ] {
        let refused = text(run_with(&runtime, change).await);
        assert!(refused.starts_with(says), "{refused}");
    }
    // The host has 1 TiB.
    let large = CreateVolume {
        size_gib: Some(1023),
        ..volume("large")
    };
    let refused = runtime.create_volume(large, WAIT).await;
    assert!(
        matches!(refused, Err(RuntimeError::Capacity(shortage)) if shortage.resource == "DISK" && shortage.free == 1022)
    );
    let mut asked = launch(None);
    asked.size_gib = Some(1003);
    let refused = run_with(&runtime, asked).await;
    assert!(
        matches!(refused, Err(RuntimeError::Capacity(shortage)) if shortage.needed == 1023 && shortage.free == 1022)
    );
}

#[derive(Clone, Debug)]
enum Step {
    Create(usize),
    Snapshot(usize),
    Delete(usize),
    /// A task with one of the volumes.
    Run(usize),
    /// A task with a volume of its own, or a copy of a snapshot.
    RunNew {
        of: Option<usize>,
        stays: bool,
    },
    Stop(usize),
    Kill(usize),
}

fn steps() -> impl Strategy<Value = Vec<(Step, bool, u8)>> {
    let step = prop_oneof![
        1 => (0..2usize).prop_map(Step::Create),
        1 => (0..2usize).prop_map(Step::Snapshot),
        1 => (0..4usize).prop_map(Step::Delete),
        3 => (0..2usize).prop_map(Step::Run),
        1 => (proptest::option::of(2..4usize), any::<bool>()).prop_map(|(of, stays)| Step::RunNew { of, stays }),
        2 => (0..4usize).prop_map(Step::Stop),
        1 => (0..4usize).prop_map(Step::Kill),
    ];
    // Whether the daemon dies in it, and after how many turns.
    proptest::collection::vec((step, proptest::bool::weighted(0.4), 0..40u8), 4..14)
}

/// Two volumes and a snapshot of each.
const NAMES: [&str; 4] = ["a", "b", "snap.a", "snap.b"];

async fn carry_out(world: &World, runtime: &Runtime, step: &Step) {
    // Whatever is refused changes nothing.
    match step {
        Step::Create(name) => drop(runtime.create_volume(volume(NAMES[*name]), WAIT).await),
        Step::Snapshot(of) => drop(
            runtime
                .snapshot_volume(NAMES[*of], Some(NAMES[of + 2].to_owned()), WAIT)
                .await,
        ),
        Step::Delete(name) => drop(runtime.delete_volume(NAMES[*name]).await),
        Step::Run(of) => drop(run_with(runtime, launch(Some(NAMES[*of]))).await),
        Step::RunNew { of, stays } => {
            let mut asked = launch(of.map(|of| NAMES[of]));
            asked.delete_on_termination = Some(!stays);
            drop(run_with(runtime, asked).await);
        }
        Step::Stop(index) | Step::Kill(index) => {
            let tasks = runtime.tasks().await.unwrap();
            let Some(task) = tasks.get(*index) else { return };
            match step {
                Step::Stop(_) => drop(runtime.stop_task(&task.id, StopCode::UserInitiated, "x").await),
                _ if task.status == TaskStatus::Running => world.host.kill(&task.id),
                _ => {}
            }
        }
    }
}

/// Each task that has not stopped has its volume, and nobody else has.
async fn check(runtime: &Runtime) {
    // Twice the same, or it was looked at in the middle of a change.
    let (volumes, tasks) = loop {
        let tasks = runtime.tasks().await.unwrap();
        let volumes = runtime.volumes().await.unwrap();
        if tasks == runtime.tasks().await.unwrap() {
            break (volumes, tasks);
        }
    };
    let mut had = HashSet::new();
    for task in tasks.iter().filter(|task| task.status != TaskStatus::Stopped) {
        let own = &task.volume.as_ref().unwrap().id;
        assert!(had.insert(own.clone()), "{own} is two tasks'");
        let found = volumes.iter().find(|it| it.volume.id == *own);
        let gone = task.status == TaskStatus::Deprovisioning;
        assert!(
            found.map_or(gone, |it| it.holder == Some(Holder::Task(task.id.clone()))),
            "{own} of {} ({:?}): {found:?}",
            task.id,
            task.status
        );
    }
    for it in &volumes {
        if let Some(Holder::Task(task)) = &it.holder {
            assert!(
                had.contains(&it.volume.id),
                "{} is still {task}'s, which has stopped",
                it.volume.id
            );
        }
    }
}

/// As good as kill -9: nobody is told. Unlike one that is killed, it may have to be waited for: its supervisors, and the
/// thread of its store.
async fn crash(runtime: Runtime) {
    let context = Arc::downgrade(&runtime.shared.context);
    let records = runtime.shared.context.records.clone();
    drop(runtime);
    let gone = async {
        while context.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone)
        .await
        .expect("nothing of the daemon goes on");
    // It answers in turn: nothing that was asked for before is written after this.
    records.store().revision().await.unwrap();
}

/// All that was asked for has been done.
async fn check_settled(world: &World, runtime: &Runtime) {
    let volumes = runtime.volumes().await.unwrap();
    for it in &volumes {
        assert_eq!((it.volume.state, &it.holder), (VolumeState::Available, &None));
    }
    let known: HashSet<VolumeId> = volumes.iter().map(|it| it.volume.id.clone()).collect();
    assert_eq!(world.host.volumes(), known, "the disks that are there");
    for task in runtime.tasks().await.unwrap() {
        let own = task.volume.unwrap();
        assert!(
            !own.delete_on_termination || !known.contains(&own.id),
            "{} was to be deleted",
            own.id
        );
        assert!(
            !own.made || own.delete_on_termination || task.started_at.is_none() || known.contains(&own.id),
            "{} was to stay",
            own.id
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 50, ..ProptestConfig::default() })]

    /// The simulated host fails the test as well if two machines have one disk, or a disk is copied or removed under one.
    #[test]
    fn no_two_tasks_ever_have_one_volume_whatever_dies(steps in steps()) {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio.block_on(async {
            let world = World::new(b"", None);
            let mut runtime = world.daemon().await;
            for (step, dies, turns) in steps {
                let mut work = Box::pin(carry_out(&world, &runtime, &step));
                if !dies {
                    work.await;
                    check(&runtime).await;
                    continue;
                }
                for _ in 0..turns {
                    if futures_util::poll!(&mut work).is_ready() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                drop(work);
                crash(runtime).await;
                runtime = world.daemon().await;
                check(&runtime).await;
            }
            for task in runtime.tasks().await.unwrap() {
                stop(&runtime, &task.id).await;
            }
            check(&runtime).await;
            crash(runtime).await;
            let runtime = world.daemon().await;
            check_settled(&world, &runtime).await;
        });
    }
}
