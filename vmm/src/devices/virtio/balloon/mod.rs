//! The memory balloon (virtio 1.3, 5.5). The host says how much memory is to be in it, the driver puts that much in, and the
//! host has it back until the guest takes it out: when it is told to, or by itself when it runs out of memory. Beside that
//! the driver tells of memory that the guest does not use, whatever the target, and when it is asked, of how it stands
//! with its memory.

mod handle;
mod release;
mod service;
mod statistics;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::worker::Worker;
use super::{ActivateError, Activation, DeviceState, QueuePosition, VirtioDevice};
use crate::metrics::Counters;
use handle::{Asking, Shared};
pub use handle::{BalloonHandle, FLOOR_MIB, TargetTooLarge};
pub use release::Backing;
use service::Service;

/// The guest says how it stands with its memory (5.5.3).
const VIRTIO_BALLOON_F_STATS_VQ: u64 = 1;
/// The guest may take pages out of the balloon when it runs out of memory (5.5.3).
const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u64 = 2;
/// The guest reports memory that it does not use (5.5.3).
const VIRTIO_BALLOON_F_REPORTING: u64 = 5;
/// Bytes of the pages that are counted, whatever the guest's own are (5.5.6).
const PAGE_BYTES: u64 = 4096;
/// Where the driver says how many pages there are, behind how many there should be (5.5.4).
const ACTUAL_OFFSET: usize = 4;
const CONFIG_BYTES: usize = 8;

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Statistics,
    Reporting,
}

/// Of each queue, in order: a driver that does without one counts on without it, as Linux does.
fn roles(features: u64) -> impl Iterator<Item = Role> {
    let with = move |feature: u64| features & 1 << feature != 0;
    [
        (Role::Inflate, true),
        (Role::Deflate, true),
        (Role::Statistics, with(VIRTIO_BALLOON_F_STATS_VQ)),
        (Role::Reporting, with(VIRTIO_BALLOON_F_REPORTING)),
    ]
    .into_iter()
    .filter_map(|(role, there)| there.then_some(role))
}

const QUEUE_SIZES: [u16; 4] = [128, 128, 32, 32];

/// The device. It has no limits: what a request has it do costs the guest more than the host.
pub struct Balloon {
    backing: Backing,
    counters: Arc<Counters>,
    shared: Arc<Shared>,
    worker: Worker,
}

impl Balloon {
    /// `backing` is what the guest's memory is made of, of which there are `memory_mib` MiB.
    pub fn new(
        backing: Backing,
        memory_mib: u32,
        counters: Arc<Counters>,
        worker: Worker,
    ) -> io::Result<(Self, BalloonHandle)> {
        let shared = Arc::new(Shared::new(memory_mib)?);
        let handle = BalloonHandle(shared.clone());
        let balloon = Self {
            backing,
            counters,
            shared,
            worker,
        };
        Ok((balloon, handle))
    }

    fn config(&self) -> [u8; CONFIG_BYTES] {
        let target = self.shared.target_pages.load(Ordering::SeqCst);
        let actual = self.shared.actual_pages.load(Ordering::SeqCst);
        (u64::from(target) | u64::from(actual) << 32).to_le_bytes()
    }
}

/// Where a byte of an access is; none where no configuration can be.
fn config_offset(offset: u64, index: usize) -> Option<usize> {
    usize::try_from(offset).ok()?.checked_add(index)
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_BALLOON_F_STATS_VQ
            | 1 << VIRTIO_BALLOON_F_DEFLATE_ON_OOM
            | 1 << VIRTIO_BALLOON_F_REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn queues_with(&self, features: u64) -> usize {
        roles(features).count()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        for (index, byte) in data.iter_mut().enumerate() {
            if let Some(value) = config_offset(offset, index).and_then(|at| config.get(at)) {
                *byte = *value;
            }
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut config = self.config();
        for (index, byte) in data.iter().enumerate() {
            let at = config_offset(offset, index).filter(|at| *at >= ACTUAL_OFFSET);
            if let Some(value) = at.and_then(|at| config.get_mut(at)) {
                *value = *byte;
            }
        }
        let [_, _, _, _, actual @ ..] = config;
        let actual = u32::from_le_bytes(actual);
        self.shared.actual_pages.store(actual, Ordering::SeqCst);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            queues,
            interrupt,
            features,
            restored,
        } = activation;
        self.worker.stop();
        if !restored {
            self.shared.actual_pages.store(0, Ordering::SeqCst);
        }
        let asking = Asking::begin(&self.shared, roles(features).any(|role| role == Role::Statistics));
        let queues = roles(features).zip(queues).collect();
        let rest = (self.backing, self.counters.clone(), self.shared.clone());
        let service = Service::new(queues, memory, interrupt, rest)?;
        self.worker.serve(move |stop| service.run(stop, asking))
    }

    fn stop(&mut self) -> Vec<QueuePosition> {
        self.worker.stop()
    }

    fn state(&self) -> DeviceState {
        DeviceState::Balloon {
            target_pages: self.shared.target_pages.load(Ordering::SeqCst),
            actual_pages: self.shared.actual_pages.load(Ordering::SeqCst),
        }
    }

    fn restore(&mut self, state: DeviceState) -> bool {
        let DeviceState::Balloon {
            target_pages,
            actual_pages,
        } = state
        else {
            return false;
        };
        let allowed = self.shared.allows(target_pages);
        if allowed {
            self.shared.target_pages.store(target_pages, Ordering::SeqCst);
            self.shared.actual_pages.store(actual_pages, Ordering::SeqCst);
        }
        allowed
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
#[cfg(test)]
mod tests;
