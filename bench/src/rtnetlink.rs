//! The few rtnetlink(7) requests that build a network: no `ip` program is needed.
//!
//! Message building is pure; [`request`] sends one and reads its acknowledgement.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

/// Sends `message` in the calling thread's namespace and waits for its acknowledgement.
///
/// # Errors
/// No netlink socket, or the kernel refuses; the error says why.
pub fn request(message: &Message) -> Result<()> {
    let socket: OwnedFd =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, NETLINK_ROUTE)?;
    send(&socket, &message.to_bytes(), SendFlags::empty())?;
    let mut answer = [0; 4096];
    let (bytes, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    let error = acknowledged(&answer[..bytes]).context("not an acknowledgement")?;
    ensure!(error == 0, "netlink error {}", std::io::Error::from_raw_os_error(-error));
    Ok(())
}

/// One request: a fixed structure and attributes.
#[derive(Debug)]
pub struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Interface index, unique in its namespace. Must differ between the two ends: the kernel
    /// announces the carrier at once only then, and up to 1 s later otherwise.
    pub index: u32,
    /// At most 15 bytes (IFNAMSIZ).
    pub name: &'a str,
}

/// Sets interface `index` up. 1 is always `lo`.
pub fn link_up(index: u32) -> Message {
    Message { kind: RTM_NEWLINK, flags: 0, body: link_header(index, IFF_UP) }
}

/// Creates `here` in the calling thread's namespace, joined to `there` in the namespace `peer_ns`.
pub fn veth(here: VethEnd<'_>, there: VethEnd<'_>, peer_ns: BorrowedFd<'_>) -> Message {
    let mut peer = link_header(there.index, 0);
    attribute(&mut peer, IFLA_IFNAME, &name_bytes(there.name));
    attribute(&mut peer, IFLA_NET_NS_FD, &peer_ns.as_raw_fd().to_ne_bytes());
    let mut data = Vec::new();
    attribute(&mut data, VETH_INFO_PEER, &peer);
    let mut info = Vec::new();
    attribute(&mut info, IFLA_INFO_KIND, b"veth");
    attribute(&mut info, IFLA_INFO_DATA, &data);
    let mut body = link_header(here.index, 0);
    attribute(&mut body, IFLA_IFNAME, &name_bytes(here.name));
    attribute(&mut body, IFLA_LINKINFO, &info);
    Message { kind: RTM_NEWLINK, flags: NLM_F_CREATE | NLM_F_EXCL, body }
}

/// Sets interface `index` up, with this MTU and room for `queue` packets towards its reader.
pub fn device_up(index: u32, mtu: u32, queue: u32) -> Message {
    let mut body = link_header(index, IFF_UP);
    attribute(&mut body, IFLA_MTU, &mtu.to_ne_bytes());
    attribute(&mut body, IFLA_TXQLEN, &queue.to_ne_bytes());
    Message { kind: RTM_NEWLINK, flags: 0, body }
}

/// Gives interface `index` the address `ip` in a network of `prefix` bits. Good at once: IPv6's
/// duplicate address detection is left out.
pub fn address(index: u32, ip: IpAddr, prefix: u8) -> Message {
    let body = address_body(index, ip, prefix);
    Message { kind: RTM_NEWADDR, flags: NLM_F_CREATE | NLM_F_EXCL, body }
}

/// Takes the address `ip` in a network of `prefix` bits from interface `index`.
pub fn remove_address(index: u32, ip: IpAddr, prefix: u8) -> Message {
    Message { kind: RTM_DELADDR, flags: 0, body: address_body(index, ip, prefix) }
}

/// Routes a network out of interface `index`; one that is point to point needs no gateway. Replaces
/// a route to the same network, of whatever interface. A `prefix` of 0 is the default route.
pub fn device_route(network: IpAddr, prefix: u8, index: u32, gateway: Option<IpAddr>) -> Message {
    let direct = network.is_ipv4() && gateway.is_none();
    let scope = if direct { RT_SCOPE_LINK } else { RT_SCOPE_UNIVERSE };
    let mut body = route_header(family(network), prefix, scope);
    if prefix > 0 {
        attribute(&mut body, RTA_DST, &octets(network));
    }
    attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
    if let Some(gateway) = gateway {
        attribute(&mut body, RTA_GATEWAY, &octets(gateway));
    }
    Message { kind: RTM_NEWROUTE, flags: NLM_F_CREATE | NLM_F_REPLACE, body }
}

