//! Temporary credentials of tasks: an access key, its secret and a token, all derived from the account's own secret key. The
//! token names the task and the end; nothing is stored, and nobody without that key can make one. A new key pair in the
//! data directory makes all of them worthless. Whether the task still lives, and what it may do, is not known here.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use berth_runtime::model::Timestamp;
use berth_runtime::model::task::TaskId;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::credentials::Credentials;
use crate::error::ApiError;

/// How long they are good at most, and for how long a task is given the same ones.
pub const LIFE_MS: u64 = 6 * 3600 * 1000;
pub const ROTATION_MS: u64 = 3600 * 1000;
/// What AWS lets temporary keys begin with.
const PREFIX: &str = "ASIA";
const VERSION: u8 = 1;
/// Version, task, seconds since the epoch.
const PAYLOAD_BYTES: usize = 1 + 16 + 8;
const MAC_BYTES: usize = 32;
/// Longer than any token that was ever given.
const MAX_TOKEN_CHARS: usize = 4 * (PAYLOAD_BYTES + MAC_BYTES).div_ceil(3);

/// What a task is given.
#[derive(Clone, Debug)]
pub struct Temporary {
    pub credentials: Credentials,
    pub token: String,
    pub expires: Timestamp,
}

/// Those that this task gets now; the same ones for an hour, with at least five more to go.
pub fn issue(account: &Credentials, task: &TaskId, now: Timestamp) -> Temporary {
    let expires = Timestamp((now.0 / ROTATION_MS * ROTATION_MS).saturating_add(LIFE_MS));
    let payload = payload(task, expires);
    let token = [payload.as_slice(), &derive(account, "token", &payload)].concat();
    Temporary {
        credentials: credentials(account, &payload),
        token: STANDARD.encode(token),
        expires,
    }
}

/// Whether an access key is of this kind.
pub(super) fn is_temporary(key_id: &str) -> bool {
    key_id.starts_with(PREFIX)
}

/// The task to which a token was given, and the credentials that go with it.
pub(super) fn redeem(
    account: &Credentials,
    key_id: &str,
    token: &str,
    now: Timestamp,
) -> Result<(TaskId, Credentials), ApiError> {
    let token = (token.len() <= MAX_TOKEN_CHARS)
        .then(|| STANDARD.decode(token).ok())
        .flatten()
        .ok_or(ApiError::UnrecognizedClient)?;
    let (payload, mac) = token
        .split_at_checked(PAYLOAD_BYTES)
        .ok_or(ApiError::UnrecognizedClient)?;
    let genuine = derive(account, "token", payload).ct_eq(mac);
    if !bool::from(genuine) || payload[0] != VERSION {
        return Err(ApiError::UnrecognizedClient);
    }
    let task = TaskId::parse(&hex::encode(&payload[1..17])).ok_or(ApiError::UnrecognizedClient)?;
    let seconds = payload[17..]
        .iter()
        .fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    let credentials = credentials(account, payload);
    if key_id != credentials.access_key_id() {
        return Err(ApiError::UnrecognizedClient);
    }
    if now.0 >= seconds.saturating_mul(1000) {
        return Err(ApiError::ExpiredToken);
    }
    Ok((task, credentials))
}

fn payload(task: &TaskId, expires: Timestamp) -> Vec<u8> {
    // The id of a task is 32 hex digits.
    let id = hex::decode(task.as_str()).unwrap_or_default();
    [[VERSION].as_slice(), &id, &(expires.0 / 1000).to_be_bytes()].concat()
}

fn credentials(account: &Credentials, payload: &[u8]) -> Credentials {
    const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let id: String = derive(account, "key id", payload)
        .iter()
        .take(16)
        .map(|byte| char::from(BASE32[usize::from(byte % 32)]))
        .collect();
    // 30 bytes are 40 characters of base64, as in any secret key.
    let secret = STANDARD.encode(&derive(account, "secret", payload)[..30]);
    Credentials::new(format!("{PREFIX}{id}"), secret)
}

#[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
fn derive(account: &Credentials, purpose: &str, payload: &[u8]) -> [u8; MAC_BYTES] {
    let mut mac = Hmac::<Sha256>::new_from_slice(account.secret_access_key().as_bytes())
        .expect("HMAC takes a key of any length");
    // No request is signed with a key that begins like this.
    for part in ["berth temporary credentials", purpose] {
        mac.update(part.as_bytes());
        mac.update(&[0]);
    }
    mac.update(payload);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000 + 59 * 60_000);

    fn account() -> Credentials {
        Credentials::new("AKIAEXAMPLE", "secret")
    }

    fn redeemed(given: &Temporary, now: Timestamp) -> Result<(TaskId, Credentials), ApiError> {
        redeem(&account(), given.credentials.access_key_id(), &given.token, now)
    }

    #[test]
    fn what_was_given_is_taken_until_it_expires() {
        let task = TaskId::random();
        let given = issue(&account(), &task, NOW);
        assert_eq!(given.credentials.access_key_id().len(), 20);
        assert_eq!(given.credentials.secret_access_key().len(), 40);
        assert_eq!(given.expires.0 - NOW.0, 5 * 3_600_000 + 60_000);
        let last = Timestamp(given.expires.0 - 1);
        assert_eq!(redeemed(&given, last), Ok((task, given.credentials.clone())));
        assert_eq!(redeemed(&given, given.expires), Err(ApiError::ExpiredToken));
    }

    #[test]
    fn a_task_is_given_the_same_for_an_hour_and_then_others_while_the_old_are_good() {
        let task = TaskId::random();
        let given = |minutes: u64| issue(&account(), &task, Timestamp(1_800_000_000_000 + minutes * 60_000));
        assert_eq!(given(0).token, given(59).token);
        assert_ne!(given(0).token, given(60).token);
        assert_ne!(given(0).credentials, given(60).credentials);
        assert!(redeemed(&given(0), Timestamp(1_800_000_000_000 + 61 * 60_000)).is_ok());
        assert_ne!(
            given(0).token,
            issue(&account(), &TaskId::random(), Timestamp(1_800_000_000_000)).token
        );
    }

    #[test]
    fn nothing_of_a_token_can_be_changed() {
        let given = issue(&account(), &TaskId::random(), NOW);
        let bytes = STANDARD.decode(&given.token).unwrap();
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 1;
            let token = STANDARD.encode(changed);
            let refused = redeem(&account(), given.credentials.access_key_id(), &token, NOW);
            assert_eq!(refused, Err(ApiError::UnrecognizedClient), "byte {index}");
        }
        let other = issue(&account(), &TaskId::random(), NOW);
        for (key, token) in [
            (other.credentials.access_key_id(), given.token.as_str()),
            (given.credentials.access_key_id(), ""),
            (given.credentials.access_key_id(), &given.token[..20]),
            (given.credentials.access_key_id(), "no base64!"),
        ] {
            assert_eq!(
                redeem(&account(), key, token, NOW),
                Err(ApiError::UnrecognizedClient)
            );
        }
        let new_key = Credentials::new("AKIAEXAMPLE", "another");
        assert!(redeem(&new_key, given.credentials.access_key_id(), &given.token, NOW).is_err());
    }
}
