//! One allocation on a TURN server (RFC 8656 over UDP), long-term credentials.
//!
//! For the data path there are two small calls that allocate nothing: [`TurnClient::wrap`] gives the four bytes before a
//! payload, [`TurnClient::unwrap`] the peer and the place of the payload in a datagram. A peer gets a channel at once:
//! ChannelBind installs the permission, too (section 12), and a Send indication right behind it spares the first
//! packets the round trip ([`TurnClient::indication`]).
//!
//! Not built on `turn-client-proto` (0.7): its data path returns owned transmits, and it brings `stun-proto` and
//! `turn-types` for what is 300 lines over the `stun-types` codec.
use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use stun_types::message::{
    IntegrityAlgorithm, IntegrityKey, LongTermKeyCredentials, Message, MessageClass, Method,
    TransactionId,
};

use super::message::{self, Writer, attribute, is_signed};
use super::turn_peers::{Admission, Peers};
use super::turn_words::{TURN_TRIES, TurnConfig, TurnEvent, TurnFailure};

const ALLOCATE: Method = Method::new(3);
const REFRESH: Method = Method::new(4);
const SEND: Method = Method::new(6);
const DATA: Method = Method::new(7);
const CHANNEL_BIND: Method = Method::new(9);

/// First wait for an answer, doubled each time: the servers are our own gateways, and RFC 8489's 500 ms would let one
/// lost packet cost more than most paths' RTT.
const RTO: Duration = Duration::from_millis(200);
/// Lifetime we ask for (RFC 8656 section 2.2's default).
const LIFETIME: u32 = 600;
/// Channels are refreshed within the life of the permission they renew, 300 s, with time for retransmissions.
const CHANNEL_REFRESH: Duration = Duration::from_secs(240);
/// Until a channel that failed is asked for again. A request takes 12.6 s to fail for want of an answer; what fails at once
/// costs the server one refusal in this time.
const CHANNEL_AGAIN: Duration = Duration::from_secs(5);
/// Between two questions whether an allocation is still there.
const DOUBT_PAUSE: Duration = Duration::from_secs(1);
/// Whether there is an allocation may be told wrongly once, by an answer that is late.
const MISMATCHES_MAX: u32 = 3;
/// Fresh nonces for one request before we believe that the credentials are wrong.
const NONCES_MAX: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Allocate,
    Refresh,
    Release,
    Channel(SocketAddr),
}

#[derive(Debug)]
struct Request {
    purpose: Purpose,
    id: TransactionId,
    bytes: Vec<u8>,
    due: Instant,
    tries: u32,
    /// Nonces it was sent anew with.
    nonces: u32,
}

#[derive(Clone, Debug, Default)]
struct Challenge {
    realm: Vec<u8>,
    nonce: Vec<u8>,
}

/// See the [module](self). `Debug` shows no secrets.
pub struct TurnClient {
    config: TurnConfig,
    rng: StdRng,
    challenge: Challenge,
    key: Option<IntegrityKey>,
    relayed: Option<SocketAddr>,
    refresh: Option<Instant>,
    requests: Vec<Request>,
    peers: Peers,
    /// The server is being asked whether it still knows us.
    doubted: bool,
    doubted_at: Option<Instant>,
    /// Answers in a row that the server and we disagree on whether there is an allocation.
    mismatches: u32,
    failed: bool,
    /// Messages that somebody else than the server sent in its name, since they were asked for.
    forged: u64,
    transmits: VecDeque<Vec<u8>>,
    events: VecDeque<TurnEvent>,
}

