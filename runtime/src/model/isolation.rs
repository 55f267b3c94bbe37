//! What tasks share with each other: the operator's choice, and a cluster's.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Tag;

/// The tag by which a cluster chooses for its tasks.
pub const ISOLATION_TAG: &str = "berth:isolation";

/// What tasks share with each other. The stricter one of two counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// The memory of the template that they start from, as long as nobody writes to it: mostly the guest kernel's.
    #[default]
    Shared,
    /// Nothing: every task boots a kernel of its own.
    Strict,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no isolation: it is shared or strict")]
pub struct BadIsolation(String);

impl FromStr for Isolation {
    type Err = BadIsolation;

    fn from_str(text: &str) -> Result<Self, BadIsolation> {
        match text {
            "shared" => Ok(Self::Shared),
            "strict" => Ok(Self::Strict),
            _ => Err(BadIsolation(text.to_owned())),
        }
    }
}

impl Isolation {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Strict => "strict",
        }
    }

    /// What a cluster with these tags has chosen; none for one that has not.
    pub fn chosen(tags: &[Tag]) -> Result<Option<Self>, BadIsolation> {
        let tag = tags.iter().find(|tag| tag.key == ISOLATION_TAG);
        tag.map(|tag| tag.value.parse()).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_chooses_by_its_tag() {
        let chosen = |key: &str, value: &str| {
            let (key, value) = (key.to_owned(), value.to_owned());
            let other = Tag {
                key: "a".to_owned(),
                value: "strict".to_owned(),
            };
            Isolation::chosen(&[other, Tag { key, value }])
        };
        assert_eq!(Isolation::chosen(&[]), Ok(None));
        assert_eq!(chosen("isolation", "strict"), Ok(None));
        for isolation in [Isolation::Shared, Isolation::Strict] {
            assert_eq!(chosen(ISOLATION_TAG, isolation.as_str()), Ok(Some(isolation)));
        }
        for value in ["", "Strict", "strict ", "none"] {
            assert!(chosen(ISOLATION_TAG, value).is_err(), "{value:?} was taken");
        }
    }

    #[test]
    fn the_stricter_one_of_two_is_the_greater() {
        assert_eq!(Isolation::Shared.max(Isolation::Strict), Isolation::Strict);
    }
}
