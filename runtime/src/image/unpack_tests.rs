//! Tests of applying layers. They change owners, so they need root; without it they say so and pass.

use std::collections::BTreeMap;
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink as make_link};
use std::path::PathBuf;

use tar::{EntryType, Header};

use super::*;

const MIB: u64 = 1 << 20;

fn is_root() -> bool {
    let root = Uid::effective().is_root();
    if !root {
        eprintln!("SKIPPED: unpacking changes owners, which needs root");
    }
    root
}

/// As if the disk had no end.
fn anything() -> Allow {
    Box::new(|_| Ok(()))
}

/// One entry of a test layer: type, name, link or content.
type Spec<'a> = (EntryType, &'a [u8], &'a [u8]);

const FILE: EntryType = EntryType::Regular;
const DIR: EntryType = EntryType::Directory;
const LINK: EntryType = EntryType::Symlink;
const HARD: EntryType = EntryType::Link;

/// Writes raw headers, as the tar crate's own builder refuses hostile names.
fn block(
    out: &mut Vec<u8>,
    kind: EntryType,
    name: &[u8],
    link: &[u8],
    data: &[u8],
    change: impl Fn(&mut Header),
) {
    let mut header = Header::new_gnu();
    let old = header.as_old_mut();
    old.name[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    old.linkname[..link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(if kind == DIR { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    change(&mut header);
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

fn tar_of(specs: &[Spec<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for &(kind, name, value) in specs {
        if name.len() > 100 {
            block(
                &mut out,
                EntryType::GNULongName,
                b"././@LongLink",
                b"",
                name,
                |_| {},
            );
        }
        let is_link = kind == LINK || kind == HARD;
        let (link, data) = if is_link {
            (value, b"".as_slice())
        } else {
            (b"".as_slice(), value)
        };
        block(&mut out, kind, name, link, data, |_| {});
    }
    out.extend_from_slice(&[0; 1024]);
    out
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

struct Image {
    home: tempfile::TempDir,
}

impl Image {
    /// `home/root` is the tree; `home/outside` must never change.
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("root")).unwrap();
        std::fs::create_dir(home.path().join("outside")).unwrap();
        std::fs::write(home.path().join("outside/secret"), "secret").unwrap();
        Self { home }
    }

    fn apply(&self, layers: &[&[Spec<'_>]]) -> Result<Unpacked, LayerError> {
        let tars: Vec<_> = layers.iter().map(|specs| tar_of(specs)).collect();
        self.apply_tars(&tars, MIB)
    }

    fn apply_tars(&self, tars: &[Vec<u8>], limit: u64) -> Result<Unpacked, LayerError> {
        let mut unpacker = Unpacker::new(&self.path(""), limit, anything())?;
        for tar in tars {
            let diff_id = unpacker.layer(file_of(tar), Compression::None)?;
            assert_eq!(diff_id, Digest::of(tar));
        }
        unpacker.finish()
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.home.path().join("root").join(inside)
    }

    fn read(&self, inside: &str) -> String {
        std::fs::read_to_string(self.path(inside)).unwrap_or_else(|error| format!("<{error}>"))
    }

    fn exists(&self, inside: &str) -> bool {
        self.path(inside).symlink_metadata().is_ok()
    }

    /// Everything outside of the tree that could have been touched.
    fn outside(&self) -> BTreeMap<PathBuf, (u32, u64, i64, u64, Vec<u8>)> {
        let mut found = BTreeMap::new();
        for folder in [self.home.path().to_owned(), self.home.path().join("outside")] {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path != self.path("").components().as_path() {
                    let it = path.symlink_metadata().unwrap();
                    let content = if it.is_file() {
                        std::fs::read(&path).unwrap()
                    } else {
                        Vec::new()
                    };
                    found.insert(
                        path,
                        (it.mode(), it.nlink(), it.mtime(), u64::from(it.uid()), content),
                    );
                }
            }
        }
        found
    }
}

#[test]
fn upper_layers_replace_and_hide_what_lower_ones_have() {
    if !is_root() {
        return;
    }
    let image = Image::new();
    let lower: &[Spec<'_>] = &[
        (DIR, b"etc/", b""),
        (FILE, b"etc/a", b"lower"),
        (FILE, b"etc/b", b"lower"),
        (DIR, b"opt/", b""),
        (FILE, b"opt/old", b"lower"),
        (DIR, b"opt/deep/", b""),
        (FILE, b"opt/deep/old", b"lower"),
        (DIR, b"was-dir/", b""),
        (FILE, b"was-dir/x", b""),
        (FILE, b"was-file", b""),
    ];
    let upper: &[Spec<'_>] = &[
        (FILE, b"etc/a", b"upper"),
        (FILE, b"etc/.wh.b", b""),
        // The new entry comes before the mark that hides the old ones beside it.
        (FILE, b"opt/deep/new", b"upper"),
        (FILE, b"opt/.wh..wh..opq", b""),
        (FILE, b"was-dir", b"now a file"),
        (DIR, b"was-file/", b""),
        (FILE, b".wh.never-was", b""),
        (FILE, b"no/where/.wh.x", b""),
        (FILE, b".wh..wh.plnk", b""),
    ];
    image.apply(&[lower, upper]).unwrap();
    assert_eq!(image.read("etc/a"), "upper");
    assert!(!image.exists("etc/b") && !image.exists("etc/.wh.b"));
    assert!(!image.exists("opt/old") && !image.exists("opt/deep/old"));
    assert_eq!(image.read("opt/deep/new"), "upper");
    assert_eq!(image.read("was-dir"), "now a file");
    assert!(image.path("was-file").is_dir());
    assert!(!image.exists("no"), "a whiteout makes no directories");
}

#[test]
fn a_whiteout_spares_what_its_own_layer_brings() {
    if !is_root() {
        return;
    }
    let image = Image::new();
    image
        .apply(&[
            &[(DIR, b"d/", b""), (FILE, b"d/old", b"")],
            &[(DIR, b"d/", b""), (FILE, b"d/new", b""), (FILE, b".wh.d", b"")],
        ])
        .unwrap();
    assert!(image.exists("d/new") && !image.exists("d/old"));
}

#[test]
fn links_are_made_but_never_followed_out() {
    if !is_root() {
        return;
    }
    let image = Image::new();
    let outside = image.home.path().join("outside");
    let outside = outside.to_str().unwrap().as_bytes();
    let before = image.outside();
    // A parent that is a link resolves within the tree, whatever it says.
    let specs: &[Spec<'_>] = &[
        (LINK, b"abs", outside),
        (LINK, b"up", b"../../../outside"),
        (FILE, b"target", b"inside"),
        (LINK, b"file", b"target"),
        (FILE, b"file", b"replaces the link"),
    ];
    image.apply(&[specs]).unwrap();
    assert_eq!(image.read("target"), "inside");
    assert_eq!(image.read("file"), "replaces the link");
    for name in [b"abs/secret".as_slice(), b"up/secret"] {
        let error = image
            .apply(&[specs, &[(FILE, name, b"overwritten")]])
            .unwrap_err();
        assert!(error.to_string().contains("not a directory"), "{error}");
    }
    assert_eq!(image.outside(), before);

    let image = Image::new();
    image
        .apply(&[&[
            (DIR, b"run/", b""),
            (DIR, b"var/", b""),
            (LINK, b"var/run", b"/run"),
            (FILE, b"var/run/pid", b"1"),
        ]])
        .unwrap();
    assert_eq!(image.read("run/pid"), "1");
}

#[test]
fn hard_links_stay_within_the_tree() {
    if !is_root() {
        return;
    }
    let image = Image::new();
    image
        .apply(&[
            &[(FILE, b"a", b"1"), (LINK, b"s", b"a")],
            &[(HARD, b"b", b"/a"), (HARD, b"s2", b"s"), (HARD, b"a", b"a")],
        ])
        .unwrap();
    assert_eq!(
        image.path("a").metadata().unwrap().ino(),
        image.path("b").metadata().unwrap().ino()
    );
    assert!(image.path("s2").is_symlink());

    for (target, reason) in [
        (b"../outside/secret".as_slice(), "\"..\""),
        (b"missing", "not in the image"),
        (b"d", "hard link to a directory"),
        (b"", "not in the image"),
    ] {
        let error = image
            .apply(&[&[(DIR, b"d/", b""), (HARD, b"h", target)]])
            .unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
    // Through a link that points out.
    let image = Image::new();
    make_link(image.home.path().join("outside"), image.path("out")).unwrap();
    let error = image.apply(&[&[(HARD, b"h", b"out/secret")]]).unwrap_err();
    assert!(error.to_string().contains("not in the image"), "{error}");
}

#[test]
fn hostile_names_are_refused() {
    if !is_root() {
        return;
    }
    let deep = b"d/".repeat(300);
    // One more than mkfs.erofs can be trusted with.
    let long = b"n".repeat(255);
    let longer = b"name/".repeat(1000);
    for (name, reason) in [
        (b"../x".as_slice(), "\"..\""),
        (b"a/../../x", "\"..\""),
        (b"/..", "\"..\""),
        (b".wh...", "whiteout of nothing"),
        (b".wh.", "whiteout of nothing"),
        (b"", "the root can only be a directory"),
        (b"/", "the root"),
        (&deep, "too deep"),
        (&long, "longer than 254 bytes"),
        (&longer, "too long"),
    ] {
        let kind = if name == b"/" { LINK } else { FILE };
        let result = Image::new().apply(&[&[(kind, name, b"")]]);
        let error = result
            .expect_err(&String::from_utf8_lossy(name))
            .to_string()
            .to_lowercase();
        assert!(
            error.contains(reason),
            "{}: {error}",
            String::from_utf8_lossy(name)
        );
    }
}

#[test]
fn links_do_not_hide_depth() {
    if !is_root() {
        return;
    }
    let image = Image::new();
    let down = b"d/".repeat(200);
    let mut again = b"l/".to_vec();
    again.extend_from_slice(&b"e/".repeat(100));
    let link = b"d/".repeat(45);
    let layer: &[Spec<'_>] = &[(DIR, &down, b""), (LINK, b"l", &link)];
    image.apply(&[layer, &[(FILE, &again, b"")]]).unwrap();
    let more = [&b"l/"[..], &b"e/".repeat(240)].concat();
    let error = image.apply(&[layer, &[(DIR, &more, b"")]]).unwrap_err();
    assert!(error.to_string().contains("too deep"), "{error}");
}

#[test]
fn metadata_is_kept() {
    if !is_root() {
        return;
    }
    let image = Image::new();
    let mut tar = Vec::new();
    // VFS_CAP_REVISION_2 with CAP_NET_BIND_SERVICE, effective; it has newlines' neighbours and NULs in it.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut records = Vec::new();
    for (key, value) in [
        (
            b"SCHILY.xattr.security.capability".as_slice(),
            capability.as_slice(),
        ),
        (b"SCHILY.xattr.user.note", b"two\nlines"),
        (b"SCHILY.xattr.trusted.overlay.opaque", b"y"),
        (b"mtime", b"1234567890.25"),
    ] {
        let body = key.len() + value.len() + 3;
        let length = (body..body + 6)
            .find(|length| body + length.to_string().len() == *length)
            .unwrap();
        records.extend_from_slice(format!("{length} ").as_bytes());
        records.extend_from_slice(&[key, b"=", value, b"\n"].concat());
    }
    block(&mut tar, EntryType::XHeader, b"pax", b"", &records, |_| {});
    block(&mut tar, FILE, b"bin\xff", b"", b"x", |header| {
        header.set_mode(0o4755);
        header.set_uid(1000);
        header.set_gid(3_000_000_000);
    });
    block(&mut tar, EntryType::Fifo, b"pipe", b"", b"", |header| {
        header.set_mode(0o620)
    });
    block(&mut tar, EntryType::Char, b"null", b"", b"", |_| {});
    block(&mut tar, DIR, b"tmp/", b"", b"", |header| header.set_mode(0o1777));
    block(&mut tar, FILE, b"tmp/implied/file", b"", b"", |_| {});
    let unpacked = image.apply_tars(&[tar], MIB).unwrap();
    assert_eq!(
        (unpacked.bytes, unpacked.entries, unpacked.skipped_devices),
        (1, 6, 1)
    );

    let path = image.path("").join(std::ffi::OsStr::from_bytes(b"bin\xff"));
    let it = path.metadata().unwrap();
    assert_eq!(
        (it.mode() & 0o7777, it.uid(), it.gid()),
        (0o4755, 1000, 3_000_000_000)
    );
    assert_eq!((it.mtime(), it.mtime_nsec()), (1_234_567_890, 250_000_000));
    assert_eq!(
        xattr::get(&path, "security.capability").unwrap().unwrap(),
        capability
    );
    assert_eq!(xattr::get(&path, "user.note").unwrap().unwrap(), b"two\nlines");
    assert_eq!(xattr::get(&path, "trusted.overlay.opaque").unwrap(), None);
    assert_eq!(image.path("pipe").metadata().unwrap().mode(), 0o010_620);
    assert!(!image.exists("null"));
    let tmp = image.path("tmp").metadata().unwrap();
    assert_eq!(
        (tmp.permissions().mode() & 0o7777, tmp.mtime()),
        (0o1777, 1_000_000_000)
    );
    let implied = image.path("tmp/implied").metadata().unwrap();
    assert_eq!((implied.mode() & 0o7777, implied.mtime()), (0o755, 0));
}

#[test]
fn ids_that_mean_no_change_are_refused() {
    if !is_root() {
        return;
    }
    for id in [u64::from(u32::MAX), 1 << 33] {
        let mut tar = Vec::new();
        block(&mut tar, FILE, b"x", b"", b"", |header| header.set_uid(id));
        let error = Image::new().apply_tars(&[tar], MIB).unwrap_err();
        assert!(error.to_string().contains("out of range"), "{error}");
    }
}

#[test]
fn sparse_files_are_filled_with_holes_and_count_in_full() {
    if !is_root() {
        return;
    }
    let mut tar = Vec::new();
    block(&mut tar, EntryType::GNUSparse, b"s", b"", b"abcd", |header| {
        let gnu = header.as_gnu_mut().unwrap();
        gnu.set_real_size(10_000);
        gnu.sparse[0].set_offset(0);
        gnu.sparse[0].set_length(2);
        gnu.sparse[1].set_offset(5000);
        gnu.sparse[1].set_length(2);
    });
    let image = Image::new();
    assert_eq!(image.apply_tars(&[tar.clone()], 10_000).unwrap().bytes, 10_000);
    let content = std::fs::read(image.path("s")).unwrap();
    assert_eq!(
        (content.len(), &content[..3], &content[4999..5003]),
        (10_000, &b"ab\0"[..], &b"\0cd\0"[..])
    );
    assert!(matches!(
        Image::new().apply_tars(&[tar], 9_999),
        Err(LayerError::TooLarge)
    ));
}

#[test]
fn bombs_are_stopped() {
    if !is_root() {
        return;
    }
    // More bytes than allowed, over two layers, even where the second replaces the first.
    let half = vec![1; 600];
    let layer: &[Spec<'_>] = &[(FILE, b"x", &half)];
    let tars = [tar_of(layer), tar_of(layer)];
    assert!(matches!(
        Image::new().apply_tars(&tars, 1199),
        Err(LayerError::TooLarge)
    ));
    assert!(Image::new().apply_tars(&tars, 1200).is_ok());
    // A size that the stream does not have.
    let mut tar = Vec::new();
    block(&mut tar, FILE, b"x", b"", b"", |header| header.set_size(1 << 40));
    assert!(matches!(
        Image::new().apply_tars(&[tar.clone()], MIB),
        Err(LayerError::TooLarge)
    ));
    assert!(matches!(
        Image::new().apply_tars(&[tar], 1 << 41),
        Err(LayerError::Read(_))
    ));
    // More entries than allowed, stated or implied.
    let image = Image::new();
    let mut unpacker = Unpacker::new(&image.path(""), MIB, anything()).unwrap();
    unpacker.max_entries = 10;
    let error = unpacker.layer(
        file_of(&tar_of(&[(FILE, b"a/b/c/d/e/f/g/h/i/j/k", b"")])),
        Compression::None,
    );
    assert!(matches!(error, Err(LayerError::TooManyEntries { limit: 10 })));
    // Nothing but zeros after the end of the archive.
    let mut unpacker = Unpacker::new(&image.path(""), MIB, anything()).unwrap();
    unpacker.stream_budget = 4096;
    let error = unpacker.layer(file_of(&vec![0; 8192]), Compression::None);
    assert!(matches!(error, Err(LayerError::TooLarge)));
}

#[test]
fn content_must_be_compressed_as_declared() {
    if !is_root() {
        return;
    }
    let tar = tar_of(&[(FILE, b"x", b"x")]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(tar.as_slice(), 1).unwrap();
    let all = [
        (Compression::None, &tar),
        (Compression::Gzip, &gzip),
        (Compression::Zstd, &zstd),
    ];
    for (declared, _) in all {
        for (found, bytes) in all {
            let image = Image::new();
            let result = Unpacker::new(&image.path(""), MIB, anything())
                .unwrap()
                .layer(file_of(bytes), declared);
            if declared == found {
                assert_eq!(result.unwrap(), Digest::of(&tar));
            } else {
                assert!(
                    matches!(result, Err(LayerError::Compression { .. })),
                    "{declared:?} {found:?}"
                );
            }
        }
    }
    let cut = &gzip[..gzip.len() - 12];
    let image = Image::new();
    let result = Unpacker::new(&image.path(""), MIB, anything())
        .unwrap()
        .layer(file_of(cut), Compression::Gzip);
    assert!(matches!(result, Err(LayerError::Read(_))));
}

#[path = "unpack_properties.rs"]
mod properties;
