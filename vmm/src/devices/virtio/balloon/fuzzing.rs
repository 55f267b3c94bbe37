//! The queues of a balloon, served on the caller's thread.

use std::io;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::Backing;
use crate::devices::virtio::worker::QueueService;
use crate::devices::virtio::{ActivateError, ActiveQueue, Interrupt};
use crate::metrics::Counters;

pub struct BalloonQueues {
    service: QueueService,
    counters: Counters,
}

impl BalloonQueues {
    /// Queues for inflating, deflating and reporting. The memory is the process's own.
    pub fn new(
        memory: GuestMemoryMmap,
        queues: [ActiveQueue; 3],
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<Self, ActivateError> {
        Ok(Self {
            service: QueueService::new(queues.into(), memory, interrupt)?,
            counters: Counters::default(),
        })
    }

    /// What a kick has the device's thread do; about `most` requests of each queue. False for a broken queue.
    pub fn kick(&mut self, most: usize) -> io::Result<bool> {
        let Self { service, counters } = self;
        service.serve_now(most, |queue, memory, chain| {
            super::serve(queue, memory, chain, Backing::Anonymous, counters)
        })
    }
}
