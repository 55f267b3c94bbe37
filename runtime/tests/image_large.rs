//! An image of 100,000 files in 50 layers: its root file system, mounted, equals what umoci unpacks.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod image_support;

use std::process::Command;

use image_support::{LayerBuilder, Mounted, Packing, have, layout, pull, run, see, store};
use tar::EntryType;

const LAYERS: usize = 50;
const FILES_OF_A_LAYER: usize = 2000;

/// Each layer has files of its own, replaces one of the layer below, deletes one, and gives one a second name.
fn layers() -> Vec<(Vec<u8>, Packing)> {
    let layer = |number: usize| {
        let mut layer = LayerBuilder::new().dir(&format!("l{number}/"));
        for file in 0..FILES_OF_A_LAYER {
            let name = format!("l{number}/d{}/f{file}", file / 100);
            if file % 100 == 0 {
                layer = layer.dir(&format!("l{number}/d{}/", file / 100));
            }
            layer = layer.entry(EntryType::Regular, &name, name.as_bytes(), |header| {
                header.set_mode(if file % 500 == 0 { 0o4755 } else { 0o640 });
                header.set_uid(file as u64);
                header.set_gid(number as u64);
            });
        }
        if let Some(below) = number.checked_sub(1) {
            layer = layer
                .file(&format!("l{below}/d1/f101"), format!("from {number}").as_bytes())
                .file(&format!("l{below}/d2/.wh.f202"), b"")
                .entry(
                    EntryType::Link,
                    &format!("l{number}/link"),
                    format!("l{below}/d3/f303").as_bytes(),
                    |_| {},
                );
        }
        // umoci of Debian knows no zstd.
        let packing = [Packing::Gzip, Packing::Plain][number % 2];
        (layer.tar(), packing)
    };
    (0..LAYERS).map(layer).collect()
}

#[tokio::test]
async fn an_image_of_a_hundred_thousand_files_is_what_umoci_unpacks() {
    if !have(&["umoci", "mkfs.erofs", "mount"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let layout = layout(&home.path().join("layout"), "v1", &layers());
    let image = pull(
        &store(&home.path().join("store"), &[]),
        &format!("oci:{}:v1", layout.dir.display()),
    )
    .await
    .unwrap();
    let bundle = home.path().join("bundle");
    run(Command::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:v1", layout.dir.display()))
        .arg(&bundle));
    let Some(mounted) = Mounted::new(&image.rootfs) else {
        return;
    };
    let (ours, theirs) = (see(mounted.0.path()), see(&bundle.join("rootfs")));
    let files = ours.values().filter(|seen| seen.links > 0).count();
    // Each layer but the first adds a name and takes one away.
    assert_eq!(files, LAYERS * FILES_OF_A_LAYER);
    let paths = ours.keys().chain(theirs.keys());
    let different: Vec<_> = paths
        .filter(|path| ours.get(*path) != theirs.get(*path))
        .take(5)
        .collect();
    assert!(different.is_empty(), "{different:?}");
}
