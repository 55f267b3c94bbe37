//! Signature Version 4 in the `Authorization` header: signing for our own client, verifying for the server, and the
//! canonical form that both share; and the temporary credentials of tasks. Presigned URLs and chunked signing are not spoken.

mod canonical;
pub mod sign;
pub mod temporary;
#[cfg(test)]
mod tests;
pub mod verify;

pub(crate) use canonical::{decode, encode};
pub use sign::{Scope, Unsigned, sign};
pub use verify::{Claim, Gate, Principal};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const TERMINATOR: &str = "aws4_request";
/// `20150830T123600Z`.
const DATE_FORMAT: &str = "%Y%m%dT%H%M%SZ";
