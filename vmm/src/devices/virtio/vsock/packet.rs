//! The header of a vsock packet (virtio 1.3, 5.10.6 `struct virtio_vsock_hdr`).

use crate::devices::virtio::net::buffers::ChainBuffers;

/// The host's context id.
pub(super) const HOST_CID: u64 = 2;
/// `VIRTIO_VSOCK_TYPE_STREAM`, the only type of socket that the device has.
pub(super) const TYPE_STREAM: u16 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`: the sender of this flag will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: the sender of this flag will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
/// Most payload of one packet.
pub(super) const MAX_DATA_BYTES: usize = 64 * 1024;
pub(super) const HEADER_BYTES: usize = 44;

/// `VIRTIO_VSOCK_OP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Request = 1,
    Response = 2,
    Reset = 3,
    Shutdown = 4,
    Data = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

impl Op {
    pub(super) fn from_wire(op: u16) -> Option<Self> {
        Some(match op {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// What one side says about its receive buffer in every packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Credit {
    /// Size of the buffer in bytes.
    pub(super) buf_alloc: u32,
    /// Bytes taken out of it so far, modulo 2³².
    pub(super) fwd_cnt: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) credit: Credit,
}

impl Header {
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        Self {
            src_cid: u64::from_le_bytes(field(bytes, 0)),
            dst_cid: u64::from_le_bytes(field(bytes, 8)),
            src_port: u32::from_le_bytes(field(bytes, 16)),
            dst_port: u32::from_le_bytes(field(bytes, 20)),
            len: u32::from_le_bytes(field(bytes, 24)),
            kind: u16::from_le_bytes(field(bytes, 28)),
            op: u16::from_le_bytes(field(bytes, 30)),
            flags: u32::from_le_bytes(field(bytes, 32)),
            credit: Credit {
                buf_alloc: u32::from_le_bytes(field(bytes, 36)),
                fwd_cnt: u32::from_le_bytes(field(bytes, 40)),
            },
        }
    }

    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.credit.buf_alloc.to_le_bytes());
        bytes[40..].copy_from_slice(&self.credit.fwd_cnt.to_le_bytes());
        bytes
    }
}

fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// The buffers of the guest that one packet goes into.
pub(super) struct Room<'m> {
    pub(super) header: ChainBuffers<'m>,
    pub(super) data: ChainBuffers<'m>,
}

impl<'m> Room<'m> {
    /// None of buffers that hold no more than a header.
    pub(super) fn new(buffers: ChainBuffers<'m>) -> Option<Self> {
        let (header, data) = buffers.split_at(HEADER_BYTES);
        (data.len() > 0).then_some(Self { header, data })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_header_survives_the_wire(half in any::<[u8; 22]>(), other in any::<[u8; 22]>()) {
            let mut bytes = [0; HEADER_BYTES];
            bytes[..22].copy_from_slice(&half);
            bytes[22..].copy_from_slice(&other);
            prop_assert_eq!(Header::decode(&bytes).encode(), bytes);
        }
    }

    #[test]
    fn fields_are_where_the_specification_puts_them() {
        let mut bytes = [0; HEADER_BYTES];
        (0u8..).zip(&mut bytes).for_each(|(i, byte)| *byte = i);
        let header = Header::decode(&bytes);
        assert_eq!(header.src_port, 0x1312_1110);
        assert_eq!(header.len, 0x1b1a_1918);
        assert_eq!((header.kind, header.op), (0x1d1c, 0x1f1e));
        assert_eq!(
            header.credit,
            Credit {
                buf_alloc: 0x2726_2524,
                fwd_cnt: 0x2b2a_2928
            }
        );
    }
}
