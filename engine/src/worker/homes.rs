//! Which worker is home to a pair: where its first leg waits, and later where the pair is relayed.
//!
//! Legs arrive at any worker and are sent home, so one worker at a time decides about a pair, and its events are in order.
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::PairId;

/// The homes of all pairs, those included of which only one leg is here. An entry lives as long as a waiting leg or a pair,
/// and shares their limits.
#[derive(Debug)]
pub(crate) struct Homes {
    /// None if there is one worker: then it is home to all.
    shards: Vec<Mutex<HashMap<PairId, u16>>>,
}

impl Homes {
    pub(crate) fn new(workers: usize) -> Self {
        let shards = if workers > 1 { SHARDS } else { 0 };
        Self { shards: (0..shards).map(|_| Mutex::default()).collect() }
    }

    /// The home of `pair`, which becomes `worker` if there is none yet.
    pub(crate) fn claim(&self, pair: PairId, worker: usize) -> usize {
        let Some(mut shard) = self.shard(pair) else { return worker };
        usize::from(*shard.entry(pair).or_insert(number(worker)))
    }

    /// The home of `pair`, if it has one.
    pub(crate) fn of(&self, pair: PairId) -> Option<usize> {
        let Some(shard) = self.shard(pair) else { return Some(0) };
        shard.get(&pair).copied().map(usize::from)
    }

    /// The home of `pair` becomes `worker` if `send` succeeds. Whoever learns the new home comes after what `send` sent.
    pub(crate) fn relocate<E>(
        &self,
        pair: PairId,
        worker: usize,
        send: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let shard = self.shard(pair);
        send()?;
        if let Some(mut shard) = shard {
            shard.insert(pair, number(worker));
        }
        Ok(())
    }

    /// The last leg of `pair` is gone, and its owner has been told.
    pub(crate) fn release(&self, pair: PairId) {
        if let Some(mut shard) = self.shard(pair) {
            shard.remove(&pair);
        }
    }

    /// Homes there are.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        let count = |shard: &Mutex<HashMap<_, _>>| shard.lock().unwrap().len();
        self.shards.iter().map(count).sum()
    }

    fn shard(&self, pair: PairId) -> Option<MutexGuard<'_, HashMap<PairId, u16>>> {
        // Ids are random, so any byte spreads them.
        let shard = self.shards.get(usize::from(pair.0[0]) % SHARDS)?;
        Some(shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Locks are held for about 50 ns, twice per session: at 100,000 sessions a second they would collide once in thousands.
const SHARDS: usize = 16;

/// More workers than this are refused by the kernel long before (`threads-max`).
fn number(worker: usize) -> u16 {
    u16::try_from(worker).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_claim_makes_the_home_and_it_ends_with_its_release() {
        let (homes, pair) = (Homes::new(3), PairId([7; 16]));
        assert_eq!(homes.of(pair), None);
        assert_eq!((homes.claim(pair, 2), homes.claim(pair, 1), homes.of(pair)), (2, 2, Some(2)));
        homes.release(pair);
        assert_eq!((homes.of(pair), homes.claim(pair, 1)), (None, 1));
    }

    #[test]
    fn a_pair_moves_only_if_its_legs_did() {
        let (homes, pair) = (Homes::new(2), PairId([7; 16]));
        homes.claim(pair, 0);
        assert_eq!(homes.relocate(pair, 1, || Err(())), Err(()));
        assert_eq!(homes.of(pair), Some(0));
        assert_eq!(homes.relocate(pair, 1, || Ok::<_, ()>(())), Ok(()));
        assert_eq!(homes.of(pair), Some(1));
    }

    #[test]
    fn one_worker_is_home_to_all() {
        let (homes, pair) = (Homes::new(1), PairId([7; 16]));
        assert_eq!((homes.of(pair), homes.claim(pair, 0)), (Some(0), 0));
    }
}
