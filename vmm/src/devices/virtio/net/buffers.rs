//! Descriptor chains as lists of iovecs into guest memory, for system calls that read or write guest memory directly.
//! Not what is in them: a frame (net) or a packet (vsock).

use std::marker::PhantomData;

use libc::iovec;
use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, GuestMemoryError, GuestMemoryMmap, Permissions, VolatileSlice};

/// Most descriptors, and most iovecs, that a chain may have; Linux drivers use at most 47 (`MAX_SKB_FRAGS` + 2).
pub(crate) const MAX_DESCRIPTORS: usize = 64;

/// Why a chain is unusable. The guest is at fault in every case.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainError {
    #[error("descriptor of the wrong direction")]
    Direction,
    #[error("more than {MAX_DESCRIPTORS} descriptors")]
    TooManyDescriptors,
    #[error("more than {0} bytes")]
    TooLong(usize),
    #[error("chain is empty, endless or cut off")]
    Cut,
    #[error("buffer outside guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// Who writes into the buffers of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The driver did, the device reads.
    DriverToDevice,
    /// The device does, the driver reads.
    DeviceToDriver,
}

/// The buffers of one chain, in order. Every iovec lies within the guest memory borrowed for `'m`.
#[derive(Debug)]
pub(crate) struct ChainBuffers<'m> {
    iovecs: Vec<iovec>,
    len: usize,
    memory: PhantomData<&'m GuestMemoryMmap>,
}

impl<'m> ChainBuffers<'m> {
    /// Walks a chain whose buffers must all have one direction and hold at most `max_len` bytes together.
    pub(crate) fn new(
        memory: &'m GuestMemoryMmap,
        chain: DescriptorChain<&GuestMemoryMmap>,
        direction: Direction,
        max_len: usize,
    ) -> Result<Self, ChainError> {
        let mut iovecs = Vec::with_capacity(4);
        let len = append_chain(memory, chain, direction, max_len, &mut iovecs)?;
        Ok(Self {
            iovecs,
            len,
            memory: PhantomData,
        })
    }

    /// Bytes in all buffers.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// For a system call; valid while `self` lives.
    pub(crate) fn iovecs(&self) -> &[iovec] {
        &self.iovecs
    }

    /// The first `at` bytes (or all, where there are fewer), and the rest.
    pub(crate) fn split_at(mut self, at: usize) -> (Self, Self) {
        let mut rest = Vec::with_capacity(self.iovecs.len());
        let mut skip = at;
        let mut kept = 0;
        for iov in &mut self.iovecs {
            let head = skip.min(iov.iov_len);
            skip -= head;
            if head < iov.iov_len {
                rest.push(iovec {
                    iov_base: iov.iov_base.cast::<u8>().wrapping_add(head).cast(),
                    iov_len: iov.iov_len - head,
                });
                iov.iov_len = head;
            }
            if head > 0 {
                kept += 1;
            }
        }
        let front_len = at.min(self.len);
        let rest = Self {
            iovecs: rest,
            len: self.len - front_len,
            memory: PhantomData,
        };
        self.iovecs.truncate(kept);
        self.len = front_len;
        (self, rest)
    }

    /// For a system call on the first `len` bytes (or all, where there are fewer); valid while `self` lives.
    pub(crate) fn first(&self, len: usize) -> Vec<iovec> {
        let mut left = len;
        let mut iovecs = self.iovecs.clone();
        iovecs.retain_mut(|iov| {
            iov.iov_len = iov.iov_len.min(left);
            left -= iov.iov_len;
            iov.iov_len > 0
        });
        iovecs
    }

    /// Copies from the start of the buffers; returns how many bytes there were, at most `out.len()`.
    pub(crate) fn read(&self, out: &mut [u8]) -> usize {
        let mut done = 0;
        for iov in &self.iovecs {
            let Some(out) = out.get_mut(done..).filter(|out| !out.is_empty()) else {
                break;
            };
            // SAFETY: the iovec lies within guest memory that is mapped for `'m` (see the type).
            let slice = unsafe { VolatileSlice::new(iov.iov_base.cast(), iov.iov_len) };
            done += slice.copy_to(out);
        }
        done
    }

    /// Copies to the start of the buffers as much of `data` as fits.
    pub(crate) fn write(&self, data: &[u8]) {
        // SAFETY: the iovecs lie within guest memory that is mapped for `'m` (see the type).
        unsafe { copy_into(&self.iovecs, 0, data) }
    }
}

/// Walks a chain whose buffers must all have one direction and hold at most `max_len` bytes together, and appends them to
/// a list, which then lacks the lifetime that protects them: the caller keeps the guest memory mapped. Returns how many
/// bytes they hold. After an error the list may have some of them.
pub(crate) fn append_chain(
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
    direction: Direction,
    max_len: usize,
    iovecs: &mut Vec<iovec>,
) -> Result<usize, ChainError> {
    let permissions = match direction {
        Direction::DriverToDevice => Permissions::Read,
        Direction::DeviceToDriver => Permissions::Write,
    };
    let most = iovecs.len() + MAX_DESCRIPTORS;
    let mut len = 0usize;
    // A walk that ends on a descriptor with a successor was cut off: by a loop, an index or table outside its
    // bounds, or a total over 4 GiB.
    let mut whole = false;
    for (position, descriptor) in chain.enumerate() {
        if position >= MAX_DESCRIPTORS {
            return Err(ChainError::TooManyDescriptors);
        }
        if descriptor.is_write_only() != (direction == Direction::DeviceToDriver) {
            return Err(ChainError::Direction);
        }
        whole = !descriptor.has_next();
        let size = descriptor.len() as usize;
        len = len
            .checked_add(size)
            .filter(|&len| len <= max_len)
            .ok_or(ChainError::TooLong(max_len))?;
        for slice in memory.get_slices(descriptor.addr(), size, permissions)? {
            let slice = slice?;
            if iovecs.len() >= most {
                return Err(ChainError::TooManyDescriptors);
            }
            iovecs.push(iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
        }
    }
    if !whole {
        return Err(ChainError::Cut);
    }
    Ok(len)
}

/// Copies `data` to the bytes from `offset` on of a list of buffers, as much as fits.
///
/// # Safety
/// Every iovec must be mapped guest memory.
pub(crate) unsafe fn copy_into(iovecs: &[iovec], offset: usize, data: &[u8]) {
    let mut skip = offset;
    let mut data = data;
    for iov in iovecs {
        if data.is_empty() {
            return;
        }
        if skip >= iov.iov_len {
            skip -= iov.iov_len;
            continue;
        }
        let part = data.len().min(iov.iov_len - skip);
        // SAFETY: `skip + part` is within the iovec, which is mapped guest memory by this function's contract.
        let slice = unsafe { VolatileSlice::new(iov.iov_base.cast::<u8>().add(skip), part) };
        let (now, later) = data.split_at(part);
        slice.copy_from(now);
        data = later;
        skip = 0;
    }
}
