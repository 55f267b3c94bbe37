//! Machines that are paused, written down and taken up again, with hand-made guests of a few bytes.

#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use berth_vmm::client::Client;
use berth_vmm::config::{ExitReason, JailConfig, MemoryConfig, StartConfig, WorkingSet};
use berth_vmm::control::{Command, Metrics, Outcome};
use berth_vmm::snapshot::STATE_VERSION;
use nix::sched::CloneFlags;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::Uid;
use support::{Ended, Launch, kvm_is_there};

const MEMORY_BYTES: u64 = 32 << 20;

/// Says `A`, waits until its generation id changes, says what it has kept in a register, which is `B`, and powers off.
const CONTINUED: [u8; 49] = [
    0xb9, 0x42, 0x00, 0x00, 0x00, // mov ecx, 'B'
    0x8b, 0x1d, 0x00, 0xf0, 0x0f, 0x00, // mov ebx, [0xff000]
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, 0x41, 0xee, // mov al, 'A'; out dx, al
    0x3b, 0x1d, 0x00, 0xf0, 0x0f, 0x00, 0x74, 0xf8, // cmp ebx, [0xff000]; je to it
    0x89, 0xc8, 0xee, // mov eax, ecx; out dx, al
    0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, // power off
    0xf4, 0xeb, 0xfd, // hlt; jmp to it
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];
/// Writes to a port where nothing is, for ever.
const CHATTER: [u8; 7] = [0x66, 0xba, 0x34, 0x12, 0xee, 0xeb, 0xfd];

/// The two files of a snapshot.
struct Snapshot {
    state: File,
    memory: File,
}

impl Snapshot {
    fn new() -> Self {
        let memory = File::from(memfd_create("memory", MFdFlags::MFD_CLOEXEC).unwrap());
        memory.set_len(MEMORY_BYTES).unwrap();
        let state = tempfile::tempfile().unwrap();
        Self { state, memory }
    }

    /// A machine that can be written down here.
    fn of(&self, mut launch: Launch) -> Launch {
        launch.config.memory = Some(self.memory_for(&mut launch, true));
        launch.config.snapshot_fd = Some(launch.keep_file(&self.state));
        launch
    }

    /// A machine that goes on from here.
    fn restore(&self, shared: bool) -> Launch {
        let mut launch = Launch::new(&[]);
        launch.config.memory = Some(self.memory_for(&mut launch, shared));
        launch.config.start = StartConfig::Restore {
            state_fd: launch.keep_file(&self.state),
            working_set: WorkingSet::default(),
        };
        launch
    }

    fn memory_for(&self, launch: &mut Launch, shared: bool) -> MemoryConfig {
        MemoryConfig {
            fd: launch.keep_file(&self.memory),
            shared,
            page_by_page: false,
        }
    }
}

#[track_caller]
fn take(launch: Launch) {
    let machine = launch.start();
    let client = machine.client();
    // Until it has said something.
    while metrics(&client).exits_io == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(client.request(Command::Snapshot).unwrap().0, Outcome::Done);
    let ended = machine.wait();
    assert_eq!(
        ended.report.map(|report| report.reason),
        Some(ExitReason::Snapshot),
        "{}",
        ended.stderr
    );
    assert_eq!(ended.serial, "A");
}

