//! What is left to a machine in its jail: each probe is tried without the jail, within its walls alone, and behind its
//! filters.
#![cfg(feature = "jail-probes")]
#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

mod support;

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::{Duration, Instant};

use berth_vmm::config::{
    ExitReason, JailConfig, LimitsConfig, MemoryConfig, RateConfig, StartConfig, WorkingSet,
};
use berth_vmm::control::{Command, LimitedDevice, Outcome};
use berth_vmm::jail::probes::ALL;
use nix::sched::CloneFlags;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::Uid;
use support::{Ended, Launch, kvm_is_there};

/// Nobody's numbers.
const JAIL: JailConfig = JailConfig {
    uid: 2_000_000_001,
    gid: 2_000_000_002,
};
/// `mov dx, 0x600; mov al, 0x34; out dx, al; hlt; jmp` back: the guest powers off.
const POWER_OFF: [u8; 10] = [0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xf4, 0xeb, 0xfd];
/// Reads its generation id, says something, waits until the id is another, and powers off.
const POWER_OFF_ELSEWHERE: [u8; 31] = [
    0x8b, 0x1d, 0x00, 0xf0, 0x0f, 0x00, // mov ebx, [0xff000]
    0x66, 0xba, 0xf8, 0x03, 0xb0, 0x41, 0xee, // mov dx, 0x3f8; mov al, 'A'; out dx, al
    0x3b, 0x1d, 0x00, 0xf0, 0x0f, 0x00, 0x74, 0xf8, // cmp ebx, [0xff000]; je to it
    0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, // power off
    0xf4, 0xeb, 0xfd, // hlt; jmp to it
];
/// `jmp` to itself.
const SPIN: [u8; 2] = [0xeb, 0xfe];

/// What the walls stop without a filter; the rest is the filters' work alone.
const STOPPED_BY_WALLS: [&str; 10] = [
    "open", "list", "create", "ptrace", "mount", "socket", "exec", "kill", "root", "limit",
];

/// Whether a jail can be made here; says so loudly if not.
fn jails_can_be_made() -> bool {
    let root = Uid::effective().is_root();
    if !root {
        eprintln!("SKIPPED: only root can make a jail");
    }
    root && kvm_is_there()
}

#[derive(Clone, Copy, Debug)]
enum Around {
    Nothing,
    Walls,
    WallsAndFilters,
}

/// In a machine that boots, or in one that goes on from a snapshot in a process that had waited for it.
fn probe(name: &str, around: Around, waited: Option<&Snapshot>) -> Ended {
    let mut launch = Launch::new(&POWER_OFF);
    if let Some(snapshot) = waited {
        launch.config.memory = Some(MemoryConfig {
            fd: launch.keep_file(&snapshot.memory),
            shared: false,
            page_by_page: false,
        });
        launch.config.start = StartConfig::Restore {
            state_fd: launch.keep_file(&snapshot.state),
            working_set: WorkingSet::default(),
        };
    }
    let kvm = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .unwrap();
    let (parent, leaked) = (std::process::id().to_string(), kvm.as_raw_fd().to_string());
    launch.keep(kvm.into());
    let mut arguments = vec!["--probe", name, "--parent", &parent, "--kvm", &leaked];
    match around {
        Around::Nothing => {}
        Around::Walls => {
            arguments.push("--without-filters");
            launch.config.jail = Some(JAIL);
        }
        Around::WallsAndFilters => launch.config.jail = Some(JAIL),
    }
    // What a probe mounts is not to stay on this machine.
    if waited.is_some() {
        launch.start_as_husk(&arguments, CloneFlags::CLONE_NEWNS).wait()
    } else {
        launch.start_with(&arguments, CloneFlags::CLONE_NEWNS).wait()
    }
}

struct Snapshot {
    state: File,
    memory: File,
}

