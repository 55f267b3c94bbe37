//! Whole tasks on a simulated host: states, ledger, logs and what a crash of the daemon leaves of them.

mod clusters;
mod endpoint;
mod hand_over;
mod idle;
mod logs;
mod pulls;
mod secrets;
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use super::open::{Parts, make_defaults};
use super::*;
use crate::clock::{Clock, SimulatedClock};
use crate::logs::Outputs;
use crate::model::Timestamp;
use crate::model::bill::BillQuery;
use crate::model::definition::{ContainerDefinition, DefinitionSpec, LogConfiguration};
use crate::model::log::LogQuery;
use crate::model::task::{StopCode, TaskStatus};
use crate::store::{Records, SqliteStore};
use crate::task::simulated::{Script, SimulatedHost};

/// A host, a disk and a clock, on which daemons come and go.
struct World {
    dir: tempfile::TempDir,
    host: Arc<SimulatedHost>,
    clock: Arc<SimulatedClock>,
}

impl World {
    fn new(output: &[u8], exit_code: Option<i32>) -> World {
        World {
            // What is tested is not whether a disk keeps what it was told to.
            dir: tempfile::tempdir_in("/dev/shm")
                .or_else(|_| tempfile::tempdir())
                .unwrap(),
            host: Arc::new(SimulatedHost::new(Script {
                output: output.to_vec(),
                exit_code,
            })),
            clock: Arc::new(SimulatedClock::at(Timestamp(1_700_000_000_000))),
        }
    }

    async fn daemon(&self) -> Runtime {
        let store = SqliteStore::open(&self.dir.path().join("state.db")).unwrap();
        let records = Records::new(Arc::new(store));
        make_defaults(&records, "us-east-1", self.clock.now())
            .await
            .unwrap();
        let parts = Parts {
            records,
            host: Arc::clone(&self.host) as _,
            outputs: Outputs::open(&self.dir.path().join("logs")).unwrap(),
            key_file: self.dir.path().join("secrets.keys"),
            clock: Arc::clone(&self.clock) as _,
            prices: PriceList::built_in().unwrap(),
            region: "us-east-1".into(),
            settings: Settings {
                minimum_billed_seconds: 60,
                stopped_task_retention: Duration::from_secs(3600),
                overcommit: Overcommit::default(),
            },
        };
        Runtime::assemble(parts).await.unwrap()
    }
}

pub(crate) fn definition() -> DefinitionSpec {
    DefinitionSpec {
        cpu_units: 256,
        memory_mib: 512,
        ephemeral_storage_gib: None,
        execution_role_arn: Some("arn:aws:iam::000000000000:role/run".into()),
        task_role_arn: None,
        network_mode: Some("awsvpc".into()),
        requires_compatibilities: vec!["FARGATE".into()],
        operating_system_family: None,
        cpu_architecture: None,
        containers: vec![ContainerDefinition {
            name: "app".into(),
            image: "image".into(),
            repository_credentials: None,
            essential: true,
            cpu: 0,
            memory_mib: None,
            memory_reservation_mib: None,
            entry_point: None,
            command: None,
            environment_files: vec![],
            environment: vec![],
            secrets: vec![],
            working_directory: None,
            user: None,
            readonly_root_filesystem: false,
            port_mappings: vec![],
            stop_timeout_s: None,
            start_timeout_s: None,
            ulimits: vec![],
            init_process_enabled: None,
            capabilities_add: vec![],
            capabilities_drop: vec![],
            docker_labels: Default::default(),
            log: Some(LogConfiguration {
                group: "/app".into(),
                stream_prefix: "run".into(),
                options: Default::default(),
            }),
            depends_on: vec![],
            health_check: None,
            restart_policy: None,
            mount_points: vec![],
            volumes_from: vec![],
            tmpfs: vec![],
            system_controls: vec![],
            interactive: None,
            pseudo_terminal: None,
        }],
        volumes: vec![],
        launch_volume: None,
        share_pids: false,
    }
}

async fn request(runtime: &Runtime, count: u32) -> RunTask {
    let definition = runtime
        .register("web", definition(), vec![], "root")
        .await
        .unwrap();
    RunTask {
        cluster: "default".into(),
        definition: definition.id,
        count,
        overrides: Overrides::default(),
        subnet_id: None,
        security_groups: vec![],
        internet: false,
        group: None,
        started_by: None,
        enable_execute_command: false,
        tags: vec![],
        client_token: None,
        volume: None,
    }
}

async fn run_one(runtime: &Runtime) -> TaskId {
    let request = request(runtime, 1).await;
    runtime.run_task(request).await.unwrap().remove(0).id
}

async fn until(runtime: &Runtime, id: &TaskId, status: TaskStatus) -> Task {
    let wait = async {
        let mut task = runtime.task(id).await.unwrap();
        while task.status < status {
            task = runtime
                .task_after(id, task.version, Duration::from_secs(1))
                .await
                .unwrap();
        }
        task
    };
    tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .expect("the state is reached in time")
}

