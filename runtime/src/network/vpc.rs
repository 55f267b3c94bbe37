//! One VPC on the host: its namespace, and what is in it now.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    sync::Arc,
};

use ipnet::Ipv4Net;

use super::{
    EniSpec, MTU, MacAddr, NetworkError, SecurityGroupSpec, SubnetSpec, VpcSpec,
    host::{self, Host},
    ipam,
    link::Links,
    names::{self, TAP, TRANSIT},
    namespace::{self, Namespace},
    nft::{NftSocket, Ruleset},
    policy::{self, VpcPolicy},
    sysctl, tap,
};
use crate::faults::{self, Point};

pub(super) struct Vpc {
    spec: VpcSpec,
    namespace: Namespace,
    links: Links,
    nft: Arc<NftSocket>,
    /// Of the rules: the name of their tables, and where the links to the host lie.
    table: String,
    transit_block: Ipv4Net,
    subnets: BTreeMap<String, SubnetSpec>,
    policy: VpcPolicy,
    /// The rules that are in force; none while that is not known.
    live: Option<Ruleset>,
    /// Found, not made, and nothing done to it yet: its interfaces are not known yet, so its rules are left as they are.
    found: bool,
}

impl Vpc {
    /// Finds the VPC's namespace or makes it.
    pub(super) async fn ensure(spec: VpcSpec, host: &Host, uplink: bool) -> Result<Self, NetworkError> {
        let name = host.prefix().namespace(&spec.id);
        let (namespace, found) = match Namespace::open(&name)? {
            Some(namespace) => (namespace, true),
            None => (Namespace::create(&name).await?, false),
        };
        sysctl::set(&namespace, sysctl::ROUTER.iter().copied()).await?;
        let nft = Arc::new(namespace.run(NftSocket::open).await??);
        let links = Links::open(&namespace).await?;
        let table = host.prefix().as_str().to_owned();
        let mut vpc = Self {
            spec,
            namespace,
            links,
            nft,
            table,
            transit_block: host.transit_block(),
            subnets: BTreeMap::new(),
            policy: VpcPolicy::default(),
            live: None,
            found,
        };
        if !found {
            vpc.enforce().await?;
        }
        if uplink {
            host.connect(vpc.spec.index, &vpc.namespace, &vpc.links).await?;
        }
        Ok(vpc)
    }

    pub(super) fn has_eni(&self, eni_id: &str) -> bool {
        self.policy.enis.contains_key(eni_id)
    }

    pub(super) async fn ensure_subnet(&mut self, subnet: &SubnetSpec) -> Result<(), NetworkError> {
        let (id, cidr) = (&subnet.id, subnet.cidr);
        if !self.spec.cidr.contains(&cidr) {
            return Err(NetworkError::SubnetOutsideVpc {
                subnet: id.clone(),
                cidr,
                vpc: self.spec.id.clone(),
            });
        }
        let overlaps = |other: &&SubnetSpec| {
            other.id != *id && (other.cidr.contains(&cidr) || cidr.contains(&other.cidr))
        };
        if let Some(other) = self.subnets.values().find(overlaps) {
            return Err(NetworkError::SubnetOverlap {
                subnet: id.clone(),
                cidr,
                other: other.id.clone(),
            });
        }
        let (bridge, mac) = (names::bridge(id), MacAddr::derived(id));
        self.links
            .ensure_bridge(&bridge, mac, ipam::gateway(cidr), cidr.prefix_len(), MTU)
            .await?;
        self.subnets.insert(id.clone(), subnet.clone());
        Ok(())
    }

    pub(super) async fn remove_subnet(&mut self, subnet_id: &str) -> Result<(), NetworkError> {
        self.links.delete(&names::bridge(subnet_id)).await?;
        self.subnets.remove(subnet_id);
        Ok(())
    }

    pub(super) async fn set_security_groups(
        &mut self,
        groups: Vec<SecurityGroupSpec>,
    ) -> Result<(), NetworkError> {
        for group in &groups {
            names::check_id(&group.id)?;
            if group.vpc_id != self.spec.id {
                return Err(NetworkError::ForeignSecurityGroup {
                    group: group.id.clone(),
                    vpc: self.spec.id.clone(),
                    actual: group.vpc_id.clone(),
                });
            }
        }
        self.policy.groups = groups
            .into_iter()
            .map(|group| (group.id.clone(), group))
            .collect();
        if self.found { Ok(()) } else { self.enforce().await }
    }

    /// Makes the tap of an interface and plugs it in. Whatever else had it before loses it.
    pub(super) async fn attach(&mut self, eni: &EniSpec) -> Result<OwnedFd, NetworkError> {
        self.check(eni)?;
        let name = names::tap(&eni.id);
        self.links.delete(&name).await?;
        self.policy.enis.insert(eni.id.clone(), eni.clone());
        let plugged = self.plug(eni, name).await;
        if plugged.is_err() {
            // The tap went with its file. Its rules go too; should that fail as well, they match nothing.
            self.policy.enis.remove(&eni.id);
            if let Err(error) = self.enforce().await {
                tracing::warn!(eni = eni.id, %error, "cannot take back the rules of an interface");
            }
        }
        plugged
    }

