//! What goes when room is needed, and what never does: least recently used first. The time of a file's last change is when
//! it was last used. How much room there is, is `room`'s.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::cache::{Cache, Claims, Record, files, touch};
use super::digest::Digest;
use super::error::ImageError;

/// Blocks of the file system that `st_blocks` counts.
pub(super) const BLOCK_BYTES: u64 = 512;

/// A file that takes room.
struct Stored {
    path: PathBuf,
    digest: Option<Digest>,
    kind: Kind,
    bytes: u64,
    used: SystemTime,
}

/// Content under its name. A layer that is not compressed and the root file system of it alone have one digest.
pub(super) type Named = (Kind, Digest);

/// In the order in which they go, among those used at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A blob, or the beginning of one.
    Blob,
    Rootfs,
    /// What is written down of a root file system; goes with it.
    RootfsSize,
}

impl Cache {
    /// A user works with a root file system from now on, and it stays.
    pub(super) fn hold(&self, user: &str, chain_id: Digest) {
        let mut claims = self.claims();
        claims.users.entry(user.to_owned()).or_default().insert(chain_id);
    }

    /// What the other root file systems unpacked to that a user works with.
    pub(super) fn unpacked_bytes_of(&self, user: &str, but: Digest) -> u64 {
        self.claims().unpacked_bytes_of(self, user, but)
    }

    /// [`Self::hold`], unless what the user works with then unpacks to more than this. Says whether it does not.
    pub(super) fn hold_within(&self, user: &str, chain_id: Digest, bytes: u64, max_bytes: u64) -> bool {
        let mut claims = self.claims();
        let others = claims.unpacked_bytes_of(self, user, chain_id);
        let fits = others.saturating_add(bytes) <= max_bytes;
        if fits {
            claims.users.entry(user.to_owned()).or_default().insert(chain_id);
        }
        fits
    }

    /// The user works with none any more. Says whether it did; the end of use counts as use.
    pub(super) fn release(&self, user: &str) -> bool {
        let released = self.claims().users.remove(user);
        for chain_id in released.iter().flatten() {
            touch(&self.rootfs(*chain_id));
        }
        released.is_some()
    }

    /// Who works with a root file system.
    pub(super) fn users_of(&self, chain_id: Digest) -> Vec<String> {
        self.claims().users_of(chain_id)
    }

    /// Bytes on disk of all that is here, but for content that is counted elsewhere.
    pub(super) fn stored_bytes(&self, counted: &BTreeSet<Named>) -> Result<u64, ImageError> {
        let stored = self.stored()?.into_iter();
        Ok(stored
            .filter(|file| !file.is_in(counted))
            .map(|file| file.bytes)
            .sum())
    }

    /// [`Self::stored_bytes`] of what cannot go.
    pub(super) fn kept_bytes(&self, counted: &BTreeSet<Named>) -> Result<u64, ImageError> {
        let claims = self.claims();
        let mut records = self.records()?;
        records.retain(|record| claims.is_claimed(record.rootfs));
        let stored = self.stored()?.into_iter();
        let kept = stored.filter(|file| claims.keep(file) || file.goes_with_image(&records));
        Ok(kept
            .filter(|file| !file.is_in(counted))
            .map(|file| file.bytes)
            .sum())
    }

    /// Deletes what was used least recently until so many bytes are won, or nothing is left that can go. What pulls and
    /// users need stays. Gives the bytes won.
    pub(super) fn evict(&self, bytes: u64) -> Result<u64, ImageError> {
        let claims = self.claims();
        let mut records = self.records()?;
        let mut won = 0;
        // Documents can go once their image has gone, which may have been used later.
        loop {
            let mut stored = self.stored()?;
            stored.sort_by_key(|file| (file.used, file.kind));
            stored.retain(|file| !claims.keep(file));
            let before = won;
            for file in stored {
                if won >= bytes {
                    return Ok(won);
                }
                if !file.goes_with_image(&records) {
                    self.delete(&file, &records)?;
                    records.retain(|record| file.kind != Kind::Rootfs || Some(record.rootfs) != file.digest);
                    won += file.bytes;
                }
            }
            if won == before {
                return Ok(won);
            }
        }
    }

    /// Forgets one reference, unless a user works with its image and no other reference names that.
    pub(super) fn forget(&self, reference: &str) -> Result<Option<u64>, ImageError> {
        let claims = self.claims();
        let Some(record) = self.record(reference) else {
            return Ok(None);
        };
        let records = self.records()?;
        let only = records.iter().filter(|it| it.rootfs == record.rootfs).count() < 2;
        let users = claims.users_of(record.rootfs);
        if only && !users.is_empty() {
            return Err(ImageError::InUse {
                image: reference.to_owned(),
                users: users.join(", "),
            });
        }
        self.remove_record(reference)?;
        self.sweep(&claims).map(Some)
    }

