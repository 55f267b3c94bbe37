//! OCI image layouts on this host, as a directory or as one tar file. Read-only.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::digest::Digest;
use super::error::ImageError;
use super::manifest::MAX_MANIFEST_BYTES;
use super::tar_reader::{Kind, TarReader};

/// Most entries of an archive.
const MAX_ARCHIVE_ENTRIES: usize = 100_000;
const INDEX: &str = "index.json";

/// Where the content of a layout is.
pub(super) enum Layout {
    Directory(PathBuf),
    /// A tar file, and where in it each file begins and how long it is.
    Archive {
        path: PathBuf,
        files: BTreeMap<String, (u64, u64)>,
    },
}

/// The content of one file of a layout.
pub(super) type Content = io::Take<File>;

impl Layout {
    pub(super) fn directory(path: &Path) -> Result<Self, ImageError> {
        if !path.is_dir() {
            return Err(unusable(path, "no such directory"));
        }
        Ok(Self::Directory(path.to_owned()))
    }

    /// Opens an archive and reads all of it once. Blocks.
    pub(super) fn archive(path: &Path) -> Result<Self, ImageError> {
        let file = open_file(path)?;
        let mut reader = TarReader::new(BufReader::with_capacity(128 * 1024, file));
        let mut files = BTreeMap::new();
        let mut entries = 0;
        while let Some(entry) = reader
            .next()
            .map_err(|error| unusable(path, &error.to_string()))?
        {
            entries += 1;
            if entries > MAX_ARCHIVE_ENTRIES {
                return Err(unusable(path, "the archive has too many entries"));
            }
            let name = entry.path.strip_prefix(b"./").unwrap_or(&entry.path);
            let known = name == INDEX.as_bytes() || name.starts_with(b"blobs/sha256/");
            let plain = entry.kind == Kind::File && entry.segments == [(0, entry.size)];
            if let (true, true, Ok(name)) = (known, plain, std::str::from_utf8(name)) {
                files.insert(name.to_owned(), (reader.position(), entry.size));
            }
        }
        Ok(Self::Archive {
            path: path.to_owned(),
            files,
        })
    }

    /// The bytes of `index.json`.
    pub(super) fn index(&self) -> Result<Vec<u8>, ImageError> {
        let content = self
            .open(INDEX)?
            .ok_or_else(|| unusable(self.path(), "not an OCI layout (no index.json)"))?;
        self.document(content)
    }

    /// A manifest or nested index; none if the layout does not have it.
    pub(super) fn manifest(&self, digest: Digest) -> Result<Option<Vec<u8>>, ImageError> {
        self.blob(digest)?
            .map(|content| self.document(content))
            .transpose()
    }

    /// The content of a blob, not verified; none if the layout does not have it.
    pub(super) fn blob(&self, digest: Digest) -> Result<Option<Content>, ImageError> {
        self.open(&format!("blobs/sha256/{}", digest.hex()))
    }

    fn document(&self, content: Content) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        content
            .take(MAX_MANIFEST_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(ImageError::io(self.path()))?;
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(unusable(
                self.path(),
                &format!("a document of more than {MAX_MANIFEST_BYTES} bytes"),
            ));
        }
        Ok(bytes)
    }

    fn open(&self, name: &str) -> Result<Option<Content>, ImageError> {
        match self {
            Self::Directory(path) => match open_file(&path.join(name)) {
                Ok(file) => Ok(Some(file.take(u64::MAX))),
                Err(ImageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
            Self::Archive { path, files } => {
                let Some(&(offset, size)) = files.get(name) else {
                    return Ok(None);
                };
                let mut file = open_file(path)?;
                file.seek(SeekFrom::Start(offset)).map_err(ImageError::io(path))?;
                Ok(Some(file.take(size)))
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Archive { path, .. } => path,
        }
    }
}

/// Opens a regular file: neither a link out of the layout nor a pipe that never answers.
fn open_file(path: &Path) -> Result<File, ImageError> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)
        .map_err(ImageError::io(path))?;
    if !file.metadata().map_err(ImageError::io(path))?.is_file() {
        return Err(unusable(path, "not a regular file"));
    }
    Ok(file)
}

fn unusable(path: &Path, reason: &str) -> ImageError {
    ImageError::Layout {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}
