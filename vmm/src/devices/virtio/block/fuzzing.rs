//! The queue of a block device, served on the caller's thread.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::disk::{Disk, DiskError};
use super::in_flight::InFlight;
use super::ring::{Ring, Takes};
use super::service::{land, serve_batch};
use crate::devices::virtio::throttle::Throttle;
use crate::devices::virtio::worker::{BATCH, QueueService, Stop};
use crate::devices::virtio::{ActivateError, ActiveQueue, Interrupt};
use crate::metrics::Counters;

pub struct BlockQueue {
    disk: Disk,
    service: QueueService,
    ring: Option<Ring>,
}

impl BlockQueue {
    pub fn new(
        disk: File,
        read_only: bool,
        by_ring: bool,
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
        // Without one its requests are carried out in order.
        let ring = by_ring.then(|| Ring::new(disk.file(), Takes::Everything).ok());
        Ok(
            QueueService::new(vec![queue], memory, interrupt).map(|service| Self {
                disk,
                service,
                ring: ring.flatten(),
            }),
        )
    }

    /// What a kick has the device's thread do; about `most` requests. False for a broken queue.
    pub fn kick(&mut self, most: usize) -> io::Result<bool> {
        let Self { disk, service, ring } = self;
        match ring {
            Some(ring) => kick_ring(service, disk, ring, most),
            None => service.serve_now(most, |_, memory, chain| disk.serve(memory, chain)),
        }
    }
}

fn kick_ring(service: &mut QueueService, disk: &Disk, ring: &mut Ring, most: usize) -> io::Result<bool> {
    let stop = Stop::new()?;
    let (memory, interrupt) = (service.memory.clone(), service.interrupt.clone());
    let mut flights = InFlight::new(ring, disk);
    for queue in &mut service.queues {
        let queue = &mut queue.queue;
        for _ in 0..most.div_ceil(BATCH) {
            match serve_batch(queue, &memory, &*interrupt, &stop, disk, &mut flights) {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => return Ok(false),
            }
        }
        if land(queue, &memory, &*interrupt, &mut flights).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}
