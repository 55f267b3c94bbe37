//! What is driven from outside: the release binaries, the guest, the program inside the test images, and the Python
//! environment of those who drive them. Built here, run by `test`, `demo` and `bench`.

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
        step("build berth", || run(cargo_build("berth-api").arg("--release")))?;
        step("build berth-vmm", || {
            run(cargo_build("berth-vmm").args(["--profile", "machine"]))
        })?;
        let webserver = step("build the program of the test images", || {
            guest::build_static("berth-test-webserver", "webserver", "release")
        })?;
        let guest = step("build the guest", || guest::build(consent))?;
        let target = workspace::cargo_target();
        let environment = vec![
            ("BERTH_BIN", target.join("release/berth")),
            ("BERTH_VMM", target.join("machine/berth-vmm")),
            ("BERTH_WEBSERVER", webserver),
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

fn cargo_build(package: &str) -> Command {
    let mut cargo = Command::new(workspace::cargo());
    cargo
        .current_dir(workspace::root())
        .args(["build", "--quiet", "--package", package]);
    cargo
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
