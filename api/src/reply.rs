//! An answer before it is an HTTP response: status, content type and bytes.

use std::borrow::Cow;

use serde_json::Value;

pub(crate) const JSON: &str = "application/x-amz-json-1.1";
const XML: &str = "text/xml;charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub content_type: Cow<'static, str>,
    /// Beside what every answer has.
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Sent as `x-amzn-RequestId`; random.
    pub request_id: String,
}

impl Reply {
    pub fn json(status: u16, body: &Value) -> Reply {
        Reply {
            status,
            content_type: JSON.into(),
            headers: Vec::new(),
            body: body.to_string().into_bytes(),
            request_id: new_request_id(),
        }
    }

    /// `body` gets the request id, because the XML protocols repeat it inside.
    pub fn xml(status: u16, body: impl FnOnce(&str) -> String) -> Reply {
        let request_id = new_request_id();
        Reply {
            status,
            content_type: XML.into(),
            headers: Vec::new(),
            body: body(&request_id).into_bytes(),
            request_id,
        }
    }

    /// An answer that is neither.
    pub fn other(status: u16, content_type: impl Into<Cow<'static, str>>, body: Vec<u8>) -> Reply {
        Reply {
            status,
            content_type: content_type.into(),
            headers: Vec::new(),
            body,
            request_id: new_request_id(),
        }
    }

    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }
}

fn new_request_id() -> String {
    uuid_text(rand::random())
}

/// A version 4 UUID made of these bits.
pub(crate) fn uuid_text(bits: u128) -> String {
    let bits = (bits & !(0xf << 76) & !(0b11 << 62)) | (4 << 76) | (0b10 << 62);
    let hex = format!("{bits:032x}");
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_says_its_version_and_variant() {
        assert_eq!(uuid_text(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid_text(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
