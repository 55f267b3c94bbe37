//! A configuration in two parts: what a process can prepare before anybody knows what machine it is to be, and the rest.
//! Together they are a [`MachineConfig`], and are checked as one.

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use super::validate::ConfigError;
use super::{
    DriveConfig, HugePages, JailConfig, LimitsConfig, MachineConfig, MemoryConfig, NetConfig, StartConfig,
    VsockConfig, WorkingSet,
};

/// The first part: a husk of a machine that goes on from a snapshot. As JSON on the descriptor named by `--husk-config-fd`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HuskConfig {
    /// Must be [`super::CONFIG_VERSION`].
    pub version: u32,
    /// As in [`MachineConfig`], like what follows.
    pub vcpus: u8,
    pub memory_mib: u32,
    pub kvm_fd: RawFd,
    /// The memory of the snapshot; what the guest writes stays in the process.
    pub memory_fd: RawFd,
    /// The state of the snapshot.
    pub state_fd: RawFd,
    #[serde(default)]
    pub working_set: WorkingSet,
    #[serde(default)]
    pub huge_pages: HugePages,
    /// A connected `SOCK_SEQPACKET` socket: [`crate::husk`] says what is said on it.
    pub parent_fd: RawFd,
    pub jail: Option<JailConfig>,
}

/// The second part. On the way from process to process its descriptors are places in the list beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandOver {
    /// A regular file that is standard error from now on; none leaves what it was.
    pub log_fd: Option<RawFd>,
    /// As in [`MachineConfig`], like what follows.
    pub control_fd: RawFd,
    pub exit_fd: Option<RawFd>,
    #[serde(default)]
    pub drives: Vec<DriveConfig>,
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    pub vsock: Option<VsockConfig>,
    #[serde(default)]
    pub balloon: bool,
    #[serde(default)]
    pub entropy: bool,
    pub entropy_limits: Option<LimitsConfig>,
    pub serial_fd: Option<RawFd>,
    pub serial_limits: Option<LimitsConfig>,
}

impl HuskConfig {
    /// Checks every value, as that of a machine without any device.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.alone().validate()
    }

    /// The machine without any device. Its control socket is none.
    pub fn alone(&self) -> MachineConfig {
        self.with(HandOver {
            log_fd: None,
            control_fd: -1,
            exit_fd: None,
            drives: Vec::new(),
            nets: Vec::new(),
            vsock: None,
            balloon: false,
            entropy: false,
            entropy_limits: None,
            serial_fd: None,
            serial_limits: None,
        })
    }

    /// The machine that both parts are.
    pub fn with(&self, rest: HandOver) -> MachineConfig {
        MachineConfig {
            version: self.version,
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            kvm_fd: self.kvm_fd,
            start: StartConfig::Restore {
                state_fd: self.state_fd,
                working_set: self.working_set.clone(),
            },
            memory: Some(MemoryConfig {
                fd: self.memory_fd,
                shared: false,
                page_by_page: false,
            }),
            huge_pages: self.huge_pages,
            snapshot_fd: None,
            control_fd: rest.control_fd,
            exit_fd: rest.exit_fd,
            drives: rest.drives,
            nets: rest.nets,
            vsock: rest.vsock,
            balloon: rest.balloon,
            entropy: rest.entropy,
            entropy_limits: rest.entropy_limits,
            serial_fd: rest.serial_fd,
            serial_limits: rest.serial_limits,
            jail: self.jail,
        }
    }
}

impl HandOver {
    /// Every descriptor in it.
    fn descriptors(&mut self) -> impl Iterator<Item = &mut RawFd> {
        let single = [
            self.log_fd.as_mut(),
            Some(&mut self.control_fd),
            self.exit_fd.as_mut(),
            self.serial_fd.as_mut(),
        ];
        let drives = self.drives.iter_mut().map(|drive| &mut drive.fd);
        let taps = self.nets.iter_mut().map(|net| &mut net.tap_fd);
        single.into_iter().flatten().chain(drives).chain(taps)
    }

