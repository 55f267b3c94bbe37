//! The rule compiler: from what a VPC holds to the rules of its namespace, and the host's own rules. Pure.
//!
//! Rules depend on the security groups only. Which interface is a member of what stands in sets, so that attaching
//! or detaching an interface changes elements of sets and no rule, and a packet's way does not grow with their number.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;

use super::{
    names::{self, TRANSIT},
    nft::{Chain, EtherType, Family, Hook, HookPoint, Key, KeyType, Rule, Ruleset, Set, Table, Verdict},
    spec::{self, EniSpec, Peer, Protocol, SecurityGroupSpec},
};

/// Before connection tracking (-200), so that a forged packet leaves no trace in its tables.
const BEFORE_CONNTRACK: i32 = -300;
const FILTER: i32 = 0;
/// On the host, ahead of the filters of others: what Berth drops none of them sees.
const BEFORE_OTHERS: i32 = -10;
const SOURCE_NAT: i32 = 100;

const ICMP_ECHO_REQUEST: u8 = 8;
const DHCP_SERVER_PORT: u16 = 67;
const UDP: u8 = 17;

/// Names of sets; those of a security group carry its id, which has no underscore.
const SENDERS: &str = "eni_senders";
const INTERNET: &str = "internet_members";
const UPLINKS: &str = "uplink_interfaces";

/// Link-local addresses: on many hosts the way to their cloud's metadata service and its credentials.
const LINK_LOCAL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);

/// What a VPC holds.
#[derive(Clone, Debug, Default)]
pub(super) struct VpcPolicy {
    pub(super) enis: BTreeMap<String, EniSpec>,
    pub(super) groups: BTreeMap<String, SecurityGroupSpec>,
}

/// The rules of a VPC's namespace. `transit_block` is where the links of all VPCs to the host lie.
pub(super) fn vpc_ruleset(table: &str, policy: &VpcPolicy, transit_block: Ipv4Net) -> Ruleset {
    Ruleset {
        tables: vec![
            bridge_table(table, policy),
            router_table(table, policy, transit_block),
        ],
    }
}

/// What passes between interfaces, and between an interface and its subnet's router.
fn bridge_table(name: &str, policy: &VpcPolicy) -> Table {
    let senders = policy
        .enis
        .values()
        .map(|eni| Key::sender(&names::tap(&eni.id), eni.mac.octets(), eni.address));
    let mut sets = BTreeMap::from([(SENDERS.to_owned(), set(KeyType::Sender, senders))]);
    let mut egress = connection_tracking(true);
    let mut ingress = connection_tracking(true);
    let mut group_chains = Vec::new();
    for group in policy.groups.values() {
        let names = GroupNames::new(&group.id);
        let members = || {
            policy
                .enis
                .values()
                .filter(|eni| eni.security_groups.contains(&group.id))
        };
        let taps = members().map(|eni| Key::interface(&names::tap(&eni.id)));
        let addresses = members().map(|eni| Key::address(eni.address));
        egress.push(
            Rule::new()
                .in_interface_in(&names.taps)
                .verdict(Verdict::Jump(names.egress.clone())),
        );
        ingress.push(
            Rule::new()
                .out_interface_in(&names.taps)
                .verdict(Verdict::Jump(names.ingress.clone())),
        );
        sets.insert(names.taps, set(KeyType::Interface, taps));
        sets.insert(names.addresses, set(KeyType::Address, addresses));
        let allow = |rules: &[spec::Rule], direction| {
            rules
                .iter()
                .filter_map(|rule| allowing(rule, direction, &policy.groups))
                .collect()
        };
        group_chains.push(Chain {
            name: names.egress,
            hook: None,
            rules: allow(&group.egress, Direction::Egress),
        });
        group_chains.push(Chain {
            name: names.ingress,
            hook: None,
            rules: allow(&group.ingress, Direction::Ingress),
        });
    }
    let mut chains = vec![
        base(
            "antispoof",
            HookPoint::Prerouting,
            BEFORE_CONNTRACK,
            true,
            antispoof(),
        ),
        base("egress", HookPoint::Prerouting, FILTER, true, egress),
        base("ingress", HookPoint::Postrouting, FILTER, true, ingress),
    ];
    chains.extend(group_chains);
    Table {
        family: Family::Bridge,
        name: name.to_owned(),
        sets,
        chains,
    }
}

/// An interface sends from its own addresses, and nothing but IPv4 to one receiver and ARP.
fn antispoof() -> Vec<Rule> {
    let ipv4 = || Rule::new().ether_type(EtherType::Ipv4);
    vec![
        Rule::new()
            .ether_type(EtherType::Arp)
            .arp_for_ethernet_and_ipv4()
            .arp_sender_in(SENDERS)
            .accept(),
        ipv4().group_destination().drop(),
        ipv4().protocol(UDP).source_port(DHCP_SERVER_PORT).drop(),
        // What answers at such an address is a task's own, and for nobody else.
        ipv4().destination(LINK_LOCAL).drop(),
        ipv4().ipv4_sender_in(SENDERS).accept(),
        Rule::new().counter().drop(),
    ]
}

fn connection_tracking(bridged: bool) -> Vec<Rule> {
    let arp = bridged.then(|| Rule::new().ether_type(EtherType::Arp).accept());
    arp.into_iter()
        .chain([
            Rule::new().ct_established().accept(),
            Rule::new().ct_invalid().drop(),
        ])
        .collect()
}

