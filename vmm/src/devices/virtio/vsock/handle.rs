//! The host's side of the device: asking for connections to the guest, and being given those from the guest.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

/// Is told how a connection attempt ended: with one end of a stream socket pair, or with one line for a person.
/// Called on the device's thread; must not block.
pub type ConnectDone = Box<dyn FnOnce(Result<OwnedFd, String>) + Send>;

/// Is given the host port that the guest connected to, and one end of a stream socket pair; gives the socket back when
/// it cannot take it. Called on the device's thread; must not block.
pub type Listener = Box<dyn Fn(u32, OwnedFd) -> Result<(), OwnedFd> + Send + Sync>;

/// Who waits for a connection. Is told of a failure if nothing else is ever said.
pub(super) struct Caller(Option<ConnectDone>);

impl Caller {
    pub(super) fn answer(mut self, result: Result<OwnedFd, String>) {
        if let Some(done) = self.0.take() {
            done(result);
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Err("the connection ended before the guest answered".to_owned()));
        }
    }
}

/// What handles and the device's thread share.
#[derive(Default)]
pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    listener: Mutex<Option<Arc<Listener>>>,
}

#[derive(Default)]
struct Inbox {
    /// Wakes the device's thread; none while there is no thread.
    wake: Option<EventFd>,
    connects: Vec<(u32, Caller)>,
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(&self, wake: EventFd) {
        self.inbox().wake = Some(wake);
    }

    /// Nobody will look into the inbox from now on; whoever waits in it is told so.
    pub(super) fn close(&self) {
        let left = {
            let mut inbox = self.inbox();
            inbox.wake = None;
            std::mem::take(&mut inbox.connects)
        };
        drop(left);
    }

    pub(super) fn take_connects(&self) -> Vec<(u32, Caller)> {
        std::mem::take(&mut self.inbox().connects)
    }

    pub(super) fn listener(&self) -> Option<Arc<Listener>> {
        self.listener
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Connects to the guest, and gets the connections that the guest makes. Outlives resets of the device.
#[derive(Clone)]
pub struct VsockHandle {
    shared: Arc<Shared>,
}

impl VsockHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Connects to a port of the guest. `done` is called once, with an error after two seconds at the latest; when the
    /// guest has no driver for the device, at once and on this thread.
    pub fn connect(&self, port: u32, done: ConnectDone) {
        let caller = Caller(Some(done));
        let mut inbox = self.shared.inbox();
        let Some(wake) = &inbox.wake else {
            drop(inbox);
            return caller.answer(Err("the vsock device is not active".to_owned()));
        };
        // Cannot fail: the counter of an eventfd that is read on every wake-up does not overflow.
        let _ = wake.write(1);
        inbox.connects.push((port, caller));
    }

    /// Sets who gets the connections of the guest, and offers those that wait. While there is no listener, or it gives
    /// sockets back, connections wait; at most 16, further ones are refused.
    pub fn set_listener(&self, listener: Option<Listener>) {
        *self
            .shared
            .listener
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = listener.map(Arc::new);
        if let Some(wake) = &self.shared.inbox().wake {
            let _ = wake.write(1);
        }
    }
}
