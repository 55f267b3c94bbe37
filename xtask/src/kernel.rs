//! The guest kernel: built from Debian's kernel source by the fragment in `guest-image/kernel/config`, cached by what
//! it is made of. Knows nothing of what runs in it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::step::{Progress, capture, run, step, wait_with};
use crate::workspace;

const SOURCE_PACKAGE: &str = "linux-source-6.12";
const SOURCE_ARCHIVE: &str = "/usr/src/linux-source-6.12.tar.xz";
/// Part of the cache key: raise it when this file builds differently from the same fragment.
const BUILDER_VERSION: u32 = 1;
/// Objects and archives that a build of this fragment makes, for a sense of how far it is.
const BUILD_LINES: u32 = 2350;

/// Builds the kernel, or finds it in the cache; returns the path of the uncompressed ELF image.
pub(crate) fn build() -> Result<PathBuf> {
    let fragment_path = workspace::root().join("guest-image/kernel/config");
    let fragment = fs::read_to_string(&fragment_path)
        .with_context(|| format!("cannot read {}", fragment_path.display()))?;
    let version = source_version()?;
    let key = key(&fragment, &version);

    let cache = workspace::cache()?.join("kernel");
    let finished = cache.join(format!("vmlinux-{key}"));
    if finished.exists() {
        return Ok(finished);
    }
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    // One builder at a time: the source and build trees are shared by all checkouts.
    let lock = File::create(cache.join("lock")).context("cannot create the lock of the kernel cache")?;
    lock.lock().context("cannot lock the kernel cache")?;
    if finished.exists() {
        return Ok(finished);
    }

    let source = cache.join("src");
    let build = cache.join("build");
    let stamp = cache.join("src.version");
    if fs::read_to_string(&stamp).ok().as_deref() != Some(version.as_str()) {
        step(format!("unpack kernel source {version}"), || {
            unpack(&source, &build, &stamp, &version)
        })?;
    }
    step("configure the guest kernel", || {
        configure(&source, &build, &fragment_path, &fragment)
    })?;
    step("build the guest kernel (some minutes, once)", || {
        compile(&source, &build)
    })?;

    let partial = cache.join(format!("vmlinux-{key}.partial"));
    run(Command::new("objcopy")
        .arg("--strip-all")
        .arg(build.join("vmlinux"))
        .arg(&partial))?;
    fs::rename(&partial, &finished).with_context(|| format!("cannot create {}", finished.display()))?;
    Ok(finished)
}

fn source_version() -> Result<String> {
    let output =
        capture(Command::new("dpkg-query").args(["--show", "--showformat=${Version}", SOURCE_PACKAGE]))?;
    let version = String::from_utf8(output).context("the version of the kernel source is not text")?;
    ensure!(!version.is_empty(), "{SOURCE_PACKAGE} is not installed");
    Ok(version)
}

fn key(fragment: &str, version: &str) -> String {
    let digest = Sha256::digest(format!("{BUILDER_VERSION}\n{version}\n{fragment}"));
    hex::encode(&digest[..8])
}

fn unpack(source: &Path, build: &Path, stamp: &Path, version: &str) -> Result<()> {
    for old in [source, build] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    fs::create_dir_all(source).with_context(|| format!("cannot create {}", source.display()))?;
    let mut tar = Command::new("tar");
    tar.args([
        "--extract",
        "--strip-components=1",
        "--file",
        SOURCE_ARCHIVE,
        "--directory",
    ])
    .arg(source);
    let mut child = tar.spawn().context("cannot run tar")?;
    let mut progress = Progress::new("kernel source");
    let status = wait_with(&mut child, || progress.tick("unpacking"))?;
    ensure!(
        status.success(),
        "cannot unpack {SOURCE_ARCHIVE}: tar failed: {status}"
    );
    fs::write(stamp, version).with_context(|| format!("cannot write {}", stamp.display()))
}

