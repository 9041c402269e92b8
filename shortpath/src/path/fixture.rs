//! Two ends and a server on the lab's net: sockets, keepers, finders and a relay, driven in virtual time.
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::lab::{Arrived, By, Nat, NatKind, Net, PortRule};
use super::lab_server::Server;
use super::{
    Candidate, CandidateKind, Finder, FinderConfig, FinderEvent, IceCredentials, Keeper,
    KeeperConfig, KeeperEvent, LocalId, Route, TurnClient, TurnConfig, TurnEvent,
};
use crate::LegKind;

pub(super) const SOCKET: LocalId = LocalId(0);
pub(super) const RELAY: LocalId = LocalId(1);

pub(super) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[derive(Debug)]
pub(super) struct End {
    pub(super) socket: SocketAddr,
    pub(super) credentials: IceCredentials,
    pub(super) keeper: Keeper,
    pub(super) turn: Option<TurnClient>,
    /// Direct first, relay second.
    pub(super) finders: Vec<Finder>,
    pub(super) log: Vec<(Instant, LegKind, FinderEvent)>,
    pub(super) turn_log: Vec<TurnEvent>,
    pub(super) keeper_log: Vec<(Instant, KeeperEvent)>,
}

impl End {
    fn new(net: &Net, server: &Server, ip: &str, seed: u8) -> Self {
        let socket = SocketAddr::new(ip.parse().unwrap(), 5000);
        let far = SocketAddr::new(server.addresses[1], 3478);
        let servers = [Some(server.stun()), (!server.single).then_some(far)];
        let servers = servers.into_iter().flatten().collect();
        let config = KeeperConfig { seed: [seed; 32], ..KeeperConfig::new(Some(socket), servers) };
        Self {
            socket,
            credentials: IceCredentials {
                ufrag: format!("user{seed}"),
                password: format!("password-of-the-end-number-{seed}"),
            },
            keeper: Keeper::new(net.now, config),
            turn: None,
            finders: Vec::new(),
            log: Vec::new(),
            turn_log: Vec::new(),
            keeper_log: Vec::new(),
        }
    }

    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let mut all = vec![Candidate::new(CandidateKind::Host, self.socket)];
        all.extend(self.keeper.candidates());
        if let Some(relayed) = self.turn.as_ref().and_then(TurnClient::relayed) {
            all.push(Candidate::new(CandidateKind::Relayed, relayed));
        }
        all
    }

    pub(super) fn finder(&mut self, kind: LegKind) -> &mut Finder {
        &mut self.finders[usize::from(kind == LegKind::UdpRelay)]
    }

    pub(super) fn when(&self, kind: LegKind, is: fn(&FinderEvent) -> bool) -> Option<Instant> {
        let found = self.log.iter().find(|(_, of, event)| *of == kind && is(event));
        found.map(|(at, ..)| *at)
    }

    fn timeout(&self) -> Option<Instant> {
        let turn = self.turn.as_ref().and_then(TurnClient::poll_timeout);
        let finders = self.finders.iter().filter_map(Finder::poll_timeout);
        finders.chain(turn).chain(self.keeper.poll_timeout()).min()
    }

    fn tick(&mut self, now: Instant) {
        self.keeper.handle_timeout(now);
        self.turn.iter_mut().for_each(|turn| turn.handle_timeout(now));
        self.finders.iter_mut().for_each(|finder| finder.handle_timeout(now));
    }

    fn receive(&mut self, now: Instant, datagram: &Arrived) {
        let Arrived { from, bytes, .. } = datagram;
        if self.keeper.accepts(*from, bytes) {
            return self.keeper.handle_packet(now, *from, bytes);
        }
        let mut route = Route { local: SOCKET, remote: *from };
        let mut payload = bytes.as_slice();
        if let Some(turn) = self.turn.as_mut().filter(|turn| turn.accepts(*from, bytes)) {
            let Some((peer, place)) = turn.handle_packet(now, bytes) else { return };
            (route, payload) = (Route { local: RELAY, remote: peer }, &bytes[place]);
        }
        for finder in self.finders.iter_mut().filter(|finder| finder.accepts(payload)) {
            finder.handle_packet(now, route, payload);
        }
    }

    /// Drains everything into the net.
    fn drain(&mut self, net: &mut Net) {
        while let Some((server, bytes)) = self.keeper.poll_transmit() {
            net.send(self.socket, server, bytes);
        }
        for finder in &mut self.finders {
            while let Some((route, bytes)) = finder.poll_transmit() {
                match self.turn.as_mut().filter(|_| route.local == RELAY) {
                    None => net.send(self.socket, route.remote, bytes),
                    Some(turn) => {
                        turn.permit(net.now, route.remote);
                        while let Some(bytes) = turn.poll_transmit() {
                            net.send(self.socket, turn.server(), bytes);
                        }
                        let wrapped = turn.wrap(route.remote, bytes.len()).map_or_else(
                            || turn.indication(route.remote, &bytes),
                            |header| Some([header.as_slice(), &bytes].concat()),
                        );
                        if let Some(wrapped) = wrapped {
                            net.send(self.socket, turn.server(), wrapped);
                        }
                    }
                }
            }
        }
        if let Some(turn) = &mut self.turn {
            while let Some(bytes) = turn.poll_transmit() {
                net.send(self.socket, turn.server(), bytes);
            }
            self.turn_log.extend(std::iter::from_fn(|| turn.poll_event()));
        }
        for (kind, finder) in [LegKind::UdpDirect, LegKind::UdpRelay].iter().zip(&mut self.finders)
        {
            self.log
                .extend(std::iter::from_fn(|| finder.poll_event()).map(|e| (net.now, *kind, e)));
        }
        let events = std::iter::from_fn(|| self.keeper.poll_event());
        self.keeper_log.extend(events.map(|event| (net.now, event)));
    }
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) net: Net,
    pub(super) server: Server,
    pub(super) a: End,
    pub(super) b: End,
    pub(super) started: Instant,
}

