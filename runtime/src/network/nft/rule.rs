//! A rule, built from what it matches to what it does: `Rule::new().in_interface("transit").verdict(Verdict::Drop)`.

use std::{net::Ipv4Addr, ops::RangeInclusive};

use ipnet::Ipv4Net;

use super::expr::{Expr, MetaKey, PayloadBase, Relation, Verdict, ct_state};

/// Length of an interface name in a register.
pub(super) const INTERFACE_LEN: usize = 16;

/// Where the addresses of an IPv4 header and of an ARP packet for Ethernet and IPv4 lie.
const IPV4_SOURCE: u32 = 12;
const IPV4_DESTINATION: u32 = 16;
const ARP_SENDER_MAC: u32 = 8;
const ARP_SENDER_ADDRESS: u32 = 14;
/// Hardware type Ethernet, protocol IPv4, and the lengths of their addresses (RFC 826).
const ARP_ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// The frames that Berth's networks know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) enum EtherType {
    Ipv4 = 0x0800,
    Arp = 0x0806,
}

/// Matches, all of which must hold, and then what happens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::network) struct Rule {
    exprs: Vec<Expr>,
}

impl Rule {
    pub(in crate::network) fn new() -> Self {
        Self::default()
    }

    pub(super) fn exprs(&self) -> &[Expr] {
        &self.exprs
    }

    fn with(mut self, exprs: impl IntoIterator<Item = Expr>) -> Self {
        self.exprs.extend(exprs);
        self
    }

    fn payload(self, base: PayloadBase, offset: u32, len: u32, register: u32) -> Self {
        self.with([Expr::Payload {
            base,
            offset,
            len,
            register,
        }])
    }

    fn compare(self, relation: Relation, value: &[u8]) -> Self {
        self.with([Expr::Compare {
            register: 0,
            relation,
            value: value.to_vec(),
        }])
    }

    fn lookup(self, set: &str, inverted: bool) -> Self {
        self.with([Expr::Lookup {
            set: set.to_owned(),
            register: 0,
            inverted,
        }])
    }

    fn meta(self, key: MetaKey) -> Self {
        self.with([Expr::Meta { key, register: 0 }])
    }

    pub(in crate::network) fn in_interface_not(self, name: &str) -> Self {
        self.meta(MetaKey::InInterface)
            .compare(Relation::NotEqual, &interface(name))
    }

    pub(in crate::network) fn out_interface(self, name: &str) -> Self {
        self.meta(MetaKey::OutInterface)
            .compare(Relation::Equal, &interface(name))
    }

    pub(in crate::network) fn out_interface_not(self, name: &str) -> Self {
        self.meta(MetaKey::OutInterface)
            .compare(Relation::NotEqual, &interface(name))
    }

    pub(in crate::network) fn in_interface_begins(self, start: &str) -> Self {
        self.meta(MetaKey::InInterface)
            .compare(Relation::Equal, start.as_bytes())
    }

    pub(in crate::network) fn out_interface_begins(self, start: &str) -> Self {
        self.meta(MetaKey::OutInterface)
            .compare(Relation::Equal, start.as_bytes())
    }

    pub(in crate::network) fn in_interface_in(self, set: &str) -> Self {
        self.meta(MetaKey::InInterface).lookup(set, false)
    }

    pub(in crate::network) fn out_interface_in(self, set: &str) -> Self {
        self.meta(MetaKey::OutInterface).lookup(set, false)
    }

    /// The type as the frame carries it: that of a frame with a VLAN tag is neither of the known ones.
    pub(in crate::network) fn ether_type(self, ether_type: EtherType) -> Self {
        self.payload(PayloadBase::Link, 12, 2, 0)
            .compare(Relation::Equal, &(ether_type as u16).to_be_bytes())
    }

    /// To many: multicast or broadcast.
    pub(in crate::network) fn group_destination(self) -> Self {
        self.payload(PayloadBase::Link, 0, 1, 0)
            .with([Expr::Mask {
                register: 0,
                mask: vec![1],
            }])
            .compare(Relation::Equal, &[1])
    }

    pub(in crate::network) fn arp_for_ethernet_and_ipv4(self) -> Self {
        self.payload(PayloadBase::Network, 0, 6, 0)
            .compare(Relation::Equal, &ARP_ETHERNET_IPV4)
    }

    /// Interface, Ethernet source and IPv4 source of a packet, in a set of such triples.
    pub(in crate::network) fn ipv4_sender_in(self, set: &str) -> Self {
        self.meta(MetaKey::InInterface)
            .payload(PayloadBase::Link, 6, 6, 4)
            .payload(PayloadBase::Network, IPV4_SOURCE, 4, 6)
            .lookup(set, false)
    }

