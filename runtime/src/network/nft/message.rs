//! Netlink messages as bytes: headers, and attributes nested in attributes. Knows no meaning of any attribute.

/// Length of `struct nlmsghdr`.
pub(super) const HEADER_LEN: usize = 16;
/// Set on the type of an attribute that holds attributes.
const NESTED: u16 = 1 << 15;

/// Writes netlink messages one after the other.
///
/// The length fields of netlink are 16 bits (attributes) and 32 bits (messages). What is written here is bounded by
/// its callers (names of at most 80 bytes, lists cut into pieces), so a length that does not fit is a defect there;
/// it is clamped, and the kernel refuses the message as malformed.
#[derive(Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// One message: header, `struct nfgenmsg`, then what `body` writes.
    pub(super) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        family: u8,
        resource: u16,
        body: impl FnOnce(&mut Self),
    ) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        body(self);
        let len = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    pub(super) fn nested(&mut self, attribute: u16, body: impl FnOnce(&mut Self)) {
        self.attribute(attribute | NESTED, body);
    }

    pub(super) fn bytes(&mut self, attribute: u16, value: &[u8]) {
        self.attribute(attribute, |writer| writer.bytes.extend_from_slice(value));
    }

    pub(super) fn text(&mut self, attribute: u16, value: &str) {
        self.attribute(attribute, |writer| {
            writer.bytes.extend_from_slice(value.as_bytes());
            writer.bytes.push(0);
        });
    }

    /// A number as nf_tables wants all its numbers: big-endian.
    pub(super) fn number(&mut self, attribute: u16, value: u32) {
        self.bytes(attribute, &value.to_be_bytes());
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }

    fn attribute(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        body(self);
        let len = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// What the kernel answers to one message of ours.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) sequence: u32,
    /// 0 for an acknowledgement, else an error number.
    pub(super) errno: i32,
}

/// Reads the answers in a datagram; whatever is no answer is passed over.
pub(super) fn answers(datagram: &[u8]) -> Vec<Answer> {
    const ERROR: u16 = 2;
    let mut answers = Vec::new();
    let mut rest = datagram;
    while let Some((header, body)) = rest.split_first_chunk::<HEADER_LEN>() {
        let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
        let len = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        if len < HEADER_LEN || len > rest.len() {
            break;
        }
        if let (ERROR, Some(code)) = (u16::from_ne_bytes([k0, k1]), body.first_chunk::<4>()) {
            answers.push(Answer {
                sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
                errno: i32::from_ne_bytes(*code).saturating_neg(),
            });
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    answers
}
