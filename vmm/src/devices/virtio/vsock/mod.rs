//! virtio-vsock in user space (virtio 1.3, 5.10): stream connections between a guest and its host.
//!
//! Every connection ends in one half of a socket pair; whoever holds the [`VsockHandle`] gets the other half. There
//! are no paths and no host kernel module, and nothing here knows what a port means.
//!
//! `packet` is the wire format, `connection` the rules of one connection without any I/O, `stream` a connection and its
//! socket, `table` all of them, `service` the thread with the queues.

mod connection;
mod device;
mod handle;
mod packet;
mod service;
mod socket;
mod stream;
mod table;

pub use device::Vsock;
pub use handle::{ConnectDone, Listener, VsockHandle};
#[cfg(feature = "fuzzing")]
pub use service::fuzzing::VsockQueues;

/// Size of each queue.
const QUEUE_SIZE: u16 = 256;

#[cfg(test)]
mod connection_tests;
#[cfg(test)]
mod guest;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;
