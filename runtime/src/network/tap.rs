//! Taps: the file through which a machine sends and receives the frames of its network interface.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    thread,
};

use nix::sched::{CloneFlags, unshare};

use super::NetworkError;

const DEVICE: &str = "/dev/net/tun";

nix::ioctl_write_int!(tun_set_iff, b'T', 202);

/// Creates a tap in the namespace of the calling thread: one queue, a virtio-net header before every frame,
/// non-blocking. It vanishes when the last copy of the file is closed, wherever that is.
pub(super) fn create(name: &str) -> Result<OwnedFd, NetworkError> {
    let file = open()?;
    // SAFETY: an all-zero `ifreq` is a valid one: it holds integers and pointers only.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero, so the kernel reads a terminated name.
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .take(libc::IFNAMSIZ - 1)
        .zip(name.bytes())
    {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq` at this address, which `request` is for the time of the call.
    let set = unsafe {
        tun_set_iff(
            file.as_raw_fd(),
            (&raw mut request) as nix::sys::ioctl::ioctl_param_type,
        )
    };
    set.map_err(|errno| NetworkError::Tap {
        name: name.to_owned(),
        source: errno.into(),
    })?;
    Ok(file.into())
}

/// A tap that leads nowhere, for a machine that is not a task's: alone in a network namespace, which lasts as long as it.
pub fn template_tap() -> Result<OwnedFd, NetworkError> {
    const NAME: &str = "tap0";
    let failed = |source: io::Error| NetworkError::Tap {
        name: NAME.to_owned(),
        source,
    };
    // A namespace is a trait of the thread, so it is a thread for this alone.
    thread::scope(|scope| {
        let makes = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
            create(NAME)
        });
        makes
            .join()
            .unwrap_or_else(|_| Err(failed(io::ErrorKind::Other.into())))
    })
}

/// Whether taps can be had at all.
pub(super) fn probe() -> Result<(), NetworkError> {
    open().map(drop)
}

fn open() -> Result<File, NetworkError> {
    let open = || -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(DEVICE)
    };
    open().map_err(|source| NetworkError::TunDevice(DEVICE, source))
}
