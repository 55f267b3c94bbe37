//! Opening a runtime: what must exist is made, what a crash left is cleaned, running tasks are taken up again.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::{Runtime, RuntimeConfig, RuntimeError, Settings, Shared};
use crate::cgroup::Cgroups;
use crate::clock::{Clock, SystemClock};
use crate::image::{ImageOptions, ImageStore};
use crate::logs::Outputs;
use crate::machine::{Binaries, LocalHost, eni_spec};
use crate::metering::PriceList;
use crate::model::Timestamp;
use crate::model::cluster::{Cluster, ClusterStatus, DEFAULT_CLUSTER};
use crate::model::network::{SecurityGroup, Subnet, Vpc};
use crate::model::task::{Task, TaskStatus};
use crate::network::{Network, NetworkOptions, SecurityGroupSpec, SubnetSpec, VpcSpec};
use crate::secrets::{KEY_FILE, SecretStore};
use crate::state::keys;
use crate::store::{Record, Records, SqliteStore, StoreError, Transaction};
use crate::task::endpoint::Endpoints;
use crate::task::host::Host;
use crate::task::spec::Prepared;
use crate::task::supervisor::Context;
use crate::task::usage::Usages;

/// Most bytes that are downloaded for one image.
const MAX_IMAGE_BYTES: u64 = 32 << 30;
/// This part of the file system is for the images, unless another budget is set; tasks' disks get the rest.
const IMAGE_BUDGET_PARTS: u64 = 5;
/// What it is at least on a small file system, but never more than half.
const LEAST_IMAGE_BUDGET_BYTES: u64 = 2 << 30;
/// Where a Docker configuration is looked for, unless another path is set.
const DOCKER_CONFIG_FILE: &str = "docker-config.json";
const DEFAULT_VPC_CIDR: &str = "172.31.0.0/16";
const DEFAULT_SUBNET_CIDR: &str = "172.31.0.0/20";

/// What a runtime is put together from.
pub(super) struct Parts {
    pub records: Records,
    pub host: Arc<dyn Host>,
    pub outputs: Outputs,
    /// Where the keys of the secrets are.
    pub key_file: PathBuf,
    pub clock: Arc<dyn Clock>,
    pub prices: PriceList,
    pub region: String,
    pub settings: Settings,
}

