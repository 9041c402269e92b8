//! How long a NAT keeps an idle UDP mapping, learnt from evidence, and the keepalive interval that follows.
//!
//! Evidence comes from two sides. [`LifetimeProbe`] lets a mapping of a *spare* socket idle for longer and longer and
//! looks whether it is still the same. And a socket in use that finds its mapping changed after a pause has learnt that
//! the pause was too long. A NAT that keeps the inside port gives an expired mapping the same port again, so that only
//! the second kind, or nothing, is ever seen there; then the default stays.
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use stun_types::message::{BINDING, MessageClass, TransactionId};

use super::message::{self, Writer};
use super::probe::Probe;

/// The interval before anything is known: RFC 8445 section 11's Tr.
pub(super) const KEEPALIVE_START: Duration = Duration::from_secs(15);
/// The longest one without evidence: below the 30 s that many NATs keep (RFC 4787's 2 minutes notwithstanding).
pub(super) const KEEPALIVE_MAX: Duration = Duration::from_secs(25);
/// The longest one with evidence. RFC 4787 wants mappings kept for 2 minutes; two keepalives fit in.
pub(super) const KEEPALIVE_LEARNT_MAX: Duration = Duration::from_secs(55);
/// The shortest one: below that the traffic is worse than the mapping's loss.
pub(super) const KEEPALIVE_MIN: Duration = Duration::from_secs(1);
/// Pauses a probe tries. Real NATs cut at 10, 20, 30, 60, 120 s; each try lies a little above such a step.
const STEPS: [Duration; 6] = [
    Duration::from_secs(12),
    Duration::from_secs(22),
    Duration::from_secs(32),
    Duration::from_secs(45),
    Duration::from_secs(65),
    Duration::from_secs(125),
];

/// What is known of the lifetime of idle mappings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MappingLifetime {
    /// The longest pause that a mapping survived.
    pub kept: Option<Duration>,
    /// The shortest pause that one did not.
    pub lost: Option<Duration>,
}

impl MappingLifetime {
    /// A pause that a mapping survived.
    pub fn note_kept(&mut self, pause: Duration) {
        if self.lost.is_none_or(|lost| pause < lost) {
            self.kept = self.kept.max(Some(pause));
        }
    }

    /// A pause after which the mapping was another one. Longer pauses that once were survived are forgotten: the
    /// network may be another one now.
    pub fn note_lost(&mut self, pause: Duration) {
        self.lost = Some(self.lost.map_or(pause, |lost| lost.min(pause)));
        self.kept = self.kept.filter(|kept| *kept < pause);
    }

    /// The keepalive interval: four fifths of what was survived, and at most half of what was not.
    #[must_use]
    pub fn keepalive(&self) -> Duration {
        let survived = self.kept.map(|kept| kept * 4 / 5);
        let interval = match (survived, self.lost) {
            (None, None) => KEEPALIVE_START,
            (Some(good), None) => good.clamp(KEEPALIVE_START, KEEPALIVE_LEARNT_MAX),
            (None, Some(lost)) => (lost / 2).min(KEEPALIVE_MAX),
            (Some(good), Some(lost)) => good.max(lost / 2).min(KEEPALIVE_LEARNT_MAX),
        };
        interval.max(KEEPALIVE_MIN)
    }
}

/// Learns the lifetime on a spare socket that nothing else uses. Pauses of up to 125 s, about five minutes in all.
#[derive(Debug)]
pub struct LifetimeProbe {
    server: SocketAddr,
    rng: StdRng,
    step: usize,
    mapped: Option<SocketAddr>,
    id: Option<TransactionId>,
    /// When the mapping was last used.
    used: Instant,
    due: Option<Instant>,
    tries: u32,
    transmit: Option<Vec<u8>>,
    found: MappingLifetime,
}

/// Tries for one answer, a second apart; without any the probe ends.
const TRIES: u32 = 4;

impl LifetimeProbe {
    /// Starts with a first request; `seed` as in [`super::KeeperConfig`].
    #[must_use]
    pub fn new(now: Instant, server: SocketAddr, seed: [u8; 32]) -> Self {
        Self {
            server,
            rng: StdRng::from_seed(seed),
            step: 0,
            mapped: None,
            id: None,
            used: now,
            due: Some(now),
            tries: 0,
            transmit: None,
            found: MappingLifetime::default(),
        }
    }

    /// What was found so far.
    #[must_use]
    pub fn found(&self) -> MappingLifetime {
        self.found
    }
}

impl Probe for LifetimeProbe {
    fn handle_packet(&mut self, now: Instant, source: SocketAddr, datagram: &[u8]) {
        let Some(message) = message::parse(datagram) else { return };
        let ours = self.id == Some(message.transaction_id()) && source == self.server;
        let Some(mapped) = message::mapped_address(&message).filter(|_| ours) else { return };
        let pause = STEPS.get(self.step.wrapping_sub(1)).copied();
        let changed = self.mapped.is_some_and(|before| before != mapped);
        if let Some(pause) = pause {
            if changed {
                self.found.note_lost(pause);
            } else {
                self.found.note_kept(pause);
            }
        }
        (self.id, self.tries, self.used, self.mapped) = (None, 0, now, Some(mapped));
        self.due = if changed { None } else { STEPS.get(self.step).map(|step| now + *step) };
        self.step += 1;
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        if self.tries == TRIES {
            self.due = None;
            return;
        }
        let id = TransactionId::from(self.rng.random::<u128>());
        self.transmit = Some(Writer::new(MessageClass::Request, BINDING, id).finish(None));
        self.id = Some(id);
        self.tries += 1;
        self.due = Some(now + Duration::from_secs(1));
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        Some((self.server, self.transmit.take()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keepalives_come_just_often_enough() {
        let mut life = MappingLifetime::default();
        assert_eq!(life.keepalive(), Duration::from_secs(15));
        life.note_kept(Duration::from_secs(32));
        assert_eq!(life.keepalive(), Duration::from_millis(25_600));
        life.note_kept(Duration::from_secs(125));
        assert_eq!(life.keepalive(), KEEPALIVE_LEARNT_MAX);
        life.note_lost(Duration::from_secs(10));
        assert_eq!(life.keepalive(), Duration::from_secs(5));
        life.note_lost(Duration::from_millis(500));
        assert_eq!(life.keepalive(), KEEPALIVE_MIN);
    }
}
