//! One direction of a link: what enters comes out late, thinned, reordered or not at all.
//!
//! Two stages in a row, as on a real link: a queue in front of a transmitter of limited rate, then
//! the medium, which loses, delays and reorders. All settings may change at any moment; packets
//! already in the medium keep the arrival time they were given. Pure: the caller gives the time.

mod loss;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use self::loss::Loss;
pub use self::settings::{Chance, LinkSettings, MtuLimit};
pub(crate) use self::settings::{duration_text, parse_duration};
use crate::lab::packet::{self, Protocol, RouterAddresses};

/// Most bytes in the medium at once: 300 ms at 5 Gbit/s; what comes beyond is dropped and counted.
const IN_FLIGHT_BYTES_MAX: usize = 192 << 20;

/// Shortest time a reordered packet is held back, so that `reorder` works on a link without delay.
const REORDER_HOLD_MIN: Duration = Duration::from_millis(1);

/// What `udp-rate` lets through at once after a pause: the usual advice for policers, so that a
/// congestion control with round trips below this can fill the rate.
const POLICE_BURST: Duration = Duration::from_millis(50);

/// What became of a packet given to [`Wire::push`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is on the wire: ask [`Wire::next_due`].
    Queued,
    /// The wire has nothing set and nothing queued: here it is again, deliver it at once.
    Through(Vec<u8>),
    /// Dropped before the transmitter (queue full, policed, too big for the link): see [`WireStats`].
    Dropped,
    /// Too big for the link: send this ICMP error back to where the packet came from.
    Reply(Vec<u8>),
}

/// Packets by fate, since the wire was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WireStats {
    /// Given to [`Wire::push`].
    pub pushed: u64,
    /// Handed out, copies included.
    pub delivered: u64,
    /// Lost at random.
    pub lost: u64,
    /// Refused by the full queue in front of the rate limit.
    pub queue_full: u64,
    /// UDP beyond its own rate.
    pub policed: u64,
    /// Swallowed by `blackhole`.
    pub blackholed: u64,
    /// Larger than the MTU, and not to be fragmented.
    pub too_big: u64,
    /// Packets made by fragmenting larger ones, beyond the one there was.
    pub fragments_added: u64,
    /// Delivered twice.
    pub duplicated: u64,
    /// Held back so that later ones overtake.
    pub reordered: u64,
    /// Delivered with a flipped bit.
    pub corrupted: u64,
    /// Dropped because the medium held its most bytes.
    pub overflowed: u64,
}

/// One direction of a link.
#[derive(Debug)]
pub struct Wire {
    settings: LinkSettings,
    router: RouterAddresses,
    rng: SmallRng,
    loss: Loss,
    /// Packets before the transmitter; the first is being sent and is through at `sent_at`.
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    sent_at: Duration,
    /// When what the policer has let through would have passed at its rate.
    policed_until: Duration,
    /// Packets in the medium by arrival time and entry number.
    medium: BTreeMap<(Duration, u64), Vec<u8>>,
    medium_bytes: usize,
    /// Latest arrival time given to a packet that keeps its place, and to one of UDP where that takes longer.
    last_due: [Duration; 2],
    entries: u64,
    stats: WireStats,
}

