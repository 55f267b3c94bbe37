//! Parameters (`ssm`): what is stored of them in clear. Their values are sealed, in records of their own.

use serde::{Deserialize, Serialize};

use super::{Tag, Timestamp};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ParameterType {
    String,
    StringList,
    SecureString,
}

impl ParameterType {
    /// The API's own spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            ParameterType::String => "String",
            ParameterType::StringList => "StringList",
            ParameterType::SecureString => "SecureString",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ParameterTier {
    Standard,
    Advanced,
}

impl ParameterTier {
    pub fn as_str(self) -> &'static str {
        match self {
            ParameterTier::Standard => "Standard",
            ParameterTier::Advanced => "Advanced",
        }
    }
}

/// A parameter as of its newest version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameter {
    pub name: String,
    pub tags: Vec<Tag>,
    pub newest: ParameterVersion,
}

/// A version, without its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterVersion {
    /// From 1.
    pub version: u64,
    pub kind: ParameterType,
    pub tier: ParameterTier,
    /// `text`.
    pub data_type: String,
    pub description: Option<String>,
    pub allowed_pattern: Option<String>,
    pub modified_at: Timestamp,
    pub modified_by: String,
}
