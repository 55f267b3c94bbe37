//! `berth serve`: from the command line to a daemon that answers, and to its orderly end. What the daemon does is not
//! here: see [`crate::server`] and the runtime.

mod checked;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use berth_runtime::faults;
use berth_runtime::image::PullBehavior;
use berth_runtime::{
    DriveEngine, HugePages, Isolation, MOST_HUSKS, MachineOptions, Overcommit, Rates, Ratio, Runtime,
    RuntimeConfig, UserRange,
};
use clap::Args;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::client::{DEFAULT_DATA_DIR, DEFAULT_REGION};
use super::doctor::{GuestArgs, kvm};
use super::{output, time};
use crate::{App, Credentials};

#[derive(Args)]
#[command(after_help = "\
Prints the exports that clients need, and `berth: listening on http://…` once it is ready.
SIGTERM or Ctrl-C ends the daemon and leaves its tasks running: the next `berth serve` takes them up again.

Examples:
  sudo berth serve
  sudo berth serve --data-dir /srv/berth --listen 127.0.0.1:8080
  sudo RUST_LOG=debug berth serve            # more on stderr")]
pub(super) struct ServeArgs {
    /// Where everything is kept: state, images, machines, keys
    #[arg(long, env = "BERTH_DATA_DIR", value_name = "DIR", default_value = DEFAULT_DATA_DIR, hide_env_values = true)]
    data_dir: PathBuf,
    /// Where to listen; the API speaks plain HTTP, so beyond this host it belongs behind a TLS proxy
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7070")]
    listen: SocketAddr,
    /// The account in ARNs
    #[arg(long, value_name = "12 DIGITS", default_value = "000000000000", value_parser = checked::account_id)]
    account_id: String,
    /// The region in ARNs, whose prices count
    #[arg(long, value_name = "NAME", default_value = DEFAULT_REGION, value_parser = checked::region)]
    region: String,
    /// A registry that may be spoken to over plain HTTP; may be given several times
    #[arg(long = "insecure-registry", value_name = "HOST[:PORT]", value_parser = checked::registry)]
    insecure_registries: Vec<String>,
    /// User names and passwords of registries, as `docker login` writes them to its config.json; read anew at each pull,
    /// credential helpers are not run [default: DIR/docker-config.json, if it is there]
    #[arg(long, value_name = "FILE")]
    docker_config: Option<PathBuf>,
    /// When a registry is asked what a tag stands for: `default` each time, but if it does not answer, what was pulled
    /// last is used; `always` each time; `prefer-cached` only if the image is not here
    #[arg(long, value_name = "KIND", default_value = "default")]
    image_pull: PullBehavior,
    /// Most bytes a second of all image pulls together, such as 20MiB; not limited if not given
    #[arg(long, value_name = "SIZE", value_parser = checked::rate)]
    pull_rate_limit: Option<NonZeroU64>,
    /// Most bytes on disk of all images and of what is being pulled, such as 50GiB: those that no task uses go then, least
    /// recently used first, and pulls fail if that is not enough. Tasks' disks are promised what is beside it
    /// [default: a fifth of the file system of DIR, on a small one up to 2 GiB]
    #[arg(long, value_name = "SIZE", value_parser = checked::size)]
    image_budget: Option<u64>,
    #[command(flatten)]
    guest: GuestArgs,
    /// Shortest billed time of a task
    #[arg(long, value_name = "N", default_value_t = 60)]
    minimum_billed_seconds: u64,
    /// How long a stopped task can still be described, such as 1h or 7d
    #[arg(long, value_name = "SPAN", default_value = "1h", value_parser = time::span)]
    stopped_task_retention: Duration,
    /// Users (and groups) that nobody else on this host is: each machine runs as one of them
    #[arg(long, value_name = "FIRST-LAST", default_value_t)]
    machine_users: UserRange,
    /// What tasks share: `shared` starts them as clones of a template, whose memory they share until they write to it,
    /// `strict` boots a kernel for each; a cluster with the tag berth:isolation=strict has its tasks booted in any case
    #[arg(long, value_name = "KIND", default_value = "shared")]
    isolation: Isolation,
    /// Whether tasks' memory is of huge pages: `host` as the host is set, `never`, or `always` where it can be: the guest is
    /// faster at its memory then, and holds more of the host's. Clones of a template have huge pages only where it had nothing
    #[arg(long, value_name = "WHEN", default_value = "host")]
    huge_pages: HugePages,
    /// How many machines of each size that tasks of this daemon have had wait for the next one, which then starts sooner:
    /// 8 at most, of all sizes together as well; each has some 5 MiB of memory. 0 is none. With `--isolation strict` there are none
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=MOST_HUSKS as i64))]
    waiting_machines: u8,
    /// Most network of a task for each of its vCPUs, in Mbit/s each way; 0 is no limit
    #[arg(long, value_name = "N", default_value_t = Rates::default().network_mbit)]
    network_mbit: u32,
    /// Most that it reads and writes of each of its drives for each vCPU, in MB/s; 0 is no limit
    #[arg(long, value_name = "N", default_value_t = Rates::default().disk_mb)]
    disk_mb: u32,
    /// The same in requests a second
    #[arg(long, value_name = "N", default_value_t = Rates::default().disk_iops)]
    disk_iops: u32,
    /// How requests of drives are carried out: `auto` has many of them under way where the host has io_uring, `in-order` does
    /// without it
    #[arg(long, value_name = "NAME", default_value = "auto")]
    drive_engine: DriveEngine,
    /// How much of the host's processors is promised to tasks: 1 is all of them, 4 promises each four times. A task that
    /// would not fit is refused with a failure RESOURCE:CPU
    #[arg(long, value_name = "RATIO", default_value_t)]
    overcommit_cpu: Ratio,
    /// The same of its memory (RESOURCE:MEMORY); beyond 1 guests may be killed for want of it
    #[arg(long, value_name = "RATIO", default_value_t)]
    overcommit_memory: Ratio,
    /// The same of the disk that is free in the data directory beside the image budget (RESOURCE:DISK); beyond 1 guests may
    /// see their disks fail
    #[arg(long, value_name = "RATIO", default_value_t)]
    overcommit_disk: Ratio,
    /// Begins the name of everything made on the host: network namespaces, tables, the parent cgroup
    #[arg(long, value_name = "NAME", default_value = "berth", value_parser = checked::host_prefix)]
    host_prefix: String,
}

