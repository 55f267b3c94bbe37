//! The namespace of processes that the containers of a task share, where the task asks for one.
//!
//! Its first process is this binary executed anew, which does nothing but reap: it has no rights and no files, because a
//! container that may trace may look into it. A container's own first process is a child of the guest's PID 1, like any
//! other's, so that its exit code is known; its end does not end the namespace, and whoever waits for it kills what it leaves.
//!
//! A process that is a copy of PID 1 must never be seen in there. So a container is started by a process outside, executed anew
//! with this container's plan and nothing else, whose child is in there and has PID 1 for its parent (clone3(2),
//! `CLONE_PARENT`).

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{Pid, pipe2};

use crate::container::capability::CapabilitySet;
use crate::container::child::{self, ChildError, Launch, assume, step};
use crate::container::handover::{read_down, write_down};
use crate::container::join::{begin_anew, handed_over};
use crate::container::plan::Plan;
use crate::container::start::{Ends, NAMESPACES, StartError, clone_into, fork};
use crate::container::user::Identity;
use crate::container::{process, reaper, root};

/// The program names by which `main` knows what it is: the first process of the namespace, and who starts a container in it.
pub(crate) const HOLDER_NAME: &str = "berth-pids";
pub(crate) const STARTER_NAME: &str = "berth-start";
const HOLDER_NAME_C: &CStr = c"berth-pids";
const STARTER_NAME_C: &CStr = c"berth-start";
/// Nobody whom an image has.
const NOBODY: u32 = 2_147_483_646;
const READY: &[u8] = b"r";
/// Nobody but the machine's own can hold these processes up.
const PATIENCE_MS: u16 = 10_000;
const FAILED: i32 = 125;

/// The namespace, as long as its first process lives.
#[derive(Debug)]
pub(crate) struct SharedPids {
    holder: OwnedFd,
}

impl SharedPids {
    /// Makes the namespace, and waits until nothing of PID 1 is left in it.
    pub(crate) fn new() -> Result<Self, StartError> {
        let (ready, tell) = pipe2(OFlag::O_CLOEXEC).map_err(StartError::Pipe)?;
        let Some(pid) = clone_into(None, libc::CLONE_NEWPID | libc::CLONE_NEWNS)? else {
            let _ = begin_anew(HOLDER_NAME_C, &[tell.as_fd()]);
            // SAFETY: ends the process without running destructors, which are the parent's.
            unsafe { libc::_exit(FAILED) }
        };
        let holder = process::open(pid).map_err(StartError::Join)?;
        drop(tell);
        match words_of(&holder, ready)? {
            words if words == READY => Ok(Self { holder }),
            words => Err(StartError::Shared(String::from_utf8_lossy(&words).into_owned())),
        }
    }

    /// Starts the first process of a container in the namespace.
    pub(super) fn start(
        &self,
        plan: &Plan,
        cgroup: &File,
        ends: &Ends,
        start_pipe: &OwnedFd,
    ) -> Result<Pid, StartError> {
        let order = write_down(plan).map_err(StartError::Order)?;
        let (pid, tell) = pipe2(OFlag::O_CLOEXEC).map_err(StartError::Pipe)?;
        let Some(starter) = fork()? else {
            let handed = [
                order.as_fd(),
                self.holder.as_fd(),
                cgroup.as_fd(),
                ends.stdin.as_fd(),
                ends.stdout.as_fd(),
                ends.stderr.as_fd(),
                start_pipe.as_fd(),
                tell.as_fd(),
            ];
            let _ = begin_anew(STARTER_NAME_C, &handed);
            // SAFETY: ends the process without running destructors, which are the parent's.
            unsafe { libc::_exit(FAILED) }
        };
        drop(tell);
        let starter = process::open(starter).map_err(StartError::Join)?;
        let words = words_of(&starter, pid)?;
        match <[u8; 4]>::try_from(words.as_slice()).map(i32::from_ne_bytes) {
            Ok(pid) if pid > 0 => Ok(Pid::from_raw(pid)),
            _ => Err(StartError::Shared(String::from_utf8_lossy(&words).into_owned())),
        }
    }
}

