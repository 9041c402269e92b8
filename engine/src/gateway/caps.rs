//! Limits are cut to what the descriptor limit can carry, and places are taken against them.
//!
//! Hellos, waiting legs, pairs, farewells and the broker's HTTPS connections have a maximum each and share one: the sockets
//! that fit. What one kind leaves unused the others may have, so that a gateway full of pairs needs nothing in reserve but
//! a few places at the door.
//!
//! Counted: every connection left to the desk, from when a worker leaves it there; waiting legs; both legs of a pair, also
//! while they move to another worker; connections handed to the broker, until it closes them; and pipes, all that workers
//! may have. Not counted, and what the reserve is for: listeners, rings and eventfds, the broker's files and other sockets,
//! and a connection between two places, as are admitted legs on their way to the worker where their mate waits.
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Limits;

/// Raises the soft descriptor limit to the hard one and returns it.
pub(crate) fn raise_descriptor_limit() -> u64 {
    let now = getrlimit(Resource::Nofile);
    let hard = now.maximum.unwrap_or(DESCRIPTORS_ENOUGH).min(DESCRIPTORS_ENOUGH);
    if now.current.is_some_and(|soft| soft < hard) {
        let raised = Rlimit { current: Some(hard), maximum: now.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the soft descriptor limit stays as it is");
        }
    }
    getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS_ENOUGH)
}

/// Pure: `limits`, cut so that everything open at once fits into `descriptors`.
pub(crate) fn fit(limits: Limits, descriptors: u64, pipes: usize) -> Limits {
    let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
    let reserve = (descriptors / RESERVE_PART).max(RESERVE).min(descriptors / 2);
    let ours = (descriptors - reserve).saturating_sub(2 * pipes).max(descriptors / 8).max(4);
    let sockets_max = limits.sockets_max.min(ours);
    Limits {
        sockets_max,
        hellos_max: limits.hellos_max.min(sockets_max / 8).max(1),
        waiting_legs_max: limits.waiting_legs_max.min(sockets_max / 4).max(1),
        pairs_max: limits.pairs_max.min(sockets_max / 2),
        ..limits
    }
}

/// The places taken, over all threads. A refused place is not taken.
#[derive(Debug, Default)]
pub(crate) struct Places {
    sockets: AtomicUsize,
    hellos: AtomicUsize,
    waiting: AtomicUsize,
    pairs: AtomicUsize,
    farewells: AtomicUsize,
    foreign: AtomicUsize,
}

impl Places {
    /// A connection whose hello is to be read. It does not get the last places: whoever is past the door must not be
    /// turned away for want of one.
    pub(crate) fn enter_hello(&self, limits: &Limits) -> bool {
        self.enter(&self.hellos, limits.hellos_max, 1, door_max(limits))
    }

    pub(crate) fn leave_hello(&self) {
        self.leave(&self.hellos, 1);
    }

    /// A leg that waits for its mate.
    pub(crate) fn enter_waiting(&self, limits: &Limits) -> bool {
        self.enter(&self.waiting, limits.waiting_legs_max, 1, limits.sockets_max)
    }

    pub(crate) fn leave_waiting(&self) {
        self.leave(&self.waiting, 1);
    }

    /// Two legs that have met; neither is counted otherwise any more.
    pub(crate) fn enter_pair(&self, limits: &Limits) -> bool {
        self.enter(&self.pairs, limits.pairs_max, 2, limits.sockets_max)
    }

    pub(crate) fn leave_pair(&self) {
        self.leave(&self.pairs, 2);
    }

    /// A refused connection that is given time to read why.
    pub(crate) fn enter_farewell(&self, limits: &Limits) -> bool {
        let max = FAREWELLS_MAX.min(limits.sockets_max / 8);
        self.enter(&self.farewells, max, 1, door_max(limits))
    }

    pub(crate) fn leave_farewell(&self) {
        self.leave(&self.farewells, 1);
    }

    /// A connection for the broker's HTTPS. It may have a part of the reserve, so that agents and people get through to a
    /// broker whose gateway is full.
    pub(crate) fn enter_foreign(&self, limits: &Limits) -> bool {
        let max = limits.sockets_max + limits.sockets_max / FOREIGN_MARGIN;
        self.enter(&self.foreign, max, 1, max)
    }

    pub(crate) fn leave_foreign(&self) {
        self.leave(&self.foreign, 1);
    }

    /// Hellos, waiting legs and pairs now.
    pub(crate) fn taken(&self) -> [usize; 3] {
        [&self.hellos, &self.waiting, &self.pairs].map(|gauge| gauge.load(Relaxed))
    }

    fn enter(&self, gauge: &AtomicUsize, max: usize, sockets: usize, sockets_max: usize) -> bool {
        if !add(gauge, 1, max) {
            return false;
        }
        let fits = add(&self.sockets, sockets, sockets_max);
        if !fits {
            gauge.fetch_sub(1, Relaxed);
        }
        fits
    }

    fn leave(&self, gauge: &AtomicUsize, sockets: usize) {
        gauge.fetch_sub(1, Relaxed);
        self.sockets.fetch_sub(sockets, Relaxed);
    }
}

