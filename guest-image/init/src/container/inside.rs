//! Paths inside a container's root file system, which is hostile: no link in it leads out (openat2(2)).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

#[derive(Debug, thiserror::Error)]
pub(crate) enum InsideError {
    #[error("cannot open {path} in the image: {source}")]
    Open { path: PathBuf, source: Errno },
    #[error("cannot make {path} in the image: {source}")]
    Make { path: PathBuf, source: Errno },
    #[error("{path} in the image is not a regular file of at most {limit} bytes")]
    NotAFile { path: PathBuf, limit: u64 },
    #[error("cannot read {path} in the image: {source}")]
    Read { path: PathBuf, source: io::Error },
}

/// The root folder of a container.
#[derive(Debug)]
pub(crate) struct Root(OwnedFd);

/// Whether links may be followed; they never lead out of the root, nor through the kernel's magic links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    Follow,
    Refuse,
}

impl Root {
    pub(crate) fn open(path: &Path) -> Result<Self, InsideError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::open(path, flags, Mode::empty())
            .map(Self)
            .map_err(|source| InsideError::Open {
                path: path.to_owned(),
                source,
            })
    }

    /// A handle (`O_PATH`) on whatever is there; none if nothing is.
    pub(crate) fn existing(&self, path: &Path, links: Links) -> Result<Option<OwnedFd>, InsideError> {
        match self.resolve(path, OFlag::O_PATH, links) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(source) => Err(InsideError::Open {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// A handle on a folder, made with its parents where missing. A link to nowhere is replaced.
    pub(crate) fn directory(&self, path: &Path, links: Links) -> Result<OwnedFd, InsideError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let open = |reached: &Path| self.resolve(reached, flags, links);
        let mut reached = PathBuf::from(".");
        let mut folder = open(&reached).map_err(|source| failed(path, source))?;
        for component in path.components() {
            let (Component::Normal(_) | Component::ParentDir) = component else {
                continue;
            };
            let name = component.as_os_str();
            reached.push(name);
            let opened = match open(&reached) {
                Err(Errno::ENOENT) => {
                    replace(
                        || mkdirat(&folder, name, Mode::from_bits_truncate(0o755)),
                        &folder,
                        name,
                    )
                    .map_err(|source| InsideError::Make {
                        path: path.to_owned(),
                        source,
                    })?;
                    open(&reached)
                }
                other => other,
            };
            folder = opened.map_err(|source| failed(path, source))?;
        }
        Ok(folder)
    }

    /// A handle on a file to mount over, made empty if missing. A link to nowhere is replaced.
    pub(crate) fn file(&self, path: &Path) -> Result<OwnedFd, InsideError> {
        if let Some(fd) = self.existing(path, Links::Follow)? {
            return Ok(fd);
        }
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(InsideError::Make {
                path: path.to_owned(),
                source: Errno::EINVAL,
            });
        };
        let parent = self.directory(folder, Links::Follow)?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o644);
        let create = || nix::fcntl::openat(&parent, name, flags, mode).map(drop);
        replace(create, &parent, name).map_err(|source| InsideError::Make {
            path: path.to_owned(),
            source,
        })?;
        self.resolve(path, OFlag::O_PATH, Links::Follow)
            .map_err(|source| failed(path, source))
    }

    /// The text of a regular file of at most `limit` bytes; empty if there is none. Bytes that are not UTF-8 become
    /// replacement characters.
    pub(crate) fn read(&self, path: &Path, limit: u64) -> Result<String, InsideError> {
        // A FIFO must not hang this, hence O_NONBLOCK.
        let fd = match self.resolve(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, Links::Follow) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(String::new()),
            Err(source) => return Err(failed(path, source)),
        };
        let regular = kind(&fd).map_err(|source| failed(path, source))? == SFlag::S_IFREG;
        let mut bytes = Vec::new();
        if regular {
            File::from(fd)
                .take(limit + 1)
                .read_to_end(&mut bytes)
                .map_err(|source| InsideError::Read {
                    path: path.to_owned(),
                    source,
                })?;
        }
        if !regular || bytes.len() as u64 > limit {
            return Err(InsideError::NotAFile {
                path: path.to_owned(),
                limit,
            });
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn resolve(&self, path: &Path, flags: OFlag, links: Links) -> Result<OwnedFd, Errno> {
        let mut resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        if links == Links::Refuse {
            resolve |= ResolveFlag::RESOLVE_NO_SYMLINKS;
        }
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
        loop {
            match openat2(&self.0, path, how) {
                // A rename elsewhere raced with a `..` on the way (openat2(2)).
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                other => return other,
            }
        }
    }
}

/// What kind of file a handle is on.
pub(crate) fn kind(fd: &OwnedFd) -> Result<SFlag, Errno> {
    fstat(fd).map(|stat| SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()))
}

/// A path that leads to what the handle is on, for calls that take no handles. Needs the caller's `/proc`.
pub(crate) fn handle_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn failed(path: &Path, source: Errno) -> InsideError {
    InsideError::Open {
        path: path.to_owned(),
        source,
    }
}

/// Makes a name that did not resolve; what is there all the same is a link to nowhere and goes.
fn replace(
    make: impl Fn() -> Result<(), Errno>,
    parent: &OwnedFd,
    name: &std::ffi::OsStr,
) -> Result<(), Errno> {
    match make() {
        Err(Errno::EEXIST) => {
            unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?;
            make()
        }
        other => other,
    }
}

#[cfg(test)]
#[path = "inside_tests.rs"]
mod tests;
