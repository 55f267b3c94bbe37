//! The encoding of `application/vnd.amazon.eventstream`: messages of headers and a payload, each with its length and two
//! CRC-32, in network byte order. Only what Berth sends: headers that are strings.

pub(crate) const CONTENT_TYPE: &str = "application/vnd.amazon.eventstream";
/// The type of a header's value that is a string.
const STRING: u8 = 7;
/// Two lengths and their CRC, and the CRC of the whole.
const OVERHEAD_BYTES: usize = 16;

/// A message of an event type, whose payload is JSON.
pub(crate) fn event(kind: &str, payload: &serde_json::Value) -> Vec<u8> {
    let headers = [
        (":message-type", "event"),
        (":event-type", kind),
        (":content-type", "application/json"),
    ];
    message(&headers, payload.to_string().as_bytes())
}

/// The last message of a stream that ends with an error.
pub(crate) fn exception(kind: &str, text: &str) -> Vec<u8> {
    let headers = [
        (":message-type", "exception"),
        (":exception-type", kind),
        (":content-type", "application/json"),
    ];
    message(
        &headers,
        serde_json::json!({ "message": text }).to_string().as_bytes(),
    )
}

fn message(headers: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::new();
    for (name, value) in headers {
        // Names and values are short words of this program.
        encoded.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        encoded.extend(name.bytes());
        encoded.push(STRING);
        encoded.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
        encoded.extend(value.bytes());
    }
    let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes();
    let mut message = Vec::with_capacity(OVERHEAD_BYTES + encoded.len() + payload.len());
    message.extend(length(OVERHEAD_BYTES + encoded.len() + payload.len()));
    message.extend(length(encoded.len()));
    message.extend(crc32fast::hash(&message).to_be_bytes());
    message.extend(encoded);
    message.extend(payload);
    message.extend(crc32fast::hash(&message).to_be_bytes());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_lengths_and_checksums_around_it() {
        let message = message(&[("k", "v")], b"{}");
        let length = u32::try_from(message.len()).unwrap();
        assert_eq!(message[..4], length.to_be_bytes());
        assert_eq!(message[4..8], 6u32.to_be_bytes());
        assert_eq!(message[8..12], crc32fast::hash(&message[..8]).to_be_bytes());
        assert_eq!(message[12..18], [1, b'k', 7, 0, 1, b'v']);
        assert_eq!(&message[18..20], b"{}");
        assert_eq!(message[20..], crc32fast::hash(&message[..20]).to_be_bytes());
    }
}
