//! What only the tests of the jail have the program do. Not part of a release.

use std::error::Error;
use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::Instant;

use berth_vmm::jail::Jail;
use berth_vmm::jail::probes::Probe;
use berth_vmm::jail::trial::Trial;
use berth_vmm::machine::Machine;

/// `--probe NAME --parent PID --kvm FD [--without-filters]`: runs the machine after trying one thing that its jail is there
/// to prevent. `--without THREAD:CALL[:INDEX]`: with one rule of the filters left out. `--note FD`: notes in the file which
/// rules are used.
pub(super) fn run(
    part: &str,
    config_fd: &str,
    started: Instant,
    arguments: &[&str],
) -> Result<(), Box<dyn Error>> {
    let config_fd: RawFd = config_fd.parse()?;
    match *arguments {
        ["--probe", name, "--parent", parent, "--kvm", kvm, ref rest @ ..] => {
            let (probe, parent, kvm): (Probe, _, _) = (name.parse()?, parent.parse()?, kvm.parse()?);
            let adapt: fn(Jail) -> _ = match rest {
                [] => Ok,
                ["--without-filters"] => |jail| Ok(jail.without_filters()),
                _ => return Err("cannot understand the probe".into()),
            };
            let then = || match probe.run(parent, kvm) {
                Ok(()) => eprintln!("probe {name}: done"),
                Err(error) => eprintln!("probe {name}: {error}"),
            };
            let run = |machine: Machine| machine.run_once_closed(then);
            match part {
                "--config-fd" => super::run(config_fd, started, run, adapt),
                "--husk-config-fd" => super::run_husk(config_fd, run, adapt),
                _ => Err("cannot understand the configuration's part".into()),
            }
        }
        ["--without", rule] => {
            let trial = Trial::without(rule).map_err(|error| format!("cannot leave out {rule}: {error}"))?;
            let trial: &'static Trial = Box::leak(Box::new(trial));
            super::run(config_fd, started, Machine::run, |jail| Ok(jail.on_trial(trial)))
        }
        ["--note", fd] => {
            // SAFETY: the parent has opened it for this.
            let file = File::from(unsafe { OwnedFd::from_raw_fd(fd.parse()?) });
            let adapt = |jail: Jail| Ok(jail.on_trial(Trial::noting(&file)?));
            super::run(config_fd, started, Machine::run, adapt)
        }
        _ => Err("cannot understand what to probe".into()),
    }
}
