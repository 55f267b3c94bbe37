//! The host's side of the network: its rules, its uplinks, and its ends of the links to VPCs.

use std::{collections::BTreeSet, fs, net::Ipv4Addr, sync::Arc};

use ipnet::Ipv4Net;
use tokio::sync::Mutex;

use super::{
    MTU, NetworkError,
    ipam::{self, Transit},
    link::Links,
    names::{Prefix, TRANSIT},
    namespace::Namespace,
    nft::{self, NftSocket, Ruleset},
    policy, sysctl,
};

/// The host as VPCs see it.
pub(super) struct Host {
    namespace: Namespace,
    prefix: Prefix,
    nft: Arc<NftSocket>,
    /// The rules that are in force; none while that is not known.
    live: Mutex<Option<Ruleset>>,
}

impl Host {
    /// The namespace of the calling thread is the host's.
    pub(super) fn open(prefix: Prefix) -> Result<Self, NetworkError> {
        Ok(Self {
            namespace: Namespace::current()?,
            prefix,
            nft: Arc::new(NftSocket::open()?),
            live: Mutex::new(None),
        })
    }

    pub(super) fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    pub(super) fn transit_block(&self) -> Ipv4Net {
        ipam::transit_block(self.prefix.as_str())
    }

    /// Links a VPC to the host and, by NAT, to what lies behind the host's uplinks.
    pub(super) async fn connect(
        &self,
        index: u16,
        vpc: &Namespace,
        vpc_links: &Links,
    ) -> Result<(), NetworkError> {
        // The rules come first: at no time is there a link without them.
        self.enforce().await?;
        let name = self.prefix.host_link(index);
        let links = Links::open(&self.namespace).await?;
        let transit = Transit::new(self.transit_block(), index);
        if links.index(&name).await?.is_none() || vpc_links.index(TRANSIT).await?.is_none() {
            links.delete(&name).await?;
            vpc_links.delete(TRANSIT).await?;
            links.add_veth(&name, TRANSIT, vpc, MTU).await?;
        }
        sysctl::set(&self.namespace, sysctl::without_ipv6(&name)).await?;
        sysctl::set(&self.namespace, sysctl::forwarding(&name)).await?;
        links.configure(&name, transit.host, Transit::PREFIX_LEN).await?;
        vpc_links
            .configure(TRANSIT, transit.vpc, Transit::PREFIX_LEN)
            .await?;
        vpc_links.ensure_default_route(transit.host).await
    }

    /// Removes everything that is on the host itself.
    pub(super) async fn clear(&self) -> Result<(), NetworkError> {
        let links = Links::open(&self.namespace).await?;
        for name in links.list(&self.prefix.host_links()).await? {
            links.delete(&name).await?;
        }
        let mut live = self.live.lock().await;
        *live = None;
        let rules = self.ruleset(&BTreeSet::new());
        let nft = Arc::clone(&self.nft);
        blocking(move || nft.commit(&nft::removal(&rules)).map_err(Into::into)).await
    }

    /// Brings the host's rules in force for the uplinks that it has now.
    async fn enforce(&self) -> Result<(), NetworkError> {
        let uplinks = self.uplinks().await?;
        if uplinks.is_empty() {
            tracing::warn!("the host has no default route: tasks will not reach the internet");
        }
        for name in &uplinks {
            sysctl::set(&self.namespace, sysctl::forwarding(name)).await?;
        }
        commit(&self.nft, &mut *self.live.lock().await, self.ruleset(&uplinks)).await
    }

    fn ruleset(&self, uplinks: &BTreeSet<String>) -> Ruleset {
        policy::host_ruleset(
            self.prefix.as_str(),
            &self.prefix.host_links(),
            uplinks,
            self.transit_block(),
        )
    }

    async fn uplinks(&self) -> Result<BTreeSet<String>, NetworkError> {
        const ROUTES: &str = "/proc/thread-self/net/route";
        let table = self.namespace.run(|| fs::read_to_string(ROUTES)).await?;
        let table = table.map_err(|source| NetworkError::Read {
            path: ROUTES.to_owned(),
            source,
        })?;
        Ok(default_route_interfaces(&table))
    }
}

/// Brings rules in force where `live` are now, in one transaction.
pub(super) async fn commit(
    nft: &Arc<NftSocket>,
    live: &mut Option<Ruleset>,
    wanted: Ruleset,
) -> Result<(), NetworkError> {
    // Taken, so that after a failure, or if nobody waits for the end, the next change replaces whatever is there.
    let before = live.take();
    let nft = Arc::clone(nft);
    let wanted = blocking(move || {
        nft.commit(&nft::transaction(before.as_ref(), &wanted))?;
        Ok(wanted)
    });
    *live = Some(wanted.await?);
    Ok(())
}

/// Work that waits for the kernel but needs no namespace: a socket keeps to the one in which it was opened.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| NetworkError::ThreadLost)?
}

/// The interfaces of default routes, from the kernel's table (proc_net_route: interface, destination, …, mask in the
/// eighth column).
fn default_route_interfaces(table: &str) -> BTreeSet<String> {
    let unspecified = format!("{:08X}", u32::from(Ipv4Addr::UNSPECIFIED));
    table
        .lines()
        .filter_map(|line| {
            let columns: Vec<_> = line.split_whitespace().collect();
            let is_default = columns.get(1) == Some(&&*unspecified) && columns.get(7) == Some(&&*unspecified);
            is_default
                .then(|| columns.first().map(|name| (*name).to_owned()))
                .flatten()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uplinks_are_the_interfaces_of_default_routes() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                     eth0\t0002A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n\
                     wlan0\t00000000\t0103A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
                     tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n";
        assert_eq!(
            default_route_interfaces(table),
            BTreeSet::from(["eth0".to_owned(), "wlan0".to_owned()])
        );
    }
}
