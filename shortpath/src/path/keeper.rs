//! The keeper of one socket: what the gateways' STUN servers see of it, always fresh.
//!
//! Asks every server at once when it starts or the network changes, and then one request per server and keepalive
//! interval, so that server-reflexive candidates are known *before* a session needs them. Servers that tell of another
//! address (OTHER-ADDRESS, RFC 5780) are asked there, too, once: two ports of one address, and a second address, tell
//! the mapping behaviour and the order of ports. Of our gateways each tells another port at least (OTHER-PORT), which
//! is enough to see the step of a sequential NAT whose mappings depend on the port. When a server sees another address than before, the NAT has bound the
//! socket anew: [`KeeperEvent::Rebound`].
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use stun_types::message::{BINDING, Message, MessageClass, TransactionId};

use super::age::Ages;
use super::candidate::{Candidate, CandidateKind, canonical};
use super::keeper_words::{KeeperConfig, KeeperEvent, KeeperView};
use super::lifetime::MappingLifetime;
use super::message::{self, Writer, attribute};
use super::predict::{Observation, judge_mapping, judge_ports, predict_ports};
use super::shift::AgeLimit;

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    /// Asked for behaviour only: once per start or network change.
    once: bool,
    mapped: Option<SocketAddr>,
    /// When it first saw that.
    mapped_since: Option<Instant>,
    /// Before that the mapping did not exist.
    born: Option<Instant>,
    /// Place of its newest mapping in the order in which they were asked for.
    order: u64,
    /// Place of the newest question.
    asked: u64,
    rtt: Option<Duration>,
    /// Requests in flight, newest last.
    in_flight: VecDeque<(TransactionId, Instant)>,
    /// When its mapping was last used.
    used: Option<Instant>,
    due: Option<Instant>,
    tries: u32,
    silent: bool,
}

/// First wait for an answer; doubles. Gateways are near; a false retransmission costs 64 bytes.
const RTO: Duration = Duration::from_millis(150);
/// Unanswered requests after which a server is silent: 150, 300, 600, 1200 ms, 2.25 s in all.
const TRIES: u32 = 4;
/// Then it is asked again after 10 s, growing to 30 s.
const SILENT_FIRST: Duration = Duration::from_secs(10);
const SILENT_MAX: Duration = Duration::from_secs(30);
/// Other addresses are asked again only when their mapping has surely expired: a NAT with sequential ports then shows
/// which port is next.
const LOOK_AGAIN: Duration = Duration::from_secs(180);
const DOUBT_PAUSE: Duration = Duration::from_millis(500);
/// Between two looks whether a mapping has ended whose time has come, at least.
const LOOK_OFTEN: Duration = Duration::from_millis(250);
/// A mapping that outlived that many of its pauses did not end for want of packets.
const SURVIVED: u32 = 3;
const SERVERS_MAX: usize = 8;
/// Servers and their other addresses.
const PLACES_MAX: usize = 3 * SERVERS_MAX;
const IN_FLIGHT: usize = 4;

/// See the [module](self).
#[derive(Debug)]
pub struct Keeper {
    config: KeeperConfig,
    rng: StdRng,
    servers: Vec<Server>,
    lifetime: MappingLifetime,
    forwarded: Option<SocketAddr>,
    ages: Ages,
    /// What the keeper of another socket behind the same NAT has learnt.
    told_limit: Option<AgeLimit>,
    rebounds: u64,
    /// Answers that came from elsewhere than the request went to, since they were asked for.
    astray: u64,
    order: u64,
    told: Vec<Candidate>,
    transmits: VecDeque<(SocketAddr, Vec<u8>)>,
    events: VecDeque<KeeperEvent>,
}

impl Keeper {
    /// Asks all servers at once.
    #[must_use]
    pub fn new(now: Instant, config: KeeperConfig) -> Self {
        let mut keeper = Self {
            rng: StdRng::from_seed(config.seed),
            servers: Vec::new(),
            lifetime: MappingLifetime::default(),
            forwarded: None,
            ages: Ages::default(),
            told_limit: None,
            rebounds: 0,
            astray: 0,
            order: 0,
            told: Vec::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            config,
        };
        let servers = std::mem::take(&mut keeper.config.servers);
        keeper.set_servers(now, servers);
        keeper
    }

