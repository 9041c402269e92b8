//! The mappings: which inside endpoint is which external one, and who was spoken to through it.
//!
//! A mapping holds one *peer* per remote endpoint; each peer has its own timer, as a connection
//! tracker keeps it, and the mapping lives as long as any peer. An untranslated flow has a mapping
//! whose external endpoint is the inside one, so that filtering is the same code.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::entry::{Entry, InsideKey, Segment};
use super::settings::MAPPINGS_MAX;
use super::{Filtering, Mapping, NatSettings, PortAssignment, Reason};
use crate::lab::packet::{Flow, Protocol};

/// Ports remembered as not to be given out again; beyond that all are forgiven.
const SHUNNED_MAX: usize = 8192;

/// Lowest external port given out when the inside one is not kept.
const PORT_MIN: u16 = 1024;

/// A live mapping, for people.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MappingView {
    /// UDP, TCP or echo.
    pub protocol: Protocol,
    /// The inside host's endpoint.
    pub inside: SocketAddr,
    /// What the outside sees.
    pub external: SocketAddr,
    /// Remote endpoints the inside host has spoken to and may hear from.
    pub peers: usize,
    /// Time left unless it is refreshed.
    pub left: Duration,
}

/// All mappings of a box.
#[derive(Debug)]
pub(super) struct Table {
    rng: SmallRng,
    last_sequential: u16,
    by_inside: HashMap<InsideKey, SocketAddr>,
    by_external: HashMap<(Protocol, SocketAddr), Entry>,
    shunned: BTreeSet<(Protocol, u16)>,
    pub(super) created: u64,
    pub(super) expired: u64,
    pub(super) evicted: u64,
}

