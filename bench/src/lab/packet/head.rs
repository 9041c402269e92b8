//! Where things are in a packet: the offsets found once, checked against the length once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::checksum;
use super::{End, Flow, Part, Protocol};

/// Most IPv6 extension headers before the transport: more is an attack, not a packet.
const EXTENSIONS_MAX: usize = 8;

/// What the transport header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Udp,
    Tcp,
    EchoRequest,
    EchoReply,
    /// ICMP or ICMPv6 error.
    Error,
    /// No transport header that is understood, or none here (a later fragment).
    Other,
}

/// The layout of one IP packet, in offsets into the buffer that holds it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    /// The IP header.
    pub(super) at: usize,
    /// The transport header.
    pub(super) transport: usize,
    /// The end of the packet, or of what is there of it.
    pub(super) end: usize,
    pub(super) kind: Kind,
    pub(super) part: Part,
    pub(super) v6: bool,
    /// The transport protocol's number.
    number: u8,
}

impl Head {
    /// The packet that starts at `at` and is all there before `limit`.
    pub(super) fn parse(bytes: &[u8], at: usize, limit: usize) -> Option<Head> {
        let head = Head::read(bytes, at, limit)?;
        (head.declared_end(bytes) <= limit && head.header_bytes_are_there()).then_some(head)
    }

    /// The packet that starts at `at` and may be cut off, as in an ICMP error, at `limit`.
    pub(super) fn parse_truncated(bytes: &[u8], at: usize, limit: usize) -> Option<Head> {
        Head::read(bytes, at, limit)
    }

    fn read(bytes: &[u8], at: usize, limit: usize) -> Option<Head> {
        let packet = bytes.get(at..limit)?;
        match packet.first()? >> 4 {
            4 => Head::read_v4(packet, at),
            6 => Head::read_v6(packet, at),
            _ => None,
        }
    }

    fn read_v4(packet: &[u8], at: usize) -> Option<Head> {
        let header = usize::from(packet[0] & 15) * 4;
        let total = usize::from(word(packet, 2)?);
        if header < 20 || total < header || packet.len() < header {
            return None;
        }
        let fragment = word(packet, 6)?;
        let id = u32::from(word(packet, 4)?);
        let part = match (fragment & 0x1fff, fragment & 0x2000 != 0) {
            (0, false) => Part::Whole,
            (0, true) => Part::First(id),
            _ => Part::Later(id),
        };
        let end = total.min(packet.len());
        Head::at_transport(packet, at, header, end, packet[9], part, false)
    }

    fn read_v6(packet: &[u8], at: usize) -> Option<Head> {
        let total = 40 + usize::from(word(packet, 4)?);
        let end = total.min(packet.len());
        let mut next = *packet.get(6)?;
        let mut offset = 40;
        let mut part = Part::Whole;
        for _ in 0..EXTENSIONS_MAX {
            let length = match next {
                0 | 43 | 60 => (usize::from(*packet.get(offset + 1)?) + 1) * 8,
                44 => {
                    let fragment = word(packet, offset + 2)?;
                    let id = u32::from(word(packet, offset + 4)?) << 16
                        | u32::from(word(packet, offset + 6)?);
                    part = match (fragment >> 3, fragment & 1 != 0) {
                        (0, false) => Part::Whole,
                        (0, true) => Part::First(id),
                        _ => Part::Later(id),
                    };
                    8
                }
                _ => return Head::at_transport(packet, at, offset, end, next, part, true),
            };
            next = *packet.get(offset)?;
            offset += length;
            if matches!(part, Part::Later(_)) {
                return Head::at_transport(packet, at, offset, end, next, part, true);
            }
        }
        None
    }

    /// `packet` starts at `at` of the buffer; `transport` and `end` are offsets into it.
    fn at_transport(
        packet: &[u8],
        at: usize,
        transport: usize,
        end: usize,
        number: u8,
        part: Part,
        v6: bool,
    ) -> Option<Head> {
        if transport > end || packet.len() < if v6 { 40 } else { 20 } {
            return None;
        }
        let head =
            |kind| Head { at, transport: at + transport, end: at + end, kind, part, v6, number };
        if matches!(part, Part::Later(_)) {
            return Some(head(Kind::Other));
        }
        let kind = match (number, v6) {
            (17, _) => Kind::Udp,
            (6, _) => Kind::Tcp,
            (1, false) => match packet.get(transport)? {
                8 => Kind::EchoRequest,
                0 => Kind::EchoReply,
                3 | 11 | 12 => Kind::Error,
                _ => Kind::Other,
            },
            (58, true) => match packet.get(transport)? {
                128 => Kind::EchoRequest,
                129 => Kind::EchoReply,
                1..=4 => Kind::Error,
                _ => Kind::Other,
            },
            _ => Kind::Other,
        };
        // Eight bytes hold the ports or the identifier of all of them, and any ICMP header.
        (kind == Kind::Other || end - transport >= 8).then(|| head(kind))
    }

