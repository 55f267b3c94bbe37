//! What boots inside a machine: the kernel, and an initial RAM file system that holds berth-init and nothing else. And how
//! binaries are built for where there is no C library, or no kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::setup::{self, Consent};
use crate::step::{run, step};
use crate::{kernel, workspace};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Compiler flags for a binary that needs no C library where it runs.
const STATIC: &str = "-C target-feature=+crt-static";

/// Builds both into `target/guest` and returns that folder.
pub(crate) fn build(consent: Consent) -> Result<PathBuf> {
    setup::ensure(&[setup::KERNEL], consent)?;
    let folder = workspace::output().join("guest");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;

    let vmlinux = kernel::build()?;
    let image = fs::read(&vmlinux).with_context(|| format!("cannot read {}", vmlinux.display()))?;
    write_if_changed(&folder.join("vmlinux"), &image)?;

    let init = step("build berth-init", || {
        build_static("berth-init", "berth-init", "guest")
    })?;
    let init = fs::read(&init).with_context(|| format!("cannot read {}", init.display()))?;
    let archive = initrd(&init).context("cannot make the initial RAM file system")?;
    write_if_changed(&folder.join("initrd.cpio"), &archive)?;
    Ok(folder)
}

/// Builds a binary that needs no C library where it runs.
pub(crate) fn build_static(package: &str, binary: &str, profile: &str) -> Result<PathBuf> {
    build_with(STATIC, package, binary, profile, &[])
}

/// Builds the VMM with what the tests of its jail have it do, beside the one that is released.
pub(crate) fn build_probing(features: &str) -> Result<PathBuf> {
    let features = ["--features", features];
    build_with(STATIC, "berth-vmm", "berth-vmm-probing", "machine", &features)
}

/// Builds a guest that needs no kernel, but is booted in the place of one; it is where `script` has the linker put it.
pub(crate) fn build_bare(package: &str, binary: &str, script: &str) -> Result<PathBuf> {
    // From the root of the workspace, where cargo runs the compiler, the script's path has no spaces.
    let flags = format!("{STATIC} -C relocation-model=static -C link-arg=-nostdlib -C link-arg=-T{script}");
    build_with(&flags, package, binary, "machine", &[])
}

fn build_with(flags: &str, package: &str, binary: &str, profile: &str, more: &[&str]) -> Result<PathBuf> {
    // Given by target, the flags do not reach build scripts, and a build of the workspace is not invalidated.
    run(Command::new(workspace::cargo())
        .current_dir(workspace::root())
        .args([
            "build",
            "--quiet",
            "--package",
            package,
            "--bin",
            binary,
            "--profile",
            profile,
            "--target",
            TARGET,
        ])
        .args(more)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", flags))?;
    Ok(workspace::cargo_target().join(TARGET).join(profile).join(binary))
}

fn initrd(init: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::with_capacity(init.len() + 4096));
    for folder in ["dev", "proc", "run", "sys"] {
        archive.directory(folder, 0o755)?;
    }
    // The kernel opens it for PID 1 before devtmpfs is there.
    archive.character_device("dev/console", 0o600, 5, 1)?;
    archive.file("init", 0o755, init)?;
    archive.finish()
}

/// Leaves an equal file alone, so that what depends on its time or is reading it sees no change.
fn write_if_changed(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let partial = path.with_extension("partial");
    fs::write(&partial, content).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("cannot replace {}", path.display()))
}
