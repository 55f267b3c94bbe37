//! The guest's interfaces: loopback, and the one that reaches the VPC (netdevice(7) and rtentry ioctls).

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use berth_protocol::message::NetworkSpec;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("there is no network interface")]
    NoInterface,
    #[error("cannot list the network interfaces: {0}")]
    List(io::Error),
    #[error("interface name {0:?} is too long")]
    Name(String),
    #[error("prefix length {0} is more than 32")]
    Prefix(u8),
    #[error("cannot open a socket to set up {interface}: {source}")]
    Socket { interface: String, source: nix::Error },
    #[error("cannot set the {what} of {interface}: {source}")]
    Set {
        what: &'static str,
        interface: String,
        source: io::Error,
    },
    #[error("cannot route {destination} through {interface}: {source}")]
    Route {
        destination: Ipv4Addr,
        interface: String,
        source: io::Error,
    },
}

/// Settings of the network namespace that container engines give every container; all of ours share one.
const SETTINGS: [(&str, &str); 2] = [
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
];

/// Brings `lo` up.
pub(crate) fn raise_loopback() -> Result<(), NetworkError> {
    Interface::open("lo")?.raise()
}

/// Gives the first interface beside `lo` its addresses, MTU and default route.
pub(crate) fn configure(spec: &NetworkSpec) -> Result<(), NetworkError> {
    let mask = netmask(spec.prefix_len)?;
    let interface = Interface::open(&first_interface()?)?;
    interface.set_mac(spec.mac)?;
    interface.set_mtu(spec.mtu)?;
    interface.set_addresses(spec.address, spec.prefix_len)?;
    interface.raise()?;
    let any = Ipv4Addr::UNSPECIFIED;
    if (spec.gateway & mask) != (spec.address & mask) {
        interface.add_route(spec.gateway, Ipv4Addr::BROADCAST, None)?;
    }
    interface.add_route(any, any, Some(spec.gateway))?;
    for (path, value) in SETTINGS {
        // A kernel may lack either; programs then only miss a convenience.
        let _ = fs::write(path, value);
    }
    Ok(())
}

fn netmask(prefix_len: u8) -> Result<Ipv4Addr, NetworkError> {
    match prefix_len {
        0 => Ok(Ipv4Addr::UNSPECIFIED),
        1..=32 => Ok(Ipv4Addr::from(u32::MAX << (32 - prefix_len))),
        _ => Err(NetworkError::Prefix(prefix_len)),
    }
}

/// The first interface with a device behind it, which `lo` and the kernel's tunnel stubs have not.
pub(super) fn first_interface() -> Result<String, NetworkError> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/sys/class/net").map_err(NetworkError::List)? {
        let entry = entry.map_err(NetworkError::List)?;
        if entry.path().join("device").exists() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.into_iter().min().ok_or(NetworkError::NoInterface)
}

pub(super) struct Interface {
    socket: OwnedFd,
    name: String,
    raw_name: [u8; libc::IFNAMSIZ],
}

/// `struct ifreq`: the name and a union of 24 bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    value: [u8; 24],
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

