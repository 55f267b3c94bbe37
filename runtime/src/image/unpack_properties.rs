//! Properties of unpacking: whatever a layer says.

use proptest::prelude::*;

use super::*;

fn hostile_name() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        Just("a"),
        Just("b"),
        Just("c"),
        Just(".."),
        Just("."),
        Just(""),
        Just("outside"),
        Just("secret"),
        Just(".wh.a"),
        Just(".wh.b"),
        Just(".wh..wh..opq"),
        Just(".wh..."),
    ];
    prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/").into_bytes())
}

fn hostile_link(home: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    prop_oneof![
        hostile_name(),
        Just(format!("{home}/outside").into_bytes()),
        Just(format!("{home}/outside/secret").into_bytes()),
        Just(b"../outside".to_vec()),
        Just(b"../../../../../../../../proc/self/cwd".to_vec()),
        Just(b"/".to_vec()),
        Just(b"a/b".to_vec()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// Whatever the layers say, nothing outside of the tree changes, gains a link, or is read into it.
    #[test]
    fn nothing_outside_is_ever_touched(
        entries in prop::collection::vec((0_u8..7, hostile_name(), hostile_link("@HOME@")), 1..14),
        split in 0_usize..14,
    ) {
        if !is_root() {
            return Ok(());
        }
        let image = Image::new();
        let before = image.outside();
        let home = image.home.path().to_str().unwrap();
        let kinds = [FILE, DIR, LINK, LINK, HARD, EntryType::Fifo, EntryType::Block];
        let entries: Vec<_> = entries
            .into_iter()
            .map(|(kind, name, link)| {
                let link = String::from_utf8(link).unwrap().replace("@HOME@", home).into_bytes();
                (kinds[usize::from(kind)], name, link)
            })
            .collect();
        let mut unpacker = Unpacker::new(&image.path(""), MIB, anything()).unwrap();
        for layer in [&entries[..split.min(entries.len())], &entries[split.min(entries.len())..]] {
            // Each entry as a layer's last one, so that an entry that is refused does not spare the next ones.
            for (kind, name, value) in layer {
                let value = if *kind == DIR { b"".as_slice() } else { value };
                let _ = unpacker.layer(file_of(&tar_of(&[(*kind, name, value)])), Compression::None);
            }
            let specs: Vec<Spec<'_>> = layer.iter().map(|(kind, name, value)| {
                (*kind, name.as_slice(), if *kind == DIR { b"".as_slice() } else { value.as_slice() })
            }).collect();
            let _ = unpacker.layer(file_of(&tar_of(&specs)), Compression::None);
        }
        unpacker.finish().unwrap();
        prop_assert_eq!(image.outside(), before);
    }

    #[test]
    fn any_bytes_are_a_layer_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        if is_root() {
            let image = Image::new();
            let _ = Unpacker::new(&image.path(""), MIB, anything()).unwrap().layer(file_of(&bytes), Compression::None);
        }
    }
}
