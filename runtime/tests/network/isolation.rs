//! What must not pass: forged frames, other VPCs, the host and its surroundings.

use std::net::Ipv4Addr;

use berth_runtime::network::{MacAddr, SubnetSpec};

use crate::{
    guest::{self, Guest},
    host::{self, HOST, Host, SERVER, attach, eni, receive},
};

const ROUTER_A: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);

#[test]
fn a_forged_frame_reaches_nobody() {
    Host::run("isa", async |host| {
        let network = host.network().await;
        let mallory = attach(&network, &eni("eni-1", 'a', 10)).await;
        let victim = attach(&network, &eni("eni-2", 'a', 11)).await;
        let alice = attach(&network, &eni("eni-3", 'a', 12)).await;
        let router = mallory.resolve(ROUTER_A).unwrap();
        let to = (victim.address, 2000);
        let nobody = Ipv4Addr::new(10, 0, 1, 99);
        let broadcast = MacAddr([0xff; 6]);
        let good = guest::udp(victim.mac, mallory.mac, (mallory.address, 1), to, b"good");
        let tagged = [&good[..12], &[0x81, 0, 0, 0], &good[12..]].concat();
        let forged = [
            (
                "mac address of another",
                guest::udp(victim.mac, alice.mac, (mallory.address, 1), to, b"x"),
            ),
            (
                "mac address of nobody",
                guest::udp(victim.mac, MacAddr([2; 6]), (mallory.address, 1), to, b"x"),
            ),
            (
                "address of another",
                guest::udp(victim.mac, mallory.mac, (alice.address, 1), to, b"x"),
            ),
            (
                "address of nobody",
                guest::udp(victim.mac, mallory.mac, (nobody, 1), to, b"x"),
            ),
            (
                "address of the router",
                guest::udp(victim.mac, mallory.mac, (ROUTER_A, 1), to, b"x"),
            ),
            (
                "by the router",
                guest::udp(router, mallory.mac, (alice.address, 1), to, b"x"),
            ),
            (
                "dhcp server",
                guest::udp(
                    victim.mac,
                    mallory.mac,
                    (mallory.address, 67),
                    (victim.address, 68),
                    b"x",
                ),
            ),
            (
                "to everybody",
                guest::udp(
                    broadcast,
                    mallory.mac,
                    (mallory.address, 1),
                    (Ipv4Addr::BROADCAST, 1),
                    b"x",
                ),
            ),
            ("vlan tag", tagged),
            (
                "ipv6",
                guest::ethernet(victim.mac, mallory.mac, 0x86dd, &[0x60; 60]),
            ),
            (
                "arp for another",
                guest::arp(
                    victim.mac,
                    mallory.mac,
                    2,
                    (mallory.mac, alice.address),
                    (victim.mac, victim.address),
                ),
            ),
            (
                "arp for the router",
                guest::arp(
                    broadcast,
                    mallory.mac,
                    2,
                    (mallory.mac, ROUTER_A),
                    (broadcast, ROUTER_A),
                ),
            ),
            (
                "arp with another's mac",
                guest::arp(
                    victim.mac,
                    mallory.mac,
                    2,
                    (alice.mac, mallory.address),
                    (victim.mac, victim.address),
                ),
            ),
            (
                "arp from another's mac",
                guest::arp(
                    victim.mac,
                    alice.mac,
                    2,
                    (mallory.mac, mallory.address),
                    (victim.mac, victim.address),
                ),
            ),
        ];
        while victim
            .find(std::time::Duration::from_millis(100), |_| true)
            .is_some()
        {}
        for (what, frame) in forged {
            mallory.send(&frame);
            let arrived = victim.find(std::time::Duration::from_millis(200), |_| true);
            assert_eq!(arrived, None, "{what} arrived");
        }
        assert!(alice.hears_nothing());
        mallory.send(&good);
        assert!(
            victim
                .receive_udp()
                .is_some_and(|datagram| datagram.payload == b"good")
        );
        drop((mallory, victim, alice));
        network.remove_all().await.unwrap();
    });
}

#[test]
fn a_frame_for_one_is_not_shown_to_others() {
    Host::run("isb", async |host| {
        let network = host.network().await;
        let a = attach(&network, &eni("eni-1", 'a', 10)).await;
        let b = attach(&network, &eni("eni-2", 'a', 11)).await;
        let eve = attach(&network, &eni("eni-3", 'a', 12)).await;
        a.udp(b.mac, 1, (b.address, 2), b"for b");
        assert!(b.receive_udp().is_some());
        a.udp(MacAddr([2, 9, 9, 9, 9, 9]), 1, (b.address, 2), b"for nobody");
        assert!(eve.hears_nothing() && b.hears_nothing());
        drop((a, b, eve));
        network.remove_all().await.unwrap();
    });
}

