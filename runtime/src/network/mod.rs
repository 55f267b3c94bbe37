//! The network of tasks on this host: VPCs are network namespaces, subnets are bridges in them, and the network
//! interface (ENI) of a task is a tap on a bridge. nf_tables holds security groups, anti-spoofing and NAT.
//!
//! It gives out no addresses on its own ([`ipam`] computes them) and keeps nothing on disk: after a restart the daemon
//! says again what there is, and [`Network::adopt`] makes it so. What exists is named after what it belongs to.

mod error;
mod host;
pub mod ipam;
mod link;
mod names;
mod namespace;
mod nft;
mod policy;
#[cfg(test)]
mod policy_tests;
mod resolv;
mod spec;
mod sysctl;
mod tap;
mod vpc;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::Ipv4Addr,
    os::fd::OwnedFd,
    sync::Arc,
};

use ipnet::Ipv4Net;
use tokio::sync::Mutex;

pub use self::{
    error::NetworkError,
    nft::NftError,
    spec::{EniSpec, MacAddr, Peer, Protocol, Rule, SecurityGroupSpec, SubnetSpec, VpcSpec},
    tap::template_tap,
};
use self::{
    host::Host, link::Links, names::Prefix, namespace::Namespace, nft::NftSocket, policy::VpcPolicy, vpc::Vpc,
};

/// Of every link, tap and task.
const MTU: u16 = 1500;
/// The sizes that a VPC or a subnet can have, as in AWS.
const CIDR_LEN: std::ops::RangeInclusive<u8> = 16..=28;

/// How a network is set up on its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkOptions {
    /// Whether VPCs are linked to the host's uplinks (NAT). Without, a VPC is an island.
    pub uplink: bool,
    /// Begins every name on the host, and tells apart daemons on one host: 1 to 8 lowercase letters and digits.
    pub prefix: String,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self {
            uplink: true,
            prefix: "berth".to_owned(),
        }
    }
}

/// The network of this host. All operations can be repeated.
pub struct Network {
    uplink: bool,
    host: Host,
    /// Changes to a VPC come one after the other; those to two VPCs do not wait for each other.
    vpcs: Mutex<HashMap<String, Entry>>,
}

struct Entry {
    spec: VpcSpec,
    /// None once it is removed, for those who waited for it meanwhile.
    vpc: Arc<Mutex<Option<Vpc>>>,
}

impl Network {
    /// Opens the network of the namespace that the calling thread is in. Changes nothing.
    pub fn open(options: NetworkOptions) -> Result<Self, NetworkError> {
        let host = Host::open(Prefix::new(&options.prefix)?)?;
        Ok(Self {
            uplink: options.uplink,
            host,
            vpcs: Mutex::default(),
        })
    }

    /// Whether this machine can have such networks: tries taps and rules, in a namespace that goes at once.
    pub async fn probe() -> Result<(), NetworkError> {
        tap::probe()?;
        let scratch = Namespace::anonymous().await?;
        let nft = Arc::new(scratch.run(NftSocket::open).await??);
        let rules = policy::vpc_ruleset("probe", &VpcPolicy::default(), Ipv4Net::default());
        host::commit(&nft, &mut None, rules).await
    }

    /// Sets up a VPC. One that a former daemon left keeps its interfaces and rules until [`Self::adopt`].
    pub async fn ensure_vpc(&self, spec: &VpcSpec) -> Result<(), NetworkError> {
        names::check_id(&spec.id)?;
        check_cidr(spec.cidr)?;
        let mut vpcs = self.vpcs.lock().await;
        match vpcs.get(&spec.id) {
            Some(known) if known.spec == *spec => return Ok(()),
            Some(_) => return Err(NetworkError::VpcDiffers(spec.id.clone())),
            None => {}
        }
        if let Some(other) = vpcs.values().find(|other| other.spec.index == spec.index) {
            return Err(NetworkError::IndexInUse {
                index: spec.index,
                other: other.spec.id.clone(),
            });
        }
        let vpc = Vpc::ensure(spec.clone(), &self.host, self.uplink).await?;
        vpcs.insert(
            spec.id.clone(),
            Entry {
                spec: spec.clone(),
                vpc: Arc::new(Mutex::new(Some(vpc))),
            },
        );
        Ok(())
    }

    /// Removes a VPC and everything in it.
    pub async fn remove_vpc(&self, vpc_id: &str) -> Result<(), NetworkError> {
        names::check_id(vpc_id)?;
        let known = self.vpcs.lock().await.remove(vpc_id);
        if let Some(entry) = known {
            entry.vpc.lock().await.take();
        }
        self.clear_namespace(&self.host.prefix().namespace(vpc_id)).await
    }

    /// Sets up a subnet of a VPC that is set up.
    pub async fn ensure_subnet(&self, spec: &SubnetSpec) -> Result<(), NetworkError> {
        names::check_id(&spec.id)?;
        check_cidr(spec.cidr)?;
        self.with(&spec.vpc_id, async |vpc| vpc.ensure_subnet(spec).await)
            .await
    }

