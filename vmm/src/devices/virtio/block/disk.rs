//! The file behind a block device, and the carrying out of requests on it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemoryMmap, VolatileSlice};

use super::request::{Kind, Request, put_front, take_front, total};
use super::{
    MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS, MAX_REQUEST_BYTES, MAX_ZERO_RANGES, MAX_ZERO_SECTORS,
    SECTOR_BYTES,
};
use crate::devices::virtio::throttle::Throttle;
use crate::devices::virtio::worker::Served;
use crate::metrics::{Counters, count};
use crate::positioned::{Direction, transfer};

const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;
/// Sector, number of sectors, flags.
const RANGE_BYTES: u64 = 16;

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("cannot find the size of drive {id:?}: {source}")]
    Size { id: String, source: io::Error },
    #[error("drive {0:?} has not one whole sector")]
    Empty(String),
}

/// Why a request was not carried out.
#[derive(Debug)]
enum Refusal {
    /// The driver broke a rule of the device: outside the disk, not whole sectors, written though read-only.
    Rule,
    /// The device does not do this.
    Unsupported,
    /// The host failed.
    Host,
}

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Self {
        Self::Host
    }
}

/// What takes the host's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Bytes between the file, from this offset on, and the buffers.
    Move(Direction, u64),
    /// The file's data to the host's disk.
    Sync,
}

/// What became of a request.
pub(super) enum Begun<'a> {
    /// Nothing: it is to be offered again.
    Refused,
    /// It is done, and so many bytes were written to its chain.
    Done(u32),
    Pending(Pending<'a>),
}

/// A request that keeps to the rules, was accounted for, and is to be carried out.
pub(super) struct Pending<'a> {
    pub(super) work: Work,
    pub(super) buffers: Vec<VolatileSlice<'a>>,
    /// How long the buffers are.
    pub(super) bytes: u64,
    status: VolatileSlice<'a>,
}

enum Checked {
    /// So many bytes were written to the request's buffers.
    Done(u64),
    ToDo(Work),
}

/// A disk.
pub struct Disk {
    file: File,
    sectors: u64,
    id: [u8; ID_BYTES],
    read_only: bool,
    counters: Arc<Counters>,
    throttle: Arc<Throttle>,
}

impl Disk {
    /// `id` is what the guest reads as serial number: at most 20 bytes, which the configuration made sure of.
    pub fn new(
        mut file: File,
        id: &str,
        read_only: bool,
        counters: Arc<Counters>,
        throttle: Arc<Throttle>,
    ) -> Result<Self, DiskError> {
        // The metadata of a block device do not tell its size; where its end is does.
        let bytes = file.seek(SeekFrom::End(0)).map_err(|source| DiskError::Size {
            id: id.into(),
            source,
        })?;
        if bytes < SECTOR_BYTES {
            return Err(DiskError::Empty(id.into()));
        }
        let mut padded = [0; ID_BYTES];
        padded
            .iter_mut()
            .zip(id.bytes())
            .for_each(|(to, from)| *to = from);
        Ok(Self {
            file,
            sectors: bytes / SECTOR_BYTES,
            id: padded,
            read_only,
            counters,
            throttle,
        })
    }

    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    pub(super) fn read_only(&self) -> bool {
        self.read_only
    }