#[test]
fn vpcs_of_the_same_addresses_do_not_see_each_other() {
    Host::run("isc", async |host| {
        let network = host.network().await;
        network.ensure_vpc(&host::vpc("vpc-2", 2)).await.unwrap();
        let twin = SubnetSpec {
            vpc_id: "vpc-2".to_owned(),
            ..host::subnet("subnet-a", "10.0.1.0/24")
        };
        network.ensure_subnet(&twin).await.unwrap();
        let group = berth_runtime::network::SecurityGroupSpec::default_group("sg-default", "vpc-2");
        network.set_security_groups("vpc-2", vec![group]).await.unwrap();
        let here = attach(&network, &eni("eni-1", 'a', 10)).await;
        let mut spec = eni("eni-2", 'a', 11);
        spec.vpc_id = "vpc-2".to_owned();
        let there = attach(&network, &spec).await;
        assert_eq!(here.resolve(there.address), None);
        let router = here.resolve(ROUTER_A).unwrap();
        for address in transit_addresses(&host, "vpc-2") {
            assert!(!here.ping(router, address), "the other vpc answers on {address}");
        }
        here.udp(there.mac, 1, (there.address, 2), b"x");
        assert!(there.hears_nothing());
        drop((here, there));
        network.remove_all().await.unwrap();
    });
}

#[test]
fn the_host_and_its_surroundings_are_out_of_reach() {
    Host::run("isd", async |host| {
        let network = host.network().await;
        let guest = attach(&network, &eni("eni-1", 'a', 10)).await;
        let router = guest.resolve(ROUTER_A).unwrap();
        assert!(
            guest.ping(router, SERVER),
            "the internet is not reached, so the rest would prove nothing"
        );

        // A metadata service behind the uplink, and services of the host.
        host.ip("addr add 169.254.169.254/32 dev lo");
        let metadata = host::socket((Ipv4Addr::new(169, 254, 169, 254), 80));
        let service = host::socket((HOST, 80));
        // The VPC's own end of its link is its router, which may answer; the host's end is the host.
        let host_end = transit_addresses(&host, "vpc-1")[1];
        for address in [host_end, HOST, Ipv4Addr::new(169, 254, 169, 254)] {
            assert!(!guest.ping(router, address), "{address} answers");
            guest.udp(router, 1, (address, 80), b"x");
        }
        assert_eq!(receive(&metadata), None);
        assert_eq!(receive(&service), None);

        // And from outside, nobody opens a connection to a guest.
        let server = host.server(9);
        server.send_to(b"x", (HOST, 1)).unwrap();
        host.ip(&format!(
            "-n internet-{} route add 10.0.0.0/16 via {HOST}",
            host.prefix
        ));
        server.send_to(b"x", (guest.address, 1)).unwrap();
        assert!(guest.hears_nothing());
        drop(guest);
        network.remove_all().await.unwrap();
    });
}

/// The addresses of a VPC's link to the host.
fn transit_addresses(host: &Host, vpc_id: &str) -> Vec<Ipv4Addr> {
    let inside = host.ip(&format!(
        "-n {}-{vpc_id} -4 -o addr show dev transit",
        host.prefix
    ));
    let vpc_end = inside
        .split_whitespace()
        .skip_while(|word| *word != "inet")
        .nth(1)
        .unwrap();
    let vpc_end: Ipv4Addr = vpc_end.split('/').next().unwrap().parse().unwrap();
    vec![vpc_end, Ipv4Addr::from(u32::from(vpc_end) - 1)]
}

#[test]
fn a_guest_is_silent_once_it_is_detached() {
    Host::run("ise", async |host| {
        let network = host.network().await;
        let a: Guest = attach(&network, &eni("eni-1", 'a', 10)).await;
        let b = attach(&network, &eni("eni-2", 'a', 11)).await;
        a.udp(b.mac, 1, (b.address, 2), b"before");
        assert!(b.receive_udp().is_some());
        // Its machine still holds the tap.
        network.detach("eni-1").await.unwrap();
        a.udp(b.mac, 1, (b.address, 2), b"after");
        assert!(b.hears_nothing());
        drop((a, b));
        network.remove_all().await.unwrap();
    });
}
