//! Addresses: which ones of a range may be given out, and which range links a VPC to the host. Pure arithmetic.

use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::Ipv4Net;
use sha2::{Digest, Sha256};

/// Shared address space (RFC 6598), of which the links between VPCs and the host take a sixteenth.
const TRANSIT_SPACE: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
/// A /14 holds a /30 for each of the 65,536 indices of a VPC.
const TRANSIT_BLOCK_LEN: u8 = 14;
const TRANSIT_BLOCKS: u8 = 16;

/// The router of a subnet: its first address after the network's own.
#[must_use]
pub fn gateway(cidr: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(cidr.network()).saturating_add(1))
}

/// Whether an address of a subnet is kept back: the first four and the last, as in AWS.
#[must_use]
pub fn is_reserved(cidr: Ipv4Net, address: Ipv4Addr) -> bool {
    let offset = u32::from(address).wrapping_sub(u32::from(cidr.network()));
    offset < 4 || address == cidr.broadcast()
}

/// Whether an address can be given to a network interface of a subnet.
#[must_use]
pub fn is_assignable(cidr: Ipv4Net, address: Ipv4Addr) -> bool {
    cidr.contains(&address) && !is_reserved(cidr, address)
}

/// The lowest assignable address that is not in use.
#[must_use]
pub fn next_free(cidr: Ipv4Net, in_use: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let first = u32::from(cidr.network()).checked_add(4)?;
    let end = u32::from(cidr.broadcast());
    let mut candidate = first;
    // Addresses in use come sorted, so the first gap is found in one pass over them, never over the range.
    for used in in_use.range(Ipv4Addr::from(first)..) {
        if u32::from(*used) != candidate {
            break;
        }
        candidate = candidate.checked_add(1)?;
    }
    (candidate < end).then(|| Ipv4Addr::from(candidate))
}

/// How many addresses of a subnet can be assigned.
#[must_use]
pub fn capacity(cidr: Ipv4Net) -> u32 {
    let size = 1_u64 << (32 - u32::from(cidr.prefix_len()));
    u32::try_from(size.saturating_sub(5)).unwrap_or(u32::MAX)
}

/// The two ends of the link between a VPC and the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transit {
    pub(super) host: Ipv4Addr,
    pub(super) vpc: Ipv4Addr,
}

impl Transit {
    pub(super) const PREFIX_LEN: u8 = 30;

    /// The link of the VPC with this index, out of the daemon's block.
    pub(super) fn new(block: Ipv4Net, index: u16) -> Self {
        let base = u32::from(block.network()) + u32::from(index) * 4;
        Self {
            host: Ipv4Addr::from(base + 1),
            vpc: Ipv4Addr::from(base + 2),
        }
    }
}

/// The block from which the daemon with this prefix takes its links.
pub(super) fn transit_block(prefix: &str) -> Ipv4Net {
    let number = Sha256::digest(prefix.as_bytes())[0] % TRANSIT_BLOCKS;
    let base = u32::from(TRANSIT_SPACE) + (u32::from(number) << (32 - TRANSIT_BLOCK_LEN));
    Ipv4Net::new_assert(Ipv4Addr::from(base), TRANSIT_BLOCK_LEN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnet() -> impl Strategy<Value = Ipv4Net> {
        (any::<u32>(), 16_u8..=28)
            .prop_map(|(base, len)| Ipv4Net::new_assert(Ipv4Addr::from(base), len).trunc())
    }

    proptest! {
        #[test]
        fn the_next_free_address_is_assignable_and_not_in_use(
            cidr in subnet(),
            offsets in prop::collection::btree_set(0_u32..64, 0..40),
        ) {
            let in_use: BTreeSet<_> =
                offsets.iter().map(|offset| Ipv4Addr::from(u32::from(cidr.network()).wrapping_add(*offset))).collect();
            if let Some(address) = next_free(cidr, &in_use) {
                prop_assert!(is_assignable(cidr, address));
                prop_assert!(!in_use.contains(&address));
                let lower = u32::from(cidr.network())..u32::from(address);
                prop_assert!(lower.map(Ipv4Addr::from).all(|a| in_use.contains(&a) || is_reserved(cidr, a)));
            } else {
                prop_assert!(cidr.hosts().all(|a| in_use.contains(&a) || is_reserved(cidr, a)));
            }
        }

        #[test]
        fn links_of_two_vpcs_never_overlap(prefix in "[a-z0-9]{1,6}", a: u16, b: u16) {
            let block = transit_block(&prefix);
            let (x, y) = (Transit::new(block, a), Transit::new(block, b));
            prop_assert!(block.contains(&x.host) && block.contains(&x.vpc));
            prop_assert_eq!(a == b, x == y);
            prop_assert_eq!(u32::from(x.host) & 3, 1);
            prop_assert_eq!(u32::from(x.vpc) & 3, 2);
        }
    }

    #[test]
    fn a_full_subnet_has_no_free_address() {
        let cidr: Ipv4Net = "10.0.0.0/28".parse().unwrap();
        let mut in_use = BTreeSet::new();
        while let Some(address) = next_free(cidr, &in_use) {
            in_use.insert(address);
        }
        assert_eq!(in_use.len(), 11);
        assert_eq!(capacity(cidr), 11);
        assert_eq!(in_use.first(), Some(&Ipv4Addr::new(10, 0, 0, 4)));
        assert_eq!(in_use.last(), Some(&Ipv4Addr::new(10, 0, 0, 14)));
        assert_eq!(gateway(cidr), Ipv4Addr::new(10, 0, 0, 1));
    }

    #[test]
    fn the_end_of_the_address_space_does_not_wrap() {
        let cidr: Ipv4Net = "255.255.255.240/28".parse().unwrap();
        let in_use: BTreeSet<_> = (4..16).map(|n| Ipv4Addr::new(255, 255, 255, 240 + n)).collect();
        assert_eq!(next_free(cidr, &in_use), None);
    }
}
