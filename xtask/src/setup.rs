//! What must be installed on a Debian machine for each developer command, in one place: the check and the offer.

use std::io::{BufRead, IsTerminal, Write, stderr, stdin};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::step::{run, step};

/// A Debian package and the file whose presence proves it.
pub(crate) struct Package {
    name: &'static str,
    proof: &'static str,
}

const fn package(name: &'static str, proof: &'static str) -> Package {
    Package { name, proof }
}

/// For building the guest kernel.
pub(crate) const KERNEL: &[Package] = &[
    package("linux-source-6.12", "/usr/src/linux-source-6.12.tar.xz"),
    package("gcc", "/usr/bin/gcc"),
    package("make", "/usr/bin/make"),
    package("flex", "/usr/bin/flex"),
    package("bison", "/usr/bin/bison"),
    package("bc", "/usr/bin/bc"),
    package("libelf-dev", "/usr/include/libelf.h"),
    package("xz-utils", "/usr/bin/xz"),
];

/// For the lab where the machine has no hardware virtualisation.
pub(crate) const LAB: &[Package] = &[
    package("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
    package("busybox-static", "/bin/busybox"),
    package("kmod", "/sbin/modprobe"),
    package("binutils", "/usr/bin/objcopy"),
    package("xz-utils", "/usr/bin/xz"),
    package("e2fsprogs", "/sbin/mkfs.ext4"),
    package("iproute2", "/sbin/ip"),
    package("util-linux", "/usr/bin/setpriv"),
];

/// For building the fuzz targets: libFuzzer itself is C++.
pub(crate) const FUZZ: &[Package] = &[package("g++", "/usr/bin/g++")];

/// For the tests: what Berth itself calls, and other people's tools that drive, feed and check it.
pub(crate) const TESTS: &[Package] = &[
    package("erofs-utils", "/usr/bin/mkfs.erofs"),
    package("e2fsprogs", "/sbin/mkfs.ext4"),
    package("nftables", "/usr/sbin/nft"),
    package("iproute2", "/sbin/ip"),
    package("skopeo", "/usr/bin/skopeo"),
    package("docker-registry", "/usr/bin/docker-registry"),
    package("busybox-static", "/bin/busybox"),
    package("umoci", "/usr/bin/umoci"),
    package("tmux", "/usr/bin/tmux"),
    package("python3-venv", "/usr/share/doc/python3-venv"),
    package("awscli", "/usr/bin/aws"),
];

/// For measuring the data path of a machine.
pub(crate) const BENCH: &[Package] = &[
    package("fio", "/usr/bin/fio"),
    package("iperf3", "/usr/bin/iperf3"),
    package("socat", "/usr/bin/socat"),
];

/// Whether to install without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Consent {
    Ask,
    Given,
}

impl Consent {
    /// Given by `--yes`, by `CI=true` or by `BERTH_YES=1`.
    pub(crate) fn new(yes: bool) -> Self {
        let set = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
        if yes || set("CI", "true") || set("BERTH_YES", "1") {
            Self::Given
        } else {
            Self::Ask
        }
    }
}

/// Sees to it that every package of the given lists is there, installing what is missing if that is agreed to.
pub(crate) fn ensure(lists: &[&[Package]], consent: Consent) -> Result<()> {
    let missing = missing(lists, |path| path.exists());
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("this machine has no apt-get; install what these Debian packages hold: {names}");
    }
    if consent == Consent::Ask && !agreed(&names)? {
        bail!("not installed: {names}; run `apt-get install {names}` or pass --yes");
    }
    step(format!("install {names}"), || {
        run(apt_get().args(["update", "--quiet=2"]))?;
        run(apt_get()
            .args(["install", "--yes", "--quiet=2", "--no-install-recommends"])
            .args(&missing))
    })
}

fn missing(lists: &[&[Package]], exists: impl Fn(&Path) -> bool) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = Vec::new();
    for package in lists.iter().copied().flatten() {
        if !exists(Path::new(package.proof)) && !names.contains(&package.name) {
            names.push(package.name);
        }
    }
    names
}

fn agreed(names: &str) -> Result<bool> {
    if !stdin().is_terminal() {
        return Ok(false);
    }
    eprint!("Berth needs these Debian packages: {names}\nInstall them now with apt-get? [y/N] ");
    stderr().flush().context("cannot write to the terminal")?;
    let mut answer = String::new();
    stdin()
        .lock()
        .read_line(&mut answer)
        .context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// `apt-get`, through sudo where the user is not root.
pub(crate) fn apt_get() -> Command {
    let mut command = if nix::unistd::geteuid().is_root() {
        Command::new("apt-get")
    } else {
        let mut command = Command::new("sudo");
        command.args(["--preserve-env=DEBIAN_FRONTEND", "apt-get"]);
        command
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_packages_are_named_once_and_present_ones_not() {
        let present = |path: &Path| path != Path::new("/usr/bin/xz") && path != Path::new("/usr/bin/flex");
        assert_eq!(missing(&[KERNEL, LAB], present), ["flex", "xz-utils"]);
        assert!(missing(&[KERNEL, LAB, TESTS], |_| true).is_empty());
    }
}
