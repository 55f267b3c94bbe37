//! Network namespaces: made, found and removed by name in the way of `ip netns`, and entered by threads of their own.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};
use tokio::sync::oneshot;

use super::NetworkError;

/// Where `ip netns` keeps namespaces (ip-netns(8)).
const FOLDER: &str = "/run/netns";
/// The namespace of the thread that opens it.
const OWN: &str = "/proc/thread-self/ns/net";

/// An open network namespace. It lives as long as this, its name, or anything inside it that is in use.
#[derive(Clone, Debug)]
pub(super) struct Namespace {
    file: Arc<File>,
}

impl Namespace {
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// That of the calling thread.
    pub(super) fn current() -> Result<Self, NetworkError> {
        let file = File::open(OWN).map_err(failed("open", "of this process"))?;
        Ok(Self { file: Arc::new(file) })
    }

    /// A new one without a name, for as long as it is held.
    pub(super) async fn anonymous() -> Result<Self, NetworkError> {
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|errno| failed("make", "without a name")(errno.into()))?;
            Self::current()
        })
        .await?
    }

    /// The one of this name; none if there is none, or only the empty file that a crash left.
    pub(super) fn open(name: &str) -> Result<Option<Self>, NetworkError> {
        let file = match OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path(name))
        {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", name)(error)),
        };
        let status = fstatfs(&file).map_err(|errno| failed("look at", name)(errno.into()))?;
        Ok((status.filesystem_type() == NSFS_MAGIC).then(|| Self { file: Arc::new(file) }))
    }

    /// Makes one. A leftover of this name that is no namespace goes.
    pub(super) async fn create(name: &str) -> Result<Self, NetworkError> {
        shared_folder().map_err(failed("prepare the folder of", name))?;
        remove(name)?;
        let path = path(name);
        let mut file = OpenOptions::new();
        file.write(true)
            .create_new(true)
            .mode(0o444)
            .open(&path)
            .map_err(failed("name", name))?;
        let name = name.to_owned();
        let made = on_thread(move || {
            let bind = || -> Result<(), Errno> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                mount(Some(OWN), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            };
            bind().map_err(|errno| failed("make", &name)(errno.into()))?;
            Self::current()
        });
        made.await?
    }

    /// Runs something on a thread of its own inside the namespace.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NetworkError> {
        let file = Arc::clone(&self.file);
        on_thread(move || {
            setns(file, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| failed("enter", "of a vpc")(errno.into()))?;
            Ok(work())
        })
        .await?
    }
}

/// Takes the name away. Not being there is no error.
pub(super) fn remove(name: &str) -> Result<(), NetworkError> {
    let path = path(name);
    match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // Not there, or not mounted.
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
        Err(errno) => return Err(failed("unmount", name)(errno.into())),
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", name)(error)),
        _ => Ok(()),
    }
}

/// The names that begin so.
pub(super) fn list(start: &str) -> Result<Vec<String>, NetworkError> {
    let entries = match fs::read_dir(FOLDER) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(NetworkError::Read {
                path: FOLDER.to_owned(),
                source,
            });
        }
    };
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(start))
        .collect();
    names.sort();
    Ok(names)
}

fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

fn failed<'a>(action: &'static str, name: &'a str) -> impl FnOnce(io::Error) -> NetworkError + use<'a> {
    let name = name.to_owned();
    move |source| NetworkError::Namespace { action, name, source }
}

/// Mounts on a shared mount are seen, and their removal too, in every mount namespace that got a copy of it. Without
/// this, a service started meanwhile in a mount namespace of its own would keep a removed VPC alive.
fn shared_folder() -> io::Result<()> {
    fs::create_dir_all(FOLDER)?;
    let share = || {
        mount(
            None::<&str>,
            FOLDER,
            None::<&str>,
            MsFlags::MS_SHARED | MsFlags::MS_REC,
            None::<&str>,
        )
    };
    match share() {
        Err(Errno::EINVAL) => {
            mount(
                Some(FOLDER),
                FOLDER,
                None::<&str>,
                MsFlags::MS_BIND | MsFlags::MS_REC,
                None::<&str>,
            )?;
            Ok(share()?)
        }
        shared => Ok(shared?),
    }
}

/// A namespace is a property of a thread, so whoever changes it must never go back to a pool of threads.
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, NetworkError> {
    let (sender, receiver) = oneshot::channel();
    let body = move || {
        // Nobody waits any more if the caller was cancelled; the work is then simply dropped.
        let _ = sender.send(work());
    };
    thread::Builder::new()
        .name("netns".to_owned())
        .spawn(body)
        .map_err(NetworkError::Thread)?;
    receiver.await.map_err(|_| NetworkError::ThreadLost)
}
