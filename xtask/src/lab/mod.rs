//! `cargo xtask lab`: runs a command as root where KVM can run real guests: on this machine if its processor can,
//! otherwise in an emulated one. This file decides where, and runs it here; `nested` is the emulated machine.

mod emulator;
mod image;
mod nested;
mod watch;

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::setup::Consent;
use crate::workspace;

/// The lab itself failed; anything else is the command's own status.
pub(crate) const LAB_FAILED: u8 = 125;
/// The command's time was up (as `timeout(1)` says it).
const TIMED_OUT: u8 = 124;

/// Prefixes of the environment variables that reach the command.
const PASSED_PREFIXES: [&str; 3] = ["BERTH_", "CARGO_", "RUST_"];
/// Further ones, by name.
const PASSED: [&str; 8] = ["CI", "HOME", "LANG", "LC_ALL", "NO_COLOR", "PATH", "TERM", "USER"];

/// What the nested lab emulates, which measurements may want otherwise.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Emulated {
    /// The nested lab's processor, as QEMU's -cpu takes it
    #[arg(long, default_value = nested::PROCESSOR)]
    pub(crate) processor: String,
    /// Whether the nested lab caches what it reads of this machine's files; labs of virtme-ng do not
    #[arg(long, value_enum, default_value_t = HostFiles::Cached)]
    pub(crate) host_files: HostFiles,
    /// Keeps this machine's processors from idling: one that is virtual itself comes back late from that
    #[arg(long)]
    pub(crate) awake: bool,
}

impl Default for Emulated {
    fn default() -> Self {
        Self {
            processor: nested::PROCESSOR.to_owned(),
            host_files: HostFiles::Cached,
            awake: false,
        }
    }
}

/// How this machine's files are read in a nested lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum HostFiles {
    Cached,
    Uncached,
}

/// What to run, and in what.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Virtual CPUs of the nested lab
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub(crate) cpus: u8,
    /// Memory of the nested lab in MiB [default: 12288, or 60 % of the machine's]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1024..))]
    pub(crate) memory: Option<u32>,
    /// Size of the throw-away data disk in GiB; it takes only the space that is written
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) disk: u32,
    /// Seconds that the command may take; then everything is killed and the status is 124
    #[arg(long)]
    pub(crate) timeout: Option<u64>,
    /// Seconds without a word from the command after which a nested lab counts as lost
    #[arg(long)]
    pub(crate) silence: Option<u64>,
    #[command(flatten)]
    pub(crate) emulated: Emulated,
    /// Passes one more environment variable
    #[arg(long = "env", value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Uses the nested lab even where the machine could do it itself
    #[arg(long)]
    pub(crate) nested: bool,
    /// Installs what is needed without asking (as do CI=true and BERTH_YES=1)
    #[arg(long)]
    pub(crate) yes: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}

impl Options {
    /// The defaults, for a command that another part of xtask runs.
    pub(crate) fn for_command(command: Vec<OsString>, yes: bool) -> Self {
        Self {
            cpus: 2,
            memory: None,
            disk: 24,
            timeout: None,
            silence: None,
            emulated: Emulated::default(),
            names: Vec::new(),
            nested: false,
            yes,
            command,
        }
    }
}

/// Runs the command and returns its status, 124 for a timeout, or 125 where the lab itself failed.
pub(crate) fn run(options: &Options) -> Result<u8> {
    let results = results();
    fs::create_dir_all(&results).with_context(|| format!("cannot create {}", results.display()))?;
    if !options.nested && hardware_runs_guests() {
        return direct(options);
    }
    let consent = Consent::new(options.yes);
    nested::run(options, &image::prepare(consent)?)
}

/// The folder that the command can write to and that stays: `target/lab`.
pub(crate) fn results() -> PathBuf {
    workspace::output().join("lab")
}

