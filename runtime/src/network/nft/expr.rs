//! The expressions of which rules are made, and how each is written.
//!
//! Registers are the sixteen 32-bit ones, by number from 0; a value longer than four bytes lies in consecutive ones.

use super::message::Writer;

/// `NFT_REG32_00`: where the 32-bit registers begin.
const REGISTER_BASE: u32 = 8;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expr {
    /// Load something the kernel knows about the packet.
    Meta {
        key: MetaKey,
        register: u32,
    },
    /// Load bytes of the packet.
    Payload {
        base: PayloadBase,
        offset: u32,
        len: u32,
        register: u32,
    },
    /// Load the connection's state as a set of [`ct_state`] bits.
    CtState {
        register: u32,
    },
    /// Keep only the bits of a mask.
    Mask {
        register: u32,
        mask: Vec<u8>,
    },
    /// Go on only if the register compares so.
    Compare {
        register: u32,
        relation: Relation,
        value: Vec<u8>,
    },
    /// Go on only if what starts in the register is in the set (or, inverted, is not).
    Lookup {
        set: String,
        register: u32,
        inverted: bool,
    },
    /// Count packets and bytes.
    Counter,
    /// Rewrite the source to the address of the outgoing interface.
    Masquerade,
    Verdict(Verdict),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::network) enum Verdict {
    Accept,
    Drop,
    Jump(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MetaKey {
    InInterface = 6,
    OutInterface = 7,
    TransportProtocol = 16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PayloadBase {
    Link = 0,
    Network = 1,
    Transport = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    Equal = 0,
    NotEqual = 1,
    AtMost = 3,
    AtLeast = 5,
}

/// Bits of a connection's state.
pub(super) mod ct_state {
    pub(in super::super) const INVALID: u32 = 1;
    pub(in super::super) const ESTABLISHED: u32 = 2;
    pub(in super::super) const RELATED: u32 = 4;
}

impl Expr {
    pub(super) fn write(&self, writer: &mut Writer) {
        const NAME: u16 = 1;
        const DATA: u16 = 2;
        writer.text(NAME, self.name());
        writer.nested(DATA, |writer| self.write_data(writer));
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Meta { .. } => "meta",
            Self::Payload { .. } => "payload",
            Self::CtState { .. } => "ct",
            Self::Mask { .. } => "bitwise",
            Self::Compare { .. } => "cmp",
            Self::Lookup { .. } => "lookup",
            Self::Counter => "counter",
            Self::Masquerade => "masq",
            Self::Verdict(_) => "immediate",
        }
    }

    fn write_data(&self, writer: &mut Writer) {
        const DATA_VALUE: u16 = 1;
        match self {
            Self::Meta { key, register } => {
                writer.number(1, REGISTER_BASE + register);
                writer.number(2, *key as u32);
            }
            Self::Payload {
                base,
                offset,
                len,
                register,
            } => {
                writer.number(1, REGISTER_BASE + register);
                writer.number(2, *base as u32);
                writer.number(3, *offset);
                writer.number(4, *len);
            }
            Self::CtState { register } => {
                const KEY_STATE: u32 = 0;
                writer.number(1, REGISTER_BASE + register);
                writer.number(2, KEY_STATE);
            }
            Self::Mask { register, mask } => {
                writer.number(1, REGISTER_BASE + register);
                writer.number(2, REGISTER_BASE + register);
                writer.number(3, u32::try_from(mask.len()).unwrap_or(u32::MAX));
                writer.nested(4, |writer| writer.bytes(DATA_VALUE, mask));
                writer.nested(5, |writer| writer.bytes(DATA_VALUE, &vec![0; mask.len()]));
            }
            Self::Compare {
                register,
                relation,
                value,
            } => {
                writer.number(1, REGISTER_BASE + register);
                writer.number(2, *relation as u32);
                writer.nested(3, |writer| writer.bytes(DATA_VALUE, value));
            }
            Self::Lookup {
                set,
                register,
                inverted,
            } => {
                writer.text(1, set);
                writer.number(2, REGISTER_BASE + register);
                writer.number(5, u32::from(*inverted));
            }
            Self::Counter | Self::Masquerade => {}
            Self::Verdict(verdict) => verdict.write(writer),
        }
    }
}

impl Verdict {
    fn write(&self, writer: &mut Writer) {
        const REGISTER_VERDICT: u32 = 0;
        const DATA_VERDICT: u16 = 2;
        const JUMP: i32 = -3;
        writer.number(1, REGISTER_VERDICT);
        writer.nested(2, |writer| {
            writer.nested(DATA_VERDICT, |writer| match self {
                Self::Drop => writer.number(1, 0),
                Self::Accept => writer.number(1, 1),
                Self::Jump(chain) => {
                    writer.number(1, JUMP.cast_unsigned());
                    writer.text(2, chain);
                }
            });
        });
    }
}
