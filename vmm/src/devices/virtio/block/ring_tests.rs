//! What a drive's ring can be made to do, and hosts that have none.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::thread;

use io_uring::squeue::Entry;
use io_uring::types::{Fd, Fixed};
use io_uring::{IoUring, opcode, squeue};
use nix::sys::memfd::{MFdFlags, memfd_create};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use virtio_bindings::virtio_blk::*;

use super::ring::{Ring, Takes};
use super::tests::{Bench, OK, content, has_ring};
use crate::config::DriveEngine;
use crate::devices::virtio::throttle::Throttle;
use crate::jail::Jail;

impl Ring {
    /// How the kernel answers this entry.
    fn answer(&mut self, entry: &Entry) -> io::Result<usize> {
        // SAFETY: the tests' entries name memory that lives as long as the test, or none.
        unsafe { self.push(entry.clone(), 7) }.unwrap();
        while self.has_pushed() {
            self.enter(1).unwrap();
        }
        loop {
            if let Some((token, answer)) = self.ended() {
                assert_eq!(token, 7);
                return answer;
            }
            self.enter(1).unwrap();
        }
    }
}

fn refused(answer: io::Result<usize>) -> bool {
    answer.is_err_and(|error| error.raw_os_error() == Some(libc::EACCES))
}

#[test]
fn a_ring_reads_writes_and_flushes_its_file_and_does_nothing_else() {
    if !has_ring() {
        return;
    }
    let (file, other) = (content(), content());
    let mut ring = Ring::new(&file, Takes::Everything).unwrap();
    let mut byte = [0u8; 1];
    let vector = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    let (drive, other) = (Fixed(0), Fd(other.as_raw_fd()));
    let allowed = [
        opcode::Readv::new(drive, &raw const vector, 1)
            .offset(512)
            .build(),
        opcode::Writev::new(drive, &raw const vector, 1).offset(0).build(),
        opcode::Fsync::new(drive).build(),
    ];
    for entry in &allowed {
        assert!(ring.answer(entry).is_ok(), "{entry:?}");
    }
    let path = c"/etc/hostname".as_ptr();
    let forbidden = [
        // Another file than the drive's.
        opcode::Readv::new(other, &raw const vector, 1).build(),
        opcode::Writev::new(other, &raw const vector, 1).build(),
        opcode::Fsync::new(other).build(),
        // Another way to do what is allowed: after another, in a chain, on a thread of the kernel, without an answer.
        allowed[2]
            .clone()
            .flags(squeue::Flags::FIXED_FILE | squeue::Flags::IO_LINK),
        allowed[2]
            .clone()
            .flags(squeue::Flags::FIXED_FILE | squeue::Flags::IO_DRAIN),
        allowed[2]
            .clone()
            .flags(squeue::Flags::FIXED_FILE | squeue::Flags::ASYNC),
        allowed[2]
            .clone()
            .flags(squeue::Flags::FIXED_FILE | squeue::Flags::SKIP_SUCCESS),
        // Anything else.
        opcode::Nop::new().build(),
        opcode::Read::new(drive, (&raw mut byte).cast(), 1).build(),
        opcode::Write::new(drive, (&raw const byte).cast(), 1).build(),
        opcode::Fallocate::new(drive, 1 << 30).build(),
        opcode::OpenAt::new(Fd(libc::AT_FDCWD), path).build(),
        opcode::Close::new(Fd(file.as_raw_fd())).build(),
        opcode::UnlinkAt::new(Fd(libc::AT_FDCWD), path).build(),
        opcode::Socket::new(libc::AF_INET, libc::SOCK_DGRAM, 0).build(),
        opcode::Madvise::new(std::ptr::null(), 4096, libc::MADV_NORMAL).build(),
        opcode::PollAdd::new(drive, 1).build(),
    ];
    for entry in &forbidden {
        assert!(refused(ring.answer(entry)), "{entry:?}");
    }
}

