//! Boots a kernel with `berth-vmm`: opens what the machine needs, hands it over, and waits for the end. For benchmarks and
//! for trying things out; the daemon has a launcher of its own.
//!
//! It prints one line: the reason of the end, the milliseconds it took, the machine's counters a moment after the start
//! (with `--metrics-after`), and exits as the machine did.

use std::error::Error;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use berth_vmm::client::Client;
use berth_vmm::config::{
    CONFIG_VERSION, DriveConfig, DriveEngine, ExitReport, HugePages, MachineConfig, NetConfig, StartConfig,
    VsockConfig, WorkingSet,
};
use berth_vmm::control;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};

const USAGE: &str = "\
usage: boot --vmm PATH --kernel PATH [options]

    --initrd PATH           initial RAM file system
    --cmdline TEXT          kernel command line
    --vcpus N               1 if not given
    --memory MIB            256 if not given
    --drive PATH[,ro]       a block device; may be given several times
    --tap NAME              a network device on this tap; may be given several times
    --vsock CID             a vsock device
    --entropy               an entropy device
    --serial PATH           where the serial port's output goes; - is the standard output
    --metrics-after MS      print the machine's counters and resident memory after so many milliseconds";

/// The descriptors that stay open across exec, and the machine that they are for.
struct Launch {
    vmm: PathBuf,
    config: MachineConfig,
    kept: Vec<OwnedFd>,
    metrics_after: Option<Duration>,
}

fn main() -> ExitCode {
    match launch(std::env::args_os().skip(1).collect()).and_then(boot) {
        Ok(success) if success => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("boot: {error}");
            ExitCode::FAILURE
        }
    }
}

fn launch(arguments: Vec<OsString>) -> Result<Launch, Box<dyn Error>> {
    let mut vmm = None;
    let mut metrics_after = None;
    let (mut kernel, mut initrd_fd, mut cmdline) = (None, None, "console=ttyS0 panic=-1 reboot=k".to_owned());
    let mut kept = Vec::new();
    let mut keep = |file: File| {
        let fd = file.as_raw_fd();
        kept.push(OwnedFd::from(file));
        fd
    };
    let mut config = MachineConfig {
        version: CONFIG_VERSION,
        vcpus: 1,
        memory_mib: 256,
        kvm_fd: keep(OpenOptions::new().read(true).write(true).open("/dev/kvm")?),
        start: StartConfig::Restore {
            state_fd: -1,
            working_set: WorkingSet::default(),
        },
        memory: None,
        huge_pages: HugePages::Host,
        snapshot_fd: None,
        control_fd: -1,
        exit_fd: None,
        drives: Vec::new(),
        nets: Vec::new(),
        vsock: None,
        balloon: false,
        entropy: false,
        entropy_limits: None,
        serial_fd: None,
        serial_limits: None,
        jail: None,
    };
    let mut arguments = arguments.into_iter();
    while let Some(option) = arguments.next() {
        if option == "--entropy" {
            config.entropy = true;
            continue;
        }
        let value = arguments
            .next()
            .and_then(|value| value.into_string().ok())
            .ok_or(USAGE)?;
        match option.to_str() {
            Some("--vmm") => vmm = Some(PathBuf::from(value)),
            Some("--kernel") => kernel = Some(keep(File::open(value)?)),
            Some("--initrd") => initrd_fd = Some(keep(File::open(value)?)),
            Some("--cmdline") => cmdline = value,
            Some("--vcpus") => config.vcpus = value.parse()?,
            Some("--memory") => config.memory_mib = value.parse()?,
            Some("--drive") => {
                let (path, read_only) = match value.strip_suffix(",ro") {
                    Some(path) => (path, true),
                    None => (value.as_str(), false),
                };
                let fd = keep(OpenOptions::new().read(true).write(!read_only).open(path)?);
                let id = format!("drive{}", config.drives.len());
                config.drives.push(DriveConfig {
                    id,
                    fd,
                    read_only,
                    limits: None,
                    engine: DriveEngine::default(),
                });
            }
            Some("--tap") => {
                let mac = [2, 0, 0, 0, 0, 1 + config.nets.len() as u8];
                config.nets.push(NetConfig {
                    tap_fd: keep(open_tap(&value)?),
                    mac,
                    mtu: None,
                    rx_limits: None,
                    tx_limits: None,
                });
            }
            Some("--vsock") => {
                config.vsock = Some(VsockConfig {
                    guest_cid: value.parse()?,
                })
            }
            Some("--serial") if value == "-" => {
                let stdout = std::io::stdout();
                config.serial_fd = Some(keep(nix::unistd::dup(&stdout)?.into()));
            }
            Some("--serial") => {
                config.serial_fd = Some(keep(OpenOptions::new().append(true).create(true).open(value)?));
            }
            Some("--metrics-after") => metrics_after = Some(Duration::from_millis(value.parse()?)),
            _ => return Err(USAGE.into()),
        }
    }
    config.start = StartConfig::Boot {
        kernel_fd: kernel.ok_or(USAGE)?,
        initrd_fd,
        cmdline,
    };
    Ok(Launch {
        vmm: vmm.ok_or(USAGE)?,
        config,
        kept,
        metrics_after,
    })
}