fn make(source: &Path, build: &Path) -> Command {
    let mut make = Command::new("make");
    make.arg("-C").arg(source).arg(format!("O={}", build.display()));
    // The same input gives the same kernel.
    make.env("KBUILD_BUILD_USER", "berth")
        .env("KBUILD_BUILD_HOST", "berth")
        .env("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970")
        .env("KBUILD_BUILD_VERSION", "1")
        .env("LC_ALL", "C");
    for inherited in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CFLAGS", "LDFLAGS"] {
        make.env_remove(inherited);
    }
    make
}

fn configure(source: &Path, build: &Path, fragment_path: &Path, fragment: &str) -> Result<()> {
    fs::create_dir_all(build).with_context(|| format!("cannot create {}", build.display()))?;
    capture(
        make(source, build)
            .args(["--silent", "allnoconfig"])
            .env("KCONFIG_ALLCONFIG", fragment_path),
    )?;
    capture(make(source, build).args(["--silent", "olddefconfig"]))?;
    let config = fs::read_to_string(build.join(".config")).context("cannot read the kernel's .config")?;
    let lost = lost(fragment, &config);
    if !lost.is_empty() {
        bail!(
            "these lines of the kernel fragment did not survive olddefconfig:\n  {}",
            lost.join("\n  ")
        );
    }
    Ok(())
}

/// The lines of the fragment that the final configuration contradicts.
fn lost<'a>(fragment: &'a str, config: &str) -> Vec<&'a str> {
    let lines: HashSet<&str> = config.lines().collect();
    let holds = |wanted: &str| match unset_option(wanted) {
        // An option whose dependencies are off has no line at all.
        Some(option) => !config.lines().any(|line| {
            line.strip_prefix(option)
                .is_some_and(|rest| rest.starts_with('='))
        }),
        None => lines.contains(wanted),
    };
    fragment
        .lines()
        .map(str::trim_end)
        .filter(|line| line.starts_with("CONFIG_") || unset_option(line).is_some())
        .filter(|line| !holds(line))
        .collect()
}

/// The option named by a line `# CONFIG_X is not set`.
fn unset_option(line: &str) -> Option<&str> {
    line.strip_prefix("# ")?
        .strip_suffix(" is not set")
        .filter(|option| option.starts_with("CONFIG_"))
}

fn compile(source: &Path, build: &Path) -> Result<()> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut command = make(source, build);
    command
        .arg(format!("--jobs={jobs}"))
        .arg("vmlinux")
        .stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot run make")?;
    let stdout = child.stdout.take().context("make has no output")?;
    let mut progress = Progress::new("guest kernel");
    let mut count = 0u32;
    for line in BufReader::new(stdout).lines() {
        line.context("cannot read the output of make")?;
        count += 1;
        progress.tick(format_args!("{count} of about {BUILD_LINES}"));
    }
    let status = child.wait().context("cannot wait for make")?;
    ensure!(status.success(), "the kernel build failed: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAGMENT: &str =
        "# A comment\nCONFIG_A=y\nCONFIG_B=7\n# CONFIG_C is not set\n# CONFIG_D is not set\n";

    #[test]
    fn a_configuration_that_keeps_every_line_loses_nothing() {
        let config = "CONFIG_A=y\nCONFIG_B=7\n# CONFIG_C is not set\nCONFIG_DD=y\n";
        assert!(lost(FRAGMENT, config).is_empty());
    }

    #[test]
    fn changed_missing_and_switched_on_options_are_lost() {
        let config = "CONFIG_A=m\nCONFIG_C=y\n";
        assert_eq!(
            lost(FRAGMENT, config),
            ["CONFIG_A=y", "CONFIG_B=7", "# CONFIG_C is not set"]
        );
    }

    #[test]
    fn the_key_changes_with_fragment_and_source() {
        assert_ne!(key("a", "1"), key("b", "1"));
        assert_ne!(key("a", "1"), key("a", "2"));
    }
}
