//! The ICMP and ICMPv6 errors a router sends (RFC 792, 1191, 1812, 4443).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum;
use super::head::{Head, Kind};
use super::{End, Part, stays_on_its_link};

/// Longest ICMP error for IPv4, IP header included (RFC 1812, section 4.3.2.3).
const V4_BYTES_MAX: usize = 576;

/// Longest ICMPv6 error: the minimum MTU (RFC 4443, section 3).
const V6_BYTES_MAX: usize = 1280;

/// Hop limit of what a router sends itself.
const HOPS: u8 = 64;

/// The addresses a router speaks from, by family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouterAddresses {
    /// Source of ICMP errors.
    pub v4: Option<Ipv4Addr>,
    /// Source of ICMPv6 errors.
    pub v6: Option<Ipv6Addr>,
}

/// Why a destination is unreachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// Nobody listens on the port: ECONNREFUSED to a connected UDP socket.
    Port,
    /// The host does not answer.
    Host,
    /// A firewall forbids it.
    Prohibited,
}

/// "Fragmentation needed" or "packet too big" about a packet. `None` when no error may be sent about
/// it (it is itself an error, a later fragment, allows fragmentation, came from no single host, or
/// the router has no address of its family).
pub fn too_big(about: &[u8], mtu: u16, from: RouterAddresses) -> Option<Vec<u8>> {
    let head = Head::parse(about, 0, about.len())?;
    if head.v6 {
        return error(about, &head, from, (2, 0), u32::from(mtu));
    }
    let dont_fragment = about[6] & 0x40 != 0;
    dont_fragment.then(|| error(about, &head, from, (3, 4), u32::from(mtu)))?
}

/// "Destination unreachable" about a packet; `None` as for [`too_big`].
pub fn unreachable(about: &[u8], why: Unreachable, from: RouterAddresses) -> Option<Vec<u8>> {
    let head = Head::parse(about, 0, about.len())?;
    let code = match (head.v6, why) {
        (false, Unreachable::Port) => (3, 3),
        (false, Unreachable::Host) => (3, 1),
        (false, Unreachable::Prohibited) => (3, 13),
        (true, Unreachable::Port) => (1, 4),
        (true, Unreachable::Host) => (1, 3),
        (true, Unreachable::Prohibited) => (1, 1),
    };
    error(about, &head, from, code, 0)
}

/// "Time exceeded in transit" about a packet; `None` as for [`too_big`].
pub fn time_exceeded(about: &[u8], from: RouterAddresses) -> Option<Vec<u8>> {
    let head = Head::parse(about, 0, about.len())?;
    error(about, &head, from, if head.v6 { (3, 0) } else { (11, 0) }, 0)
}

fn error(
    about: &[u8],
    head: &Head,
    from: RouterAddresses,
    (kind, code): (u8, u8),
    detail: u32,
) -> Option<Vec<u8>> {
    let source = head.address(about, End::Source);
    let to_one = !stays_on_its_link(head.address(about, End::Destination));
    let later = matches!(head.part, Part::Later(_));
    if head.kind == Kind::Error || later || stays_on_its_link(source) || !to_one {
        return None;
    }
    let mut message = vec![kind, code, 0, 0];
    message.extend(detail.to_be_bytes());
    match source {
        IpAddr::V4(to) => {
            message.extend(&about[..head.end.min(V4_BYTES_MAX - 28)]);
            Some(packet_v4(from.v4?, to, message))
        }
        IpAddr::V6(to) => {
            message.extend(&about[..head.end.min(V6_BYTES_MAX - 48)]);
            Some(packet_v6(from.v6?, to, message))
        }
    }
}

fn packet_v4(from: Ipv4Addr, to: Ipv4Addr, mut message: Vec<u8>) -> Vec<u8> {
    let total = (20 + message.len()) as u16;
    checksum_into(&mut message, 2, 0);
    let mut packet = vec![0x45, 0xc0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0, 0, HOPS, 1, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    checksum_into(&mut packet, 10, 0);
    packet.extend(message);
    packet
}

fn packet_v6(from: Ipv6Addr, to: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
    let length = message.len() as u16;
    let addresses = checksum::add(checksum::sum(&from.octets()), checksum::sum(&to.octets()));
    checksum_into(&mut message, 2, checksum::add(addresses, checksum::add(length, 58)));
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([58, HOPS]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(message);
    packet
}

/// Computes the checksum over everything plus `extra` and writes it at `at`.
pub(super) fn checksum_into(bytes: &mut [u8], at: usize, extra: u16) {
    bytes[at..at + 2].fill(0);
    let sum = !checksum::add(checksum::sum(bytes), extra);
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}
