//! The virtual machine generation id ("Virtual Machine Generation ID", Microsoft, 2012): 16 random bytes in the guest's
//! memory, others after each restore. A guest whose bytes have changed knows that it is one of several that started from
//! the same snapshot, and throws away the state of its random number generator.

use std::io;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::layout;

#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    #[error("cannot get random bytes for the generation id: {0}")]
    Random(io::Error),
    #[error("cannot write the generation id: {0}")]
    Write(#[from] GuestMemoryError),
}

/// The device: a place in memory, and the line on which ACPI hears that it has changed.
pub struct Generation {
    line: EventFd,
}

impl Generation {
    pub fn new(line: EventFd) -> Self {
        Self { line }
    }

    /// Writes an id of this machine's own, before the guest runs.
    pub fn begin(&self, memory: &GuestMemoryMmap) -> Result<(), GenerationError> {
        let mut id = [0u8; layout::GENERATION_ID_BYTES];
        // SAFETY: the pointer and the length are those of one live, writable array.
        let got = unsafe { libc::getrandom(id.as_mut_ptr().cast(), id.len(), 0) };
        if got != id.len() as isize {
            return Err(GenerationError::Random(io::Error::last_os_error()));
        }
        Ok(memory.write_slice(&id, GuestAddress(layout::GENERATION_ID))?)
    }

    /// Tells a guest that had another that it has changed.
    pub fn tell(&self) {
        // The counter of an event that KVM reads at once does not overflow.
        let _ = self.line.write(1);
    }
}
