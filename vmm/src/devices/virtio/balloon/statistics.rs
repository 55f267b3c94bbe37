//! What a guest says of its memory (virtio 1.3, 5.5.6.3), out of a buffer of the statistics queue.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::control::MemoryStatistics;

/// A tag and a value, with nothing between.
const ENTRY_BYTES: usize = 10;
/// Most that is read of a buffer; Linux knows 16 tags.
const MAX_BYTES: usize = 64 * ENTRY_BYTES;

/// The statistics in a chain; none if it cannot be read.
pub(super) fn of_chain(
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
) -> Option<MemoryStatistics> {
    let mut bytes = [0; MAX_BYTES];
    let mut len = 0;
    for buffer in chain.readable() {
        let end = MAX_BYTES.min(len + buffer.len() as usize);
        memory
            .read_slice(&mut bytes[len..end], GuestAddress(buffer.addr().0))
            .ok()?;
        len = end;
    }
    Some(of_bytes(&bytes[..len]))
}

/// Tags that are not known say nothing, nor does what is cut off; of two with the same tag the last one counts.
fn of_bytes(bytes: &[u8]) -> MemoryStatistics {
    let mut statistics = MemoryStatistics::default();
    let (entries, _) = bytes.as_chunks::<ENTRY_BYTES>();
    for entry in entries {
        let [low, high, value @ ..] = *entry;
        if let Some(field) = field(&mut statistics, u16::from_le_bytes([low, high])) {
            *field = Some(u64::from_le_bytes(value));
        }
    }
    statistics
}

/// By the numbers of `VIRTIO_BALLOON_S_…`; those from 10 on are Linux's.
fn field(of: &mut MemoryStatistics, tag: u16) -> Option<&mut Option<u64>> {
    Some(match tag {
        0 => &mut of.swap_in_bytes,
        1 => &mut of.swap_out_bytes,
        2 => &mut of.major_faults,
        3 => &mut of.minor_faults,
        4 => &mut of.free_bytes,
        5 => &mut of.total_bytes,
        6 => &mut of.available_bytes,
        7 => &mut of.cache_bytes,
        8 => &mut of.huge_page_allocations,
        9 => &mut of.huge_page_failures,
        10 => &mut of.oom_kills,
        11 => &mut of.allocation_stalls,
        12 => &mut of.background_scanned_bytes,
        13 => &mut of.direct_scanned_bytes,
        14 => &mut of.background_reclaimed_bytes,
        15 => &mut of.direct_reclaimed_bytes,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_taken_and_all_else_is_let_go() {
        let entry = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
        let mut bytes = [
            entry(4, 7),
            entry(5, u64::MAX),
            entry(0x400, 1),
            entry(16, 2),
            entry(4, 8),
        ]
        .concat();
        bytes.extend([6, 0, 1, 1]);
        let expected = MemoryStatistics {
            free_bytes: Some(8),
            total_bytes: Some(u64::MAX),
            ..MemoryStatistics::default()
        };
        assert_eq!(of_bytes(&bytes), expected);
        assert_eq!(of_bytes(&[]), MemoryStatistics::default());
    }

    #[test]
    fn every_tag_has_a_field_of_its_own() {
        let mut statistics = MemoryStatistics::default();
        for tag in 0..16 {
            let field = field(&mut statistics, tag).unwrap();
            assert_eq!(field.replace(u64::from(tag)), None, "{tag}");
        }
    }
}