    /// Forgets every image that no user works with and that was not used since then, and all that is not shared with
    /// one that stays. Gives the references, and the bytes won.
    pub(super) fn prune(&self, unused_since: SystemTime) -> Result<(Vec<String>, u64), ImageError> {
        let claims = self.claims();
        let mut forgotten = Vec::new();
        for record in self.records()? {
            let used = fs::metadata(self.rootfs(record.rootfs)).and_then(|file| file.modified());
            let recent = used.is_ok_and(|used| used > unused_since);
            if !recent && !claims.is_claimed(record.rootfs) {
                self.remove_record(&record.reference)?;
                forgotten.push(record.reference);
            }
        }
        Ok((forgotten, self.sweep(&claims)?))
    }

    /// Deletes what no record names and nobody needs; gives the bytes won.
    fn sweep(&self, claims: &Claims) -> Result<u64, ImageError> {
        let records = self.records()?;
        let named: BTreeSet<Digest> = records
            .iter()
            .flat_map(|record| {
                record
                    .blobs
                    .iter()
                    .chain([&record.manifest, &record.config, &record.rootfs])
            })
            .copied()
            .collect();
        let mut won = 0;
        for file in self.stored()? {
            let part = file
                .path
                .parent()
                .is_some_and(|folder| folder.ends_with("partial"));
            let named = file.digest.is_some_and(|digest| named.contains(&digest)) && !part;
            if !named && !claims.keep(&file) {
                self.delete(&file, &records)?;
                won += file.bytes;
            }
        }
        Ok(won)
    }

    /// First what names it, so that a crash leaves no image that is half there.
    fn delete(&self, file: &Stored, records: &[Record]) -> Result<(), ImageError> {
        if let (Kind::Rootfs, Some(chain_id)) = (file.kind, file.digest) {
            for record in records.iter().filter(|record| record.rootfs == chain_id) {
                tracing::info!(image = record.reference, "image deleted");
                self.remove_record(&record.reference)?;
            }
            remove(&self.rootfs_size_path(chain_id))?;
        }
        remove(&file.path)
    }

    fn stored(&self) -> Result<Vec<Stored>, ImageError> {
        let mut stored = Vec::new();
        for folder in self.folders() {
            for path in files(&folder)? {
                // It may have got its name, or gone, meanwhile.
                let Ok(file) = fs::metadata(&path) else { continue };
                let name = path
                    .file_stem()
                    .and_then(|name| name.to_str())
                    .unwrap_or_default();
                let kind = match path.extension().and_then(|extension| extension.to_str()) {
                    Some("erofs") => Kind::Rootfs,
                    Some(_) => Kind::RootfsSize,
                    None => Kind::Blob,
                };
                stored.push(Stored {
                    digest: format!("sha256:{name}").parse().ok(),
                    kind,
                    bytes: file.blocks().saturating_mul(BLOCK_BYTES),
                    used: file.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                    path,
                });
            }
        }
        Ok(stored)
    }
}

impl Claims {
    fn users_of(&self, chain_id: Digest) -> Vec<String> {
        let users = self.users.iter().filter(|(_, held)| held.contains(&chain_id));
        users.map(|(user, _)| user.clone()).collect()
    }

    fn unpacked_bytes_of(&self, cache: &Cache, user: &str, but: Digest) -> u64 {
        let held = self.users.get(user).into_iter().flatten();
        held.filter(|chain_id| **chain_id != but)
            .filter_map(|chain_id| cache.rootfs_size(*chain_id))
            .map(|size| size.unpacked_bytes)
            .fold(0, u64::saturating_add)
    }

    fn is_claimed(&self, digest: Digest) -> bool {
        self.leases.contains_key(&digest) || self.users.values().any(|held| held.contains(&digest))
    }

    fn keep(&self, file: &Stored) -> bool {
        file.digest.is_some_and(|digest| self.is_claimed(digest))
    }
}

/// It is as good if it is gone already.
fn remove(path: &Path) -> Result<(), ImageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImageError::io(path)(error)),
        _ => Ok(()),
    }
}

impl Stored {
    /// Whether one of these images needs it as long as that is here: documents, not layers, which are unpacked.
    fn goes_with_image(&self, records: &[Record]) -> bool {
        match self.kind {
            Kind::Rootfs => false,
            // Deleted with the root file system, and too small to matter.
            Kind::RootfsSize => true,
            Kind::Blob => self.digest.is_some_and(|digest| {
                records
                    .iter()
                    .any(|record| record.names(digest) && !record.layers.contains(&digest))
            }),
        }
    }

    fn is_in(&self, named: &BTreeSet<Named>) -> bool {
        self.digest
            .is_some_and(|digest| named.contains(&(self.kind, digest)))
    }
}

impl Record {
    /// Whether this is a document or layer of it.
    fn names(&self, digest: Digest) -> bool {
        self.manifest == digest || self.config == digest || self.blobs.contains(&digest)
    }
}
