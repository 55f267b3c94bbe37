//! What comes and goes: that everything can be repeated, outlives a daemon, and leaves nothing behind.

use std::time::Duration;

use berth_runtime::network::{EniSpec, Network, NetworkError};

use crate::{
    guest::Guest,
    host::{self, Host, attach, eni, in_group},
};

#[test]
fn everything_is_gone_after_remove_all() {
    Host::run("lia", async |host| {
        let before = host.inventory();
        let network = host.network().await;
        let a = attach(&network, &eni("eni-1", 'a', 10)).await;
        let b = attach(&network, &eni("eni-2", 'b', 10)).await;
        assert_ne!(
            host.inventory(),
            before,
            "nothing was made, so the rest would prove nothing"
        );
        network.detach("eni-2").await.unwrap();
        // One machine still holds its tap.
        network.remove_all().await.unwrap();
        assert_eq!(host.inventory(), before);
        network.remove_all().await.unwrap();
        drop((a, b));
    });
}

#[test]
fn every_step_can_be_repeated() {
    Host::run("lib", async |host| {
        let network = host.network().await;
        let spec = eni("eni-1", 'a', 10);
        let first = network.attach(&spec).await.unwrap();
        let inside = inside(&host);
        host.describe(&network).await;
        assert_eq!(self::inside(&host), inside);
        // The second holder gets a tap that works, whatever became of the first.
        let second = Guest::new(network.attach(&spec).await.unwrap(), &spec);
        assert!(second.resolve("10.0.1.1".parse().unwrap()).is_some());
        drop(first);
        assert!(second.resolve("10.0.1.1".parse().unwrap()).is_some());
        network.detach("eni-1").await.unwrap();
        network.detach("eni-1").await.unwrap();
        network.detach("eni-unknown").await.unwrap();
        network.remove_vpc("vpc-1").await.unwrap();
        network.remove_vpc("vpc-1").await.unwrap();
        let gone = network.attach(&spec).await;
        assert!(matches!(gone, Err(NetworkError::UnknownVpc(_))));
        host.describe(&network).await;
        network.attach(&spec).await.unwrap();
        network.remove_all().await.unwrap();
    });
}

#[test]
fn a_tap_goes_with_its_machine() {
    Host::run("lic", async |host| {
        let network = host.network().await;
        let tap = network.attach(&eni("eni-1", 'a', 10)).await.unwrap();
        assert!(inside(&host).contains(" bt"), "{}", inside(&host));
        drop(tap);
        assert!(!inside(&host).contains(" bt"));
        network.detach("eni-1").await.unwrap();
        network.remove_all().await.unwrap();
    });
}

#[test]
fn running_machines_stay_connected_over_a_restart() {
    Host::run("lid", async |host| {
        let first = host.network().await;
        let specs = [
            eni("eni-1", 'a', 10),
            eni("eni-2", 'a', 11),
            eni("eni-3", 'a', 12),
        ];
        let a = attach(&first, &specs[0]).await;
        let b = attach(&first, &specs[1]).await;
        let forgotten = attach(&first, &specs[2]).await;
        first.ensure_vpc(&host::vpc("vpc-9", 9)).await.unwrap();
        drop(first);

        let second = host.open();
        host.describe(&second).await;
        assert!(talk(&a, &b), "setting up again cut a connection");
        let ended = eni("eni-4", 'a', 13);
        let listed = [specs[0].clone(), specs[1].clone(), ended.clone()];
        assert_eq!(second.adopt(&listed).await.unwrap(), ["eni-4"]);
        assert!(talk(&a, &b), "a machine that was adopted has lost its connection");
        assert!(
            !talk(&a, &forgotten),
            "a machine that is not listed is still connected"
        );
        assert!(
            !host.inventory().iter().any(|name| name.ends_with("vpc-9")),
            "a vpc that is not listed is still there"
        );

        let c = attach(&second, &ended).await;
        assert!(talk(&a, &c) && talk(&c, &b));
        second.adopt(&listed).await.unwrap();
        assert!(talk(&c, &a));
        drop((a, b, c, forgotten));
        second.remove_all().await.unwrap();
    });
}

