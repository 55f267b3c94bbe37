//! Room for what a guest says: as much as it makes use of, so that a thousand silent guests hold next to nothing.

/// Enough for messages.
const LEAST: usize = 4 * 1024;
/// Enough for output at its fastest.
const MOST: usize = 128 * 1024;

pub(super) struct ReadBuffer(Vec<u8>);

impl ReadBuffer {
    pub fn new() -> ReadBuffer {
        ReadBuffer(vec![0; LEAST])
    }

    /// What the next read may fill.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// The last read filled so much of it: all calls for more, very little for the least. What it held is gone.
    pub fn used(&mut self, length: usize) {
        let size = match self.0.len() {
            full if length == full => (2 * full).min(MOST),
            roomy if length < roomy / 16 => LEAST,
            enough => enough,
        };
        if size != self.0.len() {
            self.0 = vec![0; size];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_with_what_is_read_and_is_small_again_after_it() {
        let mut buffer = ReadBuffer::new();
        let mut sizes = Vec::new();
        for length in [4096, 8192, 16_384, 32_768, 65_536, 131_072, 8192, 8191, 0] {
            buffer.used(length);
            sizes.push(buffer.room().len() / 1024);
        }
        assert_eq!(sizes, [8, 16, 32, 64, 128, 128, 128, 4, 4]);
    }
}
