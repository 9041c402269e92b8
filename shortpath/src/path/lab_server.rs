//! The lab's server: STUN with RFC 5780's second address, and TURN, as far as the tests need them.
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::Rng;
use stun_types::message::{
    BINDING, IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageClass, Method,
};

use super::lab::{Arrived, Net};
use super::message::{self, Writer, attribute};

/// A STUN server on two addresses with two ports each, and a TURN server on the first.
#[derive(Debug)]
pub(crate) struct Server {
    pub(super) addresses: [IpAddr; 2],
    pub(crate) username: String,
    pub(crate) password: String,
    /// Clients by their relayed port: client address, lifetime ignored, channels, permitted IPs.
    allocations: BTreeMap<u16, Allocation>,
    pub(super) nonce: u32,
    /// Has one address and tells its other port only, as our gateway does by default.
    pub(super) single: bool,
    /// Answers every request for an allocation with this error.
    pub(crate) refuses: Option<u16>,
    /// Answers every ChannelBind with 403.
    pub(crate) forbids: bool,
    /// Channels bound and renewed so far.
    pub(super) bound: u64,
    pub(super) answered: u64,
}

#[derive(Debug)]
struct Allocation {
    client: SocketAddr,
    /// Peers by their channel, with the time at which it was last bound.
    channels: BTreeMap<u16, (SocketAddr, Instant)>,
}

pub(super) const STUN_PORT: u16 = 3478;
pub(super) const OTHER_PORT: u16 = 3479;
const RELAY_FIRST: u16 = 50_000;
/// How long a channel lasts, and how long neither its number nor its peer may be bound otherwise (RFC 8656 section 12).
const CHANNEL: Duration = Duration::from_secs(600);
const CHANNEL_RESTS: Duration = Duration::from_secs(900);
/// Channels of an allocation, as at our gateway.
const CHANNELS_MAX: usize = 64;

impl Allocation {
    /// # Errors
    /// The error code.
    fn bind(&mut self, now: Instant, channel: u16, peer: SocketAddr) -> Result<(), u16> {
        self.channels.retain(|_, (_, at)| now - *at < CHANNEL_RESTS);
        let conflict = |(number, (of, _)): (&u16, &(SocketAddr, Instant))| {
            (*number == channel) != (*of == peer)
        };
        if self.channels.iter().any(conflict) {
            return Err(400);
        }
        let others = self.channels.iter().filter(|(number, _)| **number != channel);
        if others.filter(|(_, (_, at))| now - *at < CHANNEL).count() >= CHANNELS_MAX {
            return Err(486);
        }
        self.channels.insert(channel, (peer, now));
        Ok(())
    }

    fn permits(&self, ip: IpAddr) -> bool {
        self.channels.values().any(|(peer, _)| peer.ip() == ip)
    }
}

