//! The state machine of a task: `(task, event, time) -> task`, and what each state asks to be done. No I/O, no clock.
//!
//! What has to be done follows from the state alone ([`action`]), so a daemon that starts again repeats the action of
//! the stored state, and actions are idempotent. A task without a load balancer has nothing to deactivate, so it goes
//! from RUNNING straight to STOPPING.

use std::collections::BTreeMap;

use crate::model::Timestamp;
use crate::model::task::{
    Container, ContainerStatus, DesiredStatus, HealthStatus, StopCause, StopCode, Task, TaskStatus,
};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The task's interface exists.
    NetworkAttached,
    /// Every image is here; the digest of each container's manifest, by container name.
    ImagesPulled {
        digests: BTreeMap<String, String>,
    },
    ContainerStarted {
        name: String,
    },
    /// What its health check has found, and how often it was started again.
    ContainerReported {
        name: String,
        health: HealthStatus,
        restarts: u32,
    },
    /// `at` is when, if it is not now.
    ContainerStopped {
        name: String,
        exit_code: Option<i32>,
        reason: Option<String>,
        at: Option<Timestamp>,
    },
    /// The action of the current state cannot succeed.
    Failed {
        reason: String,
    },
    /// The time for starting the machine and its containers is up.
    StartTimedOut {
        reason: String,
    },
    StopRequested {
        cause: StopCause,
    },
    PauseRequested,
    ResumeRequested,
    /// It is protected until then, or no longer.
    ProtectionSet {
        until: Option<Timestamp>,
    },
    /// The machine could not be paused: it runs on.
    PauseFailed,
    /// The machine ended, whoever ended it. `at` is when, if it is not now.
    MachineEnded {
        reason: String,
        at: Option<Timestamp>,
        at_last_heartbeat: bool,
    },
    /// Machine, interface and disks are gone.
    Released,
}

/// What a state asks for. Each is idempotent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    AttachNetwork,
    PullImages,
    /// Start the machine and the containers, or find the machine that was started before, and follow it.
    RunMachine,
    /// Have the machine stand still, which is found if need be, and follow it.
    PauseMachine,
    /// End the containers, then the machine.
    StopMachine,
    Release,
}

/// What the state of `task` asks for; nothing once it is stopped.
pub fn action(task: &Task) -> Option<Action> {
    match task.status {
        TaskStatus::Provisioning => Some(Action::AttachNetwork),
        TaskStatus::Pending => Some(Action::PullImages),
        TaskStatus::Running if task.pauses.since.is_some() => Some(Action::PauseMachine),
        TaskStatus::Activating | TaskStatus::Running => Some(Action::RunMachine),
        TaskStatus::Deactivating | TaskStatus::Stopping => Some(Action::StopMachine),
        TaskStatus::Deprovisioning => Some(Action::Release),
        TaskStatus::Stopped => None,
    }
}

/// The task after `event`; the same task if the event changes nothing (late, repeated or unknown).
pub fn step(task: &Task, event: &Event, now: Timestamp) -> Task {
    let mut next = task.clone();
    match event {
        Event::NetworkAttached if task.status == TaskStatus::Provisioning => {
            next.status = TaskStatus::Pending;
            next.connectivity_at = Some(now);
            next.pull_started_at = Some(now);
        }
        Event::ImagesPulled { digests } if task.status == TaskStatus::Pending => {
            next.status = TaskStatus::Activating;
            next.pull_stopped_at = Some(now);
            for container in &mut next.containers {
                container.image_digest = digests.get(&container.name).cloned();
            }
        }
        Event::ContainerStarted { name } => container_started(&mut next, name, now),
        Event::ContainerReported {
            name,
            health,
            restarts,
        } => container_reported(&mut next, name, *health, *restarts),
        Event::ContainerStopped {
            name,
            exit_code,
            reason,
            at,
        } => {
            let at = not_before_pull(&next, at.unwrap_or(now), now);
            container_stopped(&mut next, name, *exit_code, reason.as_deref(), at);
        }
        Event::Failed { reason } => {
            if task.status == TaskStatus::Pending {
                next.pull_stopped_at = Some(now);
            }
            begin_stop(&mut next, StopCode::TaskFailedToStart, reason, now);
        }
        Event::StartTimedOut { reason } if task.status == TaskStatus::Activating => {
            begin_stop(&mut next, StopCode::TaskFailedToStart, reason, now);
        }
        Event::PauseRequested if task.status == TaskStatus::Running => {
            next.pauses.since = task.pauses.since.or(Some(now));
        }
        Event::ResumeRequested => next.pauses.end(now),
        // What was no pause costs as much as none.
        Event::PauseFailed => next.pauses.since = None,
        Event::ProtectionSet { until } if task.status < TaskStatus::Stopped => next.protected_until = *until,
        Event::StopRequested { cause } => begin_stop(&mut next, cause.code, &cause.reason, now),
        Event::MachineEnded {
            reason,
            at,
            at_last_heartbeat,
        } => {
            machine_ended(&mut next, reason, at.unwrap_or(now), *at_last_heartbeat, now);
        }
        Event::Released if task.status == TaskStatus::Deprovisioning => {
            next.status = TaskStatus::Stopped;
            next.stopped_at = Some(now);
        }
        Event::NetworkAttached
        | Event::ImagesPulled { .. }
        | Event::StartTimedOut { .. }
        | Event::PauseRequested
        | Event::ProtectionSet { .. }
        | Event::Released => {}
    }
    if next != *task {
        next.version = task.version.saturating_add(1);
    }
    next
}

