//! The pages that a restored guest is known to need first. They are put where it looks for them before it runs, many at
//! once, instead of one at a time as it stumbles over each. That is a matter of time only: whatever fails here, the guest
//! gets its pages when it touches them.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use kvm_bindings::{KVMIO, kvm_pre_fault_memory};
use kvm_ioctls::VcpuFd;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use super::neighbours::keep_apart;
use crate::config::{Area, PAGE_BYTES, PageRange, WorkingSet};

ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);

/// The thread that has the pages put there, beside what else is done before the guest runs.
#[derive(Debug)]
pub struct Prefetch {
    thread: JoinHandle<u64>,
    vcpu: Sender<OwnedFd>,
}

impl Prefetch {
    /// Begins to map the pages of `set` for the process. Those that the guest is known to write to get a copy of their own, if
    /// the memory is not shared.
    pub fn begin(memory: &GuestMemoryMmap, set: &WorkingSet) -> io::Result<Self> {
        let (vcpu, told) = mpsc::channel();
        let (memory, written, areas) = (memory.clone(), set.written.clone(), set.areas());
        let thread = thread::Builder::new().name("prefetch".to_owned());
        let thread = thread.spawn(move || {
            let begun = Instant::now();
            populate(&memory, &written, &areas);
            map(&memory, &areas, told.recv().ok());
            u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX)
        })?;
        Ok(Self { thread, vcpu })
    }

    /// Has the pages mapped for the guest as well, where the host can (Linux 6.11), by a vCPU that has its CPUID.
    pub fn for_guest(&self, vcpu: &VcpuFd) -> io::Result<()> {
        // SAFETY: a vCPU owns its descriptor, which is open for as long as `vcpu` is borrowed.
        let vcpu = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) }.try_clone_to_owned()?;
        // A thread that has ended will not prefetch any more.
        let _ = self.vcpu.send(vcpu);
        Ok(())
    }

    /// Returns when the pages are there: how long that took, in microseconds.
    pub fn end(self) -> u64 {
        drop(self.vcpu);
        // A thread that panicked has prefetched what it has.
        self.thread.join().unwrap_or(0)
    }
}

/// Maps the pages that are written to, and keeps those that are read apart from all others.
fn populate(memory: &GuestMemoryMmap, written: &[PageRange], areas: &[Area]) {
    // First of all: to part an area takes what is around the new border out of the guest's tables again.
    for area in areas.iter().filter(|area| area.read) {
        for_each_piece(memory, &area.pages, |host, guest| {
            keep_apart(host, length(&guest))
        });
    }
    for range in written {
        for_each_piece(memory, range, |host, guest| {
            advise(host, length(&guest), libc::MADV_POPULATE_WRITE)
        });
    }
}

/// Maps all pages, for the guest if that can be.
fn map(memory: &GuestMemoryMmap, areas: &[Area], mut vcpu: Option<OwnedFd>) {
    for area in areas {
        for_each_piece(memory, &area.pages, |host, guest| {
            let bytes = length(&guest);
            // What is mapped for the guest is mapped for the process before.
            vcpu = vcpu.take().filter(|vcpu| map_for_guest(vcpu, guest).is_ok());
            if vcpu.is_none() {
                advise(host, bytes, libc::MADV_POPULATE_READ);
            }
        });
    }
}

fn length(guest: &Range<u64>) -> usize {
    (guest.end - guest.start) as usize
}

fn advise(host: *mut u8, bytes: usize, advice: libc::c_int) {
    // SAFETY: this changes no content, and fails where nothing is mapped.
    unsafe { libc::madvise(host.cast(), bytes, advice) };
}

/// Calls `with` for each part of the pages that lies in one region, with its address here and its addresses in the guest.
fn for_each_piece(memory: &GuestMemoryMmap, pages: &PageRange, mut with: impl FnMut(*mut u8, Range<u64>)) {
    // Of the file, where one region follows the other.
    let wanted = pages.first * PAGE_BYTES..(pages.first + pages.count) * PAGE_BYTES;
    let mut region_start = 0;
    for region in memory.iter() {
        let region_end = region_start + region.len();
        let (start, end) = (wanted.start.max(region_start), wanted.end.min(region_end));
        if start < end {
            let from = region.start_addr().raw_value() + (start - region_start);
            // SAFETY: the offset is less than the length of the region.
            let host = unsafe { region.as_ptr().add((start - region_start) as usize) };
            with(host, from..from + (end - start));
        }
        region_start = region_end;
    }
}

/// Puts pages that the process has mapped into the guest's tables (`KVM_PRE_FAULT_MEMORY`).
fn map_for_guest(vcpu: &impl AsRawFd, guest: Range<u64>) -> io::Result<()> {
    let mut request = kvm_pre_fault_memory {
        gpa: guest.start,
        size: guest.end - guest.start,
        ..Default::default()
    };
    // SAFETY: the request is a structure of the kernel's shape, and the descriptor is a vCPU's.
    match unsafe { ioctl_with_mut_ref(vcpu, KVM_PRE_FAULT_MEMORY(), &mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    #[test]
    fn pages_on_both_sides_of_the_gap_are_found() {
        let regions = [(GuestAddress(0), 4 << 12), (GuestAddress(1 << 30), 4 << 12)];
        let memory = GuestMemoryMmap::from_ranges(&regions).unwrap();
        let found = |first, count| {
            let mut found = Vec::new();
            for_each_piece(&memory, &PageRange { first, count }, |host, guest| {
                let at = memory.get_host_address(GuestAddress(guest.start)).unwrap();
                assert_eq!(host, at);
                found.push((guest.start, guest.end - guest.start));
            });
            found
        };
        assert_eq!(found(1, 2), [(0x1000, 0x2000)]);
        assert_eq!(found(3, 2), [(0x3000, 0x1000), (1 << 30, 0x1000)]);
        assert_eq!(found(7, 1), [((1 << 30) + 0x3000, 0x1000)]);
    }
}
