//! Network settings of a namespace, by their files under `/proc/sys/net`.

use std::{fs, io};

use super::{NetworkError, namespace::Namespace};

/// What makes a VPC's namespace a router that keeps to IPv4 and to what it is asked.
pub(super) const ROUTER: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "1"),
    ("ipv4/conf/default/rp_filter", "1"),
    ("ipv4/conf/all/arp_ignore", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    // A host with br_netfilter would pass bridged frames through the router's rules as well.
    ("bridge/bridge-nf-call-iptables", "0"),
    ("bridge/bridge-nf-call-arptables", "0"),
    ("bridge/bridge-nf-call-ip6tables", "0"),
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
];

/// What one of the host's interfaces needs so that packets that come in by it are passed on.
pub(super) fn forwarding(interface: &str) -> Vec<(String, &'static str)> {
    vec![(format!("ipv4/conf/{interface}/forwarding"), "1")]
}

/// What keeps the host's end of a VPC's link to IPv4.
pub(super) fn without_ipv6(interface: &str) -> Vec<(String, &'static str)> {
    vec![(format!("ipv6/conf/{interface}/disable_ipv6"), "1")]
}

/// Sets each. A setting of a protocol or module that the kernel lacks is passed over: there is nothing to set.
pub(super) async fn set(
    namespace: &Namespace,
    settings: impl IntoIterator<Item = (impl Into<String>, &'static str)>,
) -> Result<(), NetworkError> {
    let settings: Vec<_> = settings
        .into_iter()
        .map(|(path, value)| (path.into(), value))
        .collect();
    namespace
        .run(move || {
            settings
                .into_iter()
                .try_for_each(|(path, value)| set_one(&path, value))
        })
        .await?
}

fn set_one(path: &str, value: &'static str) -> Result<(), NetworkError> {
    let path = format!("/proc/sys/net/{path}");
    // What is right already is not written, so that a read-only /proc/sys does not matter then.
    if fs::read_to_string(&path).is_ok_and(|current| current.trim() == value) {
        return Ok(());
    }
    match fs::write(&path, value) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(NetworkError::Sysctl {
            path,
            value,
            source: error,
        }),
        _ => Ok(()),
    }
}