fn metrics(client: &Client) -> Metrics {
    match client.request(Command::Metrics).unwrap().0 {
        Outcome::Metrics(metrics) => metrics,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn assert_went_on(ended: &Ended) {
    let reason = ended.report.as_ref().map(|report| report.reason);
    assert_eq!((reason, ended.stderr.as_str()), (Some(ExitReason::PowerOff), ""));
    assert_eq!(ended.serial, "B");
}

#[test]
fn many_machines_go_on_from_one_snapshot() {
    if !kvm_is_there() {
        return;
    }
    let snapshot = Snapshot::new();
    take(snapshot.of(Launch::new(&CONTINUED)));
    let machines: Vec<_> = (0..3).map(|_| snapshot.restore(false).start()).collect();
    for machine in machines {
        assert_went_on(&machine.wait());
    }
}

#[test]
fn husks_go_on_from_it_as_well() {
    if !kvm_is_there() {
        return;
    }
    let snapshot = Snapshot::new();
    take(snapshot.of(Launch::new(&CONTINUED)));
    let husks = (0..3).map(|_| snapshot.restore(false).start_as_husk(&[], CloneFlags::empty()));
    for husk in husks.collect::<Vec<_>>() {
        assert_went_on(&husk.wait());
    }
}

#[test]
fn a_machine_that_goes_on_is_written_down_again() {
    if !kvm_is_there() {
        return;
    }
    let snapshot = Snapshot::new();
    let mut launch = Launch::new(&[&[0xb0, 0x41, 0x66, 0xba, 0xf8, 0x03, 0xee][..], &CHATTER].concat());
    launch.config.vcpus = 3;
    take(snapshot.of(launch));
    for _ in 0..3 {
        let mut launch = snapshot.of(snapshot.restore(true));
        launch.config.vcpus = 3;
        let machine = launch.start();
        let client = machine.client();
        while metrics(&client).unclaimed_accesses == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(client.request(Command::Snapshot).unwrap().0, Outcome::Done);
        assert_eq!(machine.wait().report.unwrap().reason, ExitReason::Snapshot);
    }
}

#[test]
fn machines_in_a_jail_do_the_same() {
    if !kvm_is_there() {
        return;
    }
    if !Uid::effective().is_root() {
        eprintln!("SKIPPED: only root can make a jail");
        return;
    }
    let jailed = |mut launch: Launch| {
        launch.config.jail = Some(JailConfig {
            uid: 2_000_000_001,
            gid: 2_000_000_002,
        });
        launch
    };
    let snapshot = Snapshot::new();
    take(jailed(snapshot.of(Launch::new(&CONTINUED))));
    assert_went_on(&jailed(snapshot.restore(false)).start().wait());
}

#[test]
fn a_paused_guest_stands_still() {
    if !kvm_is_there() {
        return;
    }
    let machine = Launch::new(&CHATTER).start();
    let client = machine.client();
    let accesses = || metrics(&client).unclaimed_accesses;
    let grows = || {
        let before = accesses();
        while accesses() == before {
            thread::sleep(Duration::from_millis(1));
        }
    };
    grows();
    for _ in 0..20 {
        for _ in 0..2 {
            assert_eq!(client.request(Command::Pause).unwrap().0, Outcome::Done);
        }
        let before = accesses();
        thread::sleep(Duration::from_millis(5));
        assert_eq!(accesses(), before);
        assert_eq!(client.request(Command::Resume).unwrap().0, Outcome::Done);
        grows();
    }
    client.request(Command::Pause).unwrap();
    assert_eq!(client.request(Command::Stop).unwrap().0, Outcome::Done);
    assert_eq!(machine.wait().report.unwrap().reason, ExitReason::Stopped);
}

#[test]
fn a_machine_without_a_file_cannot_be_written_down() {
    if !kvm_is_there() {
        return;
    }
    let machine = Launch::new(&CHATTER).start();
    let refused = Outcome::Error {
        error: "the machine was given no file for a snapshot".into(),
    };
    assert_eq!(machine.client().request(Command::Snapshot).unwrap().0, refused);
    // And runs on.
    machine.client().request(Command::Stop).unwrap();
    assert_eq!(machine.wait().report.unwrap().reason, ExitReason::Stopped);
}

#[test]
fn a_snapshot_that_does_not_fit_is_refused_in_one_line() {
    if !kvm_is_there() {
        return;
    }
    let snapshot = Snapshot::new();
    take(snapshot.of(Launch::new(&CONTINUED)));
    let refused = |change: &dyn Fn(&mut Launch), expected: &str| {
        let mut launch = snapshot.restore(false);
        change(&mut launch);
        let ended = launch.start().wait();
        assert_eq!(
            ended.stderr,
            format!("berth-vmm: cannot build the machine: {expected}\n")
        );
        assert_eq!(ended.report.unwrap().reason, ExitReason::Error);
    };
    let restore = "cannot restore the machine: ";
    refused(
        &|launch| launch.config.vcpus = 2,
        &format!("{restore}the snapshot's machine has 1 vcpus, and this one 2"),
    );
    refused(
        &|launch| launch.config.memory_mib = 64,
        &format!("the memory's file has {MEMORY_BYTES} bytes, not the 64 MiB of the guest"),
    );
    let larger = File::from(memfd_create("memory", MFdFlags::MFD_CLOEXEC).unwrap());
    larger.set_len(2 * MEMORY_BYTES).unwrap();
    refused(
        &|launch| {
            launch.config.memory_mib = 64;
            launch.config.memory.as_mut().unwrap().fd = launch.keep_file(&larger);
        },
        &format!("{restore}the snapshot's machine has 32 MiB of memory, and this one 64"),
    );
    refused(
        &|launch| launch.config.entropy = false,
        &format!("{restore}the snapshot's machine has 2 virtio devices, and this one 1"),
    );
    snapshot.state.write_all_at(b"x", 100).unwrap();
    refused(
        &|_| (),
        &format!("{restore}the state is damaged: its checksum is not that of its content"),
    );
    // One that is yet to come, and the one before.
    for other in [7, STATE_VERSION as u8 - 1] {
        snapshot.state.write_all_at(&[other], 8).unwrap();
        refused(
            &|_| (),
            &format!(
                "{restore}the state is of version {other}, and this program reads version {STATE_VERSION}: take the snapshot anew"
            ),
        );
    }
}
