//! The disks of volumes and snapshots: one sparse file each, in a folder that only root can enter. The host formats a new
//! one, copies bytes and deletes; what a task has written it neither mounts nor looks at.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::at;
use super::scratch::{copy_sparse, mkfs};
use crate::faults::{self, Point};
use crate::model::volume::VolumeId;
use crate::task::host::{HostError, VolumeDisk};

/// Of the name of a disk that is not whole yet.
const UNFINISHED: &str = "new";
/// Of a copy, what may wait in memory to be written: whoever stops it waits for that.
const UNWRITTEN_BYTES: u64 = 16 << 20;
/// `st_blocks` of stat(2) counts these.
const BLOCK_BYTES: u64 = 512;
/// With a journal: a disk outlives the crash of its machine. The file is new, so that no part of the journal needs zeroes.
const FORMAT: [&str; 6] = [
    "-O",
    "has_journal,^resize_inode",
    "-e",
    "remount-ro",
    "-E",
    "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0",
];

#[derive(Clone, Debug)]
pub(super) struct VolumeDisks {
    dir: PathBuf,
    /// Making and removing one disk exclude each other, even if the asker has gone away meanwhile.
    locks: Arc<Mutex<HashMap<VolumeId, Arc<tokio::sync::Mutex<()>>>>>,
}

impl VolumeDisks {
    /// What an earlier daemon did not finish is thrown away. Nothing else is, whether anybody knows it or not.
    pub(super) fn open(dir: PathBuf) -> Result<Self, HostError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(|error| at(&dir, "make", &error))?;
        for entry in fs::read_dir(&dir)
            .map_err(|error| at(&dir, "read", &error))?
            .flatten()
        {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == UNFINISHED) {
                fs::remove_file(&path).map_err(|error| at(&path, "remove", &error))?;
            }
        }
        Ok(Self {
            dir,
            locks: Arc::default(),
        })
    }

    pub(super) fn path(&self, id: &VolumeId) -> PathBuf {
        self.dir.join(format!("{id}.img"))
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes a disk unless it is there. It is not made to its end once the asker has gone away.
    pub(super) async fn make(&self, disk: VolumeDisk) -> Result<(), HostError> {
        let guard = self.lock(&disk.id).await;
        let this = self.clone();
        let asker = Asker::default();
        let gone = Arc::clone(&asker.gone);
        let made = tokio::task::spawn_blocking(move || {
            let made = this.make_file(&disk, || !gone.load(Ordering::Relaxed));
            drop(guard);
            this.forget_lock(&disk.id);
            made
        });
        made.await.map_err(|error| HostError(error.to_string())).flatten()
    }

    fn make_file(&self, disk: &VolumeDisk, wanted: impl Fn() -> bool) -> Result<(), HostError> {
        let path = self.path(&disk.id);
        if path.exists() {
            return Ok(());
        }
        let unfinished = path.with_extension(UNFINISHED);
        let filled = self.fill(&unfinished, disk, wanted);
        let named = filled.and_then(|()| {
            fs::rename(&unfinished, &path).map_err(|error| at(&path, "make", &error))?;
            self.sync()?;
            faults::pass(Point::VolumeDiskMade);
            Ok(())
        });
        if named.is_err() {
            drop(fs::remove_file(&unfinished));
            drop(fs::remove_file(&path));
        }
        named
    }

    fn fill(&self, unfinished: &Path, disk: &VolumeDisk, wanted: impl Fn() -> bool) -> Result<(), HostError> {
        let written = |result: io::Result<()>| result.map_err(|error| at(unfinished, "write", &error));
        let check_wanted = || match wanted() {
            true => Ok(()),
            false => Err(io::Error::other("nobody asks for it any more")),
        };
        written(check_wanted())?;
        let options = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(unfinished);
        let file = options.map_err(|error| at(unfinished, "make", &error))?;
        written(faults::write(Point::VolumeDiskBegun))?;
        match &disk.source {
            Some(source) => {
                let source = self.path(source);
                let from = File::open(&source).map_err(|error| at(&source, "open", &error))?;
                let mut unwritten = 0;
                written(copy_sparse(&from, &file, |bytes| {
                    faults::write(Point::VolumeHalfCopied)?;
                    check_wanted()?;
                    unwritten += bytes;
                    if unwritten >= UNWRITTEN_BYTES {
                        file.sync_data()?;
                        unwritten = 0;
                    }
                    Ok(())
                }))?;
            }
            None => {
                file.set_len(u64::from(disk.size_gib) << 30)
                    .map_err(|error| at(unfinished, "size", &error))?;
                mkfs(unfinished, &FORMAT)?;
            }
        }
        file.sync_all().map_err(|error| at(unfinished, "sync", &error))?;
        written(faults::write(Point::VolumeDiskFilled))
    }

    /// Removes a disk, if there is one.
    pub(super) async fn remove(&self, id: &VolumeId) -> Result<(), HostError> {
        let guard = self.lock(id).await;
        let (this, id) = (self.clone(), id.clone());
        let removed = tokio::task::spawn_blocking(move || {
            let path = this.path(&id);
            let removed = match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&path, "remove", &error)),
                _ => this.sync(),
            };
            faults::pass(Point::VolumeDiskRemoved);
            drop(guard);
            this.forget_lock(&id);
            removed
        });
        removed
            .await
            .map_err(|error| HostError(error.to_string()))
            .flatten()
    }

    /// Bytes that a disk takes of the host's; 0 for one that is not there.
    pub(super) fn used_bytes(&self, id: &VolumeId) -> u64 {
        fs::metadata(self.path(id)).map_or(0, |file| file.blocks() * BLOCK_BYTES)
    }

    fn sync(&self) -> Result<(), HostError> {
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(|error| at(&self.dir, "sync", &error))
    }

    async fn lock(&self, id: &VolumeId) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(locks.entry(id.clone()).or_default())
        };
        lock.lock_owned().await
    }

    /// Unless somebody else waits for it.
    fn forget_lock(&self, id: &VolumeId) {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if locks.get(id).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(id);
        }
    }
}