impl Snapshot {
    fn take() -> Self {
        let memory = File::from(memfd_create("memory", MFdFlags::MFD_CLOEXEC).unwrap());
        memory.set_len(32 << 20).unwrap();
        let state = tempfile::tempfile().unwrap();
        let mut launch = Launch::new(&POWER_OFF_ELSEWHERE);
        launch.config.memory = Some(MemoryConfig {
            fd: launch.keep_file(&memory),
            shared: true,
            page_by_page: false,
        });
        launch.config.snapshot_fd = Some(launch.keep_file(&state));
        let machine = launch.start();
        let client = machine.client();
        let said = || match client.request(Command::Metrics).unwrap().0 {
            Outcome::Metrics(metrics) => metrics.exits_io > 0,
            other => panic!("{other:?}"),
        };
        while !said() {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(client.request(Command::Snapshot).unwrap().0, Outcome::Done);
        machine.wait();
        Self { state, memory }
    }
}

fn succeeded(name: &str, ended: &Ended) -> bool {
    // Another program in its place says nothing.
    assert_eq!(ended.serial, "", "the guest says nothing");
    let replaced = name == "exec" && ended.status.success() && ended.report.is_none();
    replaced || ended.stderr == format!("probe {name}: done\n") && ended.status.success()
}

/// Every probe, in a machine that boots and in one that has waited.
fn each_way(snapshot: &Snapshot) -> impl Iterator<Item = (&'static str, Option<&Snapshot>)> {
    let ways = [None, Some(snapshot)];
    ways.into_iter()
        .flat_map(|waited| ALL.map(|(name, _)| (name, waited)))
}

#[test]
fn without_the_jail_every_probe_succeeds() {
    if !jails_can_be_made() {
        return;
    }
    for (name, _) in ALL {
        let ended = probe(name, Around::Nothing, None);
        assert!(
            succeeded(name, &ended),
            "{name}: {:?}: {}",
            ended.status,
            ended.stderr
        );
    }
}

#[test]
fn the_walls_stop_what_reaches_for_the_host() {
    if !jails_can_be_made() {
        return;
    }
    let snapshot = Snapshot::take();
    for (name, waited) in each_way(&snapshot) {
        let ended = probe(name, Around::Walls, waited);
        assert_eq!(
            succeeded(name, &ended),
            !STOPPED_BY_WALLS.contains(&name),
            "{name}: {:?}: {}",
            ended.status,
            ended.stderr
        );
        assert_eq!(ended.status.signal(), None, "{name}: {}", ended.stderr);
    }
}

#[test]
fn the_filters_end_a_machine_that_tries_anything() {
    if !jails_can_be_made() {
        return;
    }
    let snapshot = Snapshot::take();
    for (name, waited) in each_way(&snapshot) {
        let ended = probe(name, Around::WallsAndFilters, waited);
        if name == "nothing" {
            assert!(succeeded(name, &ended), "{:?}: {}", ended.status, ended.stderr);
            assert_eq!(
                ended.report.map(|report| report.reason),
                Some(ExitReason::PowerOff)
            );
        } else {
            let signal = ended.status.signal();
            assert_eq!(
                signal,
                Some(libc::SIGSYS),
                "{name}: {:?}: {}",
                ended.status,
                ended.stderr
            );
        }
    }
}

/// A machine that powers off, with these arguments besides.
fn on_trial(mut launch: Launch, arguments: &[&str]) -> Ended {
    launch.config.jail = Some(JAIL);
    launch.start_with(arguments, CloneFlags::empty()).wait()
}

#[test]
fn what_a_machine_uses_is_noted() {
    if !jails_can_be_made() {
        return;
    }
    let notes = tempfile::tempfile().unwrap();
    notes.set_len(4096).unwrap();
    let mut launch = Launch::new(&POWER_OFF);
    let fd = launch.keep_file(&notes).to_string();
    let ended = on_trial(launch, &["--note", &fd]);
    let reason = ended.report.map(|report| report.reason);
    assert_eq!(reason, Some(ExitReason::PowerOff), "{}", ended.stderr);
    let mut noted = [0; 4096];
    notes.read_exact_at(&mut noted, 0).unwrap();
    let used = noted.iter().filter(|note| **note == 1).count();
    assert!((15..150).contains(&used), "{used} rules");
}

#[test]
fn a_machine_dies_of_a_rule_that_is_left_out_if_it_needs_it() {
    if !jails_can_be_made() {
        return;
    }
    for rule in [
        "vcpu:ioctl:0",
        "main:exit_group",
        "main:pwrite64",
        "rng:exit",
        "block:futex",
    ] {
        let ended = on_trial(Launch::new(&POWER_OFF), &["--without", rule]);
        assert_eq!(
            ended.status.signal(),
            Some(libc::SIGSYS),
            "{rule}: {}",
            ended.stderr
        );
    }
    for rule in ["main:ioctl:0", "block:fallocate", "rng:preadv"] {
        let ended = on_trial(Launch::new(&POWER_OFF), &["--without", rule]);
        let reason = ended.report.map(|report| report.reason);
        let expected = (rule != "rng:preadv").then_some(ExitReason::PowerOff);
        assert_eq!(reason, expected, "{rule}: {}", ended.stderr);
    }
}

#[test]
fn a_jailed_machine_is_nobody_and_sees_nothing() {
    if !jails_can_be_made() {
        return;
    }
    let mut launch = Launch::new(&SPIN);
    launch.config.jail = Some(JAIL);
    let machine = launch.start();
    let client = machine.client();
    let Outcome::Metrics(metrics) = client.request(Command::Metrics).unwrap().0 else {
        panic!("no counters");
    };
    // In its jail it can still count them.
    assert!(metrics.page_faults_minor > 0);
    let folder = format!("/proc/{}", machine.pid());
    assert_eq!(fs::read_dir(format!("{folder}/root")).unwrap().count(), 0);
    for namespace in ["mnt", "net", "ipc", "uts", "cgroup"] {
        let link = |of: &str| fs::read_link(format!("/proc/{of}/ns/{namespace}")).unwrap();
        assert_ne!(link(&machine.pid().to_string()), link("self"), "{namespace}");
    }
    let statuses = || -> Vec<String> {
        let tasks = fs::read_dir(format!("{folder}/task")).unwrap();
        tasks
            .map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap())
            .collect()
    };
    // A thread confines itself before it does anything for the guest, which may be a moment from now.
    let deadline = Instant::now() + Duration::from_secs(20);
    while !statuses().iter().all(|status| status.contains("Seccomp:\t2")) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    let statuses = statuses();
    // The main one, the vCPU's, those of the drive and of the entropy device; some kernels add one of their own.
    assert!(statuses.len() >= 4, "{statuses:?}");
    for status in statuses {
        let field = |name: &str| -> Vec<&str> {
            let line = status.lines().find(|line| line.starts_with(&format!("{name}:")));
            line.unwrap().split_whitespace().skip(1).collect()
        };
        assert_eq!(field("Uid"), vec![JAIL.uid.to_string(); 4]);
        assert_eq!(field("Gid"), vec![JAIL.gid.to_string(); 4]);
        assert!(field("Groups").is_empty());
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set), ["0000000000000000"], "{set}");
        }
        assert_eq!(
            (field("NoNewPrivs"), field("Seccomp")),
            (vec!["1"], vec!["2"]),
            "{status}"
        );
    }
    client.request(Command::Stop).unwrap();
    assert_eq!(
        machine.wait().report.map(|report| report.reason),
        Some(ExitReason::Stopped)
    );
}

