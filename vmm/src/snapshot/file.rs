//! The file that the state lies in: a mark, a version, a checksum, and the state as postcard encodes it. Numbers of the
//! header are little-endian.
//!
//! ```text
//! 0   8  "BERTHVMS"
//! 8   4  version
//! 12  4  CRC-32 (IEEE 802.3) of all that follows
//! 16     state
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{MachineState, SnapshotError};

const MARK: [u8; 8] = *b"BERTHVMS";
/// Version of the state. Any change of what is in it is a new one: the encoding does not describe itself.
pub const STATE_VERSION: u32 = 2;
const HEADER_BYTES: usize = 16;
/// Largest file. The state of 32 vCPUs has half a mebibyte.
pub const MAX_STATE_BYTES: u64 = 4 << 20;

/// A file for a state.
pub struct SnapshotFile(File);

impl SnapshotFile {
    pub fn new(file: File) -> Self {
        Self(file)
    }

    /// Writes the state, to the disk, in place of whatever was in the file.
    pub fn write(&self, state: &MachineState) -> Result<(), SnapshotError> {
        write_bytes(&self.0, &encode(state)?).map_err(SnapshotError::Write)
    }
}

/// Reads a state that was written by this version, whole.
pub fn read(file: &File) -> Result<MachineState, SnapshotError> {
    decode(&read_bytes(file)?)
}

fn write_bytes(file: &File, bytes: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all_at(bytes, 0)?;
    file.sync_all()
}

fn read_bytes(file: &File) -> Result<Vec<u8>, SnapshotError> {
    let len = file.metadata().map_err(SnapshotError::Read)?.len();
    if len > MAX_STATE_BYTES {
        return Err(SnapshotError::TooLarge(len));
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).map_err(SnapshotError::Read)?;
    Ok(bytes)
}

fn encode(state: &impl Serialize) -> Result<Vec<u8>, SnapshotError> {
    let content = postcard::to_allocvec(state).map_err(SnapshotError::Encode)?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + content.len());
    bytes.extend(MARK);
    bytes.extend(STATE_VERSION.to_le_bytes());
    bytes.extend(crc32fast::hash(&content).to_le_bytes());
    bytes.extend(content);
    if bytes.len() as u64 > MAX_STATE_BYTES {
        return Err(SnapshotError::TooLarge(bytes.len() as u64));
    }
    Ok(bytes)
}

/// Takes any bytes, and believes none of them.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, SnapshotError> {
    let Some((header, content)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err(SnapshotError::NoState);
    };
    let number = |at: usize| {
        let mut number = [0; 4];
        number.copy_from_slice(&header[at..at + 4]);
        u32::from_le_bytes(number)
    };
    if header[..8] != MARK {
        return Err(SnapshotError::NoState);
    }
    match number(8) {
        STATE_VERSION => {}
        other => return Err(SnapshotError::Version(other)),
    }
    if number(12) != crc32fast::hash(content) {
        return Err(SnapshotError::Damaged);
    }
    match postcard::take_from_bytes(content).map_err(SnapshotError::Decode)? {
        (state, []) => Ok(state),
        _ => Err(SnapshotError::Damaged),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type State = (u32, Vec<u8>);

    fn decode_state(bytes: &[u8]) -> Result<State, SnapshotError> {
        decode(bytes)
    }

    #[test]
    fn what_is_no_state_is_refused() {
        for bytes in [&b""[..], b"BERTHVMS", &[0; 100]] {
            assert!(matches!(decode_state(bytes), Err(SnapshotError::NoState)));
        }
        let mut file = encode(&(1u32, vec![2u8])).unwrap();
        file[8] = 9;
        assert!(matches!(decode_state(&file), Err(SnapshotError::Version(9))));
        // Sound, and of something else.
        let other = encode(&"text").unwrap();
        assert!(decode_state(&other).is_err());
        let longer = encode(&(1u32, vec![2u8], 3u8)).unwrap();
        assert!(matches!(decode_state(&longer), Err(SnapshotError::Damaged)));
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[0xee; 4096], 0).unwrap();
        write_bytes(&file, &encode(&(7u32, vec![1u8, 2])).unwrap()).unwrap();
        assert_eq!(
            decode_state(&read_bytes(&file).unwrap()).unwrap(),
            (7, vec![1, 2])
        );
        file.set_len(MAX_STATE_BYTES + 1).unwrap();
        assert!(matches!(read_bytes(&file), Err(SnapshotError::TooLarge(_))));
    }

    proptest! {
        #[test]
        fn a_state_comes_back_as_it_was(state: State) {
            prop_assert_eq!(decode_state(&encode(&state).unwrap()).unwrap(), state);
        }

        #[test]
        fn one_changed_byte_is_seen(state: State, at: prop::sample::Index, change in 1u8..) {
            let mut file = encode(&state).unwrap();
            let at = at.index(file.len());
            file[at] ^= change;
            prop_assert!(decode_state(&file).is_err());
        }

        #[test]
        fn no_bytes_panic(mut content: Vec<u8>) {
            let mut file = MARK.to_vec();
            file.extend(STATE_VERSION.to_le_bytes());
            file.extend(crc32fast::hash(&content).to_le_bytes());
            file.append(&mut content);
            let _ = decode::<MachineState>(&file);
        }
    }
}
