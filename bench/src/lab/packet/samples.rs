//! Packets for tests, built from nothing with checksums computed whole, and their verification.
//! Shares no code with what rewrites packets.

use std::net::{IpAddr, SocketAddr};

/// IP protocol numbers.
pub(crate) const UDP: u8 = 17;
pub(crate) const TCP: u8 = 6;

/// A UDP datagram.
pub(crate) fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut transport = Vec::new();
    transport.extend(source.port().to_be_bytes());
    transport.extend(destination.port().to_be_bytes());
    transport.extend((8 + payload.len() as u16).to_be_bytes());
    transport.extend([0, 0]);
    transport.extend(payload);
    finish(source.ip(), destination.ip(), UDP, transport, 6)
}

/// A TCP segment with these flags.
pub(crate) fn tcp(
    source: SocketAddr,
    destination: SocketAddr,
    flags: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut transport = Vec::new();
    transport.extend(source.port().to_be_bytes());
    transport.extend(destination.port().to_be_bytes());
    transport.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    transport.extend(payload);
    finish(source.ip(), destination.ip(), TCP, transport, 16)
}

/// An ICMP or ICMPv6 echo request or reply.
pub(crate) fn echo(
    source: IpAddr,
    destination: IpAddr,
    request: bool,
    id: u16,
    payload: &[u8],
) -> Vec<u8> {
    let (number, kind) = match (source.is_ipv6(), request) {
        (false, true) => (1, 8),
        (false, false) => (1, 0),
        (true, true) => (58, 128),
        (true, false) => (58, 129),
    };
    let mut transport = vec![kind, 0, 0, 0];
    transport.extend(id.to_be_bytes());
    transport.extend([0, 7]);
    transport.extend(payload);
    finish(source, destination, number, transport, 2)
}

/// An IP header before a transport, and the transport's checksum at this offset.
pub(crate) fn finish(
    source: IpAddr,
    destination: IpAddr,
    number: u8,
    mut transport: Vec<u8>,
    checksum_at: usize,
) -> Vec<u8> {
    let covered = covered(source, destination, number, &transport);
    let mut checksum = whole_checksum(&covered);
    if number == UDP && checksum == 0 {
        checksum = 0xffff;
    }
    transport[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
    header(source, destination, number, transport)
}

fn header(source: IpAddr, destination: IpAddr, number: u8, transport: Vec<u8>) -> Vec<u8> {
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend([0x45, 0]);
            packet.extend((20 + transport.len() as u16).to_be_bytes());
            packet.extend([0x12, 0x34, 0x40, 0, 64, number, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            let checksum = whole_checksum(&packet);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend((transport.len() as u16).to_be_bytes());
            packet.extend([number, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        _ => panic!("one family"),
    }
    packet.extend(transport);
    packet
}

/// The two IPv4 fragments of a packet, cut after `first` bytes of its transport (a multiple of 8).
pub(crate) fn fragments_v4(packet: &[u8], first: usize) -> [Vec<u8>; 2] {
    let cut = |range: std::ops::Range<usize>, field: u16| {
        let mut fragment = packet[..20].to_vec();
        fragment.extend(&packet[20 + range.start..20 + range.end]);
        let total = fragment.len() as u16;
        fragment[2..4].copy_from_slice(&total.to_be_bytes());
        fragment[6..8].copy_from_slice(&field.to_be_bytes());
        fragment[10..12].fill(0);
        let checksum = whole_checksum(&fragment[..20]);
        fragment[10..12].copy_from_slice(&checksum.to_be_bytes());
        fragment
    };
    [cut(0..first, 0x2000), cut(first..packet.len() - 20, first as u16 / 8)]
}

/// Says which checksum of a whole packet is wrong, computing all of them anew.
pub(crate) fn verify(packet: &[u8]) -> Result<(), String> {
    let v6 = packet[0] >> 4 == 6;
    if !v6 && whole_checksum(&packet[..20]) != 0 {
        return Err("IPv4 header checksum".into());
    }
    let (source, destination, number, transport) = if v6 {
        let address = |at: usize| {
            IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).expect("sixteen bytes"))
        };
        (address(8), address(24), packet[6], &packet[40..])
    } else {
        let address =
            |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).expect("four bytes"));
        (address(12), address(16), packet[9], &packet[20..])
    };
    if number == UDP && transport[6..8] == [0, 0] {
        return Ok(());
    }
    match whole_checksum(&covered(source, destination, number, transport)) {
        0 => Ok(()),
        _ => Err(format!("transport checksum of protocol {number}")),
    }
}

/// What the transport's checksum covers: the pseudo-header, except for ICMP, and the transport.
fn covered(source: IpAddr, destination: IpAddr, number: u8, transport: &[u8]) -> Vec<u8> {
    let mut covered = Vec::new();
    if number != 1 {
        for address in [source, destination] {
            match address {
                IpAddr::V4(v4) => covered.extend(v4.octets()),
                IpAddr::V6(v6) => covered.extend(v6.octets()),
            }
        }
        covered.extend((transport.len() as u32).to_be_bytes());
        covered.extend([0, 0, 0, number]);
    }
    covered.extend(transport);
    covered
}

fn whole_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for (index, byte) in bytes.iter().enumerate() {
        sum += u32::from(*byte) << if index % 2 == 0 { 8 } else { 0 };
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
