//! Properties of the state machine: whatever happens in whatever order.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::lifecycle::{self, Action, Event};
use crate::metering;
use crate::model::Timestamp;
use crate::model::definition::DefinitionId;
use crate::model::task::*;

pub(crate) fn task(containers: usize) -> Task {
    let id = TaskId::random();
    let container = |index: usize| Container {
        name: format!("c{index}"),
        image: "image".into(),
        image_digest: None,
        runtime_id: format!("{id}-{index}"),
        essential: index == 0,
        status: ContainerStatus::Pending,
        exit_code: None,
        reason: None,
        cpu: 0,
        memory_mib: None,
        memory_reservation_mib: None,
        log: None,
        health: Some(HealthStatus::Unknown),
        restarts: Some(0),
    };
    Task {
        cluster: "default".into(),
        definition: DefinitionId {
            family: "web".into(),
            revision: 1,
        },
        cpu_units: 256,
        memory_mib: 512,
        ephemeral_storage_gib: 20,
        overrides: Overrides::default(),
        group: "family:web".into(),
        started_by: None,
        enable_execute_command: false,
        tags: vec![],
        status: TaskStatus::Provisioning,
        desired_status: DesiredStatus::Running,
        stop: None,
        containers: (0..containers).map(container).collect(),
        eni: Eni {
            id: "eni-1".into(),
            attachment_id: "1".into(),
            subnet_id: "subnet-1".into(),
            vpc_id: "vpc-1".into(),
            address: Ipv4Addr::new(172, 31, 0, 4),
            mac: "02:00:00:00:00:01".into(),
            security_groups: vec![],
            internet: false,
        },
        version: 1,
        created_at: Timestamp(100),
        connectivity_at: None,
        pull_started_at: None,
        pull_stopped_at: None,
        started_at: None,
        stopping_at: None,
        execution_stopped_at: None,
        stopped_at: None,
        pauses: Pauses::default(),
        ended_at_heartbeat: false,
        protected_until: None,
        volume: None,
        isolation: Default::default(),
        id,
    }
}

fn events() -> impl Strategy<Value = Event> {
    let name = prop_oneof![
        Just("c0".to_owned()),
        Just("c1".to_owned()),
        Just("stranger".to_owned())
    ];
    prop_oneof![
        4 => Just(Event::NetworkAttached),
        4 => Just(Event::ImagesPulled { digests: BTreeMap::new() }),
        4 => name.clone().prop_map(|name| Event::ContainerStarted { name }),
        2 => (name.clone(), 0..3u32).prop_map(|(name, restarts)| Event::ContainerReported { name, health: HealthStatus::Healthy, restarts }),
        3 => (name, proptest::option::of(0..256)).prop_map(|(name, exit_code)| Event::ContainerStopped { name, exit_code, reason: None, at: None }),
        1 => Just(Event::StartTimedOut { reason: "slow".into() }),
        1 => Just(Event::Failed { reason: "because".into() }),
        1 => Just(Event::StopRequested { cause: StopCause { code: StopCode::UserInitiated, reason: "enough".into() } }),
        1 => (proptest::option::of(0..5_000u64), any::<bool>()).prop_map(|(at, at_last_heartbeat)| Event::MachineEnded {
            reason: "gone".into(), at: at.map(Timestamp), at_last_heartbeat,
        }),
        2 => Just(Event::PauseRequested),
        2 => Just(Event::ResumeRequested),
        1 => Just(Event::PauseFailed),
        1 => proptest::option::of(0..5_000u64).prop_map(|until| Event::ProtectionSet { until: until.map(Timestamp) }),
        2 => Just(Event::Released),
    ]
}

/// A task's ledger line after every event.
fn history(events: &[Event], containers: usize) -> Vec<Task> {
    let mut now = Timestamp(1_000);
    let mut history = vec![task(containers)];
    for event in events {
        now = now.plus_millis(10);
        history.push(lifecycle::step(&history[history.len() - 1], event, now));
    }
    history
}

