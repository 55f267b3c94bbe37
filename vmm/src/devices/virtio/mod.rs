//! What every virtio device has in common. One folder a device; the transport is `mmio`.
//!
//! A device does its work on a thread of its own: `activate` moves the queues there, `stop` takes them back, so that a
//! driver may activate the device again, or another machine go on with it.

pub mod balloon;
pub mod block;
pub mod mmio;
pub mod net;
pub mod rng;
pub mod throttle;
pub mod vsock;
pub mod worker;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// A virtqueue that the driver has set up, and the event by which the driver kicks it.
pub struct ActiveQueue {
    pub queue: Queue,
    pub kick: EventFd,
}

/// How far a device has come in a queue: all chains before are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuePosition {
    pub next_avail: u16,
    pub next_used: u16,
}

impl QueuePosition {
    pub fn of(queue: &Queue) -> Self {
        Self {
            next_avail: queue.next_avail(),
            next_used: queue.next_used(),
        }
    }
}

/// How a device interrupts its driver (virtio 1.3, 4.2.2 `InterruptStatus`).
pub trait Interrupt: Send + Sync {
    /// Buffers of a queue were used.
    fn signal_queue(&self);
    /// The device configuration changed.
    fn signal_config(&self);
    /// The driver broke a queue beyond use: sets `DEVICE_NEEDS_RESET` and tells the driver. Does nothing by default,
    /// for interrupts without a transport behind them.
    fn fail_device(&self) {}
}

/// What a device gets when the driver sets `DRIVER_OK`.
pub struct Activation {
    pub memory: GuestMemoryMmap,
    /// As many of [`VirtioDevice::queue_sizes`] as [`VirtioDevice::queues_with`] says, validated by the transport (`Queue::is_valid`).
    pub queues: Vec<ActiveQueue>,
    pub interrupt: Arc<dyn Interrupt>,
    /// The feature bits that the driver accepted: a subset of those offered.
    pub features: u64,
    /// The driver set the device up on another machine, of which this one is the continuation. What was under way there
    /// beside the queues is lost.
    pub restored: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    #[error("cannot start the device thread: {0}")]
    Thread(std::io::Error),
    #[error("cannot set up the device's events: {0}")]
    Events(std::io::Error),
    #[error("cannot configure what is behind the device: {0}")]
    Backend(std::io::Error),
    #[error("the device has {expected} queues and got {got}")]
    Queues { expected: usize, got: usize },
}

/// A virtio device, seen by its transport.
pub trait VirtioDevice: Send {
    /// Virtio device id (virtio 1.3, section 5).
    fn device_type(&self) -> u32;
    /// The feature bits offered, `VIRTIO_F_VERSION_1` among them.
    fn features(&self) -> u64;
    /// The largest size of each queue; powers of two.
    fn queue_sizes(&self) -> &[u16];
    /// How many of the queues, from the first on, there are for a driver that accepted these features.
    fn queues_with(&self, _features: u64) -> usize {
        self.queue_sizes().len()
    }
    /// Reads the device configuration. Whatever lies past its end reads as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes the device configuration; a device without writable fields ignores it.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// The driver is ready. An error sets `DEVICE_NEEDS_RESET`.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;
    /// The driver reset the device, or the machine ends or is written down: after this the device touches no guest memory.
    /// Returns how far it came in each queue; nothing if it was not active or a queue is broken.
    fn stop(&mut self) -> Vec<QueuePosition>;
    /// What another device needs to go on in this one's place, beside features and queues.
    fn state(&self) -> DeviceState {
        DeviceState::Nothing
    }
    /// Takes over what another device left, before it is activated. False if it cannot be this device's.
    fn restore(&mut self, state: DeviceState) -> bool {
        state == DeviceState::Nothing
    }
}

/// What a device leaves to the one that goes on in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    Nothing,
    /// Pages of 4 KiB that the host wants to be in the balloon, and that the driver says are.
    Balloon {
        target_pages: u32,
        actual_pages: u32,
    },
}