fn door_max(limits: &Limits) -> usize {
    limits.sockets_max - limits.sockets_max / DOOR_MARGIN
}

fn add(gauge: &AtomicUsize, count: usize, max: usize) -> bool {
    let added = |held: usize| held.checked_add(count).filter(|&sum| sum <= max);
    gauge.fetch_update(Relaxed, Relaxed, added).is_ok()
}

/// For everything that is not counted; half of the descriptors if there are no more than twice as many.
const RESERVE: usize = 512;
/// The reserve is this part of the descriptors if that is more: what is on its way grows with what is here.
const RESERVE_PART: usize = 20;
/// The broker's connections may exceed the places by this part of them: about half of the reserve.
const FOREIGN_MARGIN: usize = 40;
/// Beyond that a refused peer is closed at once and may miss its alert; below 8,192 places an eighth of them.
const FAREWELLS_MAX: usize = 1024;
/// This part of the places is closed to hellos: 300 of 20,000, more legs than are between hello and pair at any moment.
const DOOR_MARGIN: usize = 64;
/// The kernel's own ceiling by default (`fs.nr_open`), should the limit be infinite.
const DESCRIPTORS_ENOUGH: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn twenty_thousand_descriptors_carry_nine_thousand_pairs_and_still_greet() {
        let limits = fit(Limits::default(), 20_000, 128);
        let places = Places::default();
        assert!((0..9000).all(|_| places.enter_pair(&limits)), "{limits:?}");
        assert!((0..400).all(|_| places.enter_hello(&limits)), "{limits:?}");
        assert!((0..300).all(|_| places.enter_waiting(&limits)), "{limits:?}");
        assert!((0..400).all(|_| places.enter_foreign(&limits)), "the broker can be reached");
    }

    #[test]
    fn the_brokers_connections_leave_fewer_places_for_pairs() {
        let (limits, places) = (fit(Limits::default(), 20_000, 128), Places::default());
        assert!((0..8192).all(|_| places.enter_foreign(&limits)));
        while places.enter_pair(&limits) {}
        let [_, _, pairs] = places.taken();
        assert!((5200..5400).contains(&pairs), "{pairs}");
        assert!(!places.enter_farewell(&limits), "nobody lingers in a full house");
        places.leave_foreign();
        places.leave_foreign();
        assert!(places.enter_pair(&limits));
    }

    #[test]
    fn enough_descriptors_change_nothing() {
        let (fitted, wanted) = (fit(Limits::default(), 1 << 20, 128), Limits::default());
        assert_eq!(
            (fitted.pairs_max, fitted.waiting_legs_max, fitted.hellos_max, fitted.sockets_max),
            (wanted.pairs_max, wanted.waiting_legs_max, wanted.hellos_max, wanted.sockets_max)
        );
    }

    #[test]
    fn a_full_house_is_refused_at_the_door_and_not_behind_it() {
        let limits = fit(Limits::default(), 4096, 128);
        let places = Places::default();
        while places.enter_hello(&limits) {}
        while places.enter_pair(&limits) {}
        places.leave_pair();
        assert!(!places.enter_hello(&limits), "the last places are not for hellos");
        assert!(places.enter_waiting(&limits) && places.enter_waiting(&limits));
        assert!(!places.enter_waiting(&limits));
        places.leave_waiting();
        places.leave_waiting();
        assert!(places.enter_pair(&limits), "what waiting legs give back is for pairs");
    }

    #[test]
    fn each_kind_has_its_own_maximum() {
        let limits =
            Limits { hellos_max: 1, waiting_legs_max: 1, pairs_max: 1, ..Limits::default() };
        let places = Places::default();
        for enter in [Places::enter_hello, Places::enter_waiting, Places::enter_pair] {
            assert!(enter(&places, &limits) && !enter(&places, &limits));
        }
        assert_eq!(places.taken(), [1, 1, 1]);
    }

    proptest! {
        #[test]
        fn what_is_open_never_exceeds_the_descriptors(
            descriptors in 64u64..5000,
            steps in proptest::collection::vec((0u8..5, any::<bool>()), 0..3000),
        ) {
            let (limits, places) = (fit(Limits::default(), descriptors, 16), Places::default());
            let enters = [
                Places::enter_hello,
                Places::enter_waiting,
                Places::enter_pair,
                Places::enter_farewell,
                Places::enter_foreign,
            ];
            let leaves = [
                Places::leave_hello,
                Places::leave_waiting,
                Places::leave_pair,
                Places::leave_farewell,
                Places::leave_foreign,
            ];
            let mut inside = [0u64; 5];
            for (kind, enter) in steps {
                let kind = usize::from(kind);
                if enter {
                    inside[kind] += u64::from(enters[kind](&places, &limits));
                } else if inside[kind] > 0 {
                    leaves[kind](&places);
                    inside[kind] -= 1;
                }
                let sockets = inside.iter().sum::<u64>() + inside[2];
                prop_assert!(sockets + 32 <= descriptors);
            }
        }
    }
}
