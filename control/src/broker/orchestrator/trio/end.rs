//! One end: a real session core, finder and keeper, and an application that knows every byte it must see.
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use switchback_shortpath::path::{
    Candidate, CandidateKind, Finder, FinderConfig, FinderEvent, Keeper, KeeperConfig, KeeperEvent,
    LocalId, Route,
};
use switchback_shortpath::session::frame::Frame;
use switchback_shortpath::session::{Event, ReadOutcome, Session};
use switchback_shortpath::{ChannelId, LegId, LegKind, PathFigures, Role, SessionConfig};

use super::connection::{self, Connection};
use super::lab::{Arrived, Net};
use super::{STUN, content};
use crate::broker::seal::Grant;
use crate::wire::UdpAccess;
use switchback_engine::PairId;

pub(super) const SOCKET: LocalId = LocalId(0);
/// What a handshake is said to have taken if no check was answered.
const RTT_UNKNOWN: Duration = Duration::from_millis(20);

/// What carries a leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Via {
    Pair(PairId),
    /// A connection with this number.
    Udp(u32),
}

pub(super) struct Leg {
    pub(super) id: LegId,
    pub(super) via: Via,
}

pub(super) struct End {
    pub(super) role: Role,
    pub(super) socket: SocketAddr,
    pub(super) keeper: Keeper,
    pub(super) finder: Option<Finder>,
    pub(super) session: Session,
    pub(super) legs: Vec<Leg>,
    pub(super) grant: Option<Grant>,
    pub(super) linked: bool,
    /// Candidates that the broker was told of.
    pub(super) told: Vec<Candidate>,
    route: Option<SocketAddr>,
    proved: Vec<SocketAddr>,
    connections: u32,
    connection: Option<Connection>,
    channel: Option<ChannelId>,
    /// The agent's echo: read and not written yet.
    waiting: VecDeque<Bytes>,
    pub(super) sent: u64,
    pub(super) back: u64,
    last_back: Instant,
    /// Longest time between two messages that came back.
    pub(super) longest: Duration,
    pub(super) closed: bool,
    /// The session doubts what carries it: all is to be looked at.
    in_doubt: bool,
    /// What happened here, for whoever wonders why a story ended as it did.
    pub(super) log: Vec<(Instant, String)>,
    /// Last packets of connections that were given up.
    farewells: Vec<(SocketAddr, Vec<u8>)>,
    /// Pairs whose leg the session has given up: it is closed, and the gateway ends them.
    pub(super) left: Vec<PairId>,
}

