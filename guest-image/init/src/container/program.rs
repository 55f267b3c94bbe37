//! Finding a container's program in its `PATH`, and becoming it. Runs with the container's root and identity.

use std::convert::Infallible;
use std::ffi::{CString, NulError};
use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, execve, faccessat};

use crate::container::environment::Environment;

/// The texts are those that container engines made familiar.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    #[error("exec: no command specified")]
    Empty,
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotInPath(String),
    #[error("exec: {0:?}: stat {0}: no such file or directory")]
    Missing(String),
    #[error("exec: {0:?}: is a directory")]
    Directory(String),
    #[error("exec: {0:?}: permission denied")]
    Permission(String),
    #[error("exec: an argument or variable holds a NUL byte: {0}")]
    Nul(#[from] NulError),
    #[error("exec {path}: {}", reason(*source))]
    Exec { path: PathBuf, source: Errno },
}

fn reason(errno: Errno) -> String {
    errno.desc().to_lowercase()
}

/// Where the program of that name is: as it stands if it has a slash, else in the first absolute folder of `path`
/// that has an executable one.
pub(crate) fn find(name: &str, path: &str) -> Result<PathBuf, ProgramError> {
    if name.is_empty() {
        return Err(ProgramError::Empty);
    }
    if name.contains('/') {
        return executable(Path::new(name)).map(|()| PathBuf::from(name));
    }
    let folders = path
        .split(':')
        .map(Path::new)
        .filter(|folder| folder.is_absolute());
    let mut candidates = folders.map(|folder| folder.join(name));
    let found = candidates.find(|candidate| executable(candidate).is_ok());
    found.ok_or_else(|| ProgramError::NotInPath(name.to_owned()))
}

fn executable(path: &Path) -> Result<(), ProgramError> {
    let name = path.to_string_lossy().into_owned();
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => return Err(ProgramError::Directory(name)),
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            return Err(ProgramError::Permission(name));
        }
        Err(_) => return Err(ProgramError::Missing(name)),
    }
    faccessat(AT_FDCWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS)
        .map_err(|_| ProgramError::Permission(name))
}

/// Replaces this process by the program.
pub(crate) fn exec(argv: &[String], environment: &Environment) -> Result<Infallible, ProgramError> {
    let name = argv.first().ok_or(ProgramError::Empty)?;
    let path = find(name, environment.path())?;
    let c_path = CString::new(path.to_string_lossy().into_owned())?;
    let arguments = argv
        .iter()
        .map(|argument| CString::new(argument.as_str()))
        .collect::<Result<Vec<_>, _>>()?;
    let variables = environment.strings()?;
    execve(&c_path, &arguments, &variables).map_err(|source| ProgramError::Exec { path, source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn put(folder: &Path, name: &str, mode: u32) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn the_first_executable_in_the_path_is_taken() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        put(first.path(), "tool", 0o644);
        fs::create_dir(first.path().join("other")).unwrap();
        let tool = put(second.path(), "tool", 0o755);
        let other = put(second.path(), "other", 0o755);
        let path = format!(
            "/no/such:relative::{}:{}",
            first.path().display(),
            second.path().display()
        );
        assert_eq!(find("tool", &path).unwrap(), tool);
        assert_eq!(find("other", &path).unwrap(), other);
    }

    #[test]
    fn failures_are_told_apart_in_familiar_words() {
        let folder = tempfile::tempdir().unwrap();
        let plain = put(folder.path(), "plain", 0o644).display().to_string();
        let text = |name: &str, path: &str| find(name, path).unwrap_err().to_string();
        assert_eq!(
            text("foo", "/bin"),
            r#"exec: "foo": executable file not found in $PATH"#
        );
        assert_eq!(
            text("/no/foo", ""),
            r#"exec: "/no/foo": stat /no/foo: no such file or directory"#
        );
        assert_eq!(text(&plain, ""), format!("exec: {plain:?}: permission denied"));
        assert_eq!(text("/", ""), r#"exec: "/": is a directory"#);
        assert_eq!(text("", "/bin"), "exec: no command specified");
    }

    #[test]
    fn folders_relative_to_somewhere_are_not_searched() {
        assert!(matches!(
            find("Cargo.toml", ".:"),
            Err(ProgramError::NotInPath(_))
        ));
    }
}
