//! What passes: between members of a group, by the rules of a group, and out to the internet.

use std::{net::Ipv4Addr, time::Duration};

use berth_runtime::network::{EniSpec, Peer, Protocol, Rule, SecurityGroupSpec};

use crate::host::{self, Host, SERVER, attach, eni, in_group, receive};

const ROUTER_A: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);

#[test]
fn members_of_a_group_reach_each_other_in_a_subnet_and_across() {
    Host::run("tra", async |host| {
        let network = host.network().await;
        let a = attach(&network, &eni("eni-1", 'a', 10)).await;
        let b = attach(&network, &eni("eni-2", 'a', 11)).await;
        let far = attach(&network, &eni("eni-3", 'b', 12)).await;

        assert_eq!(a.resolve(b.address), Some(b.mac));
        a.udp(b.mac, 1000, (b.address, 2000), b"near");
        let datagram = b.receive_udp().expect("a neighbour is reached");
        assert_eq!(
            (datagram.source, datagram.destination, &*datagram.payload),
            ((a.address, 1000), (b.address, 2000), &b"near"[..])
        );

        let router = a.resolve(ROUTER_A).expect("the router answers");
        a.udp(router, 1000, (far.address, 2000), b"far");
        let datagram = far.receive_udp().expect("the other subnet is reached");
        assert_eq!(
            (datagram.source, &*datagram.payload),
            ((a.address, 1000), &b"far"[..])
        );
        assert!(a.ping(router, ROUTER_A), "the router can be pinged");

        drop((a, b, far));
        network.remove_all().await.unwrap();
    });
}

#[test]
fn a_group_lets_in_what_its_rules_say_and_nothing_else() {
    Host::run("trb", async |host| {
        let network = host.network().await;
        let client = attach(&network, &in_group("sg-other", eni("eni-1", 'a', 10))).await;
        let server = attach(&network, &eni("eni-2", 'a', 11)).await;

        client.udp(server.mac, 1000, (server.address, 53), b"denied");
        assert!(server.hears_nothing(), "a stranger to the group was let in");

        let rule = Rule {
            protocol: Protocol::Udp,
            ports: Some(53..=60),
            peer: Peer::Group("sg-other".to_owned()),
        };
        let open = SecurityGroupSpec {
            ingress: vec![rule],
            ..host::default_group()
        };
        network
            .set_security_groups("vpc-1", vec![open, host::other_group()])
            .await
            .unwrap();
        for port in [53, 60] {
            client.udp(server.mac, 1001, (server.address, port), b"allowed");
            assert!(
                server.receive_udp().is_some_and(|d| d.payload == b"allowed"),
                "port {port} is closed"
            );
        }
        for port in [52, 61] {
            client.udp(server.mac, 1001, (server.address, port), b"closed port");
        }
        assert!(server.hears_nothing(), "a port beside the range is open");

        // Nobody may open a connection to the client, but an answer is none.
        server.udp(client.mac, 53, (client.address, 1001), b"answer");
        assert!(
            client.receive_udp().is_some_and(|d| d.payload == b"answer"),
            "an answer was lost"
        );
        server.udp(client.mac, 53, (client.address, 1002), b"unasked");
        assert!(client.hears_nothing(), "what nobody asked for came in");

        // A rule for addresses.
        let rule = Rule {
            protocol: Protocol::All,
            ports: None,
            peer: Peer::Cidr("10.0.1.8/30".parse().unwrap()),
        };
        let open = SecurityGroupSpec {
            ingress: vec![rule],
            ..host::default_group()
        };
        network
            .set_security_groups("vpc-1", vec![open, host::other_group()])
            .await
            .unwrap();
        client.ping(server.mac, server.address);
        let echo = server.find(Duration::from_millis(500), |frame| frame.get(23) == Some(&1));
        assert!(echo.is_some(), "an address that the rule allows was not let in");

        drop((client, server));
        network.remove_all().await.unwrap();
    });
}

#[test]
fn egress_rules_bound_what_a_member_sends() {
    Host::run("trc", async |host| {
        let network = host.network().await;
        let rule = Rule {
            protocol: Protocol::Udp,
            ports: Some(443..=443),
            peer: Peer::Cidr("10.0.1.11/32".parse().unwrap()),
        };
        let shut_in = SecurityGroupSpec {
            egress: vec![rule],
            ..host::other_group()
        };
        network
            .set_security_groups("vpc-1", vec![everyone(), shut_in])
            .await
            .unwrap();
        let a = attach(&network, &in_group("sg-other", eni("eni-1", 'a', 10))).await;
        let b = attach(&network, &eni("eni-2", 'a', 11)).await;
        let c = attach(&network, &eni("eni-3", 'a', 12)).await;
        a.udp(b.mac, 1000, (b.address, 80), b"wrong port");
        a.udp(c.mac, 1000, (c.address, 443), b"wrong peer");
        assert!(b.hears_nothing() && c.hears_nothing());
        a.udp(b.mac, 1000, (b.address, 443), b"right");
        assert!(b.receive_udp().is_some());
        drop((a, b, c));
        network.remove_all().await.unwrap();
    });
}

#[test]
fn the_internet_is_reached_by_nat_and_answers_come_back() {
    Host::run("trd", async |host| {
        let network = host.network().await;
        let server = host.server(7);
        let public = attach(&network, &eni("eni-1", 'a', 10)).await;
        let private = attach(
            &network,
            &EniSpec {
                internet: false,
                ..eni("eni-2", 'a', 11)
            },
        )
        .await;
        let router = public.resolve(ROUTER_A).unwrap();

        public.udp(router, 1000, (SERVER, 7), b"hello");
        let (payload, from) = receive(&server).expect("the internet is reached");
        assert_eq!(
            (&*payload, from.ip()),
            (&b"hello"[..], host::HOST.into()),
            "not from the host's address"
        );
        server.send_to(b"welcome", from).unwrap();
        let datagram = public.receive_udp().expect("the answer comes back");
        assert_eq!(
            (datagram.source, &*datagram.payload),
            ((SERVER, 7), &b"welcome"[..])
        );
        assert!(public.ping(router, SERVER), "the internet cannot be pinged");

        private.udp(router, 1000, (SERVER, 7), b"no public address");
        assert!(
            receive(&server).is_none(),
            "an interface without a public address reached the internet"
        );

        drop((public, private));
        network.remove_all().await.unwrap();
    });
}

/// Lets everybody in.
fn everyone() -> SecurityGroupSpec {
    let rule = Rule {
        protocol: Protocol::All,
        ports: None,
        peer: Peer::Cidr("0.0.0.0/0".parse().unwrap()),
    };
    SecurityGroupSpec {
        ingress: vec![rule],
        ..host::default_group()
    }
}
