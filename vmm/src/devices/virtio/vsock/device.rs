//! The vsock device as its transport sees it: features, configuration, life of its thread.

use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::epoll::Epoll;
use vmm_sys_util::eventfd::EventFd;

use super::QUEUE_SIZE;
use super::handle::{Shared, VsockHandle};
use super::service::{Events, Service};
use super::table::Table;
use crate::devices::virtio::worker::Worker;
use crate::devices::virtio::{ActivateError, Activation, QueuePosition, VirtioDevice};
use crate::metrics::Counters;

/// `VIRTIO_VSOCK_F_STREAM`.
const FEATURE_STREAM: u32 = 0;

/// A vsock device (virtio 1.3, 5.10).
pub struct Vsock {
    guest_cid: u64,
    counters: Arc<Counters>,
    shared: Arc<Shared>,
    worker: Worker,
}

impl Vsock {
    /// A device whose guest has the given context id, and the host's side of it.
    pub fn new(guest_cid: u64, counters: Arc<Counters>, worker: Worker) -> (Self, VsockHandle) {
        let shared = Arc::new(Shared::default());
        let handle = VsockHandle::new(Arc::clone(&shared));
        (
            Self {
                guest_cid,
                counters,
                shared,
                worker,
            },
            handle,
        )
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << FEATURE_STREAM
    }

    /// Receive, transmit, event. The event queue tells a restored guest that its connections are gone.
    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.guest_cid.to_le_bytes();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = config.get(from..).unwrap_or_default().iter().copied();
        for (byte, value) in data.iter_mut().zip(rest.chain(std::iter::repeat(0))) {
            *byte = value;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.worker.stop();
        let Activation {
            memory,
            queues,
            interrupt,
            restored,
            ..
        } = activation;
        let got = queues.len();
        let Ok([receive, transmit, event]) = <[_; 3]>::try_from(queues) else {
            return Err(ActivateError::Queues { expected: 3, got });
        };
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(ActivateError::Events)?;
        let events = Events {
            wake: wake.try_clone().map_err(ActivateError::Events)?,
            receive_kick: receive.kick,
            transmit_kick: transmit.kick,
        };
        let epoll = Arc::new(Epoll::new().map_err(ActivateError::Events)?);
        events.watch(&epoll).map_err(ActivateError::Events)?;
        let service = Service {
            receive: Some(receive.queue),
            transmit: Some(transmit.queue),
            event: event.queue,
            burst: 1,
            restored,
            memory,
            table: Table::new(self.guest_cid, Arc::clone(&epoll), Arc::clone(&self.counters)),
            shared: Arc::clone(&self.shared),
            counters: Arc::clone(&self.counters),
        };
        let shared = Arc::clone(&self.shared);
        self.shared.open(wake);
        let served = self.worker.serve(move |stop| {
            let positions = service.run(stop, &epoll, &events, interrupt.as_ref());
            shared.close();
            positions
        });
        if served.is_err() {
            self.shared.close();
        }
        served
    }

    fn stop(&mut self) -> Vec<QueuePosition> {
        self.worker.stop()
    }
}