proptest! {
    #[test]
    fn a_task_only_moves_forward_and_its_version_counts_every_change(events in proptest::collection::vec(events(), 0..40)) {
        for pair in history(&events, 2).windows(2) {
            prop_assert!(pair[0].status <= pair[1].status);
            prop_assert_eq!(pair[1].version, pair[0].version + u64::from(pair[0] != pair[1]));
        }
    }

    #[test]
    fn a_stopped_task_changes_no_more_and_says_why_it_stopped(events in proptest::collection::vec(events(), 0..60)) {
        let history = history(&events, 2);
        let last = &history[history.len() - 1];
        if let Some(stopped) = history.iter().find(|task| task.status == TaskStatus::Stopped) {
            prop_assert_eq!(stopped, last);
        }
        if last.status >= TaskStatus::Stopping {
            prop_assert!(last.stop.is_some());
            prop_assert_eq!(last.desired_status, DesiredStatus::Stopped);
        }
        if last.status >= TaskStatus::Deprovisioning {
            prop_assert!(last.containers.iter().all(|container| container.status == ContainerStatus::Stopped));
        }
    }

    #[test]
    fn the_first_cause_of_a_stop_stands(events in proptest::collection::vec(events(), 0..40)) {
        let history = history(&events, 2);
        let causes: Vec<_> = history.iter().filter_map(|task| task.stop.clone()).collect();
        prop_assert!(causes.windows(2).all(|pair| pair[0] == pair[1]));
    }

    #[test]
    fn every_state_but_the_last_asks_for_something(events in proptest::collection::vec(events(), 0..40)) {
        for task in history(&events, 2) {
            prop_assert_eq!(lifecycle::action(&task).is_none(), task.status == TaskStatus::Stopped);
        }
    }

    #[test]
    fn no_machine_runs_without_an_open_ledger_line_and_a_closed_one_stays(events in proptest::collection::vec(events(), 0..60)) {
        let mut closed = None;
        for task in history(&events, 2) {
            let line = metering::line(&task, "us-east-1");
            if lifecycle::action(&task) == Some(Action::RunMachine) {
                prop_assert!(line.as_ref().is_some_and(|line| line.opened_at <= task.created_at.plus_millis(1_000_000)));
            }
            if task.status == TaskStatus::Stopped && task.pull_started_at.is_some() {
                prop_assert!(line.as_ref().is_some_and(|line| line.closed.is_some()));
            }
            if let Some(line) = line.filter(|line| line.closed.is_some()) {
                prop_assert!(line.closed.unwrap().at >= line.opened_at);
                prop_assert_eq!(closed.get_or_insert(line.clone()), &line);
            }
        }
    }
}

fn run(events: &[Event], containers: usize) -> Task {
    history(events, containers).pop().unwrap()
}

fn started() -> Vec<Event> {
    vec![
        Event::NetworkAttached,
        Event::ImagesPulled {
            digests: BTreeMap::new(),
        },
        Event::ContainerStarted { name: "c0".into() },
    ]
}

#[test]
fn a_task_runs_once_all_its_containers_do() {
    let mut events = started();
    assert_eq!(run(&events, 2).status, TaskStatus::Activating);
    events.push(Event::ContainerStarted { name: "c1".into() });
    assert_eq!(run(&events, 2).status, TaskStatus::Running);
}

#[test]
fn a_task_stops_when_its_essential_container_exits() {
    let mut events = started();
    events.push(Event::ContainerStopped {
        name: "c0".into(),
        exit_code: Some(7),
        reason: None,
        at: None,
    });
    let task = run(&events, 1);
    assert_eq!(task.status, TaskStatus::Stopping);
    assert_eq!(task.containers[0].exit_code, Some(7));
    let cause = task.stop.unwrap();
    assert_eq!(
        (cause.code, cause.reason.as_str()),
        (
            StopCode::EssentialContainerExited,
            "Essential container in task exited"
        )
    );
}

#[test]
fn a_container_that_cannot_start_fails_the_task_with_its_reason() {
    let mut events = started();
    events.pop();
    events.push(Event::ContainerStopped {
        name: "c0".into(),
        exit_code: None,
        reason: Some("CannotStartContainerError: no such file".into()),
        at: None,
    });
    let cause = run(&events, 1).stop.unwrap();
    assert_eq!(
        (cause.code, cause.reason.as_str()),
        (
            StopCode::TaskFailedToStart,
            "CannotStartContainerError: no such file"
        )
    );
}