pub(super) const A: &str = "10.0.1.2";
pub(super) const B: &str = "10.0.2.2";

impl World {
    /// Ends behind these NATs (none: public), each `delay` from the middle, keepers settled.
    pub(super) fn new(seed: u64, delay: Duration, a: Option<NatKind>, b: Option<NatKind>) -> Self {
        Self::around(Server::new(), seed, delay, a, b)
    }

    /// The same with this server.
    pub(super) fn around(
        server: Server,
        seed: u64,
        delay: Duration,
        a: Option<NatKind>,
        b: Option<NatKind>,
    ) -> Self {
        let mut net = Net::new(seed);
        net.host(A, delay, a.map(|kind| Nat::new(kind, "203.0.113.2")));
        net.host(B, delay, b.map(|kind| Nat::new(kind, "198.51.100.2")));
        for ip in server.addresses {
            net.host(&ip.to_string(), Duration::ZERO, None);
        }
        let (a, b) = (End::new(&net, &server, A, 1), End::new(&net, &server, B, 2));
        let started = net.now;
        let mut world = Self { net, server, a, b, started };
        world.run(ms(1500));
        world
    }

    /// Gives the client an allocation, as it has one when it asks for a session.
    pub(super) fn with_relay(mut self) -> Self {
        let (name, password) = (self.server.username.clone(), self.server.password.clone());
        let config =
            TurnConfig { seed: [9; 32], ..TurnConfig::new(self.server.stun(), name, password) };
        self.a.turn = Some(TurnClient::new(self.net.now, config));
        self.run(ms(1500));
        self
    }

    fn config(&self, kind: LegKind, client: bool) -> FinderConfig {
        let (ours, theirs) = if client { (&self.a, &self.b) } else { (&self.b, &self.a) };
        FinderConfig {
            seed: [if client { 3 } else { 4 }; 32],
            ..FinderConfig::new(kind, client, ours.credentials.clone(), theirs.credentials.clone())
        }
    }

    /// Starts the finders of both ends; the agent hears of it `skew` after the client.
    pub(super) fn start(&mut self, skew: Duration) {
        self.started = self.net.now;
        let (of_a, of_b) = (self.a.candidates(), self.b.candidates());
        self.start_end(true, &of_a, &of_b);
        self.run(skew);
        self.start_end(false, &of_b, &of_a);
    }

    /// As [`World::start`], with the client `skew` after the agent; the start is the client's.
    pub(super) fn start_agent_first(&mut self, skew: Duration) {
        let (of_a, of_b) = (self.a.candidates(), self.b.candidates());
        self.start_end(false, &of_b, &of_a);
        self.run(skew);
        self.started = self.net.now;
        self.start_end(true, &of_a, &of_b);
    }

