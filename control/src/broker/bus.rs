//! What parts of the broker tell each other: the last events, and a wake-up for those who wait for more. Pure but for the
//! lock and the wake-up.
//!
//! Like the store, this is a seam: who tells (`publish`) and who listens (`after`, `newer`) know nothing of each other, and
//! exchange nothing but numbered, serialisable events. An engine that carries them between processes replaces this file.
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::api::{EventPage, EventView};
use crate::broker::clock;

/// Events kept, about 300 bytes each: the last minutes of a busy broker, days of a quiet one.
const EVENTS_MAX: usize = 4096;
/// Ids of one start begin at its Unix time in milliseconds times this, so that they grow over restarts, unless more
/// events than this happen per millisecond; and stay exact in JSON readers that only have doubles (2^53) for 280 years.
const IDS_PER_MS: u64 = 1000;

/// Who listens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Audience<'a> {
    /// Everything.
    Admin,
    /// What concerns this user.
    User(&'a str),
}

impl Audience<'_> {
    fn may_see(self, event: &EventView) -> bool {
        match self {
            Self::Admin => true,
            Self::User(name) => event.user.as_deref() == Some(name),
        }
    }
}

/// The broker's events.
#[derive(Debug)]
pub(crate) struct Bus {
    ring: Mutex<Ring>,
    /// The newest event's id.
    newest: watch::Sender<u64>,
}

#[derive(Debug)]
struct Ring {
    /// Ids without gaps.
    events: VecDeque<EventView>,
    next: u64,
}

impl Default for Bus {
    fn default() -> Self {
        Self::starting_at(clock::unix_ms().saturating_mul(IDS_PER_MS))
    }
}

impl Bus {
    fn starting_at(next: u64) -> Self {
        let ring = Mutex::new(Ring { events: VecDeque::new(), next });
        Self { ring, newest: watch::Sender::new(next.saturating_sub(1)) }
    }

    /// Tells everyone; id and time are filled in here.
    pub(crate) fn publish(&self, event: EventView) {
        let id = {
            let mut ring = self.ring();
            let id = ring.next;
            ring.next += 1;
            if ring.events.len() == EVENTS_MAX {
                ring.events.pop_front();
            }
            ring.events.push_back(EventView { id, at_ms: clock::unix_ms(), ..event });
            id
        };
        self.newest.send_replace(id);
    }

    /// The first `limit` events after this id that `audience` may see. Zero is before all: nothing is missed then.
    pub(crate) fn after(&self, after: u64, audience: Audience<'_>, limit: usize) -> EventPage {
        let ring = self.ring();
        let newest = ring.next - 1;
        let oldest = ring.events.front().map_or(ring.next, |event| event.id);
        let from = after.saturating_add(1).saturating_sub(oldest);
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(ring.events.len());
        let seen = ring.events.range(from..).filter(|event| audience.may_see(event));
        let events: Vec<EventView> = seen.take(limit).cloned().collect();
        let next = match events.last() {
            Some(last) if events.len() == limit => last.id,
            _ => newest,
        };
        EventPage { events, lost: after != 0 && after.saturating_add(1) < oldest, next }
    }

    /// The newest event's id, or the last before the first.
    pub(crate) fn newest(&self) -> u64 {
        *self.newest.borrow()
    }

    /// Waits until there is an event after this one. Safe to drop.
    pub(crate) async fn newer(&self, than: u64) {
        let mut newest = self.newest.subscribe();
        // Fails only without a sender, and that is ours.
        drop(newest.wait_for(|newest| *newest > than).await);
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::EventKind;
    use crate::broker::events::about;

    fn of(user: &str) -> EventView {
        EventView { user: Some(user.into()), ..about(EventKind::ClientOnline) }
    }

    fn ids(page: &EventPage) -> Vec<u64> {
        page.events.iter().map(|event| event.id).collect()
    }

    #[test]
    fn users_see_what_concerns_them_and_admins_everything() {
        let bus = Bus::starting_at(100);
        for event in [of("ada"), about(EventKind::BrokerStarted), of("eve"), of("ada")] {
            bus.publish(event);
        }
        assert_eq!(ids(&bus.after(0, Audience::Admin, 9)), [100, 101, 102, 103]);
        assert_eq!(ids(&bus.after(0, Audience::User("ada"), 9)), [100, 103]);
        assert!(bus.after(0, Audience::User(""), 9).events.is_empty());
        let page = bus.after(100, Audience::User("ada"), 9);
        assert_eq!((ids(&page), page.next, page.lost), (vec![103], 103, false));
    }

    #[test]
    fn pages_follow_each_other_without_a_gap() {
        let bus = Bus::starting_at(100);
        for number in 0..10 {
            bus.publish(of(if number % 2 == 0 { "ada" } else { "eve" }));
        }
        let (mut after, mut seen) = (0, Vec::new());
        for _ in 0..4 {
            let page = bus.after(after, Audience::User("ada"), 2);
            seen.extend(ids(&page));
            after = page.next;
        }
        assert_eq!((seen, after), (vec![100, 102, 104, 106, 108], 109));
        assert!(bus.after(after, Audience::Admin, 2).events.is_empty());
        assert!(bus.after(u64::MAX, Audience::Admin, 2).events.is_empty());
    }

    #[test]
    fn a_reader_that_fell_behind_is_told_so_and_memory_stays_bounded() {
        let bus = Bus::starting_at(100);
        let count = EVENTS_MAX as u64 + 10;
        (0..count).for_each(|_| bus.publish(of("ada")));
        assert_eq!(bus.ring().events.len(), EVENTS_MAX);
        assert!(bus.after(108, Audience::Admin, 1).lost);
        assert!(!bus.after(109, Audience::Admin, 1).lost, "event 110 is the oldest");
        assert!(!bus.after(0, Audience::Admin, 1).lost, "who asks for all misses nothing");
        assert!(Bus::starting_at(9000).after(108, Audience::Admin, 1).lost, "a restart forgets");
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let bus = Bus::starting_at(100);
        assert_eq!(bus.newest(), 99);
        let ((), ()) = tokio::join!(bus.newer(99), async { bus.publish(of("ada")) });
        bus.newer(99).await;
        assert_eq!(bus.newest(), 100);
    }
}