    /// Interface, Ethernet source and ARP sender address, in a set of such triples; and the same with the MAC address
    /// that the ARP packet itself claims.
    pub(in crate::network) fn arp_sender_in(self, set: &str) -> Self {
        self.meta(MetaKey::InInterface)
            .payload(PayloadBase::Link, 6, 6, 4)
            .payload(PayloadBase::Network, ARP_SENDER_ADDRESS, 4, 6)
            .lookup(set, false)
            .payload(PayloadBase::Network, ARP_SENDER_MAC, 6, 4)
            .lookup(set, false)
    }

    pub(in crate::network) fn ct_established(self) -> Self {
        self.ct_state(ct_state::ESTABLISHED | ct_state::RELATED)
    }

    pub(in crate::network) fn ct_invalid(self) -> Self {
        self.ct_state(ct_state::INVALID)
    }

    fn ct_state(self, any_of: u32) -> Self {
        self.with([
            Expr::CtState { register: 0 },
            Expr::Mask {
                register: 0,
                mask: any_of.to_ne_bytes().to_vec(),
            },
        ])
        .compare(Relation::NotEqual, &[0; 4])
    }

    pub(in crate::network) fn protocol(self, number: u8) -> Self {
        self.meta(MetaKey::TransportProtocol)
            .compare(Relation::Equal, &[number])
    }

    pub(in crate::network) fn source_port(self, port: u16) -> Self {
        self.payload(PayloadBase::Transport, 0, 2, 0)
            .compare(Relation::Equal, &port.to_be_bytes())
    }

    pub(in crate::network) fn destination_ports(self, ports: &RangeInclusive<u16>) -> Self {
        let loaded = self.payload(PayloadBase::Transport, 2, 2, 0);
        if ports.start() == ports.end() {
            return loaded.compare(Relation::Equal, &ports.start().to_be_bytes());
        }
        loaded
            .compare(Relation::AtLeast, &ports.start().to_be_bytes())
            .compare(Relation::AtMost, &ports.end().to_be_bytes())
    }

    pub(in crate::network) fn icmp_type(self, kind: u8) -> Self {
        self.protocol(1)
            .payload(PayloadBase::Transport, 0, 1, 0)
            .compare(Relation::Equal, &[kind])
    }

    pub(in crate::network) fn source(self, cidr: Ipv4Net) -> Self {
        self.address(IPV4_SOURCE, cidr, Relation::Equal)
    }

    pub(in crate::network) fn destination(self, cidr: Ipv4Net) -> Self {
        self.address(IPV4_DESTINATION, cidr, Relation::Equal)
    }

    pub(in crate::network) fn destination_not(self, cidr: Ipv4Net) -> Self {
        self.address(IPV4_DESTINATION, cidr, Relation::NotEqual)
    }

    fn address(self, offset: u32, cidr: Ipv4Net, relation: Relation) -> Self {
        let loaded = self.payload(PayloadBase::Network, offset, 4, 0);
        let masked = match cidr.prefix_len() {
            32 => loaded,
            _ => loaded.with([Expr::Mask {
                register: 0,
                mask: cidr.netmask().octets().to_vec(),
            }]),
        };
        masked.compare(relation, &cidr.network().octets())
    }

    pub(in crate::network) fn source_in(self, set: &str) -> Self {
        self.payload(PayloadBase::Network, IPV4_SOURCE, 4, 0)
            .lookup(set, false)
    }

    pub(in crate::network) fn destination_in(self, set: &str) -> Self {
        self.payload(PayloadBase::Network, IPV4_DESTINATION, 4, 0)
            .lookup(set, false)
    }

    pub(in crate::network) fn counter(self) -> Self {
        self.with([Expr::Counter])
    }

    pub(in crate::network) fn masquerade(self) -> Self {
        self.with([Expr::Masquerade])
    }

    pub(in crate::network) fn verdict(self, verdict: Verdict) -> Self {
        self.with([Expr::Verdict(verdict)])
    }

    pub(in crate::network) fn accept(self) -> Self {
        self.verdict(Verdict::Accept)
    }

    pub(in crate::network) fn drop(self) -> Self {
        self.verdict(Verdict::Drop)
    }
}

/// An interface name as it lies in a register: padded with zeros; a name that is too long is cut and matches nothing.
pub(super) fn interface(name: &str) -> [u8; INTERFACE_LEN] {
    let mut padded = [0; INTERFACE_LEN];
    for (to, from) in padded.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    padded
}

/// A triple of a set of senders, as it lies in registers: each part begins in a register of its own.
pub(super) fn sender(interface_name: &str, mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut key = interface(interface_name).to_vec();
    key.extend_from_slice(&mac);
    key.extend_from_slice(&[0; 2]);
    key.extend_from_slice(&address.octets());
    key
}