    /// Replaces the servers; what is known of those that stay is kept. The owner has just reached them by another way, so all
    /// are asked at once, and those that were silent are given as much time as at first.
    pub fn set_servers(&mut self, now: Instant, servers: Vec<SocketAddr>) {
        let mut wanted: Vec<_> = servers.into_iter().map(canonical).collect();
        wanted.truncate(SERVERS_MAX);
        let hosts: Vec<_> = wanted.iter().map(SocketAddr::ip).collect();
        self.servers.retain(|server| {
            wanted.contains(&server.address)
                || (server.once && hosts.contains(&server.address.ip()))
        });
        for server in self.servers.iter_mut().filter(|server| server.silent && !server.once) {
            (server.due, server.tries, server.silent) = (Some(now), 0, false);
        }
        for address in wanted.iter().copied() {
            self.add(now, address, false);
        }
        self.config.servers = wanted;
        self.tell();
        self.doubt(now);
    }

    fn add(&mut self, now: Instant, address: SocketAddr, once: bool) {
        if let Some(known) = self.servers.iter_mut().find(|server| server.address == address) {
            known.once &= once;
        } else if self.servers.len() < PLACES_MAX {
            self.servers.push(Server {
                address,
                once,
                mapped: None,
                mapped_since: None,
                born: None,
                order: 0,
                asked: 0,
                rtt: None,
                in_flight: VecDeque::new(),
                used: None,
                due: Some(now),
                tries: 0,
                silent: false,
            });
        }
    }

    /// The owner doubts what is known (bytes of a session stay unacknowledged): the servers are asked at once, twice a
    /// second at most.
    pub fn doubt(&mut self, now: Instant) {
        let rested = |server: &&mut Server| {
            let asked = server.in_flight.back().map(|(_, at)| *at).max(server.used);
            !server.once && asked.is_none_or(|at| now.saturating_duration_since(at) >= DOUBT_PAUSE)
        };
        for server in self.servers.iter_mut().filter(rested) {
            server.due = Some(now);
        }
        self.handle_timeout(now);
    }

    /// The machine's addresses or routes changed: everything is asked again at once, and what was learnt of the old
    /// network's NAT is forgotten.
    pub fn network_changed(&mut self, now: Instant) {
        (self.lifetime, self.ages) = (MappingLifetime::default(), Ages::default());
        for server in &mut self.servers {
            (server.due, server.tries, server.silent) = (Some(now), 0, false);
        }
        self.handle_timeout(now);
    }

    /// Whether a STUN datagram answers a request of this keeper.
    #[must_use]
    pub fn accepts(&self, source: SocketAddr, datagram: &[u8]) -> bool {
        let (source, id) = (canonical(source), message::transaction(datagram));
        message::is_stun(datagram)
            && self.servers.iter().any(|server| {
                server.address == source
                    && server.in_flight.iter().any(|(sent, _)| Some(*sent) == id)
            })
    }

    /// A datagram of a server. What answers nothing of ours is ignored.
    pub fn handle_packet(&mut self, now: Instant, source: SocketAddr, datagram: &[u8]) {
        let Some(message) = message::parse(datagram) else { return };
        if message.has_class(MessageClass::Success) && message.has_method(BINDING) {
            self.handle_answer(now, canonical(source), &message);
        }
        self.handle_timeout(now);
    }

    /// How many answers came from elsewhere than the request went to, since this was asked last.
    pub fn take_astray(&mut self) -> u64 {
        std::mem::take(&mut self.astray)
    }