impl Table {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        Table {
            last_sequential: rng.random_range(20_000..60_000),
            rng,
            by_inside: HashMap::new(),
            by_external: HashMap::new(),
            shunned: BTreeSet::new(),
            created: 0,
            expired: 0,
            evicted: 0,
        }
    }

    pub(super) fn clear(&mut self) {
        self.by_inside.clear();
        self.by_external.clear();
    }

    /// The external ports in use now are not given out again.
    pub(super) fn shun_ports_in_use(&mut self) {
        self.shunned = self
            .by_external
            .keys()
            .map(|(protocol, external)| (*protocol, external.port()))
            .collect();
    }

    /// An outbound packet of this flow: its external source, mapped and refreshed. `own` is the
    /// external address, `None` for a flow that is not translated.
    pub(super) fn map(
        &mut self,
        now: Duration,
        settings: &NatSettings,
        own: Option<IpAddr>,
        flow: Flow,
        segment: Segment,
    ) -> Result<SocketAddr, Reason> {
        let mapping = if own.is_some() { settings.mapping } else { Mapping::EndpointIndependent };
        let key = inside_key(mapping, &flow);
        if let Some(external) = self.live(now, settings, key) {
            if let Some(entry) = self.by_external.get_mut(&(flow.protocol, external)) {
                if segment.continues_tcp() && !entry.knows(now, flow.destination) {
                    return Err(Reason::TcpWithoutState);
                }
                entry.refresh(now, settings, flow.destination, segment, true);
            }
            return Ok(external);
        }
        if segment.continues_tcp() {
            return Err(Reason::TcpWithoutState);
        }
        let external = match own {
            Some(address) => SocketAddr::new(address, self.port(now, settings, &flow, address)),
            None => flow.source,
        };
        // What is left there has run out, or the port would not be free.
        self.expired += u64::from(self.remove(flow.protocol, external));
        self.make_room(now, settings.mappings_max.clamp(1, MAPPINGS_MAX));
        let mut entry = Entry::new(now, key);
        entry.refresh(now, settings, flow.destination, segment, true);
        self.by_inside.insert(key, external);
        self.by_external.insert((flow.protocol, external), entry);
        self.created += 1;
        Ok(external)
    }

    /// An inbound packet of this flow: the inside endpoint it is for, if the filter admits it.
    pub(super) fn admit(
        &mut self,
        now: Duration,
        settings: &NatSettings,
        filtering: Filtering,
        flow: Flow,
        segment: Segment,
    ) -> Result<SocketAddr, Reason> {
        let entry = self
            .by_external
            .get_mut(&(flow.protocol, flow.destination))
            .filter(|entry| entry.lives(now, settings))
            .ok_or(Reason::NoMapping)?;
        if !entry.admits(now, filtering, flow.source) {
            return Err(Reason::Filtered);
        }
        if segment.continues_tcp() && !entry.knows(now, flow.source) {
            return Err(Reason::TcpWithoutState);
        }
        if settings.inbound_refresh || flow.protocol == Protocol::Tcp {
            entry.refresh(now, settings, flow.source, segment, false);
        }
        Ok(entry.key.1)
    }

    /// The external endpoint of an outbound flow that is mapped, refreshing nothing.
    pub(super) fn external_of(
        &self,
        now: Duration,
        settings: &NatSettings,
        flow: Flow,
    ) -> Option<SocketAddr> {
        let translated = self.by_inside.get(&inside_key(settings.mapping, &flow));
        let plain = self.by_inside.get(&inside_key(Mapping::EndpointIndependent, &flow));
        let external = *translated.or(plain)?;
        let entry = self.by_external.get(&(flow.protocol, external))?;
        (entry.lives(now, settings) && entry.knows(now, flow.destination)).then_some(external)
    }

    /// The inside endpoint behind a flow as it looks outside, refreshing nothing.
    pub(super) fn inside_of(
        &self,
        now: Duration,
        settings: &NatSettings,
        flow: Flow,
    ) -> Option<SocketAddr> {
        let entry = self.by_external.get(&(flow.protocol, flow.source))?;
        (entry.lives(now, settings) && entry.knows(now, flow.destination)).then_some(entry.key.1)
    }

    pub(super) fn view(&self, now: Duration, settings: &NatSettings) -> Vec<MappingView> {
        let mut views: Vec<_> = self
            .by_external
            .iter()
            .filter(|(_, entry)| entry.lives(now, settings))
            .map(|((protocol, external), entry)| MappingView {
                protocol: *protocol,
                inside: entry.key.1,
                external: *external,
                peers: entry.peers.values().filter(|peer| peer.until > now).count(),
                left: entry.ends(settings).saturating_sub(now),
            })
            .collect();
        views.sort();
        views
    }

    /// The external endpoint of a live mapping; a dead one is removed.
    fn live(
        &mut self,
        now: Duration,
        settings: &NatSettings,
        key: InsideKey,
    ) -> Option<SocketAddr> {
        let external = *self.by_inside.get(&key)?;
        let entry = self.by_external.get(&(key.0, external))?;
        if entry.lives(now, settings) {
            return Some(external);
        }
        // Who is thrown off a mapping in use must come back with another port, or nothing happened.
        if entry.until > now {
            if self.shunned.len() >= SHUNNED_MAX {
                self.shunned.clear();
            }
            self.shunned.insert((key.0, external.port()));
        }
        self.expired += u64::from(self.remove(key.0, external));
        None
    }

    /// Takes out the mapping of an external endpoint, if there is one.
    fn remove(&mut self, protocol: Protocol, external: SocketAddr) -> bool {
        let entry = self.by_external.remove(&(protocol, external));
        entry.is_some_and(|entry| self.by_inside.remove(&entry.key).is_some())
    }

    /// Before one more: removes what has run out or, when that is not enough, what is idle longest.
    fn make_room(&mut self, now: Duration, most: usize) {
        if self.by_external.len() < most {
            return;
        }
        let dead: Vec<_> = self
            .by_external
            .iter()
            .filter(|(_, entry)| entry.until <= now)
            .map(|(key, _)| *key)
            .collect();
        for (protocol, external) in dead {
            self.expired += u64::from(self.remove(protocol, external));
        }
        while self.by_external.len() >= most {
            let idlest = self.by_external.iter().min_by_key(|(key, entry)| (entry.used, **key));
            let Some(((protocol, external), _)) = idlest else { return };
            let (protocol, external) = (*protocol, *external);
            self.evicted += u64::from(self.remove(protocol, external));
        }
    }

    /// A free external port for a new mapping. There is always one: at most `MAPPINGS_MAX` are
    /// taken and as many shunned.
    fn port(&mut self, now: Duration, settings: &NatSettings, flow: &Flow, address: IpAddr) -> u16 {
        let free = |table: &Table, port: u16| {
            let entry = table.by_external.get(&(flow.protocol, (address, port).into()));
            entry.is_none_or(|entry| !entry.lives(now, settings))
                && !table.shunned.contains(&(flow.protocol, port))
        };
        let mut port = match settings.ports {
            PortAssignment::Keep if free(self, flow.source.port()) => {
                return flow.source.port();
            }
            PortAssignment::Keep | PortAssignment::Random => {
                self.rng.random_range(PORT_MIN..=u16::MAX)
            }
            PortAssignment::Sequential => following(self.last_sequential),
        };
        while !free(self, port) {
            port = following(port);
        }
        if settings.ports == PortAssignment::Sequential {
            self.last_sequential = port;
        }
        port
    }
}

/// The next port, wrapping to the lowest.
fn following(port: u16) -> u16 {
    port.checked_add(1).unwrap_or(PORT_MIN)
}

fn inside_key(mapping: Mapping, flow: &Flow) -> InsideKey {
    let remote = flow.destination;
    let (address, port) = match mapping {
        Mapping::None | Mapping::EndpointIndependent => (None, 0),
        Mapping::AddressDependent => (Some(remote.ip()), 0),
        Mapping::AddressAndPortDependent => (Some(remote.ip()), remote.port()),
    };
    (flow.protocol, flow.source, address, port)
}
