//! A husk: a VMM in its jail that has all of a clone but drives, network and task, and waits for them. Its process, its
//! user and its cgroup are nobody's until then, and the machine's afterwards. When husks are made, and for whom, is in `husks`.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::Child;
use std::sync::Arc;

use berth_vmm::config::{CONFIG_VERSION, HandOver, HuskConfig};
use berth_vmm::husk;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::host_error;
use super::launch::{self, Handed, TemplateFiles};
use super::running::last_line;
use super::starter::Starter;
use super::templates::Shape;
use super::users::Users;
use crate::cgroup::{Caps, Cgroup, Cgroups};
use crate::faults::{self, Point};
use crate::model::task::TaskId;
use crate::task::host::HostError;

/// The names of husks' cgroups begin so, and no task's.
pub(super) const GROUP_PREFIX: &str = "husk-";
/// How long one may take to be ready.
const PATIENCE_SECONDS: i64 = 60;
/// Most that is read of what one has said.
const MAX_WORDS_BYTES: usize = 4096;

/// A husk that waits. It is ended, and everything of it removed, when it is dropped, which blocks for a moment.
pub(super) struct Husk {
    /// Whom its user is taken for: no task.
    id: TaskId,
    users: Arc<Users>,
    group: Cgroup,
    /// None before it is started, and once it is a machine.
    process: Option<(Child, OwnedFd)>,
    is_machine: bool,
}

impl Husk {
    /// One of a template of this shape, which is ready. Blocks.
    pub fn start(starter: &Starter, shape: &Shape, files: TemplateFiles) -> Result<Self, HostError> {
        let id = TaskId::random();
        let user = starter.users.take(&id)?;
        let name = group_name(&id);
        let mut husk = Self {
            id,
            users: Arc::clone(&starter.users),
            group: starter.cgroups.group(&name).map_err(host_error)?,
            process: None,
            is_machine: false,
        };
        let cpu_units = shape.vcpus * launch::UNITS_PER_VCPU;
        let caps = launch::caps(cpu_units, shape.memory_mib);
        starter.cgroups.create(&name, &caps).map_err(host_error)?;
        let (ours, theirs) = sockets().map_err(host_error)?;
        let said = File::from(memfd_create(c"husk-log", MFdFlags::MFD_CLOEXEC).map_err(host_error)?);
        let mut handed = Handed::default();
        let config = HuskConfig {
            version: CONFIG_VERSION,
            vcpus: launch::vcpus(cpu_units)?,
            memory_mib: launch::guest_mib(shape.memory_mib),
            kvm_fd: handed.take(launch::kvm()?),
            memory_fd: handed.take(files.memory.into()),
            state_fd: handed.take(files.state.into()),
            working_set: files.working_set,
            huge_pages: starter.huge_pages,
            parent_fd: handed.take(theirs),
            jail: Some(launch::jail(user)),
        };
        let log = said.try_clone().map_err(host_error)?;
        let vmm = &starter.binaries.vmm;
        let child = launch::spawn(vmm, "--husk-config-fd", &config, handed, &husk.group, log)?;
        let (_, socket) = husk.process.insert((child, ours));
        husk::wait_until_ready(socket.as_fd())
            .map_err(|error| HostError(format!("{error}{}", last_words(&said))))?;
        faults::pass(Point::HuskReady);
        Ok(husk)
    }

    /// Whom its user is taken for.
    pub fn id(&self) -> &TaskId {
        &self.id
    }

    pub fn is_alive(&mut self) -> bool {
        let child = self.process.as_mut().map(|(child, _)| child);
        child.is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// The name of its cgroup, which will be the machine's.
    pub fn group(&self) -> String {
        group_name(&self.id)
    }

    /// Becomes a machine with these caps, which hold before the guest runs. Its user must be the machine's by now.
    pub fn go_on(mut self, cgroups: &Cgroups, caps: &Caps, rest: HandOver) -> Result<Child, HostError> {
        let ended = || HostError("the husk has ended".to_owned());
        let (_, socket) = self.process.as_ref().ok_or_else(ended)?;
        cgroups.create(&self.group(), caps).map_err(host_error)?;
        faults::pass(Point::HuskCapped);
        husk::hand_over(socket.as_fd(), rest).map_err(host_error)?;
        faults::pass(Point::HuskTold);
        let (child, _) = self.process.take().ok_or_else(ended)?;
        self.is_machine = true;
        Ok(child)
    }
}

impl Drop for Husk {
    fn drop(&mut self) {
        if let Some((mut child, socket)) = self.process.take() {
            drop(socket);
            if let Err(error) = child.kill().and_then(|()| child.wait()) {
                // As long as it runs, its user is nobody else's.
                tracing::error!(%error, "a husk cannot be ended");
                return;
            }
        }
        self.users.release(&self.id);
        if self.is_machine {
            return;
        }
        if let Err(error) = self.group.remove_empty() {
            tracing::warn!(error = %host_error(error), "the control group of a husk stays");
        }
    }
}

fn group_name(id: &TaskId) -> String {
    format!("{GROUP_PREFIX}{}", id.as_str())
}

/// Ours, which does not wait for ever, and the husk's.
fn sockets() -> nix::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    setsockopt(
        &ours,
        sockopt::ReceiveTimeout,
        &TimeVal::seconds(PATIENCE_SECONDS),
    )?;
    Ok((ours, theirs))
}

/// What a husk that failed has said last, to be put behind something.
fn last_words(said: &File) -> String {
    let mut bytes = vec![0; MAX_WORDS_BYTES];
    let read = said.read_at(&mut bytes, 0).unwrap_or(0);
    last_line(&bytes[..read]).map_or_else(String::new, |line| format!("; {line}"))
}