impl End {
    pub(super) fn new(now: Instant, role: Role, socket: &str) -> Self {
        let socket = socket.parse().unwrap();
        let number = NonZeroU64::new(if role == Role::Client { 1 } else { 2 }).unwrap();
        let config = KeeperConfig { seed: [5; 32], ..KeeperConfig::new(Some(socket), vec![STUN]) };
        Self {
            role,
            socket,
            keeper: Keeper::new(now, config),
            finder: None,
            session: Session::new(now, role, "trio", number, SessionConfig::default()),
            legs: Vec::new(),
            grant: None,
            linked: false,
            told: Vec::new(),
            route: None,
            proved: Vec::new(),
            connections: 0,
            connection: None,
            channel: None,
            waiting: VecDeque::new(),
            sent: 0,
            back: 0,
            last_back: now,
            longest: Duration::ZERO,
            closed: false,
            in_doubt: false,
            log: Vec::new(),
            farewells: Vec::new(),
            left: Vec::new(),
        }
    }

    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let host = Candidate::new(CandidateKind::Host, self.socket);
        [host].into_iter().chain(self.keeper.candidates()).collect()
    }

    /// Starts the search, or hears of more addresses of the peer.
    pub(super) fn search(&mut self, now: Instant, access: UdpAccess) {
        let ours = self.candidates();
        let finder = self.finder.get_or_insert_with(|| {
            let client = self.role == Role::Client;
            let config = FinderConfig::new(LegKind::UdpDirect, client, access.local, access.remote);
            Finder::new(now, FinderConfig { seed: [u8::from(client); 32], ..config })
        });
        ours.iter().for_each(|candidate| finder.add_local(now, *candidate, SOCKET));
        self.hear_of(now, &access.candidates);
    }

    pub(super) fn hear_of(&mut self, now: Instant, candidates: &[Candidate]) {
        let Some(finder) = &mut self.finder else { return };
        for candidate in candidates {
            // What is known already is refused.
            let _ = finder.add_remote(now, *candidate);
        }
    }

    pub(super) fn attach(&mut self, now: Instant, via: Via) {
        let kind = match via {
            Via::Pair(_) => LegKind::TcpReverse,
            Via::Udp(_) => LegKind::UdpDirect,
        };
        let id = self.session.attach(now, kind);
        if kind.is_udp() {
            self.session.set_datagram_max(id, 1200);
            let rtt = self.path_rtt().unwrap_or(RTT_UNKNOWN);
            self.session.note_path(now, id, PathFigures { rtt, sent: 4, lost: 0, black_holes: 0 });
        }
        self.legs.push(Leg { id, via });
    }

    /// What a check of the path in use took.
    fn path_rtt(&self) -> Option<Duration> {
        self.finder.as_ref()?.rtt(Route { local: SOCKET, remote: self.route? })
    }

    pub(super) fn detach(&mut self, now: Instant, via: Via) {
        let gone = self.legs.iter().position(|leg| leg.via == via);
        if let Some(leg) = gone.map(|at| self.legs.remove(at)) {
            self.session.detach(now, leg.id, "cut");
        }
        self.connection.take_if(|connection| via == Via::Udp(connection.number));
    }

    pub(super) fn has_tcp(&self) -> bool {
        self.legs.iter().any(|leg| matches!(leg.via, Via::Pair(_)))
    }

    pub(super) fn carried_by(&self, now: Instant) -> Option<LegKind> {
        self.session.figures(now).leg
    }

    /// A datagram that the NAT let in.
    pub(super) fn receive(&mut self, now: Instant, arrived: &Arrived) {
        let Arrived { from, bytes, .. } = arrived;
        let Some(packet) = connection::read(bytes) else {
            if self.keeper.accepts(*from, bytes) {
                self.keeper.handle_packet(now, *from, bytes);
            } else if let Some(finder) = self.finder.as_mut().filter(|it| it.accepts(bytes)) {
                finder.handle_packet(now, Route { local: SOCKET, remote: *from }, bytes);
            }
            return;
        };
        if !self.proved.contains(from) {
            return self.meet_stranger(now, *from);
        }
        let number = packet.1;
        if self.role == Role::Agent && number > self.connections {
            let old = self.connection.as_ref().map(|connection| Via::Udp(connection.number));
            old.into_iter().for_each(|via| self.detach(now, via));
            self.connections = number;
            self.connection = Some(Connection::new(now, number, self.path_rtt()));
        }
        if self.connection.as_ref().is_none_or(|known| known.number != number) {
            // One that is over.
            let answer = (packet.0 != connection::CLOSE).then(|| connection::close(number));
            return self.farewells.extend(answer.map(|bytes| (*from, bytes)));
        }
        if packet.0 == connection::CLOSE {
            return self.detach(now, Via::Udp(number));
        }
        // A connection is a leg when its handshake is done, which is when the other end is heard.
        let via = Via::Udp(number);
        if self.legs.iter().all(|leg| leg.via != via) {
            self.attach(now, via);
        }
        let frame = self.connection.as_mut().and_then(|it| it.receive(now, packet));
        let leg = self.legs.iter().find(|leg| leg.via == Via::Udp(number)).map(|leg| leg.id);
        if let (Some(leg), Some(frame)) = (leg, frame) {
            self.frame(now, leg, frame);
        }
    }

    /// The peer's packets come from elsewhere: its NAT has bound it anew.
    fn meet_stranger(&mut self, now: Instant, from: SocketAddr) {
        if let Some(finder) = self.finder.as_mut().filter(|_| self.connection.is_some()) {
            // Refused when it is known.
            let _ = finder.add_remote(now, Candidate::new(CandidateKind::ServerReflexive, from));
            finder.doubt(now);
        }
    }

    /// Our NAT has bound us anew, or our addresses are others.
    fn network_changed(&mut self, now: Instant) {
        let ours = self.candidates();
        let Some(finder) = &mut self.finder else { return };
        ours.iter().for_each(|candidate| finder.add_local(now, *candidate, SOCKET));
        finder.network_changed(now);
        self.session.network_changed(now);
    }

    pub(super) fn frame(&mut self, now: Instant, leg: LegId, bytes: &[u8]) {
        let frame = Frame::decode(&mut BytesMut::from(bytes)).unwrap().expect("a whole frame");
        self.session.handle_frame(now, leg, frame);
    }

    pub(super) fn timeout(&mut self) -> Option<Instant> {
        let finder = self.finder.as_ref().and_then(Finder::poll_timeout);
        let timeouts = [finder, self.keeper.poll_timeout(), self.session.poll_timeout()];
        timeouts
            .into_iter()
            .flatten()
            .chain(self.connection.as_ref().map(Connection::timeout))
            .min()
    }

    pub(super) fn tick(&mut self, now: Instant) {
        self.keeper.handle_timeout(now);
        self.finder.iter_mut().for_each(|finder| finder.handle_timeout(now));
        self.session.handle_timeout(now);
    }

    /// What quinn and the driver do about a connection: what is due, doubt, and its end by silence.
    fn look_after_udp(&mut self, net: &mut Net) {
        let now = net.now;
        let Some(connection) = &mut self.connection else { return };
        for packet in connection.due(now) {
            self.route.into_iter().for_each(|to| net.send(self.socket, to, packet.clone()));
        }
        let leg = self.legs.iter().find(|leg| leg.via == Via::Udp(connection.number));
        if let Some((leg, figures)) = leg.zip(connection.figures(now)) {
            self.session.note_path(now, leg.id, figures);
        }
        if connection.is_deaf(now) {
            self.finder.iter_mut().for_each(|finder| finder.doubt(now));
        }
        if connection.is_over(now) {
            let via = Via::Udp(connection.number);
            self.route = self.finder.as_ref().and_then(Finder::selected).map(|it| it.remote);
            self.detach(now, via);
        }
    }

    /// Drains everything; what goes by pairs comes back.
    pub(super) fn drain(&mut self, net: &mut Net) -> Vec<(PairId, Bytes)> {
        let now = net.now;
        self.look_after_udp(net);
        if std::mem::take(&mut self.in_doubt) {
            self.finder.iter_mut().for_each(|finder| finder.doubt(now));
            self.keeper.doubt(now);
        }
        while let Some(event) = self.keeper.poll_event() {
            self.log.push((now, format!("{event:?}")));
            if !matches!(event, KeeperEvent::Silent(_)) {
                self.network_changed(now);
            }
        }
        while let Some(event) = self.finder.as_mut().and_then(Finder::poll_event) {
            self.log.push((now, format!("{event:?}")));
            self.found(event);
        }
        let live = self.finder.as_ref().is_some_and(|finder| finder.selected().is_some());
        if self.role == Role::Client && self.connection.is_none() && live && self.route.is_some() {
            self.connections += 1;
            self.connection = Some(Connection::new(now, self.connections, self.path_rtt()));
        }
        while let Some((to, bytes)) = self.keeper.poll_transmit() {
            net.send(self.socket, to, bytes);
        }
        while let Some((route, bytes)) = self.finder.as_mut().and_then(Finder::poll_transmit) {
            net.send(self.socket, route.remote, bytes);
        }
        self.application(now);
        let by_pair = self.transmit(net);
        self.application(now);
        for (to, bytes) in self.farewells.drain(..) {
            net.send(self.socket, to, bytes);
        }
        by_pair
    }

    fn found(&mut self, event: FinderEvent) {
        match event {
            FinderEvent::Reachable(route) | FinderEvent::Selected(route) => {
                self.route = Some(route.remote);
                self.proved.push(route.remote);
            }
            FinderEvent::PeerAt(route) => {
                self.route.get_or_insert(route.remote);
                self.proved.push(route.remote);
            }
            FinderEvent::Lost(_) => {}
        }
    }

    fn transmit(&mut self, net: &mut Net) -> Vec<(PairId, Bytes)> {
        let (mut by_pair, mut frames, mut packets) = (Vec::new(), Vec::new(), Vec::new());
        for leg in &self.legs {
            while self.session.has_transmit(leg.id) {
                self.session.poll_transmit(net.now, leg.id, 20_000, &mut frames);
            }
            for frame in frames.drain(..) {
                match (leg.via, &mut self.connection) {
                    (Via::Pair(pair), _) => by_pair.push((pair, encode(&frame))),
                    (Via::Udp(_), Some(it)) => packets.push(it.send(net.now, encode(&frame))),
                    (Via::Udp(_), None) => {}
                }
            }
            while self.session.has_datagram(leg.id) {
                let frame = self.session.poll_datagram(net.now, leg.id);
                packets.extend(
                    frame.zip(self.connection.as_ref()).map(|(f, it)| it.loose(&encode(&f))),
                );
            }
        }
        for packet in packets {
            self.route.into_iter().for_each(|to| net.send(self.socket, to, packet.clone()));
        }
        by_pair
    }

    fn application(&mut self, now: Instant) {
        while let Some(event) = self.session.poll_event() {
            if !matches!(event, Event::Readable(_) | Event::Writable(_)) {
                self.log.push((now, format!("{event:?}")));
            }
            match event {
                Event::Incoming(id) => self.channel = Some(id),
                Event::LegLost { leg, .. } => {
                    for gone in self.legs.extract_if(.., |known| known.id == leg) {
                        if let Via::Pair(pair) = gone.via {
                            self.left.push(pair);
                        }
                    }
                    let legs = &self.legs;
                    let over = self
                        .connection
                        .take_if(|it| legs.iter().all(|leg| leg.via != Via::Udp(it.number)));
                    let farewell = over.zip(self.route);
                    self.farewells
                        .extend(farewell.map(|(it, to)| (to, connection::close(it.number))));
                }
                Event::Doubt => self.in_doubt = true,
                Event::Closed(_) => self.closed = true,
                _ => {}
            }
        }
        let Some(id) = self.channel else { return };
        while let Ok(ReadOutcome::Bytes(bytes)) = self.session.read(id) {
            match self.role {
                Role::Agent => self.waiting.push_back(bytes),
                Role::Client => {
                    assert_eq!(bytes, content(self.back, bytes.len()), "at {}", self.back);
                    self.back += bytes.len() as u64;
                    self.longest = self.longest.max(now - self.last_back);
                    self.last_back = now;
                }
            }
        }
        while let Some(mut bytes) = self.waiting.pop_front() {
            self.session.write(id, &mut bytes).expect("the channel lives");
            if !bytes.is_empty() {
                return self.waiting.push_front(bytes);
            }
        }
    }

    /// The client's next message.
    pub(super) fn speak(&mut self, now: Instant, count: usize) {
        let id = *self.channel.get_or_insert_with(|| self.session.open().expect("room for one"));
        let mut message = content(self.sent, count);
        self.session.write(id, &mut message).expect("the channel lives");
        self.sent += (count - message.len()) as u64;
        if self.back == 0 {
            self.last_back = now;
        }
    }
}

fn encode(frame: &Frame) -> Bytes {
    let mut bytes = BytesMut::new();
    if let Some(payload) = frame.encode_head(&mut bytes) {
        bytes.extend_from_slice(payload);
    }
    bytes.freeze()
}
