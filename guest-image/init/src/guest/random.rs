//! The guest's random number generator (random(4)). A guest that was cloned has the state of its siblings: the kernel throws
//! it away when it hears of its new generation, and the host gives it something of its own, whichever comes first.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use berth_protocol::message::SEED_BYTES;

#[derive(Debug, thiserror::Error)]
#[error("cannot reseed the random number generator: {0}")]
pub(crate) struct ReseedError(#[from] io::Error);

/// `struct rand_pool_info`.
#[repr(C)]
struct PoolInfo {
    entropy_count: libc::c_int,
    buf_size: libc::c_int,
    buf: [u8; SEED_BYTES],
}

nix::ioctl_write_ptr_bad!(add_entropy, nix::request_code_write!(b'R', 0x03, 8), PoolInfo);
nix::ioctl_none!(reseed_crng, b'R', 0x07);

/// Mixes the seed in, and has the generator start anew from all that it has.
pub(crate) fn reseed(seed: &[u8; SEED_BYTES]) -> Result<(), ReseedError> {
    let device = File::open("/dev/urandom")?;
    let pool = PoolInfo {
        entropy_count: (SEED_BYTES * 8) as libc::c_int,
        buf_size: SEED_BYTES as libc::c_int,
        buf: *seed,
    };
    // SAFETY: RNDADDENTROPY reads the structure, and as many bytes after its two numbers as the second one says.
    unsafe { add_entropy(device.as_raw_fd(), &raw const pool) }.map_err(io::Error::from)?;
    // SAFETY: RNDRESEEDCRNG takes no argument.
    unsafe { reseed_crng(device.as_raw_fd()) }.map_err(io::Error::from)?;
    Ok(())
}
