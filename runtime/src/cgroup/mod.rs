//! Control groups (version 2) of machines: the caps that hold whatever happens inside a guest.
//!
//! It sets caps and reads use. Which caps a task gets is not decided here.

mod caps;
mod hierarchy;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, OpenOptions},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{Instant, sleep};

pub use self::caps::Caps;

/// How long the processes of a killed group may take to be gone: a process in an uninterruptible wait cannot end.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(10);
const EMPTY_POLL: Duration = Duration::from_millis(5);

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {value:?} to {path}")]
    Write {
        path: PathBuf,
        value: String,
        source: io::Error,
    },
    #[error("no cgroup2 file system is mounted: mount one at /sys/fs/cgroup")]
    NoHierarchy,
    #[error(
        "controller {controller} is not available in {path}: on a host that still uses cgroup version 1, boot with \
         systemd.unified_cgroup_hierarchy=1; in a container, delegate the controller to it"
    )]
    NoController { controller: &'static str, path: PathBuf },
    #[error(
        "cannot enable controller {controller} in {path}, which holds processes of its own: choose a parent group \
         directly under the root of the hierarchy"
    )]
    Occupied { controller: &'static str, path: PathBuf },
    #[error("group name {0:?} is not 1 to 64 letters, digits, dashes and underscores")]
    Name(String),
    #[error("cannot create group {path}")]
    Create { path: PathBuf, source: io::Error },
    #[error("cannot remove group {path}")]
    Remove { path: PathBuf, source: io::Error },
    #[error("{path} still holds processes {seconds} s after they were killed")]
    NotEmpty { path: PathBuf, seconds: u64 },
    #[error("{path} says {content:?}, which is not understood")]
    Content { path: PathBuf, content: String },
}

/// The parent of all machines' groups.
#[derive(Clone, Debug)]
pub struct Cgroups {
    root: PathBuf,
}

impl Cgroups {
    /// Prepares `parent`, a path below the root of the cgroup2 hierarchy such as `berth` or `system.slice/berth`.
    ///
    /// A group with caps on its children holds no processes itself, so the parent cannot be the daemon's own group.
    pub fn open(parent: &str) -> Result<Self, CgroupError> {
        Self::open_at(&hierarchy::mount_point()?, parent)
    }

    fn open_at(mount_point: &Path, parent: &str) -> Result<Self, CgroupError> {
        Ok(Self {
            root: hierarchy::prepare(mount_point, parent)?,
        })
    }

    /// Creates the group of a machine, or sets the caps of the one that is there.
    pub fn create(&self, name: &str, caps: &Caps) -> Result<Cgroup, CgroupError> {
        let group = self.group(name)?;
        match fs::create_dir(&group.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(CgroupError::Create {
                    path: group.path,
                    source: error,
                });
            }
            _ => {}
        }
        for (file, value) in caps.settings() {
            group.write(file, &value)?;
        }
        Ok(group)
    }

    /// The group of a machine, there or not.
    pub fn group(&self, name: &str) -> Result<Cgroup, CgroupError> {
        // Without a dot, so that no group is named like a file of the kernel's.
        let fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if name.is_empty() || name.len() > 64 || !name.bytes().all(fine) {
            return Err(CgroupError::Name(name.chars().take(80).collect()));
        }
        Ok(Cgroup {
            path: self.root.join(name),
        })
    }

    /// The names of the groups that are there.
    pub fn list(&self) -> Result<Vec<String>, CgroupError> {
        let read = |source| CgroupError::Read {
            path: self.root.clone(),
            source,
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(read)? {
            let entry = entry.map_err(read)?;
            if entry.file_type().map_err(read)?.is_dir()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }
}

/// The group of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

/// What a group has used and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time since the group was created, in microseconds.
    pub cpu_usec: u64,
    pub memory_bytes: u64,
    /// Most memory at any time; none before Linux 5.19.
    pub memory_peak_bytes: Option<u64>,
    pub pids: u64,
    /// How often the kernel killed something of the group for want of memory.
    pub oom_kills: u64,
}

impl Cgroup {
    /// `cgroup.procs`, open for writing: a process that writes `0` to it joins the group.
    pub fn procs_fd(&self) -> Result<OwnedFd, CgroupError> {
        let path = self.path.join("cgroup.procs");
        match OpenOptions::new().write(true).open(&path) {
            Ok(file) => Ok(file.into()),
            Err(source) => Err(CgroupError::Write {
                path,
                value: String::new(),
                source,
            }),
        }
    }

    /// Removes the group, there or not, in which no process is any more.
    pub fn remove_empty(&self) -> Result<(), CgroupError> {
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CgroupError::Remove {
                path: self.path.clone(),
                source: error,
            }),
            _ => Ok(()),
        }
    }

    pub fn usage(&self) -> Result<Usage, CgroupError> {
        Ok(Usage {
            cpu_usec: self.entry("cpu.stat", "usage_usec")?,
            memory_bytes: self.number("memory.current")?,
            memory_peak_bytes: self.number("memory.peak").ok(),
            pids: self.number("pids.current")?,
            oom_kills: self.entry("memory.events", "oom_kill")?,
        })
    }

    /// Kills every process of the group at once. A group that is not there has none.
    pub fn kill(&self) -> Result<(), CgroupError> {
        match self.write("cgroup.kill", "1") {
            Err(CgroupError::Write { source, .. })
                if source.kind() == io::ErrorKind::NotFound && !self.path.exists() =>
            {
                Ok(())
            }
            killed => killed,
        }
    }

    /// Kills what is in the group, waits until it is gone (10 s at most), and removes the group, there or not.
    pub async fn remove(&self) -> Result<(), CgroupError> {
        self.kill()?;
        let deadline = Instant::now() + EMPTY_TIMEOUT;
        loop {
            match fs::remove_dir(&self.path) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if error.kind() != io::ErrorKind::ResourceBusy => {
                    return Err(CgroupError::Remove {
                        path: self.path.clone(),
                        source: error,
                    });
                }
                Err(_) if Instant::now() >= deadline => {
                    return Err(CgroupError::NotEmpty {
                        path: self.path.clone(),
                        seconds: EMPTY_TIMEOUT.as_secs(),
                    });
                }
                Err(_) => sleep(EMPTY_POLL).await,
            }
        }
    }

    fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.path.join(file);
        // Never creating: the files of a group are the kernel's.
        let written = OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
        written.map_err(|source| CgroupError::Write {
            path,
            value: value.to_owned(),
            source,
        })
    }

    fn read(&self, file: &str) -> Result<(PathBuf, String), CgroupError> {
        let path = self.path.join(file);
        match fs::read_to_string(&path) {
            Ok(content) => Ok((path, content)),
            Err(source) => Err(CgroupError::Read { path, source }),
        }
    }

    fn number(&self, file: &str) -> Result<u64, CgroupError> {
        let (path, content) = self.read(file)?;
        content
            .trim()
            .parse()
            .map_err(|_| CgroupError::Content { path, content })
    }

    fn entry(&self, file: &str, key: &str) -> Result<u64, CgroupError> {
        let (path, content) = self.read(file)?;
        let value = content
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok());
        value.ok_or(CgroupError::Content { path, content })
    }
}
