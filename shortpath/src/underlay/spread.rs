//! What is done for packets while a session is not heard, in pure code.
//!
//! *Spread*: what a slot sends leaves by every route that may carry, not only by the one in use, and what has left since the
//! alarm leaves again by each route that turns up meanwhile. quinn drops what comes twice. So an address that changes costs
//! the time to notice and one way through what still works, and no probing before.
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::paths::SlotId;
use crate::path::{LocalId, Route};

/// How long packets are spread after the last alarm: the other end notices in the same round trips, and checks take two.
const SPREAD: Duration = Duration::from_millis(600);
/// Bytes spread per alarm and second, copies not counted: what interactive channels send. Bulk waits.
const SPREAD_BYTES: usize = 32 * 1024;
const REFILL: Duration = Duration::from_secs(1);
/// The same for all slots together: where many are not heard at once, more packets would not help.
const ALL_BYTES: usize = 8 * SPREAD_BYTES;
/// Routes besides the one in use.
const ROUTES_MAX: usize = 3;
/// Packets that leave again by a route that turns up, the last ones, and the most bytes each may have.
const SENT_MAX: usize = 64;
const SENT_BYTES: usize = 4096;

/// A packet, or several of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) contents: Bytes,
    pub(super) segment: Option<usize>,
}

#[derive(Debug, Default)]
struct Spread {
    /// The likeliest first.
    routes: Vec<Route>,
    alarm: Option<Alarm>,
}

#[derive(Debug)]
struct Alarm {
    until: Instant,
    filled: Instant,
    room: usize,
    sent: VecDeque<Batch>,
    /// Routes by which those were sent.
    tried: Vec<Route>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Spreads {
    slots: HashMap<SlotId, Spread>,
    /// When the last alarm ends.
    until: Option<Instant>,
    filled: Option<Instant>,
    room: usize,
}

impl Spreads {
    /// The routes that may carry now, the likeliest first. Returns what is to leave by them, as they are new in an alarm.
    pub(super) fn stand_by(
        &mut self,
        now: Instant,
        slot: SlotId,
        mut routes: Vec<Route>,
    ) -> Vec<(Route, Batch)> {
        routes.truncate(ROUTES_MAX + 1);
        let spread = self.slots.entry(slot).or_default();
        spread.routes = routes;
        let Some(alarm) = spread.alarm.as_mut().filter(|alarm| now < alarm.until) else {
            return Vec::new();
        };
        let mut again = Vec::new();
        for route in &spread.routes {
            if !alarm.tried.contains(route) {
                alarm.tried.push(*route);
                again.extend(alarm.sent.iter().map(|batch| (*route, batch.clone())));
            }
        }
        again
    }

    /// The session is not heard.
    pub(super) fn alarm(&mut self, now: Instant, slot: SlotId) {
        let spread = self.slots.entry(slot).or_default();
        let until = now + SPREAD;
        self.until = Some(until);
        match &mut spread.alarm {
            Some(alarm) if now < alarm.until => {
                alarm.until = until;
                if now.saturating_duration_since(alarm.filled) >= REFILL {
                    (alarm.filled, alarm.room) = (now, SPREAD_BYTES);
                }
            }
            alarm => {
                let (sent, tried) = (VecDeque::new(), spread.routes.clone());
                *alarm = Some(Alarm { until, filled: now, room: SPREAD_BYTES, sent, tried });
            }
        }
    }

    /// What left by routes of this base came to nothing, and may arrive now: [`Self::stand_by`] brings it again.
    pub(super) fn renewed(&mut self, slot: SlotId, local: LocalId) {
        if let Some(alarm) = self.slots.get_mut(&slot).and_then(|spread| spread.alarm.as_mut()) {
            alarm.tried.retain(|route| route.local != local);
        }
    }