/// What a process executed anew says: one thing, which is short and comes soon. The pipe's end is not waited for: a container
/// that is started holds it for a moment, in which another one may stop it.
fn words_of(process: &OwnedFd, pipe: OwnedFd) -> Result<Vec<u8>, StartError> {
    let mut wanted = [pipe.as_fd(), process.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    loop {
        match poll(&mut wanted, PATIENCE_MS) {
            Ok(0) => return Err(StartError::Shared("it takes too long".to_owned())),
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(StartError::Pipe(error)),
        }
    }
    // It ended without a word, or after one.
    fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(StartError::Pipe)?;
    let mut words = vec![0; 512];
    let count = nix::unistd::read(&pipe, &mut words).unwrap_or(0);
    words.truncate(count);
    Ok(words)
}

/// What the binary is, executed anew, as the first process of the namespace.
pub(crate) fn hold() -> i32 {
    let mut tell = File::from(handed_over(0));
    match give_everything_up() {
        Ok(()) => {
            let _ = tell.write_all(READY);
            drop(tell);
            reaper::reap_for_ever()
        }
        Err(error) => {
            let _ = tell.write_all(error.to_string().as_bytes());
            FAILED
        }
    }
}

fn give_everything_up() -> Result<(), ChildError> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).map_err(step("block signals"))?;
    let path = "/proc/self/oom_score_adj";
    fs::write(path, "-1000").map_err(|source| ChildError::Write { path, source })?;
    nix::unistd::setsid().map_err(step("start a session"))?;
    root::enter_empty()?;
    let nobody = Identity {
        uid: NOBODY,
        gid: NOBODY,
        groups: Vec::new(),
        home: String::new(),
    };
    assume(&nobody, CapabilitySet::of_bits(0))
}

/// What the binary is, executed anew, to start a container: its child goes on.
pub(crate) fn start() -> i32 {
    let [order, holder, cgroup, stdin, stdout, stderr, start_pipe, tell] =
        [0, 1, 2, 3, 4, 5, 6, 7].map(handed_over);
    let ends = Ends {
        stdin,
        stdout,
        stderr,
    };
    let mut tell = File::from(tell);
    match begin(order, &holder, &File::from(cgroup), &ends, &start_pipe) {
        Ok(pid) => {
            let _ = tell.write_all(&pid.as_raw().to_ne_bytes());
            0
        }
        Err(error) => {
            let _ = tell.write_all(error.to_string().as_bytes());
            FAILED
        }
    }
}

fn begin(
    order: OwnedFd,
    holder: &OwnedFd,
    cgroup: &File,
    ends: &Ends,
    start_pipe: &OwnedFd,
) -> Result<Pid, StartError> {
    let plan: Plan = read_down(File::from(order)).map_err(StartError::Order)?;
    setns(holder, CloneFlags::CLONE_NEWPID).map_err(StartError::Join)?;
    let others = NAMESPACES & !libc::CLONE_NEWPID;
    match clone_into(Some(cgroup), others | libc::CLONE_PARENT)? {
        Some(pid) => Ok(pid),
        None => child::run(&Launch {
            plan: &plan,
            ends,
            start_pipe: start_pipe.as_fd(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn words_are_heard_though_somebody_holds_the_pipe_and_silence_ends_with_the_process() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let handle = process::open(pid).unwrap();
        for words in [READY, b""] {
            let (pipe, held) = pipe2(OFlag::O_CLOEXEC).unwrap();
            if !words.is_empty() {
                nix::unistd::write(&held, words).unwrap();
            }
            assert_eq!(words_of(&handle, pipe).unwrap(), words);
        }
        child.wait().unwrap();
    }
}