impl Runtime {
    /// Opens the data directory, makes what must exist (default cluster, VPC, subnet, security group), cleans what a
    /// crash left, and takes running tasks up again.
    pub async fn open(config: RuntimeConfig) -> Result<Runtime, RuntimeError> {
        let dir = config.data_dir.as_path();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| internal(dir, &error))?;
        let store = SqliteStore::open(&dir.join("state.db"))?;
        let records = Records::new(Arc::new(store));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        make_defaults(&records, &config.region, clock.now()).await?;
        let images = ImageStore::open(
            &dir.join("images"),
            ImageOptions {
                insecure_registries: config.insecure_registries.clone(),
                max_compressed_bytes: MAX_IMAGE_BYTES,
                budget_bytes: match config.image_budget_bytes {
                    Some(bytes) => bytes,
                    None => default_image_budget(dir)?,
                },
                bytes_per_second: config.pull_bytes_per_second,
                docker_config: Some(
                    config
                        .docker_config
                        .unwrap_or_else(|| dir.join(DOCKER_CONFIG_FILE)),
                ),
                behavior: config.pull_behavior,
            },
        );
        let images = images.map_err(chain)?;
        let network = NetworkOptions {
            uplink: true,
            prefix: config.host_prefix.clone(),
        };
        let network = Network::open(network).map_err(chain)?;
        let cgroups = Cgroups::open(&config.host_prefix).map_err(chain)?;
        let binaries = Binaries {
            vmm: config.vmm,
            kernel: config.kernel,
            initrd: config.initrd,
        };
        let host = Arc::new(LocalHost::open(
            dir,
            binaries,
            config.machines,
            cgroups,
            network,
            images.clone(),
        )?);
        let tasks: Vec<Task> = unfinished(&records)
            .await?
            .into_iter()
            .map(|record| record.value)
            .collect();
        if host.resources().await?.disk_bytes == 0 {
            tracing::warn!(
                "what images may take leaves no disk to tasks: set a smaller --image-budget, or free some"
            );
        }
        hold_images(&images, &records, &tasks).await?;
        if let Err(error) = images.make_room().await {
            tracing::error!(%error, "images that are not used cannot be deleted");
        }
        set_up_networks(&host, &records, &tasks).await?;
        let kept: Vec<_> = tasks.iter().map(|task| task.id.clone()).collect();
        host.remove_leftovers(&kept).await?;
        Runtime::assemble(Parts {
            records,
            host,
            outputs: Outputs::open(&dir.join("logs"))?,
            key_file: dir.join(KEY_FILE),
            clock,
            prices: price_list(dir)?,
            region: config.region,
            settings: Settings {
                minimum_billed_seconds: config.minimum_billed_seconds,
                stopped_task_retention: config.stopped_task_retention,
                overcommit: config.overcommit,
            },
        })
        .await
    }

    /// Puts a runtime together and takes up every task that is not stopped.
    pub(super) async fn assemble(parts: Parts) -> Result<Runtime, RuntimeError> {
        let heartbeat = parts.records.get::<Timestamp>(keys::HEARTBEAT).await?;
        let secrets =
            SecretStore::open(parts.records.clone(), Arc::clone(&parts.clock), parts.key_file).await?;
        let context = Context {
            records: parts.records,
            secrets: Arc::new(secrets),
            host: parts.host,
            outputs: Arc::new(parts.outputs),
            clock: parts.clock,
            region: parts.region,
            last_heartbeat: heartbeat.map(|record| record.value),
            pulls: Mutex::default(),
            endpoints: Endpoints::default(),
            usages: Usages::default(),
        };
        let runtime = Runtime {
            shared: Arc::new(Shared {
                context: Arc::new(context),
                prices: parts.prices,
                settings: parts.settings,
                supervisors: Mutex::default(),
                pulls: Mutex::default(),
                admission: tokio::sync::Mutex::default(),
                volume_work: Mutex::default(),
            }),
        };
        let unfinished = unfinished(&runtime.shared.context.records).await?;
        let ids: Vec<_> = unfinished.iter().map(|record| record.value.id.clone()).collect();
        runtime.settle_volumes(&ids).await?;
        for record in unfinished {
            runtime.supervise(record, true);
        }
        runtime.start_background();
        Ok(runtime)
    }
}

async fn unfinished(records: &Records) -> Result<Vec<Record<Task>>, StoreError> {
    let mut tasks = records.list::<Task>(keys::TASKS).await?;
    tasks.retain(|record| record.value.status != TaskStatus::Stopped);
    Ok(tasks)
}

/// The default cluster, VPC, subnet and security group, unless the store has them.
pub(super) async fn make_defaults(
    records: &Records,
    region: &str,
    now: Timestamp,
) -> Result<(), RuntimeError> {
    if records
        .get::<Cluster>(&keys::cluster(DEFAULT_CLUSTER))
        .await?
        .is_none()
    {
        let cluster = Cluster {
            name: DEFAULT_CLUSTER.to_owned(),
            status: ClusterStatus::Active,
            settings: Vec::new(),
            tags: Vec::new(),
            created_at: now,
        };
        let transaction = Transaction::default().create(keys::cluster(DEFAULT_CLUSTER), &cluster)?;
        records.commit(transaction).await?;
    }
    if !records.list::<Vpc>(keys::VPCS).await?.is_empty() {
        return Ok(());
    }
    let cidr = |text: &str| {
        text.parse()
            .map_err(|_| RuntimeError::Internal(format!("{text} is no network")))
    };
    let vpc = Vpc {
        id: random_id("vpc"),
        index: 0,
        cidr: cidr(DEFAULT_VPC_CIDR)?,
        is_default: true,
    };
    let subnet = Subnet {
        id: random_id("subnet"),
        vpc_id: vpc.id.clone(),
        cidr: cidr(DEFAULT_SUBNET_CIDR)?,
        availability_zone: format!("{region}a"),
        is_default: true,
    };
    let group = SecurityGroup {
        id: random_id("sg"),
        vpc_id: vpc.id.clone(),
        name: "default".to_owned(),
        description: "default VPC security group".to_owned(),
        is_default: true,
    };
    let transaction = Transaction::default()
        .create(keys::vpc(&vpc.id), &vpc)?
        .create(keys::subnet(&subnet.id), &subnet)?
        .create(keys::security_group(&group.id), &group)?;
    records.commit(transaction).await?;
    Ok(())
}

