//! Room for what pulls write. It is counted before it is written, for all pulls together: against the budget of all images,
//! and against what is free on the file system, of which a reserve stays. What was used least recently goes before a pull
//! is refused. What may go is `evict`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cache::Cache;
use super::digest::Digest;
use super::error::ImageError;
use super::evict::{BLOCK_BYTES, Kind, Named};
use super::source::blocking;

/// What images leave free of their file system: 1 GiB, or 5 % of a small one.
const MAX_RESERVE_BYTES: u64 = 1 << 30;
const RESERVE_PARTS: u64 = 20;
/// So much more than is needed is given at once, so that not each piece has all files counted: this part of the budget, and
/// no more than a part of what is left then for others.
const MAX_AHEAD_BYTES: u64 = 16 << 20;
const AHEAD_PARTS: u64 = 64;
const SPARE_PARTS: u64 = 4;

/// The size of a file system, and what of it is free, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileSystem {
    pub(super) bytes: u64,
    pub(super) free_bytes: u64,
}

impl FileSystem {
    fn of(path: &Path) -> io::Result<Self> {
        let found = nix::sys::statvfs::statvfs(path)?;
        Ok(Self {
            bytes: found.blocks().saturating_mul(found.fragment_size()),
            free_bytes: found.blocks_available().saturating_mul(found.fragment_size()),
        })
    }

    fn reserve_bytes(self) -> u64 {
        MAX_RESERVE_BYTES.min(self.bytes / RESERVE_PARTS)
    }

    /// What images may take of it.
    fn room_bytes(self) -> u64 {
        self.free_bytes.saturating_sub(self.reserve_bytes())
    }
}

pub(super) type Probe = Box<dyn Fn(&Path) -> io::Result<FileSystem> + Send + Sync>;

/// What there is for all pulls of a store.
pub(super) struct Room {
    cache: Arc<Cache>,
    budget_bytes: u64,
    probe: Probe,
    /// Room is given under this lock.
    held: Mutex<BTreeMap<u64, Arc<Held>>>,
    next: AtomicU64,
    /// There was more in use than the budget allows, when it was last looked at.
    over_budget: AtomicBool,
}

/// What one reservation holds.
struct Held {
    /// Most that it may have on disk.
    granted: AtomicU64,
    /// What of that is written, or about to be.
    used: AtomicU64,
    /// This content is counted here, not where it is stored.
    named: Option<Named>,
    /// Where another program writes what is counted here.
    file: Option<PathBuf>,
}

impl Held {
    fn written(&self) -> u64 {
        let used = self.used.load(Ordering::Relaxed);
        match &self.file {
            Some(file) => blocks_of(file).min(used),
            None => used,
        }
    }
}

/// What was looked at together.
struct Sums {
    /// What is stored, and what is granted beside.
    taken: u64,
    /// What is stored, and what is written beside.
    on_disk: u64,
    file_system: FileSystem,
}

impl Sums {
    /// What may be granted in addition so that the file system keeps its reserve when all that is granted is written.
    fn disk_room(&self) -> u64 {
        let unwritten = self.taken.saturating_sub(self.on_disk);
        self.file_system.room_bytes().saturating_sub(unwritten)
    }
}

impl Room {
    pub(super) fn new(cache: Arc<Cache>, budget_bytes: u64) -> Arc<Self> {
        Self::with_probe(cache, budget_bytes, Box::new(FileSystem::of))
    }

    pub(super) fn with_probe(cache: Arc<Cache>, budget_bytes: u64, probe: Probe) -> Arc<Self> {
        Arc::new(Self {
            cache,
            budget_bytes,
            probe,
            held: Mutex::default(),
            next: AtomicU64::new(0),
            over_budget: AtomicBool::new(false),
        })
    }

