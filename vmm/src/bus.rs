//! Which device answers at an address. One bus for memory-mapped registers, one for ports. Built once, then only read,
//! so that vCPUs share it without a lock; a device locks itself.

use std::ops::Range;
use std::sync::Arc;

/// What sits on a bus.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes at `offset` from the start of the device's range.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data` at `offset` from the start of the device's range.
    fn write(&self, offset: u64, data: &[u8]);
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    #[error("the range {0:#x?} is empty")]
    Empty(Range<u64>),
    #[error("the range {0:#x?} overlaps another device's")]
    Overlap(Range<u64>),
}

/// Devices by address.
#[derive(Default)]
pub struct Bus {
    /// Sorted by start, not overlapping.
    devices: Vec<(Range<u64>, Arc<dyn BusDevice>)>,
}

impl Bus {
    /// Puts a device at `range`.
    pub fn insert(&mut self, range: Range<u64>, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        if range.is_empty() {
            return Err(BusError::Empty(range));
        }
        let at = self
            .devices
            .partition_point(|(other, _)| other.start < range.start);
        let before = at
            .checked_sub(1)
            .is_some_and(|at| self.devices[at].0.end > range.start);
        let after = self
            .devices
            .get(at)
            .is_some_and(|(other, _)| other.start < range.end);
        if before || after {
            return Err(BusError::Overlap(range));
        }
        self.devices.insert(at, (range, device));
        Ok(())
    }

    /// Reads at `address`, and says whether a device claimed all bytes; else they are all ones, as on an idle bus.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let found = self.find(address, data.len());
        match found {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(0xff),
        }
        found.is_some()
    }

    /// Writes at `address`, and says whether a device claimed all bytes; else nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let found = self.find(address, data.len());
        if let Some((offset, device)) = found {
            device.write(offset, data);
        }
        found.is_some()
    }

    fn find(&self, address: u64, len: usize) -> Option<(u64, &dyn BusDevice)> {
        self.devices
            .partition_point(|(range, _)| range.start <= address)
            .checked_sub(1)
            .map(|at| &self.devices[at])
            .filter(|(range, _)| {
                range
                    .end
                    .checked_sub(address)
                    .is_some_and(|room| len as u64 <= room)
            })
            .map(|(range, device)| (address - range.start, &**device))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, usize)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            self.0.lock().unwrap().push((offset, data.len()));
            data.fill(0x5a);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.len()));
        }
    }

    #[test]
    fn an_access_reaches_the_device_with_its_offset() {
        let mut bus = Bus::default();
        let device = Arc::new(Recorder::default());
        bus.insert(0x1000..0x1010, device.clone()).unwrap();
        let mut data = [0; 4];
        assert!(bus.read(0x100c, &mut data));
        assert!(bus.write(0x1000, &[1, 2]));
        assert_eq!(data, [0x5a; 4]);
        assert_eq!(*device.0.lock().unwrap(), [(0xc, 4), (0, 2)]);
    }

    #[test]
    fn an_access_nobody_claims_reads_all_ones_and_is_said_so() {
        let mut bus = Bus::default();
        bus.insert(0x1000..0x1010, Arc::new(Recorder::default())).unwrap();
        for address in [0, 0xfff, 0x100d, 0x1010, u64::MAX] {
            let mut data = [0; 4];
            assert!(!bus.read(address, &mut data), "at {address:#x}");
            assert_eq!(data, [0xff; 4], "at {address:#x}");
            assert!(!bus.write(address, &data), "at {address:#x}");
        }
    }

    proptest! {
        #[test]
        fn ranges_never_overlap(ranges in proptest::collection::vec((0u64..64, 0u64..16), 0..16)) {
            let mut bus = Bus::default();
            let mut accepted: Vec<Range<u64>> = Vec::new();
            for (start, len) in ranges {
                let range = start..start + len;
                let free = len > 0 && accepted.iter().all(|o| o.end <= range.start || range.end <= o.start);
                prop_assert_eq!(bus.insert(range.clone(), Arc::new(Recorder::default())).is_ok(), free);
                if free {
                    accepted.push(range);
                }
            }
            for address in 0..80u64 {
                let claimed = accepted.iter().any(|range| range.contains(&address));
                let mut data = [0];
                prop_assert_eq!(bus.read(address, &mut data), claimed);
                prop_assert_eq!(data[0] == 0x5a, claimed);
            }
        }
    }
}
