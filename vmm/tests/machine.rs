//! Whole machines with hand-made guests of a few bytes: how they end, what they see, what their control socket answers.

mod support;

use std::os::fd::RawFd;
use std::time::Duration;

use berth_vmm::client::ClientError;
use berth_vmm::config::{ExitReason, ExitReport, StartConfig};
use berth_vmm::control::{BalloonReport, Command, Info, Outcome};
use support::{Ended, Launch, kvm_is_there};

/// `mov dx, port; mov al, value; out dx, al`.
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// `hlt; jmp` back to it.
const HALT: [u8; 3] = [0xf4, 0xeb, 0xfd];
/// `jmp` to itself.
const SPIN: [u8; 2] = [0xeb, 0xfe];

fn power_off() -> Vec<u8> {
    [out(0x600, 0x34), HALT.to_vec()].concat()
}

fn kernel_fd(launch: &mut Launch) -> &mut RawFd {
    match &mut launch.config.start {
        StartConfig::Boot { kernel_fd, .. } => kernel_fd,
        StartConfig::Restore { .. } => panic!("this machine does not boot"),
    }
}

fn initrd_fd(launch: &mut Launch) -> &mut Option<RawFd> {
    match &mut launch.config.start {
        StartConfig::Boot { initrd_fd, .. } => initrd_fd,
        StartConfig::Restore { .. } => panic!("this machine does not boot"),
    }
}

fn run(code: &[u8]) -> Ended {
    Launch::new(code).start().wait()
}

