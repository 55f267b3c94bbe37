//! Images from OCI layouts and archives on disk: what is in the packed root file system, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod image_support;

use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use berth_runtime::image::{ImageError, ImageOptions, ImageStore, PullLimits, PullPhase};
use image_support::{
    LIMITS, LayerBuilder, Mounted, Packing, files_of, have, layout, layout_for, list, pull, run, see, small,
    store,
};
use serde_json::json;
use tar::EntryType;

/// Three layers with everything that layers can do, the last one packed like this.
fn rich(last: Packing) -> Vec<(Vec<u8>, Packing)> {
    let capability: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let busybox = std::fs::read("/bin/busybox").unwrap_or_else(|_| vec![0x7f; 70_000]);
    let base = LayerBuilder::new()
        .dir("./")
        .dir("bin/")
        .entry(EntryType::Regular, "bin/busybox", &busybox, |it| {
            it.set_mode(0o4755)
        })
        .entry(EntryType::Symlink, "bin/sh", b"busybox", |_| {})
        .entry(EntryType::Link, "bin/ls", b"bin/busybox", |it| {
            it.set_mode(0o4755)
        })
        .dir("etc/")
        .file("etc/keep", b"base")
        .file("etc/gone", b"base")
        .entry(EntryType::Regular, "etc/owned", b"x", |it| {
            it.set_uid(1000);
            it.set_gid(100_000);
        })
        .dir("opt/")
        .dir("opt/app/")
        .file("opt/app/old", b"base")
        .dir("opt/app/cache/")
        .file("opt/app/cache/old", b"base")
        .dir("run/")
        .dir("var/")
        .entry(EntryType::Symlink, "var/run", b"../run", |_| {})
        .entry(EntryType::Directory, "tmp/", b"", |it| it.set_mode(0o1777))
        .tar();
    let middle = LayerBuilder::new()
        .dir("etc/")
        .file("etc/.wh.gone", b"")
        .entry(EntryType::Link, "etc/linked", b"etc/keep", |_| {})
        .dir("opt/app/")
        .file("opt/app/.wh..wh..opq", b"")
        .file("opt/app/new", b"middle")
        .file("var/run/pid", b"through a link")
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.note", b"a\nb"),
        ])
        .file("bin/ping", b"ping")
        .entry(EntryType::Fifo, "run/pipe", b"", |it| it.set_mode(0o600))
        .tar();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let top = LayerBuilder::new()
        .entry(EntryType::Regular, "etc/keep", b"top", |it| {
            it.set_mtime(1_700_000_000)
        })
        .dir(&format!("{}/", "d".repeat(120)))
        .file(&long, b"long")
        .file("big", &vec![7; 300_000])
        .tar();
    vec![(base, Packing::Gzip), (middle, Packing::Plain), (top, last)]
}

#[tokio::test]
async fn the_packed_tree_is_what_umoci_unpacks() {
    if !have(&["umoci", "mkfs.erofs", "mount"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let layout = layout(&home.path().join("layout"), "v1", &rich(Packing::Gzip));
    let image = pull(
        &store(&home.path().join("store"), &[]),
        &format!("oci:{}:v1", layout.dir.display()),
    )
    .await
    .unwrap();
    assert_eq!(image.digest, layout.manifest);
    assert_eq!(image.config.cmd, ["/bin/busybox", "sh"]);
    assert_eq!(image.size_bytes, image.rootfs.metadata().unwrap().len());

    let bundle = home.path().join("bundle");
    run(Command::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:v1", layout.dir.display()))
        .arg(&bundle));
    let Some(mounted) = Mounted::new(&image.rootfs) else {
        return;
    };
    let (ours, theirs) = (see(mounted.0.path()), see(&bundle.join("rootfs")));
    let names =
        |tree: &std::collections::BTreeMap<std::path::PathBuf, _>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&theirs));
    for (path, seen) in &ours {
        assert_eq!(Some(seen), theirs.get(path), "{}", path.display());
    }
    // So that the comparison cannot be of two empty trees.
    let at = |path: &str| &ours[Path::new(path)];
    assert_eq!(at("bin/busybox").mode & 0o7777, 0o4755);
    assert_eq!(at("bin/ls").same_as, at("bin/busybox").same_as);
    assert_eq!(at("etc/linked").content, b"base");
    assert_eq!(at("bin/ping").xattrs.len(), 2);
    assert_eq!(at("run/pid").content, b"through a link");
    assert!(!ours.contains_key(Path::new("opt/app/old")) && ours.contains_key(Path::new("opt/app/new")));
}