/// Whether a kernel boots on this machine's KVM. A paravirtual `/dev/kvm` opens as well but runs only toys.
fn hardware_runs_guests() -> bool {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags"))
        .unwrap_or_default();
    let can = flags
        .split_whitespace()
        .any(|flag| flag == "vmx" || flag == "svm");
    if !can {
        return false;
    }
    // Others get there through sudo.
    let root = nix::unistd::geteuid().is_root();
    let opens = || OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    if root {
        opens()
    } else {
        fs::exists("/dev/kvm").unwrap_or(false)
    }
}

/// Runs the command on this machine.
fn direct(options: &Options) -> Result<u8> {
    let data = data_folder()?;
    let mut environment = environment(&options.names);
    environment.push(("BERTH_LAB".to_owned(), "direct".into()));
    environment.push(("BERTH_LAB_DATA".to_owned(), data.path.clone().into()));
    environment.push(("BERTH_LAB_RESULTS".to_owned(), results().into()));

    let mut line: Vec<OsString> = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        eprintln!("lab: this machine runs guests itself; sudo runs the command as root");
        line.extend(["sudo".into(), "env".into()]);
        line.extend(environment.iter().map(|(name, value)| {
            let mut pair = OsString::from(format!("{name}="));
            pair.push(value);
            pair
        }));
    }
    if let Some(seconds) = options.timeout {
        line.extend([
            "timeout".into(),
            "--kill-after=10".into(),
            seconds.to_string().into(),
        ]);
    }
    line.extend(options.command.iter().cloned());
    let (program, arguments) = line.split_first().context("no command")?;
    let status = Command::new(program)
        .args(arguments)
        .envs(environment)
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let code = code(status);
    if options.timeout.is_some() && code == TIMED_OUT {
        say_timed_out(options);
    }
    Ok(code)
}

/// A temporary data folder of a direct run, removed at its end.
struct DataFolder {
    path: PathBuf,
}

fn data_folder() -> Result<DataFolder> {
    let path = PathBuf::from(format!("/var/tmp/berth-lab-{}", std::process::id()));
    fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(DataFolder { path })
}

impl Drop for DataFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("lab: cannot remove {}: {error}", self.path.display());
        }
    }
}

/// The variables that reach the command.
fn environment(names: &[String]) -> Vec<(String, OsString)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| passes(name, names))
        .collect()
}

fn passes(name: &str, names: &[String]) -> bool {
    let shell_name = name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric());
    shell_name
        && (PASSED.contains(&name)
            || PASSED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            || names.iter().any(|wanted| wanted == name))
}

/// A status as a shell says it.
fn code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(LAB_FAILED)
}

fn say_timed_out(options: &Options) {
    let limit = Duration::from_secs(options.timeout.unwrap_or_default());
    eprintln!(
        "lab: TIMED OUT after {} s; everything it started was killed",
        limit.as_secs()
    );
}

/// The host's memory, so that a lab does not ask for more than there is.
fn default_memory_mib() -> Result<u32> {
    const WANTED_MIB: u64 = 12 * 1024;
    let meminfo = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let total_kib: u64 = meminfo
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix(" kB")?
                .trim()
                .parse()
                .ok()
        })
        .context("no MemTotal in /proc/meminfo")?;
    let mib = WANTED_MIB.min(total_kib / 1024 * 6 / 10);
    ensure!(
        mib >= 1024,
        "the machine has too little memory for a lab: {total_kib} KiB"
    );
    u32::try_from(mib).context("the memory of the machine is out of range")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_variables_reach_the_command_and_others_do_not() {
        let names = ["AWS_REGION".to_owned(), "BASH_FUNC_x%%".to_owned()];
        for name in ["PATH", "BERTH_X", "CARGO_TARGET_DIR", "CI", "AWS_REGION"] {
            assert!(passes(name, &names), "{name}");
        }
        for name in [
            "AWS_SECRET_ACCESS_KEY",
            "GITHUB_TOKEN",
            "BASH_FUNC_x%%",
            "BERTH_A;reboot",
        ] {
            assert!(!passes(name, &names), "{name}");
        }
    }

    #[test]
    fn a_status_is_carried_as_a_shell_would() {
        assert_eq!(code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(code(ExitStatus::from_raw(9)), 137);
    }
}
