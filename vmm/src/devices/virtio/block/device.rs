//! The device as the transport sees it: features, configuration space, the thread.

use std::fs::File;
use std::io;
use std::sync::Arc;

use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::disk::Disk;
use super::ring::{Ring, Takes};
use super::service;
use super::{
    MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS, MAX_SEGMENTS, MAX_ZERO_RANGES, MAX_ZERO_SECTORS, QUEUE_SIZE,
    SECTOR_BYTES,
};
use crate::config::DriveEngine;
use crate::devices::virtio::worker::{QueueService, Worker};
use crate::devices::virtio::{ActivateError, Activation, QueuePosition, VirtioDevice};
use crate::jail::{Jail, Thread};
use crate::metrics::count;

const QUEUE_SIZES: [u16; 1] = [QUEUE_SIZE];
/// Bytes of the configuration space that are in use.
const CONFIG_BYTES: usize = 60;

/// The device.
pub struct Block {
    disk: Arc<Disk>,
    config: [u8; CONFIG_BYTES],
    /// Its thread may have a ring.
    worker: Worker<Option<Ring>>,
}

impl Block {
    /// Starts the device's thread, which `jail` confines.
    pub fn new(disk: Disk, engine: DriveEngine, jail: Jail) -> io::Result<Self> {
        let disk = Arc::new(disk);
        let config = config(&disk);
        let of_thread = disk.clone();
        let worker = Worker::prepared("block", jail, Thread::Block, move || ring(&of_thread, engine))?;
        Ok(Self { disk, config, worker })
    }
}

/// The ring for a disk; none where the host has none to give, or it is not wanted.
fn ring(disk: &Disk, engine: DriveEngine) -> Option<Ring> {
    let takes = match engine {
        DriveEngine::InOrder => return None,
        // In memory there is nothing to wait for.
        DriveEngine::Auto if is_in_memory(disk.file()) => return None,
        DriveEngine::Auto => Takes::ReadsAndFlushes,
        DriveEngine::IoUring => Takes::Everything,
    };
    let ring = Ring::new(disk.file(), takes).ok();
    if ring.is_some() {
        count(&disk.counters().block_io_uring_drives, 1);
    }
    ring
}

/// Whether a file is of a file system that has its files in memory.
fn is_in_memory(file: &File) -> bool {
    fstatfs(file).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC)
}

/// The configuration space (5.2.4).
fn config(disk: &Disk) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    let mut put = |offset: usize, bytes: &[u8]| config[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &disk.sectors().to_le_bytes());
    put(12, &MAX_SEGMENTS.to_le_bytes());
    put(20, &(SECTOR_BYTES as u32).to_le_bytes());
    if !disk.read_only() {
        put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
        put(40, &MAX_DISCARD_RANGES.to_le_bytes());
        // Holes are punched in whole pages.
        put(44, &8u32.to_le_bytes());
        put(48, &MAX_ZERO_SECTORS.to_le_bytes());
        put(52, &MAX_ZERO_RANGES.to_le_bytes());
        put(56, &[1]);
    }
    config
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let common = 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE;
        common
            | if self.disk.read_only() {
                1 << VIRTIO_BLK_F_RO
            } else {
                1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
            }
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(CONFIG_BYTES);
        let bytes = &self.config[from..];
        let len = bytes.len().min(data.len());
        data[..len].copy_from_slice(&bytes[..len]);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            queues,
            interrupt,
            ..
        } = activation;
        let disk = self.disk.clone();
        let service = QueueService::new(queues, memory, interrupt)?;
        self.worker.serve_with(move |stop, ring| match ring {
            Some(ring) => service::run(service, stop, &disk, ring),
            None => service.run(stop, disk.throttle(), |_, memory, chain| {
                disk.serve(memory, chain)
            }),
        })
    }

    fn stop(&mut self) -> Vec<QueuePosition> {
        self.worker.stop()
    }
}