    /// Nothing yet, for content that will get this name, or for a file that another program writes. It is
    /// given back when the value is dropped.
    pub(super) fn reserve(
        self: &Arc<Self>,
        what: &'static str,
        named: Option<Named>,
        file: Option<&Path>,
    ) -> Arc<Reservation> {
        let held = Arc::new(Held {
            granted: AtomicU64::new(0),
            used: AtomicU64::new(0),
            named,
            file: file.map(Path::to_owned),
        });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id, Arc::clone(&held));
        Arc::new(Reservation {
            room: Arc::clone(self),
            id,
            what,
            held,
        })
    }

    /// Refuses at once what cannot be had even if all that may go is deleted. What is here of these blobs is a part of it.
    /// Blocks.
    pub(super) fn check(
        &self,
        what: &'static str,
        needed: u64,
        blobs: impl IntoIterator<Item = Digest>,
    ) -> Result<(), ImageError> {
        let held = self.lock();
        let mut counted = named(&held);
        counted.extend(blobs.into_iter().map(|digest| (Kind::Blob, digest)));
        let kept = self.cache.kept_bytes(&counted)?.saturating_add(granted(&held));
        let free = self.budget_bytes.saturating_sub(kept);
        match needed > free {
            true => Err(self.over_budget(what, needed, free)),
            false => Ok(()),
        }
    }

    /// Deletes what was used least recently, as far as there is more than the budget allows. What pulls and users need
    /// stays, even beyond the budget. Gives the bytes won. Blocks.
    pub(super) fn trim(&self) -> Result<u64, ImageError> {
        let held = self.lock();
        let excess = |sums: Sums| sums.taken.saturating_sub(self.budget_bytes);
        let before = excess(self.sums(&held)?);
        let won = match before {
            0 => 0,
            bytes => self.cache.evict(bytes)?,
        };
        let left = before.saturating_sub(won);
        self.over_budget.store(left > 0, Ordering::Relaxed);
        if left > 0 {
            let budget_bytes = self.budget_bytes;
            tracing::warn!(
                excess_bytes = left,
                budget_bytes,
                "the images in use are larger than the budget"
            );
        }
        Ok(won)
    }

    pub(super) fn is_over_budget(&self) -> bool {
        self.over_budget.load(Ordering::Relaxed)
    }

    /// Bytes on disk of all that is kept and of what pulls may write at the moment. Blocks.
    pub(super) fn taken_bytes(&self) -> Result<u64, ImageError> {
        Ok(self.sums(&self.lock())?.taken)
    }

    /// What of the file system's free bytes is not for anybody else: what images may still come to take, and the reserve
    /// that they leave. Blocks.
    pub(super) fn promised_bytes(&self) -> Result<u64, ImageError> {
        let sums = self.sums(&self.lock())?;
        let still = self.budget_bytes.saturating_sub(sums.on_disk);
        Ok(still.saturating_add(sums.file_system.reserve_bytes()))
    }

    fn grant(&self, reservation: &Reservation, bytes: u64) -> Result<(), ImageError> {
        let all = self.lock();
        let held = &reservation.held;
        if held.take(bytes) {
            return Ok(());
        }
        let had = held.granted.load(Ordering::Relaxed);
        let needed = held.used.load(Ordering::Relaxed).saturating_add(bytes);
        let more = needed.saturating_sub(had);
        let mut sums = self.sums(&all)?;
        let missing = |sums: &Sums| {
            let budget = sums.taken.saturating_add(more).saturating_sub(self.budget_bytes);
            (budget, more.saturating_sub(sums.disk_room()))
        };
        let ahead = MAX_AHEAD_BYTES.min(self.budget_bytes / AHEAD_PARTS);
        let (budget, disk) = missing(&sums);
        if budget.max(disk) > 0 {
            self.cache.evict(budget.max(disk).saturating_add(ahead))?;
            sums = self.sums(&all)?;
        }
        let (budget, disk) = missing(&sums);
        if budget > 0 {
            let others = sums.taken.saturating_sub(had);
            let free = self.budget_bytes.saturating_sub(others);
            return Err(self.over_budget(reservation.what, needed, free));
        }
        if disk > 0 {
            return Err(ImageError::DiskFull {
                what: reservation.what,
                needed_bytes: more,
                free_bytes: sums.disk_room(),
                reserve_bytes: sums.file_system.reserve_bytes(),
                path: self.cache.dir().to_owned(),
            });
        }
        let spare = (self.budget_bytes - sums.taken - more).min(sums.disk_room() - more);
        let ahead = ahead.min(spare / SPARE_PARTS);
        held.granted
            .store(needed.saturating_add(ahead), Ordering::Relaxed);
        held.used.store(needed, Ordering::Relaxed);
        Ok(())
    }

    fn over_budget(&self, what: &'static str, needed_bytes: u64, free_bytes: u64) -> ImageError {
        ImageError::OverBudget {
            what,
            needed_bytes,
            free_bytes,
            budget_bytes: self.budget_bytes,
        }
    }

    fn sums(&self, held: &BTreeMap<u64, Arc<Held>>) -> Result<Sums, ImageError> {
        let dir = self.cache.dir();
        // Before the files are counted: what goes meanwhile is missed, not counted twice.
        let file_system = (self.probe)(dir).map_err(ImageError::io(dir))?;
        let stored = self.cache.stored_bytes(&named(held))?;
        let written = held
            .values()
            .map(|held| held.written().min(held.granted.load(Ordering::Relaxed)));
        Ok(Sums {
            taken: stored.saturating_add(granted(held)),
            on_disk: stored.saturating_add(written.fold(0, u64::saturating_add)),
            file_system,
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Out of what is granted already.
    fn take(&self, bytes: u64) -> bool {
        let needed = self.used.load(Ordering::Relaxed).saturating_add(bytes);
        let fits = needed <= self.granted.load(Ordering::Relaxed);
        if fits {
            self.used.store(needed, Ordering::Relaxed);
        }
        fits
    }
}

/// Room for one thing that a pull writes, and only one thread at a time grows it.
pub(super) struct Reservation {
    room: Arc<Room>,
    id: u64,
    /// For messages.
    what: &'static str,
    held: Arc<Held>,
}

impl Reservation {
    /// So much more will be written. Blocks.
    pub(super) fn grow_now(&self, bytes: u64) -> Result<(), ImageError> {
        match self.held.take(bytes) {
            true => Ok(()),
            false => self.room.grant(self, bytes),
        }
    }

    pub(super) async fn grow(self: &Arc<Self>, bytes: u64) -> Result<(), ImageError> {
        if self.held.take(bytes) {
            return Ok(());
        }
        let this = Arc::clone(self);
        blocking("counting", move || this.room.grant(&this, bytes)).await
    }

    /// What was written is deleted, and the room is kept.
    pub(super) fn begin_anew(&self) {
        self.held.used.store(0, Ordering::Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.room.lock().remove(&self.id);
    }
}

fn granted(held: &BTreeMap<u64, Arc<Held>>) -> u64 {
    held.values()
        .map(|held| held.granted.load(Ordering::Relaxed))
        .fold(0, u64::saturating_add)
}

fn named(held: &BTreeMap<u64, Arc<Held>>) -> BTreeSet<Named> {
    held.values().filter_map(|held| held.named).collect()
}

/// What a file takes on disk; nothing if it is not there.
pub(super) fn blocks_of(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |file| file.blocks().saturating_mul(BLOCK_BYTES))
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod tests;