    fn handle_answer(&mut self, now: Instant, source: SocketAddr, message: &Message<'_>) {
        let id = message.transaction_id();
        let Some(mapped) = message::mapped_address(message) else { return };
        let asked = |server: &Server| server.in_flight.iter().any(|(sent, _)| *sent == id);
        if self.servers.iter().any(|server| server.address != source && asked(server)) {
            self.astray += 1;
            return;
        }
        let (keepalive, limit) = (self.lifetime.keepalive(), self.age_limit());
        let Some(server) = self.servers.iter_mut().find(|server| server.address == source) else {
            return;
        };
        let Some(at) = server.in_flight.iter().position(|(sent, _)| *sent == id) else { return };
        let sent = server.in_flight[at].1;
        let sample = now.saturating_duration_since(sent);
        server.rtt = Some(server.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8));
        server.in_flight.clear();
        (server.tries, server.silent) = (0, false);
        let used = server.used.replace(now);
        let pause = used.map(|used| sent.saturating_duration_since(used));
        let before = server.mapped.replace(mapped);
        let age = server.mapped_since.map(|since| now.saturating_duration_since(since));
        if before != Some(mapped) {
            server.order = server.asked;
            server.mapped_since = Some(now);
            server.born = used.filter(|_| before.is_some()).or(Some(sent));
        } else if let Some(age) = age.filter(|_| !server.once) {
            self.ages.note_alive(age);
        }
        let lived = server.born.map_or(Duration::ZERO, |born| now.saturating_duration_since(born));
        let pace = limit.map_or(keepalive, |limit| keepalive.min(until_look(lived, limit)));
        server.due = Some(now + if server.once { LOOK_AGAIN } else { pace });
        let once = server.once;
        match before {
            Some(from) if from != mapped => {
                self.note_rebound(now, (from, mapped), pause.zip(age), once);
            }
            None if !once => self.ask_others(now, source, message),
            // That it is the same says nothing: other packets may have kept it. Spare sockets learn from that.
            _ => {}
        }
        self.tell();
    }

    /// RFC 5780 section 4.3: the same address at its other port, and the other address; or the other port alone.
    fn ask_others(&mut self, now: Instant, source: SocketAddr, message: &Message<'_>) {
        let Some(other) = message::plain_address(message, attribute::OTHER_ADDRESS) else {
            let port = message::number_u32(message, attribute::OTHER_PORT).map(|told| told >> 16);
            if let Some(port) = port.and_then(|port| u16::try_from(port).ok()).filter(|it| *it > 0)
            {
                self.add(now, SocketAddr::new(source.ip(), port), true);
            }
            return;
        };
        let other = canonical(other);
        if other.is_ipv4() != source.is_ipv4() || other.port() == 0 || other.ip().is_multicast() {
            return;
        }
        let twin = SocketAddr::new(source.ip(), other.port());
        self.add(now, twin, true);
        // Only addresses of servers we were told to use: a server cannot send us elsewhere.
        let far = SocketAddr::new(other.ip(), source.port());
        if self.config.servers.iter().any(|server| server.ip() == other.ip()) || self.is_near(other)
        {
            self.add(now, far, true);
        }
    }

    /// The other address of a server usually lies in its network; one request to it is no scan.
    fn is_near(&self, other: SocketAddr) -> bool {
        self.config.servers.iter().any(|server| match (server.ip(), other.ip()) {
            (std::net::IpAddr::V4(a), std::net::IpAddr::V4(b)) => {
                a.octets()[..2] == b.octets()[..2]
            }
            (std::net::IpAddr::V6(a), std::net::IpAddr::V6(b)) => {
                a.segments()[..3] == b.segments()[..3]
            }
            _ => false,
        })
    }

    fn note_rebound(
        &mut self,
        now: Instant,
        (from, to): (SocketAddr, SocketAddr),
        lived: Option<(Duration, Duration)>,
        once: bool,
    ) {
        self.rebounds += 1;
        // A mapping that nothing kept open may well be gone: that is no loss of the socket's.
        if once {
            return;
        }
        // The same address with another port after a pause: the mapping has probably expired, unless it survived such
        // pauses before. Then the NAT was restarted, or ends mappings at an age.
        let expired = from.ip() == to.ip() && self.forwarded.is_none_or(|port| port != to);
        let told = |(pause, age): &(Duration, Duration)| {
            expired && (*pause > RTO * 8 || self.ages.explains(*age))
        };
        if let Some((pause, age)) = lived.filter(told) {
            if age < pause * SURVIVED && !self.ages.explains(age) {
                self.lifetime.note_lost(pause);
            } else {
                let known = self.ages.limit().is_some();
                self.ages.note(age, pause);
                if !known && self.ages.limit().is_some() {
                    // It was age that ended mappings before, too.
                    self.lifetime = MappingLifetime::default();
                }
            }
        }
        self.events.push_back(KeeperEvent::Rebound { from, to });
        for server in &mut self.servers {
            server.due = Some(server.due.map_or(now, |due| due.min(now)));
        }
    }

    /// The router forwards this address to our socket: that we are seen there tells nothing of idle mappings.
    pub fn set_forwarded(&mut self, external: Option<SocketAddr>) {
        self.forwarded = external;
    }

    /// A finding of a [`super::LifetimeProbe`] on a spare socket behind the same NAT.
    pub fn learn_lifetime(&mut self, found: MappingLifetime) {
        found.kept.into_iter().for_each(|kept| self.lifetime.note_kept(kept));
        found.lost.into_iter().for_each(|lost| self.lifetime.note_lost(lost));
    }

    /// What the keeper of another socket behind the same NAT has learnt of its limit on the age of mappings.
    pub fn learn_age_limit(&mut self, limit: Option<AgeLimit>) {
        self.told_limit = limit;
    }

    /// The age at which the NAT ends mappings that are in use, if it was seen to.
    #[must_use]
    pub fn age_limit(&self) -> Option<AgeLimit> {
        self.ages.limit().or(self.told_limit)
    }

    /// How old the socket's mapping is at the most; `None` without one. Of several the oldest.
    #[must_use]
    pub fn mapping_age(&self, now: Instant) -> Option<Duration> {
        let mapped = self.servers.iter().filter(|server| !server.once && server.mapped.is_some());
        let born = mapped.filter_map(|server| server.born).min()?;
        Some(now.saturating_duration_since(born))
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        for at in 0..self.servers.len() {
            if self.servers[at].due.is_some_and(|due| due <= now) {
                self.ask(now, at);
            }
        }
    }

    fn ask(&mut self, now: Instant, at: usize) {
        let id = TransactionId::from(self.rng.random::<u128>());
        let server = &mut self.servers[at];
        if server.tries >= TRIES && !server.silent {
            server.silent = true;
            self.events.push_back(KeeperEvent::Silent(server.address));
            if server.once {
                server.due = None;
                return;
            }
            server.mapped = None;
            self.tell();
        }
        let server = &mut self.servers[at];
        let wait = if server.silent {
            let rounds = server.tries.saturating_sub(TRIES).min(4);
            SILENT_FIRST.mul_f64(1.5_f64.powi(rounds.cast_signed())).min(SILENT_MAX)
        } else {
            let first = server.rtt.map_or(RTO, |rtt| (rtt * 2).max(RTO));
            first * 2_u32.pow(server.tries)
        };
        server.due = Some(now + wait);
        if server.tries == 0 {
            self.order += 1;
            server.asked = self.order;
        }
        server.tries = server.tries.saturating_add(1);
        if server.in_flight.len() == IN_FLIGHT {
            server.in_flight.pop_front();
        }
        server.in_flight.push_back((id, now));
        let request = Writer::new(MessageClass::Request, BINDING, id);
        let request =
            if server.once { request } else { request.add(attribute::OTHER_PORT, &[0; 4]) };
        self.transmits.push_back((server.address, request.finish(None)));
    }

    /// When [`Keeper::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.servers.iter().filter_map(|server| server.due).min()
    }

    /// The next datagram, and for which server.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.transmits.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<KeeperEvent> {
        self.events.pop_front()
    }

    /// Server-reflexive addresses, each once, then predicted ones. Empty without NAT: host candidates say it all.
    #[must_use]
    pub fn candidates(&self) -> Vec<Candidate> {
        let mut found: Vec<Candidate> = Vec::new();
        let mut add = |kind, address| {
            if !found.iter().any(|known| known.address == address) {
                found.push(Candidate::new(kind, address));
            }
        };
        for server in self.servers.iter().filter(|server| !server.once) {
            if let Some(mapped) = server.mapped.filter(|mapped| Some(*mapped) != self.config.local)
            {
                add(CandidateKind::ServerReflexive, mapped);
            }
        }
        for address in predict_ports(&self.observations(false), self.config.predict) {
            add(CandidateKind::Predicted, address);
        }
        found
    }

    /// RTT to a server.
    #[must_use]
    pub fn rtt(&self, server: SocketAddr) -> Option<Duration> {
        self.servers.iter().find(|known| known.address == canonical(server))?.rtt
    }

    /// What is known, for people.
    #[must_use]
    pub fn view(&self) -> KeeperView {
        let seen = self.observations(false);
        let local = self.config.local;
        KeeperView {
            mapping: judge_mapping(local, &seen),
            ports: judge_ports(local.map(|local| local.port()), &seen),
            lifetime: self.lifetime,
            age_limit_ms: self
                .age_limit()
                .map(|limit| u64::try_from(limit.least.as_millis()).unwrap_or(u64::MAX)),
            keepalive_ms: u64::try_from(self.lifetime.keepalive().as_millis()).unwrap_or(u64::MAX),
            servers: self
                .servers
                .iter()
                .map(|server| {
                    let rtt =
                        server.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX));
                    (server.address, server.mapped, rtt)
                })
                .collect(),
            rebounds: self.rebounds,
        }
    }

    /// Mappings of one family in the order in which they were made.
    fn observations(&self, ipv6: bool) -> Vec<Observation> {
        let mut seen: Vec<_> = self
            .servers
            .iter()
            .filter(|server| server.address.is_ipv6() == ipv6)
            .filter_map(|server| {
                let mapped = server.mapped?;
                Some((server.order, Observation { server: server.address, mapped }))
            })
            .collect();
        seen.sort_by_key(|(order, _)| *order);
        seen.into_iter().map(|(_, observation)| observation).collect()
    }

    fn tell(&mut self) {
        let now = self.candidates();
        if now != self.told {
            self.told = now;
            self.events.push_back(KeeperEvent::Changed);
        }
    }
}

/// Around the end of a mapping the server is asked often, so that the next one's birth is known: every twentieth of a life.
fn until_look(age: Duration, limit: AgeLimit) -> Duration {
    let often = (limit.most / 20).max(LOOK_OFTEN);
    (limit.least.saturating_sub(often)).saturating_sub(age).max(often)
}
