//! The memory balloon (virtio 1.3, 5.5), as far as free page reporting: the driver tells of memory that the guest does not
//! use, and the host has it back until the guest touches it again. The balloon itself stays empty: the device never asks
//! the driver for pages, but takes those that it gives.

mod release;

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::throttle::Throttle;
use super::worker::{QueueService, Served, Worker};
use super::{ActivateError, Activation, QueuePosition, VirtioDevice};
use crate::metrics::{Counters, count};
pub use release::Backing;

/// The guest may take pages out of the balloon when it runs out of memory (5.5.3).
const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u64 = 2;
/// The guest reports memory that it does not use (5.5.3).
const VIRTIO_BALLOON_F_REPORTING: u64 = 5;
/// Inflate, deflate, and reporting, which is the third where there are no statistics (5.5.2).
const QUEUE_SIZES: [u16; 3] = [128, 128, 32];
const INFLATE: usize = 0;
const REPORTING: usize = 2;
/// Bytes of the pages that are counted in the inflate queue, whatever the guest's own are (5.5.6).
const PAGE_BYTES: u64 = 4096;
/// Most page numbers that one request is read for; Linux sends 256.
const MAX_PAGES: usize = 1024;

/// The device.
pub struct Balloon {
    backing: Backing,
    counters: Arc<Counters>,
    /// It has no limits: what a request has it do costs the guest more than the host.
    throttle: Arc<Throttle>,
    worker: Worker,
}

impl Balloon {
    /// `backing` is what the guest's memory is made of.
    pub fn new(backing: Backing, counters: Arc<Counters>, worker: Worker) -> io::Result<Self> {
        Ok(Self {
            backing,
            counters,
            throttle: Throttle::unlimited()?,
            worker,
        })
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_BALLOON_F_DEFLATE_ON_OOM
            | 1 << VIRTIO_BALLOON_F_REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// How many pages the balloon should have and has (5.5.4): none, whatever the driver says.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            queues,
            interrupt,
            ..
        } = activation;
        let service = QueueService::new(queues, memory, interrupt)?;
        let (backing, counters, throttle) = (self.backing, self.counters.clone(), self.throttle.clone());
        self.worker.serve(move |stop| {
            service.run(stop, &throttle, |queue, memory, chain| {
                serve(queue, memory, chain, backing, &counters)
            })
        })
    }

    fn stop(&mut self) -> Vec<QueuePosition> {
        self.worker.stop()
    }
}

fn serve(
    queue: usize,
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
    backing: Backing,
    counters: &Counters,
) -> Served {
    let release = |start: u64, len: u64| match release::release(memory, start, len, backing) {
        Some(bytes) => count(&counters.balloon_released_bytes, bytes),
        None => count(&counters.device_errors, 1),
    };
    match queue {
        INFLATE => {
            let (ranges, whole) = inflated(memory, chain);
            for (start, len) in ranges {
                release(start, len);
            }
            if !whole {
                count(&counters.device_errors, 1);
            }
        }
        REPORTING => {
            for buffer in chain.writable() {
                release(buffer.addr().0, u64::from(buffer.len()));
            }
        }
        // The guest takes pages back by touching them.
        _ => {}
    }
    Served::Done(0)
}

/// Addresses and lengths of the pages whose numbers are in the chain, neighbours as one, and whether all of it could be read.
fn inflated(memory: &GuestMemoryMmap, chain: DescriptorChain<&GuestMemoryMmap>) -> (Vec<(u64, u64)>, bool) {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut left = MAX_PAGES;
    for buffer in chain.readable() {
        let numbers = (buffer.len() as usize / size_of::<u32>()).min(left);
        left -= numbers;
        let mut bytes = vec![0; numbers * size_of::<u32>()];
        if memory
            .read_slice(&mut bytes, GuestAddress(buffer.addr().0))
            .is_err()
        {
            return (ranges, false);
        }
        let (numbers, _) = bytes.as_chunks();
        for number in numbers {
            let start = u64::from(u32::from_le_bytes(*number)) * PAGE_BYTES;
            match ranges.last_mut() {
                Some((first, len)) if *first + *len == start => *len += PAGE_BYTES,
                _ => ranges.push((start, PAGE_BYTES)),
            }
        }
    }
    (ranges, true)
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
#[cfg(test)]
mod tests;
