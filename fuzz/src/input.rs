//! The fuzzer's bytes as numbers. An input that is used up gives zeroes; a target ends when [`Input::step`] does.

pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The number of the next step, or none at the end.
    pub fn step(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// As many bytes as there are, at most `count`.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Some bytes; how many is in front of them.
    pub fn some_bytes(&mut self) -> &'a [u8] {
        let count = self.u8();
        self.bytes(count.into())
    }

    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    pub fn flag(&mut self) -> bool {
        self.u8() & 1 != 0
    }

    /// A small number or a large one.
    pub fn number(&mut self) -> u64 {
        match self.u8() {
            small @ 0..0xf0 => small.into(),
            0xf0..0xf8 => self.u16().into(),
            0xf8..0xfc => self.u32().into(),
            _ => self.u64(),
        }
    }
}