/// Makes the host's networks what the store says, and keeps the interfaces of `tasks` only.
async fn set_up_networks(host: &LocalHost, records: &Records, tasks: &[Task]) -> Result<(), RuntimeError> {
    let network = host.network();
    for vpc in records.list::<Vpc>(keys::VPCS).await? {
        let vpc = vpc.value;
        let spec = VpcSpec {
            id: vpc.id,
            index: vpc.index,
            cidr: vpc.cidr,
        };
        network.ensure_vpc(&spec).await.map_err(chain)?;
        let groups = records.list::<SecurityGroup>(keys::SECURITY_GROUPS).await?;
        let groups = groups
            .into_iter()
            .map(|group| group.value)
            .filter(|group| group.vpc_id == spec.id);
        let groups = groups
            .map(|group| SecurityGroupSpec::default_group(&group.id, &group.vpc_id))
            .collect();
        network
            .set_security_groups(&spec.id, groups)
            .await
            .map_err(chain)?;
    }
    for subnet in records.list::<Subnet>(keys::SUBNETS).await? {
        let Subnet { id, vpc_id, cidr, .. } = subnet.value;
        network
            .ensure_subnet(&SubnetSpec { id, vpc_id, cidr })
            .await
            .map_err(chain)?;
    }
    let enis = tasks
        .iter()
        .map(|task| eni_spec(&task.eni))
        .collect::<Result<Vec<_>, _>>()?;
    network.adopt(&enis).await.map_err(chain)?;
    Ok(())
}

/// `DIR/prices.json` where there is one, else the built-in list.
fn price_list(dir: &Path) -> Result<PriceList, RuntimeError> {
    let path = dir.join("prices.json");
    match std::fs::read_to_string(&path) {
        Ok(json) => PriceList::parse(&json)
            .map_err(|error| RuntimeError::Internal(format!("{}: {error}", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(PriceList::built_in()?),
        Err(error) => Err(internal(&path, &error)),
    }
}

/// What the tasks were given before stays for them.
async fn hold_images(images: &ImageStore, records: &Records, tasks: &[Task]) -> Result<(), RuntimeError> {
    for task in tasks {
        let prepared = records.get::<Prepared>(&keys::prepared(&task.id)).await?;
        for image in prepared.iter().flat_map(|prepared| &prepared.value.images) {
            images.hold(task.id.as_str(), &image.rootfs);
        }
    }
    Ok(())
}

fn default_image_budget(dir: &Path) -> Result<u64, RuntimeError> {
    let found = nix::sys::statvfs::statvfs(dir).map_err(|error| internal(dir, &error.into()))?;
    Ok(image_budget_of(
        found.blocks().saturating_mul(found.fragment_size()),
    ))
}

/// A part of the file system that the data is on.
fn image_budget_of(file_system_bytes: u64) -> u64 {
    let least = LEAST_IMAGE_BUDGET_BYTES.min(file_system_bytes / 2);
    least.max(file_system_bytes / IMAGE_BUDGET_PARTS)
}

/// `vpc-` and 17 hex digits, as AWS names things.
pub(super) fn random_id(kind: &str) -> String {
    format!("{kind}-{:017x}", rand::random::<u128>() >> 60)
}

fn internal(path: &Path, error: &std::io::Error) -> RuntimeError {
    RuntimeError::Internal(format!("{}: {error}", path.display()))
}

fn chain(error: impl std::error::Error) -> RuntimeError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    RuntimeError::Internal(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_default_image_budget_is_a_fifth_and_more_on_small_disks() {
        assert_eq!(image_budget_of(1000 * GIB), 200 * GIB);
        assert_eq!(image_budget_of(40 * GIB), 8 * GIB);
        assert_eq!(image_budget_of(8 * GIB), 2 * GIB);
        assert_eq!(image_budget_of(2 * GIB), GIB);
        assert_eq!(image_budget_of(0), 0);
    }
}
