//! Sealing: AES-256-GCM with a random nonce. What a value is of (its key in the store) and the key it is sealed with
//! are bound to it as associated data, so that neither can be changed without being seen. No I/O.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::TryRng;
use rand::rngs::SysRng;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::text::SecretBytes;

pub(super) const KEY_BYTES: usize = 32;
/// Digits of a key's id.
const ID_DIGITS: usize = 16;
/// Begins the associated data, so that a key's seals for another purpose are none here.
const DOMAIN: &str = "berth secret 1";

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("the operating system gave no random numbers")]
    Randomness,
    #[error("{about:?} cannot be sealed")]
    Seal { about: String },
    #[error("{about:?} was changed, or belongs to something else: it does not open with key {key}")]
    Open { about: String, key: KeyId },
    #[error("{about:?} is sealed with key {key}, which the key file does not have")]
    UnknownKey { about: String, key: KeyId },
}

/// Names a key: 16 hex digits, random. Not secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(String);

impl KeyId {
    pub(super) fn parse(text: &str) -> Option<KeyId> {
        let well_formed = text.len() == ID_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        well_formed.then(|| KeyId(text.to_owned()))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key, wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub id: KeyId,
    bytes: Zeroizing<[u8; KEY_BYTES]>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// A sealed value: which key, and base64 of nonce, ciphertext and tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    pub key: KeyId,
    data: String,
}

impl Key {
    pub fn random() -> Result<Key, SealError> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        fill(&mut *bytes)?;
        let mut id = [0; ID_DIGITS / 2];
        fill(&mut id)?;
        Ok(Key::new(KeyId(hex::encode(id)), bytes))
    }

    pub fn new(id: KeyId, bytes: Zeroizing<[u8; KEY_BYTES]>) -> Key {
        Key { id, bytes }
    }

    pub fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.bytes
    }

    /// `about` says what the value is of; it opens for no other.
    pub fn seal(&self, about: &str, value: &[u8]) -> Result<Sealed, SealError> {
        let failed = || SealError::Seal {
            about: about.to_owned(),
        };
        let mut nonce = [0; NONCE_LEN];
        fill(&mut nonce)?;
        let cipher = self.cipher().ok_or_else(failed)?;
        // Room for all from the start: a vector that grows leaves what it held behind.
        let mut data = Vec::with_capacity(NONCE_LEN + value.len() + AES_256_GCM.tag_len());
        data.extend_from_slice(&nonce);
        data.extend_from_slice(value);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = cipher.seal_in_place_separate_tag(nonce, self.associated(about), &mut data[NONCE_LEN..]);
        match tag {
            Ok(tag) => data.extend_from_slice(tag.as_ref()),
            Err(_) => {
                data.zeroize();
                return Err(failed());
            }
        }
        Ok(Sealed {
            key: self.id.clone(),
            data: STANDARD.encode(data),
        })
    }

    pub fn open(&self, about: &str, sealed: &Sealed) -> Result<SecretBytes, SealError> {
        let failed = || SealError::Open {
            about: about.to_owned(),
            key: self.id.clone(),
        };
        let mut data = STANDARD.decode(&sealed.data).map_err(|_| failed())?;
        let (nonce, rest) = data.split_first_chunk_mut::<NONCE_LEN>().ok_or_else(failed)?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let cipher = self.cipher().ok_or_else(failed)?;
        let opened = cipher.open_in_place(nonce, self.associated(about), rest);
        let value = opened.map(|value| SecretBytes::new(value.to_vec()));
        data.zeroize();
        value.map_err(|_| failed())
    }

    fn cipher(&self) -> Option<LessSafeKey> {
        let key = UnboundKey::new(&AES_256_GCM, self.bytes.as_slice()).ok()?;
        Some(LessSafeKey::new(key))
    }

    fn associated(&self, about: &str) -> Aad<Vec<u8>> {
        Aad::from(format!("{DOMAIN}\0{}\0{about}", self.id).into_bytes())
    }
}

pub(super) fn fill(bytes: &mut [u8]) -> Result<(), SealError> {
    SysRng.try_fill_bytes(bytes).map_err(|_| SealError::Randomness)
}
