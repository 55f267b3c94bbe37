//! What a network is made of, as plain values: VPCs, subnets, network interfaces (ENIs) and security groups.

use std::{fmt, net::Ipv4Addr, ops::RangeInclusive, str::FromStr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::NetworkError;

/// A VPC: an address space of its own. Address ranges of two VPCs may overlap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VpcSpec {
    pub id: String,
    /// Chosen by the caller, unique among its VPCs, and kept for the life of the VPC: it selects the transit network.
    pub index: u16,
    pub cidr: Ipv4Net,
}

/// A part of a VPC: one broadcast domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetSpec {
    pub id: String,
    pub vpc_id: String,
    pub cidr: Ipv4Net,
}

/// An elastic network interface: what a task is attached by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EniSpec {
    pub id: String,
    pub subnet_id: String,
    pub vpc_id: String,
    pub address: Ipv4Addr,
    pub mac: MacAddr,
    /// Traffic passes when a rule of any of them allows it; none at all means no traffic.
    pub security_groups: Vec<String>,
    /// Whether the interface reaches beyond its VPC (in AWS terms: has a public address).
    pub internet: bool,
}

/// A stateful filter shared by the interfaces that are its members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroupSpec {
    pub id: String,
    pub vpc_id: String,
    /// What may open connections to a member.
    pub ingress: Vec<Rule>,
    /// To what a member may open connections.
    pub egress: Vec<Rule>,
}

impl SecurityGroupSpec {
    /// The group that a VPC starts with: everything from its own members, everything to anywhere.
    #[must_use]
    pub fn default_group(id: &str, vpc_id: &str) -> Self {
        Self {
            id: id.to_owned(),
            vpc_id: vpc_id.to_owned(),
            ingress: vec![Rule {
                protocol: Protocol::All,
                ports: None,
                peer: Peer::Group(id.to_owned()),
            }],
            egress: vec![Rule {
                protocol: Protocol::All,
                ports: None,
                peer: Peer::Cidr(Ipv4Net::default()),
            }],
        }
    }
}

/// One thing that a security group allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub protocol: Protocol,
    /// Destination ports; has a meaning for TCP and UDP only, and none means all. An empty range allows nothing.
    pub ports: Option<RangeInclusive<u16>>,
    pub peer: Peer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    All,
    Tcp,
    Udp,
    Icmp,
}

/// The other end of what a rule allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Peer {
    Cidr(Ipv4Net),
    /// The members of a group of the same VPC.
    Group(String),
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// A locally administered unicast address that is always the same for the same id.
    #[must_use]
    pub fn derived(id: &str) -> Self {
        let digest = Sha256::digest(id.as_bytes());
        Self([0x02, digest[0], digest[1], digest[2], digest[3], digest[4]])
    }

    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
    }

    #[must_use]
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let bad = || NetworkError::MacSyntax(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or_else(bad)?;
            if part.len() != 2 || !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        Ok(Self(octets))
    }
}

impl Serialize for MacAddr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_mac_address_reads_back_as_it_was_written(octets: [u8; 6]) {
            let mac = MacAddr(octets);
            prop_assert_eq!(mac.to_string().parse::<MacAddr>().unwrap(), mac);
        }

        #[test]
        fn a_derived_mac_address_is_local_and_unicast(id in ".{0,40}") {
            let mac = MacAddr::derived(&id);
            prop_assert!(mac.is_unicast());
            prop_assert_eq!(mac.octets()[0] & 0x02, 0x02);
            prop_assert_eq!(mac, MacAddr::derived(&id));
        }
    }

    #[test]
    fn malformed_mac_addresses_are_refused() {
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "2:0:0:0:0:0",
            "02:00:00:00:00:0g",
            "+2:00:00:00:00:00",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text:?} was taken");
        }
    }
}
