//! A request as it lies in a descriptor chain (virtio 1.3, 5.2.6): found, bounded and split into its parts. How it is
//! carried out is not here.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};

use super::QUEUE_SIZE;

/// Type, a reserved word, and the sector.
const HEADER_BYTES: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    In,
    Out,
    Flush,
    GetId,
    Discard,
    WriteZeroes,
    Unknown,
}

/// What the driver broke, so that there is no place to answer to.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("more than {QUEUE_SIZE} descriptors")]
    TooLong,
    #[error("a readable descriptor after a writable one")]
    Order,
    #[error("a descriptor outside the guest's memory")]
    OutsideMemory,
    #[error("no whole header")]
    NoHeader,
    #[error("no room for the status")]
    NoStatus,
}

/// A request, its parts pointing into guest memory.
pub(super) struct Request<'a> {
    pub(super) kind: Kind,
    pub(super) sector: u64,
    /// What the driver gives, after the header.
    pub(super) readable: Vec<VolatileSlice<'a>>,
    /// What the driver wants filled, before the status.
    pub(super) writable: Vec<VolatileSlice<'a>>,
    /// One byte.
    pub(super) status: VolatileSlice<'a>,
}

impl<'a> Request<'a> {
    pub(super) fn parse(
        memory: &'a GuestMemoryMmap,
        chain: DescriptorChain<&GuestMemoryMmap>,
    ) -> Result<Self, Malformed> {
        let mut readable = Vec::new();
        let mut writable = Vec::new();
        for (index, descriptor) in chain.enumerate() {
            if index >= usize::from(QUEUE_SIZE) {
                return Err(Malformed::TooLong);
            }
            let (slices, access) = match descriptor.is_write_only() {
                true => (&mut writable, Permissions::Write),
                false if writable.is_empty() => (&mut readable, Permissions::Read),
                false => return Err(Malformed::Order),
            };
            let found = memory
                .get_slices(descriptor.addr(), descriptor.len() as usize, access)
                .map_err(|_| Malformed::OutsideMemory)?;
            for slice in found {
                slices.push(slice.map_err(|_| Malformed::OutsideMemory)?);
            }
        }
        let mut header = [0; HEADER_BYTES];
        if take_front(&mut readable, &mut header) != HEADER_BYTES {
            return Err(Malformed::NoHeader);
        }
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
        let status = take_last_byte(&mut writable).ok_or(Malformed::NoStatus)?;
        Ok(Self {
            kind: kind(u32::from_le_bytes([k0, k1, k2, k3])),
            sector: u64::from_le_bytes(sector),
            readable,
            writable,
            status,
        })
    }

    /// Bytes between the file and guest memory that the request asks for.
    pub(super) fn data_bytes(&self) -> u64 {
        match self.kind {
            Kind::In => total(&self.writable),
            Kind::Out => total(&self.readable),
            _ => 0,
        }
    }
}

fn kind(number: u32) -> Kind {
    match number {
        VIRTIO_BLK_T_IN => Kind::In,
        VIRTIO_BLK_T_OUT => Kind::Out,
        VIRTIO_BLK_T_FLUSH => Kind::Flush,
        VIRTIO_BLK_T_GET_ID => Kind::GetId,
        VIRTIO_BLK_T_DISCARD => Kind::Discard,
        VIRTIO_BLK_T_WRITE_ZEROES => Kind::WriteZeroes,
        _ => Kind::Unknown,
    }
}

/// Total bytes of `slices`. A chain has less than 4 GiB, which `DescriptorChain` makes sure of.
pub(super) fn total(slices: &[VolatileSlice<'_>]) -> u64 {
    slices.iter().map(|slice| slice.len() as u64).sum()
}

/// Moves bytes from the front of `slices` into `bytes`; returns how many there were.
pub(super) fn take_front(slices: &mut Vec<VolatileSlice<'_>>, bytes: &mut [u8]) -> usize {
    let mut taken = 0;
    let mut spent = 0;
    for slice in slices.iter_mut() {
        let len = slice.len().min(bytes.len() - taken);
        if slice.read_slice(&mut bytes[taken..taken + len], 0).is_err() {
            break;
        }
        taken += len;
        match slice.offset(len) {
            Ok(rest) if !rest.is_empty() => {
                *slice = rest;
                break;
            }
            _ => spent += 1,
        }
    }
    slices.drain(..spent);
    taken
}

/// Copies `bytes` into `slices`, as far as they go; returns how many went.
pub(super) fn put_front(slices: &[VolatileSlice<'_>], bytes: &[u8]) -> usize {
    let mut put = 0;
    for slice in slices {
        let len = slice.len().min(bytes.len() - put);
        if slice.write_slice(&bytes[put..put + len], 0).is_err() {
            break;
        }
        put += len;
    }
    put
}

fn take_last_byte<'a>(slices: &mut Vec<VolatileSlice<'a>>) -> Option<VolatileSlice<'a>> {
    while let Some(last) = slices.pop() {
        if let Some(before) = last.len().checked_sub(1) {
            if before > 0 {
                slices.push(last.subslice(0, before).ok()?);
            }
            return last.offset(before).ok();
        }
    }
    None
}
