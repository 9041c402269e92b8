//! The legs and pairs a worker holds.
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use slab::Slab;

use crate::relay::{Pair, PairMeter, Readiness};
use crate::ring::Pipe;
use crate::rtt::Spot;
use crate::{LegSide, PairId, Tuning};

/// A leg, waiting or joined.
#[derive(Debug)]
pub(crate) struct Leg {
    pub(crate) socket: OwnedFd,
    pub(crate) token: u64,
    pub(crate) peer: SocketAddr,
    pub(crate) place: Place,
    /// Bytes for the mate, while waiting.
    pub(crate) said: Vec<u8>,
    /// What events said while waiting.
    pub(crate) ready: Readiness,
    /// For both legs, once they meet.
    pub(crate) tuning: Option<Arc<Tuning>>,
}

/// Where a leg is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Waiting(PairId),
    Joined { pair: usize, side: LegSide },
}

/// A pair and what it holds.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) id: PairId,
    pub(crate) pair: Pair,
    /// Slots of the client's and the agent's leg.
    pub(crate) legs: [usize; 2],
    pub(crate) tubes: [Tube; 2],
    pub(crate) started: Instant,
    pub(crate) meter: Arc<PairMeter>,
    pub(crate) sampling: Spot,
}

/// What one direction holds outside the kernel's socket buffers.
#[derive(Debug, Default)]
pub(crate) struct Tube {
    pub(crate) spill: Spill,
    pub(crate) pipe: Option<Pipe>,
    /// In the ready queue.
    pub(crate) queued: bool,
}

/// Bytes received and not yet sent. Holds memory only while there are some.
#[derive(Debug, Default)]
pub(crate) struct Spill {
    bytes: Vec<u8>,
    sent: usize,
}

impl Spill {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, sent: 0 }
    }

    pub(crate) fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    pub(crate) fn advance(&mut self, sent: usize) {
        self.sent += sent;
        if self.sent == self.bytes.len() {
            *self = Self::default();
        }
    }
}

/// Legs by slot. A token is generation and slot, so an event for a slot's former tenant finds nobody.
#[derive(Debug, Default)]
pub(crate) struct Legs {
    slots: Slab<Leg>,
    generation: u32,
}

impl Legs {
    /// Moves a leg in; `make` gets its token.
    pub(crate) fn insert(&mut self, make: impl FnOnce(u64) -> Leg) -> usize {
        self.generation = self.generation.wrapping_add(1) & GENERATION_MASK;
        let entry = self.slots.vacant_entry();
        let slot = entry.key();
        entry.insert(make(u64::from(self.generation) << 32 | slot as u64));
        slot
    }

    /// The slot an event's token names, if its leg still lives there.
    pub(crate) fn slot_of(&self, token: u64) -> Option<usize> {
        let slot = usize::try_from(token & u64::from(u32::MAX)).ok()?;
        self.slots.get(slot).filter(|leg| leg.token == token).map(|_| slot)
    }

    pub(crate) fn get(&self, slot: usize) -> Option<&Leg> {
        self.slots.get(slot)
    }

    pub(crate) fn get_mut(&mut self, slot: usize) -> Option<&mut Leg> {
        self.slots.get_mut(slot)
    }

    pub(crate) fn remove(&mut self, slot: usize) -> Option<Leg> {
        self.slots.try_remove(slot)
    }
}

/// Keeps generations clear of the reserved tokens at the top.
const GENERATION_MASK: u32 = u32::MAX >> 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn leg(token: u64) -> Leg {
        Leg {
            socket: std::fs::File::open("/dev/null").unwrap().into(),
            token,
            peer: "127.0.0.1:1".parse().unwrap(),
            place: Place::Waiting(PairId([0; 16])),
            said: Vec::new(),
            ready: Readiness::default(),
            tuning: None,
        }
    }

    #[test]
    fn event_of_a_former_tenant_finds_nobody() {
        let mut legs = Legs::default();
        let slot = legs.insert(leg);
        let old = legs.get(slot).unwrap().token;
        assert_eq!(legs.slot_of(old), Some(slot));
        legs.remove(slot);
        assert_eq!(legs.slot_of(old), None);
        let again = legs.insert(leg);
        assert_eq!(again, slot);
        assert_eq!(legs.slot_of(old), None);
    }

    #[test]
    fn spill_frees_its_memory_when_empty() {
        let mut spill = Spill::new(vec![1, 2, 3]);
        spill.advance(2);
        assert_eq!(spill.unsent(), [3]);
        spill.advance(1);
        assert_eq!((spill.unsent().len(), spill.bytes.capacity()), (0, 0));
    }
}