impl Wire {
    /// A wire with these settings. `router` is where its ICMP errors come from; without an address
    /// of the packet's family a packet too big is dropped silently.
    pub fn new(settings: LinkSettings, router: RouterAddresses, seed: u64) -> Self {
        Wire {
            settings,
            router,
            rng: SmallRng::seed_from_u64(seed),
            loss: Loss::default(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            sent_at: Duration::ZERO,
            policed_until: Duration::ZERO,
            medium: BTreeMap::new(),
            medium_bytes: 0,
            last_due: [Duration::ZERO; 2],
            entries: 0,
            stats: WireStats::default(),
        }
    }

    /// The settings in force.
    pub fn settings(&self) -> &LinkSettings {
        &self.settings
    }

    /// Counters since the start.
    pub fn stats(&self) -> WireStats {
        self.stats
    }

    /// Changes everything from now on. A packet being transmitted starts over at the new rate;
    /// packets in the medium arrive when they would have.
    pub fn set(&mut self, now: Duration, settings: LinkSettings) {
        self.transmit(now);
        self.settings = settings;
        if let Some(first) = self.waiting.front() {
            self.sent_at = now + settings.transmission(first.len());
            self.transmit(now);
        }
    }

    /// Puts a packet on the wire.
    pub fn push(&mut self, now: Duration, packet: Vec<u8>) -> Pushed {
        self.stats.pushed += 1;
        if self.settings.is_perfect() && self.medium.is_empty() && self.waiting.is_empty() {
            self.stats.delivered += 1;
            return Pushed::Through(packet);
        }
        self.transmit(now);
        if self.polices(now, &packet) {
            self.stats.policed += 1;
            return Pushed::Dropped;
        }
        match self.settings.mtu.filter(|limit| packet.len() > limit.bytes()) {
            Some(limit) => self.narrow(now, &packet, limit),
            None => self.queue(now, packet),
        }
    }

    /// The next packet that has arrived by `now`.
    pub fn pop_due(&mut self, now: Duration) -> Option<Vec<u8>> {
        self.transmit(now);
        let first = self.medium.first_entry().filter(|entry| entry.key().0 <= now)?;
        let packet = first.remove();
        self.medium_bytes -= packet.len();
        self.stats.delivered += 1;
        Some(packet)
    }

    /// When to call [`Wire::pop_due`] next; `None` when the wire is empty. It may then have nothing
    /// yet (the packet was lost, or jitter holds it): ask again.
    pub fn next_due(&self) -> Option<Duration> {
        let arriving = self.medium.keys().next().map(|(due, _)| *due);
        let sending = (!self.waiting.is_empty()).then(|| self.sent_at + self.settings.delay);
        arriving.into_iter().chain(sending).min()
    }

    /// The packet is UDP and too much of it for now.
    fn polices(&mut self, now: Duration, packet: &[u8]) -> bool {
        let Some(rate) = self.settings.udp_rate else { return false };
        if packet::flow_of(packet).is_none_or(|flow| flow.protocol != Protocol::Udp) {
            return false;
        }
        let until = self.policed_until.max(now) + settings::time_for(packet.len(), rate);
        let excess = until > now + POLICE_BURST;
        if !excess {
            self.policed_until = until;
        }
        excess
    }

    /// A packet larger than the link's MTU: in fragments where that is allowed, else refused.
    fn narrow(&mut self, now: Duration, packet: &[u8], limit: MtuLimit) -> Pushed {
        let parts = packet::fragment(packet, limit.mtu).filter(|_| !limit.silent);
        if let Some(parts) = parts {
            self.stats.fragments_added += (parts.len() as u64).saturating_sub(1);
            let fates = parts.into_iter().map(|part| self.queue(now, part));
            return fates.min_by_key(|fate| *fate != Pushed::Queued).unwrap_or(Pushed::Dropped);
        }
        self.stats.too_big += 1;
        if limit.silent {
            return Pushed::Dropped;
        }
        packet::too_big(packet, limit.mtu, self.router).map_or(Pushed::Dropped, Pushed::Reply)
    }

    /// Before the transmitter, or past it when there is no rate.
    fn queue(&mut self, now: Duration, packet: Vec<u8>) -> Pushed {
        if self.settings.rate.is_none() {
            self.depart(now, packet);
            return Pushed::Queued;
        }
        if self.waiting_bytes + packet.len() > self.settings.queue_bytes() {
            self.stats.queue_full += 1;
            return Pushed::Dropped;
        }
        if self.waiting.is_empty() {
            self.sent_at = now + self.settings.transmission(packet.len());
        }
        self.waiting_bytes += packet.len();
        self.waiting.push_back(packet);
        Pushed::Queued
    }

    /// Moves into the medium what the transmitter has sent by `now`.
    fn transmit(&mut self, now: Duration) {
        while self.sent_at <= now
            && let Some(packet) = self.waiting.pop_front()
        {
            let at = self.sent_at;
            self.waiting_bytes -= packet.len();
            self.depart(at, packet);
            let next = self.waiting.front().map_or(0, Vec::len);
            self.sent_at = at + self.settings.transmission(next);
        }
    }

    /// The packet enters the medium at `at`: lost, or given its arrival time.
    fn depart(&mut self, at: Duration, mut packet: Vec<u8>) {
        if self.settings.blackhole {
            self.stats.blackholed += 1;
            return;
        }
        if self.loss.takes(self.settings.loss, self.settings.burst, &mut self.rng) {
            self.stats.lost += 1;
            return;
        }
        if self.settings.corrupt.happens(&mut self.rng) && !packet.is_empty() {
            self.stats.corrupted += 1;
            let bit = self.rng.random_range(0..packet.len() * 8);
            packet[bit / 8] ^= 1 << (bit % 8);
        }
        let due = self.arrival(at, &packet);
        if self.settings.duplicate.happens(&mut self.rng) {
            self.stats.duplicated += 1;
            self.enter(due, packet.clone());
        }
        self.enter(due, packet);
    }

    /// When a packet that leaves the transmitter at `at` arrives: never before its predecessors,
    /// unless it or they are reordered.
    fn arrival(&mut self, at: Duration, packet: &[u8]) -> Duration {
        let slow = !self.settings.udp_delay.is_zero()
            && packet::flow_of(packet).is_some_and(|flow| flow.protocol == Protocol::Udp);
        let extra = if slow { self.settings.udp_delay } else { Duration::ZERO };
        let jitter = match self.settings.jitter {
            Duration::ZERO => Duration::ZERO,
            most => self.rng.random_range(Duration::ZERO..=most),
        };
        let last_due = &mut self.last_due[usize::from(slow)];
        let due = (at + self.settings.delay + extra + jitter).max(*last_due);
        if self.settings.reorder.happens(&mut self.rng) {
            self.stats.reordered += 1;
            let hold = (self.settings.delay / 10).max(self.settings.jitter).max(REORDER_HOLD_MIN);
            return due + hold;
        }
        *last_due = due;
        due
    }

    fn enter(&mut self, due: Duration, packet: Vec<u8>) {
        if self.medium_bytes + packet.len() > IN_FLIGHT_BYTES_MAX {
            self.stats.overflowed += 1;
            return;
        }
        self.entries += 1;
        self.medium_bytes += packet.len();
        self.medium.insert((due, self.entries), packet);
    }
}
