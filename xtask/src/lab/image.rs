//! What the nested lab boots: a stock Debian kernel, and an initial RAM file system with the modules it needs first.
//! Both are made once and kept in the cache, as is the emulator where the machine's own will not do.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::emulator::{self, Emulator};
use crate::cpio::Archive;
use crate::setup::{self, Consent};
use crate::step::{capture, run, step};
use crate::workspace;

/// The Debian kernels that will do: plain ones (the cloud flavour lacks 9p), of the series that was tried.
const KERNEL_PACKAGES: &str = r"^linux-image-6\.12\.[0-9]+\+deb[0-9]+-amd64-unsigned$";
/// Part of the cache key: raise it when this file packs the same things differently.
const FORMAT: u8 = 2;
const BUSYBOX: &str = "/bin/busybox";
const BUSYBOX_PROGRAMS: [&str; 7] = ["cat", "insmod", "mkdir", "mount", "sh", "switch_root", "tr"];

/// What the nested lab boots.
pub(super) struct Image {
    pub(super) emulator: Emulator,
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    /// The folder that is `/lib/modules` inside.
    pub(super) modules: PathBuf,
}

/// Finds the image in the cache or makes it.
pub(super) fn prepare(consent: Consent) -> Result<Image> {
    setup::ensure(&[setup::LAB], consent)?;
    let cache = workspace::cache()?.join("lab");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let lock = File::create(cache.join("lock")).context("cannot create the lock of the lab's cache")?;
    lock.lock().context("cannot lock the lab's cache")?;

    let version = match cached_kernel(&cache)? {
        Some(version) => version,
        None => download_kernel(&cache, consent)?,
    };
    let folder = kernel_folder(&cache, &version);
    Ok(Image {
        emulator: emulator::prepare(&cache, consent)?,
        kernel: folder.join("boot").join(format!("vmlinuz-{version}")),
        initrd: initrd(&cache, &folder, &version)?,
        modules: folder.join("lib/modules"),
    })
}

fn kernel_folder(cache: &Path, version: &str) -> PathBuf {
    cache.join(format!("kernel-{version}"))
}

/// The newest kernel that was unpacked to its end.
fn cached_kernel(cache: &Path) -> Result<Option<String>> {
    let mut versions = Vec::new();
    for entry in fs::read_dir(cache).with_context(|| format!("cannot read {}", cache.display()))? {
        let entry = entry.with_context(|| format!("cannot read {}", cache.display()))?;
        let name = entry.file_name();
        let Some(version) = name.to_str().and_then(|name| name.strip_prefix("kernel-")) else {
            continue;
        };
        if entry.path().join("complete").exists() {
            versions.push(version.to_owned());
        }
    }
    Ok(versions.into_iter().max_by_key(|version| numbers(version)))
}

fn download_kernel(cache: &Path, consent: Consent) -> Result<String> {
    let package = match newest_package()? {
        Some(package) => package,
        None => {
            if consent == Consent::Ask {
                bail!("apt knows no package {KERNEL_PACKAGES}; run `apt-get update` or pass --yes");
            }
            step("refresh the package lists", || {
                run(setup::apt_get().args(["update", "--quiet=2"]))
            })?;
            newest_package()?.with_context(|| format!("apt knows no package {KERNEL_PACKAGES}"))?
        }
    };
    let version = package
        .trim_start_matches("linux-image-")
        .trim_end_matches("-unsigned")
        .to_owned();
    step(
        format!("download and unpack {package} for the lab (about 100 MB, once)"),
        || {
            let download = cache.join("download");
            remake(&download)?;
            run(Command::new("apt-get")
                .arg("download")
                .arg(&package)
                .current_dir(&download))?;
            let archive = fs::read_dir(&download)
                .and_then(|mut entries| entries.next().transpose())
                .context("cannot read the download folder")?
                .context("apt-get downloaded nothing")?;
            let folder = kernel_folder(cache, &version);
            remake(&folder)?;
            run(Command::new("dpkg-deb")
                .arg("--extract")
                .arg(archive.path())
                .arg(&folder))?;
            run(Command::new("/sbin/depmod").arg("-b").arg(&folder).arg(&version))?;
            fs::write(folder.join("complete"), "").context("cannot mark the lab's kernel as complete")?;
            fs::remove_dir_all(&download).context("cannot remove the download folder")
        },
    )?;
    Ok(version)
}

fn newest_package() -> Result<Option<String>> {
    let output = capture(Command::new("apt-cache").args(["search", "--names-only", KERNEL_PACKAGES]))?;
    let output = String::from_utf8_lossy(&output);
    let names = output.lines().filter_map(|line| line.split(' ').next());
    Ok(names.max_by_key(|name| numbers(name)).map(str::to_owned))
}

/// The numbers in a version, by which versions are ordered.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

