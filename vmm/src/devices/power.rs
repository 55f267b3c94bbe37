//! The ports by which a guest powers itself off or resets itself: the sleep control, sleep status and reset registers of
//! hardware-reduced ACPI (ACPI 6.5, 4.8.3.7 and 4.8.3.6).

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::config::ExitReason;
use crate::ending::Ending;

/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u16 = 0;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u16 = 1;
/// Offset of the reset register.
pub const RESET: u16 = 2;
/// What resets the machine when written to the reset register.
pub const RESET_VALUE: u8 = 1;
/// The sleep type of S5 (soft off), as the DSDT names it.
pub const SLEEP_TYPE_S5: u8 = 5;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;

/// The three registers.
pub struct Power {
    ending: Arc<Ending>,
}

impl Power {
    pub fn new(ending: Arc<Ending>) -> Self {
        Self { ending }
    }
}

impl BusDevice for Power {
    /// All registers read as zero: nothing is pending, and nothing woke the machine.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let [value] = *data else { return };
        if offset == u64::from(SLEEP_CONTROL) {
            let sleep_type = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
            if value & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_S5 {
                self.ending.end(ExitReason::PowerOff, None);
            }
        } else if offset == u64::from(RESET) && value == RESET_VALUE {
            self.ending.end(ExitReason::Reset, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended_by(offset: u16, data: &[u8]) -> Option<ExitReason> {
        let ending = Arc::new(Ending::new().unwrap());
        Power::new(ending.clone()).write(u64::from(offset), data);
        ending.report().map(|report| report.reason)
    }

    #[test]
    fn soft_off_and_reset_end_the_machine() {
        assert_eq!(ended_by(SLEEP_CONTROL, &[0x34]), Some(ExitReason::PowerOff));
        assert_eq!(ended_by(RESET, &[1]), Some(ExitReason::Reset));
    }

    #[test]
    fn other_writes_do_nothing() {
        assert_eq!(ended_by(SLEEP_CONTROL, &[0x14]), None, "type without enable");
        assert_eq!(ended_by(SLEEP_CONTROL, &[0x20]), None, "enable with another type");
        assert_eq!(ended_by(SLEEP_STATUS, &[0x34]), None);
        assert_eq!(ended_by(RESET, &[0]), None);
        assert_eq!(ended_by(SLEEP_CONTROL, &[0x34, 0]), None, "two bytes at once");
    }
}
