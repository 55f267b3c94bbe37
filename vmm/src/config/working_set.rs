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

    /// All its pages, written or read, in order; no two areas touch.
    pub fn areas(&self) -> Vec<Area> {
        let area = |read| move |&pages: &PageRange| Area { pages, read };
        let written = self.written.iter().map(area(false));
        let mut areas: Vec<_> = written.chain(self.read.iter().map(area(true))).collect();
        areas.sort_unstable_by_key(|area| area.pages.first);
        areas.dedup_by(|next, area| {
            let (pages, more) = (&mut area.pages, next.pages);
            let touches = more.first <= pages.first + pages.count;
            if touches {
                pages.count = pages.count.max(more.first + more.count - pages.first);
                area.read |= next.read;
            }
            touches
        });
        areas
    }
}

/// Pages beside one another that a guest needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    pub pages: PageRange,
    /// Whether some of them are only read.
    pub read: bool,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn pages(ranges: &[PageRange]) -> BTreeSet<u64> {
        ranges
            .iter()
            .flat_map(|range| range.first..range.first + range.count)
            .collect()
    }

    fn ranges() -> impl Strategy<Value = Vec<PageRange>> {
        let range = (0..60_u64, 1..6_u64).prop_map(|(first, count)| PageRange { first, count });
        prop::collection::vec(range, 0..12)
    }

    proptest! {
        #[test]
        fn areas_are_all_pages_once_and_do_not_touch(written in ranges(), read in ranges()) {
            let set = WorkingSet { written, read };
            let areas = set.areas();
            let (written, read) = (pages(&set.written), pages(&set.read));
            let all: Vec<PageRange> = areas.iter().map(|area| area.pages).collect();
            prop_assert_eq!(pages(&all), &written | &read);
            for pair in all.windows(2) {
                prop_assert!(pair[0].first + pair[0].count < pair[1].first, "{:?}", pair);
            }
            for area in &areas {
                prop_assert_eq!(area.read, !pages(&[area.pages]).is_disjoint(&read));
            }
        }
    }
}
