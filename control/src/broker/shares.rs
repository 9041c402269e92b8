//! How many of something each user, token or source holds at once, so that none takes everybody's room.
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts what each key holds. A key that holds nothing takes no memory.
#[derive(Debug)]
pub(crate) struct Shares<K: Eq + Hash> {
    max: usize,
    held: Mutex<HashMap<K, usize>>,
}

/// One of what a key may hold, given back when dropped.
#[derive(Debug)]
pub(crate) struct Share<K: Eq + Hash> {
    shares: Arc<Shares<K>>,
    key: K,
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// At most `max` for each key.
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, held: Mutex::default() })
    }

    /// One more for `key`; `None` if it holds as many as it may.
    pub(crate) fn take(self: &Arc<Self>, key: K) -> Option<Share<K>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.get(&key).copied().unwrap_or(0);
        if count >= self.max {
            return None;
        }
        held.insert(key.clone(), count + 1);
        drop(held);
        Some(Share { shares: self.clone(), key })
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut held = self.shares.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_more_than_a_share_or_anothers() {
        let shares = Shares::new(2);
        let first = shares.take("ada");
        let second = shares.take("ada");
        assert!(first.is_some() && second.is_some());
        assert!(shares.take("ada").is_none());
        assert!(shares.take("bob").is_some());
        drop(first);
        assert!(shares.take("ada").is_some(), "what is given back is free again");
    }

    #[test]
    fn who_holds_nothing_is_forgotten() {
        let shares = Shares::new(1);
        drop((0..100).map(|key| shares.take(key)).collect::<Vec<_>>());
        assert!(shares.held.lock().unwrap().is_empty());
    }
}
