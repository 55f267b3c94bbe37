//! Which pages of a snapshot's memory a guest needs first.

use serde::{Deserialize, Serialize};

/// Bytes of a page, everywhere in this configuration.
pub const PAGE_BYTES: u64 = 4096;

/// Pages of the memory's file. Whoever recorded them need not be right: a page too few costs the guest some time when it
/// touches it, one too many some memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkingSet {
    /// Pages that the guest writes to.
    pub written: Vec<PageRange>,
    /// Pages that it only reads.
    pub read: Vec<PageRange>,
}

/// Pages beside one another. `first` is a place in the memory's file, counted in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageRange {
    pub first: u64,
    pub count: u64,
}

impl WorkingSet {
    /// A range that does not lie within so many pages, if there is one.
    pub(super) fn beyond(&self, pages: u64) -> Option<PageRange> {
        let mut ranges = self.written.iter().chain(&self.read);
        let beyond = |range: &&PageRange| {
            let end = range.first.checked_add(range.count);
            range.count == 0 || end.is_none_or(|end| end > pages)
        };
        ranges.find(beyond).copied()
    }
}