impl Interface {
    pub(super) fn open(name: &str) -> Result<Self, NetworkError> {
        let mut raw_name = [0; libc::IFNAMSIZ];
        // One byte stays for the terminator.
        match raw_name[..libc::IFNAMSIZ - 1].get_mut(..name.len()) {
            Some(place) => place.copy_from_slice(name.as_bytes()),
            None => return Err(NetworkError::Name(name.to_owned())),
        }
        let socket = socket(
            AddressFamily::Inet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .map_err(|source| NetworkError::Socket {
            interface: name.to_owned(),
            source,
        })?;
        Ok(Self {
            socket,
            name: name.to_owned(),
            raw_name,
        })
    }

    pub(super) fn raise(&self) -> Result<(), NetworkError> {
        let mut value = [0; 24];
        value[..2].copy_from_slice(&((libc::IFF_UP | libc::IFF_RUNNING) as u16).to_ne_bytes());
        self.set("flags", libc::SIOCSIFFLAGS, value)
    }

    /// The device of a guest that was cloned has another address than the one its driver found once.
    fn set_mac(&self, mac: [u8; 6]) -> Result<(), NetworkError> {
        let mut value = [0; 24];
        value[..2].copy_from_slice(&libc::ARPHRD_ETHER.to_ne_bytes());
        value[2..8].copy_from_slice(&mac);
        self.set("hardware address", libc::SIOCSIFHWADDR, value)
    }

    fn set_mtu(&self, mtu: u16) -> Result<(), NetworkError> {
        let mut value = [0; 24];
        value[..4].copy_from_slice(&u32::from(mtu).to_ne_bytes());
        self.set("mtu", libc::SIOCSIFMTU, value)
    }

    pub(super) fn set_addresses(&self, address: Ipv4Addr, prefix_len: u8) -> Result<(), NetworkError> {
        let mask = netmask(prefix_len)?;
        self.set_address("address", libc::SIOCSIFADDR, address)?;
        self.set_address("netmask", libc::SIOCSIFNETMASK, mask)
    }

    fn set_address(
        &self,
        what: &'static str,
        request: libc::Ioctl,
        address: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        let mut value = [0; 24];
        value[..16].copy_from_slice(&raw_address(address));
        self.set(what, request, value)
    }

    fn set(&self, what: &'static str, request: libc::Ioctl, value: [u8; 24]) -> Result<(), NetworkError> {
        let mut argument = InterfaceRequest {
            name: self.raw_name,
            value,
        };
        // SAFETY: these requests take a pointer to a `struct ifreq`, whose layout `InterfaceRequest` has.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), request, &raw mut argument) };
        if result == 0 {
            return Ok(());
        }
        let source = io::Error::last_os_error();
        Err(NetworkError::Set {
            what,
            interface: self.name.clone(),
            source,
        })
    }

    fn add_route(
        &self,
        destination: Ipv4Addr,
        mask: Ipv4Addr,
        gateway: Option<Ipv4Addr>,
    ) -> Result<(), NetworkError> {
        let mut device = self.raw_name;
        // SAFETY: `rtentry` is plain data, and zero is a value of each of its fields.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = socket_address(destination);
        route.rt_genmask = socket_address(mask);
        route.rt_flags = libc::RTF_UP;
        if let Some(gateway) = gateway {
            route.rt_gateway = socket_address(gateway);
            route.rt_flags |= libc::RTF_GATEWAY;
        }
        route.rt_dev = device.as_mut_ptr().cast();
        // SAFETY: SIOCADDRT takes a pointer to a `struct rtentry`; the device name it points to is NUL-terminated
        // and lives until the call returns.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCADDRT, &raw const route) };
        match io::Error::last_os_error() {
            _ if result == 0 => Ok(()),
            source => Err(NetworkError::Route {
                destination,
                interface: self.name.clone(),
                source,
            }),
        }
    }
}

/// `struct sockaddr_in` with port 0.
fn raw_address(address: Ipv4Addr) -> [u8; 16] {
    let mut raw = [0; 16];
    raw[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    raw[4..8].copy_from_slice(&address.octets());
    raw
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let raw = raw_address(address);
    let mut sa_data = [0; 14];
    for (to, from) in sa_data.iter_mut().zip(&raw[2..]) {
        *to = *from as libc::c_char;
    }
    libc::sockaddr {
        sa_family: libc::AF_INET as u16,
        sa_data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_become_masks() {
        assert_eq!(netmask(0).unwrap(), Ipv4Addr::UNSPECIFIED);
        assert_eq!(netmask(20).unwrap(), Ipv4Addr::new(255, 255, 240, 0));
        assert_eq!(netmask(32).unwrap(), Ipv4Addr::BROADCAST);
        assert!(matches!(netmask(33), Err(NetworkError::Prefix(33))));
    }

    #[test]
    fn a_name_leaves_room_for_its_terminator() {
        assert!(Interface::open("a23456789012345").is_ok());
        assert!(matches!(
            Interface::open("a234567890123456"),
            Err(NetworkError::Name(_))
        ));
    }
}
