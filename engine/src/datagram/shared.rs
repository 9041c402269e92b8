//! What the workers of one service share: how many allocations there are, whose, and on which ports.
//!
//! Pure but for its lock, which is taken when allocations come and go, never for data.
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counts of all workers' allocations.
pub(crate) struct Shared {
    quota: Mutex<Quota>,
    /// One bit for each port that an allocation has.
    ports: Box<[AtomicU64]>,
    allocations_max: usize,
    per_user: usize,
}

#[derive(Default)]
struct Quota {
    total: usize,
    users: HashMap<String, usize>,
}

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// The user's.
    User,
    /// The service's.
    Total,
}

impl Shared {
    pub(crate) fn new(allocations_max: usize, per_user: usize) -> Self {
        let ports = (0..1 << 16 >> 6).map(|_| AtomicU64::new(0)).collect();
        Self { quota: Mutex::default(), ports, allocations_max, per_user }
    }

    /// Takes a place for `user`.
    pub(crate) fn enter(&self, user: &str) -> Result<(), Over> {
        let mut quota = self.quota();
        let count = quota.users.get(user).copied().unwrap_or(0);
        if count >= self.per_user {
            return Err(Over::User);
        }
        if quota.total >= self.allocations_max {
            return Err(Over::Total);
        }
        quota.total += 1;
        quota.users.insert(user.to_owned(), count + 1);
        Ok(())
    }

    /// Gives a place of `user` back.
    pub(crate) fn leave(&self, user: &str) {
        let mut quota = self.quota();
        if let Some(count) = quota.users.get_mut(user) {
            *count -= 1;
            if *count == 0 {
                quota.users.remove(user);
            }
            quota.total -= 1;
        }
    }

    /// Marks a port as an allocation's, or not.
    pub(crate) fn set_relayed(&self, port: u16, relayed: bool) {
        let bit = 1 << (port & 63);
        let word = &self.ports[usize::from(port >> 6)];
        if relayed {
            word.fetch_or(bit, Relaxed)
        } else {
            word.fetch_and(!bit, Relaxed)
        };
    }

    /// An allocation has this port.
    pub(crate) fn is_relayed(&self, port: u16) -> bool {
        self.ports[usize::from(port >> 6)].load(Relaxed) >> (port & 63) & 1 == 1
    }

    fn quota(&self) -> MutexGuard<'_, Quota> {
        self.quota.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_places_and_all_places_are_limited_and_come_back() {
        let shared = Shared::new(3, 2);
        assert_eq!((shared.enter("a"), shared.enter("a")), (Ok(()), Ok(())));
        assert_eq!(shared.enter("a"), Err(Over::User));
        assert_eq!((shared.enter("b"), shared.enter("b")), (Ok(()), Err(Over::Total)));
        shared.leave("a");
        shared.leave("nobody");
        assert_eq!((shared.enter("b"), shared.enter("c")), (Ok(()), Err(Over::Total)));
        for user in ["a", "b", "b"] {
            shared.leave(user);
        }
        assert!(shared.quota().users.is_empty() && shared.quota().total == 0);
    }

    #[test]
    fn ports_are_known_while_they_are_relayed() {
        let shared = Shared::new(1, 1);
        for port in [0, 63, 64, 65_535] {
            shared.set_relayed(port, true);
            assert!(shared.is_relayed(port) && !shared.is_relayed(port ^ 1));
            shared.set_relayed(port, false);
            assert!(!shared.is_relayed(port));
        }
    }
}
