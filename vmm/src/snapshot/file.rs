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
use std::os::unix::fs::FileExt;

use super::{MachineState, SnapshotError};

const MARK: [u8; 8] = *b"BERTHVMS";
/// Version of the state. Any change of what is in it is a new one: the encoding does not describe itself.
pub const STATE_VERSION: u32 = 1;
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
        let bytes = encode(state)?;
        let write = || {
            self.0.set_len(0)?;
            self.0.write_all_at(&bytes, 0)?;
            self.0.sync_all()
        };
        write().map_err(SnapshotError::Write)
    }
}

/// Reads a state that was written by this version, whole.
pub fn read(file: &File) -> Result<MachineState, SnapshotError> {
    let len = file.metadata().map_err(SnapshotError::Read)?.len();
    if len > MAX_STATE_BYTES {
        return Err(SnapshotError::TooLarge(len));
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).map_err(SnapshotError::Read)?;
    decode(&bytes)
}

fn encode(state: &MachineState) -> Result<Vec<u8>, SnapshotError> {
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
pub(super) fn decode(bytes: &[u8]) -> Result<MachineState, SnapshotError> {
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