    /// Removes a subnet. Interfaces that are still on it lose their connection.
    pub async fn remove_subnet(&self, vpc_id: &str, subnet_id: &str) -> Result<(), NetworkError> {
        self.with(vpc_id, async |vpc| vpc.remove_subnet(subnet_id).await)
            .await
    }

    /// Replaces all security groups of a VPC. Connections that are established stay so.
    pub async fn set_security_groups(
        &self,
        vpc_id: &str,
        groups: Vec<SecurityGroupSpec>,
    ) -> Result<(), NetworkError> {
        self.with(vpc_id, async |vpc| vpc.set_security_groups(groups).await)
            .await
    }

    /// Attaches an interface: the tap that comes back has one queue, a virtio-net header before every frame, and does
    /// not block. It exists as long as its file is open somewhere. Attaching anew takes it from whoever had it.
    pub async fn attach(&self, eni: &EniSpec) -> Result<OwnedFd, NetworkError> {
        self.with(&eni.vpc_id, async |vpc| vpc.attach(eni).await).await
    }

    /// Removes an interface, also if a machine still holds its tap. Not being there is no error.
    pub async fn detach(&self, eni_id: &str) -> Result<(), NetworkError> {
        let vpcs: Vec<_> = self
            .vpcs
            .lock()
            .await
            .values()
            .map(|entry| Arc::clone(&entry.vpc))
            .collect();
        for vpc in vpcs {
            let mut vpc = vpc.lock().await;
            if let Some(vpc) = vpc.as_mut().filter(|vpc| vpc.has_eni(eni_id)) {
                return vpc.detach(eni_id).await;
            }
        }
        Ok(())
    }

    /// After a restart, once VPCs, subnets and security groups are set up again: takes over the interfaces that running
    /// machines hold, and removes every tap and every VPC that is not listed. Returns the ids of the listed
    /// interfaces whose taps are gone: their machines have ended.
    pub async fn adopt(&self, enis: &[EniSpec]) -> Result<Vec<String>, NetworkError> {
        let vpcs = self.vpcs.lock().await;
        let mut by_vpc: BTreeMap<&str, Vec<EniSpec>> = vpcs.keys().map(|id| (&**id, Vec::new())).collect();
        for eni in enis {
            let known = by_vpc.get_mut(&*eni.vpc_id);
            known
                .ok_or_else(|| NetworkError::UnknownVpc(eni.vpc_id.clone()))?
                .push(eni.clone());
        }
        let mut missing = Vec::new();
        for (id, enis) in by_vpc {
            let Some(entry) = vpcs.get(id) else { continue };
            if let Some(vpc) = entry.vpc.lock().await.as_mut() {
                missing.extend(vpc.adopt(enis).await?);
            }
        }
        let kept: HashSet<_> = vpcs.keys().map(|id| self.host.prefix().namespace(id)).collect();
        for name in namespace::list(&self.host.prefix().namespaces())? {
            if !kept.contains(&name) {
                self.clear_namespace(&name).await?;
            }
        }
        Ok(missing)
    }

    /// Removes everything that bears this network's prefix, by whichever daemon it was made.
    pub async fn remove_all(&self) -> Result<(), NetworkError> {
        let mut vpcs = self.vpcs.lock().await;
        for (_, entry) in vpcs.drain() {
            entry.vpc.lock().await.take();
        }
        for name in namespace::list(&self.host.prefix().namespaces())? {
            self.clear_namespace(&name).await?;
        }
        self.host.clear().await
    }

    /// In bytes, of every interface of a task.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        MTU
    }

    /// The host's upstream name servers, at most three; none if it has only a resolver of its own.
    #[must_use]
    pub fn dns_servers(&self) -> Vec<Ipv4Addr> {
        resolv::dns_servers()
    }

    async fn clear_namespace(&self, name: &str) -> Result<(), NetworkError> {
        match Namespace::open(name)? {
            Some(namespace) => vpc::clear(name, &Links::open(&namespace).await?).await,
            None => namespace::remove(name),
        }
    }

    async fn with<T>(
        &self,
        vpc_id: &str,
        work: impl AsyncFnOnce(&mut Vpc) -> Result<T, NetworkError>,
    ) -> Result<T, NetworkError> {
        let unknown = || NetworkError::UnknownVpc(vpc_id.to_owned());
        let vpc = self
            .vpcs
            .lock()
            .await
            .get(vpc_id)
            .map(|entry| Arc::clone(&entry.vpc))
            .ok_or_else(unknown)?;
        let mut vpc = vpc.lock().await;
        work(vpc.as_mut().ok_or_else(unknown)?).await
    }
}

/// As a network's own address, of a size that a VPC or subnet can have.
fn check_cidr(cidr: Ipv4Net) -> Result<(), NetworkError> {
    if !CIDR_LEN.contains(&cidr.prefix_len()) || cidr.trunc() != cidr {
        return Err(NetworkError::CidrSize(cidr));
    }
    Ok(())
}