/// Routes everything that is not local over `via`.
pub fn default_route(via: Ipv4Addr) -> Message {
    let mut body = route_header(AF_INET, 0, RT_SCOPE_UNIVERSE);
    attribute(&mut body, RTA_GATEWAY, &via.octets());
    Message { kind: RTM_NEWROUTE, flags: NLM_F_CREATE | NLM_F_EXCL, body }
}

impl Message {
    /// With `struct nlmsghdr` in front (netlink(7)): length, type, flags, sequence, sender.
    fn to_bytes(&self) -> Vec<u8> {
        let length = HEADER_BYTES + self.body.len();
        let mut bytes = Vec::with_capacity(length);
        bytes.extend((length as u32).to_ne_bytes());
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | NLM_F_ACK | self.flags).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(&self.body);
        bytes
    }
}

/// `struct ifinfomsg`: family and device type unspecified, the flags both set and masked.
fn link_header(index: u32, flags: u32) -> Vec<u8> {
    let mut header = vec![0; 4];
    for field in [index, flags, flags] {
        header.extend(field.to_ne_bytes());
    }
    header
}

/// `struct ifaddrmsg`: family, prefix length, flags, scope, index; then the address.
fn address_body(index: u32, ip: IpAddr, prefix: u8) -> Vec<u8> {
    let flags = if ip.is_ipv6() { IFA_F_NODAD } else { 0 };
    let mut body = vec![family(ip), prefix, flags, 0];
    body.extend(index.to_ne_bytes());
    attribute(&mut body, IFA_LOCAL, &octets(ip));
    attribute(&mut body, IFA_ADDRESS, &octets(ip));
    body
}

/// `struct rtmsg`: family, destination, source and TOS lengths, table, origin, scope, type, flags.
fn route_header(family: u8, prefix: u8, scope: u8) -> Vec<u8> {
    let mut header = vec![family, prefix, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST];
    header.extend([0; 4]);
    header
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// `struct rtattr`: length without padding, type, payload, padded to 4 bytes.
fn attribute(body: &mut Vec<u8>, kind: u16, payload: &[u8]) {
    let length = ATTRIBUTE_HEADER_BYTES + payload.len();
    body.extend((length as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(payload);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn name_bytes(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// The code of an NLMSG_ERROR message: 0 is success, negative an errno.
fn acknowledged(message: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let code = i32::from_ne_bytes(message.get(16..20)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then_some(code)
}

/// Protocol 0 of the netlink family (rtnetlink(7)).
const NETLINK_ROUTE: Option<Protocol> = None;
const HEADER_BYTES: usize = 16;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const IFF_UP: u32 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn every_message_has_the_length_it_claims_and_whole_attributes() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let (here, there) = (VethEnd { index: 5, name: "a" }, VethEnd { index: 6, name: "bcd" });
        let ip = Ipv4Addr::new(192, 0, 2, 1);
        let messages = [
            (link_up(1), 32),
            (veth(here, there, file.as_fd()), 92),
            (device_up(5, 1500, 1000), 48),
            (address(5, ip.into(), 30), 40),
            (remove_address(5, IpAddr::from([0_u16; 8]), 64), 64),
            (device_route(ip.into(), 32, 5, None), 44),
            (device_route(ip.into(), 0, 5, None), 36),
            (device_route(ip.into(), 0, 5, Some(ip.into())), 44),
            (default_route(ip), 36),
        ];
        for (message, length) in messages {
            let bytes = message.to_bytes();
            assert_eq!(u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize, bytes.len());
            assert_eq!(bytes.len(), length, "{message:?}");
        }
    }

    #[test]
    fn an_acknowledgement_is_told_from_a_refusal_and_from_noise() {
        let mut answer = vec![0_u8; 36];
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert_eq!(acknowledged(&answer), Some(0));
        answer[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert_eq!(acknowledged(&answer), Some(-1));
        assert_eq!(acknowledged(&answer[..10]), None);
        answer[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
        assert_eq!(acknowledged(&answer), None);
    }
}