async fn text(runtime: &Runtime, task: &Task) -> Vec<u8> {
    let log = task.containers[0].log.clone().unwrap();
    let query = LogQuery {
        position: None,
        forward: true,
        start: None,
        end: None,
        from_order: None,
        limit: usize::MAX,
        max_bytes: usize::MAX,
        max_scanned_bytes: u64::MAX,
    };
    let page = runtime.log_events(&log.group, &log.stream, query).await.unwrap();
    page.events
        .into_iter()
        .flat_map(|event| [event.bytes, vec![b'\n'; usize::from(event.newline)]].concat())
        .collect()
}

#[tokio::test]
async fn a_task_runs_ends_with_its_exit_code_and_leaves_nothing_but_its_record_log_and_bill() {
    let world = World::new(b"one\ntwo", Some(7));
    let runtime = world.daemon().await;
    let id = run_one(&runtime).await;
    let task = until(&runtime, &id, TaskStatus::Stopped).await;
    assert_eq!(task.containers[0].exit_code, Some(7));
    assert_eq!(
        task.stop.as_ref().unwrap().code,
        StopCode::EssentialContainerExited
    );
    assert_eq!(text(&runtime, &task).await, b"one\ntwo");
    assert_eq!(world.host.left(), (0, 0));
    let (subnet, all) = (runtime.subnets().await.unwrap().remove(0).id, 4096 - 5);
    assert_eq!(runtime.available_addresses(&subnet).await.unwrap(), all);
    let bill = runtime.bill(BillQuery::default()).await.unwrap();
    assert_eq!(
        (bill.lines.len(), bill.lines[0].billed_seconds, bill.lines[0].open),
        (1, 60, false)
    );
}

#[tokio::test]
async fn sixty_one_and_a_fifth_seconds_are_billed_as_sixty_two() {
    let world = World::new(b"", None);
    let runtime = world.daemon().await;
    let id = run_one(&runtime).await;
    until(&runtime, &id, TaskStatus::Running).await;
    world.clock.advance_millis(61_200);
    let open = runtime.bill(BillQuery::default()).await.unwrap();
    assert!(open.lines[0].open);
    runtime
        .stop_task(&id, StopCode::UserInitiated, "enough")
        .await
        .unwrap();
    until(&runtime, &id, TaskStatus::Stopped).await;
    world.clock.advance_millis(100_000);
    let bill = runtime
        .bill(BillQuery {
            task: Some(id),
            since: None,
        })
        .await
        .unwrap();
    assert_eq!(bill.lines[0].billed_seconds, 62);
    assert_eq!(bill.total_nanos, 174_289 + 38_276);
    assert_eq!(open.total_nanos, bill.total_nanos);
}

#[tokio::test]
async fn a_paused_task_stands_still_through_a_crash_and_is_billed_as_such() {
    let world = World::new(b"", None);
    let first = world.daemon().await;
    let id = run_one(&first).await;
    until(&first, &id, TaskStatus::Running).await;
    world.clock.advance_millis(70_000);
    let task = first.pause_task(&id).await.unwrap();
    assert_eq!(task.pauses.since, Some(world.clock.now()));
    until_paused(&world, &id, true).await;
    assert_eq!(
        first.pause_task(&id).await.unwrap(),
        task,
        "pausing twice is as good as once"
    );
    // As good as kill -9: nobody is told.
    drop(first);
    world.host.resume(&id);
    world.clock.advance_millis(30_000);
    let second = world.daemon().await;
    until_paused(&world, &id, true).await;
    let task = second.resume_task(&id).await.unwrap();
    assert_eq!((task.pauses.since, task.pauses.ended_ms), (None, 30_000));
    until_paused(&world, &id, false).await;
    world.clock.advance_millis(20_000);
    second.pause_task(&id).await.unwrap();
    world.clock.advance_millis(15_500);
    second
        .stop_task(&id, StopCode::UserInitiated, "enough")
        .await
        .unwrap();
    let task = until(&second, &id, TaskStatus::Stopped).await;
    // Its container was told to stop, and did.
    assert_eq!(task.containers[0].exit_code, Some(143));
    let refused = second.pause_task(&id).await;
    assert!(
        matches!(refused, Err(RuntimeError::NotRunning(TaskStatus::Stopped))),
        "{refused:?}"
    );
    let bill = second.bill(BillQuery::default()).await.unwrap();
    assert_eq!(
        (bill.lines[0].billed_seconds, bill.lines[0].paused_seconds),
        (136, 45)
    );
}

