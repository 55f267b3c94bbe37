//! Which container may start, and which may be stopped: what follows from what they depend on. Pure.

use std::time::{Duration, Instant};

use berth_protocol::message::{Condition, ContainerSpec, Health};

/// How far a container has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Waiting,
    /// It is being started, runs, or is about to be started again.
    Started {
        since: Instant,
        /// Its program has been seen to run.
        runs: bool,
        health: Health,
    },
    /// None where it never ran.
    Ended {
        exit_code: Option<i32>,
    },
}

/// A container as others see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member<'a> {
    pub(crate) spec: &'a ContainerSpec,
    pub(crate) progress: Progress,
}

/// Whether a waiting container may start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    Ready,
    /// Not before something happens, or then.
    Wait(Option<Instant>),
    /// It will never be; why.
    Never(String),
}

/// Looks at what a container depends on.
pub(crate) fn readiness(spec: &ContainerSpec, members: &[Member<'_>], now: Instant) -> Readiness {
    let mut answer = Readiness::Ready;
    for dependency in &spec.depends_on {
        let other = members
            .iter()
            .find(|member| member.spec.name == dependency.container);
        let Some(other) = other else {
            return Readiness::Never(format!("there is no container {:?}", dependency.container));
        };
        match (look(other, dependency.condition, now), &answer) {
            (Readiness::Ready, _) => {}
            (Readiness::Never(reason), _) => return Readiness::Never(reason),
            (Readiness::Wait(until), Readiness::Wait(earlier)) => {
                answer = Readiness::Wait([until, *earlier].into_iter().flatten().min());
            }
            (wait, _) => answer = wait,
        }
    }
    answer
}

fn look(other: &Member<'_>, condition: Condition, now: Instant) -> Readiness {
    let name = &other.spec.name;
    match (condition, other.progress) {
        (_, Progress::Waiting) => Readiness::Wait(None),
        (_, Progress::Ended { exit_code: None }) => {
            Readiness::Never(format!("container {name:?} was not started"))
        }
        (Condition::Start, Progress::Started { runs: true, .. } | Progress::Ended { .. })
        | (Condition::Complete, Progress::Ended { .. })
        | (Condition::Success, Progress::Ended { exit_code: Some(0) })
        | (
            Condition::Healthy,
            Progress::Started {
                health: Health::Healthy,
                ..
            },
        ) => Readiness::Ready,
        (
            Condition::Success,
            Progress::Ended {
                exit_code: Some(code),
            },
        ) => Readiness::Never(format!("container {name:?} ended with the exit code {code}")),
        (Condition::Healthy, Progress::Ended { .. }) => {
            Readiness::Never(format!("container {name:?} ended before it was healthy"))
        }
        (
            Condition::Healthy,
            Progress::Started {
                health: Health::Unhealthy,
                ..
            },
        ) => Readiness::Never(format!("container {name:?} is unhealthy")),
        (Condition::Start, Progress::Started { .. }) => Readiness::Wait(None),
        (_, Progress::Started { since, .. }) => {
            let until = since + Duration::from_millis(other.spec.start_timeout_ms);
            if now < until {
                return Readiness::Wait(Some(until));
            }
            Readiness::Never(format!(
                "container {name:?} did not reach {} within {} s",
                word(condition),
                other.spec.start_timeout_ms / 1000
            ))
        }
    }
}

fn word(condition: Condition) -> &'static str {
    match condition {
        Condition::Start => "START",
        Condition::Complete => "COMPLETE",
        Condition::Success => "SUCCESS",
        Condition::Healthy => "HEALTHY",
    }
}

/// Whether no container that has not ended depends on this one.
pub(crate) fn may_stop(name: &str, members: &[Member<'_>]) -> bool {
    members.iter().all(|member| {
        matches!(member.progress, Progress::Ended { .. })
            || member
                .spec
                .depends_on
                .iter()
                .all(|dependency| dependency.container != name)
    })
}

/// A container that depends on itself, directly or by others; none if all can be put in order.
pub(crate) fn in_a_circle(specs: &[ContainerSpec]) -> Option<&str> {
    let mut left: Vec<&ContainerSpec> = specs.iter().collect();
    loop {
        let names: Vec<&str> = left.iter().map(|spec| spec.name.as_str()).collect();
        let before = left.len();
        left.retain(|spec| {
            spec.depends_on
                .iter()
                .any(|dependency| names.contains(&dependency.container.as_str()))
        });
        if left.len() == before {
            return left.first().map(|spec| spec.name.as_str());
        }
    }
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
