//! The entropy device (virtio 1.3, 5.4): fills the driver's buffers from the host's generator.

use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemoryMmap};

use super::throttle::Throttle;
use super::worker::{QueueService, Served, Worker};
use super::{ActivateError, Activation, QueuePosition, VirtioDevice};
use crate::metrics::{Counters, count};

const QUEUE_SIZES: [u16; 1] = [64];
/// Most bytes that one request gets; the driver asks again if it wants more.
const MAX_BYTES: usize = 4096;

/// The device.
pub struct Rng {
    counters: Arc<Counters>,
    throttle: Arc<Throttle>,
    worker: Worker,
}

impl Rng {
    pub fn new(counters: Arc<Counters>, throttle: Arc<Throttle>, worker: Worker) -> Self {
        Self {
            counters,
            throttle,
            worker,
        }
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let counters = self.counters.clone();
        let Activation {
            memory,
            queues,
            interrupt,
            ..
        } = activation;
        let service = QueueService::new(queues, memory, interrupt)?;
        let throttle = self.throttle.clone();
        self.worker.serve(move |stop| {
            service.run(stop, &throttle, |_, memory, chain| {
                serve(memory, chain, &counters, &throttle)
            })
        })
    }

    fn stop(&mut self) -> Vec<QueuePosition> {
        self.worker.stop()
    }
}

/// Fills the chain, as far as one request goes, if the limits allow it.
fn serve(
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
    counters: &Counters,
    throttle: &Throttle,
) -> Served {
    let room: u64 = chain
        .clone()
        .writable()
        .map(|buffer| u64::from(buffer.len()))
        .sum();
    if !throttle.allows(room.min(MAX_BYTES as u64)) {
        return Served::Throttled;
    }
    let mut random = [0u8; MAX_BYTES];
    let mut written = 0;
    for descriptor in chain.writable() {
        let room = MAX_BYTES - written;
        let wanted = (descriptor.len() as usize).min(room);
        let random = &mut random[..wanted];
        if wanted == 0 {
            continue;
        }
        if !fill(random) || memory.write_slice(random, descriptor.addr()).is_err() {
            break;
        }
        written += wanted;
    }
    if written == 0 {
        count(&counters.device_errors, 1);
    }
    count(&counters.entropy_bytes, written as u64);
    throttle.charge(1, written as u64);
    // At most `MAX_BYTES`.
    Served::Done(written as u32)
}

/// Random bytes from the host (getrandom(2)).
fn fill(bytes: &mut [u8]) -> bool {
    // SAFETY: the pointer and the length are those of one live, writable slice.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // Up to 256 bytes come at once; more may be cut short by a signal, and the rest of the buffer is then zero.
    got == bytes.len() as isize
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
#[cfg(test)]
mod tests;
