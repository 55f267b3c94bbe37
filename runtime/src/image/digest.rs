//! The digest of content: `sha256:` and 64 lowercase hexadecimal digits, and the hasher that makes one. No other
//! algorithm is accepted.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const PREFIX: &str = "sha256:";
const HEX_DIGITS: usize = 64;

/// The sha256 digest of some content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// Why a text is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("the digest algorithm {0} is not supported, only sha256 is")]
    Algorithm(String),
    #[error("\"{0}\" is not a digest (sha256: and 64 lowercase hexadecimal digits)")]
    Malformed(String),
}

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 64 hexadecimal digits, without the algorithm: the name of a file in the store.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        // What is shown in a message is bounded, as the text may come from a registry.
        let malformed = || DigestError::Malformed(text.chars().take(96).collect());
        let Some(digits) = text.strip_prefix(PREFIX) else {
            return match text.split_once(':') {
                Some((algorithm @ ("sha512" | "sha384" | "blake3"), _)) => {
                    Err(DigestError::Algorithm(algorithm.to_owned()))
                }
                _ => Err(malformed()),
            };
        };
        if digits.len() != HEX_DIGITS || digits.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(malformed());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| malformed())?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Hashes content that comes in pieces.
#[derive(Clone, Default)]
pub(super) struct Hasher(Sha256);

impl Hasher {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_is_accepted_and_printed_back() {
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let digest: Digest = text.parse().unwrap();
        assert_eq!(digest.to_string(), text);
        assert_eq!(digest, Digest::of(b""));
        let mut hasher = Hasher::default();
        hasher.update(b"");
        assert_eq!(hasher.finish(), digest);
    }

    #[test]
    fn sha512_is_refused_by_name() {
        let error = format!("sha512:{}", "0".repeat(128))
            .parse::<Digest>()
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "the digest algorithm sha512 is not supported, only sha256 is"
        );
    }

    #[test]
    fn anything_else_is_malformed() {
        for text in [
            "",
            "sha256:",
            "sha256:../../etc/passwd",
            "e3b0",
            "sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
        ] {
            assert!(
                matches!(text.parse::<Digest>(), Err(DigestError::Malformed(_))),
                "{text}"
            );
        }
    }
}