    /// The same with places in place of descriptors, and the descriptors in the order of their places.
    pub(crate) fn placed(mut self) -> (Self, Vec<RawFd>) {
        let mut list = Vec::new();
        for (place, descriptor) in (0..).zip(self.descriptors()) {
            list.push(*descriptor);
            *descriptor = place;
        }
        (self, list)
    }

    /// The same with the descriptors of `list` in their places. Each must have one place, and every place one of them.
    pub(crate) fn numbered(mut self, list: &[RawFd]) -> Result<Self, PlaceError> {
        let mut left: Vec<Option<RawFd>> = list.iter().copied().map(Some).collect();
        for place in self.descriptors() {
            let index = usize::try_from(*place).ok();
            let found = index.and_then(|index| left.get_mut(index)?.take());
            *place = found.ok_or(PlaceError::Nowhere(*place, list.len()))?;
        }
        match left.iter().flatten().count() {
            0 => Ok(self),
            unused => Err(PlaceError::Unused(unused)),
        }
    }
}

/// The second part does not fit what came beside it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    #[error("descriptor {0} of {1} is named, which is not there or was named already")]
    Nowhere(RawFd, usize),
    #[error("{0} of the descriptors are not named")]
    Unused(usize),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CONFIG_VERSION;

    fn husk() -> HuskConfig {
        HuskConfig {
            version: CONFIG_VERSION,
            vcpus: 1,
            memory_mib: 128,
            kvm_fd: 3,
            memory_fd: 4,
            state_fd: 5,
            working_set: WorkingSet::default(),
            huge_pages: HugePages::Host,
            parent_fd: 6,
            jail: Some(JailConfig { uid: 7, gid: 8 }),
        }
    }

    fn rest() -> HandOver {
        HandOver {
            log_fd: Some(10),
            control_fd: 11,
            exit_fd: None,
            drives: vec![DriveConfig {
                id: "root".into(),
                fd: 12,
                read_only: true,
                limits: None,
                engine: crate::config::DriveEngine::Auto,
            }],
            nets: vec![NetConfig {
                tap_fd: 13,
                mac: [2, 0, 0, 0, 0, 1],
                mtu: None,
                rx_limits: None,
                tx_limits: None,
            }],
            vsock: Some(VsockConfig { guest_cid: 3 }),
            balloon: true,
            entropy: true,
            entropy_limits: None,
            serial_fd: Some(14),
            serial_limits: None,
        }
    }

    #[test]
    fn both_parts_are_checked_as_one_machine() {
        assert_eq!(husk().validate(), Ok(()));
        assert_eq!(husk().with(rest()).validate(), Ok(()));
        let mut other = husk();
        other.version += 1;
        assert_eq!(other.validate(), Err(ConfigError::Version(CONFIG_VERSION + 1)));
        let mut other = husk();
        other.jail = Some(JailConfig { uid: 0, gid: 8 });
        assert_eq!(other.validate(), Err(ConfigError::JailUser("uid", 0)));
        let mut wrong = rest();
        wrong.drives.push(wrong.drives[0].clone());
        assert_eq!(
            husk().with(wrong).validate(),
            Err(ConfigError::DuplicateDriveId("root".into()))
        );
    }

    #[test]
    fn descriptors_come_back_in_their_places() {
        let (placed, list) = rest().placed();
        assert_eq!(list, [10, 11, 14, 12, 13]);
        assert_eq!((placed.log_fd, placed.drives[0].fd), (Some(0), 3));
        assert_eq!(placed.numbered(&list), Ok(rest()));
    }

    #[test]
    fn each_descriptor_has_one_place() {
        let (placed, list) = rest().placed();
        let wrong = |change: fn(&mut HandOver)| {
            let mut wrong = placed.clone();
            change(&mut wrong);
            wrong.numbered(&list)
        };
        assert_eq!(wrong(|rest| rest.control_fd = 5), Err(PlaceError::Nowhere(5, 5)));
        assert_eq!(
            wrong(|rest| rest.control_fd = -1),
            Err(PlaceError::Nowhere(-1, 5))
        );
        // That of the log.
        assert_eq!(wrong(|rest| rest.control_fd = 0), Err(PlaceError::Nowhere(0, 5)));
        assert_eq!(wrong(|rest| rest.log_fd = None), Err(PlaceError::Unused(1)));
    }
}
