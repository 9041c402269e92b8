//! A small network in virtual time for the tests of this module: hosts behind NATs of every RFC 4787 behaviour, and wires
//! with delay and loss.
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Mapping and filtering, by what of the destination they depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Nothing,
    Address,
    AddressAndPort,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PortRule {
    Keep,
    Random,
    Sequential,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct NatKind {
    pub(super) mapping: By,
    pub(super) filter: By,
    pub(super) ports: PortRule,
    /// How long an idle mapping is kept.
    pub(super) timeout: Duration,
    /// How long any mapping is kept, however busy.
    pub(super) life: Duration,
}

impl NatKind {
    pub(super) fn new(mapping: By, filter: By, ports: PortRule) -> Self {
        Self {
            mapping,
            filter,
            ports,
            timeout: Duration::from_secs(120),
            life: Duration::from_secs(1 << 30),
        }
    }
}

type Key = Option<(IpAddr, Option<u16>)>;

fn key(by: By, to: SocketAddr) -> Key {
    match by {
        By::Nothing => None,
        By::Address => Some((to.ip(), None)),
        By::AddressAndPort => Some((to.ip(), Some(to.port()))),
    }
}

#[derive(Debug)]
struct Mapped {
    inside: SocketAddr,
    key: Key,
    outside: u16,
    used: Instant,
    born: Instant,
    permitted: Vec<SocketAddr>,
}

impl Mapped {
    fn lives(&self, now: Instant, kind: &NatKind) -> bool {
        self.used + kind.timeout > now && self.born + kind.life > now
    }
}

#[derive(Debug)]
pub(super) struct Nat {
    kind: NatKind,
    outside: IpAddr,
    mappings: Vec<Mapped>,
    next: u16,
}

impl Nat {
    pub(super) fn new(kind: NatKind, outside: &str) -> Self {
        Self { kind, outside: outside.parse().unwrap(), mappings: Vec::new(), next: 40_000 }
    }

    fn out(
        &mut self,
        now: Instant,
        from: SocketAddr,
        to: SocketAddr,
        rng: &mut StdRng,
    ) -> SocketAddr {
        let (kind, wanted) = (self.kind, key(self.kind.mapping, to));
        self.mappings.retain(|mapped| mapped.lives(now, &kind));
        let taken = |ports: &[Mapped], port| ports.iter().any(|mapped| mapped.outside == port);
        let known = self.mappings.iter().position(|m| m.inside == from && m.key == wanted);
        let at = known.unwrap_or_else(|| {
            let mut outside = from.port();
            while kind.ports != PortRule::Keep || taken(&self.mappings, outside) {
                outside = if kind.ports == PortRule::Sequential {
                    self.next += 1;
                    self.next
                } else {
                    rng.random_range(1024..=u16::MAX)
                };
                if !taken(&self.mappings, outside) {
                    break;
                }
            }
            let permitted = Vec::new();
            self.mappings.push(Mapped {
                inside: from,
                key: wanted,
                outside,
                used: now,
                born: now,
                permitted,
            });
            self.mappings.len() - 1
        });
        let mapped = &mut self.mappings[at];
        mapped.used = now;
        if !mapped.permitted.contains(&to) {
            mapped.permitted.push(to);
        }
        SocketAddr::new(self.outside, mapped.outside)
    }

    fn inward(&self, now: Instant, from: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        let kind = self.kind;
        let alive = |m: &&Mapped| m.outside == to.port() && m.lives(now, &kind);
        let lets_in = |m: &&Mapped| {
            kind.filter == By::Nothing
                || m.permitted.iter().any(|p| key(kind.filter, *p) == key(kind.filter, from))
        };
        self.mappings.iter().filter(alive).find(lets_in).map(|mapped| mapped.inside)
    }
}

/// A datagram that has arrived at a host.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

/// Wires and NATs. A host is known by its inside IP.
#[derive(Debug)]
pub(super) struct Net {
    pub(super) now: Instant,
    pub(super) rng: StdRng,
    nats: HashMap<IpAddr, Nat>,
    delays: HashMap<IpAddr, Duration>,
    pub(super) loss: f64,
    /// Hosts whose packets vanish.
    pub(super) blocked: Vec<IpAddr>,
    flying: BTreeMap<(Instant, u64), Arrived>,
    count: u64,
}

impl Net {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            now: Instant::now(),
            rng: StdRng::seed_from_u64(seed),
            nats: HashMap::new(),
            delays: HashMap::new(),
            loss: 0.0,
            blocked: Vec::new(),
            flying: BTreeMap::new(),
            count: 0,
        }
    }

    /// A host `delay` from the middle of the net.
    pub(super) fn host(&mut self, ip: &str, delay: Duration, nat: Option<Nat>) {
        let ip = ip.parse().unwrap();
        self.delays.insert(ip, delay);
        match nat {
            Some(nat) => self.nats.insert(ip, nat),
            None => self.nats.remove(&ip),
        };
    }

    /// The NAT forgets all mappings, and numbers anew from `next`.
    pub(super) fn rebind(&mut self, ip: &str, next: u16) {
        let nat = self.nats.get_mut(&ip.parse::<IpAddr>().unwrap()).unwrap();
        nat.mappings.clear();
        nat.next = next;
    }

    pub(super) fn send(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let lost = self.rng.random_bool(self.loss);
        let outside = match self.nats.get_mut(&from.ip()) {
            Some(nat) => nat.out(self.now, from, to, &mut self.rng),
            None => from,
        };
        if lost || self.blocked.contains(&from.ip()) {
            return;
        }
        let owner = self.nats.iter().find(|(_, nat)| nat.outside == to.ip());
        let end = owner.map_or(to.ip(), |(inside, _)| *inside);
        let (Some(near), Some(far)) = (self.delays.get(&from.ip()), self.delays.get(&end)) else {
            return;
        };
        // An inside address of somebody else's NAT is no destination.
        if owner.is_none() && self.nats.contains_key(&to.ip()) {
            return;
        }
        self.count += 1;
        let at = self.now + *near + *far;
        self.flying.insert((at, self.count), Arrived { from: outside, to, bytes });
    }

    /// When the next datagram arrives.
    pub(super) fn next(&self) -> Option<Instant> {
        self.flying.keys().next().map(|(at, _)| *at)
    }

    /// What has arrived by now, after the NATs; filtered datagrams vanish.
    pub(super) fn arrived(&mut self) -> Option<Arrived> {
        loop {
            let entry = self.flying.first_entry()?;
            if entry.key().0 > self.now {
                return None;
            }
            let mut arrived = entry.remove();
            let nat = self.nats.iter().find(|(_, nat)| nat.outside == arrived.to.ip());
            if let Some((_, nat)) = nat {
                match nat.inward(self.now, arrived.from, arrived.to) {
                    Some(inside) => arrived.to = inside,
                    None => continue,
                }
            }
            if !self.blocked.contains(&arrived.to.ip()) {
                return Some(arrived);
            }
        }
    }
}