#[test]
fn nothing_more_can_be_registered_with_a_ring() {
    if !has_ring() {
        return;
    }
    let (file, other) = (content(), content());
    let ring = Ring::new(&file, Takes::Everything).unwrap();
    let submitter = ring.kernels().submitter();
    let answers = [
        submitter.register_files(&[other.as_raw_fd()]),
        submitter.unregister_files(),
        submitter.register_files_update(0, &[other.as_raw_fd()]).map(drop),
        submitter.register_eventfd(other.as_raw_fd()),
        submitter.register_restrictions(&mut []),
        submitter.register_iowq_max_workers(&mut [64, 64]),
        submitter.register_enable_rings(),
    ];
    for (index, answer) in answers.into_iter().enumerate() {
        let code = answer.unwrap_err().raw_os_error();
        assert!(
            matches!(code, Some(libc::EACCES | libc::EBADFD)),
            "{index}: {code:?}"
        );
    }
}

#[test]
fn no_other_thread_can_submit_to_a_ring() {
    if !has_ring() || !knows_single_issuers() {
        return;
    }
    let file = content();
    let mut ring = Ring::new(&file, Takes::Everything).unwrap();
    ring.push_sync(1).unwrap();
    let code = thread::scope(|scope| {
        let other = scope.spawn(|| ring.enter(0).unwrap_err().raw_os_error());
        other.join().unwrap()
    });
    assert_eq!(code, Some(libc::EEXIST));
}

fn knows_single_issuers() -> bool {
    let known = <IoUring>::builder().setup_single_issuer().build(1);
    if known.is_err() {
        let _ = writeln!(io::stderr(), "SKIPPED: this kernel is older than 6.0");
    }
    known.is_ok()
}

/// Has the calling thread, and those that it makes, live on a host that answers one call with an error.
fn without(call: libc::c_long, errno: i32) {
    let filter = SeccompFilter::new(
        [(call, vec![])].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    apply_filter(&BpfProgram::try_from(filter.unwrap()).unwrap()).unwrap();
}

#[test]
fn where_there_is_no_io_uring_requests_are_carried_out_in_order() {
    let hosts = [
        (libc::SYS_io_uring_setup, libc::ENOSYS),
        (libc::SYS_io_uring_setup, libc::EPERM),
        (libc::SYS_io_uring_setup, libc::ENOMEM),
        (libc::SYS_io_uring_register, libc::EINVAL),
        (libc::SYS_io_uring_register, libc::EPERM),
    ];
    for (call, errno) in hosts {
        let lacking = thread::spawn(move || {
            without(call, errno);
            let mut bench = Bench::new(DriveEngine::IoUring, false);
            assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 1, 512, false).0, OK);
            assert_eq!(bench.request(VIRTIO_BLK_T_FLUSH, 0, 0, false).0, OK);
            bench.counters.clone()
        });
        let counters = lacking.join().unwrap();
        assert_eq!(counters.snapshot().block_io_uring_drives, 0);
        assert_eq!(counters.snapshot().block_write_ops, 1);
    }
}

#[test]
fn the_metrics_say_which_engine_a_drive_has() {
    let drives = |file: File, engine| {
        let mut bench = Bench::on(file, engine, false, Throttle::open(), Jail::NONE);
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, 1, 512, true).0, OK);
        bench.counters.snapshot().block_io_uring_drives
    };
    let in_memory = || {
        let file = File::from(memfd_create(c"disk", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(4096).unwrap();
        file
    };
    let has_ring = u64::from(has_ring());
    assert_eq!(drives(content(), DriveEngine::InOrder), 0);
    assert_eq!(drives(content(), DriveEngine::IoUring), has_ring);
    assert_eq!(drives(in_memory(), DriveEngine::Auto), 0);
    assert_eq!(drives(in_memory(), DriveEngine::IoUring), has_ring);
}

#[test]
fn a_ring_that_is_not_to_write_cannot() {
    if !has_ring() {
        return;
    }
    let mut ring = Ring::new(&content(), Takes::ReadsAndFlushes).unwrap();
    let byte = [0u8; 1];
    let vector = libc::iovec {
        iov_base: byte.as_ptr().cast_mut().cast(),
        iov_len: 1,
    };
    let write = opcode::Writev::new(Fixed(0), &raw const vector, 1).build();
    assert!(refused(ring.answer(&write)));
    assert!(ring.answer(&opcode::Fsync::new(Fixed(0)).build()).is_ok());
}