#[tokio::test]
async fn archives_of_skopeo_give_the_same_image() {
    if !have(&["skopeo", "mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let layout = layout(&home.path().join("layout"), "v1", &rich(Packing::Zstd));
    let archive = home.path().join("image.tar");
    run(Command::new("skopeo")
        .args(["copy", "--quiet", "--insecure-policy"])
        .arg(format!("oci:{}:v1", layout.dir.display()))
        .arg(format!("oci-archive:{}:v1", archive.display())));
    let one = store(&home.path().join("one"), &[]);
    let two = store(&home.path().join("two"), &[]);
    let from_layout = pull(&one, &format!("oci:{}:v1", layout.dir.display()))
        .await
        .unwrap();
    let from_archive = pull(&two, &format!("oci-archive:{}", archive.display()))
        .await
        .unwrap();
    // skopeo writes a manifest of its own, and compresses the layers anew.
    assert_eq!(from_archive.config, from_layout.config);
    assert_eq!(from_archive.rootfs.file_name(), from_layout.rootfs.file_name());
    let bytes = |path: &Path| std::fs::read(path).unwrap();
    assert!(
        bytes(&from_archive.rootfs) == bytes(&from_layout.rootfs),
        "packing is not reproducible"
    );
}

#[tokio::test]
async fn images_with_the_same_layers_share_a_root_file_system() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let layers = [(LayerBuilder::new().file("x", b"x").tar(), Packing::Gzip)];
    let a = layout_for(
        &home.path().join("a"),
        "v1",
        &layers,
        "amd64",
        &json!({"Cmd": ["a"]}),
    );
    let b = layout_for(
        &home.path().join("b"),
        "v1",
        &layers,
        "amd64",
        &json!({"Cmd": ["b"]}),
    );
    let dir = home.path().join("store");
    let store = store(&dir, &[]);
    let a_reference = format!("oci:{}:v1", a.dir.display());
    let a = pull(&store, &a_reference).await.unwrap();
    let b = pull(&store, &format!("oci:{}", b.dir.display())).await.unwrap();
    assert_ne!(a.digest, b.digest);
    assert_eq!((a.config.cmd[0].as_str(), b.config.cmd[0].as_str()), ("a", "b"));
    assert_eq!(a.rootfs, b.rootfs);
    assert_eq!(list(&store).await, [a.clone(), b.clone()]);

    // Removal of one keeps what the other has.
    assert!(store.remove(&a_reference).await.unwrap().is_some());
    assert_eq!(store.remove(&a_reference).await.unwrap(), None);
    assert!(b.rootfs.exists());
    assert_eq!(list(&store).await, std::slice::from_ref(&b));
    assert_eq!(store.prune(SystemTime::UNIX_EPOCH).await.unwrap(), (vec![], 0));
    assert!(store.prune(SystemTime::now()).await.unwrap().1 >= b.size_bytes);
    assert_eq!(files_of(&dir), Vec::<String>::new());
}

#[tokio::test]
async fn a_refused_image_leaves_nothing_behind() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("store");
    let store = store(&dir, &[]);
    let escape = LayerBuilder::new()
        .file("ok", b"ok")
        .entry(EntryType::Link, "h", b"../../../etc/passwd", |_| {})
        .tar();
    let bomb = LayerBuilder::new().file("zeros", &vec![0; 3 << 20]).tar();
    let image = |name: &str, layers: &[(Vec<u8>, Packing)]| {
        format!(
            "oci:{}:v1",
            layout(&home.path().join(name), "v1", layers).dir.display()
        )
    };
    let escape = image("escape", &[(escape, Packing::Gzip)]);
    let error = pull(&store, &escape).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("entry \"h\": its link target: its path has \"..\" in it"),
        "{error}"
    );
    let bomb = image("bomb", &[(bomb, Packing::Zstd)]);
    let small = PullLimits {
        max_unpacked_bytes: 1 << 20,
    };
    let error = store.pull(&bomb, None, small, &|_| {}).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "image is larger than the 1048576 bytes of disk the task has"
    );
    assert_eq!(std::fs::read_dir(dir.join("tmp")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(dir.join("erofs")).unwrap().count(), 0);
    assert!(store.list().await.unwrap().is_empty());

    // The limit holds for an image that is packed already, too.
    pull(&store, &bomb).await.unwrap();
    let gib = PullLimits {
        max_unpacked_bytes: 1 << 30,
    };
    store.pull(&bomb, None, gib, &|_| {}).await.unwrap();
    assert!(matches!(
        store.pull(&bomb, None, small, &|_| {}).await,
        Err(ImageError::LargerThanDisk { .. })
    ));
    store.prune(SystemTime::now()).await.unwrap();
    assert_eq!(files_of(&dir), Vec::<String>::new());
}

