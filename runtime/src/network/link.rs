//! The links of one network namespace over routing netlink: bridges, veth pairs, taps, their addresses and routes.
//!
//! Everything can be done again: what is there already is left or brought into shape.

use std::{net::Ipv4Addr, os::fd::AsRawFd as _};

use futures_util::TryStreamExt as _;
use nix::errno::Errno;
use rtnetlink::{
    Error, Handle, LinkBridge, LinkBridgePort, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        link::{InfoData, InfoVeth, LinkAttribute},
        neighbour::{NeighbourFlags, NeighbourState},
    },
};

use super::{MacAddr, NetworkError, namespace::Namespace};

/// Flags of a request that changes what is there and creates nothing.
const CHANGE: u16 = 0x1 | 0x4;

/// A conversation with the kernel about the links of one namespace.
#[derive(Clone)]
pub(super) struct Links {
    handle: Handle,
}

impl Links {
    /// Opens the conversation. It ends when the last copy of the value is dropped.
    pub(super) async fn open(namespace: &Namespace) -> Result<Self, NetworkError> {
        let runtime = tokio::runtime::Handle::current();
        let connection = namespace.run(move || {
            // The socket belongs to the namespace in which it is made, and registers with the runtime of the caller.
            let _entered = runtime.enter();
            rtnetlink::new_connection()
        });
        let (connection, handle, _) = connection.await?.map_err(NetworkError::RouteSocket)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    pub(super) async fn index(&self, name: &str) -> Result<Option<u32>, NetworkError> {
        let mut links = self.handle.link().get().match_name(name).execute();
        match links.try_next().await {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(error) if is(&error, Errno::ENODEV) => Ok(None),
            Err(error) => Err(failed("find", name)(error)),
        }
    }

    /// The links whose names begin so.
    pub(super) async fn list(&self, start: &str) -> Result<Vec<String>, NetworkError> {
        let links: Vec<_> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("list", start))?;
        let name = |attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        };
        let names = links
            .into_iter()
            .filter_map(|link| link.attributes.into_iter().find_map(name));
        Ok(names.filter(|name| name.starts_with(start)).collect())
    }

    /// Removes a link; not being there is no error.
    pub(super) async fn delete(&self, name: &str) -> Result<(), NetworkError> {
        let Some(index) = self.index(name).await? else {
            return Ok(());
        };
        match self.handle.link().del(index).execute().await {
            Err(error) if !is(&error, Errno::ENODEV) => Err(failed("delete", name)(error)),
            _ => Ok(()),
        }
    }

    /// A bridge that is up and has the address of its subnet's router.
    pub(super) async fn ensure_bridge(
        &self,
        name: &str,
        mac: MacAddr,
        address: Ipv4Addr,
        prefix_len: u8,
        mtu: u16,
    ) -> Result<(), NetworkError> {
        let index = match self.index(name).await? {
            Some(index) => index,
            None => {
                let bridge = LinkBridge::new(name)
                    .address(mac.octets().to_vec())
                    .mtu(u32::from(mtu))
                    .mcast_snooping(false)
                    .forward_delay(0)
                    .build();
                self.handle
                    .link()
                    .add(bridge)
                    .execute()
                    .await
                    .map_err(failed("add bridge", name))?;
                self.require(name).await?
            }
        };
        self.ensure_address(name, index, address, prefix_len).await?;
        self.up(name, index).await
    }

    /// A veth pair: this end here, the other in another namespace.
    pub(super) async fn add_veth(
        &self,
        name: &str,
        peer: &str,
        peer_namespace: &Namespace,
        mtu: u16,
    ) -> Result<(), NetworkError> {
        let peer = LinkUnspec::new_with_name(peer)
            .mtu(u32::from(mtu))
            .setns_by_fd(peer_namespace.file().as_raw_fd())
            .build();
        let pair = LinkVeth::new(name, "")
            .mtu(u32::from(mtu))
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.handle
            .link()
            .add(pair)
            .execute()
            .await
            .map_err(failed("add veth pair", name))
    }

    /// Gives a link its only address and brings it up.
    pub(super) async fn configure(
        &self,
        name: &str,
        address: Ipv4Addr,
        prefix_len: u8,
    ) -> Result<(), NetworkError> {
        let index = self.require(name).await?;
        self.ensure_address(name, index, address, prefix_len).await?;
        self.up(name, index).await
    }

    pub(super) async fn ensure_default_route(&self, gateway: Ipv4Addr) -> Result<(), NetworkError> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
        let name = gateway.to_string();
        self.handle
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .map_err(failed("add a default route by", &name))
    }

    /// Makes a tap a port of a bridge that knows whom it leads to: it learns nothing from what the guest sends, and
    /// gets no frame for somebody unknown.
    pub(super) async fn plug(
        &self,
        tap: &str,
        bridge: &str,
        mac: MacAddr,
        mtu: u16,
    ) -> Result<(), NetworkError> {
        let bridge_index = self.require(bridge).await?;
        let index = self.require(tap).await?;
        let port = LinkUnspec::new_with_index(index)
            .controller(bridge_index)
            .mtu(u32::from(mtu))
            .build();
        self.handle
            .link()
            .set(port)
            .execute()
            .await
            .map_err(failed("plug into its bridge", tap))?;
        let settings = LinkBridgePort::new(index)
            .learning(false)
            .flood(false)
            .mcast_flood(false)
            .hairpin(false)
            .guard(true)
            .build();
        let request = self.handle.link().add(settings).set_flags(CHANGE);
        request
            .execute()
            .await
            .map_err(failed("set the bridge port", tap))?;
        let entry = self.handle.neighbours().add_bridge(index, &mac.octets());
        let entry = entry
            .state(NeighbourState::Noarp)
            .flags(NeighbourFlags::Controller);
        entry
            .replace()
            .execute()
            .await
            .map_err(failed("add a forwarding entry for", tap))
    }

    pub(super) async fn bring_up(&self, name: &str) -> Result<(), NetworkError> {
        let index = self.require(name).await?;
        self.up(name, index).await
    }

    async fn require(&self, name: &str) -> Result<u32, NetworkError> {
        self.index(name)
            .await?
            .ok_or_else(|| NetworkError::NoLink(name.to_owned()))
    }

    async fn up(&self, name: &str, index: u32) -> Result<(), NetworkError> {
        let up = LinkUnspec::new_with_index(index).up().build();
        self.handle
            .link()
            .set(up)
            .execute()
            .await
            .map_err(failed("bring up", name))
    }

    async fn ensure_address(
        &self,
        name: &str,
        index: u32,
        address: Ipv4Addr,
        prefix_len: u8,
    ) -> Result<(), NetworkError> {
        match self
            .handle
            .address()
            .add(index, address.into(), prefix_len)
            .execute()
            .await
        {
            Err(error) if !is(&error, Errno::EEXIST) => Err(failed("add an address to", name)(error)),
            _ => Ok(()),
        }
    }
}

fn is(error: &Error, errno: Errno) -> bool {
    matches!(error, Error::NetlinkError(message) if message.raw_code() == -(errno as i32))
}

fn failed(action: &'static str, link: &str) -> impl FnOnce(Error) -> NetworkError + use<> {
    let link = link.to_owned();
    move |source| NetworkError::Link {
        action,
        link,
        source: Box::new(source),
    }
}
