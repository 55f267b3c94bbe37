//! The name servers that tasks are given: those the host itself asks.

use std::{fs, net::Ipv4Addr};

/// Where the host's resolver is configured, and where systemd-resolved keeps the servers behind its own stub.
const RESOLV_CONF: &str = "/etc/resolv.conf";
const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";
/// As many as a C library reads (resolv.conf(5), MAXNS).
const MAX_SERVERS: usize = 3;

/// The host's upstream name servers (IPv4), at most three; none if the host has only a resolver of its own.
pub(super) fn dns_servers() -> Vec<Ipv4Addr> {
    [RESOLV_CONF, RESOLVED_CONF]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .map(|text| upstream(&text))
        .find(|servers| !servers.is_empty())
        .unwrap_or_default()
}

/// A server on loopback or link-local is the host's own: a task can never reach it.
fn upstream(resolv_conf: &str) -> Vec<Ipv4Addr> {
    resolv_conf
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver"))
                .then(|| words.next()?.parse::<Ipv4Addr>().ok())
                .flatten()
        })
        .filter(|server| !server.is_loopback() && !server.is_link_local() && !server.is_unspecified())
        .take(MAX_SERVERS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_servers_that_a_task_can_reach_are_taken() {
        let text = "# nameserver 9.9.9.9\nsearch lan\nnameserver 127.0.0.53\nnameserver  192.0.2.1\n\
                    nameserver fe80::1\nnameserver 169.254.169.253\nnameserver 192.0.2.2 # second\noptions edns0\n\
                    nameserver 192.0.2.3\nnameserver 192.0.2.4\n";
        let expected = [1, 2, 3].map(|last| Ipv4Addr::new(192, 0, 2, last));
        assert_eq!(upstream(text), expected);
    }

    #[test]
    fn a_stub_resolver_alone_gives_none() {
        assert!(upstream("nameserver 127.0.0.53\n").is_empty());
    }
}
