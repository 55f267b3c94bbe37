//! The binary messages of a data channel, as Session Manager's agent and plugin exchange them: one in each websocket frame.
//! What they carry as JSON is in [`super::payload`], their order in [`super::channel`]. Big endian:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 4 | header length: 116, the offset of the payload length |
//! | 4 | 32 | type of the message, padded with spaces |
//! | 36 | 4 | version of the schema: 1 |
//! | 40 | 8 | created, in milliseconds since the epoch |
//! | 48 | 8 | sequence number |
//! | 56 | 8 | flags: 1 the first of its stream, 2 the last |
//! | 64 | 16 | id, a UUID: its last eight bytes before its first eight |
//! | 80 | 32 | SHA-256 of the payload |
//! | 112 | 4 | type of the payload |
//! | 116 | 4 | length of the payload |
//! | 120 | | payload |

use bytes::Bytes;
use sha2::{Digest, Sha256};

/// Longest payload that is taken; what clients type and paste comes in pieces of 1 KiB.
pub(crate) const MAX_PAYLOAD_BYTES: usize = 32 * 1024;
pub(crate) const MAX_MESSAGE_BYTES: usize = PAYLOAD_AT + MAX_PAYLOAD_BYTES;

const TYPE_AT: usize = 4;
const SCHEMA_AT: usize = 36;
const CREATED_AT: usize = 40;
const SEQUENCE_AT: usize = 48;
const FLAGS_AT: usize = 56;
const ID_AT: usize = 64;
const DIGEST_AT: usize = 80;
const PAYLOAD_TYPE_AT: usize = 112;
const PAYLOAD_LENGTH_AT: usize = 116;
const PAYLOAD_AT: usize = 120;
const SCHEMA: u32 = 1;

/// `MessageType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessageType {
    InputStreamData,
    OutputStreamData,
    Acknowledge,
    ChannelClosed,
    StartPublication,
    PausePublication,
}

impl MessageType {
    const ALL: [MessageType; 6] = [
        MessageType::InputStreamData,
        MessageType::OutputStreamData,
        MessageType::Acknowledge,
        MessageType::ChannelClosed,
        MessageType::StartPublication,
        MessageType::PausePublication,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            MessageType::InputStreamData => "input_stream_data",
            MessageType::OutputStreamData => "output_stream_data",
            MessageType::Acknowledge => "acknowledge",
            MessageType::ChannelClosed => "channel_closed",
            MessageType::StartPublication => "start_publication",
            MessageType::PausePublication => "pause_publication",
        }
    }
}

/// `PayloadType`: what a message of a stream carries. Those that mean nothing here are the number they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PayloadType(pub(crate) u32);

impl PayloadType {
    /// Of messages that are in no stream.
    pub(crate) const NONE: PayloadType = PayloadType(0);
    /// Bytes of the terminal, either way.
    pub(crate) const OUTPUT: PayloadType = PayloadType(1);
    pub(crate) const SIZE: PayloadType = PayloadType(3);
    pub(crate) const HANDSHAKE_REQUEST: PayloadType = PayloadType(5);
    pub(crate) const HANDSHAKE_RESPONSE: PayloadType = PayloadType(6);
    pub(crate) const HANDSHAKE_COMPLETE: PayloadType = PayloadType(7);
    pub(crate) const FLAG: PayloadType = PayloadType(10);
}

/// A UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MessageId(pub(crate) u128);

impl std::fmt::Display for MessageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hex = format!("{:032x}", self.0);
        let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
        f.write_str(&parts.join("-"))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// None where it is one that is not known here.
    pub(crate) message_type: Option<MessageType>,
    pub(crate) created_ms: u64,
    pub(crate) sequence: i64,
    pub(crate) flags: u64,
    pub(crate) id: MessageId,
    pub(crate) payload_type: PayloadType,
    pub(crate) payload: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("a message has {0} bytes, and must have {PAYLOAD_AT} to {MAX_MESSAGE_BYTES}")]
    Size(usize),
    #[error("a message's header has {0} bytes, and must have {PAYLOAD_LENGTH_AT}")]
    Header(u32),
    #[error("a message says its payload has {said} bytes, and it has {there}")]
    PayloadLength { said: u32, there: usize },
    #[error("a message's payload is not the one that its digest was made of")]
    Digest,
}

