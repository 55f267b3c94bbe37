//! A directory tree in which hostile paths are resolved as if it were the root of the file system: nothing outside is
//! ever reached, and nothing is placed through a symbolic link in the last component.

use std::collections::HashSet;
use std::ffi::{CStr, OsStr};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Deepest directory, counted from the root. Symbolic links do not hide depth: the real path counts.
pub(super) const MAX_DEPTH: usize = 256;
/// Longest path of a directory, so that tools which use whole paths stay within `PATH_MAX` for its files.
const MAX_DIRECTORY_PATH: usize = 3800;
/// `openat2` asks to be called again when a path moved under it.
const RESOLVE_ATTEMPTS: usize = 8;

pub(super) struct Tree {
    root: OwnedFd,
    /// Length of the real path of the root.
    root_path: usize,
}

impl Tree {
    /// Opens an existing directory as a tree.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(path, flags, Mode::empty())?;
        let root_path = real_path(root.as_fd())?.len();
        Ok(Self { root, root_path })
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The directory at this path, symbolic links resolved within the tree.
    pub(super) fn directory(&self, components: &[&[u8]]) -> Result<OwnedFd, Errno> {
        if components.is_empty() {
            return openat(&self.root, c".", path_directory(), Mode::empty());
        }
        let path = components.join(&b'/');
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let mut attempts = 1;
        loop {
            // Without O_NOFOLLOW: a parent may be a link, and resolves within the tree.
            let how = OpenHow::new()
                .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
                .resolve(resolve);
            match openat2(&self.root, path.as_slice(), how) {
                Err(Errno::EAGAIN | Errno::EINTR) if attempts < RESOLVE_ATTEMPTS => attempts += 1,
                result => return result,
            }
        }
    }

    /// Like [`Self::directory`], but makes what is missing. `created` is told of each directory made.
    pub(super) fn directory_or_create(
        &self,
        components: &[&[u8]],
        mut created: impl FnMut(BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> Result<OwnedFd, Errno> {
        match self.directory(components) {
            Err(Errno::ENOENT) => {}
            result => return result,
        }
        let mut current = self.directory(&[])?;
        for end in 1..=components.len() {
            current = match self.directory(&components[..end]) {
                Err(Errno::ENOENT) => {
                    let made = self.make_directory(current.as_fd(), components[end - 1])?;
                    nix::sys::stat::fchmod(&made, Mode::from_bits_truncate(0o755))?;
                    created(made.as_fd())?;
                    made
                }
                result => result?,
            };
        }
        Ok(current)
    }

    /// Makes a directory that nobody else can enter yet, and opens it.
    pub(super) fn make_directory(&self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
        let parent_path = real_path(parent)?;
        let inside = parent_path.get(self.root_path..).unwrap_or_default();
        let depth = inside
            .split(|&byte| byte == b'/')
            .filter(|part| !part.is_empty())
            .count();
        if depth >= MAX_DEPTH || inside.len() + name.len() >= MAX_DIRECTORY_PATH {
            return Err(Errno::ENAMETOOLONG);
        }
        mkdirat(parent, name, Mode::S_IRWXU)?;
        open_directory(parent, name)
    }
}

/// Which entries a layer has brought itself, and therefore its whiteouts do not touch: directory and name, as a keyed
/// hash, so that a million long names take little memory.
#[derive(Default)]
pub(super) struct Upper {
    key: RandomState,
    entries: HashSet<u64>,
}

impl Upper {
    pub(super) fn add(&mut self, directory: u64, name: &[u8]) {
        self.entries.insert(self.key.hash_one((directory, name)));
    }

    fn has(&self, directory: u64, name: &[u8]) -> bool {
        self.entries.contains(&self.key.hash_one((directory, name)))
    }
}

/// Metadata of an entry itself, not of what it links to; none if there is no such entry.
pub(super) fn stat(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Option<FileStat>, Errno> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn is_directory(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

/// Opens a directory for reading, and never through a link.
pub(super) fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    openat(
        parent,
        name,
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

/// Removes an entry and everything below it, except what `upper` holds and the directories that lead there. Says
/// whether the entry is gone.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &[u8], upper: &Upper) -> Result<bool, Errno> {
    let Some(found) = stat(parent, name)? else {
        return Ok(true);
    };
    let ours = upper.has(fstat(parent)?.st_ino, name);
    if !is_directory(&found) {
        if !ours {
            unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?;
        }
        return Ok(!ours);
    }
    let directory = open_directory(parent, name)?;
    let empty = remove_children(directory.as_fd(), upper)?;
    if empty && !ours {
        unlinkat(parent, name, UnlinkatFlags::RemoveDir)?;
    }
    Ok(empty && !ours)
}

/// [`remove`] for each entry of a directory. The depth of recursion is that of the tree, which is bounded.
pub(super) fn remove_children(directory: BorrowedFd<'_>, upper: &Upper) -> Result<bool, Errno> {
    let mut empty = true;
    for name in names(directory)? {
        empty &= remove(directory, name.as_bytes(), upper)?;
    }
    Ok(empty)
}

/// The names in a directory, without `.` and `..`.
pub(super) fn names(directory: BorrowedFd<'_>) -> Result<Vec<std::ffi::OsString>, Errno> {
    // Opened anew, as the offset of a descriptor is shared by its duplicates.
    let mut reader = Dir::openat(
        directory,
        c".",
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let mut names = Vec::new();
    for entry in reader.iter() {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if name != c"." && name != c".." {
            names.push(OsStr::from_bytes(name.to_bytes()).to_owned());
        }
    }
    Ok(names)
}

fn path_directory() -> OFlag {
    OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

fn real_path(directory: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
    Ok(readlinkat(nix::fcntl::AT_FDCWD, link.as_str())?.into_vec())
}