fn running(containers: &mut [Container], name: &str, from: ContainerStatus) -> Option<usize> {
    containers
        .iter()
        .position(|container| container.name == name && container.status == from)
}

fn container_started(task: &mut Task, name: &str, now: Timestamp) {
    if !matches!(task.status, TaskStatus::Activating | TaskStatus::Stopping) {
        return;
    }
    if let Some(index) = running(&mut task.containers, name, ContainerStatus::Pending) {
        task.containers[index].status = ContainerStatus::Running;
    }
    running_if_all_are_started(task, now);
}

fn running_if_all_are_started(task: &mut Task, now: Timestamp) {
    let all_started = task
        .containers
        .iter()
        .all(|container| container.status != ContainerStatus::Pending);
    if task.status == TaskStatus::Activating && all_started {
        task.status = TaskStatus::Running;
        task.started_at = Some(now);
    }
}

fn container_reported(task: &mut Task, name: &str, health: HealthStatus, restarts: u32) {
    let Some(index) = running(&mut task.containers, name, ContainerStatus::Running) else {
        return;
    };
    let container = &mut task.containers[index];
    // Of what it has not, a guest has nothing to tell.
    container.health = container.health.map(|_| health);
    container.restarts = container.restarts.map(|_| restarts);
}

fn container_stopped(
    task: &mut Task,
    name: &str,
    exit_code: Option<i32>,
    reason: Option<&str>,
    now: Timestamp,
) {
    if !matches!(
        task.status,
        TaskStatus::Activating | TaskStatus::Running | TaskStatus::Stopping
    ) {
        return;
    }
    let Some(container) = task
        .containers
        .iter_mut()
        .find(|container| container.name == name && container.status != ContainerStatus::Stopped)
    else {
        return;
    };
    let never_ran = container.status == ContainerStatus::Pending && exit_code.is_none();
    // Without a reason there is none of its own: the task is ending.
    let failed = never_ran && reason.is_some();
    container.status = ContainerStatus::Stopped;
    container.exit_code = exit_code;
    container.reason = reason.map(str::to_owned);
    let essential = container.essential;
    let all_stopped = task
        .containers
        .iter()
        .all(|container| container.status == ContainerStatus::Stopped);
    if failed && (essential || all_stopped) {
        begin_stop(task, StopCode::TaskFailedToStart, reason.unwrap_or_default(), now);
    } else if !never_ran && essential || all_stopped {
        // A container may end before all were seen to run.
        if task.status < TaskStatus::Stopping {
            task.started_at = task.started_at.or(Some(now));
        }
        begin_stop(
            task,
            StopCode::EssentialContainerExited,
            "Essential container in task exited",
            now,
        );
    }
    if all_stopped {
        task.execution_stopped_at = task.execution_stopped_at.or(Some(now));
    }
    running_if_all_are_started(task, now);
}

/// The first cause stands; a task that is stopping already goes on with it.
fn begin_stop(task: &mut Task, code: StopCode, reason: &str, now: Timestamp) {
    if task.status >= TaskStatus::Stopping {
        return;
    }
    task.desired_status = DesiredStatus::Stopped;
    task.stop = Some(StopCause {
        code,
        reason: reason.to_owned(),
    });
    task.stopping_at = Some(now);
    task.pauses.end(now);
    task.status = TaskStatus::Stopping;
}

/// Time never runs backwards within one task, nor ahead, whatever a file or a guest says.
fn not_before_pull(task: &Task, at: Timestamp, now: Timestamp) -> Timestamp {
    let earliest = task.pull_started_at.unwrap_or(task.created_at);
    at.max(earliest).min(now.max(earliest))
}

fn machine_ended(task: &mut Task, reason: &str, at: Timestamp, at_last_heartbeat: bool, now: Timestamp) {
    if task.status >= TaskStatus::Deprovisioning {
        return;
    }
    let code = match task.started_at {
        Some(_) => StopCode::EssentialContainerExited,
        None => StopCode::TaskFailedToStart,
    };
    task.pauses.end(at);
    begin_stop(task, code, reason, now);
    for container in &mut task.containers {
        if container.status == ContainerStatus::Running {
            container.reason = Some(reason.to_owned());
        }
        container.status = ContainerStatus::Stopped;
    }
    if task.execution_stopped_at.is_none() {
        task.execution_stopped_at = Some(not_before_pull(task, at, now));
        task.ended_at_heartbeat = at_last_heartbeat;
    }
    task.status = TaskStatus::Deprovisioning;
}