pub(super) fn remake(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

/// The initial RAM file system: busybox, `lab/init.sh`, and the modules of `lab/modules` with what they depend on.
fn initrd(cache: &Path, folder: &Path, version: &str) -> Result<PathBuf> {
    let lab = workspace::root().join("lab");
    let init = fs::read(lab.join("init.sh")).context("cannot read lab/init.sh")?;
    let wanted = fs::read_to_string(lab.join("modules")).context("cannot read lab/modules")?;
    let mut digest = Sha256::new();
    for part in [&[FORMAT], version.as_bytes(), &init, wanted.as_bytes()] {
        digest.update(part);
        digest.update([0]);
    }
    let path = cache.join(format!("initrd-{}.cpio", hex::encode(&digest.finalize()[..8])));
    if path.exists() {
        return Ok(path);
    }
    step("pack the lab's initial RAM file system", || {
        let partial = path.with_extension("partial");
        let out = File::create(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
        let scratch = path.with_extension("module");
        pack(
            BufWriter::new(out),
            &init,
            &modules(folder, version, &wanted)?,
            &scratch,
        )
        .with_context(|| format!("cannot write {}", partial.display()))?;
        fs::remove_file(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
        fs::rename(&partial, &path).with_context(|| format!("cannot create {}", path.display()))
    })?;
    Ok(path)
}

/// The names in each group of `lab/modules`.
fn groups(wanted: &str) -> Vec<Vec<&str>> {
    let mut groups = Vec::new();
    let mut group = Vec::new();
    for line in wanted.lines().chain([""]).map(str::trim) {
        match line {
            "" if group.is_empty() => {}
            "" => groups.push(std::mem::take(&mut group)),
            line if line.starts_with('#') => {}
            name => group.push(name),
        }
    }
    groups
}

/// The files of each group of wanted modules, each file after those it depends on. What the first group has, no other
/// group repeats; beyond that every group is complete in itself.
fn modules(folder: &Path, version: &str, wanted: &str) -> Result<Vec<Vec<PathBuf>>> {
    let mut found: Vec<Vec<PathBuf>> = Vec::new();
    for names in groups(wanted) {
        let mut files: Vec<PathBuf> = Vec::new();
        for name in names {
            for file in with_dependencies(folder, version, name)? {
                let there = found.first().is_some_and(|first| first.contains(&file)) || files.contains(&file);
                if !there {
                    files.push(file);
                }
            }
        }
        found.push(files);
    }
    ensure!(!found.is_empty(), "lab/modules names no module");
    Ok(found)
}

fn with_dependencies(folder: &Path, version: &str, name: &str) -> Result<Vec<PathBuf>> {
    // Without this machine's own modprobe configuration: its options are not the lab's.
    let mut modprobe = Command::new("/sbin/modprobe");
    modprobe.args([
        "--show-depends",
        "--config",
        "/dev/null",
        "--set-version",
        version,
        "--dirname",
    ]);
    let output = capture(modprobe.arg(folder).arg(name))
        .with_context(|| format!("the lab's kernel {version} has no module {name}"))?;
    // The other kind of line, "builtin NAME", needs nothing.
    let lines = String::from_utf8_lossy(&output);
    Ok(lines
        .lines()
        .filter_map(|line| line.strip_prefix("insmod "))
        .map(|file| file.trim().into())
        .collect())
}

fn pack(out: BufWriter<File>, init: &[u8], groups: &[Vec<PathBuf>], scratch: &Path) -> Result<()> {
    let mut archive = Archive::new(out);
    for folder in ["bin", "dev", "disk", "host", "modules", "proc", "root", "sys"] {
        archive.directory(folder, 0o755)?;
    }
    archive.character_device("dev/console", 0o600, 5, 1)?;
    archive.file("init", 0o755, init)?;
    archive.file(
        "bin/busybox",
        0o755,
        &fs::read(BUSYBOX).with_context(|| format!("cannot read {BUSYBOX}"))?,
    )?;
    for program in BUSYBOX_PROGRAMS {
        archive.symlink(&format!("bin/{program}"), "busybox")?;
    }
    let mut packed = HashSet::new();
    for (number, files) in groups.iter().enumerate() {
        let mut order = String::new();
        for file in files {
            let name = file
                .file_name()
                .and_then(|name| name.to_str())
                .context("a module without a name")?;
            let plain = name.trim_end_matches(".xz");
            order.push_str(plain);
            order.push('\n');
            if packed.insert(file) {
                archive.file(&format!("modules/{plain}"), 0o644, &module(file, scratch)?)?;
            }
        }
        archive.file(&format!("modules/group-{number}"), 0o644, order.as_bytes())?;
    }
    archive
        .finish()?
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)?;
    Ok(())
}

/// The module itself, made light here, once: the emulated processor takes its time over xz, and over checking type
/// information that nobody asks for.
fn module(file: &Path, scratch: &Path) -> Result<Vec<u8>> {
    let packed = file.extension().is_some_and(|extension| extension == "xz");
    let plain = if packed {
        capture(Command::new("xz").args(["--decompress", "--stdout"]).arg(file))?
    } else {
        fs::read(file).with_context(|| format!("cannot read {}", file.display()))?
    };
    fs::write(scratch, plain).with_context(|| format!("cannot write {}", scratch.display()))?;
    run(Command::new("objcopy")
        .args(["--strip-debug", "--remove-section=.BTF"])
        .arg(scratch))?;
    fs::read(scratch).with_context(|| format!("cannot read {}", scratch.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blank_line_ends_a_group_of_modules() {
        let wanted = "# About\n\n# Root\na\nb\n# More\nc\n\n\nd\n";
        assert_eq!(groups(wanted), [vec!["a", "b", "c"], vec!["d"]]);
        assert!(groups("# nothing\n").is_empty());
    }

    #[test]
    fn versions_are_ordered_by_number_not_by_letter() {
        assert!(numbers("6.12.117+deb12-amd64") > numbers("6.12.95+deb12-amd64"));
        assert!(numbers("6.12.9+deb13-amd64") < numbers("6.12.10+deb12-amd64"));
    }
}
