//! `berth-vmm`: reads the configuration from a descriptor, in one part or in two, runs the machine, reports how it ended.

#[cfg(feature = "jail-probes")]
mod probing;

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::process::ExitCode;
use std::time::Instant;

use berth_vmm::config::{ExitReason, ExitReport, HuskConfig, JailConfig, MachineConfig};
use berth_vmm::ending;
use berth_vmm::handed::{self, Handed, Rest};
use berth_vmm::husk;
use berth_vmm::jail::Jail;
use berth_vmm::machine::{Core, Machine};
use berth_vmm::snapshot::MAX_STATE_BYTES;
use nix::unistd::dup2_stderr;
use serde::de::DeserializeOwned;

const HELP: &str = "\
berth-vmm runs one microVM.

usage: berth-vmm --config-fd N
       berth-vmm --husk-config-fd N

    --config-fd N        read the machine's configuration, as JSON, from descriptor N
    --husk-config-fd N   read what is known of it so far, prepare that, and wait for the rest on a socket that it names
    --version            print the version
    --help               print this

Every descriptor that the configuration names must be open. The exit status is 0 when the guest ended or the machine
was told to stop, and 1 when something failed.";

/// Longest configuration in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

pub(crate) fn main() -> ExitCode {
    let started = Instant::now();
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let arguments: Vec<&str> = arguments
        .iter()
        .map(|argument| argument.to_str().unwrap_or(""))
        .collect();
    let done = match arguments[..] {
        ["--version"] => print(concat!("berth-vmm ", env!("CARGO_PKG_VERSION"))),
        ["--help"] => print(HELP),
        ["--config-fd", number] => descriptor(number).and_then(|fd| run(fd, started, Machine::run, Ok)),
        ["--husk-config-fd", number] => descriptor(number).and_then(|fd| run_husk(fd, Machine::run, Ok)),
        #[cfg(feature = "jail-probes")]
        [part, number, ref probing @ ..] => probing::run(part, number, started, probing),
        _ => Err("cannot understand the arguments; see berth-vmm --help".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-vmm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn descriptor(number: &str) -> Result<RawFd, Box<dyn Error>> {
    let fd = number.parse();
    fd.map_err(|_| format!("cannot read the descriptor number {number:?}").into())
}

fn print(text: &str) -> Result<(), Box<dyn Error>> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

/// Runs the machine of a configuration by `run`, in the jail that `adapt` makes of the configured one.
fn run(
    config_fd: RawFd,
    started: Instant,
    run: impl FnOnce(Machine) -> ExitReport,
    adapt: impl FnOnce(Jail) -> Result<Jail, Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let config: MachineConfig =
        read_config(config_fd).map_err(|error| format!("cannot read the configuration: {error}"))?;
    config
        .validate()
        .map_err(|error| format!("cannot use the configuration: {error}"))?;
    handed::make_room(config.kvm_fd);
    // SAFETY: this process has only just started and has opened nothing that it still holds, so whatever is open was
    // handed over; the one descriptor taken so far has been closed again.
    let handed = unsafe { Handed::take(&config) }
        .map_err(|error| format!("cannot use the descriptors handed over: {error}"))?;
    let exit = handed.rest.exit.as_ref().and_then(|exit| exit.try_clone().ok());
    let machine = enter_jail(config.jail.as_ref())
        .and_then(|jail| Ok(jail.limit_files(largest_file(&config, &handed.rest)?)?))
        .and_then(adapt)
        .map_err(|error| format!("cannot enter the jail: {error}"))
        .and_then(|jail| {
            Machine::new(&config, handed, jail, started)
                .map_err(|error| format!("cannot build the machine: {error}"))
        });
    conclude(machine, exit, run)
}

/// Makes what the first part of a configuration says, and waits for the second. Then as [`run`].
fn run_husk(
    config_fd: RawFd,
    run: impl FnOnce(Machine) -> ExitReport,
    adapt: impl FnOnce(Jail) -> Result<Jail, Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let husk: HuskConfig =
        read_config(config_fd).map_err(|error| format!("cannot read the husk's configuration: {error}"))?;
    husk.validate()
        .map_err(|error| format!("cannot use the husk's configuration: {error}"))?;
    handed::make_room(husk.kvm_fd);
    // SAFETY: as in `run`.
    let (core, parent) = unsafe { handed::Core::take(&husk) }
        .map_err(|error| format!("cannot use the descriptors handed over: {error}"))?;
    let jail = enter_jail(husk.jail.as_ref()).map_err(|error| format!("cannot enter the jail: {error}"))?;
    let core = Core::new(&husk.alone(), core, None).map(Core::settled);
    let core = core.map_err(|error| format!("cannot build the husk: {error}"))?;

    let Some((rest, descriptors)) = husk::wait(&parent)? else {
        return Ok(());
    };
    drop(parent);
    let started = Instant::now();
    // Owned by nobody, as those of a process that starts, until each is taken.
    descriptors.into_iter().map(IntoRawFd::into_raw_fd).for_each(drop);
    if let Some(log) = rest.log_fd {
        // SAFETY: it was just received, and is named once.
        let log = unsafe { handed::take_log(log) }?;
        dup2_stderr(&log).map_err(|error| format!("cannot write to the log: {error}"))?;
    }
    let config = husk.with(rest);
    config
        .validate()
        .map_err(|error| format!("cannot use the configuration: {error}"))?;
    // SAFETY: they were just received, and each is named once.
    let rest = unsafe { Rest::take(&config) }
        .map_err(|error| format!("cannot use the descriptors handed over: {error}"))?;
    let exit = rest.exit.as_ref().and_then(|exit| exit.try_clone().ok());
    let machine = largest_file(&config, &rest)
        .and_then(|largest| Ok(jail.limit_files(largest)?))
        .and_then(adapt)
        .map_err(|error| format!("cannot close the jail: {error}"))
        .and_then(|jail| {
            core.into_machine(&config, rest, jail, started)
                .map_err(|error| format!("cannot build the machine: {error}"))
        });
    conclude(machine, exit, run)
}

/// Runs the machine, or reports why there is none.
fn conclude(
    machine: Result<Machine, String>,
    exit: Option<File>,
    run: impl FnOnce(Machine) -> ExitReport,
) -> Result<(), Box<dyn Error>> {
    let report = match machine {
        Ok(machine) => run(machine),
        Err(detail) => {
            let detail = Some(detail);
            let report = ExitReport {
                reason: ExitReason::Error,
                detail,
            };
            if let Some(exit) = exit {
                ending::write_report(&exit, &report)
                    .map_err(|error| format!("cannot write the exit report: {error}"))?;
            }
            report
        }
    };
    match report {
        ExitReport {
            reason: ExitReason::Error,
            detail,
        } => Err(detail.unwrap_or_else(|| "cannot tell what failed".into()).into()),
        _ => Ok(()),
    }
}

/// Enters the jail that the configuration asks for.
fn enter_jail(jail: Option<&JailConfig>) -> Result<Jail, Box<dyn Error>> {
    Ok(jail.map_or(Ok(Jail::NONE), Jail::enter)?)
}

/// The files that may be written to have their size already, or are short reports.
fn largest_file(config: &MachineConfig, rest: &Rest) -> Result<u64, Box<dyn Error>> {
    let mut largest = MAX_CONFIG_BYTES.max(MAX_STATE_BYTES);
    let drives = config.drives.iter().zip(&rest.drives);
    for (_, drive) in drives.filter(|(drive, _)| !drive.read_only) {
        largest = largest.max(drive.metadata()?.len());
    }
    Ok(largest)
}

fn read_config<T: DeserializeOwned>(fd: RawFd) -> Result<T, Box<dyn Error>> {
    // SAFETY: F_GETFD with a number that may be no descriptor fails with EBADF and does nothing.
    if fd < 0 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(format!("descriptor {fd} is not open").into());
    }
    // SAFETY: it is open (just seen), and nothing in this process owns it: the argument gave it to this function.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let mut json = Vec::new();
    file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut json)?;
    if json.len() as u64 > MAX_CONFIG_BYTES {
        return Err(format!("it is longer than {MAX_CONFIG_BYTES} bytes").into());
    }
    Ok(serde_json::from_slice(&json)?)
}
