//! The pages that a restored guest is known to need first. They are put where it looks for them before it runs, many at
//! once, instead of one at a time as it stumbles over each. That is a matter of time only: whatever fails here, the guest
//! gets its pages when it touches them.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use kvm_bindings::{KVMIO, kvm_pre_fault_memory};
use kvm_ioctls::VcpuFd;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use super::neighbours;
use crate::config::{PAGE_BYTES, PageRange, WorkingSet};

ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);

/// Prefetches on a thread of its own, beside what else is done before the guest runs. How long it took, in microseconds.
pub fn prefetch_aside(
    memory: &GuestMemoryMmap,
    set: &WorkingSet,
    vcpu: &VcpuFd,
) -> io::Result<JoinHandle<u64>> {
    // SAFETY: a vCPU owns its descriptor, which is open for as long as `vcpu` is borrowed.
    let vcpu = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) }.try_clone_to_owned()?;
    let (memory, set) = (memory.clone(), set.clone());
    thread::Builder::new().name("prefetch".to_owned()).spawn(move || {
        let begun = Instant::now();
        prefetch(&memory, &set, &vcpu);
        u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    })
}

/// Maps the pages of `set` for the process and, where the host can (Linux 6.11), for the guest, whose first vCPU has its
/// CPUID. Those that the guest is known to write to get a copy of their own, if the memory is not `shared`.
fn prefetch(memory: &GuestMemoryMmap, set: &WorkingSet, vcpu: &impl AsRawFd) {
    // First of all: to part an area takes what is around the new border out of the guest's tables again.
    for range in &set.read {
        for_each_piece(memory, range, |host, guest| {
            neighbours::keep_apart(host, (guest.end - guest.start) as usize);
        });
    }
    let mut mappable = true;
    for (ranges, advice) in [
        (&set.written, libc::MADV_POPULATE_WRITE),
        (&set.read, libc::MADV_POPULATE_READ),
    ] {
        for range in ranges {
            for_each_piece(memory, range, |host, guest| {
                let len = (guest.end - guest.start) as usize;
                // SAFETY: the piece lies within a region of `memory`, which is mapped for as long as `memory` is borrowed;
                // to populate it changes no content.
                let populated = unsafe { libc::madvise(host.cast(), len, advice) } == 0;
                if populated && mappable {
                    mappable = map_for_guest(vcpu, guest).is_ok();
                }
            });
        }
    }
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
