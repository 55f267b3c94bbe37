//! What is driven from outside: the release binaries, the guest, the program inside the test images, the guest that attacks
//! its devices, and the Python environment of those who drive them. Built here, run by `test`, `demo` and `bench`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::setup::{self, Consent};
use crate::step::{run, step};
use crate::{guest, workspace};

/// A built product.
pub(crate) struct Product {
    environment: Vec<(&'static str, PathBuf)>,
    python: PathBuf,
}

impl Product {
    /// Builds everything, after installing what that and its use need.
    pub(crate) fn build(consent: Consent) -> Result<Self> {
        setup::ensure(&[setup::KERNEL, setup::LAB, setup::TESTS], consent)?;
        let Binaries { berth, vmm } = Binaries::build()?;
        let webserver = step("build the program of the test images", || {
            guest::build_static("berth-test-webserver", "webserver", "release")
        })?;
        let hostile = step("build the guest that attacks its devices", || {
            guest::build_bare("berth-test-hostile", "hostile", "tests/hostile/link.ld")
        })?;
        let guest = step("build the guest", || guest::build(consent))?;
        let environment = vec![
            ("BERTH_BIN", berth),
            ("BERTH_VMM", vmm),
            ("BERTH_WEBSERVER", webserver),
            ("BERTH_HOSTILE", hostile),
            ("BERTH_GUEST", guest),
        ];
        Ok(Self {
            environment,
            python: virtual_environment()?,
        })
    }

    /// The command line of Python with these arguments, told by its environment where the product is.
    pub(crate) fn python<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Vec<OsString> {
        let mut line: Vec<OsString> = vec!["env".into()];
        for (name, path) in &self.environment {
            let mut pair = OsString::from(format!("{name}="));
            pair.push(path);
            line.push(pair);
        }
        line.push(self.python.clone().into());
        line.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        line
    }
}

/// What runs on a host.
struct Binaries {
    berth: PathBuf,
    vmm: PathBuf,
}

impl Binaries {
    fn build() -> Result<Self> {
        step("build berth", || {
            run(Command::new(workspace::cargo())
                .current_dir(workspace::root())
                .args(["build", "--quiet", "--release", "--package", "berth-api"]))
        })?;
        // Static: a start spends nothing on a dynamic linker, and the jail's filters meet one C library only.
        let vmm = step("build berth-vmm", || {
            guest::build_static("berth-vmm", "berth-vmm", "machine")
        })?;
        Ok(Self {
            berth: workspace::cargo_target().join("release/berth"),
            vmm,
        })
    }
}

/// Builds what a host needs into `target/dist`, laid out as it is installed (`bin`, `share/berth`), and returns that folder.
pub(crate) fn distribution(consent: Consent) -> Result<PathBuf> {
    let Binaries { berth, vmm } = Binaries::build()?;
    let guest = step("build the guest", || guest::build(consent))?;
    let folder = workspace::output().join("dist");
    for (file, place) in [
        (berth, "bin/berth"),
        (vmm, "bin/berth-vmm"),
        (guest.join("vmlinux"), "share/berth/vmlinux"),
        (guest.join("initrd.cpio"), "share/berth/initrd.cpio"),
    ] {
        let place = folder.join(place);
        let parent = place.parent().unwrap_or(&folder);
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        // Renamed into its place: what is there may be running.
        let partial = place.with_extension("partial");
        fs::copy(&file, &partial).with_context(|| format!("cannot copy {}", file.display()))?;
        fs::rename(&partial, &place).with_context(|| format!("cannot replace {}", place.display()))?;
    }
    Ok(folder)
}

/// The Python of a virtual environment with exactly what the end-to-end tests require, in the cache.
fn virtual_environment() -> Result<PathBuf> {
    let requirements = workspace::root().join("tests/e2e/requirements.txt");
    let text = fs::read(&requirements).with_context(|| format!("cannot read {}", requirements.display()))?;
    let key = hex::encode(&Sha256::digest(&text)[..8]);
    let folder = workspace::cache()?.join(format!("e2e-venv-{key}"));
    let python = folder.join("bin/python");
    let complete = folder.join("complete");
    if complete.exists() {
        return Ok(python);
    }
    step("install the end-to-end tests' Python packages (once)", || {
        install(&folder, &python, &requirements)?;
        fs::write(&complete, "").with_context(|| format!("cannot write {}", complete.display()))
    })?;
    Ok(python)
}

fn install(folder: &Path, python: &Path, requirements: &Path) -> Result<()> {
    // Debian's own: a shim of a version chooser would be a shell script, slow in the lab.
    run(Command::new("/usr/bin/python3")
        .args(["-m", "venv", "--clear"])
        .arg(folder))?;
    run(Command::new(python)
        .args(["-m", "pip", "install", "--quiet", "--requirement"])
        .arg(requirements))?;
    // Compiled once, here: what is written in the lab is thrown away. Packages hold templates that do not compile.
    Command::new(python)
        .args(["-m", "compileall", "-qq"])
        .arg(folder.join("lib"))
        .status()
        .map(drop)
        .context("cannot compile the Python packages")
}
