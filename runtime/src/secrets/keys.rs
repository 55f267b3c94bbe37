//! The key file, `DIR/secrets.keys`: one key a line, the last of which seals. Written whole and synced before any value
//! is sealed with what is new in it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::seal::{KEY_BYTES, Key, KeyId, SealError, Sealed};
use super::text::SecretBytes;

const COMMENT: &str = "# The keys of Berth's parameters and secrets, the newest last. Without them no value can be read:\n\
                       # keep a copy where the data directory's own is not kept.\n";
/// No file comes near it: one key is the rule, and each broken-off rotation leaves one more.
const MAX_FILE_BYTES: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} has mode {mode:04o}, so others can read the keys: run `chmod 600 {}`", .path.display(), .path.display())]
    Mode { path: PathBuf, mode: u32 },
    /// Its text is not shown.
    #[error("line {line} of {} is no key: it must be 16 hex digits, a space and 64 hex digits", .path.display())]
    Line { path: PathBuf, line: usize },
}

/// The keys that are live.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyRing {
    /// Oldest first.
    keys: Vec<Key>,
}

impl KeyRing {
    /// None if there is no file.
    pub fn load(path: &Path) -> Result<Option<KeyRing>, KeyFileError> {
        let io = |action| {
            move |source| KeyFileError::Io {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io("open"))?,
        };
        let mode = file.metadata().map_err(io("read"))?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            let path = path.to_owned();
            return Err(KeyFileError::Mode { path, mode });
        }
        // Room for all of it: what a growing string leaves behind is not wiped.
        let mut text = Zeroizing::new(String::with_capacity(MAX_FILE_BYTES as usize + 1));
        file.take(MAX_FILE_BYTES)
            .read_to_string(&mut text)
            .map_err(io("read"))?;
        let mut ring = KeyRing::default();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            ring.keys.push(parse(line).ok_or_else(|| KeyFileError::Line {
                path: path.to_owned(),
                line: index + 1,
            })?);
        }
        Ok(Some(ring))
    }

    /// Whole or not at all, and on the disk when this returns.
    pub fn store(&self, path: &Path) -> Result<(), KeyFileError> {
        let dir = path.parent().unwrap_or(Path::new("."));
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        // One name, so that what a crash leaves is overwritten; the data directory has one daemon.
        let temporary = dir.join(name);
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| KeyFileError::Io { action, path, source }
        };
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(io("remove", &temporary)(error));
            }
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(io("create", &temporary))?;
        file.write_all(self.text().as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(io("write", &temporary))?;
        fs::rename(&temporary, path).map_err(io("replace", path))?;
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(io("sync", dir))
    }

    fn text(&self) -> Zeroizing<String> {
        let line = 2 * KEY_BYTES + 32;
        let mut text = Zeroizing::new(String::with_capacity(COMMENT.len() + self.keys.len() * line));
        text.push_str(COMMENT);
        for key in &self.keys {
            let mut digits = Zeroizing::new([0; 2 * KEY_BYTES]);
            // The buffer has just the room that it takes.
            if hex::encode_to_slice(key.bytes(), &mut *digits).is_ok() {
                text.push_str(&key.id.to_string());
                text.push(' ');
                text.extend(digits.iter().map(|digit| char::from(*digit)));
                text.push('\n');
            }
        }
        text
    }

    /// The key that seals.
    pub fn current(&self) -> Option<&Key> {
        self.keys.last()
    }

    pub fn ids(&self) -> impl Iterator<Item = &KeyId> {
        self.keys.iter().map(|key| &key.id)
    }

    /// With a new key, which seals from now on.
    pub fn with_new_key(&self) -> Result<KeyRing, SealError> {
        let mut keys = self.keys.clone();
        keys.push(Key::random()?);
        Ok(KeyRing { keys })
    }

    /// With the newest key alone.
    pub fn newest_only(&self) -> KeyRing {
        KeyRing {
            keys: self.keys.last().cloned().into_iter().collect(),
        }
    }

    pub fn open(&self, about: &str, sealed: &Sealed) -> Result<SecretBytes, SealError> {
        let key = self.keys.iter().find(|key| key.id == sealed.key);
        let key = key.ok_or_else(|| SealError::UnknownKey {
            about: about.to_owned(),
            key: sealed.key.clone(),
        })?;
        key.open(about, sealed)
    }
}

fn parse(line: &str) -> Option<Key> {
    let (id, digits) = line.trim_end().split_once(' ')?;
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    hex::decode_to_slice(digits, &mut *bytes).ok()?;
    Some(Key::new(KeyId::parse(id)?, bytes))
}
