//! Port 0x61, of which only one thing is left: kernels read there why a non-maskable interrupt came. All zero means that
//! it was no hardware error, so that they treat it as the request for attention that it is.

use crate::bus::BusDevice;

/// The port.
pub const SYSTEM_CONTROL_PORT: u16 = 0x61;

pub struct SystemControl;

impl BusDevice for SystemControl {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}