/// Whoever has asked for a disk.
#[derive(Default)]
struct Asker {
    gone: Arc<AtomicBool>,
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::model::volume::VolumeKind;

    fn disk(size_gib: u32, source: Option<&VolumeId>) -> VolumeDisk {
        let kind = VolumeKind::Volume;
        VolumeDisk {
            id: VolumeId::random(kind),
            size_gib,
            source: source.cloned(),
        }
    }

    fn disks() -> (tempfile::TempDir, VolumeDisks) {
        let dir = tempfile::tempdir().unwrap();
        let disks = VolumeDisks::open(dir.path().join("volumes")).unwrap();
        (dir, disks)
    }

    fn superblock(path: &Path) -> [u8; 1024] {
        let mut bytes = [0; 1024];
        File::open(path).unwrap().read_exact_at(&mut bytes, 1024).unwrap();
        bytes
    }

    #[tokio::test]
    async fn a_disk_is_sparse_has_a_journal_and_is_made_once() {
        let (_dir, disks) = disks();
        let new = disk(3, None);
        disks.make(new.clone()).await.unwrap();
        let path = disks.path(&new.id);
        assert_eq!(fs::metadata(&path).unwrap().len(), 3 << 30);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(disks.used_bytes(&new.id) < 64 << 20);
        let superblock = superblock(&path);
        assert_eq!(superblock[56..58], [0x53, 0xef]);
        // COMPAT_HAS_JOURNAL of s_feature_compat; s_errors is "remount read-only".
        assert_eq!((superblock[92] & 4, superblock[60]), (4, 2));
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"a tenant's", 2 << 30).unwrap();
        disks.make(new.clone()).await.unwrap();
        let mut found = [0; 10];
        File::open(&path)
            .unwrap()
            .read_exact_at(&mut found, 2 << 30)
            .unwrap();
        assert_eq!(&found, b"a tenant's");
        disks.remove(&new.id).await.unwrap();
        assert!(!path.exists());
        disks.remove(&new.id).await.unwrap();
        assert!(disks.locks.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_copy_has_the_bytes_and_the_holes_and_is_another_file() {
        let (_dir, disks) = disks();
        let first = disk(1, None);
        disks.make(first.clone()).await.unwrap();
        let file = OpenOptions::new()
            .write(true)
            .open(disks.path(&first.id))
            .unwrap();
        file.write_all_at(b"before", 512 << 20).unwrap();
        let copy = disk(1, Some(&first.id));
        disks.make(copy.clone()).await.unwrap();
        file.write_all_at(b"after!", 512 << 20).unwrap();
        let path = disks.path(&copy.id);
        let mut found = [0; 6];
        File::open(&path)
            .unwrap()
            .read_exact_at(&mut found, 512 << 20)
            .unwrap();
        assert_eq!(&found, b"before");
        assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 30);
        assert!(disks.used_bytes(&copy.id) < 64 << 20);
    }

