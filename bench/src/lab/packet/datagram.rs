//! A whole UDP datagram over IPv4: what it carries, and one that a router sends itself.

use std::net::SocketAddrV4;

use super::checksum;
use super::head::{Head, Kind};
use super::{Part, errors::checksum_into};

/// Bytes of both headers.
const HEADERS: usize = 28;

/// Hop limit of what a router sends itself.
const HOPS: u8 = 64;

/// The payload of a UDP datagram that is all in this packet.
pub fn udp_payload(packet: &[u8]) -> Option<&[u8]> {
    let head = Head::parse(packet, 0, packet.len())?;
    let whole = head.kind == Kind::Udp && head.part == Part::Whole;
    packet.get(head.transport + 8..head.end).filter(|_| whole)
}

/// A UDP datagram of the router's own; `None` if the payload is longer than a packet.
pub fn udp_v4(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Option<Vec<u8>> {
    let total = u16::try_from(HEADERS + payload.len()).ok()?;
    let length = total - 20;
    let mut datagram = Vec::with_capacity(payload.len() + 8);
    datagram.extend(from.port().to_be_bytes());
    datagram.extend(to.port().to_be_bytes());
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    let (source, target) = (from.ip().octets(), to.ip().octets());
    let addresses = checksum::add(checksum::sum(&source), checksum::sum(&target));
    checksum_into(&mut datagram, 6, checksum::add(addresses, checksum::add(length, 17)));
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0, 0, HOPS, 17, 0, 0]);
    packet.extend(source);
    packet.extend(target);
    checksum_into(&mut packet, 10, 0);
    packet.extend(datagram);
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::packet::{flow_of, samples};

    #[test]
    fn a_datagram_is_as_the_samples_have_it() {
        let (from, to) = ("192.168.1.1:5351", "192.168.1.2:6000");
        let made = udp_v4(from.parse().unwrap(), to.parse().unwrap(), b"hello").unwrap();
        let sample = samples::udp(from.parse().unwrap(), to.parse().unwrap(), b"hello");
        assert_eq!(udp_payload(&made), Some(&b"hello"[..]));
        assert_eq!(flow_of(&made), flow_of(&sample));
        assert_eq!(made[26..28], sample[26..28], "the same checksum");
        assert_eq!(udp_v4(from.parse().unwrap(), to.parse().unwrap(), &[0; 65_536]), None);
    }
}