/// Opens a tap as the network device wants it.
fn open_tap(name: &str) -> Result<File, Box<dyn Error>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: an all-zero ifreq is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(format!("the tap name {name:?} is too long").into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives on the stack during the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &mut request) } < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(file)
}

/// Returns whether the machine ended well.
fn boot(launch: Launch) -> Result<bool, Box<dyn Error>> {
    let Launch {
        vmm,
        mut config,
        mut kept,
        metrics_after,
    } = launch;
    let folder = tempfile::tempdir()?;
    let control = folder.path().join("control");
    let listener = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    bind(listener.as_raw_fd(), &UnixAddr::new(&control)?)?;
    listen(&listener, Backlog::new(4)?)?;
    config.control_fd = listener.as_raw_fd();
    kept.push(listener);
    let mut exit = tempfile::tempfile()?;
    config.exit_fd = Some(exit.as_raw_fd());
    kept.push(exit.try_clone()?.into());
    let mut json = tempfile::tempfile()?;
    json.write_all(&serde_json::to_vec(&config)?)?;
    json.rewind()?;

    let handed: Vec<RawFd> = kept
        .iter()
        .map(AsRawFd::as_raw_fd)
        .chain([json.as_raw_fd(), exit.as_raw_fd()])
        .collect();
    let mut command = Command::new(vmm);
    command.arg("--config-fd").arg(json.as_raw_fd().to_string());
    // SAFETY: between fork and exec only fcntl is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            for fd in &handed {
                if libc::fcntl(*fd, libc::F_SETFD, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let started = Instant::now();
    let mut child = command.spawn()?;
    let mut counters = String::new();
    if let Some(after) = metrics_after {
        std::thread::sleep(after);
        let status = std::fs::read_to_string(format!("/proc/{}/smaps", child.id()))?;
        let client = Client::connect(&control, Duration::from_secs(5))?;
        let metrics = client.request(control::Command::Metrics)?.0;
        let guest_kib = u64::from(config.memory_mib) * 1024;
        counters = format!(" {metrics:?} {}", resident(&status, guest_kib));
    }
    let status = child.wait()?;
    let milliseconds = started.elapsed().as_millis();
    let mut report = String::new();
    exit.rewind()?;
    exit.read_to_string(&mut report)?;
    let report: ExitReport = serde_json::from_str(&report)?;
    println!("{:?} after {milliseconds} ms{counters}", report.reason);
    Ok(status.success())
}

/// Resident memory inside and outside the mapping that has the size of the guest's memory.
fn resident(smaps: &str, guest_kib: u64) -> String {
    let (mut guest, mut own, mut anonymous, mut is_guest) = (0, 0, 0, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (name, kib) = (
            words.next(),
            words
                .next()
                .and_then(|word| word.parse::<u64>().ok())
                .unwrap_or(0),
        );
        match name {
            Some("Size:") => is_guest = kib >= guest_kib.min(3 << 20) && kib >= 32 * 1024,
            Some("Rss:") if is_guest => guest += kib,
            Some("Rss:") => own += kib,
            Some("Anonymous:") if !is_guest => anonymous += kib,
            _ => {}
        }
    }
    format!("resident: guest {guest} KiB, outside {own} KiB (anonymous {anonymous} KiB)")
}
