//! virtio-net on a tap, one queue pair, with checksum and TCP segmentation offloads and mergeable receive buffers.
//!
//! Not here: who may send what. Source addresses are checked by the host's packet filter at the tap.

pub(crate) mod buffers;
mod device;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod header;
mod rx;
mod service;
mod tap;
mod tx;

pub use device::{Net, NetThrottles};

/// Size of each queue.
const QUEUE_SIZE: u16 = 256;
/// The longest frame without its header: 64 KiB of a segmentation request, behind an Ethernet and a VLAN header.
const MAX_FRAME_BYTES: usize = 65_536 + 18;
/// Frames per queue and run, after which the other queue has its turn and the driver its interrupt.
const FRAMES_PER_RUN: usize = 64;
/// Bytes to the driver, likewise: so that it works on them while the next are read.
const BYTES_PER_RUN: usize = 64 * 1024;

/// What a run of a queue leaves to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    /// There may be more to do at once.
    more: bool,
    /// The driver wants an interrupt.
    signal: bool,
}

#[cfg(test)]
pub(crate) mod driver;
#[cfg(test)]
mod limit_tests;
#[cfg(test)]
mod tap_tests;
#[cfg(test)]
mod tests;