    fn declared_end(&self, bytes: &[u8]) -> usize {
        let (field, fixed) = if self.v6 { (4, 40) } else { (2, 0) };
        self.at + fixed + usize::from(word(bytes, self.at + field).unwrap_or(u16::MAX))
    }

    fn header_bytes_are_there(&self) -> bool {
        let least = if self.kind == Kind::Tcp { 20 } else { 0 };
        self.end - self.transport >= least
    }

    pub(super) fn flow(&self, bytes: &[u8]) -> Flow {
        let end = |end| {
            let port = self.port_at(end).and_then(|at| word(bytes, at)).unwrap_or(0);
            SocketAddr::new(self.address(bytes, end), port)
        };
        let protocol = match self.kind {
            Kind::Udp => Protocol::Udp,
            Kind::Tcp => Protocol::Tcp,
            Kind::EchoRequest | Kind::EchoReply => Protocol::Echo,
            Kind::Error => Protocol::Error,
            Kind::Other => Protocol::Other(self.number),
        };
        Flow { protocol, source: end(End::Source), destination: end(End::Destination) }
    }

    /// Writes an end's address and port, and corrects the checksums that cover them.
    pub(super) fn rewrite(&self, bytes: &mut [u8], end: End, to: SocketAddr) {
        if to.is_ipv6() != self.v6 {
            return;
        }
        let (address, length) = self.address_at(end);
        let before = checksum::sum(&bytes[address..address + length]);
        match to.ip() {
            IpAddr::V4(v4) => bytes[address..address + 4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => bytes[address..address + 16].copy_from_slice(&v6.octets()),
        }
        let after = checksum::sum(&bytes[address..address + length]);
        if !self.v6 {
            checksum::update(bytes, self.at + 10, before, after);
        }
        if self.pseudo_header_counts() {
            self.correct(bytes, before, after);
        }
        if let Some(at) = self.port_at(end) {
            let before = word(bytes, at).unwrap_or(0);
            bytes[at..at + 2].copy_from_slice(&to.port().to_be_bytes());
            self.correct(bytes, before, to.port());
        }
    }

    pub(super) fn ttl(&self, bytes: &[u8]) -> u8 {
        bytes[self.ttl_at()]
    }

    pub(super) fn decrement_ttl(&self, bytes: &mut [u8]) -> bool {
        let at = self.ttl_at();
        if bytes[at] <= 1 {
            return false;
        }
        bytes[at] -= 1;
        if !self.v6 {
            let left = u16::from(bytes[at]) << 8;
            checksum::update(bytes, self.at + 10, left + 0x100, left);
        }
        true
    }

    fn ttl_at(&self) -> usize {
        self.at + if self.v6 { 7 } else { 8 }
    }

    pub(super) fn address(&self, bytes: &[u8], end: End) -> IpAddr {
        let (at, length) = self.address_at(end);
        let octets = &bytes[at..at + length];
        <[u8; 4]>::try_from(octets)
            .map(|v4| IpAddr::V4(Ipv4Addr::from(v4)))
            .or_else(|_| <[u8; 16]>::try_from(octets).map(|v6| IpAddr::V6(Ipv6Addr::from(v6))))
            .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }

    fn address_at(&self, end: End) -> (usize, usize) {
        match (self.v6, end) {
            (false, End::Source) => (self.at + 12, 4),
            (false, End::Destination) => (self.at + 16, 4),
            (true, End::Source) => (self.at + 8, 16),
            (true, End::Destination) => (self.at + 24, 16),
        }
    }

    fn port_at(&self, end: End) -> Option<usize> {
        match (self.kind, end) {
            (Kind::Udp | Kind::Tcp, End::Source) => Some(self.transport),
            (Kind::Udp | Kind::Tcp, End::Destination) => Some(self.transport + 2),
            (Kind::EchoRequest, End::Source) | (Kind::EchoReply, End::Destination) => {
                Some(self.transport + 4)
            }
            _ => None,
        }
    }

    /// Whether the transport's checksum covers the addresses; ICMP for IPv4 has no pseudo-header.
    fn pseudo_header_counts(&self) -> bool {
        !matches!(self.part, Part::Later(_)) && (self.v6 || self.number != 1)
    }

    /// Corrects the transport's checksum where it has one and it is there.
    fn correct(&self, bytes: &mut [u8], before: u16, after: u16) {
        let offset = match self.number {
            17 => 6,
            6 => 16,
            1 | 58 => 2,
            _ => return,
        };
        let at = self.transport + offset;
        let Some(old) = word(&bytes[..self.end], at) else { return };
        // A UDP checksum of zero means none was computed (RFC 768); a computed zero is sent as ones.
        if self.number == 17 && old == 0 {
            return;
        }
        checksum::update(bytes, at, before, after);
        if self.number == 17 && word(bytes, at) == Some(0) {
            bytes[at..at + 2].fill(0xff);
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}
