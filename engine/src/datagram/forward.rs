//! The way of data: ChannelData and Send indications to peers, datagrams of peers to clients (RFC 8656 sections 11 and 12).
//!
//! Pure. One look-up by client, then short scans; nothing is allocated or locked.
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::allocation::Tuple;
use super::counts::UdpDrop;
use super::server::Server;
use super::wire::{HEADER, Stun, attribute, channel_data, decode_address, encode_address, kind};
use crate::ring::HEAD_MAX;

/// What a datagram from a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FromClient {
    /// Payload for a peer.
    Data(ToPeer),
    /// A control message, or none at all: for [`Server::control`].
    Control,
    /// Nothing that goes anywhere.
    Dropped(UdpDrop),
}

/// Payload on its way to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ToPeer {
    /// The allocation's socket.
    pub(crate) id: usize,
    pub(crate) peer: SocketAddr,
    /// Where the payload begins in the datagram.
    pub(crate) start: usize,
    pub(crate) length: usize,
    /// DONT-FRAGMENT was asked for.
    pub(crate) whole: bool,
}

/// The way from a peer to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ToClient {
    pub(crate) client: SocketAddr,
    /// The address to send from.
    pub(crate) from: IpAddr,
    channel: Option<u16>,
    peer: SocketAddr,
}

/// Header of a relayed datagram: bytes, how many, and how much padding follows the payload.
pub(crate) type Head = ([u8; HEAD_MAX], u8, u8);

impl Server {
    /// Sorts what came from a client.
    pub(crate) fn sort(&self, now: Instant, tuple: &Tuple, bytes: &[u8]) -> FromClient {
        // RFC 8656 section 12.5: the first two bits tell ChannelData (01) from STUN (00).
        match bytes.first() {
            Some(first) if first >> 6 == 1 => self.channel(now, tuple, bytes),
            Some(_) if bytes.starts_with(&kind::SEND_INDICATION.to_be_bytes()) => {
                self.indication(now, tuple, bytes)
            }
            _ => FromClient::Control,
        }
    }

    fn channel(&self, now: Instant, tuple: &Tuple, bytes: &[u8]) -> FromClient {
        let Some((number, length)) = channel_data(bytes) else {
            return FromClient::Dropped(UdpDrop::Malformed);
        };
        let Some(id) = self.find(now, tuple) else {
            return FromClient::Dropped(UdpDrop::NoAllocation);
        };
        let bound = self.allocation(id).and_then(|allocation| allocation.peer_of(now, number));
        let Some((peer, standing)) = bound else { return FromClient::Dropped(UdpDrop::NoChannel) };
        if !self.port_is_open(standing, peer) {
            return FromClient::Dropped(UdpDrop::ForbiddenPeer);
        }
        FromClient::Data(ToPeer { id, peer, start: 4, length, whole: false })
    }

    /// RFC 8656 section 11.2. A bad one is dropped without an answer, as indications are.
    fn indication(&self, now: Instant, tuple: &Tuple, bytes: &[u8]) -> FromClient {
        let Some(id) = self.find(now, tuple) else {
            return FromClient::Dropped(UdpDrop::NoAllocation);
        };
        let Some(message) = Stun::parse(bytes) else {
            return FromClient::Dropped(UdpDrop::Malformed);
        };
        let peer = message.get(attribute::XOR_PEER_ADDRESS);
        let peer = peer.and_then(|value| decode_address(value, &message.transaction()));
        let (Some(peer), Some(data)) = (peer, message.get(attribute::DATA)) else {
            return FromClient::Dropped(UdpDrop::Malformed);
        };
        if message.unknown(&SENDABLE).next().is_some() {
            return FromClient::Dropped(UdpDrop::Malformed);
        }
        let standing =
            self.allocation(id).and_then(|allocation| allocation.permitted(now, peer.ip()));
        let Some(standing) = standing else { return FromClient::Dropped(UdpDrop::NoPermission) };
        if !self.port_is_open(standing, peer) {
            return FromClient::Dropped(UdpDrop::ForbiddenPeer);
        }
        // `data` is a part of `bytes`.
        let start = data.as_ptr().addr() - bytes.as_ptr().addr();
        let whole = message.get(attribute::DONT_FRAGMENT).is_some();
        FromClient::Data(ToPeer { id, peer, start, length: data.len(), whole })
    }

    /// Where datagrams from `peer` to the allocation `id` go.
    ///
    /// # Errors
    /// The allocation is over, or the peer has no permission.
    pub(crate) fn route(
        &self,
        now: Instant,
        id: usize,
        peer: SocketAddr,
    ) -> Result<ToClient, UdpDrop> {
        let peer = SocketAddr::new(peer.ip(), peer.port());
        let allocation = self.allocation(id).filter(|allocation| allocation.expires > now);
        let allocation = allocation.ok_or(UdpDrop::NoAllocation)?;
        allocation.permitted(now, peer.ip()).ok_or(UdpDrop::NoPermission)?;
        let channel = allocation.channel_of(now, peer);
        let Tuple { client, reached } = allocation.made.tuple;
        Ok(ToClient { client, from: reached, channel, peer })
    }
}

/// Comprehension-required attributes of a Send indication.
const SENDABLE: [u16; 3] = [attribute::XOR_PEER_ADDRESS, attribute::DATA, attribute::DONT_FRAGMENT];

impl ToClient {
    /// What goes before `length` bytes of payload: a channel's header, or a Data indication's. `number` makes its
    /// transaction id.
    ///
    /// Payload that is too long for one datagram with its header gets a length that does not fit, and the kernel refuses it.
    pub(crate) fn head(&self, length: usize, number: u64) -> Head {
        let mut head = [0; HEAD_MAX];
        let short = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
        if let Some(channel) = self.channel {
            head[..2].copy_from_slice(&channel.to_be_bytes());
            head[2..4].copy_from_slice(&short);
            return (head, 4, 0);
        }
        let mut mask = [0; 16];
        mask[..4].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
        mask[8..].copy_from_slice(&number.to_be_bytes());
        let (address, address_length) = encode_address(self.peer, &mask);
        let data = HEADER + 4 + address_length;
        let padded = length.next_multiple_of(4);
        let total = u16::try_from(data + 4 - HEADER + padded).unwrap_or(u16::MAX);
        head[..2].copy_from_slice(&kind::DATA_INDICATION.to_be_bytes());
        head[2..4].copy_from_slice(&total.to_be_bytes());
        head[4..HEADER].copy_from_slice(&mask);
        head[HEADER..HEADER + 2].copy_from_slice(&attribute::XOR_PEER_ADDRESS.to_be_bytes());
        head[HEADER + 3] = address_length as u8;
        head[HEADER + 4..data].copy_from_slice(&address[..address_length]);
        head[data..data + 2].copy_from_slice(&attribute::DATA.to_be_bytes());
        head[data + 2..data + 4].copy_from_slice(&short);
        (head, data as u8 + 4, (padded - length) as u8)
    }
}
