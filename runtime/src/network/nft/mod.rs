//! A small speaker of the nf_tables netlink protocol: rule sets as values, and their change in one transaction.
//!
//! It holds what Berth's own rules need and no more, and knows nothing of VPCs. See `linux/netfilter/nf_tables.h`
//! for the meaning of the numbers.

mod expr;
mod message;
mod rule;
mod ruleset;
mod socket;
#[cfg(test)]
mod tests;

pub(super) use expr::Verdict;
pub(super) use rule::{EtherType, Rule};
pub(super) use ruleset::{
    Chain, Family, Hook, HookPoint, Key, KeyType, Ruleset, Set, Table, removal, transaction,
};
pub use socket::NftError;
pub(super) use socket::NftSocket;