#[test]
fn machines_that_end_while_they_are_taken_over_are_no_error() {
    Host::run("lih", async |host| {
        let network = host.network().await;
        let specs = [
            eni("eni-1", 'a', 10),
            eni("eni-2", 'a', 11),
            eni("eni-3", 'a', 12),
        ];
        let mut fewer = 0;
        for round in 0..60 {
            let mut taps = Vec::new();
            for spec in &specs {
                taps.push(network.attach(spec).await.unwrap());
            }
            let ending = std::thread::spawn(move || {
                for tap in taps {
                    std::thread::sleep(Duration::from_micros(round * 150));
                    drop(tap);
                }
            });
            fewer += usize::from(!network.adopt(&specs).await.unwrap().is_empty());
            ending.join().unwrap();
            assert_eq!(network.adopt(&specs).await.unwrap().len(), specs.len());
        }
        assert!(fewer > 0, "no machine ended in time, so nothing was tried");
        network.remove_all().await.unwrap();
    });
}

#[test]
fn daemons_of_two_prefixes_do_not_touch_each_other() {
    Host::run("lie", async |host| {
        let network = host.network().await;
        let neighbour = Host {
            prefix: format!("{}x", &host.prefix[..host.prefix.len().min(7)]),
        };
        host.ip(&format!("netns add internet-{}", neighbour.prefix));
        let other = neighbour.network().await;
        let a = attach(&network, &eni("eni-1", 'a', 10)).await;
        let b = attach(&network, &eni("eni-2", 'a', 11)).await;
        other.adopt(&[]).await.unwrap();
        other.remove_all().await.unwrap();
        assert!(talk(&a, &b));
        drop((a, b));
        network.remove_all().await.unwrap();
    });
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_made() {
    Host::run("lif", async |host| {
        let network = host.network().await;
        let first = attach(&network, &eni("eni-1", 'a', 10)).await;
        let before = inside(&host);
        let good = eni("eni-2", 'a', 11);
        let refused = [
            EniSpec {
                address: "10.0.1.3".parse().unwrap(),
                ..good.clone()
            },
            EniSpec {
                address: "10.0.2.11".parse().unwrap(),
                ..good.clone()
            },
            EniSpec {
                address: first.address,
                ..good.clone()
            },
            EniSpec {
                mac: first.mac,
                ..good.clone()
            },
            EniSpec {
                mac: "01:00:5e:00:00:01".parse().unwrap(),
                ..good.clone()
            },
            EniSpec {
                subnet_id: "subnet-c".to_owned(),
                ..good.clone()
            },
            EniSpec {
                id: "../eni".to_owned(),
                ..good.clone()
            },
            in_group("sg-unknown", good.clone()),
        ];
        for spec in refused {
            assert!(network.attach(&spec).await.is_err(), "{spec:?} was taken");
        }
        assert!(
            network.ensure_vpc(&host::vpc("vpc-2", 1)).await.is_err(),
            "an index was given twice"
        );
        assert!(
            network
                .ensure_subnet(&host::subnet("subnet-c", "10.0.1.128/25"))
                .await
                .is_err()
        );
        assert!(
            network
                .ensure_subnet(&host::subnet("subnet-c", "10.1.0.0/24"))
                .await
                .is_err()
        );
        assert_eq!(inside(&host), before);
        drop(first);
        network.remove_all().await.unwrap();
    });
}

#[test]
fn many_interfaces_come_and_go() {
    Host::run("lig", async |host| {
        let network: Network = host.network().await;
        let mut taps = Vec::new();
        let start = std::time::Instant::now();
        for last in 10..110 {
            taps.push(
                network
                    .attach(&eni(&format!("eni-{last}"), 'a', last))
                    .await
                    .unwrap(),
            );
        }
        eprintln!("100 interfaces attached in {:?}", start.elapsed());
        assert_eq!(inside(&host).matches(" bt").count(), 100);
        for last in 10..110 {
            network.detach(&format!("eni-{last}")).await.unwrap();
        }
        assert_eq!(inside(&host).matches(" bt").count(), 0);
        network.remove_all().await.unwrap();
    });
}

fn talk(from: &Guest, to: &Guest) -> bool {
    from.udp(to.mac, 1000, (to.address, 2000), b"talk");
    to.receive_udp().is_some()
}

/// The links in the VPC's namespace.
fn inside(host: &Host) -> String {
    host.ip(&format!("-n {}-vpc-1 -o link", host.prefix))
}
