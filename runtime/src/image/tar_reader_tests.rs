//! Tests of reading tar streams.

use std::io::Write as _;

use proptest::prelude::*;
use tar::{Builder, EntryType};

use super::*;

fn entries(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut reader = TarReader::new(bytes);
    let mut all = Vec::new();
    while let Some(entry) = reader.next()? {
        let mut data = Vec::new();
        reader.read_to_end(&mut data)?;
        all.push((entry, data));
    }
    Ok(all)
}

fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_path("name").unwrap();
    header.set_mode(0o644);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(3);
    header.set_cksum();
    header
}

#[test]
fn long_names_and_links_are_read() {
    let mut builder = Builder::new(Vec::new());
    let long = "d/".repeat(150) + "file";
    builder
        .append_data(&mut header(EntryType::Regular, 3), &long, b"abc".as_slice())
        .unwrap();
    builder
        .append_link(&mut header(EntryType::Symlink, 0), "link", &long)
        .unwrap();
    let all = entries(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(
        (all[0].0.path.as_slice(), all[0].1.as_slice()),
        (long.as_bytes(), b"abc".as_slice())
    );
    assert_eq!((all[0].0.uid, all[0].0.gid, all[0].0.mtime), (1, 2, (3, 0)));
    assert_eq!(
        (all[1].0.kind, all[1].0.link.as_slice()),
        (Kind::Symlink, long.as_bytes())
    );
}

#[test]
fn pax_records_override_the_header() {
    let mut builder = Builder::new(Vec::new());
    let records = [
        ("path", b"other\xff".as_slice()),
        ("uid", b"70000"),
        ("mtime", b"12.5"),
        ("SCHILY.xattr.user.a", b"x\ny=z\n"),
        ("comment", b"ignored"),
    ];
    builder.append_pax_extensions(records).unwrap();
    builder
        .append(&header(EntryType::Regular, 2), b"hi".as_slice())
        .unwrap();
    builder
        .append(&header(EntryType::Regular, 0), b"".as_slice())
        .unwrap();
    let all = entries(&builder.into_inner().unwrap()).unwrap();
    let entry = &all[0].0;
    assert_eq!(
        (entry.path.as_slice(), entry.uid, entry.gid),
        (b"other\xff".as_slice(), 70000, 2)
    );
    assert_eq!(entry.mtime, (12, 500_000_000));
    assert_eq!(entry.xattrs, [(b"user.a".to_vec(), b"x\ny=z\n".to_vec())]);
    assert_eq!(all[1].0.path, b"name", "records hold for one entry only");
}

#[test]
fn a_pax_size_decides_how_much_data_follows() {
    let mut builder = Builder::new(Vec::new());
    builder
        .append_pax_extensions([("size", b"4".as_slice())])
        .unwrap();
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(1024);
    bytes.extend_from_slice(header(EntryType::Regular, 0).as_bytes());
    bytes.write_all(b"data").unwrap();
    bytes.resize(2048, 0);
    bytes.extend_from_slice(header(EntryType::Regular, 0).as_bytes());
    let all = entries(&bytes).unwrap();
    assert_eq!((all.len(), all[0].1.as_slice()), (2, b"data".as_slice()));
}

#[test]
fn extensions_are_bounded_before_they_are_read() {
    for kind in [
        EntryType::XHeader,
        EntryType::XGlobalHeader,
        EntryType::GNULongName,
        EntryType::GNULongLink,
    ] {
        let error = entries(header(kind, MAX_EXTENSION_BYTES + 1).as_bytes()).unwrap_err();
        assert!(error.to_string().contains("longer than 1 MiB"), "{error}");
    }
}

#[test]
fn broken_archives_are_refused() {
    let good = header(EntryType::Regular, 0);
    let mut wrong = *good.as_bytes();
    wrong[0] ^= 1;
    assert!(
        entries(&wrong)
            .unwrap_err()
            .to_string()
            .contains("wrong checksum")
    );
    assert!(matches!(entries(&good.as_bytes()[..100]), Err(TarError::Io(_))));
    assert!(matches!(
        entries(header(EntryType::new(b'Q'), 0).as_bytes()),
        Err(TarError::Kind('Q'))
    ));
    let lone = [&[0; 512][..], good.as_bytes()].concat();
    assert!(
        entries(&lone)
            .unwrap_err()
            .to_string()
            .contains("lone zero block")
    );
    for records in [
        b"99 a=b\n".as_slice(),
        b"0 a=b\n",
        b"7 a=bcd",
        b"6 abc\n",
        b"99999999999999999999 a=b\n",
        b"x",
    ] {
        let mut extensions = Extensions::default();
        assert!(
            pax(records, &mut extensions).is_err(),
            "{}",
            String::from_utf8_lossy(records)
        );
    }
    let mut extensions = Extensions::default();
    assert!(pax(b"22 GNU.sparse.major=x\n", &mut extensions).is_err());
}

#[test]
fn sparse_maps_must_be_in_order_and_in_bounds() {
    let sparse = |size: u64, stored: u64, parts: &[(u64, u64)]| {
        let mut it = header(EntryType::GNUSparse, stored);
        let gnu = it.as_gnu_mut().unwrap();
        gnu.set_real_size(size);
        for (slot, &(offset, length)) in gnu.sparse.iter_mut().zip(parts) {
            slot.set_offset(offset);
            slot.set_length(length);
        }
        it.set_cksum();
        let mut bytes = it.as_bytes().to_vec();
        bytes.resize(512 + 1024, 7);
        entries(&bytes[..512 + usize::try_from(stored.next_multiple_of(512)).unwrap()])
    };
    assert_eq!(
        sparse(100, 20, &[(0, 10), (50, 10)]).unwrap()[0].0.segments,
        [(0, 10), (50, 10)]
    );
    assert!(sparse(100, 20, &[(50, 10), (0, 10)]).is_err());
    assert!(sparse(100, 20, &[(0, 10), (95, 10)]).is_err());
    assert!(sparse(100, 10, &[(0, 10), (50, 10)]).is_err());
    assert!(sparse(u64::MAX, 20, &[(u64::MAX - 5, 20)]).is_err());
}

#[test]
fn numbers_are_octal_or_binary_and_never_wrap() {
    assert_eq!(numeric(b"0000644\0"), Some(0o644));
    assert_eq!(numeric(b"   644 \0"), Some(0o644));
    assert_eq!(numeric(b"\0\0\0\0\0\0\0\0"), Some(0));
    assert_eq!(numeric(b"0000648\0"), None);
    assert_eq!(numeric(b"\x80\0\0\0\0\0\x01\x02"), Some(258));
    assert_eq!(numeric(b"\xff\xff\xff\xff\xff\xff\xff\xff"), None);
    assert_eq!(numeric(b"\x81\0\0\0\0\0\0\0\0\0\0\0"), None, "wider than 64 bits");
    assert_eq!(pax_time(b"-1.5"), Some((0, 0)));
    assert_eq!(pax_time(b"1.0000000019"), Some((1, 1)));
    assert_eq!(pax_time(b"1.x"), None);
}

proptest! {
    #[test]
    fn any_header_is_an_entry_or_an_error(noise in prop::collection::vec(any::<u8>(), 512..513), flag in prop::sample::select(b"01234567SxgLK\0?".to_vec())) {
        let mut block: [u8; 512] = noise.try_into().unwrap();
        block[156] = flag;
        // Plausible numbers, so that what comes after them is reached.
        block[124..136].copy_from_slice(b"00000000100\0");
        let sum = checksum(&block);
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut bytes = block.to_vec();
        bytes.resize(2048, b'1');
        let _ = entries(&bytes);
    }

    #[test]
    fn any_pax_records_are_read_or_refused(records in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = pax(&records, &mut Extensions::default());
    }
}
