//! Resource limits of a container (setrlimit(2)), by the names that container engines give them.

use berth_protocol::message::{ContainerSpec, ResourceLimit};
use nix::errno::Errno;

use crate::container::handover::handed;

/// One limit as the kernel takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    resource: i32,
    soft: u64,
    hard: u64,
}

handed!(Limit { resource, soft, hard });

#[derive(Debug, thiserror::Error)]
pub(crate) enum LimitError {
    #[error("there is no resource limit {0:?}")]
    Unknown(String),
    #[error("the resource limit {0:?} is softer than it is hard")]
    Order(String),
    #[error("cannot set resource limit {resource} to {soft} and {hard}: {source}")]
    Set {
        resource: i32,
        soft: u64,
        hard: u64,
        source: Errno,
    },
}

/// By the numbers of the kernel, which differ from one C library's type to another's.
fn resource(name: &str) -> Option<i32> {
    let number = match name {
        "core" => libc::RLIMIT_CORE,
        "cpu" => libc::RLIMIT_CPU,
        "data" => libc::RLIMIT_DATA,
        "fsize" => libc::RLIMIT_FSIZE,
        "locks" => libc::RLIMIT_LOCKS,
        "memlock" => libc::RLIMIT_MEMLOCK,
        "msgqueue" => libc::RLIMIT_MSGQUEUE,
        "nice" => libc::RLIMIT_NICE,
        "nofile" => libc::RLIMIT_NOFILE,
        "nproc" => libc::RLIMIT_NPROC,
        "rss" => libc::RLIMIT_RSS,
        "rtprio" => libc::RLIMIT_RTPRIO,
        "rttime" => libc::RLIMIT_RTTIME,
        "sigpending" => libc::RLIMIT_SIGPENDING,
        "stack" => libc::RLIMIT_STACK,
        _ => return None,
    };
    i32::try_from(number).ok()
}

/// The container's limits. The kernel derives a limit of processes from memory; unless the container has its own, the cap on
/// them is the cgroup's `pids.max`.
pub(crate) fn of_container(spec: &ContainerSpec) -> Result<Vec<Limit>, LimitError> {
    let mut limits = spec.limits.iter().map(one).collect::<Result<Vec<_>, _>>()?;
    if !spec.limits.iter().any(|limit| limit.name == "nproc") {
        limits.extend(resource("nproc").map(|resource| Limit {
            resource,
            soft: libc::RLIM_INFINITY,
            hard: libc::RLIM_INFINITY,
        }));
    }
    Ok(limits)
}

fn one(limit: &ResourceLimit) -> Result<Limit, LimitError> {
    let resource = resource(&limit.name).ok_or_else(|| LimitError::Unknown(limit.name.clone()))?;
    let number = |limit: Option<u64>| limit.unwrap_or(libc::RLIM_INFINITY);
    let (soft, hard) = (number(limit.soft), number(limit.hard));
    if soft > hard {
        return Err(LimitError::Order(limit.name.clone()));
    }
    Ok(Limit { resource, soft, hard })
}

/// Of this process and all that come from it.
pub(crate) fn set(limits: &[Limit]) -> Result<(), LimitError> {
    for limit in limits {
        let new = libc::rlimit64 {
            rlim_cur: limit.soft,
            rlim_max: limit.hard,
        };
        let (own, no_old) = (0, std::ptr::null_mut::<libc::rlimit64>());
        // SAFETY: the call reads one `rlimit64`, which lives, and writes nothing.
        let done = unsafe { libc::syscall(libc::SYS_prlimit64, own, limit.resource, &raw const new, no_old) };
        Errno::result(done).map_err(|source| LimitError::Set {
            resource: limit.resource,
            soft: limit.soft,
            hard: limit.hard,
            source,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(name: &str, soft: Option<u64>, hard: Option<u64>) -> ResourceLimit {
        ResourceLimit {
            name: name.into(),
            soft,
            hard,
        }
    }

    #[test]
    fn a_missing_number_is_no_limit_and_above_all_others() {
        assert_eq!(
            one(&limit("memlock", Some(1), None)).unwrap(),
            Limit {
                resource: 8,
                soft: 1,
                hard: u64::MAX
            }
        );
        assert!(matches!(
            one(&limit("core", None, Some(1))),
            Err(LimitError::Order(_))
        ));
        assert!(matches!(
            one(&limit("as", None, None)),
            Err(LimitError::Unknown(_))
        ));
    }

    #[test]
    fn processes_have_no_limit_unless_the_container_says_one() {
        let mut spec = crate::supervisor::task_example().containers.remove(0);
        let unlimited = Limit {
            resource: 6,
            soft: u64::MAX,
            hard: u64::MAX,
        };
        assert!(of_container(&spec).unwrap().contains(&unlimited));
        spec.limits.push(limit("nproc", Some(5), Some(5)));
        assert!(!of_container(&spec).unwrap().contains(&unlimited));
    }
}
