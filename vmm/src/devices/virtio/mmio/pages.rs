//! The registers as memory. No register of virtio-mmio changes when it is read, so the guest may read them all from pages
//! that KVM maps into it read-only: a read, and with it the one that every interrupt costs, does not leave the guest.
//! Writes still do, and the transport answers them by changing the pages.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::registers::CONFIG;

/// Bytes of one device's registers.
pub const PAGE_BYTES: usize = 4096;
const WORDS: usize = PAGE_BYTES / 4;

#[repr(C, align(4096))]
struct Page([AtomicU32; WORDS]);

/// The registers of all devices, one page each.
pub struct RegisterPages(Box<[Page]>);

impl RegisterPages {
    pub fn new(devices: usize) -> Arc<Self> {
        let page = || Page(std::array::from_fn(|_| AtomicU32::new(0)));
        Arc::new(Self((0..devices).map(|_| page()).collect()))
    }

    /// Where the pages are in this process, and their size in bytes.
    pub fn as_raw(&self) -> (*const u8, usize) {
        (self.0.as_ptr().cast(), self.0.len() * PAGE_BYTES)
    }
}

/// One device's registers.
pub(super) struct RegisterPage {
    pages: Arc<RegisterPages>,
    index: usize,
}

impl RegisterPage {
    /// Panics if there is no page `index`.
    pub(super) fn new(pages: Arc<RegisterPages>, index: usize) -> Self {
        assert!(index < pages.0.len(), "there is no register page {index}");
        Self { pages, index }
    }

    /// The register at `offset`, which is a multiple of four within the page.
    pub(super) fn register(&self, offset: u64) -> &AtomicU32 {
        &self.pages.0[self.index].0[offset as usize / 4]
    }

    pub(super) fn get(&self, offset: u64) -> u32 {
        u32::from_le(self.register(offset).load(Ordering::SeqCst))
    }

    pub(super) fn set(&self, offset: u64, value: u32) {
        self.register(offset).store(value.to_le(), Ordering::SeqCst);
    }

    /// Reads any bytes; what lies past the end of the page is zero.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = if at < PAGE_BYTES as u64 {
                self.get(at & !3).to_le_bytes()[at as usize & 3]
            } else {
                0
            };
        }
    }

    /// Sets the configuration space, as far as it goes into the page.
    pub(super) fn set_config(&self, read_config: impl FnOnce(&mut [u8])) {
        let mut config = [0; PAGE_BYTES - CONFIG as usize];
        read_config(&mut config);
        for (offset, word) in (CONFIG..).step_by(4).zip(config.as_chunks().0) {
            let value = u32::from_le_bytes(*word);
            if self.get(offset) != value {
                self.set(offset, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_lie_side_by_side_and_aligned() {
        let pages = RegisterPages::new(3);
        let (start, bytes) = pages.as_raw();
        assert_eq!((start as usize % PAGE_BYTES, bytes), (0, 3 * PAGE_BYTES));
        RegisterPage::new(pages.clone(), 1).set(0, 0x0403_0201);
        // SAFETY: the offset is within the pages, which live to the end of this test.
        assert_eq!(unsafe { *start.add(PAGE_BYTES + 1) }, 2);
    }

    #[test]
    fn bytes_are_read_in_any_width_and_are_zero_past_the_end() {
        let page = RegisterPage::new(RegisterPages::new(1), 0);
        page.set(0xffc, 0x0403_0201);
        let mut data = [0xee; 8];
        page.read(0xffd, &mut data);
        assert_eq!(data, [2, 3, 4, 0, 0, 0, 0, 0]);
    }
}
