//! What the workers of one service share: how many allocations there are, whose, on which ports, and who has no right to
//! any more.
//!
//! Pure but for its lock, which is taken when allocations come and go, never for data.
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counts of all workers' allocations.
pub(crate) struct Shared {
    quota: Mutex<Quota>,
    /// How many users were revoked so far: tells workers without a lock that there is something to do.
    revocations: AtomicU64,
    /// One bit for each port that an allocation has.
    ports: Box<[AtomicU64]>,
    allocations_max: usize,
    per_user: usize,
}

#[derive(Default)]
struct Quota {
    total: usize,
    users: HashMap<String, usize>,
    /// Users that get nothing any more, the oldest first, and the same to look up.
    revoked: VecDeque<String>,
    revoked_set: HashSet<String>,
}

/// Revoked users remembered, some 100 bytes each. An Allocate that was under way when its user was revoked comes within
/// seconds; of whoever is forgotten, an allocation lives until nobody refreshes it.
const REVOKED_MAX: usize = 16_384;

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// The user's.
    User,
    /// The service's.
    Total,
    /// The user has been revoked.
    Revoked,
}

impl Shared {
    pub(crate) fn new(allocations_max: usize, per_user: usize) -> Self {
        let ports = (0..1 << 16 >> 6).map(|_| AtomicU64::new(0)).collect();
        let revocations = AtomicU64::new(0);
        Self { quota: Mutex::default(), revocations, ports, allocations_max, per_user }
    }

    /// Takes a place for `user`.
    pub(crate) fn enter(&self, user: &str) -> Result<(), Over> {
        let mut quota = self.quota();
        if quota.revoked_set.contains(user) {
            return Err(Over::Revoked);
        }
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

    /// Takes a user's right to allocations: no new ones from now on; the workers free those that exist.
    pub(crate) fn revoke(&self, user: &str) {
        let mut quota = self.quota();
        if !quota.revoked_set.insert(user.to_owned()) {
            return;
        }
        quota.revoked.push_back(user.to_owned());
        if quota.revoked.len() > REVOKED_MAX
            && let Some(oldest) = quota.revoked.pop_front()
        {
            quota.revoked_set.remove(&oldest);
        }
        if quota.users.contains_key(user) {
            self.revocations.fetch_add(1, Relaxed);
        }
    }

    /// Counts revocations of users with allocations: when it has grown, some are to be freed.
    pub(crate) fn revocations(&self) -> u64 {
        self.revocations.load(Relaxed)
    }

    /// Which of these users have been revoked.
    pub(crate) fn revoked<'a, T>(&self, users: impl Iterator<Item = (T, &'a str)>) -> Vec<T> {
        let quota = self.quota();
        users.filter(|(_, user)| quota.revoked_set.contains(*user)).map(|(what, _)| what).collect()
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
    fn a_revoked_user_gets_nothing_any_more_and_old_revocations_make_room() {
        let shared = Shared::new(10, 10);
        shared.revoke("nobody");
        assert_eq!((shared.enter("nobody"), shared.revocations()), (Err(Over::Revoked), 0));
        shared.enter("a").unwrap();
        shared.revoke("a");
        shared.revoke("a");
        assert_eq!((shared.enter("a"), shared.revocations()), (Err(Over::Revoked), 1));
        let users = ["a", "b", "nobody"];
        assert_eq!(shared.revoked(users.into_iter().zip(users)), ["a", "nobody"]);
        (0..REVOKED_MAX).for_each(|number| shared.revoke(&number.to_string()));
        let quota = shared.quota();
        assert_eq!((quota.revoked.len(), quota.revoked_set.len()), (REVOKED_MAX, REVOKED_MAX));
        assert!(!quota.revoked_set.contains("a"));
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
