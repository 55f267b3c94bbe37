//! A husk: a process in its jail with a virtual machine and its memory, which waits to be told what machine it is. What is
//! said between it and its parent, by both ends.
//!
//! The husk says [`Said::Ready`]. Then comes one packet of the parent's, a [`HandOver`] with its descriptors beside it. The end
//! of the connection before that means that nobody wants the husk any more.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::MsgFlags;
use serde::{Deserialize, Serialize};

use crate::config::{HandOver, PlaceError};
use crate::control::{MAX_MESSAGE_BYTES, packet};

#[derive(Debug, thiserror::Error)]
pub enum HuskError {
    #[error("cannot speak to the parent: {0}")]
    Parent(io::Error),
    #[error("cannot read what the machine is to be: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("cannot use what the machine is to be: {0}")]
    Places(#[from] PlaceError),
    #[error("cannot speak to the husk: {0}")]
    Husk(io::Error),
    #[error("the husk has ended")]
    Ended,
}

/// What a husk says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    Ready,
}

/// For the husk: says that it is ready and waits. None if nobody wants it any more. The descriptors are those that the hand-over
/// names, by their numbers.
pub fn wait(parent: &OwnedFd) -> Result<Option<(HandOver, Vec<OwnedFd>)>, HuskError> {
    match packet::send(parent.as_fd(), &Said::Ready, None, MsgFlags::empty()) {
        Err(error) if gone(&error) => return Ok(None),
        sent => sent.map_err(HuskError::Parent)?,
    }
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    let received = match packet::receive_with_descriptors(parent.as_fd(), &mut buffer) {
        Err(error) if gone(&error) => None,
        received => received.map_err(HuskError::Parent)?,
    };
    let Some((bytes, descriptors)) = received else {
        return Ok(None);
    };
    let placed: HandOver = serde_json::from_slice(bytes)?;
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    Ok(Some((placed.numbered(&raw)?, descriptors)))
}

/// The other end was closed, maybe with something unread in it.
fn gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

/// For the parent: waits until the husk is ready, for as long as the socket waits.
pub fn wait_until_ready(husk: BorrowedFd<'_>) -> Result<(), HuskError> {
    let mut buffer = [0; 64];
    match packet::receive_with_descriptors(husk, &mut buffer).map_err(HuskError::Husk)? {
        Some((bytes, _)) => serde_json::from_slice(bytes)
            .map(|Said::Ready| ())
            .map_err(HuskError::Malformed),
        None => Err(HuskError::Ended),
    }
}

/// For the parent: tells the husk what it is. Its descriptors, by their numbers here, must be open.
pub fn hand_over(husk: BorrowedFd<'_>, rest: HandOver) -> Result<(), HuskError> {
    let (placed, list) = rest.placed();
    packet::send_with_descriptors(husk, &placed, &list, MsgFlags::empty()).map_err(HuskError::Husk)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::thread;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SockFlag::SOCK_CLOEXEC;
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap()
    }

    fn rest(control: &File, exit: &File) -> HandOver {
        HandOver {
            log_fd: None,
            control_fd: control.as_raw_fd(),
            exit_fd: Some(exit.as_raw_fd()),
            drives: Vec::new(),
            nets: Vec::new(),
            vsock: None,
            balloon: false,
            entropy: false,
            entropy_limits: None,
            serial_fd: None,
            serial_limits: None,
        }
    }

    #[test]
    fn what_is_handed_over_arrives() {
        let (parent, husk) = pair();
        let waits = thread::spawn(move || wait(&husk).unwrap().unwrap());
        wait_until_ready(parent.as_fd()).unwrap();
        let (control, exit) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        exit.set_len(77).unwrap();
        hand_over(parent.as_fd(), rest(&control, &exit)).unwrap();
        let (rest, mut descriptors) = waits.join().unwrap();
        assert_eq!(descriptors.len(), 2);
        let exit = File::from(descriptors.pop().unwrap());
        assert_eq!(rest.exit_fd, Some(exit.as_raw_fd()));
        assert_eq!(exit.metadata().unwrap().len(), 77);
    }

    #[test]
    fn the_end_of_the_parent_is_no_error() {
        // Before and after it has heard that the husk is ready.
        for read in [false, true] {
            let (parent, husk) = pair();
            let waits = thread::spawn(move || wait(&husk).unwrap().is_none());
            if read {
                wait_until_ready(parent.as_fd()).unwrap();
            }
            drop(parent);
            assert!(waits.join().unwrap());
        }
    }

    #[test]
    fn a_husk_that_ended_is_not_ready() {
        let (parent, husk) = pair();
        drop(husk);
        assert!(matches!(wait_until_ready(parent.as_fd()), Err(HuskError::Ended)));
        let file = tempfile::tempfile().unwrap();
        let told = hand_over(parent.as_fd(), rest(&file, &file));
        assert!(matches!(told, Err(HuskError::Husk(_))));
    }

    #[test]
    fn what_is_no_hand_over_is_refused() {
        let said = |json: &'static str, files: usize| {
            let (parent, husk) = pair();
            let waits = thread::spawn(move || wait(&husk).map(drop).unwrap_err().to_string());
            let files: Vec<_> = (0..files).map(|_| tempfile::tempfile().unwrap()).collect();
            let raw: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
            let message: serde_json::Value = serde_json::from_str(json).unwrap();
            packet::send_with_descriptors(parent.as_fd(), &message, &raw, MsgFlags::empty()).unwrap();
            waits.join().unwrap()
        };
        assert!(said("{}", 0).contains("missing field `control_fd`"));
        assert!(said(r#"{"control_fd":0,"kvm_fd":0}"#, 1).contains("unknown field `kvm_fd`"));
        assert!(said(r#"{"control_fd":0}"#, 0).contains("descriptor 0 of 0 is named"));
        assert!(said(r#"{"control_fd":0}"#, 2).contains("1 of the descriptors are not named"));
    }
}