    async fn plug(&mut self, eni: &EniSpec, name: String) -> Result<OwnedFd, NetworkError> {
        let created = name.clone();
        let tap = self.namespace.run(move || tap::create(&created)).await??;
        self.links
            .plug(&name, &names::bridge(&eni.subnet_id), eni.mac, MTU)
            .await?;
        faults::pass(Point::TapMade);
        self.enforce().await?;
        // Last, so that not one frame passes before the rules are in force.
        self.links.bring_up(&name).await?;
        Ok(tap)
    }

    pub(super) async fn detach(&mut self, eni_id: &str) -> Result<(), NetworkError> {
        self.links.delete(&names::tap(eni_id)).await?;
        self.policy.enis.remove(eni_id);
        self.enforce().await
    }

    /// Takes over what a former daemon left: these interfaces stay, all others go. Returns those that are not there.
    pub(super) async fn adopt(&mut self, enis: Vec<EniSpec>) -> Result<Vec<String>, NetworkError> {
        self.policy.enis.clear();
        let mut there: BTreeSet<_> = self.links.list(TAP).await?.into_iter().collect();
        let mut missing = Vec::new();
        for eni in enis {
            self.check(&eni)?;
            let name = names::tap(&eni.id);
            let bridge = names::bridge(&eni.subnet_id);
            let plugged = there.remove(&name) && {
                let plugged = self.links.plug(&name, &bridge, eni.mac, MTU).await;
                self.unless_gone(&name, plugged).await?
            };
            if plugged {
                self.policy.enis.insert(eni.id.clone(), eni);
            } else {
                missing.push(eni.id);
            }
        }
        for name in there {
            self.links.delete(&name).await?;
        }
        self.enforce().await?;
        // A crash may have come between plugging in and bringing up.
        let mut gone = Vec::new();
        for eni_id in self.policy.enis.keys() {
            let name = names::tap(eni_id);
            let up = self.links.bring_up(&name).await;
            if !self.unless_gone(&name, up).await? {
                gone.push(eni_id.clone());
            }
        }
        if !gone.is_empty() {
            self.policy.enis.retain(|eni_id, _| !gone.contains(eni_id));
            self.enforce().await?;
            missing.extend(gone);
        }
        Ok(missing)
    }

    /// Whether something was done to a tap. It may go at any moment, with the machine that holds it, and then whatever is
    /// done to it fails; that is no error.
    async fn unless_gone(&self, tap: &str, done: Result<(), NetworkError>) -> Result<bool, NetworkError> {
        match done {
            Ok(()) => Ok(true),
            Err(_) if self.links.index(tap).await?.is_none() => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn enforce(&mut self) -> Result<(), NetworkError> {
        self.found = false;
        let wanted = policy::vpc_ruleset(&self.table, &self.policy, self.transit_block);
        host::commit(&self.nft, &mut self.live, wanted).await
    }

    fn check(&self, eni: &EniSpec) -> Result<(), NetworkError> {
        names::check_id(&eni.id)?;
        let subnet = self
            .subnets
            .get(&eni.subnet_id)
            .ok_or_else(|| NetworkError::UnknownSubnet(eni.subnet_id.clone()))?;
        if !ipam::is_assignable(subnet.cidr, eni.address) {
            let (eni, address) = (eni.id.clone(), eni.address);
            return Err(NetworkError::Address {
                eni,
                address,
                subnet: subnet.id.clone(),
            });
        }
        if !eni.mac.is_unicast() {
            return Err(NetworkError::Mac {
                eni: eni.id.clone(),
                mac: eni.mac,
            });
        }
        if let Some(group) = eni
            .security_groups
            .iter()
            .find(|id| !self.policy.groups.contains_key(*id))
        {
            return Err(NetworkError::UnknownSecurityGroup {
                vpc: self.spec.id.clone(),
                group: group.clone(),
            });
        }
        for other in self.policy.enis.values().filter(|other| other.id != eni.id) {
            let what = if other.address == eni.address {
                "address"
            } else if other.mac == eni.mac {
                "mac address"
            } else if names::tap(&other.id) == names::tap(&eni.id) {
                "tap name"
            } else {
                continue;
            };
            return Err(NetworkError::Duplicate {
                eni: eni.id.clone(),
                other: other.id.clone(),
                what,
            });
        }
        if self
            .subnets
            .values()
            .any(|subnet| MacAddr::derived(&subnet.id) == eni.mac)
        {
            return Err(NetworkError::Mac {
                eni: eni.id.clone(),
                mac: eni.mac,
            });
        }
        Ok(())
    }
}

/// Empties a namespace and takes its name away. A machine that still holds a tap keeps the namespace itself, so
/// what is in it goes first.
pub(super) async fn clear(name: &str, links: &Links) -> Result<(), NetworkError> {
    for start in [TAP, names::BRIDGE, TRANSIT] {
        for link in links.list(start).await? {
            links.delete(&link).await?;
        }
    }
    namespace::remove(name)
}