#[track_caller]
fn assert_ended(ended: &Ended, reason: ExitReason) {
    assert_eq!(
        ended.report,
        Some(ExitReport { reason, detail: None }),
        "{}",
        ended.stderr
    );
    assert_eq!((ended.status.code(), ended.stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_guest_powers_itself_off() {
    if kvm_is_there() {
        assert_ended(&run(&power_off()), ExitReason::PowerOff);
    }
}

#[test]
fn a_guest_resets_itself() {
    if kvm_is_there() {
        assert_ended(&run(&[out(0x602, 1), HALT.to_vec()].concat()), ExitReason::Reset);
    }
}

#[test]
fn a_triple_fault_ends_the_machine() {
    if kvm_is_there() {
        // `ud2` without an interrupt table.
        assert_ended(&run(&[0x0f, 0x0b]), ExitReason::TripleFault);
    }
}

#[test]
fn a_guest_speaks_through_its_serial_port() {
    if kvm_is_there() {
        let code: Vec<u8> = b"hello\nend".iter().flat_map(|&byte| out(0x3f8, byte)).collect();
        assert_eq!(run(&[code, power_off()].concat()).serial, "hello\nend");
    }
}

#[test]
fn a_guest_finds_its_start_info_devices_and_nothing_elsewhere() {
    if !kvm_is_there() {
        return;
    }
    let mut code = vec![
        // mov eax, [ebx]: the magic number of the start info. Then the first byte of it to the serial port.
        0x8b, 0x03, 0x66, 0xba, 0xf8, 0x03, 0xee,
    ];
    for address in [0xd000_0000u32, 0xd000_0008, 0xd000_1008, 0xd000_2000] {
        // mov eax, [address]; out dx, al
        code.push(0xa1);
        code.extend(address.to_le_bytes());
        code.push(0xee);
    }
    // mov dx, 0x1234; in al, dx; mov dx, 0x3f8; out dx, al
    code.extend([0x66, 0xba, 0x34, 0x12, 0xec, 0x66, 0xba, 0xf8, 0x03, 0xee]);
    code.extend(power_off());
    let mut launch = Launch::new(&code);
    // Bytes above 0x7f are not text.
    let (reader, writer) = nix::unistd::pipe().unwrap();
    use std::os::fd::AsRawFd;
    launch.config.serial_fd = Some(writer.as_raw_fd());
    launch.keep(writer);
    assert_ended(&launch.start().wait(), ExitReason::PowerOff);
    let mut said = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(reader), &mut said).unwrap();
    assert_eq!(said, [0x78, b'v', 2, 4, 0xff, 0xff]);
}

#[test]
fn a_spinning_guest_is_stopped() {
    if !kvm_is_there() {
        return;
    }
    for code in [&SPIN[..], &HALT] {
        let mut launch = Launch::new(code);
        launch.config.vcpus = 4;
        let machine = launch.start();
        let client = machine.client();
        assert_eq!(client.request(Command::Stop).unwrap().0, Outcome::Done);
        assert_ended(&machine.wait(), ExitReason::Stopped);
    }
}

#[test]
fn a_non_maskable_interrupt_reaches_the_guest() {
    if !kvm_is_there() {
        return;
    }
    // Without an interrupt table, any interrupt is a triple fault; a maskable one would not get through.
    let disable_interrupts = [0xfa];
    // mov dword [0xfee000f0], 0x1ff: a local APIC takes nothing before it is switched on.
    let enable_apic = [0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x01, 0x00, 0x00];
    let machine = Launch::new(&[&disable_interrupts[..], &enable_apic, &HALT].concat()).start();
    let client = machine.client();
    while client.request(Command::Nmi).unwrap().0 != Outcome::Done {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_ended(&machine.wait(), ExitReason::TripleFault);
}

#[test]
fn a_guest_sees_what_its_host_wants_of_it() {
    if !kvm_is_there() {
        return;
    }
    let code = [
        // mov eax, [the balloon's num_pages]; test eax, eax; jz to it
        &[0xa1, 0x00, 0x21, 0x00, 0xd0, 0x85, 0xc0, 0x74, 0xf7][..],
        // shr eax, 8; mov dx, 0x3f8; out dx, al: in MiB, which is a letter
        &[0xc1, 0xe8, 0x08, 0x66, 0xba, 0xf8, 0x03, 0xee],
        &power_off(),
    ]
    .concat();
    let mut launch = Launch::new(&code);
    launch.config.memory_mib = 256;
    launch.config.balloon = true;
    let machine = launch.start();
    let client = machine.client();
    let asked = |command| client.request(command).unwrap().0;
    let error = "193 MiB is too much for the balloon: of 256 MiB the guest keeps 64".into();
    assert_eq!(
        asked(Command::SetBalloon { target_mib: 193 }),
        Outcome::Error { error }
    );
    // Where there is no driver, nobody is waited for.
    let nothing = Outcome::Balloon(BalloonReport::default());
    assert_eq!(asked(Command::Balloon { wait_ms: 10_000 }), nothing);
    assert_eq!(asked(Command::SetBalloon { target_mib: 66 }), Outcome::Done);
    let ended = machine.wait();
    assert_ended(&ended, ExitReason::PowerOff);
    assert_eq!(ended.serial, "B");
}

#[test]
fn a_machine_without_a_balloon_says_so() {
    if !kvm_is_there() {
        return;
    }
    let machine = Launch::new(&SPIN).start();
    let client = machine.client();
    for command in [
        Command::SetBalloon { target_mib: 0 },
        Command::Balloon { wait_ms: 0 },
    ] {
        let error = "the machine has no balloon".into();
        assert_eq!(client.request(command).unwrap().0, Outcome::Error { error });
    }
}

#[test]
fn clients_learn_who_the_machine_is_and_what_it_did() {
    if !kvm_is_there() {
        return;
    }
    let code = [out(0x3f8, b'x'), out(0x1234, 1), SPIN.to_vec()].concat();
    let machine = Launch::new(&code).start();
    let client = machine.client();
    let Outcome::Info(info) = client.request(Command::Info).unwrap().0 else {
        panic!()
    };
    let pid = machine.pid();
    let expected = Info {
        control_version: 3,
        vmm_version: env!("CARGO_PKG_VERSION").into(),
        pid,
        vcpus: 1,
        memory_mib: 32,
        exiting: None,
    };
    assert_eq!(info, expected);
    let metrics = || match client.request(Command::Metrics).unwrap().0 {
        Outcome::Metrics(metrics) => metrics,
        other => panic!("{other:?}"),
    };
    while metrics().exits_io < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let metrics = metrics();
    // Whether its one drive has io_uring is the host's affair.
    assert!(metrics.block_io_uring_drives <= 1);
    // The phases of the start are parts of it, one after the other.
    let phases = [
        metrics.start_jail_us,
        metrics.start_vm_us,
        metrics.start_state_us,
        metrics.start_devices_us,
    ];
    assert!(phases.iter().all(|us| *us > 0), "{phases:?}");
    assert!(phases.iter().sum::<u64>() <= metrics.start_us, "{metrics:?}");
    // Its own memory, and the guest's.
    assert!(metrics.page_faults_minor > 10, "{metrics:?}");
    assert_eq!(
        (
            metrics.exits_io,
            metrics.unclaimed_accesses,
            metrics.device_errors
        ),
        (2, 1, 0)
    );
    assert_eq!(
        (
            metrics.exits_mmio,
            metrics.block_read_ops,
            metrics.start_working_set_us
        ),
        (0, 0, 0)
    );
    let no_vsock = client.request(Command::VsockConnect { port: 1 }).unwrap().0;
    assert_eq!(
        no_vsock,
        Outcome::Error {
            error: "the machine has no vsock device".into()
        }
    );
    client.request(Command::Stop).unwrap();
    assert!(matches!(client.recv(), Err(ClientError::Closed)));
    assert_ended(&machine.wait(), ExitReason::Stopped);
}

#[test]
fn a_machine_that_cannot_be_built_says_why_in_one_line() {
    if !kvm_is_there() {
        return;
    }
    let fails = |change: fn(&mut Launch)| {
        let mut launch = Launch::new(&power_off());
        change(&mut launch);
        let ended = launch.start().wait();
        assert_eq!(ended.status.code(), Some(1));
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
        (ended.stderr.trim_end().to_owned(), ended.report)
    };
    let (line, report) = fails(|launch| launch.config.vcpus = 0);
    assert_eq!(
        line,
        "berth-vmm: cannot use the configuration: vcpus is 0, not 1 to 32"
    );
    assert_eq!(report, None);
    let (line, _) = fails(|launch| {
        let kvm = launch.config.kvm_fd;
        *kernel_fd(launch) = kvm;
    });
    let number = line
        .split_whitespace()
        .find_map(|word| word.strip_suffix(','))
        .unwrap()
        .to_owned();
    assert_eq!(
        line,
        format!(
            "berth-vmm: cannot use the descriptors handed over: kernel_fd is descriptor {number}, which was handed \
             over already"
        )
    );
    let (line, _) = fails(|launch| *initrd_fd(launch) = Some(999));
    assert!(
        line.ends_with("initrd_fd is descriptor 999, which is not open"),
        "{line}"
    );
    let (line, _) = fails(|launch| {
        let control = launch.config.control_fd;
        launch.config.control_fd = std::mem::replace(kernel_fd(launch), control);
    });
    assert!(
        line.contains("kernel_fd is descriptor") && line.ends_with("which is not a regular file"),
        "{line}"
    );
    let (line, report) = fails(|launch| {
        let drive = launch.config.drives[0].fd;
        launch.config.drives[0].fd = std::mem::replace(kernel_fd(launch), drive);
    });
    assert_eq!(report.map(|report| report.reason), Some(ExitReason::Error));
    assert!(
        line.starts_with("berth-vmm: cannot build the machine: cannot load the kernel"),
        "{line}"
    );
}
