//! The header in front of every frame (virtio 1.3, 5.1.6 `struct virtio_net_hdr`), and which of its requests a driver
//! may make. The kernel's tap checks offsets and sizes against the frame itself.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

/// Bytes of the header, `num_buffers` included.
pub(super) const HEADER_BYTES: usize = 12;
/// Where `num_buffers` is, two bytes.
pub(super) const NUM_BUFFERS_OFFSET: usize = 10;

/// What the driver put before a frame, made fit for the tap: only requests that were negotiated, `num_buffers` zero.
/// None where it asks for segmentation that was not.
pub(super) fn accepted(mut header: [u8; HEADER_BYTES], features: u64) -> Option<[u8; HEADER_BYTES]> {
    let negotiated = |bit: u32| features & (1 << bit) != 0;
    let [flags, gso_type, ..] = &mut header;
    *flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
    if *flags != 0 && !negotiated(VIRTIO_NET_F_CSUM) {
        return None;
    }
    let allowed = match u32::from(*gso_type) {
        VIRTIO_NET_HDR_GSO_NONE => true,
        VIRTIO_NET_HDR_GSO_TCPV4 => negotiated(VIRTIO_NET_F_HOST_TSO4),
        VIRTIO_NET_HDR_GSO_TCPV6 => negotiated(VIRTIO_NET_F_HOST_TSO6),
        _ => false,
    };
    header[NUM_BUFFERS_OFFSET..].fill(0);
    allowed.then_some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4 | 1 << VIRTIO_NET_F_HOST_TSO6;

    fn header(flags: u8, gso_type: u8) -> [u8; HEADER_BYTES] {
        [flags, gso_type, 54, 0, 100, 0, 34, 0, 16, 0, 7, 7]
    }

    #[test]
    fn only_negotiated_offloads_pass() {
        assert_eq!(
            accepted(header(1, 1), ALL),
            Some([1, 1, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0])
        );
        assert_eq!(accepted(header(1, 1), 1 << VIRTIO_NET_F_CSUM), None);
        assert_eq!(accepted(header(1, 0), 0), None);
        assert!(accepted(header(0, 0), 0).is_some());
        // UFO, USO and ECN are never offered.
        for gso_type in [3, 5, 0x81, 0x84, 0xff] {
            assert_eq!(accepted(header(1, gso_type), ALL), None);
        }
    }

    #[test]
    fn flags_of_the_device_are_cleared() {
        assert_eq!(accepted(header(2, 0), ALL).map(|h| h[0]), Some(0));
    }
}
