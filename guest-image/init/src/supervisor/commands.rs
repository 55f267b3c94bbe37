//! The commands that the host runs in containers: where it connects to for each, and the processes that serve them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use berth_protocol::EXEC_PORT;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, getpeername, listen, socket,
};
use nix::unistd::Pid;

use crate::container::command::{self, Target};
use crate::guest::power::log;

/// At once.
const MOST: usize = 32;

/// The listening socket, once there is a task.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    listener: Option<OwnedFd>,
    serving: Vec<Pid>,
}

impl Commands {
    /// From now on the host may connect.
    pub(crate) fn listen(&mut self) -> Result<(), Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
        bind(
            listener.as_raw_fd(),
            &VsockAddr::new(libc::VMADDR_CID_ANY, EXEC_PORT),
        )?;
        listen(&listener, Backlog::new(16)?)?;
        self.listener = Some(listener);
        Ok(())
    }

    /// What to wait for.
    pub(crate) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// Takes one connection. Only the host's: a process of a container is not to run commands in another one.
    pub(crate) fn accept(&mut self, targets: &[Target]) {
        let Some(listener) = &self.listener else { return };
        let flags = SockFlag::SOCK_CLOEXEC;
        let Ok(connection) = accept4(listener.as_raw_fd(), flags) else {
            return;
        };
        // SAFETY: accept4 has just made this descriptor, and nobody else knows of it.
        let connection = unsafe { OwnedFd::from_raw_fd(connection) };
        let from_host = getpeername::<VsockAddr>(connection.as_raw_fd())
            .is_ok_and(|peer| peer.cid() == libc::VMADDR_CID_HOST);
        if !from_host || self.serving.len() >= MOST {
            return;
        }
        match command::serve(&connection, targets) {
            Ok(pid) => self.serving.push(pid),
            Err(error) => log(&format!("cannot run a command: {error}")),
        }
    }

    /// A child has ended.
    pub(crate) fn ended(&mut self, pid: Pid) {
        self.serving.retain(|serving| *serving != pid);
    }
}
