//! The queue of a block device, served on the caller's thread.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::disk::{Disk, DiskError};
use crate::devices::virtio::throttle::Throttle;
use crate::devices::virtio::worker::QueueService;
use crate::devices::virtio::{ActivateError, ActiveQueue, Interrupt};
use crate::metrics::Counters;

pub struct BlockQueue {
    disk: Disk,
    service: QueueService,
}

impl BlockQueue {
    pub fn new(
        disk: File,
        read_only: bool,
        memory: GuestMemoryMmap,
        queue: ActiveQueue,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<Result<Self, ActivateError>, DiskError> {
        let counters = Arc::new(Counters::default());
        let throttle = match Throttle::new(None, counters.clone(), |counters| &counters.block_throttled) {
            Ok(throttle) => Arc::new(throttle),
            Err(error) => return Ok(Err(ActivateError::Events(error))),
        };
        let disk = Disk::new(disk, "fuzz", read_only, counters, throttle)?;
        Ok(QueueService::new(vec![queue], memory, interrupt).map(|service| Self { disk, service }))
    }

    /// What a kick has the device's thread do; about `most` requests. False for a broken queue.
    pub fn kick(&mut self, most: usize) -> io::Result<bool> {
        let Self { disk, service } = self;
        service.serve_now(most, |_, memory, chain| disk.serve(memory, chain))
    }
}
