//! The virtio-mmio transport, version 2 (virtio 1.3, 4.2): the registers through which a driver finds a device, agrees on
//! features with it and sets its queues up. What travels in the queues is the devices' business.

mod pages;
mod queue_setup;
mod registers;
mod state;

#[cfg(test)]
mod balloon_tests;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::{Activation, ActiveQueue, Interrupt, QueuePosition, VirtioDevice};
use crate::bus::BusDevice;
use crate::metrics::{Counters, count};
use pages::RegisterPage;
pub use pages::{PAGE_BYTES, RegisterPages};
use queue_setup::{QueueSetup, set_half};
use registers::*;
pub use registers::{INTERRUPT_ACK, QUEUE_INTERRUPT, QUEUE_NOTIFY};
pub use state::{TransportState, TransportStateError};

/// A virtio device behind its registers.
pub struct MmioTransport {
    state: Mutex<State>,
    shared: Arc<Shared>,
}

/// What the device's own thread changes too.
struct Shared {
    page: RegisterPage,
    interrupt: EventFd,
    counters: Arc<Counters>,
}

impl Shared {
    fn status(&self) -> u32 {
        self.page.get(STATUS)
    }

    /// Adds bits to the status and returns what it was before.
    fn add_status(&self, bits: u32) -> u32 {
        u32::from_le(
            self.page
                .register(STATUS)
                .fetch_or(bits.to_le(), Ordering::SeqCst),
        )
    }

    fn interrupt(&self, bits: u32) {
        self.page
            .register(INTERRUPT_STATUS)
            .fetch_or(bits.to_le(), Ordering::SeqCst);
        // An eventfd behind an interrupt line is read by KVM at once; it cannot fill up.
        let _ = self.interrupt.write(1);
    }
}

impl Interrupt for Shared {
    fn signal_queue(&self) {
        self.interrupt(QUEUE_INTERRUPT);
    }

    fn signal_config(&self) {
        self.page
            .register(CONFIG_GENERATION)
            .fetch_add(1u32.to_le(), Ordering::SeqCst);
        self.interrupt(CONFIG_INTERRUPT);
    }

    fn fail_device(&self) {
        count(&self.counters.device_errors, 1);
        let before = self.add_status(DEVICE_NEEDS_RESET);
        if before & DRIVER_OK != 0 {
            self.signal_config();
        }
    }
}

struct State {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemoryMmap,
    kicks: Vec<EventFd>,
    queues: Vec<QueueSetup>,
    queue_select: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
}

impl MmioTransport {
    /// Puts a device behind the registers of page `index`. `interrupt` is the event behind the device's interrupt line.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        (pages, index): (Arc<RegisterPages>, usize),
        memory: GuestMemoryMmap,
        interrupt: EventFd,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let queues = new_queues(&*device);
        let kicks = queues
            .iter()
            .map(|_| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC))
            .collect::<io::Result<_>>()?;
        let state = State {
            device,
            memory,
            kicks,
            queues,
            queue_select: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
        };
        let page = RegisterPage::new(pages, index);
        page.set(MAGIC, MAGIC_VALUE);
        page.set(VERSION, VERSION_VALUE);
        page.set(DEVICE_ID, state.device.device_type());
        page.set(VENDOR_ID, VENDOR_VALUE);
        for offset in (SHM_LEN_LOW..=SHM_BASE_HIGH).step_by(4) {
            page.set(offset, u32::MAX);
        }
        state.publish(&page);
        state.publish_config(&page);
        Ok(Self {
            state: Mutex::new(state),
            shared: Arc::new(Shared {
                page,
                interrupt,
                counters,
            }),
        })
    }

    /// Calls `register` with each queue's index and the event that a write of the index to [`QUEUE_NOTIFY`] is to cause.
    pub fn for_each_kick<E>(
        &self,
        mut register: impl FnMut(u32, &EventFd) -> Result<(), E>,
    ) -> Result<(), E> {
        let state = self.state();
        (0..)
            .zip(&state.kicks)
            .try_for_each(|(index, kick)| register(index, kick))
    }

    /// Shows the driver a configuration that the host has changed, and tells it if it is at work.
    pub fn show_config(&self) {
        self.state().publish_config(&self.shared.page);
        if self.shared.status() & DRIVER_OK != 0 {
            self.shared.signal_config();
        }
    }

    /// Ends the device's work, as a driver's reset does.
    pub fn reset(&self) {
        self.state().reset(&self.shared);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for MmioTransport {
    /// Answers as the page would: where KVM can map it, no read comes here.
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.shared.page.read(offset, data);
    }

    /// Registers have 32 bits and are written whole (4.2.2.2); any other write does nothing.
    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            if self.shared.status() & DRIVER != 0 {
                let mut state = self.state();
                state.device.write_config(offset, data);
                state.publish_config(&self.shared.page);
            }
        } else if let Ok(data) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(data));
        }
    }
}

