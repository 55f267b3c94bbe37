//! Applies the layers of an image, lowest first, to a tree: files, links, owners, modes, times, extended attributes and
//! whiteouts. Every entry is hostile.
//!
//! Device nodes and sockets are left out: containers get a `/dev` of their own, and their root is mounted `nodev`.
//! Of the extended attributes, `security.capability` and `user.*` are kept.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, fstat, futimens, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, mkfifoat, symlinkat};
use xattr::FileExt as _;

use super::digest::Digest;
use super::layer::{LayerError, LayerStream};
use super::manifest::Compression;
use super::tar_reader::{Entry, Kind, TarReader};
use super::tree::{self, MAX_DEPTH, Tree, Upper};

/// Most files, directories, links and whiteouts of an image, over all layers.
pub(super) const MAX_ENTRIES: u64 = 1_000_000;
/// Longest path of an entry in bytes.
const MAX_PATH_BYTES: usize = 4096;
/// What the streams of an image may hold beside the bytes of its files: headers, padding, PAX records.
const STREAM_OVERHEAD_BYTES: u64 = 4 << 30;
/// Longest name of a file. Linux has 255; mkfs.erofs 1.5 cuts the last byte off such a name and packs the wrong file, or none.
const MAX_NAME_BYTES: usize = 254;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Marks of the aufs driver, which mean nothing to anyone else.
const AUFS: &[u8] = b".wh..wh.";
const BUFFER_BYTES: usize = 128 * 1024;
/// What file systems take at least for content, and for an entry beside its content.
const BLOCK_BYTES: u64 = 4096;
const ENTRY_BYTES: u64 = 512;
/// Of the packed image: the superblock and what is lost at borders; an inode with what is lost beside it; a name in a directory.
const PACKED_BYTES: u64 = 64 << 10;
const PACKED_INODE_BYTES: u64 = 256;
const PACKED_NAME_BYTES: u64 = 12;
/// Latest time that EROFS can be trusted with here: that of the build, which mkfs.erofs clamps to.
const MAX_TIME_SECONDS: u64 = super::erofs::BUILD_TIME_SECONDS;

/// Asked before so many more bytes are written, 0 included.
pub(super) type Allow = Box<dyn FnMut(u64) -> Result<(), LayerError> + Send>;

/// An image on its way into a tree.
pub(super) struct Unpacker {
    tree: Tree,
    allow: Allow,
    max_bytes: u64,
    max_entries: u64,
    stream_budget: u64,
    bytes: u64,
    xattr_bytes: u64,
    entries: u64,
    skipped_devices: u64,
    /// Times of the directories by inode, set last, as every change inside a directory sets its time.
    directory_times: HashMap<u64, (u64, u32)>,
    buffer: Vec<u8>,
}

/// What was unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unpacked {
    /// Sum of the sizes of all files of all layers.
    pub(super) bytes: u64,
    pub(super) entries: u64,
    pub(super) skipped_devices: u64,
    /// Most that it takes once it is packed.
    pub(super) packed_bytes: u64,
}

