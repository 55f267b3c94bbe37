//! The files that machines are made of: the VMM, and the guest's kernel and initial RAM file system.

use std::path::{Path, PathBuf};

use clap::Args;

use super::Check;

/// Where the files are, when they are not where `cargo xtask` or an installation puts them.
#[derive(Args, Clone, Debug)]
pub(in crate::cli) struct GuestArgs {
    /// The berth-vmm program [default: beside this program]
    #[arg(long, value_name = "FILE")]
    vmm: Option<PathBuf>,
    /// The guest's kernel [default: vmlinux in $BERTH_GUEST_DIR, or in ../share/berth beside this program's folder]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The guest's initial RAM file system [default: initrd.cpio beside the kernel's default]
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
}

/// The three files, found to be there.
#[derive(Debug)]
pub(in crate::cli) struct Files {
    pub(in crate::cli) vmm: PathBuf,
    pub(in crate::cli) kernel: PathBuf,
    pub(in crate::cli) initrd: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum FilesError {
    #[error("cannot tell where this program is: {0}; name the files with --vmm, --kernel and --initrd")]
    Executable(std::io::Error),
    #[error("{path} is not there; {advice}", path = .path.display())]
    Missing { path: PathBuf, advice: &'static str },
}

const BUILD_GUEST: &str = "build it with `cargo xtask guest`, or say where it is with BERTH_GUEST_DIR";
const BUILD_VMM: &str = "build it with `cargo build -p berth-vmm`, or say where it is with --vmm";

impl GuestArgs {
    /// Absolute paths of all three; an error names the first that is missing.
    pub(in crate::cli) fn files(&self) -> Result<Files, FilesError> {
        let [vmm, kernel, initrd] = self.paths()?.map(|(path, advice)| {
            let there = std::path::absolute(&path).ok().filter(|path| path.is_file());
            there.ok_or(FilesError::Missing { path, advice })
        });
        Ok(Files {
            vmm: vmm?,
            kernel: kernel?,
            initrd: initrd?,
        })
    }

    /// Where each is looked for, and what to do if it is not there.
    fn paths(&self) -> Result<[(PathBuf, &'static str); 3], FilesError> {
        let program = std::env::current_exe().map_err(FilesError::Executable)?;
        let folder = program.parent().unwrap_or(Path::new("/"));
        let guest = std::env::var_os("BERTH_GUEST_DIR").map(PathBuf::from);
        let guest = guest.unwrap_or_else(|| folder.parent().unwrap_or(folder).join("share/berth"));
        let or = |given: &Option<PathBuf>, default: PathBuf| given.clone().unwrap_or(default);
        Ok([
            (or(&self.vmm, folder.join("berth-vmm")), BUILD_VMM),
            (or(&self.kernel, guest.join("vmlinux")), BUILD_GUEST),
            (or(&self.initrd, guest.join("initrd.cpio")), BUILD_GUEST),
        ])
    }
}

pub(super) fn checks(args: &GuestArgs) -> Vec<Check> {
    let paths = match args.paths() {
        Ok(paths) => paths,
        Err(error) => return vec![Check::missing("files", error.to_string(), BUILD_GUEST)],
    };
    let check = |(name, (path, advice)): (&'static str, (PathBuf, &'static str))| {
        let shown = path.display().to_string();
        if path.is_file() {
            Check::fine(name, shown)
        } else {
            Check::missing(name, format!("{shown} is not there"), advice)
        }
    };
    ["vmm", "kernel", "initrd"]
        .into_iter()
        .zip(paths)
        .map(check)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_file_is_named_with_the_next_step() {
        let here = Some(std::env::current_exe().unwrap());
        let args = GuestArgs {
            vmm: here.clone(),
            kernel: Some("/nowhere/vmlinux".into()),
            initrd: here,
        };
        let error = args.files().unwrap_err().to_string();
        assert!(
            error.starts_with("/nowhere/vmlinux is not there") && error.contains("cargo xtask guest"),
            "{error}"
        );
    }
}
