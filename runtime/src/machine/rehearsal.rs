//! The task that a template's trial is given: a container of an image that the runtime makes for this, for each of the shape's. It shows
//! that tasks start from the template, and what the guest's kernel and init touch when one does.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use berth_protocol::message::{ContainerSpec, NetworkSpec, TaskSpec};

use super::{at, host_error, rehearsal_program};
use crate::image::{Digest, erofs};
use crate::network::MacAddr;
use crate::task::host::HostError;
use crate::task::spec::{SCRATCH_DRIVE, image_drive};

const PROGRAM: &str = "program";
/// Of a network for documentation (RFC 5737): the tap leads nowhere.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const TIMEOUT_MS: u64 = 120_000;

/// Makes the image at `path`, by way of a folder beside it. Blocks.
pub(super) fn make_image(path: &Path) -> Result<(), HostError> {
    let tree = path.with_extension("tree");
    let file = tree.join(PROGRAM);
    fs::create_dir(&tree).map_err(|error| at(&tree, "make", &error))?;
    let made = fs::write(&file, rehearsal_program::elf())
        .and_then(|()| fs::set_permissions(&tree, fs::Permissions::from_mode(0o755)))
        .and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(0o755)));
    made.map_err(|error| at(&file, "write", &error))?;
    let key = Digest::of(&rehearsal_program::elf());
    erofs::pack_own(&tree, path, key).map_err(host_error)?;
    fs::remove_dir_all(&tree).map_err(|error| at(&tree, "remove", &error))
}

/// A task for a machine with so many images, and a network device if there is an `mtu`.
pub(super) fn task(images: usize, memory_mib: u32, mac: MacAddr, mtu: Option<u16>) -> TaskSpec {
    let network = mtu.map(|mtu| NetworkSpec {
        mac: mac.octets(),
        address: ADDRESS,
        prefix_len: 24,
        gateway: GATEWAY,
        dns_servers: vec![GATEWAY],
        search_domains: Vec::new(),
        mtu,
    });
    TaskSpec {
        task_id: "rehearsal".to_owned(),
        session: "rehearsal".to_owned(),
        hostname: "rehearsal".to_owned(),
        network,
        memory_bytes: u64::from(memory_mib) << 20,
        pids: 64,
        scratch_drive: SCRATCH_DRIVE.to_owned(),
        volumes: Vec::new(),
        volume_drives: Vec::new(),
        share_pids: false,
        containers: (0..images).map(container).collect(),
    }
}

fn container(index: usize) -> ContainerSpec {
    ContainerSpec {
        name: format!("rehearsal{index}"),
        image_drive: image_drive(index),
        argv: vec![format!("/{PROGRAM}")],
        env: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
        working_dir: "/".to_owned(),
        user: String::new(),
        stop_signal: "SIGTERM".to_owned(),
        readonly_root: false,
        capabilities_add: Vec::new(),
        capabilities_drop: Vec::new(),
        limits: Vec::new(),
        system_controls: Vec::new(),
        memory_bytes: None,
        memory_reservation_bytes: None,
        cpu_shares: None,
        init_process: false,
        open_stdin: false,
        terminal: false,
        // The first to end does not end the others.
        essential: false,
        depends_on: Vec::new(),
        start_timeout_ms: TIMEOUT_MS,
        stop_timeout_ms: TIMEOUT_MS,
        health_check: None,
        restart: None,
        mounts: Vec::new(),
        tmpfs: Vec::new(),
        output_buffer_bytes: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_made_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        make_image(&path).unwrap();
        assert!(path.metadata().unwrap().len() > 0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
