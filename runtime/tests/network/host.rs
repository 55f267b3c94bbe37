//! A host for a test: a network namespace of its own, with an uplink to an internet of one address.

use std::{
    fs,
    future::Future,
    net::{Ipv4Addr, UdpSocket},
    process::Command,
    thread,
    time::Duration,
};

use berth_runtime::network::{
    EniSpec, MacAddr, Network, NetworkOptions, SecurityGroupSpec, SubnetSpec, VpcSpec,
};
use nix::sched::{CloneFlags, setns, unshare};

use crate::guest::Guest;

/// The host's own address, and that of the one server on the internet.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

pub(crate) struct Host {
    pub(crate) prefix: String,
}

impl Host {
    /// Runs a test on a host of its own; says loudly if this machine cannot.
    pub(crate) fn run<F: Future<Output = ()>>(prefix: &str, test: impl FnOnce(Self) -> F) {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: networks can only be tested by root");
            return;
        }
        // The namespace of this thread, and of all that it starts, becomes the host's.
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            if let Err(error) = Network::probe().await {
                eprintln!("SKIPPED: this machine cannot have networks: {error}");
                return;
            }
            // The process id tells apart two runs at a time.
            let prefix = format!("{prefix}{:x}", std::process::id() % 0x1_0000);
            let host = Self { prefix };
            host.ip("link set lo up");
            host.ip("link add up0 type veth peer name srv0");
            host.ip(&format!("addr add {HOST}/24 dev up0"));
            host.ip("link set up0 up");
            host.ip(&format!("netns add {}", host.internet()));
            host.ip(&format!("link set srv0 netns {}", host.internet()));
            host.ip(&format!("-n {} addr add {SERVER}/24 dev srv0", host.internet()));
            host.ip(&format!("-n {} link set srv0 up", host.internet()));
            host.ip(&format!("route add default via {SERVER}"));
            test(host).await;
        });
    }

    pub(crate) fn open(&self) -> Network {
        Network::open(NetworkOptions {
            uplink: true,
            prefix: self.prefix.clone(),
        })
        .unwrap()
    }

    /// A network with one VPC of two subnets and its default security group.
    pub(crate) async fn network(&self) -> Network {
        let network = self.open();
        self.describe(&network).await;
        network
    }

    pub(crate) async fn describe(&self, network: &Network) {
        network.ensure_vpc(&vpc("vpc-1", 1)).await.unwrap();
        network
            .ensure_subnet(&subnet("subnet-a", "10.0.1.0/24"))
            .await
            .unwrap();
        network
            .ensure_subnet(&subnet("subnet-b", "10.0.2.0/24"))
            .await
            .unwrap();
        network
            .set_security_groups("vpc-1", vec![default_group(), other_group()])
            .await
            .unwrap();
    }

    /// What there is on this host and in the list of namespaces that a network could leave behind.
    pub(crate) fn inventory(&self) -> Vec<String> {
        let namespaces = fs::read_dir("/run/netns")
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let mut inventory: Vec<_> = namespaces
            .map(|name| name.into_string().unwrap())
            .filter(|name| name.starts_with(&format!("{}-", self.prefix)))
            .collect();
        inventory.sort();
        inventory.push(self.ip("-brief link"));
        inventory.push(self.ip("route"));
        inventory.push(run("nft", &["list", "ruleset"]));
        inventory
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        run("ip", &arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// A UDP socket of the server on the internet.
    pub(crate) fn server(&self, port: u16) -> UdpSocket {
        let namespace = fs::File::open(format!("/run/netns/{}", self.internet())).unwrap();
        thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            socket((SERVER, port))
        })
        .join()
        .unwrap()
    }

    /// A name that does not begin as the network's own do.
    fn internet(&self) -> String {
        format!("internet-{}", self.prefix)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.ip(&format!("netns del {}", self.internet()));
    }
}

pub(crate) fn socket(address: (Ipv4Addr, u16)) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

/// What a socket receives next, and from whom; none if nothing comes.
pub(crate) fn receive(socket: &UdpSocket) -> Option<(Vec<u8>, std::net::SocketAddr)> {
    let mut buffer = [0; 2048];
    let (len, from) = socket.recv_from(&mut buffer).ok()?;
    Some((buffer[..len].to_vec(), from))
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn vpc(id: &str, index: u16) -> VpcSpec {
    VpcSpec {
        id: id.to_owned(),
        index,
        cidr: "10.0.0.0/16".parse().unwrap(),
    }
}

pub(crate) fn subnet(id: &str, cidr: &str) -> SubnetSpec {
    SubnetSpec {
        id: id.to_owned(),
        vpc_id: "vpc-1".to_owned(),
        cidr: cidr.parse().unwrap(),
    }
}

pub(crate) fn default_group() -> SecurityGroupSpec {
    SecurityGroupSpec::default_group("sg-default", "vpc-1")
}

/// Members reach everybody and nobody reaches them.
pub(crate) fn other_group() -> SecurityGroupSpec {
    SecurityGroupSpec {
        ingress: Vec::new(),
        ..SecurityGroupSpec::default_group("sg-other", "vpc-1")
    }
}

/// An interface of the default group on subnet `a` or `b`, with the address `10.0.<1 or 2>.<last>`.
pub(crate) fn eni(id: &str, subnet: char, last: u8) -> EniSpec {
    let third = if subnet == 'a' { 1 } else { 2 };
    EniSpec {
        id: id.to_owned(),
        subnet_id: format!("subnet-{subnet}"),
        vpc_id: "vpc-1".to_owned(),
        address: Ipv4Addr::new(10, 0, third, last),
        mac: MacAddr::derived(id),
        security_groups: vec!["sg-default".to_owned()],
        internet: true,
    }
}

pub(crate) fn in_group(group: &str, eni: EniSpec) -> EniSpec {
    EniSpec {
        security_groups: vec![group.to_owned()],
        ..eni
    }
}

pub(crate) async fn attach(network: &Network, eni: &EniSpec) -> Guest {
    Guest::new(network.attach(eni).await.unwrap(), eni)
}