impl fmt::Debug for TurnClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TurnClient")
            .field("config", &self.config)
            .field("relayed", &self.relayed)
            .field("peers", &self.peers)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl TurnClient {
    /// Asks for an allocation at once.
    #[must_use]
    pub fn new(now: Instant, config: TurnConfig) -> Self {
        let mut client = Self {
            rng: StdRng::from_seed(config.seed),
            config,
            challenge: Challenge::default(),
            key: None,
            relayed: None,
            refresh: None,
            requests: Vec::new(),
            peers: Peers::default(),
            doubted: false,
            doubted_at: None,
            mismatches: 0,
            failed: false,
            forged: 0,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        };
        client.request(now, Purpose::Allocate);
        client
    }

    /// The server all packets go to and come from.
    #[must_use]
    pub fn server(&self) -> SocketAddr {
        self.config.server
    }

    /// Our address at the server, once it is there.
    #[must_use]
    pub fn relayed(&self) -> Option<SocketAddr> {
        self.relayed
    }

    /// Whether a datagram from `source` belongs to this allocation: an answer to a request of ours, data of a channel,
    /// or a Data indication.
    #[must_use]
    pub fn accepts(&self, source: SocketAddr, datagram: &[u8]) -> bool {
        if super::canonical(source) != super::canonical(self.config.server) {
            return false;
        }
        match datagram.first() {
            Some(0x40..=0x4f) => self.unwrap(datagram).is_some(),
            Some(0..=3) => message::parse(datagram).is_some_and(|message| {
                let id = message.transaction_id();
                self.requests.iter().any(|request| request.id == id)
                    || (message.has_method(DATA) && message.has_class(MessageClass::Indication))
            }),
            _ => false,
        }
    }

    /// A datagram of the server. Returns the peer and the place of its payload, if it carries one.
    pub fn handle_packet(
        &mut self,
        now: Instant,
        datagram: &[u8],
    ) -> Option<(SocketAddr, Range<usize>)> {
        if let Some((peer, place)) = self.unwrap(datagram) {
            self.peers.hear(now, peer);
            return Some((peer, place));
        }
        let message = message::parse(datagram)?;
        if message.has_class(MessageClass::Indication) && message.has_method(DATA) {
            return self.indicated(now, &message, datagram);
        }
        let id = message.transaction_id();
        let at = self.requests.iter().position(|request| request.id == id)?;
        match message.class() {
            MessageClass::Success => self.succeeded(now, at, &message),
            MessageClass::Error => self.refused(now, at, &message),
            _ => {}
        }
        None
    }

    /// Gives the peer a permission and a channel, and keeps them. A 33rd peer takes the place of the one that was neither asked
    /// for nor heard for longest; while all are lively, it is refused as [`TurnFailure::Full`].
    pub fn permit(&mut self, now: Instant, peer: SocketAddr) {
        let peer = super::canonical(peer);
        if self.failed {
            return;
        }
        match self.peers.admit(now, peer) {
            Admission::Known => return,
            Admission::New => {}
            Admission::Instead(gone) => {
                self.requests.retain(|request| request.purpose != Purpose::Channel(gone));
            }
            Admission::Full => {
                return self.events.push_back(TurnEvent::PeerRefused(peer, TurnFailure::Full));
            }
        }
        if self.relayed.is_some() {
            self.request(now, Purpose::Channel(peer));
        }
    }

    /// The ChannelData header (section 12.4) for a payload of `len` bytes; `None` while the channel is not bound, or
    /// for more than 65,535 bytes.
    #[must_use]
    pub fn wrap(&self, peer: SocketAddr, len: usize) -> Option<[u8; 4]> {
        let known = self.peers.get(peer).filter(|known| known.bound)?;
        let ([a, b], [c, d]) =
            (known.channel.to_be_bytes(), u16::try_from(len).ok()?.to_be_bytes());
        Some([a, b, c, d])
    }

    /// The peer and the place of the payload in a ChannelData datagram of one of our channels.
    #[must_use]
    pub fn unwrap(&self, datagram: &[u8]) -> Option<(SocketAddr, Range<usize>)> {
        let &[a, b, c, d] = datagram.first_chunk()?;
        let end = 4 + usize::from(u16::from_be_bytes([c, d]));
        let peer = self.peers.of_channel(u16::from_be_bytes([a, b]))?;
        (end <= datagram.len()).then_some((peer, 4..end))
    }

    /// A Send indication (section 11.1), for packets before the channel is bound: behind [`TurnClient::permit`] it
    /// usually passes. `None` for peers without permission.
    #[must_use]
    pub fn indication(&mut self, peer: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
        let known = self.peers.get(peer).is_some_and(|known| !known.refused);
        if !known || self.relayed.is_none() || payload.len() > 1500 {
            return None;
        }
        let id = self.id();
        let out = Writer::new(MessageClass::Indication, SEND, id)
            .add_address(attribute::XOR_PEER_ADDRESS, peer)
            .add(attribute::DATA, payload);
        Some(out.finish_bare())
    }

    /// The owner doubts that packets pass. A NAT that has bound our socket anew makes us a stranger to the server: then
    /// the allocation is made anew, with the same peers, and [`TurnEvent::Allocated`] comes again. Asks once a second at most.
    pub fn doubt(&mut self, now: Instant) {
        let rested = |at: Instant| now.saturating_duration_since(at) >= DOUBT_PAUSE;
        if self.relayed.is_none()
            || self.is_asked(Purpose::Allocate)
            || !self.doubted_at.is_none_or(rested)
        {
            return;
        }
        // Also one that is under way: it may have left by a network that is gone.
        self.requests.retain(|request| request.purpose != Purpose::Refresh);
        (self.doubted, self.doubted_at) = (true, Some(now));
        self.request(now, Purpose::Refresh);
    }

    /// Gives the allocation back (a Refresh with lifetime 0); nothing is sent afterwards but its retransmissions.
    pub fn release(&mut self, now: Instant) {
        self.requests.clear();
        self.refresh = None;
        self.peers.clear();
        if self.relayed.take().is_some() && !self.failed {
            self.request(now, Purpose::Release);
        }
        self.failed = true;
    }

    /// How many messages in the server's name were not believed since this was asked last: answers to requests of ours without
    /// its signature, and data of peers it should let nothing through of.
    pub fn take_forged(&mut self) -> u64 {
        std::mem::take(&mut self.forged)
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut lost = Vec::new();
        let most = if self.relayed.is_none() { self.config.tries } else { TURN_TRIES };
        for request in self.requests.iter_mut().filter(|request| request.due <= now) {
            if request.tries >= most {
                lost.push(request.purpose);
                continue;
            }
            request.due = now + RTO * 2_u32.pow(request.tries.min(TURN_TRIES));
            request.tries += 1;
            self.transmits.push_back(request.bytes.clone());
        }
        self.requests.retain(|request| !lost.contains(&request.purpose));
        for purpose in lost {
            self.lose(now, purpose, TurnFailure::Unreachable);
        }
        if self.refresh.is_some_and(|at| at <= now) {
            self.refresh = None;
            self.request(now, Purpose::Refresh);
        }
        for peer in self.peers.take_due(now) {
            self.request(now, Purpose::Channel(peer));
        }
    }

    /// When [`TurnClient::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let requests = self.requests.iter().map(|request| request.due);
        requests.chain(self.peers.next_due()).chain(self.refresh).min()
    }

    /// The next datagram for the server.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.transmits.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<TurnEvent> {
        self.events.pop_front()
    }

    fn id(&mut self) -> TransactionId {
        TransactionId::from(self.rng.random::<u128>())
    }

    fn request(&mut self, now: Instant, purpose: Purpose) {
        self.request_anew(now, purpose, 0);
    }

    fn request_anew(&mut self, now: Instant, purpose: Purpose, nonces: u32) {
        let id = self.id();
        let bytes = self.build(purpose, id);
        self.transmits.push_back(bytes.clone());
        self.requests.push(Request { purpose, id, bytes, due: now + RTO, tries: 1, nonces });
    }

    fn build(&self, purpose: Purpose, id: TransactionId) -> Vec<u8> {
        let request = |method| Writer::new(MessageClass::Request, method, id);
        let mut out = match purpose {
            Purpose::Allocate => {
                // 17 is UDP; the relayed address shall be of the family in which we reach the server.
                let family = if self.config.server.is_ipv6() { 2 } else { 1 };
                let out = request(ALLOCATE)
                    .add(attribute::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
                    .add(attribute::LIFETIME, &LIFETIME.to_be_bytes());
                // IPv4 is the default, which servers without RFC 6156 want unsaid.
                if family == 1 { out } else { out.add(attribute::REQUESTED_FAMILY, &[2, 0, 0, 0]) }
            }
            Purpose::Refresh => request(REFRESH).add(attribute::LIFETIME, &LIFETIME.to_be_bytes()),
            Purpose::Release => request(REFRESH).add(attribute::LIFETIME, &0_u32.to_be_bytes()),
            Purpose::Channel(peer) => {
                let channel = self.peers.get(peer).map_or(0, |known| known.channel);
                let [a, b] = channel.to_be_bytes();
                request(CHANNEL_BIND)
                    .add(attribute::CHANNEL_NUMBER, &[a, b, 0, 0])
                    .add_address(attribute::XOR_PEER_ADDRESS, peer)
            }
        };
        if self.key.is_some() {
            out = out
                .add(attribute::USERNAME, self.config.username.as_bytes())
                .add(attribute::REALM, &self.challenge.realm)
                .add(attribute::NONCE, &self.challenge.nonce);
        }
        out.finish(self.key.as_ref())
    }

    fn succeeded(&mut self, now: Instant, at: usize, message: &Message<'_>) {
        // Unsigned success: somebody who saw no secret of ours. Wait for the real one.
        if !self.key.as_ref().is_some_and(|key| is_signed(message, key)) {
            self.forged += 1;
            return;
        }
        let purpose = self.requests.remove(at).purpose;
        if !matches!(purpose, Purpose::Channel(_)) {
            self.mismatches = 0;
        }
        let lifetime = message::number_u32(message, attribute::LIFETIME).unwrap_or(LIFETIME);
        let renew = Duration::from_secs(u64::from(lifetime.clamp(10, 3600))) * 5 / 6;
        match purpose {
            Purpose::Allocate => self.allocated(now, renew, message),
            Purpose::Refresh => (self.refresh, self.doubted) = (Some(now + renew), false),
            Purpose::Release => {}
            Purpose::Channel(address) => {
                let Some(peer) = self.peers.get_mut(address) else { return };
                peer.refresh = Some(now + CHANNEL_REFRESH);
                if !std::mem::replace(&mut peer.bound, true) {
                    self.events.push_back(TurnEvent::Bound(address));
                }
            }
        }
    }

    fn allocated(&mut self, now: Instant, renew: Duration, message: &Message<'_>) {
        let Some(relayed) = message::address(message, attribute::XOR_RELAYED_ADDRESS) else {
            self.lose(now, Purpose::Allocate, TurnFailure::Refused(0));
            return;
        };
        self.relayed = Some(relayed);
        (self.refresh, self.doubted) = (Some(now + renew), false);
        let mapped = message::mapped_address(message);
        self.events.push_back(TurnEvent::Allocated { relayed, mapped });
        self.bind_all(now);
    }

    fn refused(&mut self, now: Instant, at: usize, message: &Message<'_>) {
        let code = message::error_code(message).unwrap_or(0);
        let challenge =
            (message::value(message, attribute::REALM), message::value(message, attribute::NONCE));
        let first = code == 401 && self.key.is_none();
        // 401 to our first request and 438 (stale nonce) bring what the next try needs; neither is signed.
        // Counted per request: with many in flight, all of them meet the same stale nonce.
        if (first || code == 438) && self.requests[at].nonces < NONCES_MAX {
            let (realm, Some(nonce)) = challenge else { return };
            let realm = realm.map_or_else(|| self.challenge.realm.clone(), |r| r.value.to_vec());
            self.challenge = Challenge { realm, nonce: nonce.value.to_vec() };
            self.key = self.derive_key();
            let Request { purpose, nonces, .. } = self.requests.remove(at);
            return match purpose {
                _ if self.key.is_none() => self.lose(now, purpose, TurnFailure::Unauthorized),
                // Nonces are an address's: ours has changed, unless an hour has passed.
                Purpose::Refresh if self.doubted => self.remake(now),
                _ => self.request_anew(now, purpose, nonces + 1),
            };
        }
        // An error that could be signed and is not may be forged: only those that cannot be are believed without.
        let signed = self.key.as_ref().is_some_and(|key| is_signed(message, key));
        if !signed && !matches!(code, 400 | 401 | 437 | 438 | 486 | 508) {
            self.forged += 1;
            return;
        }
        let purpose = self.requests.remove(at).purpose;
        if code == 437 && self.relayed.is_some() && self.mismatches < MISMATCHES_MAX {
            return self.mismatched(now, purpose);
        }
        let failure = if code == 438 { TurnFailure::Unauthorized } else { TurnFailure::of(code) };
        self.lose(now, purpose, failure);
    }

    /// What is there cannot be made, and what is gone cannot be refreshed.
    fn mismatched(&mut self, now: Instant, purpose: Purpose) {
        if purpose != Purpose::Allocate && self.is_asked(Purpose::Allocate) {
            return;
        }
        self.mismatches += 1;
        match purpose {
            Purpose::Allocate => self.request(now, Purpose::Refresh),
            _ => self.remake(now),
        }
    }

    /// Makes the allocation anew. Nothing is waited for: what is sent behind the request finds it done.
    fn remake(&mut self, now: Instant) {
        self.request(now, Purpose::Allocate);
        self.requests.retain(|request| !matches!(request.purpose, Purpose::Channel(_)));
        self.peers.start_anew();
        self.bind_all(now);
        self.events.push_back(TurnEvent::Renewing);
    }

    /// Asks for the channels that are not there.
    fn bind_all(&mut self, now: Instant) {
        let unasked = |peer: &SocketAddr| !self.is_asked(Purpose::Channel(*peer));
        let wanted: Vec<_> = self.peers.unbound().filter(unasked).collect();
        wanted.into_iter().for_each(|peer| self.request(now, Purpose::Channel(peer)));
    }

    fn is_asked(&self, purpose: Purpose) -> bool {
        self.requests.iter().any(|request| request.purpose == purpose)
    }

    /// MD5(username:realm:password), RFC 8489 section 9.2.2.
    fn derive_key(&self) -> Option<IntegrityKey> {
        let realm = String::from_utf8(self.challenge.realm.clone()).ok()?;
        let credentials = LongTermKeyCredentials::new(
            self.config.username.clone(),
            self.config.password.clone(),
            realm,
        );
        Some(credentials.make_key(IntegrityAlgorithm::Sha1))
    }

    fn lose(&mut self, now: Instant, purpose: Purpose, failure: TurnFailure) {
        match purpose {
            Purpose::Release => {}
            Purpose::Channel(address) if failure != TurnFailure::Mismatch => {
                if let Some(peer) = self.peers.get_mut(address) {
                    peer.lose(now + CHANNEL_AGAIN, failure);
                    self.events.push_back(TurnEvent::PeerRefused(address, failure));
                }
            }
            _ => {
                self.failed = true;
                (self.relayed, self.refresh) = (None, None);
                self.requests.clear();
                self.peers.clear();
                self.events.push_back(TurnEvent::Failed(failure));
            }
        }
    }

    /// A Data indication (section 11.4). Not signed: it counts as much as ChannelData from the server's address.
    fn indicated(
        &mut self,
        now: Instant,
        message: &Message<'_>,
        datagram: &[u8],
    ) -> Option<(SocketAddr, Range<usize>)> {
        let peer = message::address(message, attribute::XOR_PEER_ADDRESS)?;
        let range = message::place_of(datagram, attribute::DATA)?;
        if !self.peers.is_host(peer.ip()) {
            self.forged += 1;
            return None;
        }
        self.peers.hear(now, peer);
        Some((peer, range))
    }
}
