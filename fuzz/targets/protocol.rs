//! The frames between host and guest, both ways: whole, in pieces, and made again from what they said.
#![no_main]

use std::fmt::Debug;

use berth_fuzz::Input;
use berth_protocol::frame::{Decoder, Frame, decode_all};
use berth_protocol::message::{ToGuest, ToHost};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let way = input.u8();
    let piece = usize::from(input.u8()) + 1;
    let bytes = if way & 1 == 0 {
        input.rest().to_vec()
    } else {
        // Bodies with right lengths before them.
        let mut frames = Vec::new();
        while let Some(kind) = input.step() {
            let length = input.u16();
            let body = input.bytes(length.into());
            frames.extend((body.len() as u32 + 1).to_le_bytes());
            frames.push(kind);
            frames.extend(body);
        }
        frames
    };
    decode_all(&bytes);
    if way & 2 == 0 {
        check::<ToGuest>(&bytes, piece);
    } else {
        check::<ToHost>(&bytes, piece);
    }
});

fn check<M: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8], piece: usize) {
    let whole = decode::<M>(bytes, bytes.len().max(1));
    assert_eq!(decode::<M>(bytes, piece), whole, "pieces say something else");
    let mut again = Vec::new();
    for frame in &whole.0 {
        frame.encode(&mut again).expect("what was decoded can be encoded");
    }
    let said = decode::<M>(&again, again.len().max(1));
    assert_eq!(said, (whole.0, true), "encoding changes what was said");
}

/// The frames, and whether all of them were sound.
fn decode<M: DeserializeOwned>(bytes: &[u8], piece: usize) -> (Vec<Frame<M>>, bool) {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, false),
            }
        }
    }
    (frames, true)
}