impl MmioTransport {
    fn write_register(&self, offset: u64, value: u32) {
        let status = self.shared.status();
        match offset {
            // The usual one, of used buffers alone, stays in the kernel, and the bit as it is: a driver that sees it again looks for
            // buffers and finds none.
            INTERRUPT_ACK => {
                let register = self.shared.page.register(INTERRUPT_STATUS);
                register.fetch_and(!value.to_le(), Ordering::SeqCst);
                return;
            }
            STATUS => self.state().write_status(value, &self.shared),
            DEVICE_FEATURES_SEL => self.state().device_features_select = value,
            DRIVER_FEATURES_SEL => self.state().driver_features_select = value,
            DRIVER_FEATURES if status & (DRIVER | FEATURES_OK) == DRIVER => {
                let mut state = self.state();
                let high = match state.driver_features_select {
                    0 => false,
                    1 => true,
                    // No device here has features beyond 63; a driver that wants one must not get it silently.
                    _ if value == 0 => return,
                    _ => return self.shared.fail_device(),
                };
                set_half(&mut state.driver_features, high, value);
            }
            QUEUE_SEL => self.state().queue_select = value,
            // Queues are set up between the agreement on features and the driver's being ready (3.1.1).
            _ if status & (FEATURES_OK | DRIVER_OK | DEVICE_NEEDS_RESET) == FEATURES_OK => {
                let accepted = self.state().write_queue(offset, value);
                if !accepted {
                    self.shared.fail_device();
                }
            }
            _ => return,
        }
        self.state().publish(&self.shared.page);
    }
}

impl State {
    /// Makes the registers say what they say now.
    fn publish(&self, page: &RegisterPage) {
        page.set(
            DEVICE_FEATURES,
            half(self.device.features(), self.device_features_select),
        );
        let queue = self.selected();
        page.set(
            QUEUE_SIZE_MAX,
            queue.map_or(0, |queue| u32::from(queue.max_size())),
        );
        page.set(QUEUE_READY, queue.map_or(0, |queue| u32::from(queue.ready)));
    }

    fn publish_config(&self, page: &RegisterPage) {
        page.set_config(|config| self.device.read_config(0, config));
    }

    fn selected(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    /// Returns whether the driver asked for something sensible.
    fn write_queue(&mut self, offset: u64, value: u32) -> bool {
        let Some(queue) = usize::try_from(self.queue_select)
            .ok()
            .and_then(|index| self.queues.get_mut(index))
        else {
            return true;
        };
        if offset == QUEUE_READY {
            queue.ready = value == 1;
            return !queue.ready || queue.build(&self.memory).is_some();
        }
        if queue.ready {
            return true;
        }
        match offset {
            QUEUE_SIZE => queue.size = value,
            QUEUE_DESC_LOW | QUEUE_DESC_HIGH => {
                set_half(&mut queue.descriptors, offset == QUEUE_DESC_HIGH, value);
            }
            QUEUE_DRIVER_LOW | QUEUE_DRIVER_HIGH => {
                set_half(&mut queue.driver_area, offset == QUEUE_DRIVER_HIGH, value);
            }
            QUEUE_DEVICE_LOW | QUEUE_DEVICE_HIGH => {
                set_half(&mut queue.device_area, offset == QUEUE_DEVICE_HIGH, value);
            }
            _ => {}
        }
        true
    }

    /// The status register (2.1): bits are only ever added, each after the one before it, until a zero resets all.
    fn write_status(&mut self, value: u32, shared: &Arc<Shared>) {
        if value == 0 {
            return self.reset(shared);
        }
        let status = shared.status();
        if status & (FAILED | DEVICE_NEEDS_RESET) != 0 {
            return;
        }
        if value & FAILED != 0 {
            shared.add_status(FAILED);
            return;
        }
        for (bit, before) in [
            (ACKNOWLEDGE, 0),
            (DRIVER, ACKNOWLEDGE),
            (FEATURES_OK, DRIVER),
            (DRIVER_OK, FEATURES_OK),
        ] {
            let status = shared.status();
            if value & bit == 0 || status & bit != 0 || status & before != before {
                continue;
            }
            if bit == FEATURES_OK && !self.features_agree() {
                continue;
            }
            shared.add_status(bit);
            if bit == DRIVER_OK && !self.activate(shared, None) {
                shared.fail_device();
            }
        }
    }

    /// The driver took only what was offered, and what every driver of this transport version must take.
    fn features_agree(&self) -> bool {
        self.driver_features & !self.device.features() == 0
            && self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    /// Has the device go to work, from `positions` in its queues if it was at work before, on another machine.
    fn activate(&mut self, shared: &Arc<Shared>, positions: Option<&[QueuePosition]>) -> bool {
        let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let used = self.device.queues_with(self.driver_features);
        let mut queues = Vec::with_capacity(used);
        for (index, (setup, kick)) in self.queues.iter().zip(&self.kicks).enumerate().take(used) {
            let queue = if setup.ready {
                setup.build(&self.memory)
            } else {
                None
            };
            let (Some(mut queue), Ok(kick)) = (queue, kick.try_clone()) else {
                return false;
            };
            queue.set_event_idx(event_idx);
            if let Some(positions) = positions {
                let Some(position) = positions.get(index) else {
                    return false;
                };
                queue.set_next_avail(position.next_avail);
                queue.set_next_used(position.next_used);
            }
            queues.push(ActiveQueue { queue, kick });
        }
        let activation = Activation {
            memory: self.memory.clone(),
            queues,
            interrupt: shared.clone(),
            features: self.driver_features,
            restored: positions.is_some(),
        };
        self.device.activate(activation).is_ok()
    }

    fn reset(&mut self, shared: &Arc<Shared>) {
        self.device.stop();
        self.queues = new_queues(&*self.device);
        self.queue_select = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        shared.page.set(INTERRUPT_STATUS, 0);
        shared.page.set(STATUS, 0);
    }
}

fn new_queues(device: &dyn VirtioDevice) -> Vec<QueueSetup> {
    device
        .queue_sizes()
        .iter()
        .map(|&max_size| QueueSetup::new(max_size))
        .collect()
}

/// The low or the high 32 bits of the features; there are none beyond.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}