#[test]
fn limits_are_changed_in_the_jail() {
    if !jails_can_be_made() {
        return;
    }
    let mut launch = Launch::new(&SPIN);
    launch.config.jail = Some(JAIL);
    let limits = |per_second| {
        let rate = Some(RateConfig { per_second, burst: 1 });
        Some(LimitsConfig {
            bytes: rate,
            ops: rate,
        })
    };
    launch.config.drives[0].limits = limits(1);
    launch.config.entropy_limits = limits(1);
    launch.config.serial_limits = limits(1);
    let machine = launch.start();
    let client = machine.client();
    let set = |device, limits| client.request(Command::SetLimits { device, limits }).unwrap().0;
    let error = |error: &str| Outcome::Error { error: error.into() };
    for device in [
        LimitedDevice::Drive("disk0".into()),
        LimitedDevice::Entropy,
        LimitedDevice::Serial,
    ] {
        assert_eq!(set(device.clone(), limits(5)), Outcome::Done);
        assert_eq!(set(device.clone(), None), Outcome::Done);
        assert_eq!(
            set(device, limits(0)),
            error(
                "the limits cannot be set: bytes.per_second is 0, not 1 or more; no limit is said by leaving bytes out"
            )
        );
    }
    assert_eq!(
        set(LimitedDevice::Drive("disk1".into()), None),
        error("the machine has no drive \"disk1\"")
    );
    client.request(Command::Stop).unwrap();
    assert_eq!(
        machine.wait().report.map(|report| report.reason),
        Some(ExitReason::Stopped)
    );
}
