//! Writable disks: sparse ext4 images. One is formatted per size and copied for every task, holes and all.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use nix::unistd::{Whence, lseek};

use super::at;
use crate::task::host::HostError;

const SECTOR_BYTES: u64 = 512;
/// What is copied in one go.
const PIECE_BYTES: i64 = 16 << 20;

/// The formatted images that are copied.
#[derive(Clone, Debug)]
pub struct ScratchDisks {
    dir: PathBuf,
    formatting: Arc<Mutex<()>>,
}

impl ScratchDisks {
    pub fn open(dir: &Path) -> Result<ScratchDisks, HostError> {
        fs::create_dir_all(dir).map_err(|error| at(dir, "make", &error))?;
        Ok(ScratchDisks {
            dir: dir.to_owned(),
            formatting: Arc::default(),
        })
    }

    /// A new empty disk of so many GiB at `path`. None at all is the least disk there can be, for a machine without a task.
    pub fn make(&self, path: &Path, gib: u32) -> Result<File, HostError> {
        let options = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        let target = options.map_err(|error| at(path, "make", &error))?;
        if gib == 0 {
            target
                .set_len(SECTOR_BYTES)
                .map_err(|error| at(path, "size", &error))?;
            return Ok(target);
        }
        let formatted = self.formatted(gib)?;
        let source = File::open(&formatted).map_err(|error| at(&formatted, "open", &error))?;
        copy_sparse(&source, &target, |_| Ok(())).map_err(|error| at(path, "write", &error))?;
        Ok(target)
    }

    fn formatted(&self, gib: u32) -> Result<PathBuf, HostError> {
        let path = self.dir.join(format!("ext4-{gib}.img"));
        let _one_at_a_time = self.formatting.lock().unwrap_or_else(PoisonError::into_inner);
        if path.exists() {
            return Ok(path);
        }
        let temporary = path.with_extension("new");
        let file = File::create(&temporary).map_err(|error| at(&temporary, "make", &error))?;
        file.set_len(u64::from(gib) << 30)
            .map_err(|error| at(&temporary, "size", &error))?;
        mkfs(&temporary, &FORMAT)?;
        file.sync_all().map_err(|error| at(&temporary, "sync", &error))?;
        fs::rename(&temporary, &path).map_err(|error| at(&path, "make", &error))?;
        Ok(path)
    }
}

/// Without a journal: the disk lives no longer than its task. Tables are written when they are first used.
const FORMAT: [&str; 4] = [
    "-O",
    "^has_journal,^resize_inode",
    "-E",
    "lazy_itable_init=1,nodiscard,root_owner=0:0",
];

/// Makes an ext4 file system on a file of our own.
pub(super) fn mkfs(path: &Path, options: &[&str]) -> Result<(), HostError> {
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0"])
        .args(options)
        .arg(path)
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                HostError("mkfs.ext4 is missing: install the package e2fsprogs".to_owned())
            }
            _ => HostError(format!("cannot run mkfs.ext4: {error}")),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(HostError(format!(
        "mkfs.ext4 failed on {}: {}",
        path.display(),
        said.trim().replace('\n', "; ")
    )))
}

/// Copies data, leaves holes. After each piece `copied` is told its bytes, and can end the copy.
pub(super) fn copy_sparse(
    source: &File,
    target: &File,
    mut copied: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    let length = i64::try_from(source.metadata()?.len()).map_err(io::Error::other)?;
    target.set_len(length.unsigned_abs())?;
    let mut position = 0;
    while position < length {
        let start = match lseek(source, position, Whence::SeekData) {
            Ok(start) => start,
            Err(nix::Error::ENXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = lseek(source, start, Whence::SeekHole)?;
        position = start;
        while position < end {
            let piece = copy_piece(source, target, position, PIECE_BYTES.min(end - position))?;
            position += piece;
            copied(piece.unsigned_abs())?;
        }
    }
    Ok(())
}

/// Copies so many bytes, or fewer; how many.
fn copy_piece(source: &File, target: &File, start: i64, length: i64) -> io::Result<i64> {
    let (mut from, mut to) = (start, start);
    let length = usize::try_from(length).map_err(io::Error::other)?;
    // SAFETY: both descriptors are open, both offsets are live i64s that the kernel updates, no other memory is passed.
    let copied = unsafe {
        libc::copy_file_range(
            source.as_raw_fd(),
            &raw mut from,
            target.as_raw_fd(),
            &raw mut to,
            length,
            0,
        )
    };
    match copied {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        copied if copied < 0 => Err(io::Error::last_os_error()),
        _ => Ok(from - start),
    }
}
