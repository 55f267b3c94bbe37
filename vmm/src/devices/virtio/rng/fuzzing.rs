//! The queue of an entropy device, served on the caller's thread.

use std::io;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use crate::devices::virtio::throttle::Throttle;
use crate::devices::virtio::worker::QueueService;
use crate::devices::virtio::{ActivateError, ActiveQueue, Interrupt};
use crate::metrics::Counters;

pub struct RngQueue {
    service: QueueService,
    counters: Arc<Counters>,
    throttle: Throttle,
}

impl RngQueue {
    pub fn new(
        memory: GuestMemoryMmap,
        queue: ActiveQueue,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<Self, ActivateError> {
        let counters = Arc::new(Counters::default());
        let throttle = Throttle::new(None, counters.clone(), |counters| &counters.entropy_throttled);
        Ok(Self {
            service: QueueService::new(vec![queue], memory, interrupt)?,
            counters,
            throttle: throttle.map_err(ActivateError::Events)?,
        })
    }

    /// What a kick has the device's thread do; about `most` requests. False for a broken queue.
    pub fn kick(&mut self, most: usize) -> io::Result<bool> {
        let Self {
            service,
            counters,
            throttle,
        } = self;
        service.serve_now(most, |_, memory, chain| {
            super::serve(memory, chain, counters, throttle)
        })
    }
}
