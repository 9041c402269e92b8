//! What the workers of one service share: how many allocations there are, whose, at which addresses, and who has no right
//! to any more.
//!
//! Pure but for its lock, which is taken when allocations come and go, never for data.
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Counts of all workers' allocations.
pub(crate) struct Shared {
    quota: Mutex<Quota>,
    /// How many users were revoked so far: tells workers without a lock that there is something to do.
    revocations: AtomicU64,
    ports: [OnceLock<Ports>; ADDRESSES_MAX],
    limits: Limits,
}

/// Allocations at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) total: usize,
    /// Of one account.
    pub(crate) account: usize,
    /// Of one name.
    pub(crate) name: usize,
}

/// Who has an allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// [`super::RelayUser::name`].
    pub(crate) name: String,
    /// [`super::RelayUser::account`].
    pub(crate) account: String,
}

#[derive(Default)]
struct Quota {
    total: usize,
    names: HashMap<String, usize>,
    accounts: HashMap<String, usize>,
    /// Users that get nothing any more, the oldest first, and the same to look up: hashes of their names under a key that
    /// nobody knows.
    revoked: VecDeque<u64>,
    revoked_set: HashSet<u64>,
    hasher: RandomState,
}

/// The ports of one relay address that allocations have, a bit for each.
struct Ports {
    /// What this host knows the address by, and what peers do.
    bind: IpAddr,
    public: IpAddr,
    bits: Box<[AtomicU64]>,
}

/// Revoked users remembered, some 30 bytes each: both ends of nine sessions that end in each second of an hour. Of whoever
/// is forgotten, an allocation lives until nobody refreshes it, and new ones count against his account.
const REVOKED_MAX: usize = 65_536;
/// Relay addresses whose allocations may send to each other: there is one of each family, or what clients reach on a host
/// with several. To allocations of any further address nobody on this host sends.
const ADDRESSES_MAX: usize = 8;

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// The name's or the account's.
    User,
    /// The service's.
    Total,
    /// The user has been revoked.
    Revoked,
}

impl Shared {
    pub(crate) fn new(limits: Limits) -> Self {
        let (revocations, ports) = (AtomicU64::new(0), [const { OnceLock::new() }; ADDRESSES_MAX]);
        Self { quota: Mutex::default(), revocations, ports, limits }
    }

    /// Takes a place for `owner`.
    pub(crate) fn enter(&self, owner: &Owner) -> Result<(), Over> {
        let mut quota = self.quota();
        if quota.is_revoked(&owner.name) {
            return Err(Over::Revoked);
        }
        let count = |of: &HashMap<String, usize>, who: &str| of.get(who).copied().unwrap_or(0);
        let named = count(&quota.names, &owner.name);
        let counted = count(&quota.accounts, &owner.account);
        if named >= self.limits.name || counted >= self.limits.account {
            return Err(Over::User);
        }
        if quota.total >= self.limits.total {
            return Err(Over::Total);
        }
        quota.total += 1;
        quota.names.insert(owner.name.clone(), named + 1);
        quota.accounts.insert(owner.account.clone(), counted + 1);
        Ok(())
    }

    /// Gives a place of `owner` back.
    pub(crate) fn leave(&self, owner: &Owner) {
        let mut quota = self.quota();
        if take_one(&mut quota.names, &owner.name) {
            take_one(&mut quota.accounts, &owner.account);
            quota.total -= 1;
        }
    }

    /// Takes the right of a user (by name) to allocations: no new ones from now on; the workers free those that exist.
    pub(crate) fn revoke(&self, name: &str) {
        let mut quota = self.quota();
        let hash = quota.hasher.hash_one(name);
        if !quota.revoked_set.insert(hash) {
            return;
        }
        quota.revoked.push_back(hash);
        if quota.revoked.len() > REVOKED_MAX
            && let Some(oldest) = quota.revoked.pop_front()
        {
            quota.revoked_set.remove(&oldest);
        }
        if quota.names.contains_key(name) {
            self.revocations.fetch_add(1, Relaxed);
        }
    }

    /// Counts revocations of users with allocations: when it has grown, some are to be freed.
    pub(crate) fn revocations(&self) -> u64 {
        self.revocations.load(Relaxed)
    }

    /// Which of these users, by name, have been revoked.
    pub(crate) fn revoked<'a, T>(&self, users: impl Iterator<Item = (T, &'a str)>) -> Vec<T> {
        let quota = self.quota();
        users.filter(|(_, name)| quota.is_revoked(name)).map(|(what, _)| what).collect()
    }

    /// Marks a port of the address that is `bind` here and `public` to peers as an allocation's, or not.
    pub(crate) fn set_relayed(&self, bind: IpAddr, public: SocketAddr, relayed: bool) {
        let (port, public) = (public.port(), public.ip());
        // Places are taken in their order, so what place an address has comes before the first free one.
        let place = |ports: &&OnceLock<Ports>| {
            let ports = ports.get_or_init(|| Ports::new(bind, public));
            (ports.bind, ports.public) == (bind, public)
        };
        let Some(ports) = self.ports.iter().find(place).and_then(OnceLock::get) else { return };
        let (word, bit) = (&ports.bits[usize::from(port >> 6)], 1 << (port & 63));
        if relayed {
            word.fetch_or(bit, Relaxed)
        } else {
            word.fetch_and(!bit, Relaxed)
        };
    }

    /// An allocation has this address.
    pub(crate) fn is_relayed(&self, address: SocketAddr) -> bool {
        let (ip, port) = (address.ip(), address.port());
        let mut known = self.ports.iter().map_while(OnceLock::get);
        known.any(|ports| {
            (ports.bind == ip || ports.public == ip)
                && ports.bits[usize::from(port >> 6)].load(Relaxed) >> (port & 63) & 1 == 1
        })
    }

    fn quota(&self) -> MutexGuard<'_, Quota> {
        self.quota.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Quota {
    fn is_revoked(&self, name: &str) -> bool {
        self.revoked_set.contains(&self.hasher.hash_one(name))
    }
}

