//! What this host has for tasks: processors, memory, and disk where the machines' folders are.

use std::fs;
use std::path::Path;

use super::extents::taken_bytes;
use super::{SCRATCH_FILE, at};
use crate::task::host::{HostError, Resources};

/// CPU units of a processor, as ECS counts them.
const UNITS_PER_CPU: u64 = 1024;

/// Both folders are on one file system, of whose free space `kept_bytes` are not for tasks.
pub(super) fn of_this_host(
    machines_dir: &Path,
    volumes_dir: &Path,
    kept_bytes: u64,
) -> Result<Resources, HostError> {
    // Those that this process may run on.
    let cpus = std::thread::available_parallelism()
        .map_err(|error| HostError(format!("cannot count the processors: {error}")))?;
    let entries = |dir: &Path| {
        let entries = fs::read_dir(dir).map_err(|error| at(dir, "read", &error))?;
        Ok::<_, HostError>(entries.flatten().map(|entry| entry.path()))
    };
    let machines = entries(machines_dir)?.map(|machine| machine.join(SCRATCH_FILE));
    let taken = taken_bytes(machines.chain(entries(volumes_dir)?));
    let file_system = nix::sys::statvfs::statvfs(machines_dir)
        .map_err(|error| at(machines_dir, "find the free space of", &error.into()))?;
    let free = file_system
        .blocks_available()
        .saturating_mul(file_system.fragment_size());
    Ok(Resources {
        cpu_units: cpus.get() as u64 * UNITS_PER_CPU,
        memory_bytes: memory_bytes()?,
        disk_bytes: free.saturating_add(taken).saturating_sub(kept_bytes),
    })
}

fn memory_bytes() -> Result<u64, HostError> {
    let path = Path::new("/proc/meminfo");
    let text = fs::read_to_string(path).map_err(|error| at(path, "read", &error))?;
    let total = text.lines().find_map(|line| {
        let kib = line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?;
        kib.parse::<u64>().ok()
    });
    total
        .map(|kib| kib << 10)
        .ok_or_else(|| HostError("/proc/meminfo has no MemTotal".to_owned()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn disks_of_machines_count_as_what_tasks_may_have() {
        let dir = tempfile::tempdir().unwrap();
        let (machines, volumes) = (dir.path().join("machines"), dir.path().join("volumes"));
        fs::create_dir(&machines).unwrap();
        fs::create_dir(&volumes).unwrap();
        let before = of_this_host(&machines, &volumes, 0).unwrap();
        assert!(before.cpu_units >= 1024 && before.cpu_units.is_multiple_of(1024));
        assert!(before.memory_bytes > 64 << 20);
        assert!(before.disk_bytes > 0);

        let machine = machines.join("0123456789abcdef0123456789abcdef");
        fs::create_dir(&machine).unwrap();
        let mut disk = fs::File::create(machine.join(SCRATCH_FILE)).unwrap();
        // What is a hole is not taken.
        disk.set_len(1 << 40).unwrap();
        disk.write_all(&vec![1; 64 << 20]).unwrap();
        disk.sync_all().unwrap();
        fs::write(volumes.join("vol-1.img"), vec![1; 64 << 20]).unwrap();
        let after = of_this_host(&machines, &volumes, 0).unwrap();
        let moved = after.disk_bytes.abs_diff(before.disk_bytes);
        // Others write to this file system too.
        assert!(moved < 48 << 20, "{before:?} {after:?}");
    }

    #[test]
    fn what_images_may_take_is_not_promised_to_tasks() {
        let dir = tempfile::tempdir().unwrap();
        let all = of_this_host(dir.path(), dir.path(), 0).unwrap().disk_bytes;
        let kept = all / 2;
        let left = of_this_host(dir.path(), dir.path(), kept).unwrap().disk_bytes;
        // Others write to this file system too.
        assert!(left.abs_diff(all - kept) < kept / 2, "{left} of {all}");
        assert_eq!(
            of_this_host(dir.path(), dir.path(), u64::MAX).unwrap().disk_bytes,
            0
        );
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = of_this_host(Path::new("/nowhere/machines"), Path::new("/"), 0).unwrap_err();
        assert!(error.to_string().contains("/nowhere/machines"), "{error}");
    }
}