/// What the VPC's router passes on, and what it answers itself.
fn router_table(name: &str, policy: &VpcPolicy, transit_block: Ipv4Net) -> Table {
    let internet = policy
        .enis
        .values()
        .filter(|eni| eni.internet)
        .map(|eni| Key::address(eni.address));
    let input = vec![
        Rule::new().ct_established().accept(),
        Rule::new()
            .in_interface_not(TRANSIT)
            .icmp_type(ICMP_ECHO_REQUEST)
            .accept(),
    ];
    let mut forward = connection_tracking(false);
    forward.push(
        Rule::new()
            .in_interface_not(TRANSIT)
            .out_interface_not(TRANSIT)
            .accept(),
    );
    forward.push(
        Rule::new()
            .out_interface(TRANSIT)
            .source_in(INTERNET)
            .destination_not(LINK_LOCAL)
            .destination_not(transit_block)
            .accept(),
    );
    let postrouting = vec![Rule::new().out_interface(TRANSIT).masquerade()];
    Table {
        family: Family::Ipv4,
        name: name.to_owned(),
        sets: BTreeMap::from([(INTERNET.to_owned(), set(KeyType::Address, internet))]),
        chains: vec![
            base("input", HookPoint::Input, FILTER, true, input),
            base("forward", HookPoint::Forward, FILTER, true, forward),
            nat("postrouting", postrouting),
        ],
    }
}

/// The host's own rules: VPCs reach what lies behind its uplinks, and neither the host nor one another.
pub(super) fn host_ruleset(
    table: &str,
    host_links: &str,
    uplinks: &BTreeSet<String>,
    transit_block: Ipv4Net,
) -> Ruleset {
    let forward = vec![
        Rule::new()
            .in_interface_begins(host_links)
            .out_interface_in(UPLINKS)
            .destination_not(LINK_LOCAL)
            .destination_not(transit_block)
            .accept(),
        Rule::new().in_interface_begins(host_links).drop(),
        Rule::new()
            .out_interface_begins(host_links)
            .ct_established()
            .accept(),
        Rule::new().out_interface_begins(host_links).drop(),
    ];
    let postrouting = vec![
        Rule::new()
            .source(transit_block)
            .out_interface_in(UPLINKS)
            .masquerade(),
    ];
    let table = Table {
        family: Family::Ipv4,
        name: table.to_owned(),
        sets: BTreeMap::from([(
            UPLINKS.to_owned(),
            set(
                KeyType::Interface,
                uplinks.iter().map(|name| Key::interface(name)),
            ),
        )]),
        chains: vec![
            base(
                "input",
                HookPoint::Input,
                BEFORE_OTHERS,
                false,
                vec![Rule::new().in_interface_begins(host_links).drop()],
            ),
            base("forward", HookPoint::Forward, BEFORE_OTHERS, false, forward),
            nat("postrouting", postrouting),
        ],
    };
    Ruleset { tables: vec![table] }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// None if the rule can allow nothing: its range of ports is empty, or its peer is a group that does not exist.
fn allowing(
    allowed: &spec::Rule,
    direction: Direction,
    groups: &BTreeMap<String, SecurityGroupSpec>,
) -> Option<Rule> {
    let rule = Rule::new().ether_type(EtherType::Ipv4);
    let rule = match (&allowed.peer, direction) {
        (Peer::Cidr(cidr), _) if cidr.prefix_len() == 0 => rule,
        (Peer::Cidr(cidr), Direction::Ingress) => rule.source(*cidr),
        (Peer::Cidr(cidr), Direction::Egress) => rule.destination(*cidr),
        (Peer::Group(id), _) if !groups.contains_key(id) => return None,
        (Peer::Group(id), Direction::Ingress) => rule.source_in(&GroupNames::new(id).addresses),
        (Peer::Group(id), Direction::Egress) => rule.destination_in(&GroupNames::new(id).addresses),
    };
    let rule = match allowed.protocol {
        Protocol::All => rule,
        Protocol::Icmp => rule.protocol(1),
        Protocol::Tcp => rule.protocol(6),
        Protocol::Udp => rule.protocol(UDP),
    };
    let rule = match (&allowed.ports, allowed.protocol) {
        (Some(ports), Protocol::Tcp | Protocol::Udp) if ports.is_empty() => return None,
        (Some(ports), Protocol::Tcp | Protocol::Udp) => rule.destination_ports(ports),
        _ => rule,
    };
    Some(rule.accept())
}

/// What a security group's parts are called.
struct GroupNames {
    taps: String,
    addresses: String,
    egress: String,
    ingress: String,
}

impl GroupNames {
    fn new(id: &str) -> Self {
        Self {
            taps: format!("{id}_taps"),
            addresses: format!("{id}_addresses"),
            egress: format!("{id}_egress"),
            ingress: format!("{id}_ingress"),
        }
    }
}

fn set(key_type: KeyType, elements: impl Iterator<Item = Key>) -> Set {
    Set {
        key_type,
        elements: elements.collect(),
    }
}

fn base(name: &str, point: HookPoint, priority: i32, drop: bool, rules: Vec<Rule>) -> Chain {
    Chain {
        name: name.to_owned(),
        hook: Some(Hook {
            point,
            priority,
            nat: false,
            drop,
        }),
        rules,
    }
}

fn nat(name: &str, rules: Vec<Rule>) -> Chain {
    let hook = Hook {
        point: HookPoint::Postrouting,
        priority: SOURCE_NAT,
        nat: true,
        drop: false,
    };
    Chain {
        name: name.to_owned(),
        hook: Some(hook),
        rules,
    }
}
