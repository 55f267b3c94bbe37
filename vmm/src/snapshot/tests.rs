use super::file::decode;
use super::*;

#[test]
fn what_is_no_state_is_refused() {
    for bytes in [&b""[..], b"BERTHVM", &[0; 100]] {
        assert!(matches!(decode(bytes), Err(SnapshotError::NoState)));
    }
}
