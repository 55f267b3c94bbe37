//! What a configuration must fulfil before KVM is touched. Only values are looked at here; whether a number is an
//! open descriptor of the right kind is found out in [`crate::handed`].

use super::{
    CONFIG_VERSION, LimitsConfig, LimitsError, MAX_MEMORY_MIB, MAX_VCPUS, MachineConfig, PAGE_BYTES,
    PageRange, StartConfig,
};
use crate::arch::{MAX_CMDLINE_BYTES, MAX_VIRTIO_DEVICES};

/// Least guest memory, in MiB.
pub const MIN_MEMORY_MIB: u32 = 32;
/// Longest serial number of a drive, in bytes (virtio 1.3, 5.2.6 `VIRTIO_BLK_T_GET_ID`).
pub const MAX_DRIVE_ID_BYTES: usize = 20;
/// Least MTU that can be announced: what IPv4 needs (RFC 791).
pub const MIN_MTU: u16 = 68;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("configuration version is {0}, not {CONFIG_VERSION}")]
    Version(u32),
    #[error("vcpus is {0}, not 1 to {MAX_VCPUS}")]
    Vcpus(u8),
    #[error("memory_mib is {0}, not {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}")]
    Memory(u32),
    #[error("cmdline is {0} bytes long, more than {MAX_CMDLINE_BYTES}")]
    CmdlineLength(usize),
    #[error("cmdline has the byte {0:#04x}, which is not printable ascii")]
    CmdlineByte(u8),
    #[error("a machine that is restored needs the memory of its snapshot")]
    RestoreWithoutMemory,
    #[error(
        "the working set has {count} pages from page {first}, which is not within the {pages} of the memory"
    )]
    WorkingSet { first: u64, count: u64, pages: u64 },
    #[error("snapshot_fd needs memory that is shared")]
    SnapshotOfPrivateMemory,
    #[error("{0} devices are more than {MAX_VIRTIO_DEVICES}")]
    TooManyDevices(usize),
    #[error("drive id {0:?} is not 1 to {MAX_DRIVE_ID_BYTES} printable ascii bytes")]
    DriveId(String),
    #[error("drive id {0:?} appears twice")]
    DuplicateDriveId(String),
    #[error("mac {0:02x?} is not a unicast address")]
    Mac([u8; 6]),
    #[error("mac {0:02x?} appears twice")]
    DuplicateMac([u8; 6]),
    #[error("mtu is {0}, less than {MIN_MTU}")]
    Mtu(u16),
    #[error("guest_cid is {0}, not 3 to {max}", max = u32::MAX - 1)]
    GuestCid(u64),
    #[error("the jail's {0} is {1}, not 1 to {max}", max = u32::MAX - 1)]
    JailUser(&'static str, u32),
    #[error("{field}: {source}")]
    Limits { field: String, source: LimitsError },
    #[error("{0} is there and the device that it limits is not")]
    LimitsWithoutDevice(&'static str),
}

impl MachineConfig {
    /// The number of virtio devices that this configuration asks for.
    pub fn virtio_devices(&self) -> usize {
        let single = [self.vsock.is_some(), self.entropy, self.balloon];
        self.drives.len() + self.nets.len() + single.into_iter().filter(|&there| there).count()
    }

    /// Checks every value.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.version != CONFIG_VERSION {
            return Err(ConfigError::Version(self.version));
        }
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(ConfigError::Vcpus(self.vcpus));
        }
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return Err(ConfigError::Memory(self.memory_mib));
        }
        self.validate_start()?;
        if self.virtio_devices() > MAX_VIRTIO_DEVICES {
            return Err(ConfigError::TooManyDevices(self.virtio_devices()));
        }
        self.validate_drives()?;
        self.validate_nets()?;
        self.validate_limits()?;
        if let Some(jail) = &self.jail {
            for (what, id) in [("uid", jail.uid), ("gid", jail.gid)] {
                // The largest means "leave as it is" to the system calls.
                if id == 0 || id == u32::MAX {
                    return Err(ConfigError::JailUser(what, id));
                }
            }
        }
        match &self.vsock {
            Some(vsock) if !(3..u64::from(u32::MAX)).contains(&vsock.guest_cid) => {
                Err(ConfigError::GuestCid(vsock.guest_cid))
            }
            _ => Ok(()),
        }
    }

    fn validate_start(&self) -> Result<(), ConfigError> {
        match &self.start {
            StartConfig::Boot { cmdline, .. } => {
                if cmdline.len() > MAX_CMDLINE_BYTES {
                    return Err(ConfigError::CmdlineLength(cmdline.len()));
                }
                if let Some(byte) = cmdline.bytes().find(|byte| !matches!(byte, b' '..=b'~')) {
                    return Err(ConfigError::CmdlineByte(byte));
                }
            }
            StartConfig::Restore { .. } if self.memory.is_none() => {
                return Err(ConfigError::RestoreWithoutMemory);
            }
            StartConfig::Restore { working_set, .. } => {
                let pages = (u64::from(self.memory_mib) << 20) / PAGE_BYTES;
                if let Some(PageRange { first, count }) = working_set.beyond(pages) {
                    return Err(ConfigError::WorkingSet { first, count, pages });
                }
            }
        }
        if self.snapshot_fd.is_some() && !self.memory.is_some_and(|memory| memory.shared) {
            return Err(ConfigError::SnapshotOfPrivateMemory);
        }
        Ok(())
    }

    fn validate_drives(&self) -> Result<(), ConfigError> {
        for (index, drive) in self.drives.iter().enumerate() {
            let printable = drive.id.bytes().all(|byte| byte.is_ascii_graphic());
            if drive.id.is_empty() || drive.id.len() > MAX_DRIVE_ID_BYTES || !printable {
                return Err(ConfigError::DriveId(drive.id.clone()));
            }
            if self.drives[..index].iter().any(|other| other.id == drive.id) {
                return Err(ConfigError::DuplicateDriveId(drive.id.clone()));
            }
        }
        Ok(())
    }

    fn validate_nets(&self) -> Result<(), ConfigError> {
        for (index, net) in self.nets.iter().enumerate() {
            if net.mac[0] & 1 == 1 || net.mac == [0; 6] {
                return Err(ConfigError::Mac(net.mac));
            }
            if self.nets[..index].iter().any(|other| other.mac == net.mac) {
                return Err(ConfigError::DuplicateMac(net.mac));
            }
            if let Some(mtu) = net.mtu.filter(|&mtu| mtu < MIN_MTU) {
                return Err(ConfigError::Mtu(mtu));
            }
        }
        Ok(())
    }

    fn validate_limits(&self) -> Result<(), ConfigError> {
        let check = |field: String, limits: &Option<LimitsConfig>| match limits
            .as_ref()
            .map(LimitsConfig::validate)
        {
            Some(Err(source)) => Err(ConfigError::Limits { field, source }),
            _ => Ok(()),
        };
        for drive in &self.drives {
            check(format!("limits of drive {:?}", drive.id), &drive.limits)?;
        }
        for (index, net) in self.nets.iter().enumerate() {
            check(format!("rx_limits of network device {index}"), &net.rx_limits)?;
            check(format!("tx_limits of network device {index}"), &net.tx_limits)?;
        }
        for (field, limits, device) in [
            ("entropy_limits", &self.entropy_limits, self.entropy),
            ("serial_limits", &self.serial_limits, self.serial_fd.is_some()),
        ] {
            if limits.is_some() && !device {
                return Err(ConfigError::LimitsWithoutDevice(field));
            }
            check(field.into(), limits)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::WorkingSet;
    use crate::config::{
        DriveConfig, DriveEngine, HugePages, JailConfig, MemoryConfig, NetConfig, RateConfig, VsockConfig,
    };

    fn boot(cmdline: &str) -> StartConfig {
        StartConfig::Boot {
            kernel_fd: 4,
            initrd_fd: None,
            cmdline: cmdline.into(),
        }
    }

    fn valid() -> MachineConfig {
        MachineConfig {
            version: CONFIG_VERSION,
            vcpus: 1,
            memory_mib: 128,
            kvm_fd: 3,
            start: boot("panic=-1"),
            memory: None,
            huge_pages: HugePages::Host,
            snapshot_fd: None,
            control_fd: 5,
            exit_fd: None,
            drives: vec![DriveConfig {
                id: "root".into(),
                fd: 6,
                read_only: true,
                limits: None,
                engine: DriveEngine::default(),
            }],
            nets: vec![NetConfig {
                tap_fd: 7,
                mac: [2, 0, 0, 0, 0, 1],
                mtu: Some(1500),
                rx_limits: None,
                tx_limits: None,
            }],
            vsock: Some(VsockConfig { guest_cid: 3 }),
            balloon: false,
            entropy: true,
            entropy_limits: None,
            serial_fd: None,
            serial_limits: None,
            jail: Some(JailConfig { uid: 7, gid: 8 }),
        }
    }

    fn broken(change: impl FnOnce(&mut MachineConfig)) -> Result<(), ConfigError> {
        let mut config = valid();
        change(&mut config);
        config.validate()
    }

    #[test]
    fn a_good_configuration_passes() {
        assert_eq!(valid().validate(), Ok(()));
    }

    #[test]
    fn a_configuration_that_says_nothing_of_huge_pages_leaves_them_to_the_host() {
        let mut json = serde_json::to_value(valid()).unwrap();
        let fields = json.as_object_mut().unwrap();
        assert_eq!(fields.remove("huge_pages"), Some("host".into()));
        assert_eq!(
            serde_json::from_value::<MachineConfig>(json.clone()).unwrap(),
            valid()
        );
        json["huge_pages"] = "sometimes".into();
        serde_json::from_value::<MachineConfig>(json).unwrap_err();
    }

    #[test]
    fn each_value_out_of_range_is_named() {
        use ConfigError as E;
        assert_eq!(broken(|c| c.version = 1), Err(E::Version(1)));
        assert_eq!(broken(|c| c.vcpus = 0), Err(E::Vcpus(0)));
        assert_eq!(broken(|c| c.vcpus = 33), Err(E::Vcpus(33)));
        assert_eq!(broken(|c| c.memory_mib = 31), Err(E::Memory(31)));
        assert_eq!(broken(|c| c.memory_mib = u32::MAX), Err(E::Memory(u32::MAX)));
        assert_eq!(
            broken(|c| c.start = boot(&"x".repeat(3000))),
            Err(E::CmdlineLength(3000))
        );
        assert_eq!(broken(|c| c.start = boot("a\0b")), Err(E::CmdlineByte(0)));
        assert_eq!(broken(|c| c.nets[0].mac[0] = 1), Err(E::Mac([1, 0, 0, 0, 0, 1])));
        assert_eq!(broken(|c| c.nets[0].mac = [0; 6]), Err(E::Mac([0; 6])));
        assert_eq!(broken(|c| c.nets[0].mtu = Some(67)), Err(E::Mtu(67)));
        assert_eq!(
            broken(|c| c.vsock = Some(VsockConfig { guest_cid: 2 })),
            Err(E::GuestCid(2))
        );
        let jail = |uid, gid| broken(|c| c.jail = Some(JailConfig { uid, gid }));
        assert_eq!(jail(0, 8), Err(E::JailUser("uid", 0)));
        assert_eq!(jail(7, u32::MAX), Err(E::JailUser("gid", u32::MAX)));
        let host_wildcard = u64::from(u32::MAX);
        assert_eq!(
            broken(|c| c.vsock = Some(VsockConfig {
                guest_cid: host_wildcard
            })),
            Err(E::GuestCid(host_wildcard))
        );
    }

    #[test]
    fn a_working_set_lies_within_the_memory() {
        let pages = (128 << 20) / PAGE_BYTES;
        let with = |first, count| {
            broken(|c| {
                let working_set = WorkingSet {
                    written: vec![PageRange {
                        first: 0,
                        count: pages,
                    }],
                    read: vec![PageRange { first, count }],
                };
                c.start = StartConfig::Restore {
                    state_fd: 8,
                    working_set,
                };
                c.memory = Some(MemoryConfig {
                    fd: 9,
                    shared: false,
                    page_by_page: false,
                });
            })
        };
        assert_eq!(with(pages - 1, 1), Ok(()));
        for (first, count) in [(pages - 1, 2), (pages, 1), (0, 0), (u64::MAX, 2)] {
            assert_eq!(
                with(first, count),
                Err(ConfigError::WorkingSet { first, count, pages })
            );
        }
    }

    #[test]
    fn a_snapshot_needs_shared_memory_and_a_restored_machine_some() {
        use ConfigError as E;
        let memory = |shared| {
            Some(MemoryConfig {
                fd: 9,
                shared,
                page_by_page: false,
            })
        };
        let restore = StartConfig::Restore {
            state_fd: 8,
            working_set: WorkingSet::default(),
        };
        assert_eq!(
            broken(|c| c.start = restore.clone()),
            Err(E::RestoreWithoutMemory)
        );
        for shared in [false, true] {
            let restored = broken(|c| (c.start, c.memory) = (restore.clone(), memory(shared)));
            assert_eq!(restored, Ok(()));
        }
        for (memory, expected) in [
            (None, Err(E::SnapshotOfPrivateMemory)),
            (memory(false), Err(E::SnapshotOfPrivateMemory)),
            (memory(true), Ok(())),
        ] {
            assert_eq!(
                broken(|c| (c.snapshot_fd, c.memory) = (Some(10), memory)),
                expected
            );
        }
    }

    #[test]
    fn drive_ids_are_short_printable_and_unique() {
        use ConfigError as E;
        for id in ["", "a b", "twenty-one-bytes-long", "ü"] {
            assert_eq!(broken(|c| c.drives[0].id = id.into()), Err(E::DriveId(id.into())));
        }
        assert_eq!(
            broken(|c| c.drives.push(c.drives[0].clone())),
            Err(E::DuplicateDriveId("root".into()))
        );
    }

    #[test]
    fn a_limit_of_nothing_is_refused_and_named() {
        let limits = |bytes: (u64, u64), ops: (u64, u64)| {
            let rate = |(per_second, burst)| Some(RateConfig { per_second, burst });
            Some(LimitsConfig {
                bytes: rate(bytes),
                ops: rate(ops),
            })
        };
        let good = limits((1, 1), (u64::MAX, u64::MAX));
        let everywhere = broken(|c| {
            (c.drives[0].limits, c.nets[0].rx_limits, c.nets[0].tx_limits) = (good, good, good);
            (c.entropy_limits, c.serial_fd, c.serial_limits) = (good, Some(9), good);
        });
        assert_eq!(everywhere, Ok(()));
        let said = |change: fn(&mut MachineConfig, Option<LimitsConfig>), limits| {
            broken(|c| change(c, limits)).unwrap_err().to_string()
        };
        assert_eq!(
            said(|c, limits| c.drives[0].limits = limits, limits((0, 1), (1, 1))),
            "limits of drive \"root\": bytes.per_second is 0, not 1 or more; no limit is said by leaving bytes out"
        );
        assert_eq!(
            said(|c, limits| c.nets[0].rx_limits = limits, limits((1, 0), (1, 1))),
            "rx_limits of network device 0: bytes.burst is 0, not 1 or more; no limit is said by leaving bytes out"
        );
        assert_eq!(
            said(|c, limits| c.nets[0].tx_limits = limits, limits((1, 1), (0, 1))),
            "tx_limits of network device 0: ops.per_second is 0, not 1 or more; no limit is said by leaving ops out"
        );
        assert_eq!(
            said(|c, limits| c.entropy_limits = limits, limits((1, 1), (1, 0))),
            "entropy_limits: ops.burst is 0, not 1 or more; no limit is said by leaving ops out"
        );
        assert_eq!(
            broken(|c| (c.entropy, c.entropy_limits) = (false, good)),
            Err(ConfigError::LimitsWithoutDevice("entropy_limits"))
        );
        assert_eq!(
            broken(|c| c.serial_limits = good),
            Err(ConfigError::LimitsWithoutDevice("serial_limits"))
        );
    }

    #[test]
    fn limits_can_be_left_out() {
        let drive: DriveConfig = serde_json::from_str(r#"{"id":"a","fd":3,"read_only":true}"#).unwrap();
        assert_eq!(drive.limits, None);
        let limits: LimitsConfig = serde_json::from_str(r#"{"ops":{"per_second":5,"burst":7}}"#).unwrap();
        let ops = RateConfig {
            per_second: 5,
            burst: 7,
        };
        assert_eq!((limits.bytes, limits.ops), (None, Some(ops)));
    }

    #[test]
    fn more_devices_than_interrupt_lines_are_refused() {
        let many = |count: usize| {
            broken(|c| {
                c.drives = (0..count)
                    .map(|index| DriveConfig {
                        id: format!("d{index}"),
                        fd: 6,
                        read_only: true,
                        limits: None,
                        engine: DriveEngine::default(),
                    })
                    .collect();
            })
        };
        // The net, vsock and entropy devices of `valid` take three.
        assert_eq!(many(MAX_VIRTIO_DEVICES - 3), Ok(()));
        assert_eq!(
            many(MAX_VIRTIO_DEVICES - 2),
            Err(ConfigError::TooManyDevices(MAX_VIRTIO_DEVICES + 1))
        );
    }
}
