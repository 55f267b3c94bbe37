//! The block device (virtio 1.3, 5.2): one queue, served on a thread of its own, straight between the file and guest
//! memory. Where the host has io_uring, many requests are under way at once; else they are carried out in order.

#[cfg(test)]
mod depth_tests;
mod device;
mod disk;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod in_flight;
#[cfg(test)]
mod limit_tests;
mod request;
mod ring;
#[cfg(test)]
mod ring_tests;
mod service;
#[cfg(test)]
mod tests;

pub use device::Block;
pub use disk::{Disk, DiskError};

/// Size of the one queue.
const QUEUE_SIZE: u16 = 256;
/// Most data descriptors in a request: the queue, less the header and the status.
const MAX_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// Most bytes that one request moves, and those under way together: how long a device that is to stop may have to wait.
const MAX_REQUEST_BYTES: u64 = 64 << 20;
/// The unit of everything in this device.
const SECTOR_BYTES: u64 = 512;
/// Most ranges in one request to discard.
const MAX_DISCARD_RANGES: u32 = 32;
/// Most sectors in one such range (2 GiB).
const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// Most sectors in one range of zeroes (16 MiB), as they may have to be written out.
const MAX_ZERO_SECTORS: u32 = 1 << 15;
/// Most ranges of zeroes in one request, which are as much as any request may move.
const MAX_ZERO_RANGES: u32 = (MAX_REQUEST_BYTES / (MAX_ZERO_SECTORS as u64 * SECTOR_BYTES)) as u32;
