//! Whether KVM is really usable: the device opens, speaks the one API version there is, and makes a machine.

use kvm_ioctls::Kvm;

use super::Check;

/// The only version of the stable API (`KVM_GET_API_VERSION`).
const API_VERSION: i32 = 12;
const LAB: &str = "an ordinary kernel will not boot on it; use a machine with VT-x or SVM (in a VM, turn on nested virtualization), or the lab: `cargo xtask lab -- …`";

#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum KvmError {
    #[error("cannot open /dev/kvm: {}; {}", os(.0), open_advice(.0))]
    Open(kvm_ioctls::Error),
    #[error("/dev/kvm is no KVM device; remove it, and load kvm_intel or kvm_amd")]
    NotKvm,
    #[error(
        "/dev/kvm speaks version {0} of the KVM API, not {API_VERSION}; use a Linux kernel of 2.6.22 or later"
    )]
    Version(i32),
    #[error("/dev/kvm makes no machine: {}; end other hypervisors on this host, and see the kernel's log", os(.0))]
    CreateVm(kvm_ioctls::Error),
}

fn os(error: &kvm_ioctls::Error) -> std::io::Error {
    std::io::Error::from_raw_os_error(error.errno())
}

fn open_advice(error: &kvm_ioctls::Error) -> &'static str {
    match os(error).kind() {
        std::io::ErrorKind::PermissionDenied => "run as root",
        _ => {
            "turn on virtualization in the firmware and load kvm_intel or kvm_amd, or use the lab: `cargo xtask lab -- …`"
        }
    }
}

/// Opens the device and checks its version; makes nothing.
pub(in crate::cli) fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(KvmError::Open)?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        ..0 => Err(KvmError::NotKvm),
        other => Err(KvmError::Version(other)),
    }
}

pub(super) fn checks() -> Vec<Check> {
    let made = open().and_then(|kvm| kvm.create_vm().map(drop).map_err(KvmError::CreateVm));
    let device = match made {
        Ok(()) => Check::fine("kvm", "/dev/kvm opens and makes a machine"),
        Err(error) => {
            let text = error.to_string();
            let (found, advice) = text.split_once("; ").unwrap_or((&text, ""));
            Check::missing("kvm", found, advice)
        }
    };
    let cpu = match std::fs::read_to_string("/proc/cpuinfo") {
        Ok(info) if has_virtualization(&info) => Check::fine("cpu", "has VT-x or SVM"),
        Ok(_) => Check::note(
            "cpu",
            "shows neither vmx nor svm: its KVM is paravirtual or emulated",
            LAB,
        ),
        Err(error) => Check::note(
            "cpu",
            format!("cannot read /proc/cpuinfo: {error}"),
            "mount /proc",
        ),
    };
    vec![device, cpu]
}

fn has_virtualization(cpuinfo: &str) -> bool {
    let flags = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .unwrap_or_default();
    flags
        .split_whitespace()
        .any(|flag| flag == "vmx" || flag == "svm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtualization_is_a_flag_of_its_own() {
        assert!(has_virtualization("processor : 0\nflags\t\t: fpu svm lm\n"));
        assert!(!has_virtualization(
            "processor : 0\nflags\t\t: fpu svm_lock lm\nbugs : svm\n"
        ));
    }

    #[test]
    fn errors_end_with_the_next_step() {
        let missing = KvmError::Open(kvm_ioctls::Error::new(2)).to_string();
        assert!(
            missing.starts_with("cannot open /dev/kvm: No such file") && missing.contains("kvm_amd"),
            "{missing}"
        );
        let denied = KvmError::Open(kvm_ioctls::Error::new(13)).to_string();
        assert!(denied.ends_with("run as root"), "{denied}");
    }
}