    fn start_end(&mut self, client: bool, ours: &[Candidate], theirs: &[Candidate]) {
        let now = self.net.now;
        let relay = self.a.turn.is_some();
        let kinds = [LegKind::UdpDirect, LegKind::UdpRelay];
        for kind in kinds.into_iter().take(1 + usize::from(relay)) {
            let mut finder = Finder::new(now, self.config(kind, client));
            for candidate in ours {
                let relayed = candidate.kind == CandidateKind::Relayed;
                if kind == LegKind::UdpRelay || !relayed {
                    finder.add_local(now, *candidate, if relayed { RELAY } else { SOCKET });
                }
            }
            for candidate in theirs {
                let _ = finder.add_remote(now, *candidate);
            }
            if client { &mut self.a } else { &mut self.b }.finders.push(finder);
        }
    }

    /// Each end hears of the other's candidates as they are now.
    pub(super) fn signal(&mut self) {
        let (now, of_a, of_b) = (self.net.now, self.a.candidates(), self.b.candidates());
        for (end, theirs) in [(&mut self.a, &of_b), (&mut self.b, &of_a)] {
            for candidate in theirs {
                let _ = end.finder(LegKind::UdpDirect).add_remote(now, *candidate);
            }
        }
    }

    /// Lets virtual time pass.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.net.now + time;
        self.run_until(end, |_| false);
    }

    /// Until the condition holds or the end has come. Returns whether it held.
    pub(super) fn run_until(&mut self, end: Instant, done: impl Fn(&Self) -> bool) -> bool {
        for _ in 0..1_000_000 {
            self.a.drain(&mut self.net);
            self.b.drain(&mut self.net);
            if done(self) {
                return true;
            }
            let timeouts = [self.a.timeout(), self.b.timeout(), self.net.next()];
            let next = timeouts.into_iter().flatten().min().unwrap_or(end);
            if next > end {
                self.net.now = end;
                return false;
            }
            self.net.now = self.net.now.max(next);
            let now = self.net.now;
            while let Some(datagram) = self.net.arrived() {
                if self.server.owns(datagram.to) {
                    self.server.handle(&mut self.net, &datagram);
                } else if datagram.to == self.a.socket {
                    self.a.receive(now, &datagram);
                } else if datagram.to == self.b.socket {
                    self.b.receive(now, &datagram);
                }
                self.a.drain(&mut self.net);
                self.b.drain(&mut self.net);
            }
            self.a.tick(now);
            self.b.tick(now);
        }
        panic!("time does not pass");
    }

    /// Until both ends have selected a pair of that kind; how long that took since the start.
    pub(super) fn meet(&mut self, kind: LegKind, limit: Duration) -> Option<Duration> {
        let end = self.net.now + limit;
        let selected = |e: &FinderEvent| matches!(e, FinderEvent::Selected(_));
        let met = self.run_until(end, |world| {
            world.a.when(kind, selected).is_some() && world.b.when(kind, selected).is_some()
        });
        met.then(|| self.net.now - self.started)
    }

    /// From the start to the client's first answered pair.
    pub(super) fn reachable(&self, kind: LegKind) -> Option<Duration> {
        let at = self.a.when(kind, |e| matches!(e, FinderEvent::Reachable(_)))?;
        Some(at - self.started)
    }
}

/// The NATs of the matrix, by the names that natlab uses.
pub(super) fn nats() -> Vec<(&'static str, NatKind)> {
    use By::{Address, AddressAndPort, Nothing};
    use PortRule::{Keep, Random, Sequential};
    vec![
        ("fullcone", NatKind::new(Nothing, Nothing, Keep)),
        ("addr-restr", NatKind::new(Nothing, Address, Keep)),
        ("port-restr", NatKind::new(Nothing, AddressAndPort, Keep)),
        ("eim-nopres", NatKind::new(Nothing, AddressAndPort, Random)),
        ("adm-adf", NatKind::new(Address, Address, Random)),
        ("sym-eif", NatKind::new(AddressAndPort, Nothing, Random)),
        ("sym-random", NatKind::new(AddressAndPort, AddressAndPort, Random)),
        ("sym-seq", NatKind::new(AddressAndPort, AddressAndPort, Sequential)),
    ]
}
