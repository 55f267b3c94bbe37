//! One blob into the cache: what is there of it already is kept, the rest is asked for, again and again if the connection
//! breaks, and the whole is verified before it gets its name.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use tokio::fs::File;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio::time::Instant;

use super::digest::{Digest, Hasher};
use super::error::ImageError;
use super::evict::Kind;
use super::retry::Backoff;
use super::room::Reservation;
use super::source::{Source, blocking};
use super::store::Inner;

/// So much more of a blob, and failures are counted anew.
const PROGRESS_BYTES: u64 = 1 << 20;
const BUFFER_BYTES: usize = 128 * 1024;
/// A registry that gives less in so much time of waiting for it is one that fails: others wait for the place.
const SLOWEST: (u64, Duration) = (1 << 20, Duration::from_secs(60));

/// A blob to be brought into the cache.
pub(super) struct Download<'a> {
    pub(super) inner: &'a Inner,
    pub(super) source: &'a Source,
    /// For messages.
    pub(super) image: &'a str,
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// Told of bytes got, and (negative) of bytes got in vain.
    pub(super) on_bytes: &'a (dyn Fn(i64) + Send + Sync),
}

impl Download<'_> {
    pub(super) async fn run(self) -> Result<(), ImageError> {
        let _turn = self.inner.turns.take(self.digest).await;
        if self.inner.cache.use_blob(self.digest, self.size) {
            (self.on_bytes)(self.size.cast_signed());
            return Ok(());
        }
        let path = self.inner.cache.partial(self.digest);
        let room = self
            .inner
            .room
            .reserve("the download", Some((Kind::Blob, self.digest)), Some(&path));
        let mut part = Part::open(path, self.size, room).await?;
        (self.on_bytes)(part.got.cast_signed());
        let mut backoff = Backoff::default();
        let (mut failed_at, mut begun_anew) = (part.got, false);
        loop {
            let resumed = part.got > 0;
            let error = match self.go_on(&mut part).await {
                Ok(()) => match self.settle(&mut part).await {
                    // What an earlier attempt or daemon left was not what it should be.
                    Err(error @ ImageError::Digest { .. }) if resumed && !begun_anew => {
                        tracing::warn!(%error, "a resumed download is begun anew");
                        self.begin_anew(&mut part).await?;
                        begun_anew = true;
                        continue;
                    }
                    Err(error) => {
                        part.delete();
                        return Err(error);
                    }
                    Ok(()) => return Ok(()),
                },
                Err(error) => error,
            };
            if part.got >= failed_at.saturating_add(PROGRESS_BYTES) {
                backoff.reset();
            }
            failed_at = failed_at.max(part.got);
            let Some(pause) = backoff.after(&error) else {
                // What failed for now can be gone on with later.
                if super::retry::transient(&error).is_none() {
                    part.delete();
                }
                return Err(error);
            };
            tracing::debug!(digest = %self.digest, %error, ?pause, got = part.got, "a download broke off");
            tokio::time::sleep(pause).await;
        }
    }

    /// One answer of the source, from where the part ends.
    async fn go_on(&self, part: &mut Part) -> Result<(), ImageError> {
        if part.got == self.size && self.size > 0 {
            return Ok(());
        }
        let _slot = self.inner.bandwidth.slot().await;
        let (from, mut content) = self.source.blob(self.digest, part.got, self.size).await?;
        if from != part.got {
            self.begin_anew(part).await?;
        }
        let (mut waited, mut came) = (Duration::ZERO, 0_u64);
        loop {
            let asked = Instant::now();
            let Some(piece) = content.try_next().await? else {
                break;
            };
            waited += asked.elapsed();
            came = came.saturating_add(piece.len() as u64);
            if waited > SLOWEST.1 {
                // Others wait for this one's place.
                if came < SLOWEST.0 {
                    return Err(self.too_slow());
                }
                (waited, came) = (Duration::ZERO, 0);
            }
            if part.got.saturating_add(piece.len() as u64) > self.size {
                return Err(self.wrong_size("more".to_owned()));
            }
            part.append(&piece).await?;
            (self.on_bytes)(piece.len() as i64);
            if self.source.is_remote() {
                self.inner.bandwidth.spend(piece.len() as u64).await;
            }
        }
        part.flush().await
    }

    async fn begin_anew(&self, part: &mut Part) -> Result<(), ImageError> {
        (self.on_bytes)(-part.got.cast_signed());
        part.clear().await
    }

    /// The part is all there will be: it is the blob, or it is wrong.
    async fn settle(&self, part: &mut Part) -> Result<(), ImageError> {
        if part.got != self.size {
            return Err(self.wrong_size(part.got.to_string()));
        }
        let actual = part.hasher.clone().finish();
        if actual != self.digest {
            return Err(ImageError::Digest {
                what: self.what(),
                expected: self.digest,
                actual,
            });
        }
        part.file.sync_all().await.map_err(part.io())?;
        self.inner.cache.put_part(&part.path, self.digest)
    }

    fn wrong_size(&self, actual: String) -> ImageError {
        ImageError::Size {
            what: self.what(),
            expected: self.size,
            actual,
        }
    }

    fn too_slow(&self) -> ImageError {
        ImageError::Busy {
            registry: self.image.to_owned(),
            detail: format!(
                "it gave less than {} KiB of {} in {} s",
                SLOWEST.0 >> 10,
                self.digest,
                SLOWEST.1.as_secs()
            ),
            retry_after: None,
        }
    }

    fn what(&self) -> String {
        format!("blob {} of {}", self.digest, self.image)
    }
}

