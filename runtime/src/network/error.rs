//! What can go wrong with the host's side of a task's network.

use std::{io, net::Ipv4Addr};

use super::nft::NftError;

/// A failure to build, change or remove a part of the network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("name prefix {0:?} is not 1 to 8 lowercase letters and digits")]
    Prefix(String),
    #[error("id {0:?} is not 1 to 64 letters, digits and dashes")]
    Id(String),
    #[error("cidr {0} of a vpc or subnet is not a network address of size /16 to /28")]
    CidrSize(ipnet::Ipv4Net),
    #[error("subnet {subnet} ({cidr}) does not lie inside its vpc {vpc}")]
    SubnetOutsideVpc {
        subnet: String,
        cidr: ipnet::Ipv4Net,
        vpc: String,
    },
    #[error("subnet {subnet} ({cidr}) overlaps subnet {other}")]
    SubnetOverlap {
        subnet: String,
        cidr: ipnet::Ipv4Net,
        other: String,
    },
    #[error("vpc index {index} is taken by vpc {other}")]
    IndexInUse { index: u16, other: String },
    #[error("vpc {0} is set up already, in another way")]
    VpcDiffers(String),
    #[error("no vpc {0} has been set up")]
    UnknownVpc(String),
    #[error("no subnet {0} has been set up")]
    UnknownSubnet(String),
    #[error("vpc {vpc} has no security group {group}")]
    UnknownSecurityGroup { vpc: String, group: String },
    #[error("security group {group} belongs to vpc {actual}, not to {vpc}")]
    ForeignSecurityGroup {
        group: String,
        vpc: String,
        actual: String,
    },
    #[error("address {address} of {eni} is not an assignable address of subnet {subnet}")]
    Address {
        eni: String,
        address: Ipv4Addr,
        subnet: String,
    },
    #[error("{eni} would share its {what} with {other}")]
    Duplicate {
        eni: String,
        other: String,
        what: &'static str,
    },
    #[error("mac address {mac} of {eni} is not a unicast address")]
    Mac { eni: String, mac: super::MacAddr },
    #[error("mac address {0:?} is not six colon-separated hexadecimal octets")]
    MacSyntax(String),
    #[error("cannot {action} network namespace {name}")]
    Namespace {
        action: &'static str,
        name: String,
        source: io::Error,
    },
    #[error("cannot start a thread for a network namespace")]
    Thread(#[source] io::Error),
    #[error("the thread in a network namespace ended early")]
    ThreadLost,
    #[error("cannot open a routing netlink socket")]
    RouteSocket(#[source] io::Error),
    #[error("cannot {action} {link}")]
    Link {
        action: &'static str,
        link: String,
        source: Box<rtnetlink::Error>,
    },
    #[error("network interface {0} is not there")]
    NoLink(String),
    #[error("cannot open {0}: is the tun driver there and may this process use it")]
    TunDevice(&'static str, #[source] io::Error),
    #[error("cannot create tap {name}")]
    Tap { name: String, source: io::Error },
    #[error("cannot set {path} to {value}")]
    Sysctl {
        path: String,
        value: &'static str,
        source: io::Error,
    },
    #[error("cannot read {path}")]
    Read { path: String, source: io::Error },
    #[error(transparent)]
    Nft(#[from] NftError),
}
