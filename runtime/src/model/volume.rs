//! Volumes that outlive tasks, and snapshots of them: the records. Values only.

use serde::{Deserialize, Serialize};

use super::task::TaskId;
use super::{Tag, Timestamp};

/// Sizes of a volume in GiB.
pub const MIN_VOLUME_GIB: u32 = 1;
pub const MAX_VOLUME_GIB: u32 = 16_384;
const MAX_NAME_CHARS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeKind {
    /// A task can have it, one at a time.
    Volume,
    /// Volumes are made as copies of it; it never changes.
    Snapshot,
}

impl VolumeKind {
    /// `volume` or `snapshot`.
    pub fn as_str(self) -> &'static str {
        match self {
            VolumeKind::Volume => "volume",
            VolumeKind::Snapshot => "snapshot",
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            VolumeKind::Volume => "vol-",
            VolumeKind::Snapshot => "snap-",
        }
    }
}

/// `vol-` or `snap-`, and 17 lower-case hex digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VolumeId(String);

impl VolumeId {
    pub fn random(kind: VolumeKind) -> VolumeId {
        VolumeId(format!("{}{:017x}", kind.prefix(), rand::random::<u128>() >> 60))
    }

    /// None unless `text` has the form of an id.
    pub fn parse(text: &str) -> Option<VolumeId> {
        let digits = [VolumeKind::Volume, VolumeKind::Snapshot]
            .iter()
            .find_map(|kind| text.strip_prefix(kind.prefix()))?;
        let well_formed = digits.len() == 17
            && digits
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        well_formed.then(|| VolumeId(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for VolumeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that its owner chose: up to 64 letters, digits, dots, dashes and underscores, the first a letter or a digit. What
/// begins like an id is none.
pub fn is_volume_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    (1..=MAX_NAME_CHARS).contains(&text.len())
        && text.chars().all(plain)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !text.starts_with(VolumeKind::Volume.prefix())
        && !text.starts_with(VolumeKind::Snapshot.prefix())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// Its disk is not there, or not whole.
    Creating,
    Available,
    /// Its disk is going.
    Deleting,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub id: VolumeId,
    pub kind: VolumeKind,
    /// None of a volume that was made for a task.
    pub name: Option<String>,
    pub size_gib: u32,
    pub state: VolumeState,
    /// What it was copied from.
    pub source: Option<VolumeId>,
    pub tags: Vec<Tag>,
    pub created_at: Timestamp,
}

/// Who has a volume for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    /// Until it has stopped.
    Task(TaskId),
    /// This daemon copies it; no other daemon goes on with that.
    Copy,
}

/// The volume of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskVolume {
    pub id: VolumeId,
    /// What its definition calls it.
    pub name: String,
    pub size_gib: u32,
    /// The attachment's own id, a UUID.
    pub attachment_id: String,
    /// It is made for this task.
    pub made: bool,
    /// Only of one that is made for it.
    pub delete_on_termination: bool,
    /// As it was given.
    pub role_arn: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_no_name_and_no_path() {
        for kind in [VolumeKind::Volume, VolumeKind::Snapshot] {
            let id = VolumeId::random(kind);
            assert_eq!(VolumeId::parse(id.as_str()).as_ref(), Some(&id));
            assert!(!is_volume_name(id.as_str()));
        }
        for bad in [
            "",
            "vol-",
            "vol-0123456789abcdef",
            "vol-0123456789ABCDEF0",
            "vol-../../../../../x",
            "snap-0123456789abcdef00",
        ] {
            assert_eq!(VolumeId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_are_plain() {
        for good in ["a", "db.2026-11_x", &"x".repeat(64)] {
            assert!(is_volume_name(good), "{good}");
        }
        for bad in [
            "",
            ".a",
            "-a",
            "a/b",
            "a b",
            "é",
            "vol-1",
            "snap-x",
            &"x".repeat(65),
        ] {
            assert!(!is_volume_name(bad), "{bad}");
        }
    }
}
