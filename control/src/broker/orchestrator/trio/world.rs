//! The three, the wires between them, and the time that passes for all.
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use switchback_engine::PairId;
use switchback_shortpath::Role;

use super::end::End;
use super::lab::{Arrived, Nat, NatKind, Net};
use super::wires::{AGAIN, SPEAK};
use super::{AGENT, CLIENT, STUN};
use crate::broker::config::Relay;
use crate::broker::orchestrator::{Input, LinkId, Orchestrator, SessionLimits, Wish};
use crate::broker::seal::Grant;
use crate::broker::udp::UdpKeys;
use crate::wire::{Candidate, PublicKey, SessionId, SessionPurpose, UdpAccess};

/// Something on its way by a link or a pair.
pub(super) enum Parcel {
    /// To the broker, if it is still the one that it was sent to.
    Say(u32, Input),
    Told(usize, Told),
    /// An end's leg reaches the gateway.
    Dial(u32, PairId, usize),
    Up(PairId, usize),
    Down(PairId, usize),
    Bytes(PairId, usize, Bytes),
    /// An end connects to the broker.
    Link(usize),
    /// The client asks for another leg, if it needs one.
    Again,
    Tick,
    Speak,
}

pub(super) enum Told {
    Granted(Grant, PairId, Option<UdpAccess>),
    Offer(Grant, PairId, Option<UdpAccess>),
    Leg(PairId),
    Candidates(Vec<Candidate>),
}

pub(super) struct Trio {
    pub(super) net: Net,
    pub(super) broker: Orchestrator,
    pub(super) ends: [End; 2],
    /// One way from an end to the gateway.
    pub(super) delay: Duration,
    /// While the broker is down, nothing reaches it, and the gateway in its process joins nobody.
    pub(super) down: bool,
    pub(super) keys: UdpKeys,
    /// Counts broker processes.
    pub(super) epoch: u32,
    next: u32,
    flying: BTreeMap<(Instant, u64), Parcel>,
    count: u64,
    /// Which legs a pair has: client's, agent's.
    pub(super) pairs: HashMap<PairId, [bool; 2]>,
    pub(super) links: [LinkId; 2],
    pub(super) begun: Instant,
    /// Between two messages of the application.
    pub(super) speak: Duration,
}

impl Trio {
    /// Three that know each other, addresses learnt, and no session yet.
    pub(super) fn new(seed: u64, delay: Duration, nats: [Option<NatKind>; 2]) -> Self {
        let mut net = Net::new(seed);
        let places = [("10.0.1.2", "203.0.113.2"), ("10.0.2.2", "198.51.100.2")];
        for ((inside, outside), nat) in places.into_iter().zip(nats) {
            net.host(inside, delay, nat.map(|kind| Nat::new(kind, outside)));
        }
        net.host(&STUN.ip().to_string(), Duration::ZERO, None);
        let now = net.now;
        let end = |role, socket| End::new(now, role, socket);
        let mut trio = Self {
            net,
            broker: Orchestrator::new(SessionLimits::default()),
            ends: [end(Role::Client, "10.0.1.2:5000"), end(Role::Agent, "10.0.2.2:5000")],
            delay,
            down: false,
            keys: UdpKeys::new(&[7; 32], Relay::Own),
            epoch: 0,
            next: 0,
            flying: BTreeMap::new(),
            count: 0,
            pairs: HashMap::new(),
            links: [LinkId(0), LinkId(0)],
            begun: now,
            speak: SPEAK,
        };
        for end in [CLIENT, AGENT] {
            trio.send(Duration::ZERO, Parcel::Link(end));
        }
        trio.send(AGAIN, Parcel::Tick);
        trio.run(Duration::from_secs(1));
        trio
    }

    pub(super) fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    pub(super) fn pair(&mut self) -> PairId {
        let mut pair = [0; 16];
        pair[..4].copy_from_slice(&self.number().to_be_bytes());
        PairId(pair)
    }

    pub(super) fn send(&mut self, after: Duration, parcel: Parcel) {
        self.count += 1;
        self.flying.insert((self.net.now + after, self.count), parcel);
    }

    /// The user asks for a session, and speaks from then on.
    pub(super) fn open(&mut self) {
        let (pair, link) = (self.pair(), self.links[CLIENT]);
        let wish = Wish {
            request: 1,
            resource: "echo".into(),
            client_key: PublicKey("client".into()),
            ready: false,
            session: SessionId("trio".into()),
            pair,
            created_ms: 1,
            udp: Some(self.ends[CLIENT].candidates()),
            purpose: SessionPurpose::Use,
            consent: false,
            source: None,
            rights: Default::default(),
        };
        self.say(CLIENT, Input::Open { link, wish });
        self.send(Duration::ZERO, Parcel::Speak);
    }

    /// Lets virtual time pass.
    pub(super) fn run(&mut self, time: Duration) {
        let until = self.net.now + time;
        self.run_until(until, |_| false);
    }

    /// Until the condition holds or the end has come. Returns whether it held.
    pub(super) fn run_until(&mut self, until: Instant, done: impl Fn(&mut Self) -> bool) -> bool {
        for _ in 0..5_000_000 {
            for end in [CLIENT, AGENT] {
                for (pair, bytes) in self.ends[end].drain(&mut self.net) {
                    self.send(2 * self.delay, Parcel::Bytes(pair, 1 - end, bytes));
                }
                for pair in std::mem::take(&mut self.ends[end].left) {
                    self.cut(pair);
                    self.send(AGAIN, Parcel::Again);
                }
            }
            self.tell_candidates();
            if done(self) {
                return true;
            }
            let [client, agent] = &mut self.ends;
            let wires = self.flying.keys().next().map(|(at, _)| *at);
            let due = [client.timeout(), agent.timeout(), self.net.next(), wires];
            let next = due.into_iter().flatten().min().unwrap_or(until);
            if next > until {
                self.net.now = until;
                return false;
            }
            self.net.now = self.net.now.max(next);
            self.step();
        }
        panic!("time does not pass");
    }

    fn step(&mut self) {
        let now = self.net.now;
        while let Some(arrived) = self.net.arrived() {
            match self.ends.iter_mut().find(|end| end.socket == arrived.to) {
                Some(end) => end.receive(now, &arrived),
                None if arrived.to == STUN && !self.down => answer(&mut self.net, &arrived),
                None => {}
            }
        }
        while let Some(entry) = self.flying.first_entry().filter(|entry| entry.key().0 <= now) {
            let parcel = entry.remove();
            self.deliver(parcel);
        }
        self.ends.iter_mut().for_each(|end| end.tick(now));
    }
}

/// A STUN server's whole answer to a Binding request over IPv4: XOR-MAPPED-ADDRESS (RFC 8489 section 14.2).
fn answer(net: &mut Net, request: &Arrived) {
    let (Some(transaction), std::net::SocketAddr::V4(from)) =
        (request.bytes.get(4..20), request.from)
    else {
        return;
    };
    let port = (from.port() ^ 0x2112).to_be_bytes();
    let ip = (u32::from(*from.ip()) ^ 0x2112_a442).to_be_bytes();
    let head = [1, 1, 0, 12];
    let reply = [&head[..], transaction, &[0, 0x20, 0, 8, 0, 1], &port, &ip].concat();
    net.send(request.to, request.from, reply);
}
