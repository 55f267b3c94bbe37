//! The machine's drives: found by serial number, mounted once each.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

/// The writable drive is mounted here.
pub(crate) const SCRATCH: &str = "/run/berth/scratch";
/// Image drives are mounted in folders of this one, named after their serial numbers.
const IMAGES: &str = "/run/berth/images";
/// A serial number is at most 20 bytes (virtio 1.3, 5.2.6, `VIRTIO_BLK_T_GET_ID`).
const MAX_SERIAL_BYTES: usize = 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum DriveError {
    #[error("drive serial {0:?} is not 1 to {MAX_SERIAL_BYTES} letters, digits, dots, dashes or underscores")]
    Serial(String),
    #[error("there is no drive with the serial {0:?}")]
    Missing(String),
    #[error("cannot list the drives: {0}")]
    List(io::Error),
    #[error("cannot make {path}: {source}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot mount drive {serial:?} ({device}) as {fstype}: {source}")]
    Mount {
        serial: String,
        device: PathBuf,
        fstype: &'static str,
        source: nix::Error,
    },
}

/// Mounts a root image read-only, unless another container did so already, and says where.
pub(crate) fn mount_image(serial: &str) -> Result<PathBuf, DriveError> {
    check_serial(serial)?;
    let target = Path::new(IMAGES).join(serial);
    if !target.exists() {
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        attach(serial, "erofs", &target, flags, "")?;
    }
    Ok(target)
}

/// Mounts the writable drive at [`SCRATCH`]. The host made its file system; filling its inode tables in the
/// background would only write zeros that nobody reads.
pub(crate) fn mount_scratch(serial: &str) -> Result<(), DriveError> {
    check_serial(serial)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    attach(serial, "ext4", Path::new(SCRATCH), flags, "noinit_itable")
}

fn check_serial(serial: &str) -> Result<(), DriveError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let fits = (1..=MAX_SERIAL_BYTES).contains(&serial.len()) && serial.chars().all(plain);
    if fits && !serial.starts_with('.') {
        Ok(())
    } else {
        Err(DriveError::Serial(serial.to_owned()))
    }
}

fn attach(
    serial: &str,
    fstype: &'static str,
    target: &Path,
    flags: MsFlags,
    options: &str,
) -> Result<(), DriveError> {
    let device = find(Path::new("/sys/block"), serial)?;
    fs::create_dir_all(target).map_err(|source| DriveError::Directory {
        path: target.to_owned(),
        source,
    })?;
    mount(Some(&device), target, Some(fstype), flags, Some(options)).map_err(|source| {
        // A folder left behind would look like a mounted image to the next container.
        let _ = fs::remove_dir(target);
        DriveError::Mount {
            serial: serial.to_owned(),
            device,
            fstype,
            source,
        }
    })
}

fn find(sys_block: &Path, serial: &str) -> Result<PathBuf, DriveError> {
    for entry in fs::read_dir(sys_block).map_err(DriveError::List)? {
        let name = entry.map_err(DriveError::List)?.file_name();
        if !name.to_string_lossy().starts_with("vd") {
            continue;
        }
        let found = fs::read_to_string(sys_block.join(&name).join("serial")).unwrap_or_default();
        if found.trim_end_matches(['\0', '\n']) == serial {
            return Ok(Path::new("/dev").join(name));
        }
    }
    Err(DriveError::Missing(serial.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_is_found_by_its_serial_and_not_by_its_place() {
        let sys = tempfile::tempdir().unwrap();
        for (name, serial) in [("vda", "image0\n"), ("vdb", "scratch"), ("loop0", "image1")] {
            fs::create_dir(sys.path().join(name)).unwrap();
            fs::write(sys.path().join(name).join("serial"), serial).unwrap();
        }
        assert_eq!(find(sys.path(), "scratch").unwrap(), Path::new("/dev/vdb"));
        assert_eq!(find(sys.path(), "image0").unwrap(), Path::new("/dev/vda"));
        assert!(matches!(find(sys.path(), "image1"), Err(DriveError::Missing(_))));
        assert!(matches!(find(sys.path(), "image"), Err(DriveError::Missing(_))));
    }

    #[test]
    fn serials_cannot_be_paths() {
        assert!(check_serial("image-0_a.b").is_ok());
        for bad in [
            "",
            "..",
            ".hidden",
            "a/b",
            "a b",
            "a:b",
            "abcdefghijklmnopqrstu",
            "\u{e9}",
        ] {
            assert!(matches!(check_serial(bad), Err(DriveError::Serial(_))), "{bad:?}");
        }
    }
}