async fn until_paused(world: &World, id: &TaskId, paused: bool) {
    let wait = async {
        while world.host.is_paused(id) != paused {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .expect("the machine is told in time");
}

#[tokio::test]
async fn a_running_task_outlives_the_daemon_and_its_output_is_neither_lost_nor_repeated() {
    let output: Vec<u8> = (0..5_000)
        .flat_map(|line| format!("line {line}\n").into_bytes())
        .collect();
    let world = World::new(&output, None);
    let first = world.daemon().await;
    let id = run_one(&first).await;
    until(&first, &id, TaskStatus::Running).await;
    for _ in 0..3 {
        // As good as kill -9: nobody is told.
        drop(world.daemon().await);
    }
    drop(first);
    let second = world.daemon().await;
    until(&second, &id, TaskStatus::Running).await;
    second
        .stop_task(&id, StopCode::UserInitiated, "enough")
        .await
        .unwrap();
    let task = until(&second, &id, TaskStatus::Stopped).await;
    assert_eq!(task.stop.as_ref().unwrap().reason, "enough");
    assert_eq!(text(&second, &task).await, output);
    assert_eq!(world.host.left(), (0, 0));
}

#[tokio::test]
async fn a_machine_that_died_while_nobody_watched_closes_its_line_at_the_last_heartbeat() {
    let world = World::new(b"", None);
    let first = world.daemon().await;
    let id = run_one(&first).await;
    until(&first, &id, TaskStatus::Running).await;
    // The heartbeat is written when a daemon starts; this is the second before it goes.
    world.clock.advance_millis(90_000);
    drop(first);
    let second = world.daemon().await;
    until(&second, &id, TaskStatus::Running).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(second);
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.host.kill(&id);
    world.clock.advance_millis(1_000_000);
    let third = world.daemon().await;
    let task = until(&third, &id, TaskStatus::Stopped).await;
    assert_eq!(task.stop.unwrap().reason, "killed by signal 9");
    let bill = third.bill(BillQuery::default()).await.unwrap();
    assert_eq!(bill.lines[0].billed_seconds, 90);
    assert!(bill.lines[0].line.closed.unwrap().at_last_heartbeat);
}

#[tokio::test]
async fn a_container_that_ended_while_nobody_watched_is_billed_to_its_end() {
    let world = World::new(b"", None);
    let first = world.daemon().await;
    let id = run_one(&first).await;
    until(&first, &id, TaskStatus::Running).await;
    drop(first);
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.clock.advance_millis(90_000);
    let ended = world.clock.now();
    world.host.exit(&id, 9, ended);
    world.clock.advance_millis(1_000_000);
    let second = world.daemon().await;
    let task = until(&second, &id, TaskStatus::Stopped).await;
    assert_eq!(task.containers[0].exit_code, Some(9));
    assert_eq!(task.execution_stopped_at, Some(ended));
}

#[tokio::test]
async fn a_machine_killed_under_the_daemon_stops_its_task_with_the_reason() {
    let world = World::new(b"", None);
    let runtime = world.daemon().await;
    let id = run_one(&runtime).await;
    until(&runtime, &id, TaskStatus::Running).await;
    world.host.kill(&id);
    let task = until(&runtime, &id, TaskStatus::Stopped).await;
    assert_eq!(task.stop.unwrap().reason, "killed by signal 9");
    assert_eq!(task.containers[0].exit_code, None);
}

#[tokio::test]
async fn a_client_token_answers_the_same_request_with_the_same_tasks_and_another_with_a_conflict() {
    let world = World::new(b"", None);
    let runtime = world.daemon().await;
    let mut request = request(&runtime, 2).await;
    request.client_token = Some(("token".into(), "digest".into()));
    let ids = |tasks: Vec<Task>| tasks.into_iter().map(|task| task.id).collect::<Vec<_>>();
    let first = ids(runtime.run_task(request.clone()).await.unwrap());
    assert_eq!(ids(runtime.run_task(request.clone()).await.unwrap()), first);
    request.client_token = Some(("token".into(), "another".into()));
    match runtime.run_task(request).await {
        Err(RuntimeError::TokenConflict(tasks)) => assert_eq!(ids(tasks), first),
        other => panic!("expected a conflict, not {other:?}"),
    }
}

#[tokio::test]
async fn memory_is_never_promised_twice() {
    let world = World::new(b"", None);
    let runtime = world.daemon().await;
    let mut request = request(&runtime, 10).await;
    runtime.run_task(request.clone()).await.unwrap();
    request.count = 5;
    assert!(matches!(
        runtime.run_task(request).await,
        Err(RuntimeError::Capacity(Shortage {
            resource: "MEMORY",
            ..
        }))
    ));
    assert_eq!(runtime.tasks().await.unwrap().len(), 10, "all or none");
}

#[tokio::test]
async fn a_cluster_with_tasks_cannot_be_deleted_and_one_without_can() {
    let world = World::new(b"", None);
    let runtime = world.daemon().await;
    let id = run_one(&runtime).await;
    assert!(matches!(
        runtime.delete_cluster("default").await,
        Err(RuntimeError::ClusterHasTasks { tasks: 1, .. })
    ));
    runtime
        .stop_task(&id, StopCode::UserInitiated, "enough")
        .await
        .unwrap();
    until(&runtime, &id, TaskStatus::Stopped).await;
    runtime.delete_cluster("default").await.unwrap();
    let refused = runtime.run_task(request(&runtime, 1).await).await;
    assert!(matches!(refused, Err(RuntimeError::ClusterNotFound(_))));
}