impl Ports {
    fn new(bind: IpAddr, public: IpAddr) -> Self {
        Self { bind, public, bits: (0..1 << 16 >> 6).map(|_| AtomicU64::new(0)).collect() }
    }
}

/// There was one to take.
fn take_one(counts: &mut HashMap<String, usize>, who: &str) -> bool {
    let Some(count) = counts.get_mut(who) else { return false };
    *count -= 1;
    if *count == 0 {
        counts.remove(who);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { total: 5, account: 4, name: 2 };

    fn owner(name: &str, account: &str) -> Owner {
        Owner { name: name.into(), account: account.into() }
    }

    #[test]
    fn places_of_a_name_of_an_account_and_all_places_are_limited_and_come_back() {
        let shared = Shared::new(LIMITS);
        let enter = |name, account| shared.enter(&owner(name, account));
        assert_eq!(
            [enter("a", "x"), enter("a", "x"), enter("a", "x")],
            [Ok(()), Ok(()), Err(Over::User)]
        );
        assert_eq!(
            [enter("b", "x"), enter("c", "x"), enter("d", "x")],
            [Ok(()), Ok(()), Err(Over::User)]
        );
        assert_eq!((enter("e", "y"), enter("f", "y")), (Ok(()), Err(Over::Total)));
        shared.leave(&owner("a", "x"));
        shared.leave(&owner("nobody", "x"));
        assert_eq!((enter("d", "x"), enter("f", "y")), (Ok(()), Err(Over::Total)));
        for (name, account) in [("a", "x"), ("b", "x"), ("c", "x"), ("d", "x"), ("e", "y")] {
            shared.leave(&owner(name, account));
        }
        let quota = shared.quota();
        assert!(quota.names.is_empty() && quota.accounts.is_empty() && quota.total == 0);
    }

    #[test]
    fn a_revoked_user_gets_nothing_any_more_and_old_revocations_make_room() {
        let shared = Shared::new(LIMITS);
        shared.revoke("nobody");
        let enter = |name| shared.enter(&owner(name, name));
        assert_eq!((enter("nobody"), shared.revocations()), (Err(Over::Revoked), 0));
        enter("a").unwrap();
        shared.revoke("a");
        shared.revoke("a");
        assert_eq!((enter("a"), shared.revocations()), (Err(Over::Revoked), 1));
        let users = ["a", "b", "nobody"];
        assert_eq!(shared.revoked(users.into_iter().zip(users)), ["a", "nobody"]);
        (0..REVOKED_MAX).for_each(|number| shared.revoke(&number.to_string()));
        let quota = shared.quota();
        assert_eq!((quota.revoked.len(), quota.revoked_set.len()), (REVOKED_MAX, REVOKED_MAX));
        assert!(!quota.is_revoked("a"));
    }

    #[test]
    fn a_port_is_relayed_at_the_address_that_has_it_and_at_no_other() {
        let shared = Shared::new(LIMITS);
        let at = |ip: &str, port| SocketAddr::new(ip.parse().unwrap(), port);
        let [bind, public, v6, other] = ["10.0.0.1", "203.0.113.1", "2001:db8::1", "10.0.0.2"];
        for port in [0, 63, 64, 65_535] {
            let mark = |relayed| {
                shared.set_relayed(bind.parse().unwrap(), at(public, port), relayed);
            };
            mark(true);
            assert!(shared.is_relayed(at(bind, port)) && shared.is_relayed(at(public, port)));
            for elsewhere in [at(v6, port), at(other, port), at(public, port ^ 1)] {
                assert!(!shared.is_relayed(elsewhere), "{elsewhere}");
            }
            shared.set_relayed(v6.parse().unwrap(), at(v6, port), true);
            mark(false);
            assert!(shared.is_relayed(at(v6, port)) && !shared.is_relayed(at(public, port)));
        }
    }

    #[test]
    fn more_relay_addresses_than_places_are_no_peers() {
        let shared = Shared::new(LIMITS);
        let at = |last: u8| SocketAddr::from(([192, 0, 2, last], 50_000));
        (0..20).for_each(|last| shared.set_relayed(at(last).ip(), at(last), true));
        assert_eq!((0..20).filter(|last| shared.is_relayed(at(*last))).count(), ADDRESSES_MAX);
    }
}
