//! Containers start when what they wait for has come, never when it cannot come any more, and stop in reverse.

use berth_protocol::message::Dependency;
use proptest::prelude::*;

use super::*;
use crate::supervisor::task::example;

fn spec(name: &str, depends_on: &[(&str, Condition)]) -> ContainerSpec {
    let mut spec = example().containers.remove(0);
    spec.name = name.to_owned();
    spec.start_timeout_ms = 60_000;
    spec.depends_on = depends_on
        .iter()
        .map(|(container, condition)| Dependency {
            container: (*container).to_owned(),
            condition: *condition,
        })
        .collect();
    spec
}

fn started(since: Instant, runs: bool, health: Health) -> Progress {
    Progress::Started { since, runs, health }
}

/// Whether a container that waits for `condition` of another may start.
fn waiting_for(condition: Condition, progress: Progress, now: Instant) -> Readiness {
    let (waits, other) = (spec("app", &[("db", condition)]), spec("db", &[]));
    let members = [
        Member {
            spec: &waits,
            progress: Progress::Waiting,
        },
        Member {
            spec: &other,
            progress,
        },
    ];
    readiness(&waits, &members, now)
}

#[test]
fn each_condition_is_met_by_what_it_says_and_nothing_before() {
    let now = Instant::now();
    let runs = started(now, true, Health::Unknown);
    let until = Some(now + Duration::from_secs(60));
    for (condition, progress, expected) in [
        (Condition::Start, Progress::Waiting, Readiness::Wait(None)),
        (
            Condition::Start,
            started(now, false, Health::Unknown),
            Readiness::Wait(None),
        ),
        (Condition::Start, runs, Readiness::Ready),
        (
            Condition::Start,
            Progress::Ended { exit_code: Some(9) },
            Readiness::Ready,
        ),
        (Condition::Complete, runs, Readiness::Wait(until)),
        (
            Condition::Complete,
            Progress::Ended { exit_code: Some(9) },
            Readiness::Ready,
        ),
        (Condition::Success, runs, Readiness::Wait(until)),
        (
            Condition::Success,
            Progress::Ended { exit_code: Some(0) },
            Readiness::Ready,
        ),
        (Condition::Healthy, runs, Readiness::Wait(until)),
        (
            Condition::Healthy,
            started(now, true, Health::Healthy),
            Readiness::Ready,
        ),
    ] {
        assert_eq!(
            waiting_for(condition, progress, now),
            expected,
            "{condition:?} {progress:?}"
        );
    }
}

#[test]
fn what_cannot_come_any_more_is_not_waited_for() {
    let now = Instant::now();
    let late = now + Duration::from_secs(60);
    let runs = started(now, true, Health::Unknown);
    for (condition, progress, at, text) in [
        (
            Condition::Success,
            Progress::Ended { exit_code: Some(3) },
            now,
            "container \"db\" ended with the exit code 3",
        ),
        (
            Condition::Healthy,
            Progress::Ended { exit_code: Some(0) },
            now,
            "container \"db\" ended before it was healthy",
        ),
        (
            Condition::Healthy,
            started(now, true, Health::Unhealthy),
            now,
            "container \"db\" is unhealthy",
        ),
        (
            Condition::Start,
            Progress::Ended { exit_code: None },
            now,
            "container \"db\" was not started",
        ),
        (
            Condition::Healthy,
            runs,
            late,
            "container \"db\" did not reach HEALTHY within 60 s",
        ),
        (
            Condition::Success,
            runs,
            late,
            "container \"db\" did not reach SUCCESS within 60 s",
        ),
    ] {
        assert_eq!(
            waiting_for(condition, progress, at),
            Readiness::Never(text.to_owned())
        );
    }
}

#[test]
fn all_dependencies_count_and_the_nearest_end_of_waiting_is_told() {
    let now = Instant::now();
    let first = spec("a", &[]);
    let mut second = spec("b", &[]);
    second.start_timeout_ms = 5_000;
    let waits = spec("app", &[("a", Condition::Complete), ("b", Condition::Complete)]);
    let runs = started(now, true, Health::Unknown);
    let look = |first_progress, second_progress| {
        let members = [
            Member {
                spec: &first,
                progress: first_progress,
            },
            Member {
                spec: &second,
                progress: second_progress,
            },
        ];
        readiness(&waits, &members, now)
    };
    let nearest = Some(now + Duration::from_secs(5));
    assert_eq!(look(runs, runs), Readiness::Wait(nearest));
    let ended = Progress::Ended { exit_code: Some(0) };
    assert_eq!(look(ended, runs), Readiness::Wait(nearest));
    assert_eq!(look(ended, ended), Readiness::Ready);
    assert!(matches!(
        look(Progress::Ended { exit_code: None }, runs),
        Readiness::Never(_)
    ));
}

#[test]
fn circles_are_found() {
    let start = Condition::Start;
    let fine = [
        spec("a", &[("b", start), ("c", start)]),
        spec("b", &[("c", start)]),
        spec("c", &[]),
    ];
    assert_eq!(in_a_circle(&fine), None);
    assert_eq!(in_a_circle(&[spec("a", &[("a", start)])]), Some("a"));
    let circle = [
        spec("a", &[]),
        spec("b", &[("a", start), ("c", start)]),
        spec("c", &[("b", start)]),
    ];
    assert_eq!(in_a_circle(&circle), Some("b"));
}

proptest! {
    /// Whatever depends on whatever: stopping those that may be stopped, over and over, stops all, and each before all that
    /// it depends on.
    #[test]
    fn everything_can_be_stopped_and_in_reverse(edges in prop::collection::vec((0usize..8, 0usize..8), 0..20)) {
        let name = |index: usize| format!("c{index}");
        let specs: Vec<ContainerSpec> = (0..8usize).map(|index| {
            // Only ever on earlier ones: no circles.
            let on: Vec<String> = edges.iter().filter(|(from, to)| *from == index && to < from).map(|(_, to)| name(*to)).collect();
            let on: Vec<(&str, Condition)> = on.iter().map(|other| (other.as_str(), Condition::Start)).collect();
            spec(&name(index), &on)
        }).collect();
        prop_assert_eq!(in_a_circle(&specs), None);
        let runs = started(Instant::now(), true, Health::Unknown);
        let mut progress = [runs; 8];
        let mut stopped: Vec<usize> = Vec::new();
        while stopped.len() < 8 {
            let members: Vec<Member<'_>> = specs.iter().zip(progress).map(|(spec, progress)| Member { spec, progress }).collect();
            let next: Vec<usize> = (0..8).filter(|index| !stopped.contains(index) && may_stop(&name(*index), &members)).collect();
            prop_assert!(!next.is_empty());
            for index in &next {
                for (from, to) in &edges {
                    prop_assert!(to >= from || to != index || stopped.contains(from), "{} was stopped before {}", to, from);
                }
            }
            for index in next {
                progress[index] = Progress::Ended { exit_code: Some(0) };
                stopped.push(index);
            }
        }
    }
}
