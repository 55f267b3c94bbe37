//! The machine's drives: found by serial number, mounted once each.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};

/// The writable drive is mounted here.
pub(crate) const SCRATCH: &str = "/run/berth/scratch";
/// Image drives are mounted in folders of this one, named after their serial numbers.
const IMAGES: &str = "/run/berth/images";
/// Drives of volumes are mounted in folders of this one, named after the volumes.
const VOLUMES: &str = "/run/berth/volumes";
/// A serial number is at most 20 bytes (virtio 1.3, 5.2.6, `VIRTIO_BLK_T_GET_ID`).
const MAX_SERIAL_BYTES: usize = 20;

/// What a drive without a disk has, so that there is something to drive.
const PLACEHOLDER_SECTORS: u64 = 1;
const DISK_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum DriveError {
    #[error("drive serial {0:?} is not 1 to {MAX_SERIAL_BYTES} letters, digits, dots, dashes or underscores")]
    Serial(String),
    #[error("there is no drive with the serial {0:?}")]
    Missing(String),
    #[error("there is still no disk in the drive {0:?}")]
    NoDisk(String),
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
/// background would only write zeros that nobody reads. Nothing on it outlives the machine, so nothing waits until the host has
/// it on its disk (`nobarrier`): not the mount, and no program's `fsync`.
pub(crate) fn mount_scratch(serial: &str) -> Result<(), DriveError> {
    check_serial(serial)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    attach(
        serial,
        "ext4",
        Path::new(SCRATCH),
        flags,
        "noinit_itable,nobarrier",
    )
}

/// Mounts the drive of a volume, whose name is plain. Its file system may be of any age and from a guest that crashed: its
/// journal is replayed here, and what cannot be mounted is an error. Inode tables are as with [`mount_scratch`]; what is
/// deleted is given back to the host.
pub(crate) fn mount_volume(volume: &str, serial: &str) -> Result<(), DriveError> {
    check_serial(serial)?;
    let target = volume_mount(volume);
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    attach(
        serial,
        "ext4",
        &target,
        flags,
        "discard,noinit_itable,errors=remount-ro",
    )?;
    // A new volume is empty: programs that want an empty folder to begin with are content. Only an empty folder goes.
    let _ = fs::remove_dir(target.join("lost+found"));
    Ok(())
}

/// Where a volume with a drive of its own is mounted; nothing is there for any other one.
pub(crate) fn volume_mount(volume: &str) -> PathBuf {
    Path::new(VOLUMES).join(volume)
}

/// Where writable drives are mounted: volumes, and the task's disk.
pub(crate) fn writable_mounts() -> Vec<PathBuf> {
    let entries = fs::read_dir(VOLUMES).into_iter().flatten().flatten();
    let volumes = entries.map(|entry| entry.path());
    volumes.chain([PathBuf::from(SCRATCH)]).collect()
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
    let sys_block = Path::new("/sys/block");
    let name = find(sys_block, serial)?;
    wait_for_disk(&sys_block.join(&name), serial)?;
    let device = Path::new("/dev").join(name);
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

/// In a guest that was cloned, each drive was a disk of [`PLACEHOLDER_SECTORS`] before; its driver hears that it has
/// grown, and takes a moment.
fn wait_for_disk(drive: &Path, serial: &str) -> Result<(), DriveError> {
    let size = drive.join("size");
    let until = Instant::now() + DISK_TIMEOUT;
    loop {
        let text = fs::read_to_string(&size).unwrap_or_default();
        if text
            .trim_end()
            .parse()
            .is_ok_and(|sectors: u64| sectors > PLACEHOLDER_SECTORS)
        {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(DriveError::NoDisk(serial.to_owned()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The name of a drive among the block devices.
fn find(sys_block: &Path, serial: &str) -> Result<OsString, DriveError> {
    for entry in fs::read_dir(sys_block).map_err(DriveError::List)? {
        let name = entry.map_err(DriveError::List)?.file_name();
        if !name.to_string_lossy().starts_with("vd") {
            continue;
        }
        let found = fs::read_to_string(sys_block.join(&name).join("serial")).unwrap_or_default();
        if found.trim_end_matches(['\0', '\n']) == serial {
            return Ok(name);
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
        assert_eq!(find(sys.path(), "scratch").unwrap(), "vdb");
        assert_eq!(find(sys.path(), "image0").unwrap(), "vda");
        assert!(matches!(find(sys.path(), "image1"), Err(DriveError::Missing(_))));
        assert!(matches!(find(sys.path(), "image"), Err(DriveError::Missing(_))));
    }

    #[test]
    fn a_drive_is_waited_for_until_it_has_its_disk() {
        let drive = tempfile::tempdir().unwrap();
        let size = drive.path().join("size");
        fs::write(&size, "1\n").unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| wait_for_disk(drive.path(), "scratch"));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waiting.is_finished());
            fs::write(&size, "2048\n").unwrap();
            assert!(waiting.join().unwrap().is_ok());
        });
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
