//! The task's own address, 169.254.170.2, where the SDKs look for credentials and metadata: a network namespace beside that
//! of the containers, joined to it by a pair of veth interfaces, with one listening socket and no way to anywhere else.
//!
//! It is a namespace of its own so that a container can have port 80 for itself. `eth0` has no way there: the containers'
//! namespace does not forward, and this one knows no route back to whoever is beyond it.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, listen, recv, send,
    socket,
};

use crate::guest::network::{Interface, NetworkError};

/// Where the SDKs look.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 2);
const PORT: u16 = 80;
/// The containers' side of the pair.
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 1);
const PREFIX_LEN: u8 = 30;
const OUTER: &str = "endpoint0";
const INNER: &str = "endpoint1";
const BACKLOG: i32 = 16;

/// From rtnetlink(7), `linux/if_link.h` and `linux/veth.h`.
const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
/// `struct ifinfomsg`, all zero: any family, no index, no flags.
const NO_INTERFACE: [u8; 16] = [0; 16];

#[derive(Debug, thiserror::Error)]
pub(crate) enum EndpointError {
    #[error("cannot open the network namespace: {0}")]
    Open(io::Error),
    #[error("cannot {what}: {source}")]
    Step { what: &'static str, source: Errno },
    #[error(transparent)]
    Network(#[from] NetworkError),
}

fn step(what: &'static str) -> impl FnOnce(Errno) -> EndpointError {
    move |source| EndpointError::Step { what, source }
}

/// Makes the namespace and listens in it; it lives as long as the socket. The caller has one thread, and is in the containers'
/// namespace again afterwards.
pub(crate) fn listen_inside() -> Result<OwnedFd, EndpointError> {
    let outside = own_namespace()?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(step("make a network namespace"))?;
    let inside = own_namespace();
    go(&outside)?;
    let inside = inside?;
    make_pair(&inside)?;
    raise(OUTER, NEIGHBOUR)?;
    go(&inside)?;
    let listener = raise(INNER, ADDRESS).and_then(|()| listener());
    // Whatever has become of the endpoint: the containers' namespace is the one that everything else is made in.
    go(&outside)?;
    listener
}

fn own_namespace() -> Result<File, EndpointError> {
    File::open("/proc/thread-self/ns/net").map_err(EndpointError::Open)
}

fn go(namespace: &File) -> Result<(), EndpointError> {
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(step("enter a network namespace"))
}

fn raise(name: &str, address: Ipv4Addr) -> Result<(), EndpointError> {
    // No addresses that nobody asked for; a kernel without IPv6 has no such file.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    let interface = Interface::open(name)?;
    interface.set_addresses(address, PREFIX_LEN)?;
    Ok(interface.raise()?)
}

fn listener() -> Result<OwnedFd, EndpointError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener =
        socket(AddressFamily::Inet, SockType::Stream, flags, None).map_err(step("make a socket"))?;
    let [a, b, c, d] = ADDRESS.octets();
    bind(listener.as_raw_fd(), &SockaddrIn::new(a, b, c, d, PORT)).map_err(step("bind to 169.254.170.2"))?;
    let backlog = Backlog::new(BACKLOG).map_err(step("listen"))?;
    listen(&listener, backlog).map_err(step("listen"))?;
    Ok(listener)
}

/// A veth pair: one end here, the other in `namespace`.
fn make_pair(namespace: &File) -> Result<(), EndpointError> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )
    .map_err(step("open a netlink socket"))?;
    let request = new_pair(namespace.as_raw_fd());
    send(netlink.as_raw_fd(), &request, MsgFlags::empty()).map_err(step("ask for a veth pair"))?;
    let mut answer = [0; 4096];
    let length =
        recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty()).map_err(step("hear of a veth pair"))?;
    acknowledged(&answer[..length]).map_err(step("make a veth pair"))
}

fn new_pair(namespace: i32) -> Vec<u8> {
    let mut peer = NO_INTERFACE.to_vec();
    attribute(&mut peer, IFLA_IFNAME, &name(INNER));
    attribute(&mut peer, IFLA_NET_NS_FD, &namespace.to_ne_bytes());
    let mut data = Vec::new();
    attribute(&mut data, VETH_INFO_PEER, &peer);
    let mut info = Vec::new();
    attribute(&mut info, IFLA_INFO_KIND, b"veth");
    attribute(&mut info, IFLA_INFO_DATA, &data);
    let mut body = NO_INTERFACE.to_vec();
    attribute(&mut body, IFLA_IFNAME, &name(OUTER));
    attribute(&mut body, IFLA_LINKINFO, &info);
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
    let mut message = Vec::new();
    // `struct nlmsghdr`: length, type, flags, sequence number, port.
    message.extend((16 + body.len() as u32).to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn name(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// `struct rtattr` and its value, padded to four bytes.
fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend((4 + value.len() as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// The answer is a `struct nlmsgerr`: 0, or an error number below it.
fn acknowledged(answer: &[u8]) -> Result<(), Errno> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok());
    let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok());
    match (kind.map(u16::from_ne_bytes), code.map(i32::from_ne_bytes)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(Errno::from_raw(code.saturating_neg())),
        _ => Err(Errno::EBADMSG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_say_their_own_length() {
        let mut out = Vec::new();
        attribute(&mut out, 3, b"abc");
        assert_eq!(out, [[7, 0, 3, 0].as_slice(), b"abc\0"].concat());
        let request = new_pair(7);
        assert_eq!(request.len() % 4, 0);
        assert_eq!(
            u32::from_ne_bytes(request[..4].try_into().unwrap()) as usize,
            request.len()
        );
    }

    #[test]
    fn an_answer_that_is_no_acknowledgement_is_none() {
        let answer = |kind: u16, code: i32| {
            let mut answer = vec![0; 36];
            answer[4..6].copy_from_slice(&kind.to_ne_bytes());
            answer[16..20].copy_from_slice(&code.to_ne_bytes());
            answer
        };
        assert_eq!(acknowledged(&answer(NLMSG_ERROR, 0)), Ok(()));
        assert_eq!(acknowledged(&answer(NLMSG_ERROR, -17)), Err(Errno::EEXIST));
        assert_eq!(acknowledged(&answer(3, 0)), Err(Errno::EBADMSG));
        assert_eq!(acknowledged(&[0; 4]), Err(Errno::EBADMSG));
    }
}
