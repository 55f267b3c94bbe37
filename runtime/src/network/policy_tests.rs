//! The rule compiler without a kernel. What the rules then do to packets is tried by `tests/network`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    ops::RangeInclusive,
};

use ipnet::Ipv4Net;

use super::{
    MacAddr,
    nft::{Chain, EtherType, Key, Ruleset, Verdict},
    policy::*,
    spec::{EniSpec, Peer, Protocol, Rule, SecurityGroupSpec},
};

fn eni(id: &str, last: u8, groups: &[&str]) -> EniSpec {
    EniSpec {
        id: id.to_owned(),
        subnet_id: "subnet-1".to_owned(),
        vpc_id: "vpc-1".to_owned(),
        address: Ipv4Addr::new(10, 0, 0, last),
        mac: MacAddr::derived(id),
        security_groups: groups.iter().map(|&id| id.to_owned()).collect(),
        internet: last.is_multiple_of(2),
    }
}

fn policy(enis: &[EniSpec], groups: &[SecurityGroupSpec]) -> VpcPolicy {
    VpcPolicy {
        enis: enis.iter().map(|eni| (eni.id.clone(), eni.clone())).collect(),
        groups: groups
            .iter()
            .map(|group| (group.id.clone(), group.clone()))
            .collect(),
    }
}

fn compile(policy: &VpcPolicy) -> Ruleset {
    vpc_ruleset("berth", policy, "100.64.0.0/14".parse().unwrap())
}

fn elements<'a>(ruleset: &'a Ruleset, set: &str) -> &'a BTreeSet<Key> {
    &ruleset
        .tables
        .iter()
        .find_map(|table| table.sets.get(set))
        .unwrap()
        .elements
}

fn chain<'a>(ruleset: &'a Ruleset, name: &str) -> &'a Chain {
    ruleset
        .tables
        .iter()
        .flat_map(|table| &table.chains)
        .find(|chain| chain.name == name)
        .unwrap()
}

fn group(id: &str) -> SecurityGroupSpec {
    SecurityGroupSpec::default_group(id, "vpc-1")
}

#[test]
fn an_attached_interface_changes_members_and_no_rule() {
    let groups = [group("sg-1"), group("sg-2")];
    let before = compile(&policy(&[eni("eni-1", 10, &["sg-1"])], &groups));
    let after = compile(&policy(
        &[eni("eni-1", 10, &["sg-1"]), eni("eni-2", 11, &["sg-1", "sg-2"])],
        &groups,
    ));
    for (before, after) in before.tables.iter().zip(&after.tables) {
        assert_eq!(before.chains, after.chains);
    }
    let of = |addresses: &[u8]| -> BTreeSet<_> {
        addresses
            .iter()
            .map(|&last| Key::address(Ipv4Addr::new(10, 0, 0, last)))
            .collect()
    };
    assert_eq!(*elements(&after, "sg-1_addresses"), of(&[10, 11]));
    assert_eq!(*elements(&after, "sg-2_addresses"), of(&[11]));
    assert_eq!(*elements(&after, "internet_members"), of(&[10]));
    assert_eq!(elements(&after, "eni_senders").len(), 2);
}

#[test]
fn what_no_rule_allows_is_dropped_on_every_way() {
    let empty = compile(&VpcPolicy::default());
    for name in ["antispoof", "egress", "ingress", "input", "forward"] {
        assert!(
            chain(&empty, name).hook.unwrap().drop,
            "{name} lets pass what no rule decides"
        );
    }
}

#[test]
fn frames_to_link_local_addresses_are_dropped_before_any_is_taken() {
    let rules = chain(&compile(&VpcPolicy::default()), "antispoof").rules.clone();
    let ipv4 = || super::nft::Rule::new().ether_type(EtherType::Ipv4);
    let place = |wanted: &super::nft::Rule| rules.iter().position(|rule| rule == wanted);
    let dropped = place(&ipv4().destination("169.254.0.0/16".parse().unwrap()).drop());
    let taken = place(&ipv4().ipv4_sender_in("eni_senders").accept());
    assert!(dropped.is_some() && dropped < taken, "{rules:?}");
}

fn compiled(protocol: Protocol, ports: Option<RangeInclusive<u16>>, peer: Peer) -> Vec<super::nft::Rule> {
    let rule = Rule {
        protocol,
        ports,
        peer,
    };
    let group = SecurityGroupSpec {
        ingress: vec![rule],
        ..group("sg-1")
    };
    chain(&compile(&policy(&[], &[group])), "sg-1_ingress")
        .rules
        .clone()
}

#[test]
fn a_rule_that_can_allow_nothing_is_left_out_never_widened() {
    let anyone = || Peer::Cidr(Ipv4Net::default());
    assert!(compiled(Protocol::All, None, Peer::Group("sg-unknown".to_owned())).is_empty());
    #[expect(clippy::reversed_empty_ranges, reason = "what a hostile caller may send")]
    let reversed = 20..=10;
    assert!(compiled(Protocol::Tcp, Some(reversed), anyone()).is_empty());
    assert_eq!(
        compiled(Protocol::All, Some(1..=2), anyone()),
        compiled(Protocol::All, None, anyone())
    );
}

#[test]
fn a_rule_matches_its_peer_its_protocol_and_its_ports() {
    let base = || super::nft::Rule::new().ether_type(EtherType::Ipv4);
    let cidr: Ipv4Net = "192.0.2.77/24".parse().unwrap();
    let expected = base()
        .source("192.0.2.0/24".parse().unwrap())
        .protocol(6)
        .destination_ports(&(80..=81))
        .accept();
    assert_eq!(
        compiled(Protocol::Tcp, Some(80..=81), Peer::Cidr(cidr)),
        [expected]
    );
    let expected = base().source_in("sg-1_addresses").protocol(17).accept();
    assert_eq!(
        compiled(Protocol::Udp, None, Peer::Group("sg-1".to_owned())),
        [expected]
    );
}

#[test]
fn members_are_sent_through_the_rules_of_each_of_their_groups() {
    let ruleset = compile(&policy(&[], &[group("sg-1"), group("sg-2")]));
    for id in ["sg-1", "sg-2"] {
        let jump = |way: &str| Verdict::Jump(format!("{id}_{way}"));
        let out = super::nft::Rule::new()
            .in_interface_in(&format!("{id}_taps"))
            .verdict(jump("egress"));
        let into = super::nft::Rule::new()
            .out_interface_in(&format!("{id}_taps"))
            .verdict(jump("ingress"));
        assert!(chain(&ruleset, "egress").rules.contains(&out));
        assert!(chain(&ruleset, "ingress").rules.contains(&into));
    }
}

#[test]
fn names_of_sets_of_groups_meet_no_other_name() {
    let groups = ["internet", "eni", "sg-1"].map(group);
    let ruleset = compile(&policy(&[], &groups));
    let mut seen = BTreeMap::new();
    for table in &ruleset.tables {
        for chain in &table.chains {
            *seen.entry((table.family as u8, &chain.name)).or_insert(0) += 1;
        }
    }
    assert!(seen.values().all(|&count| count == 1));
    assert_eq!(ruleset.tables[0].sets.len(), 1 + 2 * groups.len());
}