impl Unpacker {
    /// Unpacks into an empty directory, at most this many bytes of files, holes included.
    pub(super) fn new(directory: &Path, max_bytes: u64, allow: Allow) -> Result<Self, LayerError> {
        let tree = Tree::open(directory).map_err(|source| LayerError::Io {
            path: directory.display().to_string(),
            source,
        })?;
        let root = open_root(&tree).map_err(at(b"/"))?;
        fchmod(&root, Mode::from_bits_truncate(0o755)).map_err(at(b"/"))?;
        let ino = fstat(&root).map_err(at(b"/"))?.st_ino;
        Ok(Self {
            tree,
            allow,
            max_bytes,
            max_entries: MAX_ENTRIES,
            stream_budget: max_bytes.saturating_add(STREAM_OVERHEAD_BYTES),
            bytes: 0,
            xattr_bytes: 0,
            entries: 0,
            skipped_devices: 0,
            directory_times: HashMap::from([(ino, (0, 0))]),
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    /// Applies one layer and gives the digest of its tar stream, which the caller compares with its `diff_id`.
    pub(super) fn layer(&mut self, file: File, compression: Compression) -> Result<Digest, LayerError> {
        // The budget is lent to the stream, and comes back smaller.
        let mut budget = self.stream_budget;
        let mut reader = TarReader::new(LayerStream::open(file, compression, &mut budget)?);
        let mut upper = Upper::default();
        while let Some(entry) = reader.next()? {
            self.place(&entry, &mut reader, &mut upper)?;
        }
        let diff_id = reader.into_inner().finish(|| (self.allow)(0))?;
        self.stream_budget = budget;
        Ok(diff_id)
    }

    /// Sets the times of the directories; the tree is then complete.
    pub(super) fn finish(mut self) -> Result<Unpacked, LayerError> {
        let root = open_root(&self.tree).map_err(at(b"/"))?;
        let mut linked = HashSet::new();
        let packed = self.complete(root.as_fd(), &mut linked)?;
        Ok(Unpacked {
            bytes: self.bytes,
            entries: self.entries,
            skipped_devices: self.skipped_devices,
            packed_bytes: packed
                .saturating_add(self.xattr_bytes)
                .saturating_add(PACKED_BYTES),
        })
    }

    /// Gives the most that the directory and what is below takes once it is packed; holes are written out then. `linked` is
    /// what was counted of the files with several names. The depth of recursion is that of the tree, which is bounded.
    fn complete(&mut self, directory: BorrowedFd<'_>, linked: &mut HashSet<u64>) -> Result<u64, LayerError> {
        (self.allow)(0)?;
        let (mut packed, mut own_bytes) = (0_u64, 0_u64);
        for name in tree::names(directory).map_err(at(b"/"))? {
            own_bytes += PACKED_NAME_BYTES + name.len() as u64;
            let Some(child) = tree::stat(directory, name.as_bytes()).map_err(at(name.as_bytes()))? else {
                continue;
            };
            let bytes = if tree::is_directory(&child) {
                let child = tree::open_directory(directory, name.as_bytes()).map_err(at(name.as_bytes()))?;
                self.complete(child.as_fd(), linked)?
            } else if child.st_nlink < 2 || linked.insert(child.st_ino) {
                packed_inode(child.st_size.unsigned_abs())
            } else {
                0
            };
            packed = packed.saturating_add(bytes);
        }
        let stat = fstat(directory).map_err(at(b"/"))?;
        let time = self.directory_times.get(&stat.st_ino).copied();
        let time = timespec(time.unwrap_or_default());
        futimens(directory, &time, &time).map_err(at(b"/"))?;
        Ok(packed.saturating_add(packed_inode(own_bytes)))
    }

    fn count(&mut self) -> Result<(), LayerError> {
        self.entries += 1;
        if self.entries > self.max_entries {
            return Err(LayerError::TooManyEntries {
                limit: self.max_entries,
            });
        }
        Ok(())
    }

    fn place(&mut self, entry: &Entry, data: &mut impl Read, upper: &mut Upper) -> Result<(), LayerError> {
        self.count()?;
        let xattrs = entry.xattrs.iter().filter(|(name, _)| is_kept(name));
        let xattr_bytes = xattrs
            .map(|(name, value)| (name.len() + value.len()) as u64 + ENTRY_BYTES)
            .sum();
        self.xattr_bytes = self.xattr_bytes.saturating_add(xattr_bytes);
        (self.allow)(xattr_bytes.saturating_add(ENTRY_BYTES + BLOCK_BYTES))?;
        let path = entry.path.as_slice();
        let components = components(path).map_err(|reason| refused(path, reason))?;
        let Some((&name, parents)) = components.split_last() else {
            if entry.kind != Kind::Directory {
                return Err(refused(path, "the root can only be a directory"));
            }
            let root = open_root(&self.tree).map_err(at(path))?;
            return self.directory_metadata(root, entry);
        };
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(path, parents, name, hidden, upper);
        }
        let parent = self.parent(path, parents)?;
        let parent = parent.as_fd();
        upper.add(fstat(parent).map_err(at(path))?.st_ino, name);
        match entry.kind {
            Kind::Directory => self.directory(parent, name, entry),
            Kind::File => self.file(parent, name, entry, data),
            Kind::Hardlink => self.hardlink(parent, name, entry),
            Kind::Symlink => symlink(parent, name, entry),
            Kind::Fifo => fifo(parent, name, entry),
            Kind::CharacterDevice | Kind::BlockDevice => {
                self.skipped_devices += 1;
                clear(parent, name).map_err(at(path))
            }
        }
    }

    /// The directory in which an entry goes, made if no layer has it.
    fn parent(&mut self, path: &[u8], parents: &[&[u8]]) -> Result<OwnedFd, LayerError> {
        let times = &mut self.directory_times;
        let before = self.entries;
        let (entries, max_entries) = (&mut self.entries, self.max_entries);
        let mut full = false;
        let result = self.tree.directory_or_create(parents, |made| {
            *entries += 1;
            full = *entries > max_entries;
            times.insert(fstat(made)?.st_ino, (0, 0));
            if full { Err(Errno::EDQUOT) } else { Ok(()) }
        });
        (self.allow)((self.entries - before).saturating_mul(ENTRY_BYTES + BLOCK_BYTES))?;
        match result {
            Err(_) if full => Err(LayerError::TooManyEntries { limit: max_entries }),
            Err(Errno::ENOTDIR | Errno::EEXIST) => Err(refused(path, "its parent is not a directory")),
            Err(Errno::ENAMETOOLONG) => Err(refused(path, "its directory is too deep or its path too long")),
            Err(Errno::ELOOP) => Err(refused(path, "too many symbolic links in its path")),
            result => result.map_err(at(path)),
        }
    }

    /// Hides what lower layers have: one entry, or (opaque) everything in a directory.
    fn whiteout(
        &mut self,
        path: &[u8],
        parents: &[&[u8]],
        name: &[u8],
        hidden: &[u8],
        upper: &Upper,
    ) -> Result<(), LayerError> {
        let opaque = name == OPAQUE;
        if name.starts_with(AUFS) && !opaque {
            return Ok(());
        }
        if !opaque && matches!(hidden, b"" | b"." | b"..") {
            return Err(refused(path, "a whiteout of nothing"));
        }
        let parent = match self.tree.directory(parents) {
            // Nothing to hide.
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            parent => parent.map_err(at(path))?,
        };
        if opaque {
            tree::remove_children(parent.as_fd(), upper).map_err(at(path))?;
        } else {
            tree::remove(parent.as_fd(), hidden, upper).map_err(at(path))?;
        }
        Ok(())
    }

    fn directory(&mut self, parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<(), LayerError> {
        let path = entry.path.as_slice();
        let found = tree::stat(parent, name).map_err(at(path))?;
        let directory = if found.is_some_and(|stat| tree::is_directory(&stat)) {
            tree::open_directory(parent, name).map_err(at(path))?
        } else {
            clear(parent, name).map_err(at(path))?;
            match self.tree.make_directory(parent, name) {
                Err(Errno::ENAMETOOLONG) => return Err(refused(path, "it is too deep or its path too long")),
                made => made.map_err(at(path))?,
            }
        };
        self.directory_metadata(directory, entry)
    }

    fn directory_metadata(&mut self, directory: OwnedFd, entry: &Entry) -> Result<(), LayerError> {
        let path = entry.path.as_slice();
        let ino = fstat(&directory).map_err(at(path))?.st_ino;
        self.directory_times.insert(ino, entry.mtime);
        metadata(File::from(directory), entry)
    }

    fn file(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        data: &mut impl Read,
    ) -> Result<(), LayerError> {
        let path = entry.path.as_slice();
        self.bytes = self.bytes.checked_add(entry.size).ok_or(LayerError::TooLarge)?;
        if self.bytes > self.max_bytes {
            return Err(LayerError::TooLarge);
        }
        clear(parent, name).map_err(at(path))?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file =
            File::from(openat(parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(at(path))?);
        let written = |source| LayerError::Io {
            path: shown(path),
            source,
        };
        let mut end = 0;
        for &(offset, length) in &entry.segments {
            if offset != end {
                file.seek(SeekFrom::Start(offset)).map_err(written)?;
            }
            end = offset + length;
            let mut left = length;
            while left > 0 {
                let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
                let read = data.read(&mut self.buffer[..most])?;
                if read == 0 {
                    return Err(LayerError::Read(std::io::ErrorKind::UnexpectedEof.into()));
                }
                (self.allow)(read as u64)?;
                file.write_all(&self.buffer[..read]).map_err(written)?;
                left -= read as u64;
            }
        }
        if end < entry.size {
            file.set_len(entry.size).map_err(written)?;
        }
        metadata(file, entry)
    }

    fn hardlink(&mut self, parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<(), LayerError> {
        let path = entry.path.as_slice();
        let target =
            components(&entry.link).map_err(|reason| refused(path, &format!("its link target: {reason}")))?;
        let missing = || {
            refused(
                path,
                &format!("its link target \"{}\" is not in the image", shown(&entry.link)),
            )
        };
        let (&target_name, target_parents) = target.split_last().ok_or_else(missing)?;
        let target_parent = match self.tree.directory(target_parents) {
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Err(missing()),
            directory => directory.map_err(at(path))?,
        };
        let found = tree::stat(target_parent.as_fd(), target_name)
            .map_err(at(path))?
            .ok_or_else(missing)?;
        if tree::is_directory(&found) {
            return Err(refused(path, "a hard link to a directory"));
        }
        let existing = tree::stat(parent, name).map_err(at(path))?;
        if existing.is_some_and(|it| it.st_ino == found.st_ino) {
            return Ok(());
        }
        clear(parent, name).map_err(at(path))?;
        match linkat(&target_parent, target_name, parent, name, AtFlags::empty()) {
            // The target was inside of what the link replaces.
            Err(Errno::ENOENT) => Err(missing()),
            result => result.map_err(at(path)),
        }
    }
}

fn packed_inode(content_bytes: u64) -> u64 {
    content_bytes
        .checked_next_multiple_of(BLOCK_BYTES)
        .unwrap_or(u64::MAX)
        .saturating_add(PACKED_INODE_BYTES)
}

fn symlink(parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<(), LayerError> {
    let path = entry.path.as_slice();
    if entry.link.is_empty() || entry.link.contains(&0) {
        return Err(refused(path, "a symbolic link to nothing"));
    }
    clear(parent, name).map_err(at(path))?;
    symlinkat(entry.link.as_slice(), parent, name).map_err(at(path))?;
    node_metadata(parent, name, entry)
}

fn fifo(parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<(), LayerError> {
    let path = entry.path.as_slice();
    clear(parent, name).map_err(at(path))?;
    mkfifoat(parent, name, Mode::S_IRUSR).map_err(at(path))?;
    let mode = Mode::from_bits_truncate(entry.mode);
    // Not a link: it was made on the line above, in a directory that nobody else can enter.
    nix::sys::stat::fchmodat(parent, name, mode, nix::sys::stat::FchmodatFlags::FollowSymlink)
        .map_err(at(path))?;
    node_metadata(parent, name, entry)
}

/// Removes whatever is at a name, so that the new entry is never placed through it.
fn clear(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    tree::remove(parent, name, &Upper::default()).map(drop)
}

/// Owner, then mode and attributes (a change of owner clears setuid and capabilities), then time.
fn metadata(file: File, entry: &Entry) -> Result<(), LayerError> {
    let path = entry.path.as_slice();
    let (uid, gid) = owner(entry)?;
    let failed = |source| LayerError::Io {
        path: shown(path),
        source,
    };
    // A directory that an upper layer states again has the attributes of that layer only.
    if entry.kind == Kind::Directory {
        for name in file
            .list_xattr()
            .map_err(failed)?
            .filter(|name| is_kept(name.as_bytes()))
        {
            file.remove_xattr(name).map_err(failed)?;
        }
    }
    fchown(&file, Some(uid), Some(gid)).map_err(at(path))?;
    fchmod(&file, Mode::from_bits_truncate(entry.mode)).map_err(at(path))?;
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| is_kept(name)) {
        if name.contains(&0) {
            return Err(refused(path, "an extended attribute with a NUL in its name"));
        }
        file.set_xattr(std::ffi::OsStr::from_bytes(name), value)
            .map_err(|source| {
                let reason = format!("extended attribute {}: {source}", shown(name));
                LayerError::Entry {
                    path: shown(path),
                    reason,
                }
            })?;
    }
    let time = timespec(entry.mtime);
    futimens(&file, &time, &time).map_err(at(path))
}

/// Owner and time of what cannot be opened.
fn node_metadata(parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<(), LayerError> {
    let path = entry.path.as_slice();
    let (uid, gid) = owner(entry)?;
    fchownat(parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(at(path))?;
    let time = timespec(entry.mtime);
    utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink).map_err(at(path))
}

/// The owner; the highest id is no id (it means "leave as is" to chown).
fn owner(entry: &Entry) -> Result<(Uid, Gid), LayerError> {
    let id = |value: u64| u32::try_from(value).ok().filter(|&id| id != u32::MAX);
    match (id(entry.uid), id(entry.gid)) {
        (Some(uid), Some(gid)) => Ok((Uid::from_raw(uid), Gid::from_raw(gid))),
        _ => Err(refused(
            &entry.path,
            &format!("owner {}:{} is out of range", entry.uid, entry.gid),
        )),
    }
}

fn is_kept(attribute: &[u8]) -> bool {
    attribute == b"security.capability" || attribute.starts_with(b"user.")
}

fn timespec((seconds, nanoseconds): (u64, u32)) -> TimeSpec {
    TimeSpec::new(seconds.min(MAX_TIME_SECONDS).cast_signed(), nanoseconds.into())
}

/// The components of a path, taken from the root whether it begins with a slash or not.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, &'static str> {
    if path.len() > MAX_PATH_BYTES {
        return Err("its path is too long");
    }
    if path.contains(&0) {
        return Err("its path has a NUL in it");
    }
    let parts: Vec<_> = path
        .split(|&byte| byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .collect();
    if parts.contains(&b"..".as_slice()) {
        return Err("its path has \"..\" in it");
    }
    let is_long = |part: &&[u8]| part.strip_prefix(WHITEOUT).unwrap_or(part).len() > MAX_NAME_BYTES;
    if parts.iter().any(is_long) {
        return Err("a name in its path is longer than 254 bytes");
    }
    if parts.len() > MAX_DEPTH {
        Err("its directory is too deep")
    } else {
        Ok(parts)
    }
}

fn open_root(tree: &Tree) -> Result<OwnedFd, Errno> {
    tree::open_directory(tree.root(), b".")
}

fn refused(path: &[u8], reason: &str) -> LayerError {
    LayerError::Entry {
        path: shown(path),
        reason: reason.to_owned(),
    }
}

fn at(path: &[u8]) -> impl FnOnce(Errno) -> LayerError {
    move |errno| LayerError::Io {
        path: shown(path),
        source: errno.into(),
    }
}

fn shown(path: &[u8]) -> String {
    super::manifest::shown(&String::from_utf8_lossy(path))
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
