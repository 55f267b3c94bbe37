//! Fault points: the named places at which the daemon can be told to die, or to be refused a write, so that a test can show
//! what each leaves behind and that the next start makes it good. Nothing happens at them unless they are armed, which only
//! the environment of the daemon's start can do ([`VARIABLE`]).

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::model::task::TaskStatus;

/// The environment variable that arms points: `POINT=ACTION`, several with commas between them. An action is `kill` (the daemon
/// is killed there) or `enospc*N` (the disk is full there for the first N times).
pub const VARIABLE: &str = "BERTH_FAULTS";

macro_rules! points {
    ($($(#[$about:meta])* $point:ident = $name:literal,)*) => {
        /// A place in the code, in the order in which a task comes by.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point {
            $($(#[$about])* $point,)*
        }

        impl Point {
            pub const ALL: &[Point] = &[$(Point::$point,)*];

            pub fn name(self) -> &'static str {
                match self {
                    $(Point::$point => $name,)*
                }
            }
        }
    };
}

points! {
    /// RunTask has stored its tasks; nobody works on them, and nobody was told.
    TaskAdmitted = "task-admitted",
    /// The interface's link is there, its rules are not.
    TapMade = "tap-made",
    /// The task has an interface, and its state does not say so.
    PendingUnstored = "task-pending-unstored",
    /// As above, and its state says so.
    PendingStored = "task-pending-stored",
    /// A blob is whole under its preliminary name. (Can be refused.)
    BlobDownloaded = "blob-downloaded",
    /// A root file system is whole under its preliminary name. (Can be refused.)
    RootfsPacked = "rootfs-packed",
    /// The images are there; what the machine is to be started with is not noted.
    ImagesPulled = "images-pulled",
    /// It is noted, and the task's state does not say so.
    ActivatingUnstored = "task-activating-unstored",
    /// As above, and its state says so.
    ActivatingStored = "task-activating-stored",
    /// The machine's folder is there, its control group is not.
    MachineFolderMade = "machine-folder-made",
    /// The machine's control group is there, its process is not.
    MachineGroupMade = "machine-group-made",
    /// The machine's process is there, and no file says so.
    MachineSpawned = "machine-spawned",
    /// As above, and a file says so.
    MachineNoted = "machine-noted",
    /// It is noted that the guest is given its task, which it is not.
    HandOverMarked = "hand-over-marked",
    /// The guest has its task, and nothing was heard of it since.
    HandedOver = "handed-over",
    /// The containers run, and the task's state does not say so.
    RunningUnstored = "task-running-unstored",
    /// As above, and its state says so.
    RunningStored = "task-running-stored",
    /// Lines of output have come and are not written. (Can be refused.)
    LinesArrived = "log-lines-arrived",
    /// Lines of output are written, and the guest does not know.
    LinesWritten = "log-lines-written",
    /// The essential container has ended, or a stop was asked for, and the task's state does not say so.
    StoppingUnstored = "task-stopping-unstored",
    /// As above, and its state says so.
    StoppingStored = "task-stopping-stored",
    /// The machine has ended, and the task's state and bill do not say so.
    DeprovisioningUnstored = "task-deprovisioning-unstored",
    /// As above, and both say so.
    DeprovisioningStored = "task-deprovisioning-stored",
    /// The machine's files are gone, the interface is not.
    MachineRemoved = "machine-removed",
    /// All of the task is gone from the host, and its state does not say so.
    StoppedUnstored = "task-stopped-unstored",
    /// As above, and its state says so.
    StoppedStored = "task-stopped-stored",
    /// Anything at all is about to be stored. (Can be refused.)
    StateCommit = "state-commit",
    /// The secrets have a new key, and none is sealed with it.
    KeyAdded = "secrets-key-added",
    /// All secrets are sealed with the new key, and the old one is there still.
    SecretsResealed = "secrets-resealed",
    /// A volume or snapshot is to be made, and its record says so; nothing of its disk is there.
    VolumeStored = "volume-stored",
    /// Its disk is there under a preliminary name, and empty. (Can be refused.)
    VolumeDiskBegun = "volume-disk-begun",
    /// Some of the bytes that it is a copy of are copied. (Can be refused.)
    VolumeHalfCopied = "volume-half-copied",
    /// Its disk is whole under its preliminary name. (Can be refused.)
    VolumeDiskFilled = "volume-disk-filled",
    /// Its disk is whole, and its record does not say so.
    VolumeDiskMade = "volume-disk-made",
    /// As above, and its record says so; nobody was told.
    VolumeMade = "volume-made",
    /// A volume or snapshot is to be deleted, and its record says so; its disk is there.
    VolumeDeletionStored = "volume-deletion-stored",
    /// Its disk is gone, and its record is there.
    VolumeDiskRemoved = "volume-disk-removed",
    /// The files of a template are there, and empty. (Can be refused.)
    TemplateBegun = "template-begun",
    /// Its machine waits for a task, and is about to be written down.
    TemplateBooted = "template-booted",
    /// Its machine writes itself down, and has not said that it is done.
    TemplateUnwritten = "template-unwritten",
    /// Its memory and its state are written, and were not tried. (Can be refused.)
    TemplateWritten = "template-written",
    /// A clone of it has said hello in its trial, and runs.
    TemplateOnTrial = "template-on-trial",
    /// It stood its trial, and no task can start from it yet.
    TemplateTried = "template-tried",
    /// A husk is there and ready, and no task can have it yet.
    HuskReady = "husk-ready",
    /// A husk has the caps of the task whose machine it is to be, and does not know of it.
    HuskCapped = "husk-capped",
    /// It goes on as the task's machine, and no file says so.
    HuskTold = "husk-told",
}

impl Point {
    /// Before a task's step to this status is stored.
    pub(crate) fn unstored(status: TaskStatus) -> Option<Point> {
        Some(match status {
            TaskStatus::Provisioning => return None,
            TaskStatus::Pending => Point::PendingUnstored,
            TaskStatus::Activating => Point::ActivatingUnstored,
            TaskStatus::Running => Point::RunningUnstored,
            TaskStatus::Deactivating | TaskStatus::Stopping => Point::StoppingUnstored,
            TaskStatus::Deprovisioning => Point::DeprovisioningUnstored,
            TaskStatus::Stopped => Point::StoppedUnstored,
        })
    }

    /// After a task's step to this status was stored, and before anything is done about it.
    pub(crate) fn stored(status: TaskStatus) -> Option<Point> {
        Some(match status {
            TaskStatus::Provisioning => return None,
            TaskStatus::Pending => Point::PendingStored,
            TaskStatus::Activating => Point::ActivatingStored,
            TaskStatus::Running => Point::RunningStored,
            TaskStatus::Deactivating | TaskStatus::Stopping => Point::StoppingStored,
            TaskStatus::Deprovisioning => Point::DeprovisioningStored,
            TaskStatus::Stopped => Point::StoppedStored,
        })
    }

    /// Whether a write stands behind the point, which can be refused.
    fn writes(self) -> bool {
        matches!(
            self,
            Point::BlobDownloaded
                | Point::RootfsPacked
                | Point::LinesArrived
                | Point::StateCommit
                | Point::VolumeDiskBegun
                | Point::VolumeHalfCopied
                | Point::VolumeDiskFilled
                | Point::TemplateBegun
                | Point::TemplateWritten
        )
    }
}

#[derive(Debug)]
enum Action {
    Kill,
    /// So many times more.
    Refuse(AtomicU32),
}

#[derive(Debug)]
struct Armed {
    point: Point,
    action: Action,
}

static ARMED: OnceLock<Vec<Armed>> = OnceLock::new();

/// What was asked for in [`VARIABLE`] cannot be had; the text says what can.
#[derive(Debug, thiserror::Error)]
#[error("{VARIABLE} has {entry:?}; {rule}")]
pub struct FaultError {
    entry: String,
    rule: String,
}

/// Arms what the text of [`VARIABLE`] names, for the life of this process. To be called once, before anything else.
pub fn arm(text: &str) -> Result<(), FaultError> {
    let armed = parse(text)?;
    for one in &armed {
        tracing::warn!(point = one.point.name(), action = ?one.action, "a fault point is armed");
    }
    drop(ARMED.set(armed));
    Ok(())
}

fn parse(text: &str) -> Result<Vec<Armed>, FaultError> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries.map(parse_entry).collect()
}

fn parse_entry(entry: &str) -> Result<Armed, FaultError> {
    let wrong = |rule: String| FaultError {
        entry: entry.to_owned(),
        rule,
    };
    let (name, action) = entry
        .split_once('=')
        .ok_or_else(|| wrong("write POINT=ACTION".to_owned()))?;
    let Some(point) = Point::ALL.iter().find(|point| point.name() == name) else {
        let names: Vec<_> = Point::ALL.iter().map(|point| point.name()).collect();
        return Err(wrong(format!("the points are {}", names.join(" "))));
    };
    let times = || action.strip_prefix("enospc*")?.parse().ok();
    let action = match (action, times()) {
        ("kill", _) => Action::Kill,
        (_, Some(times)) if point.writes() => Action::Refuse(AtomicU32::new(times)),
        (_, Some(_)) => return Err(wrong("nothing is written there that could be refused".to_owned())),
        _ => return Err(wrong("the actions are kill and enospc*N".to_owned())),
    };
    Ok(Armed {
        point: *point,
        action,
    })
}

/// The daemon comes by a point at which it may be killed.
pub(crate) fn pass(point: impl Into<Option<Point>>) {
    // A refusal cannot be armed where nothing is written.
    drop(point.into().map(write));
}

/// The daemon is about to write what the point names.
pub(crate) fn write(point: Point) -> io::Result<()> {
    let Some(armed) = ARMED.get() else { return Ok(()) };
    for one in armed.iter().filter(|one| one.point == point) {
        match &one.action {
            Action::Kill => die(point),
            Action::Refuse(times) => {
                let left = times.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
                if left.is_ok() {
                    tracing::warn!(point = point.name(), "a fault point refuses a write");
                    return Err(Errno::ENOSPC.into());
                }
            }
        }
    }
    Ok(())
}

/// As `kill -9` does: nothing is flushed, nothing is closed.
fn die(point: Point) -> ! {
    tracing::warn!(point = point.name(), "a fault point kills the daemon");
    match kill(Pid::this(), Signal::SIGKILL) {
        Ok(()) => loop {
            std::thread::park();
        },
        Err(_) => std::process::abort(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for point in Point::ALL {
            let armed = parse(&format!("{}=kill", point.name())).unwrap();
            assert_eq!((armed.len(), armed[0].point), (1, *point));
        }
    }

    #[test]
    fn several_points_and_both_actions() {
        let armed = parse("state-commit=enospc*3, task-admitted=kill,").unwrap();
        assert!(matches!(&armed[0].action, Action::Refuse(times) if times.load(Ordering::Relaxed) == 3));
        assert!(matches!(armed[1].action, Action::Kill));
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_had_is_named_with_what_can() {
        let refused = |text: &str| parse(text).unwrap_err().to_string();
        assert!(refused("nowhere=kill").contains("\"nowhere=kill\"; the points are task-admitted"));
        assert!(refused("task-admitted").contains("POINT=ACTION"));
        assert!(refused("task-admitted=enospc*2").contains("nothing is written there"));
        assert!(refused("state-commit=enospc*many").contains("kill and enospc*N"));
    }

    #[test]
    fn an_unarmed_point_lets_pass() {
        pass(Point::TaskAdmitted);
        write(Point::StateCommit).unwrap();
    }
}
