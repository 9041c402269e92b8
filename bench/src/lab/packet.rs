//! An IPv4 or IPv6 packet in place: who speaks to whom, and rewriting it as a router does.
//!
//! Checksums are updated incrementally (RFC 1624), never recomputed, so that a packet damaged before
//! the router is still damaged behind it. An ICMP error counts with the packet embedded in it: it can
//! be matched to the flow it is about, and rewritten inside and outside.

mod checksum;
mod datagram;
mod errors;
mod head;
#[cfg(test)]
pub(crate) mod samples;
mod split;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

pub use self::datagram::{udp_payload, udp_v4};
pub use self::errors::{RouterAddresses, Unreachable, time_exceeded, too_big, unreachable};
use self::head::{Head, Kind};
pub use self::split::fragment;

/// What a flow's ports mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// UDP ports.
    Udp,
    /// TCP ports.
    Tcp,
    /// ICMP or ICMPv6 echo: the identifier is the asking end's port, the answering end's is 0.
    Echo,
    /// An ICMP or ICMPv6 error; see [`PacketView::embedded`]. No ports.
    Error,
    /// Another IP protocol, or ICMP that is neither echo nor error. No ports.
    Other(u8),
}

/// Who sends to whom. Ports are 0 where there are none, as in later fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Which protocol.
    pub protocol: Protocol,
    /// The sending end.
    pub source: SocketAddr,
    /// The end sent to.
    pub destination: SocketAddr,
}

impl Flow {
    /// The other direction.
    pub fn reversed(self) -> Flow {
        Flow { source: self.destination, destination: self.source, ..self }
    }
}

/// Which part of a datagram a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment, with the ports; all fragments have this identification.
    First(u32),
    /// A later fragment, without ports.
    Later(u32),
}

/// What a TCP segment does to its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags {
    /// It opens (SYN, with or without ACK).
    pub syn: bool,
    /// It ends its direction.
    pub fin: bool,
    /// It aborts.
    pub rst: bool,
}

/// A well-formed packet, read and rewritten in place.
#[derive(Debug)]
pub struct PacketView<'a> {
    bytes: &'a mut [u8],
    head: Head,
    embedded: Option<Head>,
}

/// The flow of a packet, without a view; `None` when it is malformed.
pub fn flow_of(bytes: &[u8]) -> Option<Flow> {
    Head::parse(bytes, 0, bytes.len()).map(|head| head.flow(bytes))
}

impl<'a> PacketView<'a> {
    /// Reads the headers; `None` when they contradict the length or each other, or are cut short.
    pub fn parse(bytes: &'a mut [u8]) -> Option<Self> {
        let head = Head::parse(bytes, 0, bytes.len())?;
        let embedded = match head.kind {
            Kind::Error => Head::parse_truncated(bytes, head.transport + 8, head.end),
            _ => None,
        };
        Some(PacketView { bytes, head, embedded })
    }

    /// Who sends to whom.
    pub fn flow(&self) -> Flow {
        self.head.flow(self.bytes)
    }

    /// In an ICMP error, the flow of the packet it is about, as that packet was sent; `None` when
    /// this is no error or too little is embedded to tell.
    pub fn embedded(&self) -> Option<Flow> {
        self.embedded.map(|head| head.flow(self.bytes))
    }

    /// Which part of its datagram this packet is.
    pub fn part(&self) -> Part {
        self.head.part
    }

    /// The flags of a TCP segment that has its header.
    pub fn tcp_flags(&self) -> Option<TcpFlags> {
        (self.head.kind == Kind::Tcp).then(|| {
            let flags = self.bytes[self.head.transport + 13];
            TcpFlags { syn: flags & 2 != 0, fin: flags & 1 != 0, rst: flags & 4 != 0 }
        })
    }

    /// Rewrites the source: address, and the port where this packet has one. An address of the
    /// other family changes nothing.
    pub fn set_source(&mut self, to: SocketAddr) {
        self.head.rewrite(self.bytes, End::Source, to);
    }

    /// Rewrites the destination, like [`PacketView::set_source`].
    pub fn set_destination(&mut self, to: SocketAddr) {
        self.head.rewrite(self.bytes, End::Destination, to);
    }

    /// Rewrites the source of the packet embedded in an ICMP error, and the error's checksum.
    pub fn set_embedded_source(&mut self, to: SocketAddr) {
        self.rewrite_embedded(End::Source, to);
    }

    /// Rewrites the destination of the embedded packet, like [`PacketView::set_embedded_source`].
    pub fn set_embedded_destination(&mut self, to: SocketAddr) {
        self.rewrite_embedded(End::Destination, to);
    }

    /// The packet as it now is.
    pub fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// Whether the time to live allows one more hop.
    pub fn outlives_a_hop(&self) -> bool {
        self.head.ttl(self.bytes) > 1
    }

    /// Takes one from the time to live; `false`, and nothing changed, when none would be left.
    pub fn decrement_ttl(&mut self) -> bool {
        self.head.decrement_ttl(self.bytes)
    }

    fn rewrite_embedded(&mut self, end: End, to: SocketAddr) {
        let Some(embedded) = self.embedded else { return };
        let before = checksum::sum(&self.bytes[embedded.at..self.head.end]);
        embedded.rewrite(self.bytes, end, to);
        let after = checksum::sum(&self.bytes[embedded.at..self.head.end]);
        checksum::update(self.bytes, self.head.transport + 2, before, after);
    }
}

/// One end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

/// Whether a packet to or from this address is never forwarded: multicast, broadcast, link-local,
/// loopback, unspecified.
pub fn stays_on_its_link(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_link_local()
                || v4.is_loopback()
                || v4.is_unspecified()
        }
        IpAddr::V6(v6) => {
            v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6.is_loopback()
                || v6.is_unspecified()
        }
    }
}