fn stopped(name: &str, exit_code: Option<i32>, reason: Option<&str>) -> Event {
    Event::ContainerStopped {
        name: name.into(),
        exit_code,
        reason: reason.map(str::to_owned),
        at: None,
    }
}

#[test]
fn a_container_that_is_not_essential_may_end_or_fail_to_start() {
    let mut events = started();
    events.push(stopped(
        "c1",
        None,
        Some("CannotStartContainerError: no such file"),
    ));
    let task = run(&events, 2);
    assert_eq!((task.status, &task.stop), (TaskStatus::Running, &None));
    assert_eq!(
        task.containers[1].reason.as_deref(),
        Some("CannotStartContainerError: no such file")
    );
    let mut events = started();
    events.insert(2, Event::ContainerStarted { name: "c1".into() });
    events.insert(3, stopped("c1", Some(0), None));
    let task = run(&events, 2);
    assert_eq!((task.status, &task.stop), (TaskStatus::Running, &None));
}

#[test]
fn a_task_that_failed_before_its_containers_ran_has_not_started() {
    let mut events = started();
    events.pop();
    let reason = "CannotStartContainerError: container \"c1\" ended with the exit code 3";
    events.extend([
        Event::ContainerStarted { name: "c1".into() },
        stopped("c1", Some(3), None),
        Event::Failed {
            reason: reason.into(),
        },
        stopped("c0", None, Some(reason)),
    ]);
    let task = run(&events, 2);
    assert_eq!(task.started_at, None);
    assert!(task.execution_stopped_at.is_some());
    let cause = task.stop.unwrap();
    assert_eq!(
        (cause.code, cause.reason.as_str()),
        (StopCode::TaskFailedToStart, reason)
    );
}

#[test]
fn a_task_is_as_healthy_as_its_essential_containers() {
    use HealthStatus::{Healthy, Unhealthy, Unknown};
    let mut task = task(3);
    task.containers[1].essential = true;
    let mut health = |states: [Option<HealthStatus>; 3]| {
        for (container, state) in task.containers.iter_mut().zip(states) {
            container.health = state;
        }
        task.health()
    };
    assert_eq!(health([None, None, Some(Healthy)]), Unknown);
    assert_eq!(health([Some(Healthy), None, Some(Unhealthy)]), Healthy);
    assert_eq!(health([Some(Healthy), Some(Unknown), None]), Unknown);
    assert_eq!(health([Some(Unhealthy), Some(Unknown), None]), Unhealthy);
}

#[test]
fn only_a_start_can_time_out() {
    let mut events = started();
    events.push(Event::StartTimedOut {
        reason: "slow".into(),
    });
    assert_eq!(run(&events, 1).status, TaskStatus::Running);
    events.remove(2);
    assert_eq!(run(&events, 1).stop.unwrap().reason, "slow");
}

#[test]
fn a_machine_that_dies_stops_its_running_task_with_the_reason() {
    let mut events = started();
    events.push(Event::MachineEnded {
        reason: "killed by signal 9".into(),
        at: None,
        at_last_heartbeat: false,
    });
    let task = run(&events, 1);
    assert_eq!(task.status, TaskStatus::Deprovisioning);
    assert_eq!(task.stop.unwrap().reason, "killed by signal 9");
    assert_eq!(task.containers[0].exit_code, None);
}

#[test]
fn an_end_that_was_not_seen_closes_the_line_at_the_heartbeat() {
    let mut events = started();
    events.push(Event::MachineEnded {
        reason: "gone".into(),
        at: Some(Timestamp(1_025)),
        at_last_heartbeat: true,
    });
    events.push(Event::Released);
    let line = metering::line(&run(&events, 1), "us-east-1").unwrap();
    let closed = line.closed.unwrap();
    assert_eq!((closed.at, closed.at_last_heartbeat), (Timestamp(1_025), true));
}
