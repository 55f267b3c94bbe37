//! The tap: its offload settings and its frames. Not its name, address or rules, which are its maker's business.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use libc::iovec;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
};

use super::header::HEADER_BYTES;

/// Tells the tap which frames the driver can take, and how long the header before each is.
pub(super) fn configure(tap: impl AsFd, features: u64) -> io::Result<()> {
    let fd = tap.as_fd().as_raw_fd();
    let header = HEADER_BYTES as libc::c_int;
    // SAFETY: the descriptor is open and the kernel reads one int behind the pointer, which outlives the call.
    let result = unsafe { libc::ioctl(fd, libc::TUNSETVNETHDRSZ, &raw const header) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open and the argument is a number.
    let result = unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads(features))) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The `TUN_F_*` set for the accepted features. Segmentation needs checksums (virtio 1.3, 5.1.3.1).
fn offloads(features: u64) -> libc::c_uint {
    let accepted = |bit: u32| features & (1 << bit) != 0;
    if !accepted(VIRTIO_NET_F_GUEST_CSUM) {
        return 0;
    }
    let mut flags = libc::TUN_F_CSUM;
    if accepted(VIRTIO_NET_F_GUEST_TSO4) {
        flags |= libc::TUN_F_TSO4;
    }
    if accepted(VIRTIO_NET_F_GUEST_TSO6) {
        flags |= libc::TUN_F_TSO6;
    }
    flags
}

/// Reads one frame with its header; what does not fit is cut off.
///
/// # Safety
/// Every iovec must be writable memory that no Rust reference covers.
pub(super) unsafe fn read_frame(tap: impl AsFd, iovecs: &[iovec]) -> io::Result<usize> {
    let count = libc::c_int::try_from(iovecs.len()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open, the list is `count` long, and its memory is writable by this function's contract.
    let read = unsafe { libc::readv(tap.as_fd().as_raw_fd(), iovecs.as_ptr(), count) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Writes one frame with its header.
///
/// # Safety
/// Every iovec must be readable memory.
pub(super) unsafe fn write_frame(tap: impl AsFd, iovecs: &[iovec]) -> io::Result<usize> {
    let count = libc::c_int::try_from(iovecs.len()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open, the list is `count` long, and its memory is readable by this function's contract.
    let written = unsafe { libc::writev(tap.as_fd().as_raw_fd(), iovecs.as_ptr(), count) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segmentation_is_never_switched_on_without_checksums() {
        assert_eq!(offloads(1 << VIRTIO_NET_F_GUEST_TSO4), 0);
        let all = 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6;
        assert_eq!(
            offloads(all),
            libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6
        );
    }
}
