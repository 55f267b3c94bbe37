//! Capability sets of a container (capabilities(7)) and how a process takes them on.

use std::io;

/// A set of capabilities, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CapabilitySet(u64);

#[derive(Debug, thiserror::Error)]
pub(crate) enum CapabilityError {
    #[error("unknown capability {0:?}")]
    Unknown(String),
    #[error("cannot drop {name} from the bounding set: {source}")]
    Bounding { name: &'static str, source: io::Error },
    #[error("cannot set the capabilities: {0}")]
    Set(io::Error),
}

/// In the order of their numbers.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What container engines give by default.
const DEFAULT: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

const EVERY: &str = "ALL";
const ALL: u64 = (1 << NAMES.len()) - 1;
/// `_LINUX_CAPABILITY_VERSION_3`
const VERSION_3: u32 = 0x2008_0522;

impl CapabilitySet {
    /// The default set without `drop` and with `add`. `ALL` in `add` means all but `drop`; `ALL` in `drop` means
    /// `add` alone.
    pub(crate) fn of_container(add: &[String], drop: &[String]) -> Result<Self, CapabilityError> {
        let default = DEFAULT.iter().try_fold(0, |set, name| Ok(set | bit(name)?))?;
        let (added, all_added) = bits(add)?;
        let (dropped, all_dropped) = bits(drop)?;
        Ok(Self(match (all_added, all_dropped) {
            (true, _) => (ALL & !dropped) | added,
            (false, true) => added,
            (false, false) => (default & !dropped) | added,
        }))
    }

    /// One bit for each, by its number.
    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    /// Bits beyond the known capabilities count for nothing.
    pub(crate) fn of_bits(bits: u64) -> Self {
        Self(bits & ALL)
    }

    fn has(self, number: usize) -> bool {
        self.0 & (1 << number) != 0
    }

    /// Takes everything outside this set from the bounding set: no program run later can get it back.
    pub(crate) fn bound(self) -> Result<(), CapabilityError> {
        for (number, name) in NAMES.iter().enumerate() {
            if self.has(number) {
                continue;
            }
            // SAFETY: PR_CAPBSET_DROP takes a number and no pointers.
            if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number as libc::c_ulong, 0, 0, 0) } != 0 {
                match io::Error::last_os_error() {
                    // An older kernel that does not know it cannot grant it either.
                    unknown if unknown.raw_os_error() == Some(libc::EINVAL) => {}
                    source => return Err(CapabilityError::Bounding { name, source }),
                }
            }
        }
        Ok(())
    }

    /// Makes this set the permitted and effective one. The inheritable and ambient sets stay empty, as in today's
    /// container engines: a full inheritable set handed capabilities to unprivileged programs by file attributes.
    pub(crate) fn apply(self) -> Result<(), CapabilityError> {
        let [low, high] = [self.0 as u32, (self.0 >> 32) as u32];
        let header = [VERSION_3, 0];
        let data = [[low, low, 0], [high, high, 0]];
        // SAFETY: the header is version and pid, the data two records of effective, permitted and inheritable, as
        // version 3 of capset(2) has them; both live until the call returns.
        match unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) } {
            0 => Ok(()),
            _ => Err(CapabilityError::Set(io::Error::last_os_error())),
        }
    }
}

fn bits(names: &[String]) -> Result<(u64, bool), CapabilityError> {
    let mut set = 0;
    let mut all = false;
    for name in names {
        if name.eq_ignore_ascii_case(EVERY) {
            all = true;
        } else {
            set |= bit(name)?;
        }
    }
    Ok((set, all))
}

fn bit(name: &str) -> Result<u64, CapabilityError> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let number = NAMES.iter().position(|known| &known["CAP_".len()..] == bare);
    number
        .map(|number| 1 << number)
        .ok_or_else(|| CapabilityError::Unknown(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(add: &[&str], drop: &[&str]) -> Result<u64, CapabilityError> {
        let own = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        CapabilitySet::of_container(&own(add), &own(drop)).map(|set| set.0)
    }

    #[test]
    fn the_default_is_the_well_known_mask() {
        assert_eq!(of(&[], &[]).unwrap(), 0xa804_25fb);
    }

    #[test]
    fn numbers_are_those_of_the_kernel() {
        assert_eq!(bit("CAP_SYS_PTRACE").unwrap(), 1 << 19);
        assert_eq!(bit("CAP_CHECKPOINT_RESTORE").unwrap(), 1 << 40);
    }

    #[test]
    fn add_and_drop_change_the_default() {
        assert_eq!(of(&["CAP_SYS_PTRACE"], &[]).unwrap(), 0xa804_25fb | 1 << 19);
        assert_eq!(
            of(&["sys_ptrace"], &["MKNOD"]).unwrap(),
            (0xa804_25fb | 1 << 19) & !(1 << 27)
        );
        assert_eq!(of(&["CAP_CHOWN"], &["CAP_CHOWN"]).unwrap(), 0xa804_25fb);
    }

    #[test]
    fn all_means_everything_known() {
        assert_eq!(of(&["ALL"], &[]).unwrap(), ALL);
        assert_eq!(of(&["ALL"], &["CAP_CHOWN"]).unwrap(), ALL & !1);
        assert_eq!(of(&[], &["ALL"]).unwrap(), 0);
        assert_eq!(of(&["CAP_KILL"], &["ALL"]).unwrap(), 1 << 5);
    }

    #[test]
    fn unknown_names_are_refused() {
        assert!(matches!(of(&["CAP_FOO"], &[]), Err(CapabilityError::Unknown(name)) if name == "CAP_FOO"));
        assert!(of(&[], &[""]).is_err());
        assert!(of(&[], &["CAP_CAP_CHOWN"]).is_err());
    }
}
