//! Tiny guests, and machines that run them: the real binary on the real `/dev/kvm`.

#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]
#![allow(dead_code, reason = "each test program uses its part of this")]

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use berth_vmm::client::Client;
use berth_vmm::config::{
    CONFIG_VERSION, DriveConfig, DriveEngine, ExitReport, HandOver, HugePages, HuskConfig, MachineConfig,
    StartConfig,
};
use berth_vmm::husk::{hand_over, wait_until_ready};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket, socketpair,
};
use serde::Serialize;

const PATIENCE: Duration = Duration::from_secs(60);
const LOAD_ADDRESS: u32 = 0x10_0000;

/// Whether this machine has KVM; says so loudly if not.
pub fn kvm_is_there() -> bool {
    let there = OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    if !there {
        eprintln!("SKIPPED: /dev/kvm does not open, so no guest was run");
    }
    there
}

/// An ELF file with a PVH entry note whose one segment is `code`, 32-bit machine code entered at its start.
pub fn kernel(code: &[u8]) -> Vec<u8> {
    const HEADERS: usize = 64 + 2 * 56;
    let note = [
        &4u32.to_le_bytes()[..],
        &4u32.to_le_bytes(),
        &18u32.to_le_bytes(),
        b"Xen\0",
        &LOAD_ADDRESS.to_le_bytes(),
    ]
    .concat();
    let mut elf = Vec::new();
    elf.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    elf.extend(u64::from(LOAD_ADDRESS).to_le_bytes());
    elf.extend(64u64.to_le_bytes());
    elf.extend([0; 12]);
    for half in [64u16, 56, 2, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let mut segment = |kind: u32, offset: usize, address: u32, len: usize| {
        elf.extend(kind.to_le_bytes());
        elf.extend(7u32.to_le_bytes());
        for word in [
            offset as u64,
            u64::from(address),
            u64::from(address),
            len as u64,
            len as u64,
            4,
        ] {
            elf.extend(word.to_le_bytes());
        }
    };
    segment(1, HEADERS + note.len(), LOAD_ADDRESS, code.len());
    segment(4, HEADERS, 0, note.len());
    elf.extend(note);
    elf.extend(code);
    elf
}

fn file_with(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

/// What is handed to a machine, before it starts.
pub struct Launch {
    pub config: MachineConfig,
    kept: Vec<OwnedFd>,
    exit: File,
    serial: File,
    folder: tempfile::TempDir,
}

impl Launch {
    /// A machine with one vCPU, a serial port, a disk of four sectors that say "disk", and an entropy device.
    pub fn new(code: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        bind(
            listener.as_raw_fd(),
            &UnixAddr::new(&folder.path().join("control")).unwrap(),
        )
        .unwrap();
        listen(&listener, Backlog::new(16).unwrap()).unwrap();
        let exit = tempfile::tempfile().unwrap();
        let (serial, serial_out) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let mut kept = Vec::new();
        let mut keep = |fd: OwnedFd| {
            kept.push(fd);
            kept.last().unwrap().as_raw_fd()
        };
        let config = MachineConfig {
            version: CONFIG_VERSION,
            vcpus: 1,
            memory_mib: 32,
            kvm_fd: keep(
                OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open("/dev/kvm")
                    .unwrap()
                    .into(),
            ),
            start: StartConfig::Boot {
                kernel_fd: keep(file_with(&kernel(code)).into()),
                initrd_fd: None,
                cmdline: "test".into(),
            },
            memory: None,
            huge_pages: HugePages::Host,
            snapshot_fd: None,
            control_fd: keep(listener),
            exit_fd: Some(keep(exit.try_clone().unwrap().into())),
            drives: vec![DriveConfig {
                id: "disk0".into(),
                fd: keep(file_with(&b"disk".repeat(512)).into()),
                read_only: true,
                limits: None,
                engine: DriveEngine::default(),
            }],
            nets: vec![],
            vsock: None,
            balloon: false,
            entropy: true,
            entropy_limits: None,
            serial_fd: Some(keep(serial_out)),
            serial_limits: None,
            jail: None,
        };
        Self {
            config,
            kept,
            exit,
            serial: serial.into(),
            folder,
        }
    }

    /// Leaves a copy of a file open for the machine, and returns its descriptor.
    pub fn keep_file(&mut self, file: &File) -> RawFd {
        let copy = OwnedFd::from(file.try_clone().unwrap());
        let fd = copy.as_raw_fd();
        self.keep(copy);
        fd
    }

    /// Leaves a descriptor that `config` names open for the machine.
    pub fn keep(&mut self, descriptor: OwnedFd) {
        self.kept.push(descriptor);
    }

    pub fn start(self) -> Running {
        self.start_with(&[], CloneFlags::empty())
    }

    /// Starts the machine with more arguments, in namespaces of its own.
    pub fn start_with(self, arguments: &[&str], namespaces: CloneFlags) -> Running {
        let child = self.spawn("--config-fd", &self.config, arguments, namespaces);
        self.running(child)
    }

    /// Starts a husk of a machine that is restored, and hands over the rest when it is ready.
    pub fn start_as_husk(mut self, arguments: &[&str], namespaces: CloneFlags) -> Running {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let StartConfig::Restore {
            state_fd,
            working_set,
        } = self.config.start.clone()
        else {
            panic!("a husk is restored");
        };
        let config = self.config.clone();
        let husk = HuskConfig {
            version: config.version,
            vcpus: config.vcpus,
            memory_mib: config.memory_mib,
            kvm_fd: config.kvm_fd,
            memory_fd: config.memory.unwrap().fd,
            state_fd,
            working_set,
            huge_pages: config.huge_pages,
            parent_fd: theirs.as_raw_fd(),
            jail: config.jail,
        };
        let rest = HandOver {
            log_fd: None,
            control_fd: config.control_fd,
            exit_fd: config.exit_fd,
            drives: config.drives,
            nets: config.nets,
            vsock: config.vsock,
            balloon: config.balloon,
            entropy: config.entropy,
            entropy_limits: config.entropy_limits,
            serial_fd: config.serial_fd,
            serial_limits: config.serial_limits,
        };
        self.keep(theirs);
        let child = self.spawn("--husk-config-fd", &husk, arguments, namespaces);
        wait_until_ready(ours.as_fd()).unwrap();
        hand_over(ours.as_fd(), rest).unwrap();
        self.running(child)
    }

    fn spawn(
        &self,
        part: &str,
        config: &impl Serialize,
        arguments: &[&str],
        namespaces: CloneFlags,
    ) -> Child {
        let json = file_with(&serde_json::to_vec(config).unwrap());
        let handed: Vec<RawFd> = self
            .kept
            .iter()
            .map(AsRawFd::as_raw_fd)
            .chain([json.as_raw_fd()])
            .collect();
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth-vmm"));
        command
            .args([part, &json.as_raw_fd().to_string()])
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        // SAFETY: between fork and exec only fcntl, unshare and mount are called, which are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                if !namespaces.is_empty() {
                    unshare(namespaces)?;
                    let nothing = None::<&str>;
                    mount(
                        nothing,
                        "/",
                        nothing,
                        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                        nothing,
                    )?;
                }
                for fd in &handed {
                    if libc::fcntl(*fd, libc::F_SETFD, 0) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        command.spawn().unwrap()
    }

    fn running(self, child: Child) -> Running {
        Running {
            child,
            exit: self.exit,
            serial: self.serial,
            control: self.folder.path().join("control"),
            _folder: self.folder,
        }
    }
}

/// A machine that runs. It is killed when dropped.
pub struct Running {
    child: Child,
    exit: File,
    serial: File,
    control: PathBuf,
    _folder: tempfile::TempDir,
}

/// How a machine ended.
pub struct Ended {
    pub status: ExitStatus,
    pub report: Option<ExitReport>,
    pub stderr: String,
    pub serial: String,
}

impl Running {
    pub fn client(&self) -> Client {
        Client::connect(&self.control, PATIENCE).unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the machine to end by itself.
    pub fn wait(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the machine did not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        let (mut stderr, mut serial, mut report) = (String::new(), String::new(), String::new());
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut stderr)
            .unwrap();
        self.serial.read_to_string(&mut serial).unwrap();
        self.exit.rewind().unwrap();
        self.exit.read_to_string(&mut report).unwrap();
        Ended {
            status,
            report: serde_json::from_str(&report).ok(),
            stderr,
            serial,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It fails when the machine has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