    #[tokio::test]
    async fn a_copy_that_nobody_asks_for_any_more_ends_at_the_next_piece_and_leaves_nothing() {
        let (_dir, disks) = disks();
        let first = disk(1, None);
        disks.make(first.clone()).await.unwrap();
        let file = OpenOptions::new()
            .write(true)
            .open(disks.path(&first.id))
            .unwrap();
        file.write_all_at(&vec![7; 40 << 20], 512 << 20).unwrap();
        let copy = disk(1, Some(&first.id));
        let asked = std::cell::Cell::new(0);
        let wanted = |times: u32| {
            asked.update(|asked| asked + 1);
            asked.get() <= times
        };
        let ended = disks.make_file(&copy, || wanted(3)).unwrap_err();
        assert!(ended.0.ends_with("nobody asks for it any more"), "{ended}");
        assert_eq!((asked.get(), fs::read_dir(disks.dir()).unwrap().count()), (4, 1));
        // As many pieces as that are not all of it.
        asked.set(0);
        disks.make_file(&copy, || wanted(u32::MAX)).unwrap();
        assert!(asked.get() > 5, "{}", asked.get());
    }

    #[test]
    fn whoever_goes_away_asks_for_nothing_any_more() {
        let (_dir, disks) = disks();
        // One thread for files, which is not free until then.
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let new = disk(1, None);
            let (free, busy) = std::sync::mpsc::channel();
            let thread = tokio::task::spawn_blocking(move || busy.recv());
            let mut making = Box::pin(disks.make(new.clone()));
            tokio::select! {
                biased;
                made = &mut making => panic!("{made:?}"),
                () = std::future::ready(()) => {}
            }
            drop(making);
            free.send(()).unwrap();
            thread.await.unwrap().unwrap();
            drop(disks.lock(&new.id).await);
            assert_eq!(fs::read_dir(disks.dir()).unwrap().count(), 0);
        });
    }

    #[tokio::test]
    async fn what_cannot_be_made_leaves_nothing() {
        let (_dir, disks) = disks();
        let missing = VolumeId::random(VolumeKind::Snapshot);
        let refused = disks.make(disk(1, Some(&missing))).await.unwrap_err();
        assert!(refused.0.contains(missing.as_str()), "{refused}");
        assert_eq!(fs::read_dir(disks.dir()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn the_next_daemon_throws_away_what_is_unfinished_and_nothing_else() {
        let (_dir, disks) = disks();
        let whole = disk(1, None);
        disks.make(whole.clone()).await.unwrap();
        let unfinished = disks.path(&disk(1, None).id).with_extension(UNFINISHED);
        fs::write(&unfinished, "half").unwrap();
        let next = VolumeDisks::open(disks.dir().to_owned()).unwrap();
        assert!(next.path(&whole.id).exists() && !unfinished.exists());
    }
}
