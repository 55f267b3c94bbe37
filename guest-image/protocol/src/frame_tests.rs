//! Frames round-trip however they are cut, and garbage is refused within bounds.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::message::{ContainerState, ContainerStatus, OutputPosition};

fn stream() -> impl Strategy<Value = Stream> {
    prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)]
}

fn frame() -> impl Strategy<Value = Frame<ToGuest>> {
    prop_oneof![
        (".{0,40}", stream(), any::<u64>()).prop_map(|(container, stream, offset)| Frame::Message(
            ToGuest::Ack {
                container,
                stream,
                offset
            }
        )),
        (".{0,40}", any::<i32>())
            .prop_map(|(container, signal)| Frame::Message(ToGuest::Signal { container, signal })),
        (any::<u32>(), vec((".{0,20}", stream(), any::<u64>()), 0..4)).prop_map(|(version, outputs)| {
            let outputs = outputs
                .into_iter()
                .map(|(container, stream, offset)| OutputPosition {
                    container,
                    stream,
                    offset,
                })
                .collect();
            Frame::Message(ToGuest::Hello { version, outputs })
        }),
        (
            "[a-z0-9é]{0,60}",
            stream(),
            0..u64::MAX / 2,
            vec(any::<u8>(), 0..300)
        )
            .prop_map(|(container, stream, offset, bytes)| Frame::Output(OutputFrame {
                container,
                stream,
                offset,
                bytes
            })),
        (0u8..3, vec(any::<u8>(), 1..300))
            .prop_map(|(stream, bytes)| Frame::Data(DataFrame { stream, bytes })),
    ]
}

fn decode_in_pieces(bytes: &[u8], piece: usize) -> Result<Vec<Frame<ToGuest>>, FrameError> {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.push(piece);
        while let Some(frame) = decoder.next()? {
            frames.push(frame);
        }
    }
    assert_eq!(decoder.buffered_bytes(), 0, "bytes were left over");
    Ok(frames)
}

proptest! {
    #[test]
    fn frames_survive_any_cutting(frames in vec(frame(), 0..6), piece in 1usize..400) {
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.encode(&mut bytes).unwrap();
        }
        prop_assert_eq!(decode_in_pieces(&bytes, piece).unwrap(), frames);
    }

    #[test]
    fn garbage_never_panics(bytes in vec(any::<u8>(), 0..4096)) {
        decode_all(&bytes);
    }

    #[test]
    fn a_damaged_frame_never_panics(frame in frame(), at in any::<prop::sample::Index>(), value: u8) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = value;
        decode_all(&bytes);
    }

    #[test]
    fn a_truncated_output_header_is_refused(frame_end in 5usize..14) {
        let mut bytes = Vec::new();
        encode_output("web", Stream::Stderr, 7, b"x", &mut bytes).unwrap();
        bytes.truncate(frame_end);
        let length = u32::try_from(frame_end - LENGTH_BYTES).unwrap();
        bytes[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        prop_assert!(matches!(decoder.next::<ToGuest>(), Err(FrameError::OutputHeader)));
    }
}

#[test]
fn the_layout_is_as_documented() {
    let mut bytes = Vec::new();
    encode_output("web", Stream::Stderr, 0x0102, b"hi", &mut bytes).unwrap();
    assert_eq!(bytes, b"\x10\0\0\0\x01\x03web\x01\x02\x01\0\0\0\0\0\0hi");
    bytes.clear();
    encode_data(crate::exec::STDERR, b"hi", &mut bytes).unwrap();
    assert_eq!(bytes, b"\x04\0\0\0\x02\x02hi");
    bytes.clear();
    encode_message(&ToGuest::PowerOff, &mut bytes).unwrap();
    assert_eq!(bytes, b"\x15\0\0\0\0{\"type\":\"power_off\"}");
}

#[test]
fn a_length_outside_the_bounds_is_refused_before_its_body_comes() {
    for length in [0u32, MAX_FRAME_BYTES as u32 + 1, u32::MAX] {
        let mut decoder = Decoder::new();
        decoder.push(&length.to_le_bytes());
        assert!(matches!(decoder.next::<ToGuest>(), Err(FrameError::Length(l)) if l == length as usize));
        decoder.push(&[0; 100]);
        assert_eq!(decoder.buffered_bytes(), 0);
        assert!(matches!(decoder.next::<ToGuest>(), Err(FrameError::Broken)));
    }
}

#[test]
fn unknown_kinds_streams_and_offsets_are_refused() {
    let refusal = |body: &[u8]| decode_body::<ToGuest>(body).unwrap_err();
    assert!(matches!(refusal(&[3]), FrameError::Kind(3)));
    for data in [&b"\x02"[..], b"\x02\0", b"\x02\x03x"] {
        assert!(matches!(refusal(data), FrameError::Data { .. }), "{data:?}");
    }
    assert!(matches!(
        refusal(b"\x01\x01a\x02\0\0\0\0\0\0\0\0"),
        FrameError::OutputStream(2)
    ));
    assert!(matches!(
        refusal(b"\x01\x01\xff\0\0\0\0\0\0\0\0\0"),
        FrameError::OutputName
    ));
    assert!(matches!(
        refusal(b"\x01\x01a\0\xff\xff\xff\xff\xff\xff\xff\xffx"),
        FrameError::OutputOffset {
            offset: u64::MAX,
            length: 1
        }
    ));
    assert!(matches!(
        refusal(b"\0{\"type\":\"no_such\"}"),
        FrameError::Json(_)
    ));
}

#[test]
fn too_much_is_not_encoded_and_leaves_nothing_behind() {
    let mut out = b"before".to_vec();
    let long = "n".repeat(256);
    let bytes = vec![0; MAX_OUTPUT_BYTES + 1];
    assert!(encode_output(&long, Stream::Stdout, 0, b"", &mut out).is_err());
    assert!(encode_output("a", Stream::Stdout, 0, &bytes, &mut out).is_err());
    assert!(encode_output("a", Stream::Stdout, u64::MAX, b"x", &mut out).is_err());
    let message = ToHost::Error {
        message: "m".repeat(MAX_FRAME_BYTES),
    };
    assert!(matches!(
        encode_message(&message, &mut out),
        Err(FrameError::Length(_))
    ));
    assert_eq!(out, b"before");
}

#[test]
fn the_decoder_gives_the_room_of_a_large_frame_back() {
    let status = ContainerStatus {
        name: "n".into(),
        state: ContainerState::StartFailed {
            reason: "r".repeat(MAX_FRAME_BYTES - 200),
        },
    };
    let mut bytes = Vec::new();
    encode_message(&ToHost::Container { status }, &mut bytes).unwrap();
    let mut decoder = Decoder::new();
    decoder.push(&bytes);
    assert!(decoder.next::<ToHost>().unwrap().is_some());
    decoder.push(b"\x05");
    assert!(decoder.buffer.capacity() <= KEPT_CAPACITY);
}