/// What is there of a blob, and the hash of that.
struct Part {
    path: PathBuf,
    file: File,
    got: u64,
    hasher: Hasher,
    room: Arc<Reservation>,
}

impl Part {
    /// Takes up what was left of an earlier download, if it can be the beginning of a blob of this size.
    async fn open(path: PathBuf, size: u64, room: Arc<Reservation>) -> Result<Self, ImageError> {
        blocking("downloading", move || {
            let open = || {
                let mut file = std::fs::File::options()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(&path)?;
                // A download that was dropped may have its last piece still being written.
                file.lock()?;
                let mut hasher = Hasher::default();
                let got = match file.metadata()?.len() {
                    length if length > size => {
                        file.set_len(0)?;
                        0
                    }
                    length => {
                        hash(&mut file, &mut hasher)?;
                        length
                    }
                };
                Ok((file, got, hasher))
            };
            let (file, got, hasher) = open().map_err(ImageError::io(&path))?;
            let part = Self {
                path,
                file: File::from_std(file),
                got,
                hasher,
                room,
            };
            part.room.grow_now(got).inspect_err(|_| part.delete())?;
            Ok(part)
        })
        .await
    }

    async fn append(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.room.grow(bytes.len() as u64).await?;
        self.file.write_all(bytes).await.map_err(self.io())?;
        self.hasher.update(bytes);
        self.got += bytes.len() as u64;
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), ImageError> {
        self.file.flush().await.map_err(self.io())
    }

    async fn clear(&mut self) -> Result<(), ImageError> {
        let failed = self.io();
        let cleared = async {
            self.file.set_len(0).await?;
            self.file.rewind().await
        };
        cleared.await.map_err(failed)?;
        self.room.begin_anew();
        (self.got, self.hasher) = (0, Hasher::default());
        Ok(())
    }

    /// It is good for nothing. If it cannot be deleted, the next download finds that out by its digest.
    fn delete(&self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a broken download stays");
        }
    }

    fn io(&self) -> impl FnOnce(io::Error) -> ImageError + use<> {
        ImageError::io(&self.path)
    }
}

fn hash(file: &mut impl Read, hasher: &mut Hasher) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            read => hasher.update(&buffer[..read]),
        }
    }
}