impl Message {
    /// A message of now, with an id of its own.
    pub(crate) fn new(
        message_type: MessageType,
        sequence: i64,
        flags: u64,
        payload_type: PayloadType,
        payload: Bytes,
    ) -> Message {
        // At least 1: the plugin takes a message without a date for a broken one.
        let now = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0);
        Message {
            message_type: Some(message_type),
            created_ms: now.max(1),
            sequence,
            flags,
            id: MessageId(rand::random::<u128>() | 1),
            payload_type,
            payload,
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(PAYLOAD_AT + self.payload.len());
        let header = u32::try_from(PAYLOAD_LENGTH_AT).unwrap_or_default();
        out.extend(header.to_be_bytes());
        let name = self.message_type.map_or("", MessageType::as_str);
        out.extend(format!("{name:<32}").bytes());
        out.extend(SCHEMA.to_be_bytes());
        out.extend(self.created_ms.to_be_bytes());
        out.extend(self.sequence.to_be_bytes());
        out.extend(self.flags.to_be_bytes());
        out.extend(self.id.0.rotate_left(64).to_be_bytes());
        out.extend(Sha256::digest(&self.payload));
        out.extend(self.payload_type.0.to_be_bytes());
        // What is sent is made here, in pieces that are far shorter.
        let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        out.extend(length.to_be_bytes());
        out.extend(&self.payload);
        out.into()
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<Message, MessageError> {
        if !(PAYLOAD_AT..=MAX_MESSAGE_BYTES).contains(&bytes.len()) {
            return Err(MessageError::Size(bytes.len()));
        }
        let header = u32::from_be_bytes(field(bytes, 0));
        if usize::try_from(header) != Ok(PAYLOAD_LENGTH_AT) {
            return Err(MessageError::Header(header));
        }
        let payload = bytes.slice(PAYLOAD_AT..);
        let said = u32::from_be_bytes(field(bytes, PAYLOAD_LENGTH_AT));
        if usize::try_from(said) != Ok(payload.len()) {
            let there = payload.len();
            return Err(MessageError::PayloadLength { said, there });
        }
        // One without a payload may leave the digest out.
        if !payload.is_empty() && Sha256::digest(&payload)[..] != bytes[DIGEST_AT..PAYLOAD_TYPE_AT] {
            return Err(MessageError::Digest);
        }
        let name = bytes[TYPE_AT..SCHEMA_AT].trim_ascii();
        let name = name.split(|byte| *byte == 0).find(|part| !part.is_empty());
        let name = name.unwrap_or_default().trim_ascii();
        let mut types = MessageType::ALL.into_iter();
        Ok(Message {
            message_type: types.find(|known| known.as_str().as_bytes() == name),
            created_ms: u64::from_be_bytes(field(bytes, CREATED_AT)),
            sequence: i64::from_be_bytes(field(bytes, SEQUENCE_AT)),
            flags: u64::from_be_bytes(field(bytes, FLAGS_AT)),
            id: MessageId(u128::from_be_bytes(field(bytes, ID_AT)).rotate_left(64)),
            payload_type: PayloadType(u32::from_be_bytes(field(bytes, PAYLOAD_TYPE_AT))),
            payload,
        })
    }
}

/// Bytes of the header, which is known to be there.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Message {
        Message {
            message_type: Some(MessageType::InputStreamData),
            created_ms: 1_503_434_274_948,
            sequence: 2,
            flags: 3,
            id: MessageId(0xdd01_e56b_ff48_483e_a508_b5f0_73f3_1b16),
            payload_type: PayloadType::OUTPUT,
            payload: Bytes::from_static(b"ls\r"),
        }
    }

    #[test]
    fn a_message_is_laid_out_as_the_plugin_reads_it() {
        let bytes = sample().encode();
        let text = hex::encode(&bytes);
        let type_name = hex::encode(format!("{:<32}", "input_stream_data"));
        let digest = hex::encode(Sha256::digest(b"ls\r"));
        let expected = [
            "00000074",
            &type_name,
            "00000001",
            "0000015e0baa7884",
            "0000000000000002",
            "0000000000000003",
            // The two halves of the id are exchanged.
            "a508b5f073f31b16dd01e56bff48483e",
            &digest,
            "00000001",
            "00000003",
            "6c730d",
        ];
        assert_eq!(text, expected.concat());
        assert_eq!(sample().id.to_string(), "dd01e56b-ff48-483e-a508-b5f073f31b16");
    }

    #[test]
    fn what_is_broken_is_told_apart() {
        let good = sample().encode();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.to_vec();
            bytes[at] = byte;
            Message::decode(&bytes.into())
        };
        assert_eq!(Message::decode(&good), Ok(sample()));
        assert_eq!(Message::decode(&good.slice(..119)), Err(MessageError::Size(119)));
        let large = Bytes::from(vec![0; MAX_MESSAGE_BYTES + 1]);
        assert_eq!(
            Message::decode(&large),
            Err(MessageError::Size(MAX_MESSAGE_BYTES + 1))
        );
        assert_eq!(with(3, 120), Err(MessageError::Header(120)));
        assert_eq!(with(0, 255).unwrap_err(), MessageError::Header(0xff00_0074));
        let length = MessageError::PayloadLength { said: 4, there: 3 };
        assert_eq!(with(119, 4), Err(length));
        assert_eq!(with(120, b'x'), Err(MessageError::Digest));
        assert_eq!(with(DIGEST_AT, 0), Err(MessageError::Digest));
        assert_eq!(with(TYPE_AT, b'I').unwrap().message_type, None);
    }

    #[test]
    fn a_type_may_be_padded_with_zeros() {
        let mut bytes = sample().encode().to_vec();
        bytes[TYPE_AT + 17..SCHEMA_AT].fill(0);
        assert_eq!(Message::decode(&bytes.into()), Ok(sample()));
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(
            message_type in proptest::sample::select(MessageType::ALL.to_vec()),
            (created_ms, sequence, flags) in any::<(u64, i64, u64)>(),
            (id, payload_type) in any::<(u128, u32)>(),
            payload in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let message = Message {
                message_type: Some(message_type), created_ms, sequence, flags, id: MessageId(id),
                payload_type: PayloadType(payload_type), payload: payload.into(),
            };
            prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
        }

        #[test]
        fn any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Message::decode(&bytes.into());
        }

        #[test]
        fn any_change_of_a_message_is_taken_or_refused(
            changes in proptest::collection::vec((0usize..123, any::<u8>()), 1..6),
            cut in 100usize..=123,
        ) {
            let mut bytes = sample().encode().to_vec();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            bytes.truncate(cut);
            if let Ok(message) = Message::decode(&bytes.into()) {
                prop_assert!(message.payload.len() <= 3);
            }
        }
    }
}
