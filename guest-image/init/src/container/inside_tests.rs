//! Nothing in a hostile root leads out of it, and missing targets are made inside.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;

struct Image {
    outside: tempfile::TempDir,
    folder: PathBuf,
    root: Root,
}

fn image() -> Image {
    let outside = tempfile::tempdir().unwrap();
    let folder = outside.path().join("root");
    fs::create_dir(&folder).unwrap();
    let root = Root::open(&folder).unwrap();
    Image {
        outside,
        folder,
        root,
    }
}

fn same(fd: &OwnedFd, path: &Path) -> bool {
    fs::canonicalize(handle_path(fd)).unwrap() == fs::canonicalize(path).unwrap()
}

#[test]
fn absolute_and_climbing_links_stay_inside() {
    let image = image();
    fs::create_dir(image.folder.join("etc")).unwrap();
    fs::write(image.folder.join("etc/hosts"), "inside").unwrap();
    fs::write(image.outside.path().join("hosts"), "outside").unwrap();
    symlink("/etc/hosts", image.folder.join("absolute")).unwrap();
    symlink("../../../../etc/hosts", image.folder.join("climbing")).unwrap();
    symlink("../hosts", image.folder.join("sibling")).unwrap();
    for name in ["absolute", "climbing"] {
        let fd = image
            .root
            .existing(Path::new(name), Links::Follow)
            .unwrap()
            .unwrap();
        assert!(same(&fd, &image.folder.join("etc/hosts")), "{name}");
    }
    assert!(
        image
            .root
            .existing(Path::new("sibling"), Links::Follow)
            .unwrap()
            .is_none()
    );
}

#[test]
fn magic_links_are_refused() {
    let image = image();
    symlink(
        format!("/proc/{}/root", std::process::id()),
        image.folder.join("escape"),
    )
    .unwrap();
    assert!(
        image
            .root
            .existing(Path::new("escape/etc"), Links::Follow)
            .unwrap()
            .is_none()
    );
    let proc = Root::open(Path::new("/proc")).unwrap();
    assert!(proc.existing(Path::new("self/root"), Links::Follow).is_err());
}

#[test]
fn links_can_be_refused_altogether() {
    let image = image();
    fs::create_dir(image.folder.join("real")).unwrap();
    symlink("real", image.folder.join("proc")).unwrap();
    assert!(image.root.directory(Path::new("/proc"), Links::Refuse).is_err());
    assert!(image.root.directory(Path::new("/proc"), Links::Follow).is_ok());
}

#[test]
fn missing_folders_are_made_inside_even_through_links() {
    let image = image();
    fs::create_dir(image.folder.join("data")).unwrap();
    symlink("/data", image.folder.join("srv")).unwrap();
    let fd = image
        .root
        .directory(Path::new("/srv/a/../b/c"), Links::Follow)
        .unwrap();
    assert!(same(&fd, &image.folder.join("data/b/c")));
    assert!(image.folder.join("data/a").is_dir());
    let top = image
        .root
        .directory(Path::new("/../../x"), Links::Follow)
        .unwrap();
    assert!(same(&top, &image.folder.join("x")));
    assert!(!image.outside.path().join("x").exists());
}

#[test]
fn a_file_in_the_place_of_a_folder_is_an_error() {
    let image = image();
    fs::write(image.folder.join("srv"), "").unwrap();
    assert!(matches!(
        image.root.directory(Path::new("/srv/a"), Links::Follow),
        Err(InsideError::Open {
            source: Errno::ENOTDIR,
            ..
        })
    ));
}

#[test]
fn links_to_nowhere_are_replaced_and_not_followed() {
    let image = image();
    fs::create_dir(image.folder.join("etc")).unwrap();
    symlink("../run/resolve/stub.conf", image.folder.join("etc/resolv.conf")).unwrap();
    symlink("/nowhere", image.folder.join("work")).unwrap();
    image.root.file(Path::new("/etc/resolv.conf")).unwrap();
    image.root.directory(Path::new("/work"), Links::Follow).unwrap();
    assert!(
        image
            .folder
            .join("etc/resolv.conf")
            .symlink_metadata()
            .unwrap()
            .is_file()
    );
    assert!(image.folder.join("work").symlink_metadata().unwrap().is_dir());
    assert!(!image.folder.join("run").exists() && !image.folder.join("nowhere").exists());
}

#[test]
fn only_bounded_regular_files_are_read() {
    let image = image();
    fs::write(image.folder.join("passwd"), b"root\xff").unwrap();
    nix::unistd::mkfifo(&image.folder.join("fifo"), Mode::S_IRWXU).unwrap();
    let read = |name: &str, limit| image.root.read(Path::new(name), limit);
    assert_eq!(read("passwd", 5).unwrap(), "root\u{fffd}");
    assert_eq!(read("missing", 5).unwrap(), "");
    assert!(matches!(read("passwd", 4), Err(InsideError::NotAFile { .. })));
    assert!(matches!(read("fifo", 5), Err(InsideError::NotAFile { .. })));
    assert!(matches!(read(".", 5), Err(InsideError::NotAFile { .. })));
}
