//! Secrets (`secretsmanager`): what is stored of them in clear, and what a container definition says of secrets. Their
//! values are sealed, in records of their own.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Tag, Timestamp};

pub const CURRENT: &str = "AWSCURRENT";
pub const PREVIOUS: &str = "AWSPREVIOUS";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    pub name: String,
    /// Six random letters and digits that end its ARN, so that a secret made anew is another one.
    pub suffix: String,
    pub description: Option<String>,
    pub tags: Vec<Tag>,
    pub created_at: Timestamp,
    pub changed_at: Timestamp,
    /// The day of it counts.
    pub accessed_at: Option<Timestamp>,
    pub deletion: Option<SecretDeletion>,
    /// By version id.
    pub versions: BTreeMap<String, SecretVersion>,
}

/// The secret is marked for deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretDeletion {
    pub asked_at: Timestamp,
    /// From then on it is gone.
    pub due_at: Timestamp,
}

/// A version, without its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretVersion {
    pub created_at: Timestamp,
    /// Staging labels; none on a version that is deprecated. Each is on one version of the secret at most.
    pub stages: BTreeSet<String>,
}

impl Secret {
    /// Which version has this label.
    pub fn version_of(&self, stage: &str) -> Option<&str> {
        let mut versions = self.versions.iter();
        let found = versions.find(|(_, version)| version.stages.contains(stage));
        found.map(|(id, _)| id.as_str())
    }

    /// The name and the suffix, as ARNs have them.
    pub fn resource(&self) -> String {
        format!("{}-{}", self.name, self.suffix)
    }

    /// Puts a label on a version and takes it from the one that had it. Where it is AWSCURRENT, that one becomes
    /// AWSPREVIOUS.
    pub fn move_stage(&mut self, stage: &str, to: &str) {
        let from = self.version_of(stage).map(str::to_owned);
        if from.as_deref() == Some(to) {
            return;
        }
        self.place_stage(stage, to);
        if let Some(from) = from.filter(|_| stage == CURRENT) {
            self.place_stage(PREVIOUS, &from);
        }
    }

    fn place_stage(&mut self, stage: &str, to: &str) {
        for (id, version) in &mut self.versions {
            if id == to {
                version.stages.insert(stage.to_owned());
            } else {
                version.stages.remove(stage);
            }
        }
    }
}

/// `secrets` of a container definition: an environment variable and where its value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretReference {
    pub name: String,
    /// As it was given.
    pub value_from: String,
    pub source: SecretSource,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecretSource {
    Parameter {
        /// Names that it may have; the first that exists counts.
        names: Vec<String>,
        version: Option<u64>,
    },
    Secret {
        /// Its name and suffix, or its name.
        resource: String,
        /// Of a value that is a JSON object.
        json_key: Option<String>,
        version_stage: Option<String>,
        version_id: Option<String>,
    },
}