    pub(super) fn throttle(&self) -> &Throttle {
        &self.throttle
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Carries out the request in `chain`, if the limits allow it.
    pub(super) fn serve(&self, memory: &GuestMemoryMmap, chain: DescriptorChain<&GuestMemoryMmap>) -> Served {
        match self.begin(memory, chain, u64::MAX) {
            Begun::Refused => Served::Throttled,
            Begun::Done(written) => Served::Done(written),
            Begun::Pending(pending) => Served::Done(self.finish(pending)),
        }
    }

    /// Takes the request in `chain`, if the limits allow it and it moves at most `room` bytes, and does all of it but what
    /// takes the host's time.
    pub(super) fn begin<'a>(
        &self,
        memory: &'a GuestMemoryMmap,
        chain: DescriptorChain<&GuestMemoryMmap>,
        room: u64,
    ) -> Begun<'a> {
        let request = Request::parse(memory, chain);
        let bytes = request.as_ref().map_or(0, Request::data_bytes);
        if bytes > room || !self.throttle.allows(bytes) {
            return Begun::Refused;
        }
        // The bytes are accounted for where they are moved.
        self.throttle.charge(1, 0);
        let Ok(mut request) = request else {
            count(&self.counters.device_errors, 1);
            return Begun::Done(0);
        };
        match self.check(&mut request) {
            Ok(Checked::Done(written)) => Begun::Done(put_status(&request.status, VIRTIO_BLK_S_OK, written)),
            Ok(Checked::ToDo(work)) => Begun::Pending(Pending {
                work,
                buffers: match work {
                    Work::Move(Direction::Read, _) => request.writable,
                    Work::Move(Direction::Write, _) => request.readable,
                    Work::Sync => Vec::new(),
                },
                bytes: if work == Work::Sync { 0 } else { bytes },
                status: request.status,
            }),
            Err(refusal) => Begun::Done(self.refuse(&request.status, &refusal)),
        }
    }

    /// Carries out the rest of a request on this thread; returns how many bytes were written to its chain.
    pub(super) fn finish(&self, mut pending: Pending<'_>) -> u32 {
        let result = self.carry_out(pending.work, &mut pending.buffers);
        self.end(&pending, result)
    }

    /// Carries out what is left of a request on this thread.
    pub(super) fn carry_out(&self, work: Work, buffers: &mut [VolatileSlice<'_>]) -> io::Result<()> {
        match work {
            Work::Move(direction, offset) => transfer(&self.file, direction, buffers, offset),
            Work::Sync => self.file.sync_data(),
        }
    }

    /// Puts the status of a request where the driver finds it; returns how many bytes were written to its chain.
    pub(super) fn end(&self, pending: &Pending<'_>, result: io::Result<()>) -> u32 {
        if let Err(error) = result {
            return self.refuse(&pending.status, &error.into());
        }
        let (counters, bytes) = (&*self.counters, pending.bytes);
        let written = match pending.work {
            Work::Move(Direction::Read, _) => {
                count(&counters.block_read_ops, 1);
                count(&counters.block_read_bytes, bytes);
                bytes
            }
            Work::Move(Direction::Write, _) => {
                count(&counters.block_write_ops, 1);
                count(&counters.block_write_bytes, bytes);
                0
            }
            Work::Sync => {
                count(&counters.block_flush_ops, 1);
                0
            }
        };
        put_status(&pending.status, VIRTIO_BLK_S_OK, written)
    }

    fn refuse(&self, status: &VolatileSlice<'_>, refusal: &Refusal) -> u32 {
        let code = match refusal {
            Refusal::Unsupported => VIRTIO_BLK_S_UNSUPP,
            Refusal::Host => VIRTIO_BLK_S_IOERR,
            Refusal::Rule => {
                count(&self.counters.device_errors, 1);
                VIRTIO_BLK_S_IOERR
            }
        };
        put_status(status, code, 0)
    }

    /// Finds what a request asks for, and whether it may.
    fn check(&self, request: &mut Request<'_>) -> Result<Checked, Refusal> {
        if self.read_only && !matches!(request.kind, Kind::In | Kind::GetId) {
            return Err(if request.kind == Kind::Out {
                Refusal::Rule
            } else {
                Refusal::Unsupported
            });
        }
        match request.kind {
            Kind::In => self.check_move(Direction::Read, request),
            Kind::Out => self.check_move(Direction::Write, request),
            Kind::Flush => Ok(Checked::ToDo(Work::Sync)),
            Kind::GetId => Ok(Checked::Done(put_front(&request.writable, &self.id) as u64)),
            Kind::Discard | Kind::WriteZeroes => {
                self.clear(request.kind, &mut request.readable)?;
                Ok(Checked::Done(0))
            }
            Kind::Unknown => Err(Refusal::Unsupported),
        }
    }

    fn check_move(&self, direction: Direction, request: &Request<'_>) -> Result<Checked, Refusal> {
        let bytes = request.data_bytes();
        if !bytes.is_multiple_of(SECTOR_BYTES) || bytes > MAX_REQUEST_BYTES {
            return Err(Refusal::Rule);
        }
        let offset = self.offset(request.sector, bytes / SECTOR_BYTES)?;
        self.throttle.charge(0, bytes);
        Ok(Checked::ToDo(Work::Move(direction, offset)))
    }

    /// The offset in bytes of a range of sectors that lies within the disk.
    fn offset(&self, sector: u64, sectors: u64) -> Result<u64, Refusal> {
        match sector.checked_add(sectors) {
            Some(end) if end <= self.sectors => Ok(sector * SECTOR_BYTES),
            _ => Err(Refusal::Rule),
        }
    }

    /// Discards the ranges of a request, or makes them zero.
    fn clear(&self, kind: Kind, ranges: &mut Vec<VolatileSlice<'_>>) -> Result<(), Refusal> {
        let (max_ranges, max_sectors, known_flags) = match kind {
            Kind::Discard => (MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS, 0),
            _ => (
                MAX_ZERO_RANGES,
                MAX_ZERO_SECTORS,
                VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
            ),
        };
        let bytes = total(ranges);
        let ranges_given = bytes / RANGE_BYTES;
        if !bytes.is_multiple_of(RANGE_BYTES) || !(1..=u64::from(max_ranges)).contains(&ranges_given) {
            return Err(Refusal::Rule);
        }
        let mut range = [0; RANGE_BYTES as usize];
        while take_front(ranges, &mut range) == range.len() {
            let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = range;
            let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
            let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
            let flags = u32::from_le_bytes(flags);
            if flags & !known_flags != 0 {
                return Err(Refusal::Unsupported);
            }
            if sectors == 0 || sectors > max_sectors {
                return Err(Refusal::Rule);
            }
            let offset = self.offset(sector, u64::from(sectors))?;
            let bytes = u64::from(sectors) * SECTOR_BYTES;
            match kind {
                Kind::Discard => self.discard(offset, bytes)?,
                _ => self.write_zeroes(offset, bytes, flags != 0)?,
            }
        }
        Ok(())
    }

    /// Gives the space back, if the host's file system can; the driver may not count on it.
    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.punch_hole(offset, bytes).map(drop)
    }

    fn write_zeroes(&self, offset: u64, bytes: u64, unmap: bool) -> io::Result<()> {
        if unmap && self.punch_hole(offset, bytes)? {
            return Ok(());
        }
        let zeroes = [0; 64 * 1024];
        let mut done = 0;
        while done < bytes {
            let len = (bytes - done).min(zeroes.len() as u64) as usize;
            self.throttle.charge(0, len as u64);
            self.file.write_all_at(&zeroes[..len], offset + done)?;
            done += len as u64;
        }
        Ok(())
    }

    /// Gives space back without changing the file's size; returns whether the file system can do it.
    fn punch_hole(&self, offset: u64, bytes: u64) -> io::Result<bool> {
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        let bytes = i64::try_from(bytes).map_err(io::Error::other)?;
        match fallocate(
            self.file.as_fd(),
            FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
            offset,
            bytes,
        ) {
            Ok(()) => Ok(true),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Returns how many bytes were written to the chain: those of the buffers, and the status.
fn put_status(status: &VolatileSlice<'_>, code: u32, written: u64) -> u32 {
    match status.write_obj(code as u8, 0) {
        // A chain has less than 4 GiB.
        Ok(()) => written as u32 + 1,
        Err(_) => 0,
    }
}
