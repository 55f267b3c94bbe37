//! A virtqueue as the driver sets it up, before it is used: plain numbers until they are checked all at once.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// What the driver has written about one queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct QueueSetup {
    max_size: u16,
    pub(super) size: u32,
    pub(super) ready: bool,
    pub(super) descriptors: u64,
    pub(super) driver_area: u64,
    pub(super) device_area: u64,
}

impl QueueSetup {
    pub(super) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: u32::from(max_size),
            ready: false,
            descriptors: 0,
            driver_area: 0,
            device_area: 0,
        }
    }

    pub(super) fn max_size(&self) -> u16 {
        self.max_size
    }

    /// The queue, if its size is a power of two not above the maximum and its three areas are aligned and in `memory`.
    pub(super) fn build(&self, memory: &GuestMemoryMmap) -> Option<Queue> {
        let mut queue = Queue::new(self.max_size).ok()?;
        queue.try_set_size(u16::try_from(self.size).ok()?).ok()?;
        queue
            .try_set_desc_table_address(GuestAddress(self.descriptors))
            .ok()?;
        queue
            .try_set_avail_ring_address(GuestAddress(self.driver_area))
            .ok()?;
        queue
            .try_set_used_ring_address(GuestAddress(self.device_area))
            .ok()?;
        queue.set_ready(true);
        // A ring at address zero is what a driver that set nothing up has; the queue refuses to work with it.
        (self.driver_area != 0 && queue.is_valid(memory)).then_some(queue)
    }
}

/// Replaces one half of a 64-bit address.
pub(super) fn set_half(address: &mut u64, high: bool, value: u32) {
    let value = u64::from(value);
    *address = if high {
        *address & 0xffff_ffff | value << 32
    } else {
        *address & !0xffff_ffff | value
    };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory;

    const MIB: u32 = 32;
    const END: u64 = (MIB as u64) << 20;

    fn setup(size: u32, areas: [u64; 3]) -> QueueSetup {
        let [descriptors, driver_area, device_area] = areas;
        QueueSetup {
            size,
            descriptors,
            driver_area,
            device_area,
            ..QueueSetup::new(256)
        }
    }

    #[test]
    fn a_sound_queue_is_built() {
        let memory = memory::allocate(MIB, None).unwrap();
        let queue = setup(128, [0x1000, 0x2000, 0x3000]).build(&memory).unwrap();
        assert_eq!((queue.size(), queue.ready()), (128, true));
    }

    #[test]
    fn bad_sizes_and_areas_are_refused() {
        let memory = memory::allocate(MIB, None).unwrap();
        for size in [0, 3, 257, 512, 0x1_0000, 0x1_0100, u32::MAX] {
            assert!(
                setup(size, [0x1000, 0x2000, 0x3000]).build(&memory).is_none(),
                "size {size}"
            );
        }
        for areas in [
            [0x1001, 0x2000, 0x3000],
            [0x1000, 0x2001, 0x3000],
            [0x1000, 0x2000, 0x3002],
            [END - 16, 0x2000, 0x3000],
            [0x1000, END - 2, 0x3000],
            [0x1000, 0x2000, END - 4],
            [u64::MAX - 15, 0x2000, 0x3000],
            [0xd000_0000, 0x2000, 0x3000],
            [0x1000, 0, 0x3000],
        ] {
            assert!(setup(256, areas).build(&memory).is_none(), "areas {areas:x?}");
        }
    }

    #[test]
    fn halves_of_an_address_are_set_apart() {
        let mut address = 0;
        set_half(&mut address, true, 0x1234_5678);
        set_half(&mut address, false, 0x9abc_def0);
        assert_eq!(address, 0x1234_5678_9abc_def0);
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_lies_in_memory(size in 0u32..600, areas in [0..END * 2, 0..END * 2, 0..END * 2]) {
            let memory = memory::allocate(MIB, None).unwrap();
            if setup(size, areas).build(&memory).is_some() {
                let size = u64::from(size);
                prop_assert!(size.is_power_of_two() && size <= 256);
                prop_assert!(areas[0] + 16 * size <= END);
                prop_assert!(areas[1] + 6 + 2 * size <= END);
                prop_assert!(areas[2] + 6 + 8 * size <= END);
            }
        }
    }
}
