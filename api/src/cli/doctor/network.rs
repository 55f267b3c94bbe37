//! What the network of tasks stands on: tap devices, nftables, a way out.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use super::Check;

pub(super) fn checks() -> Vec<Check> {
    vec![tun(), nftables(), uplink(), forwarding()]
}

fn tun() -> Check {
    match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Check::fine("tun", "/dev/net/tun opens"),
        Err(error) => Check::missing(
            "tun",
            format!("cannot open /dev/net/tun: {error}"),
            "modprobe tun, as root",
        ),
    }
}

fn nftables() -> Check {
    match nftables_generation() {
        Ok(()) => Check::fine("nftables", "the kernel answers"),
        Err(error) => Check::missing(
            "nftables",
            format!("the kernel does not answer: {}", std::io::Error::from(error)),
            "modprobe nf_tables, as root",
        ),
    }
}

/// Asks for the number of the current ruleset, which the kernel tells whoever may change it.
fn nftables_generation() -> nix::Result<()> {
    // linux/netfilter/nfnetlink.h and nf_tables.h
    const SUBSYSTEM: u16 = 10;
    const NEW_GENERATION: u16 = 15;
    const GET_GENERATION: u16 = 16;
    const NLM_F_REQUEST: u16 = 1;
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    setsockopt(&netlink, sockopt::ReceiveTimeout, &TimeVal::new(2, 0))?;
    let mut request = Vec::with_capacity(20);
    request.extend(20u32.to_ne_bytes());
    request.extend((SUBSYSTEM << 8 | GET_GENERATION).to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number, port, and an empty nfgenmsg.
    request.extend([0u8; 12]);
    sendto(
        netlink.as_raw_fd(),
        &request,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    let mut answer = [0u8; 4096];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    match answer[..length] {
        [_, _, _, _, a, b, ..] if u16::from_ne_bytes([a, b]) == SUBSYSTEM << 8 | NEW_GENERATION => Ok(()),
        _ => Err(nix::Error::EOPNOTSUPP),
    }
}

fn uplink() -> Check {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    match default_route(&routes) {
        Some(link) => Check::fine("uplink", format!("default route by {link}")),
        None => Check::note(
            "uplink",
            "no default route",
            "tasks reach each other but not the internet; add a route and start the daemon again",
        ),
    }
}

/// The link of the IPv4 default route: destination and mask 0, and up (flag 1).
fn default_route(routes: &str) -> Option<&str> {
    routes.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let up = u16::from_str_radix(fields.get(3)?, 16).ok()? & 1 == 1;
        (fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000") && up).then(|| fields[0])
    })
}

fn forwarding() -> Check {
    const PATH: &str = "/proc/sys/net/ipv4/ip_forward";
    match std::fs::read_to_string(PATH) {
        Ok(value) if value.trim() == "1" => Check::fine("forwarding", "IPv4 forwarding is on"),
        Ok(_) => Check::note(
            "forwarding",
            "IPv4 forwarding is off",
            "the daemon turns on what it needs when it starts",
        ),
        Err(error) => Check::missing(
            "forwarding",
            format!("cannot read {PATH}: {error}"),
            "mount /proc",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_is_found() {
        let header = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n";
        let local = "eth1 0000000A 00000000 0001 0 0 0 00FFFFFF 0 0 0\n";
        let default = "eth0 00000000 0100000A 0003 0 0 0 00000000 0 0 0\n";
        assert_eq!(default_route(&format!("{header}{local}{default}")), Some("eth0"));
        assert_eq!(default_route(&format!("{header}{local}")), None);
    }
}