    /// Whether any slot may be in an alarm.
    pub(super) fn is_alarmed(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// What leaves by `out` now: by which other routes it leaves, too.
    pub(super) fn sends(
        &mut self,
        now: Instant,
        slot: SlotId,
        out: Option<Route>,
        contents: &[u8],
        segment: Option<usize>,
    ) -> Vec<Route> {
        let Some(spread) = self.slots.get_mut(&slot) else { return Vec::new() };
        spread.alarm.take_if(|alarm| alarm.until <= now);
        if self.filled.is_none_or(|at| now.saturating_duration_since(at) >= REFILL) {
            (self.filled, self.room) = (Some(now), ALL_BYTES);
        }
        let size = contents.len();
        let fits = |alarm: &&mut Alarm| size <= alarm.room.min(self.room);
        let Some(alarm) = spread.alarm.as_mut().filter(fits) else { return Vec::new() };
        alarm.room -= size;
        self.room -= size;
        if contents.len() <= SENT_BYTES {
            if alarm.sent.len() == SENT_MAX {
                alarm.sent.pop_front();
            }
            alarm.sent.push_back(Batch { contents: Bytes::copy_from_slice(contents), segment });
        }
        if let Some(out) = out.filter(|out| !alarm.tried.contains(out)) {
            alarm.tried.push(out);
        }
        let others = spread.routes.iter().filter(|route| Some(**route) != out);
        others.take(ROUTES_MAX).copied().collect()
    }

    /// The slot is gone.
    pub(super) fn close(&mut self, slot: SlotId) {
        self.slots.remove(&slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::underlay::paths::Paths;

    fn route(port: u16) -> Route {
        Route { local: LocalId(0), remote: ([192, 0, 2, 1], port).into() }
    }

    fn slot() -> SlotId {
        Paths::default().open(None).unwrap()
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn packets_leave_by_other_routes_only_in_an_alarm() {
        let (mut spreads, slot, now) = (Spreads::default(), slot(), Instant::now());
        spreads.stand_by(now, slot, vec![route(1), route(2)]);
        assert!(spreads.sends(now, slot, Some(route(1)), b"a", None).is_empty());
        spreads.alarm(now, slot);
        assert_eq!(spreads.sends(now, slot, Some(route(1)), b"b", None), [route(2)]);
        assert!(spreads.is_alarmed(now));
        let later = now + SPREAD;
        assert!(spreads.sends(later, slot, Some(route(1)), b"c", None).is_empty());
        assert!(!spreads.is_alarmed(later));
    }

    #[test]
    fn a_route_that_turns_up_brings_what_has_left_since_the_alarm_once() {
        let (mut spreads, slot, now) = (Spreads::default(), slot(), Instant::now());
        spreads.stand_by(now, slot, vec![route(1)]);
        spreads.sends(now, slot, Some(route(1)), b"before", None);
        spreads.alarm(now, slot);
        spreads.sends(now, slot, Some(route(1)), b"after", None);
        let again = spreads.stand_by(now + ms(50), slot, vec![route(2), route(1)]);
        let [(to, batch)] = &again[..] else { panic!("{again:?}") };
        assert_eq!((*to, &batch.contents[..]), (route(2), &b"after"[..]));
        assert!(spreads.stand_by(now + ms(51), slot, vec![route(2), route(1)]).is_empty());
        spreads.renewed(slot, LocalId(0));
        assert_eq!(spreads.stand_by(now + ms(52), slot, vec![route(2)]).len(), 1);
    }

    #[test]
    fn bulk_is_not_spread_and_alarms_in_a_row_have_one_budget_a_second() {
        let (mut spreads, slot, now) = (Spreads::default(), slot(), Instant::now());
        spreads.stand_by(now, slot, vec![route(1), route(2)]);
        let mut spread = 0;
        for step in 0..1000 {
            let at = now + ms(step);
            spreads.alarm(at, slot);
            spread += spreads.sends(at, slot, Some(route(1)), &[0; 1200], None).len() * 1200;
        }
        assert!((30_000..=SPREAD_BYTES).contains(&spread), "{spread}");
    }
    #[test]
    fn all_slots_together_spread_no_more_than_a_few_may() {
        let (mut paths, mut spreads, now) = (Paths::default(), Spreads::default(), Instant::now());
        let mut spread = 0;
        for _ in 0..100 {
            let slot = paths.open(None).unwrap();
            spreads.stand_by(now, slot, vec![route(1), route(2)]);
            spreads.alarm(now, slot);
            for _ in 0..20 {
                spread += spreads.sends(now, slot, Some(route(1)), &[0; 1200], None).len() * 1200;
            }
        }
        assert!((ALL_BYTES - 1200..=ALL_BYTES).contains(&spread), "{spread}");
    }
}
