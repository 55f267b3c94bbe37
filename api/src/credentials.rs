//! The key pair that callers sign with: made once, kept in the data directory in the format of AWS's shared
//! credentials file, so that any SDK can be pointed at it.

use std::fmt;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::TryRng;
use rand::rngs::SysRng;

const FILE: &str = "credentials";
/// No well-formed file comes near it.
const MAX_FILE_BYTES: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} has mode {mode:04o}, so others can read the secret key: run `chmod 600 {path}`")]
    Mode { path: PathBuf, mode: u32 },
    #[error("{path} has no {member} in its [default] profile")]
    Incomplete { path: PathBuf, member: &'static str },
    #[error("the operating system gave no random numbers")]
    Randomness(#[source] rand::rngs::SysError),
}

/// An access key and its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    access_key_id: String,
    secret_access_key: String,
}

impl Credentials {
    pub fn new(access_key_id: impl Into<String>, secret_access_key: impl Into<String>) -> Credentials {
        Credentials {
            access_key_id: access_key_id.into(),
            secret_access_key: secret_access_key.into(),
        }
    }

    pub fn access_key_id(&self) -> &str {
        &self.access_key_id
    }

    pub fn secret_access_key(&self) -> &str {
        &self.secret_access_key
    }

    /// `<data_dir>/credentials`.
    pub fn path(data_dir: &Path) -> PathBuf {
        data_dir.join(FILE)
    }

    /// The key pair of a data directory; a new one is made if it has none.
    pub fn load_or_create(data_dir: &Path) -> Result<Credentials, CredentialsError> {
        match Credentials::load(data_dir) {
            Err(CredentialsError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            other => return other,
        }
        let made = Credentials::random()?;
        made.store(data_dir)?;
        // Not `made`: had another process been first, its key pair is the one that counts.
        Credentials::load(data_dir)
    }

    /// The key pair of a data directory that has one.
    pub fn load(data_dir: &Path) -> Result<Credentials, CredentialsError> {
        let path = Credentials::path(data_dir);
        let io = |action| {
            let path = path.clone();
            move |source| CredentialsError::Io { action, path, source }
        };
        let file = File::open(&path).map_err(io("open"))?;
        let mode = file.metadata().map_err(io("read"))?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(CredentialsError::Mode { path, mode });
        }
        let mut text = String::new();
        file.take(MAX_FILE_BYTES)
            .read_to_string(&mut text)
            .map_err(io("read"))?;
        let member = |member: &'static str| {
            default_profile(&text, member)
                .map(str::to_owned)
                .ok_or(CredentialsError::Incomplete {
                    path: path.clone(),
                    member,
                })
        };
        Ok(Credentials::new(
            member("aws_access_key_id")?,
            member("aws_secret_access_key")?,
        ))
    }

    fn random() -> Result<Credentials, CredentialsError> {
        const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let mut id = [0u8; 16];
        SysRng
            .try_fill_bytes(&mut id)
            .map_err(CredentialsError::Randomness)?;
        let mut secret = [0u8; 30];
        SysRng
            .try_fill_bytes(&mut secret)
            .map_err(CredentialsError::Randomness)?;
        let id: String = id
            .iter()
            .map(|byte| char::from(BASE32[usize::from(byte % 32)]))
            .collect();
        // 30 bytes are exactly 40 characters of base64.
        Ok(Credentials::new(format!("AKIA{id}"), STANDARD.encode(secret)))
    }

    /// Whole or not at all, and never over a file that is there already.
    fn store(&self, data_dir: &Path) -> Result<(), CredentialsError> {
        let path = Credentials::path(data_dir);
        let temporary = data_dir.join(format!(".{FILE}.{:016x}", rand::random::<u64>()));
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| CredentialsError::Io { action, path, source }
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(io("create", &temporary))?;
        let written = file
            .set_permissions(Permissions::from_mode(0o600))
            .and_then(|()| file.write_all(self.profile().as_bytes()))
            .and_then(|()| file.sync_all())
            // A link, unlike a rename, fails if the name is taken.
            .and_then(|()| match std::fs::hard_link(&temporary, &path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
                other => other,
            });
        let removed = std::fs::remove_file(&temporary);
        written.and(removed).map_err(io("write", &path))?;
        File::open(data_dir)
            .and_then(|directory| directory.sync_all())
            .map_err(io("sync", data_dir))
    }

    fn profile(&self) -> String {
        format!(
            "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            self.access_key_id, self.secret_access_key
        )
    }

    /// Shell lines that point any AWS client at this server; `endpoint` is `host:port`.
    pub fn exports(&self, endpoint: &str, region: &str) -> String {
        format!(
            "export AWS_ACCESS_KEY_ID={}\nexport AWS_SECRET_ACCESS_KEY={}\nexport AWS_DEFAULT_REGION={region}\n\
             export AWS_ENDPOINT_URL=http://{endpoint}\n",
            self.access_key_id, self.secret_access_key
        )
    }
}

/// The secret stays out of logs.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

fn default_profile<'a>(text: &'a str, member: &str) -> Option<&'a str> {
    let mut in_default = false;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            in_default = section.trim() == "default";
        } else if in_default
            && let Some((name, value)) = line.split_once('=')
            && name.trim() == member
            && !value.trim().is_empty()
        {
            return Some(value.trim());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_pair_is_made_once_and_then_kept() {
        let dir = tempfile::tempdir().unwrap();
        let made = Credentials::load_or_create(dir.path()).unwrap();
        assert_eq!(Credentials::load_or_create(dir.path()).unwrap(), made);
        assert_eq!(made.access_key_id().len(), 20);
        assert_eq!(made.secret_access_key().len(), 40);
        let mode = std::fs::metadata(Credentials::path(dir.path()))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            1,
            "a temporary file was left behind"
        );
    }

    #[test]
    fn a_key_pair_is_never_written_over_another() {
        let dir = tempfile::tempdir().unwrap();
        let first = Credentials::load_or_create(dir.path()).unwrap();
        Credentials::new("AKIAOTHER", "other").store(dir.path()).unwrap();
        assert_eq!(Credentials::load(dir.path()).unwrap(), first);
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Credentials::load_or_create(dir.path()).unwrap();
        let path = Credentials::path(dir.path());
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let error = Credentials::load_or_create(dir.path()).unwrap_err();
        assert!(error.to_string().contains("0640"), "{error}");
    }

    #[test]
    fn a_file_without_a_secret_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = Credentials::path(dir.path());
        std::fs::write(
            &path,
            "[other]\naws_secret_access_key = x\n[default]\naws_access_key_id = y\n",
        )
        .unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let error = Credentials::load(dir.path()).unwrap_err();
        assert!(error.to_string().contains("aws_secret_access_key"), "{error}");
    }

    #[test]
    fn the_secret_is_not_printed_for_debugging() {
        let text = format!("{:?}", Credentials::new("AKIAEXAMPLE", "hunter2"));
        assert!(
            text.contains("AKIAEXAMPLE") && !text.contains("hunter2"),
            "{text}"
        );
    }
}
