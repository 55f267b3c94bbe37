//! Text and bytes that nobody is to see: they have no Debug or Display that shows them, and are wiped when dropped.
//! What a caller's request or a client's answer holds besides, on its way over the network, is not wiped.

use std::fmt;

use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

/// What Debug shows instead.
const HIDDEN: &str = "(hidden)";

/// A secret text. Whoever needs the text itself says so with [`SecretText::expose`].
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    pub fn new(text: String) -> SecretText {
        SecretText(Zeroizing::new(text))
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SecretText, D::Error> {
        String::deserialize(deserializer).map(SecretText::new)
    }
}

/// Secret bytes.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    pub fn new(bytes: Vec<u8>) -> SecretBytes {
        SecretBytes(Zeroizing::new(bytes))
    }

    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// None unless it is UTF-8.
    pub fn to_text(&self) -> Option<SecretText> {
        let text = std::str::from_utf8(&self.0).ok()?;
        Some(SecretText::new(text.to_owned()))
    }
}

impl From<&SecretText> for SecretBytes {
    fn from(text: &SecretText) -> SecretBytes {
        SecretBytes::new(text.expose().as_bytes().to_vec())
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}