impl Server {
    pub(crate) fn new() -> Self {
        Self {
            addresses: ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()],
            username: "1800000000:test".into(),
            password: "relay-secret".into(),
            allocations: BTreeMap::new(),
            nonce: 1,
            single: false,
            refuses: None,
            forbids: false,
            bound: 0,
            answered: 0,
        }
    }

    pub(super) fn stun(&self) -> SocketAddr {
        SocketAddr::new(self.addresses[0], STUN_PORT)
    }

    pub(super) fn owns(&self, to: SocketAddr) -> bool {
        self.addresses.contains(&to.ip())
    }

    /// Forgets every allocation, as a server that was started anew.
    pub(super) fn restart(&mut self) {
        self.allocations.clear();
        self.nonce += 1;
    }

    pub(super) fn handle(&mut self, net: &mut Net, datagram: &Arrived) {
        if datagram.to.port() >= RELAY_FIRST {
            return self.relay_in(net, datagram);
        }
        let Some(message) = message::parse(&datagram.bytes) else {
            return self.relay_out(net, datagram);
        };
        if message.has_method(BINDING) {
            if message.has_class(MessageClass::Request) {
                self.binding(net, datagram, &message);
            }
        } else if message.has_class(MessageClass::Indication) {
            self.indication(net, datagram, &message);
        } else {
            let reply = self.turn(net.now, datagram, &message);
            net.send(datagram.to, datagram.from, reply);
        }
    }

    /// What it says, as a TURN server, to a request that came over real sockets.
    pub(crate) fn answer(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &[u8],
    ) -> Option<Vec<u8>> {
        let message = message::parse(bytes)?;
        let is_turn = message.has_class(MessageClass::Request) && !message.has_method(BINDING);
        let datagram = Arrived { from, to: self.stun(), bytes: bytes.to_vec() };
        is_turn.then(|| self.turn(now, &datagram, &message))
    }

    fn binding(&mut self, net: &mut Net, datagram: &Arrived, message: &Message<'_>) {
        self.answered += 1;
        let plain = |address: SocketAddr| {
            let mut bytes = vec![0, 1];
            bytes.extend(address.port().to_be_bytes());
            if let IpAddr::V4(ip) = address.ip() {
                bytes.extend(ip.octets());
            }
            bytes
        };
        let other_ip = self.addresses[usize::from(datagram.to.ip() == self.addresses[0])];
        let other_port = if datagram.to.port() == STUN_PORT { OTHER_PORT } else { STUN_PORT };
        let change = message::number_u32(message, attribute::CHANGE_REQUEST).unwrap_or(0);
        let from = SocketAddr::new(
            if change & 4 == 0 { datagram.to.ip() } else { other_ip },
            if change & 2 == 0 { datagram.to.port() } else { other_port },
        );
        let reply = Writer::new(MessageClass::Success, BINDING, message.transaction_id())
            .add_address(attribute::XOR_MAPPED_ADDRESS, datagram.from);
        let [high, low] = other_port.to_be_bytes();
        let reply = match message::number_u32(message, attribute::OTHER_PORT) {
            Some(_) if self.single => reply.add(attribute::OTHER_PORT, &[high, low, 0, 0]),
            None if self.single => reply,
            _ => reply.add(attribute::OTHER_ADDRESS, &plain(SocketAddr::new(other_ip, other_port))),
        };
        net.send(from, datagram.from, reply.finish(None));
    }

    fn turn(&mut self, now: Instant, datagram: &Arrived, message: &Message<'_>) -> Vec<u8> {
        let (method, id) = (message.method(), message.transaction_id());
        let key =
            LongTermKeyCredentials::new(self.username.clone(), self.password.clone(), "lab".into())
                .make_key(IntegrityAlgorithm::Sha1);
        let nonce = format!("nonce{}", self.nonce);
        let error = |code: u16| {
            let class_number = [0, 0, u8::try_from(code / 100).unwrap(), (code % 100) as u8];
            Writer::new(MessageClass::Error, method, id)
                .add(attribute::ERROR_CODE, &class_number)
                .add(attribute::REALM, b"lab")
                .add(attribute::NONCE, nonce.as_bytes())
        };
        let theirs = message::value(message, attribute::NONCE).map(|raw| raw.value.to_vec());
        if theirs.is_none() || !message::is_signed(message, &key) {
            return error(401).finish(None);
        }
        if theirs.as_deref() != Some(nonce.as_bytes()) {
            return error(438).finish(None);
        }
        let found = self.allocations.iter().find(|(_, a)| a.client == datagram.from);
        let port = found.map(|(port, _)| *port);
        let success = || Writer::new(MessageClass::Success, method, id);
        let out = match (method.value(), port) {
            (3, _) if self.refuses.is_some() => error(self.refuses.unwrap_or(0)),
            (3, None) => {
                let port = RELAY_FIRST + u16::try_from(self.allocations.len()).unwrap();
                let relayed = SocketAddr::new(self.addresses[0], port);
                let channels = BTreeMap::new();
                self.allocations.insert(port, Allocation { client: datagram.from, channels });
                success()
                    .add_address(attribute::XOR_RELAYED_ADDRESS, relayed)
                    .add_address(attribute::XOR_MAPPED_ADDRESS, datagram.from)
                    .add(attribute::LIFETIME, &600_u32.to_be_bytes())
            }
            (4, Some(port)) => {
                let lifetime = message::number_u32(message, attribute::LIFETIME).unwrap_or(600);
                if lifetime == 0 {
                    self.allocations.remove(&port);
                }
                success().add(attribute::LIFETIME, &lifetime.to_be_bytes())
            }
            (9, Some(_)) if self.forbids => error(403),
            (9, Some(port)) => {
                let peer = message::address(message, attribute::XOR_PEER_ADDRESS).unwrap();
                let raw = message::value(message, attribute::CHANNEL_NUMBER).unwrap();
                let channel = u16::from_be_bytes([raw.value[0], raw.value[1]]);
                match self.allocations.get_mut(&port).unwrap().bind(now, channel, peer) {
                    Ok(()) => {
                        self.bound += 1;
                        success()
                    }
                    Err(code) => error(code),
                }
            }
            _ => error(437),
        };
        out.finish(Some(&key))
    }

    fn relay_out(&mut self, net: &mut Net, datagram: &Arrived) {
        let found = self.allocations.iter().find(|(_, a)| a.client == datagram.from);
        let (Some((port, allocation)), Some(&[a, b, c, d])) =
            (found, datagram.bytes.first_chunk::<4>())
        else {
            return;
        };
        let channel = u16::from_be_bytes([a, b]);
        let end = 4 + usize::from(u16::from_be_bytes([c, d]));
        let Some((peer, _)) = allocation.channels.get(&channel) else { return };
        let from = SocketAddr::new(self.addresses[0], *port);
        net.send(from, *peer, datagram.bytes[4..end].to_vec());
    }

    fn indication(&mut self, net: &mut Net, datagram: &Arrived, message: &Message<'_>) {
        let found = self.allocations.iter().find(|(_, a)| a.client == datagram.from);
        let Some((port, allocation)) = found else { return };
        let peer = message::address(message, attribute::XOR_PEER_ADDRESS).unwrap();
        if allocation.permits(peer.ip()) {
            let place = message::place_of(&datagram.bytes, attribute::DATA).unwrap();
            let from = SocketAddr::new(self.addresses[0], *port);
            net.send(from, peer, datagram.bytes[place].to_vec());
        }
    }

    fn relay_in(&mut self, net: &mut Net, datagram: &Arrived) {
        let Some(allocation) = self.allocations.get(&datagram.to.port()) else { return };
        let channel = allocation.channels.iter().find(|(_, (peer, _))| *peer == datagram.from);
        let bytes = if let Some((channel, _)) = channel {
            let mut bytes = channel.to_be_bytes().to_vec();
            bytes.extend(u16::try_from(datagram.bytes.len()).unwrap().to_be_bytes());
            bytes.extend(&datagram.bytes);
            bytes
        } else if allocation.permits(datagram.from.ip()) {
            let id = net.rng.random::<u128>().into();
            Writer::new(MessageClass::Indication, Method::new(7), id)
                .add_address(attribute::XOR_PEER_ADDRESS, datagram.from)
                .add(attribute::DATA, &datagram.bytes)
                .finish_bare()
        } else {
            return;
        };
        net.send(self.stun(), allocation.client, bytes);
    }
}
