//! What the supervisor waits for: ended children, the host, start pipes, output pipes.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Instant;

use berth_protocol::message::Stream;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::supervisor::container::Container;
use crate::supervisor::host::Link;

/// Something is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Children ended.
    Child,
    Host,
    /// The host connects, to run a command.
    Command,
    /// A container connects to the task's endpoint.
    Endpoint,
    /// The start pipe of this container.
    Start(usize),
    Output(usize, Stream),
    /// The first process of this container has ended.
    Ended(usize),
}

/// At most this many events are taken in one turn.
const EVENTS_PER_TURN: usize = 64;
const CHILD: u64 = 0;
const HOST: u64 = 1;
const COMMAND: u64 = 2;
const ENDPOINT: u64 = 3;
/// From here on, four for each container.
const FIRST_CONTAINER: u64 = 4;

/// An epoll that always watches exactly what is wanted now. A pipe that is not to be read is taken out altogether:
/// with no events asked for it would still report that its writers are gone, over and over.
pub(crate) struct Events {
    epoll: Epoll,
    signals: SignalFd,
    watched: BTreeMap<u64, (RawFd, EpollFlags)>,
}

impl Events {
    pub(crate) fn new() -> Result<Self, Errno> {
        let mut children = SigSet::empty();
        children.add(Signal::SIGCHLD);
        children.thread_block()?;
        let signals = SignalFd::with_flags(&children, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, CHILD))?;
        Ok(Self {
            epoll,
            signals,
            watched: BTreeMap::new(),
        })
    }

    /// The host's socket is about to be closed, which takes it out of the epoll. A new one with the same number must
    /// not be taken for it.
    pub(crate) fn forget_host(&mut self) {
        self.watched.remove(&HOST);
    }

    /// Adapts what is watched.
    pub(crate) fn watch(
        &mut self,
        link: &Link,
        commands: Option<BorrowedFd<'_>>,
        endpoint: Option<BorrowedFd<'_>>,
        containers: &[Container],
    ) -> Result<(), Errno> {
        let mut wanted: BTreeMap<u64, (BorrowedFd<'_>, EpollFlags)> = BTreeMap::new();
        if let Some((socket, events)) = link.interest() {
            wanted.insert(HOST, (socket, events));
        }
        if let Some(listener) = commands {
            wanted.insert(COMMAND, (listener, EpollFlags::EPOLLIN));
        }
        if let Some(listener) = endpoint {
            wanted.insert(ENDPOINT, (listener, EpollFlags::EPOLLIN));
        }
        for (container, first) in containers.iter().zip((FIRST_CONTAINER..).step_by(4)) {
            let pipes = [
                container.start_pipe(),
                container.stdout.wanted_pipe(),
                container.stderr.wanted_pipe(),
                container.handle(),
            ];
            for (token, pipe) in (first..).zip(pipes) {
                if let Some(pipe) = pipe {
                    wanted.insert(token, (pipe.as_fd(), EpollFlags::EPOLLIN));
                }
            }
        }
        for (token, (fd, _)) in self.watched.clone() {
            if !wanted.contains_key(&token) {
                self.watched.remove(&token);
                // SAFETY: only used as a number; closing a descriptor took it out already, hence no error.
                let _ = self.epoll.delete(unsafe { BorrowedFd::borrow_raw(fd) });
            }
        }
        for (token, (fd, flags)) in wanted {
            let now = (fd.as_raw_fd(), flags);
            match self.watched.insert(token, now) {
                Some(before) if before == now => {}
                Some((before, _)) if before == now.0 => {
                    self.epoll.modify(fd, &mut EpollEvent::new(flags, token))?;
                }
                _ => self.epoll.add(fd, EpollEvent::new(flags, token))?,
            }
        }
        Ok(())
    }

    /// Waits until something is ready, or the deadline has come.
    pub(crate) fn wait(&mut self, deadline: Option<Instant>) -> Result<Vec<Event>, Errno> {
        let timeout = deadline.map_or(EpollTimeout::NONE, |deadline| {
            let millis = deadline
                .saturating_duration_since(Instant::now())
                .as_micros()
                .div_ceil(1000);
            EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX)
        });
        let mut ready = [EpollEvent::empty(); EVENTS_PER_TURN];
        let count = match self.epoll.wait(&mut ready, timeout) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        let events: Vec<Event> = ready[..count]
            .iter()
            .filter_map(|event| decode(event.data()))
            .collect();
        if events.contains(&Event::Child) {
            // Several ended children may share one signal, so only its coming counts.
            while let Ok(Some(_)) = self.signals.read_signal() {}
        }
        Ok(events)
    }
}

fn decode(token: u64) -> Option<Event> {
    match token {
        CHILD => return Some(Event::Child),
        HOST => return Some(Event::Host),
        COMMAND => return Some(Event::Command),
        ENDPOINT => return Some(Event::Endpoint),
        _ => {}
    }
    let place = token.checked_sub(FIRST_CONTAINER)?;
    let index = usize::try_from(place / 4).ok()?;
    Some(match place % 4 {
        0 => Event::Start(index),
        1 => Event::Output(index, Stream::Stdout),
        2 => Event::Output(index, Stream::Stderr),
        _ => Event::Ended(index),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_name_containers_and_streams() {
        assert_eq!(decode(0), Some(Event::Child));
        assert_eq!(decode(1), Some(Event::Host));
        assert_eq!(decode(2), Some(Event::Command));
        assert_eq!(decode(3), Some(Event::Endpoint));
        assert_eq!(decode(4), Some(Event::Start(0)));
        assert_eq!(decode(6), Some(Event::Output(0, Stream::Stderr)));
        assert_eq!(decode(7), Some(Event::Ended(0)));
        assert_eq!(decode(9), Some(Event::Output(1, Stream::Stdout)));
    }
}
