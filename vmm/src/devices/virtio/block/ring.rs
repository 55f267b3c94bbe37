//! An io_uring of a drive: made by the drive's thread, shut in to what a drive needs, then used by that thread. Which
//! requests are under way is not here.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{Builder, EnterFlags, IoUring, opcode};

use super::QUEUE_SIZE;
use super::disk::Work;
use crate::positioned::Direction;

/// The drive's file among the registered ones.
const DRIVE: Fixed = Fixed(0);
/// Most threads of the kernel that carry out what cannot go on by itself. They are tasks of the machine's control group.
const MOST_WORKERS: u32 = 4;

/// What a ring is made to carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    ReadsAndFlushes,
    /// Writes as well.
    Everything,
}

/// One drive's ring.
pub struct Ring {
    ring: IoUring,
    takes: Takes,
    /// What was pushed and not submitted yet.
    pushed: u32,
}

impl Ring {
    /// Makes the calling thread's ring, for `file` and nothing else; no other thread can use it. Fails where the host has no
    /// io_uring (ENOSYS), forbids it (EPERM: `kernel.io_uring_disabled`, or a filter), cannot restrict it (before Linux
    /// 5.10: EINVAL) or has no memory for it (ENOMEM).
    pub(super) fn new(file: &File, takes: Takes) -> io::Result<Self> {
        // Flags that only newer kernels know: one thread alone submits (6.0), and it is not interrupted for what it will
        // find by itself (5.19).
        let newer = |builder: &mut Builder| {
            builder.setup_single_issuer().setup_coop_taskrun();
        };
        let ring = match build(newer) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => build(|_| ()),
            ring => ring,
        }?;
        let submitter = ring.submitter();
        submitter.register_files(&[file.as_raw_fd()])?;
        // Workers for files, and for what may last for ever, of which there is nothing. Before Linux 5.15 there is no such
        // bound but that on the control group.
        match submitter.register_iowq_max_workers(&mut [MOST_WORKERS, 1]) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            bounded => bounded?,
        }
        // From the next call on nothing else can be submitted, and nothing registered.
        let mut allowed = vec![
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_flags_allowed(Flags::FIXED_FILE.bits()),
            Restriction::sqe_flags_required(Flags::FIXED_FILE.bits()),
        ];
        if takes == Takes::Everything {
            allowed.push(Restriction::sqe_op(opcode::Writev::CODE));
        }
        submitter.register_restrictions(&mut allowed)?;
        submitter.register_enable_rings()?;
        Ok(Self {
            ring,
            takes,
            pushed: 0,
        })
    }

    /// Whether this is for the ring; if not, it is for its thread.
    pub(super) fn takes(&self, work: Work) -> bool {
        self.takes == Takes::Everything || !matches!(work, Work::Move(Direction::Write, _))
    }

    /// Readable when a request has ended that was not there yet when it was last looked for.
    pub(super) fn event(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Adds a request to those to submit.
    ///
    /// # Safety
    /// Until [`Ring::ended`] returns `token`, `vectors` and the memory that they name must stay valid, that for reading from
    /// the file or writing to it as raw bytes.
    pub(super) unsafe fn push_move(
        &mut self,
        direction: Direction,
        vectors: &[libc::iovec],
        offset: u64,
        token: u64,
    ) -> io::Result<()> {
        let count = u32::try_from(vectors.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let entry = match direction {
            Direction::Read => opcode::Readv::new(DRIVE, vectors.as_ptr(), count)
                .offset(offset)
                .build(),
            Direction::Write => opcode::Writev::new(DRIVE, vectors.as_ptr(), count)
                .offset(offset)
                .build(),
        };
        // SAFETY: what the caller promises.
        unsafe { self.push(entry, token) }
    }

    /// As [`Ring::push_move`], to have the file's data on the disk.
    pub(super) fn push_sync(&mut self, token: u64) -> io::Result<()> {
        let entry = opcode::Fsync::new(DRIVE).flags(FsyncFlags::DATASYNC).build();
        // SAFETY: no memory is named.
        unsafe { self.push(entry, token) }
    }

    /// # Safety
    /// As [`Ring::push_move`], for what the entry names.
    pub(super) unsafe fn push(&mut self, entry: Entry, token: u64) -> io::Result<()> {
        // SAFETY: what the caller promises.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(token)) };
        // A queue is no longer than the ring.
        pushed.map_err(|_| io::ErrorKind::ResourceBusy)?;
        self.pushed += 1;
        Ok(())
    }

    /// Whether there is something to submit.
    pub(super) fn has_pushed(&self) -> bool {
        self.pushed > 0
    }

    /// Submits what was pushed, by one call where nothing is in the way, and waits until `least` requests have ended that
    /// [`Ring::ended`] has not returned. It may do less of both.
    pub(super) fn enter(&mut self, least: u32) -> io::Result<()> {
        // SAFETY: there is no argument; of what was pushed, whoever pushed has promised that it is valid.
        let entered = unsafe {
            let flags = EnterFlags::GETEVENTS.bits();
            self.ring
                .submitter()
                .enter::<libc::sigset_t>(self.pushed, least, flags, None)
        };
        match entered {
            Ok(submitted) => {
                self.pushed = self.pushed.saturating_sub(submitted as u32);
                Ok(())
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR) => Ok(()),
                // The kernel has no memory for it now.
                Some(libc::EAGAIN | libc::EBUSY) => {
                    std::thread::yield_now();
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }

    /// The ring itself, for the tests of what can be done to it.
    #[cfg(test)]
    pub(super) fn kernels(&self) -> &IoUring {
        &self.ring
    }

    /// A request that has ended, and how many bytes it moved.
    pub(super) fn ended(&mut self) -> Option<(u64, io::Result<usize>)> {
        let entry = self.ring.completion().next()?;
        let moved =
            usize::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()));
        Some((entry.user_data(), moved))
    }
}

fn build(also: impl FnOnce(&mut Builder)) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_r_disabled();
    also(&mut builder);
    builder.build(QUEUE_SIZE.into())
}
