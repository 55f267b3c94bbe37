//! One layer as a stream: decompressed, hashed for its `diff_id`, and bounded. What is in it is not looked at here.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};

use flate2::bufread::MultiGzDecoder;

use super::digest::{Digest, Hasher};
use super::manifest::Compression;
use super::tar_reader::TarError;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const BUFFER_BYTES: usize = 128 * 1024;

/// Why a layer cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error("its media type says {declared}, its content is {found}")]
    Compression {
        declared: &'static str,
        found: &'static str,
    },
    #[error("it cannot be read: {0}")]
    Read(io::Error),
    #[error("{0}")]
    Tar(String),
    #[error("entry \"{path}\": {reason}")]
    Entry { path: String, reason: String },
    #[error("entry \"{path}\": {source}")]
    Io { path: String, source: io::Error },
    #[error("the image has more than {limit} files")]
    TooManyEntries { limit: u64 },
    #[error("it unpacks to more than the limit")]
    TooLarge,
    /// There is no room for it on this host.
    #[error("{0}")]
    NoRoom(Box<super::ImageError>),
    #[error("nobody waits for it any more")]
    Stopped,
}

impl From<TarError> for LayerError {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Io(error) => error.into(),
            other => Self::Tar(other.to_string()),
        }
    }
}

/// For errors of reading the stream; errors of writing the tree say where.
impl From<io::Error> for LayerError {
    fn from(error: io::Error) -> Self {
        if error.get_ref().is_some_and(|inner| inner.is::<BudgetSpent>()) {
            Self::TooLarge
        } else {
            Self::Read(error)
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("more than the limit")]
struct BudgetSpent;

/// The tar stream of a layer.
pub(super) struct LayerStream<'a> {
    input: Box<dyn Read + 'a>,
    hasher: Hasher,
    /// How many more bytes may come, of this layer and the next ones.
    budget: &'a mut u64,
}

impl<'a> LayerStream<'a> {
    /// Opens a compressed layer, whose digest has been verified.
    pub(super) fn open(
        mut file: File,
        declared: Compression,
        budget: &'a mut u64,
    ) -> Result<Self, LayerError> {
        let mut magic = Vec::with_capacity(ZSTD_MAGIC.len());
        file.by_ref()
            .take(ZSTD_MAGIC.len() as u64)
            .read_to_end(&mut magic)
            .map_err(LayerError::Read)?;
        file.rewind().map_err(LayerError::Read)?;
        let found = compression_of(&magic);
        if found != declared {
            return Err(LayerError::Compression {
                declared: word(declared),
                found: word(found),
            });
        }
        let file = BufReader::with_capacity(BUFFER_BYTES, file);
        let input: Box<dyn Read> = match declared {
            Compression::None => Box::new(file),
            Compression::Gzip => Box::new(MultiGzDecoder::new(file)),
            // The decoder refuses windows of more than 128 MiB, which bounds its memory.
            Compression::Zstd => Box::new(zstd::Decoder::with_buffer(file).map_err(LayerError::Read)?),
        };
        Ok(Self {
            input,
            hasher: Hasher::default(),
            budget,
        })
    }

    /// Reads whatever comes after the archive and gives the digest of the whole stream, the `diff_id`.
    /// `go_on` is asked now and then.
    pub(super) fn finish(
        mut self,
        mut go_on: impl FnMut() -> Result<(), LayerError>,
    ) -> Result<Digest, LayerError> {
        let mut buffer = vec![0; BUFFER_BYTES];
        while self.read(&mut buffer)? > 0 {
            go_on()?;
        }
        Ok(self.hasher.finish())
    }
}

impl Read for LayerStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        *self.budget = self
            .budget
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other(BudgetSpent))?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

fn compression_of(start: &[u8]) -> Compression {
    // A zstd file may begin with a skippable frame (0x184D2A50 to 5F, little-endian).
    let skippable = matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18]);
    if start.starts_with(&GZIP_MAGIC) {
        Compression::Gzip
    } else if start == ZSTD_MAGIC || skippable {
        Compression::Zstd
    } else {
        Compression::None
    }
}

fn word(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "not compressed",
        Compression::Gzip => "gzip",
        Compression::Zstd => "zstd",
    }
}