pub(super) async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    log_to_stderr()?;
    dump_no_core()?;
    faults::arm(&std::env::var(faults::VARIABLE).unwrap_or_default())?;
    // Before anything is made: a host that cannot run tasks is left as it was.
    kvm::open()?;
    let files = args.guest.files()?;
    let data_dir = make_private(&args.data_dir)?;
    // Until the process is gone: threads that work on the data may outlive this function.
    Box::leak(Box::new(lock(&data_dir)?));
    let credentials = Credentials::load_or_create(&data_dir)?;
    let listener = TcpListener::bind(args.listen).await.with_context(|| {
        format!(
            "cannot listen on {}; choose another address with --listen",
            args.listen
        )
    })?;
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() {
        tracing::warn!("{address} can be reached from other hosts, and the API speaks plain http");
    }
    output::print(&credentials.exports(&address.to_string(), &args.region))?;

    // From here on a signal ends the daemon in order, whatever it is doing.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: leaving the tasks running"),
            _ = interrupt.recv() => tracing::info!("SIGINT: leaving the tasks running"),
        }
    };
    tokio::pin!(shutdown);
    let opening = Runtime::open(RuntimeConfig {
        data_dir,
        vmm: files.vmm,
        kernel: files.kernel,
        initrd: files.initrd,
        region: args.region.clone(),
        insecure_registries: BTreeSet::from_iter(args.insecure_registries),
        image_budget_bytes: args.image_budget,
        pull_bytes_per_second: args.pull_rate_limit,
        pull_behavior: args.image_pull,
        docker_config: args.docker_config,
        minimum_billed_seconds: args.minimum_billed_seconds,
        machines: MachineOptions {
            users: args.machine_users,
            isolation: args.isolation,
            waiting: args.waiting_machines.into(),
            rates: Rates {
                network_mbit: args.network_mbit,
                disk_mb: args.disk_mb,
                disk_iops: args.disk_iops,
            },
            drive_engine: args.drive_engine,
            huge_pages: args.huge_pages,
        },
        host_prefix: args.host_prefix,
        stopped_task_retention: args.stopped_task_retention,
        overcommit: Overcommit {
            cpu: args.overcommit_cpu,
            memory: args.overcommit_memory,
            disk: args.overcommit_disk,
        },
    });
    let runtime = tokio::select! {
        runtime = opening => runtime?,
        () = &mut shutdown => return Ok(()),
    };
    let app = Arc::new(App::new(runtime, args.account_id, args.region, credentials));
    tokio::spawn(crate::endpoint::serve(Arc::clone(&app)));
    output::print(&format!("berth: listening on http://{address}\n"))?;
    crate::server::serve(listener, Arc::clone(&app), shutdown).await;
    app.runtime.close().await;
    Ok(())
}

/// The daemon's memory holds keys, secrets and passwords of registries: none of it is to be found in a file.
fn dump_no_core() -> anyhow::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
        .and_then(|()| set_dumpable(false))
        .context("cannot forbid core dumps")
}

/// To stderr, as much as `RUST_LOG` says.
fn log_to_stderr() -> anyhow::Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => tracing_subscriber::EnvFilter::try_new(&directives)
            .with_context(|| {
                format!(
                    "cannot read RUST_LOG {directives:?}; write for example RUST_LOG=info,berth_runtime=debug"
                )
            })?,
        _ => tracing_subscriber::EnvFilter::new("info"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    Ok(())
}

/// The data directory, made if it is not there, closed to other users; its absolute path.
fn make_private(dir: &Path) -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let cannot = || {
        format!(
            "cannot use the data directory {}; run as root, or choose another with --data-dir",
            dir.display()
        )
    };
    if !dir.exists() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(cannot)?;
    }
    dir.canonicalize().with_context(cannot)
}

/// One daemon a data directory: the lock ends with the process, however it ends.
fn lock(data_dir: &Path) -> anyhow::Result<Flock<std::fs::File>> {
    let path = data_dir.join("lock");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::Error::EWOULDBLOCK => anyhow::anyhow!(
            "another `berth serve` uses {}; stop it, or choose another data directory with --data-dir",
            data_dir.display()
        ),
        other => anyhow::Error::from(other).context(format!("cannot lock {}", path.display())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_dumps_no_core() {
        dump_no_core().unwrap();
        assert!(!nix::sys::prctl::get_dumpable().unwrap());
        assert_eq!(
            nix::sys::resource::getrlimit(Resource::RLIMIT_CORE).unwrap(),
            (0, 0)
        );
    }

    #[test]
    fn a_second_daemon_on_one_data_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path()).unwrap();
        let error = lock(dir.path()).unwrap_err().to_string();
        assert!(error.contains("another `berth serve` uses"), "{error}");
        drop(first);
        lock(dir.path()).unwrap();
    }
}
