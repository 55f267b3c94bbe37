//! The containers' connections to the task's endpoint, and the processes that pass them on to the host.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::socket::{SockFlag, accept4};
use nix::unistd::Pid;

use crate::container::forward;
use crate::guest::endpoint::EndpointError;
use crate::guest::power::log;

/// At once.
const MOST: usize = 16;

/// The listening socket; none on a machine that could not make one.
#[derive(Debug)]
pub(crate) struct Endpoint {
    listener: Option<OwnedFd>,
    serving: Vec<Pid>,
}

impl Endpoint {
    pub(crate) fn new(listener: Result<OwnedFd, EndpointError>) -> Self {
        let listener = listener.map_err(|error| log(&format!("containers have no endpoint: {error}")));
        Self {
            listener: listener.ok(),
            serving: Vec::new(),
        }
    }

    /// What to wait for; not while as many are served as may be: others wait in the kernel's queue, which is short.
    pub(crate) fn listener(&self) -> Option<BorrowedFd<'_>> {
        let listener = self.listener.as_ref().filter(|_| self.serving.len() < MOST);
        listener.map(AsFd::as_fd)
    }

    /// Takes one connection.
    pub(crate) fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let Ok(connection) = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) else {
            return;
        };
        // SAFETY: accept4 has just made this descriptor, and nobody else knows of it.
        let connection = unsafe { OwnedFd::from_raw_fd(connection) };
        match forward::serve(&connection) {
            Ok(pid) => self.serving.push(pid),
            Err(error) => log(&format!("cannot pass a connection on: {error}")),
        }
    }

    /// A child has ended.
    pub(crate) fn ended(&mut self, pid: Pid) {
        self.serving.retain(|serving| *serving != pid);
    }
}
