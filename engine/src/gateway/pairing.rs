//! Waiting legs meet or expire.
//!
//! Pure: the worker says who arrives and what time it is; this says who meets whom. `K` is the worker's handle of a leg.
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::{LegSide, PairId};

/// Legs that wait for their mates, on one worker.
#[derive(Debug)]
pub(crate) struct Pairing<K> {
    waiting: HashMap<PairId, Waiting<K>>,
    deadlines: BTreeSet<(Instant, PairId)>,
}

/// A leg that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiting<K> {
    pub(crate) side: LegSide,
    pub(crate) leg: K,
    deadline: Instant,
}

/// What becomes of a leg that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival<K> {
    /// It waits from now on.
    Waits,
    /// Its mate was waiting, and has left the waiting room with it.
    Meets(K),
    /// A leg of the same side waits already, and stays.
    Duplicate,
}

impl<K: Copy> Pairing<K> {
    pub(crate) fn new() -> Self {
        Self { waiting: HashMap::new(), deadlines: BTreeSet::new() }
    }

    /// A leg arrives and would wait for `patience`.
    pub(crate) fn arrive(
        &mut self,
        now: Instant,
        pair: PairId,
        side: LegSide,
        patience: Duration,
        leg: K,
    ) -> Arrival<K> {
        match self.waiting.get(&pair) {
            Some(mate) if mate.side == side => Arrival::Duplicate,
            Some(mate) => {
                let mate = mate.leg;
                self.leave(pair);
                Arrival::Meets(mate)
            }
            None => {
                let deadline = now + patience.min(PATIENCE_MAX);
                self.deadlines.insert((deadline, pair));
                self.waiting.insert(pair, Waiting { side, leg, deadline });
                Arrival::Waits
            }
        }
    }

    /// The waiting leg of `pair` goes, whatever the reason.
    pub(crate) fn leave(&mut self, pair: PairId) -> Option<Waiting<K>> {
        let gone = self.waiting.remove(&pair)?;
        self.deadlines.remove(&(gone.deadline, pair));
        Some(gone)
    }

    /// One leg whose patience is over at `now`; call until `None`.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<(PairId, Waiting<K>)> {
        let &(deadline, pair) = self.deadlines.first()?;
        if deadline > now {
            return None;
        }
        self.leave(pair).map(|gone| (pair, gone))
    }

    /// Any waiting leg, taken out; call until `None` to empty the room.
    pub(crate) fn evict(&mut self) -> Option<(PairId, Waiting<K>)> {
        let pair = *self.waiting.keys().next()?;
        self.leave(pair).map(|gone| (pair, gone))
    }

    /// The side that waits under `pair`.
    pub(crate) fn side(&self, pair: PairId) -> Option<LegSide> {
        self.waiting.get(&pair).map(|waiting| waiting.side)
    }

    /// When [`Self::expire`] will next have something.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }
}

/// Longer patience means nothing and could overflow the clock.
const PATIENCE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn id(n: u8) -> PairId {
        PairId([n; 16])
    }

    #[test]
    fn legs_meet_in_both_orders() {
        for first in [LegSide::Client, LegSide::Agent] {
            let (now, mut room) = (Instant::now(), Pairing::new());
            assert_eq!(room.arrive(now, id(1), first, PATIENCE, 10), Arrival::Waits);
            assert_eq!(room.arrive(now, id(2), first.mate(), PATIENCE, 20), Arrival::Waits);
            assert_eq!(room.arrive(now, id(1), first.mate(), PATIENCE, 11), Arrival::Meets(10));
            assert_eq!(room.side(id(1)), None);
            assert_eq!(room.side(id(2)), Some(first.mate()));
        }
    }

    #[test]
    fn duplicate_does_not_displace_the_first() {
        let (now, mut room) = (Instant::now(), Pairing::new());
        room.arrive(now, id(1), LegSide::Agent, PATIENCE, 1);
        assert_eq!(room.arrive(now, id(1), LegSide::Agent, PATIENCE, 2), Arrival::Duplicate);
        assert_eq!(room.arrive(now, id(1), LegSide::Client, PATIENCE, 3), Arrival::Meets(1));
    }

    #[test]
    fn patience_ends_at_its_deadline_and_not_before() {
        let (now, mut room) = (Instant::now(), Pairing::new());
        room.arrive(now, id(1), LegSide::Agent, PATIENCE, 1);
        room.arrive(now, id(2), LegSide::Client, PATIENCE / 2, 2);
        assert_eq!(room.next_deadline(), Some(now + PATIENCE / 2));
        assert!(room.expire(now + PATIENCE / 2 - Duration::from_nanos(1)).is_none());
        let (pair, gone) = room.expire(now + PATIENCE).unwrap();
        assert_eq!((pair, gone.side, gone.leg), (id(2), LegSide::Client, 2));
        assert_eq!(room.expire(now + PATIENCE).unwrap().0, id(1));
        assert!(room.expire(now + PATIENCE).is_none());
        assert_eq!(room.next_deadline(), None);
    }

    #[test]
    fn endless_patience_does_not_overflow() {
        let (now, mut room) = (Instant::now(), Pairing::new());
        assert_eq!(room.arrive(now, id(1), LegSide::Agent, Duration::MAX, 1), Arrival::Waits);
    }

    proptest! {
        #[test]
        fn deadlines_and_legs_never_part(ops in proptest::collection::vec((0u8..4, 0u8..6, any::<bool>(), 0u64..20), 0..200)) {
            let (mut now, mut room) = (Instant::now(), Pairing::new());
            for (op, n, client, secs) in ops {
                let side = if client { LegSide::Client } else { LegSide::Agent };
                match op {
                    0 | 1 => { room.arrive(now, id(n), side, Duration::from_secs(secs), n); }
                    2 => { room.leave(id(n)); }
                    _ => {
                        now += Duration::from_secs(secs);
                        while let Some((_, gone)) = room.expire(now) {
                            prop_assert!(gone.deadline <= now);
                        }
                    }
                }
                prop_assert_eq!(room.waiting.len(), room.deadlines.len());
            }
        }
    }
}
