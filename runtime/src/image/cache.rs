//! The folder of the image store: verified blobs, packed root file systems, and which reference stands for which image.
//!
//! ```text
//! lock              held by the process that has the store open
//! blobs/sha256/…    manifests, configurations and layers, by digest
//! erofs/….erofs     root file systems, by the chain id of their layers; ….json beside each says how large it was
//! refs/….json       one record for each reference, by the digest of its text
//! partial/…         beginnings of blobs, by digest, that a later download goes on with
//! tmp/              whatever is not finished; emptied when the store is opened
//! ```
//!
//! A file appears under its name only when it is whole, on disk and verified.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::ImageError;
use super::manifest::MAX_CONFIG_BYTES;
use super::unpack::Unpacked;
use crate::faults::{self, Point};

/// What is known of a reference that was pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The canonical form.
    pub(super) reference: String,
    /// Of the manifest for this platform.
    pub(super) manifest: Digest,
    pub(super) config: Digest,
    /// The chain id of the layers.
    pub(super) rootfs: Digest,
    /// Every blob that the image is made of.
    pub(super) blobs: BTreeSet<Digest>,
    /// Those of them that are not needed any more once they are unpacked.
    #[serde(default)]
    pub(super) layers: BTreeSet<Digest>,
}

/// How large a root file system was, when it was unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RootfsSize {
    pub(super) unpacked_bytes: u64,
    pub(super) entries: u64,
}

impl From<Unpacked> for RootfsSize {
    fn from(unpacked: Unpacked) -> Self {
        Self {
            unpacked_bytes: unpacked.bytes,
            entries: unpacked.entries,
        }
    }
}

/// What must stay, whatever the records say. Nothing is deleted but under its lock.
#[derive(Default)]
pub(super) struct Claims {
    /// How many pulls need each blob or root file system.
    pub(super) leases: BTreeMap<Digest, usize>,
    /// The root file systems that each user works with.
    pub(super) users: BTreeMap<String, BTreeSet<Digest>>,
}

impl Claims {
    fn unlease(&mut self, digest: Digest) {
        if let Some(count) = self.leases.get_mut(&digest) {
            *count -= 1;
            if *count == 0 {
                self.leases.remove(&digest);
            }
        }
    }
}

pub(super) struct Cache {
    dir: PathBuf,
    next_scratch: AtomicU64,
    claims: Mutex<Claims>,
    /// Held for as long as the store is open.
    _lock: File,
}

