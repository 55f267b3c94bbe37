//! `berth-vmm`: reads the configuration from a descriptor, runs the machine, reports how it ended.

#[cfg(feature = "jail-probes")]
mod probing;

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;
use std::time::Instant;

use berth_vmm::config::{ExitReason, ExitReport, MachineConfig};
use berth_vmm::ending;
use berth_vmm::handed::Handed;
use berth_vmm::jail::Jail;
use berth_vmm::machine::Machine;
use berth_vmm::snapshot::MAX_STATE_BYTES;

const HELP: &str = "\
berth-vmm runs one microVM.

usage: berth-vmm --config-fd N

    --config-fd N   read the machine's configuration, as JSON, from descriptor N
    --version       print the version
    --help          print this

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
        ["--config-fd", number] => match number.parse() {
            Ok(fd) => run(fd, started, Machine::run, Ok),
            Err(_) => Err(format!("cannot read the descriptor number {number:?}").into()),
        },
        #[cfg(feature = "jail-probes")]
        ["--config-fd", number, ref probing @ ..] => probing::run(number, started, probing),
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
    let config = read_config(config_fd).map_err(|error| format!("cannot read the configuration: {error}"))?;
    config
        .validate()
        .map_err(|error| format!("cannot use the configuration: {error}"))?;
    // SAFETY: this process has only just started and has opened nothing that it still holds, so whatever is open was
    // handed over; the one descriptor taken so far has been closed again.
    let handed = unsafe { Handed::take(&config) }
        .map_err(|error| format!("cannot use the descriptors handed over: {error}"))?;
    let exit = handed.exit.as_ref().and_then(|exit| exit.try_clone().ok());
    let machine = enter_jail(&config, &handed)
        .and_then(adapt)
        .map_err(|error| format!("cannot enter the jail: {error}"))
        .and_then(|jail| {
            Machine::new(&config, handed, jail, started)
                .map_err(|error| format!("cannot build the machine: {error}"))
        });
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

/// Enters the jail that the configuration asks for. The files that may be written to have their size already, or are
/// short reports.
fn enter_jail(config: &MachineConfig, handed: &Handed) -> Result<Jail, Box<dyn Error>> {
    let Some(jail) = &config.jail else {
        return Ok(Jail::NONE);
    };
    let mut largest = MAX_CONFIG_BYTES.max(MAX_STATE_BYTES);
    let writable = config
        .drives
        .iter()
        .zip(&handed.drives)
        .filter(|(drive, _)| !drive.read_only);
    for (_, drive) in writable {
        largest = largest.max(drive.metadata()?.len());
    }
    Ok(Jail::enter(jail, largest)?)
}

fn read_config(fd: RawFd) -> Result<MachineConfig, Box<dyn Error>> {
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