#[tokio::test]
async fn layers_must_be_what_the_configuration_says() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let store = store(&home.path().join("store"), &[]);
    let good = small(&home.path().join("good"), "good");
    let other = small(&home.path().join("other"), "other");
    // The manifest of one with the layer of the other: every blob is what its digest says, the unpacked layer is not.
    let path = good.dir.join("blobs/sha256").join(good.manifest.hex());
    let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let layer = other.dir.join("blobs/sha256").join(other.layers[0].hex());
    manifest["layers"][0]["digest"] = json!(other.layers[0]);
    manifest["layers"][0]["size"] = json!(layer.metadata().unwrap().len());
    std::fs::copy(&layer, good.dir.join("blobs/sha256").join(other.layers[0].hex())).unwrap();
    let manifest = manifest.to_string();
    let digest = berth_runtime::image::Digest::of(manifest.as_bytes());
    std::fs::write(good.dir.join("blobs/sha256").join(digest.hex()), &manifest).unwrap();
    let entry = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": manifest.len()});
    std::fs::write(
        good.dir.join("index.json"),
        json!({"schemaVersion": 2, "manifests": [entry]}).to_string(),
    )
    .unwrap();
    let error = pull(&store, &format!("oci:{}", good.dir.display()))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, ImageError::Digest { what, .. } if what.ends_with("unpacked")),
        "{error}"
    );
}

#[tokio::test]
async fn layouts_that_are_not_are_named() {
    if !have(&[]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("store");
    let store = store(&dir, &[]);
    let nowhere = format!("oci:{}", home.path().join("nowhere").display());
    assert!(
        pull(&store, &nowhere)
            .await
            .unwrap_err()
            .to_string()
            .ends_with("nowhere: no such directory")
    );
    let empty = format!("oci:{}", home.path().display());
    assert!(
        pull(&store, &empty)
            .await
            .unwrap_err()
            .to_string()
            .ends_with("not an OCI layout (no index.json)")
    );
    let image = small(&home.path().join("layout"), "x");
    let unknown = format!("oci:{}:v2", image.dir.display());
    assert!(
        pull(&store, &unknown)
            .await
            .unwrap_err()
            .to_string()
            .ends_with(":v2: manifest unknown: not found")
    );
    let arm = layout_for(&home.path().join("arm"), "v1", &[], "arm64", &json!({}));
    let error = pull(&store, &format!("oci:{}", arm.dir.display()))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("no image for linux/amd64, only for linux/arm64"),
        "{error}"
    );
    assert!(matches!(
        pull(&store, "Not A Reference").await,
        Err(ImageError::Reference { .. })
    ));

    let options = ImageOptions {
        insecure_registries: [].into(),
        max_compressed_bytes: 1,
        ..ImageOptions::default()
    };
    let again = ImageStore::open(&dir, options)
        .err()
        .map(|error| error.to_string());
    assert!(again.is_some_and(|error| error.ends_with("another process has this image store open")));
}

#[tokio::test]
async fn what_a_crash_left_is_cleared_and_the_rest_is_kept() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("store");
    let image = small(&home.path().join("layout"), "x");
    let reference = format!("oci:{}:v1", image.dir.display());
    let first = pull(&store(&dir, &[]), &reference).await.unwrap();
    std::fs::create_dir_all(dir.join("tmp/7/deep")).unwrap();
    std::fs::write(dir.join("tmp/7/deep/file"), "x").unwrap();
    let reopened = store(&dir, &[]);
    assert_eq!(std::fs::read_dir(dir.join("tmp")).unwrap().count(), 0);
    assert_eq!(list(&reopened).await, [first]);
}

#[tokio::test]
async fn progress_goes_through_the_phases_in_order() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let layout = layout(&home.path().join("layout"), "v1", &rich(Packing::Zstd));
    let store = store(&home.path().join("store"), &[]);
    let told = std::sync::Mutex::new(Vec::new());
    let reference = format!("oci:{}", layout.dir.display());
    store
        .pull(&reference, None, LIMITS, &|progress| {
            told.lock().unwrap().push(progress)
        })
        .await
        .unwrap();
    let told = told.into_inner().unwrap();
    assert!(told.is_sorted_by_key(|progress| progress.phase));
    let last = |phase| *told.iter().rfind(|progress| progress.phase == phase).unwrap();
    let downloaded = last(PullPhase::Downloading);
    assert_eq!((downloaded.layers_done, downloaded.layers_total), (3, 3));
    assert!(downloaded.bytes_done == downloaded.bytes_total && downloaded.bytes_total > 0);
    assert_eq!(last(PullPhase::Packing).layers_done, 3);
}