impl Cache {
    pub(super) fn open(dir: &Path) -> Result<Self, ImageError> {
        // Unpacked trees have set-user-id files of anyone's making: nobody else may enter.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(ImageError::io(dir))?;
        let dir = dir.canonicalize().map_err(ImageError::io(dir))?;
        fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(ImageError::io(&dir))?;
        let lock_path = dir.join("lock");
        let lock = File::create(&lock_path).map_err(ImageError::io(&lock_path))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => ImageError::Layout {
                path: dir.clone(),
                reason: "another process has this image store open".into(),
            },
            fs::TryLockError::Error(source) => ImageError::Io {
                path: lock_path,
                source,
            },
        })?;
        let tmp = dir.join("tmp");
        match fs::remove_dir_all(&tmp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ImageError::Io {
                    path: tmp,
                    source: error,
                });
            }
            _ => {}
        }
        for part in ["blobs/sha256", "erofs", "partial", "refs", "tmp"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).map_err(ImageError::io(&path))?;
        }
        Ok(Self {
            dir,
            next_scratch: AtomicU64::new(0),
            claims: Mutex::default(),
            _lock: lock,
        })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn blob(&self, digest: Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    pub(super) fn rootfs(&self, chain_id: Digest) -> PathBuf {
        self.dir.join("erofs").join(format!("{}.erofs", chain_id.hex()))
    }

    /// The folders of everything that takes room: blobs, beginnings of blobs, root file systems.
    pub(super) fn folders(&self) -> [PathBuf; 3] {
        ["blobs/sha256", "partial", "erofs"].map(|folder| self.dir.join(folder))
    }

    pub(super) fn rootfs_size_path(&self, chain_id: Digest) -> PathBuf {
        self.dir.join("erofs").join(format!("{}.json", chain_id.hex()))
    }

    fn record_path(&self, reference: &str) -> PathBuf {
        self.dir
            .join("refs")
            .join(format!("{}.json", Digest::of(reference.as_bytes()).hex()))
    }

    /// A document; none if it is not here, or is not what its name says any more, or is too large to be one.
    pub(super) fn document(&self, digest: Digest) -> Option<Vec<u8>> {
        let path = self.blob(digest);
        if fs::metadata(&path).ok()?.len() > MAX_CONFIG_BYTES {
            return None;
        }
        fs::read(path).ok().filter(|bytes| Digest::of(bytes) == digest)
    }

    /// Whether a blob is here; it then counts as used now.
    pub(super) fn use_blob(&self, digest: Digest, size: u64) -> bool {
        let path = self.blob(digest);
        let here = fs::metadata(&path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size);
        if here {
            touch(&path);
        }
        here
    }

    /// Where the beginning of a blob is kept until the rest has come.
    pub(super) fn partial(&self, digest: Digest) -> PathBuf {
        self.dir.join("partial").join(digest.hex())
    }

    /// Takes in a blob that is whole, on disk and verified.
    pub(super) fn put_part(&self, part: &Path, digest: Digest) -> Result<(), ImageError> {
        faults::write(Point::BlobDownloaded).map_err(ImageError::io(part))?;
        self.rename(part, &self.blob(digest))
    }

    /// Keeps a small blob whose digest is computed here.
    pub(super) fn put_blob(&self, bytes: &[u8]) -> Result<Digest, ImageError> {
        let digest = Digest::of(bytes);
        let path = self.blob(digest);
        if !path.exists() {
            self.write_whole(&path, bytes)?;
        }
        Ok(digest)
    }

    /// Size of the root file system before it was packed; none if it is not here.
    pub(super) fn rootfs_size(&self, chain_id: Digest) -> Option<RootfsSize> {
        if !self.rootfs(chain_id).is_file() {
            return None;
        }
        serde_json::from_slice(&fs::read(self.rootfs_size_path(chain_id)).ok()?).ok()
    }

    /// Takes a packed root file system in. The size goes first, so that no image is ever without.
    pub(super) fn put_rootfs(
        &self,
        chain_id: Digest,
        packed: &Scratch,
        size: RootfsSize,
    ) -> Result<(), ImageError> {
        self.write_whole(&self.rootfs_size_path(chain_id), &json(&size))?;
        faults::write(Point::RootfsPacked).map_err(ImageError::io(&packed.path))?;
        self.put(packed, &self.rootfs(chain_id))
    }

    pub(super) fn put_record(&self, record: &Record) -> Result<(), ImageError> {
        self.write_whole(&self.record_path(&record.reference), &json(record))
    }

    /// What is known of one reference.
    pub(super) fn record(&self, reference: &str) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.record_path(reference)).ok()?).ok()
    }

    /// Every record that can be read.
    pub(super) fn records(&self) -> Result<Vec<Record>, ImageError> {
        let mut records = Vec::new();
        for path in files(&self.dir.join("refs"))? {
            match fs::read(&path).map(|bytes| serde_json::from_slice::<Record>(&bytes)) {
                Ok(Ok(record)) => records.push(record),
                Ok(Err(error)) => tracing::warn!(path = %path.display(), %error, "unreadable image record"),
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(ImageError::Io { path, source }),
            }
        }
        records.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(records)
    }

    /// Forgets a reference; says whether it was known. Its content goes with the next [`Self::sweep`].
    pub(super) fn remove_record(&self, reference: &str) -> Result<bool, ImageError> {
        let path = self.record_path(reference);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(ImageError::Io { path, source }),
        }
    }

    /// A name in `tmp` that is deleted, whatever it has become, when the value is dropped.
    pub(super) fn scratch(&self) -> Scratch {
        let number = self.next_scratch.fetch_add(1, Ordering::Relaxed);
        Scratch {
            path: self.dir.join("tmp").join(number.to_string()),
        }
    }

    /// Moves a whole file that is on disk to its name.
    pub(super) fn put(&self, scratch: &Scratch, path: &Path) -> Result<(), ImageError> {
        self.rename(&scratch.path, path)
    }

    fn rename(&self, from: &Path, path: &Path) -> Result<(), ImageError> {
        fs::rename(from, path).map_err(ImageError::io(path))?;
        let folder = path.parent().unwrap_or(&self.dir);
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(ImageError::io(folder))
    }

    fn write_whole(&self, path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
        let scratch = self.scratch();
        let write = || {
            let mut file = File::create_new(&scratch.path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(ImageError::io(&scratch.path))?;
        self.put(&scratch, path)
    }

    pub(super) fn claims(&self) -> MutexGuard<'_, Claims> {
        // They are whole between any two statements under the lock.
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Content that must stay while a pull works with it.
pub(super) struct Leases {
    cache: Arc<Cache>,
    held: Vec<Digest>,
}

impl Leases {
    pub(super) fn new(cache: Arc<Cache>) -> Self {
        Self {
            cache,
            held: Vec::new(),
        }
    }

    /// To be called before looking whether the content is there.
    pub(super) fn hold(&mut self, digest: Digest) {
        *self.cache.claims().leases.entry(digest).or_default() += 1;
        self.held.push(digest);
    }

    /// Takes one [`Self::hold`] back before the pull has ended.
    pub(super) fn release(&mut self, digest: Digest) {
        if let Some(index) = self.held.iter().position(|held| *held == digest) {
            self.held.swap_remove(index);
            self.cache.claims().unlease(digest);
        }
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        let mut claims = self.cache.claims();
        for digest in &self.held {
            claims.unlease(*digest);
        }
    }
}

/// See [`Cache::scratch`].
pub(super) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let result = match fs::symlink_metadata(&self.path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&self.path),
            Ok(_) => fs::remove_file(&self.path),
            Err(error) => Err(error),
        };
        match result {
            // Not found is the good end: it was renamed to where it belongs.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "a temporary file of an image stays");
            }
            _ => {}
        }
    }
}

/// The time of a file's last change says when it was last used. A failure makes it look older, which does no harm.
pub(super) fn touch(path: &Path) {
    let now = fs::FileTimes::new().set_modified(SystemTime::now());
    if let Err(error) = File::open(path).and_then(|file| file.set_times(now)) {
        tracing::debug!(path = %path.display(), %error, "cannot say when this was used");
    }
}

pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let list = || -> io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect()
    };
    list().map_err(ImageError::io(folder))
}

fn json(value: &impl Serialize) -> Vec<u8> {
    #[expect(
        clippy::expect_used,
        reason = "the records of this module are structs of strings and numbers"
    )]
    serde_json::to_vec(value).expect("plain structs serialize")
}
