//! The emulator of the nested lab: QEMU 8.1 or newer. Older ones translate code without holding its page, so a processor
//! may keep running a breakpoint that another one has put into the kernel's text and taken out again: the lab's kernel,
//! which patches itself whenever a static key changes, then panics ("Oops: int3"). Where the machine's own QEMU is older,
//! Debian's backport is unpacked into the cache and nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::image::remake;
use crate::setup::Consent;
use crate::step::{capture, run, step};

const PROGRAM: &str = "qemu-system-x86_64";
const OLDEST: (u32, u32) = (8, 1);
/// The emulator and the firmware it starts with.
const PACKAGES: [&str; 3] = ["qemu-system-x86", "qemu-system-data", "seabios"];
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A QEMU that will do, and where it finds its firmware.
pub(super) struct Emulator {
    pub(super) program: PathBuf,
    pub(super) firmware: Vec<PathBuf>,
}

/// Finds the emulator on the machine or in the cache, or downloads it.
pub(super) fn prepare(cache: &Path, consent: Consent) -> Result<Emulator> {
    let installed = version(Path::new(PROGRAM))?;
    if installed >= OLDEST {
        return Ok(Emulator {
            program: PROGRAM.into(),
            firmware: Vec::new(),
        });
    }
    let folder = cache.join("emulator");
    let unpacked = Emulator {
        program: folder.join("usr/bin").join(PROGRAM),
        firmware: vec![folder.join("usr/share/seabios"), folder.join("usr/share/qemu")],
    };
    if !folder.join("complete").exists() {
        let reason = format!(
            "QEMU here is {}.{}, and the lab needs 8.1",
            installed.0, installed.1
        );
        ensure!(
            consent == Consent::Given,
            "{reason}; pass --yes to download one into the cache, or install it"
        );
        let suite = backports(&fs::read_to_string("/etc/os-release").unwrap_or_default())
            .with_context(|| format!("{reason}; install a newer qemu-system-x86"))?;
        step(
            format!("{reason}: download one from {suite} (13 MB, once)"),
            || {
                download(&folder, &suite)?;
                let found = version(&unpacked.program)?;
                if found < OLDEST {
                    bail!(
                        "{suite} has QEMU {}.{} only; install 8.1 or newer",
                        found.0,
                        found.1
                    );
                }
                fs::write(folder.join("complete"), "").context("cannot mark the lab's emulator as complete")
            },
        )?;
    }
    Ok(unpacked)
}

fn version(program: &Path) -> Result<(u32, u32)> {
    let output = capture(Command::new(program).arg("--version"))?;
    let output = String::from_utf8_lossy(&output);
    parse_version(&output).with_context(|| format!("{} tells no version: {output}", program.display()))
}

/// Reads "QEMU emulator version 10.0.2 (Debian …)".
fn parse_version(output: &str) -> Option<(u32, u32)> {
    let version = output.split_once("version ")?.1;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The name of the backports' suite of a Debian release, given its `os-release`.
fn backports(os_release: &str) -> Option<String> {
    let value = |name: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.strip_prefix('=')?.trim_matches('"'))
    };
    (value("ID")? == "debian").then_some(())?;
    Some(format!("{}-backports", value("VERSION_CODENAME")?))
}

/// Fetches the packages with an apt of their own, whose signatures it checks, and unpacks them.
fn download(folder: &Path, suite: &str) -> Result<()> {
    remake(folder)?;
    let apt = folder.join("apt");
    for part in ["lists/partial", "cache/archives/partial", "packages"] {
        let path = apt.join(part);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    let source = format!("deb [signed-by={KEYS}] http://deb.debian.org/debian {suite} main\n");
    fs::write(apt.join("sources.list"), source).context("cannot write the list of package sources")?;
    let apt_get = || {
        let mut command = Command::new("apt-get");
        for (name, value) in [
            ("Dir::Etc::SourceList", "sources.list"),
            ("Dir::Etc::SourceParts", "no-parts"),
            ("Dir::State::Lists", "lists"),
            ("Dir::Cache", "cache"),
        ] {
            command.arg(format!("--option={name}={}", apt.join(value).display()));
        }
        command.args(["--option=APT::Sandbox::User=root", "--quiet=2"]);
        command.current_dir(apt.join("packages"));
        command
    };
    run(apt_get().arg("update"))?;
    run(apt_get()
        .arg("download")
        .args(PACKAGES.map(|name| format!("{name}/{suite}"))))?;
    let packages = apt.join("packages");
    for entry in fs::read_dir(&packages).with_context(|| format!("cannot read {}", packages.display()))? {
        let package = entry.context("cannot read the downloaded packages")?.path();
        run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(folder))?;
    }
    fs::remove_dir_all(&apt).with_context(|| format!("cannot remove {}", apt.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_ordered() {
        let old = parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright");
        let new = parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n");
        assert_eq!((old, new), (Some((7, 2)), Some((10, 0))));
        assert!(old < Some(OLDEST) && new > Some(OLDEST));
        assert_eq!(parse_version("QEMU"), None);
    }

    #[test]
    fn only_debian_has_backports_of_its_release() {
        let debian = "PRETTY_NAME=\"Debian\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(backports(debian), Some("bookworm-backports".to_owned()));
        assert_eq!(backports("ID=ubuntu\nVERSION_CODENAME=jammy\n"), None);
        assert_eq!(backports(""), None);
    }
}
