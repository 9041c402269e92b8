//! What is done for packets while a session is not heard, in pure code.
//!
//! *Spread*: what a slot sends leaves by every route that may carry, not only by the one in use, and what has left since the
//! alarm leaves again by each route that turns up meanwhile. quinn drops what comes twice. So an address that changes costs
//! the time to notice and one way through what still works, and no probing before.
//!
//! As a route may carry before the peer has answered there, each is a stranger's for all we know: it gets so many bytes a
//! second, new ones and repeated ones together, however alarms follow each other.
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::paths::SlotId;
use crate::path::{LocalId, Route};

/// How long packets are spread after the last alarm: the other end notices in the same round trips, and checks take two.
const SPREAD: Duration = Duration::from_millis(600);
/// Bytes of a slot that are spread in a second, copies not counted, and that a route gets of new and repeated ones: what
/// interactive channels send. Bulk waits. A route that turns up has had nothing, so all that is kept may leave by it at once.
const SPREAD_BYTES: usize = 32 * 1024;
const REFILL: Duration = Duration::from_secs(1);
/// The same for all slots together, repeated ones counted for each route: where many are not heard at once, more packets
/// would not help.
const ALL_BYTES: usize = 8 * SPREAD_BYTES;
/// Routes besides the one in use.
const ROUTES_MAX: usize = 3;
/// Routes that get anything in a second. A finder knows a handful that answer; no slot has more unless somebody plays.
const SHARES_MAX: usize = 16;
/// Packets that leave again by a route that turns up, the last ones, and the most bytes each may have. Together they have
/// no more than [`SPREAD_BYTES`].
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
    /// These outlast alarms.
    room: Room,
    shares: Vec<Share>,
}

#[derive(Debug)]
struct Alarm {
    until: Instant,
    sent: VecDeque<Batch>,
}

/// What a route gets.
#[derive(Debug)]
struct Share {
    route: Route,
    /// What has left since the alarm has left by it.
    tried: bool,
    /// Bytes that may leave by it within the second.
    left: usize,
}

/// Bytes that may leave within a second.
#[derive(Debug, Default)]
struct Room {
    filled: Option<Instant>,
    left: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Spreads {
    slots: HashMap<SlotId, Spread>,
    /// When the last alarm ends.
    until: Option<Instant>,
    room: Room,
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
        self.room.refill(now, ALL_BYTES);
        spread.refill(now);
        let Some(alarm) = spread.alarm.as_ref().filter(|alarm| now < alarm.until) else {
            return Vec::new();
        };
        let mut again = Vec::new();
        for route in &spread.routes {
            let share = share_of(&mut spread.shares, *route);
            let Some(share) = share.filter(|share| !share.tried) else { continue };
            share.tried = true;
            for batch in &alarm.sent {
                let size = batch.contents.len();
                if size <= share.left.min(self.room.left) {
                    share.left -= size;
                    self.room.left -= size;
                    again.push((*route, batch.clone()));
                }
            }
        }
        again
    }

    /// The session is not heard.
    pub(super) fn alarm(&mut self, now: Instant, slot: SlotId) {
        let spread = self.slots.entry(slot).or_default();
        let until = now + SPREAD;
        self.until = Some(until);
        if let Some(alarm) = spread.alarm.as_mut().filter(|alarm| now < alarm.until) {
            alarm.until = until;
            return;
        }
        spread.alarm = Some(Alarm { until, sent: VecDeque::new() });
        spread.refill(now);
        spread.shares.iter_mut().for_each(|share| share.tried = false);
        for route in &spread.routes {
            if let Some(share) = share_of(&mut spread.shares, *route) {
                share.tried = true;
            }
        }
    }

    /// What left by routes of this base came to nothing, so they had nothing, and may arrive now: [`Self::stand_by`] brings
    /// it again.
    pub(super) fn renewed(&mut self, slot: SlotId, local: LocalId) {
        if let Some(spread) = self.slots.get_mut(&slot) {
            spread.shares.retain(|share| share.route.local != local);
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
        self.room.refill(now, ALL_BYTES);
        spread.refill(now);
        let size = contents.len();
        let fits = size <= spread.room.left.min(self.room.left);
        let Some(alarm) = spread.alarm.as_mut().filter(|_| fits) else { return Vec::new() };
        spread.room.left -= size;
        self.room.left -= size;
        if size <= SENT_BYTES {
            alarm.keep(Batch { contents: Bytes::copy_from_slice(contents), segment });
        }
        if let Some(share) = out.and_then(|out| share_of(&mut spread.shares, out)) {
            share.tried = true;
        }
        let mut others: Vec<_> =
            spread.routes.iter().copied().filter(|route| Some(*route) != out).collect();
        others.truncate(ROUTES_MAX);
        others.retain(|route| {
            let share = share_of(&mut spread.shares, *route).filter(|share| size <= share.left);
            share.map(|share| share.left -= size).is_some()
        });
        others
    }

    /// The slot is gone.
    pub(super) fn close(&mut self, slot: SlotId) {
        self.slots.remove(&slot);
    }
}

impl Spread {
    /// A second later, all may have as much again, and routes that are gone are forgotten.
    fn refill(&mut self, now: Instant) {
        if self.room.refill(now, SPREAD_BYTES) {
            self.shares.retain(|share| self.routes.contains(&share.route));
            self.shares.iter_mut().for_each(|share| share.left = SPREAD_BYTES);
        }
    }
}

impl Alarm {
    fn keep(&mut self, batch: Batch) {
        self.sent.push_back(batch);
        let size = |sent: &VecDeque<Batch>| sent.iter().map(|it| it.contents.len()).sum::<usize>();
        while self.sent.len() > SENT_MAX || size(&self.sent) > SPREAD_BYTES {
            self.sent.pop_front();
        }
    }
}

impl Room {
    /// True when a second has passed.
    fn refill(&mut self, now: Instant, most: usize) -> bool {
        let due = self.filled.is_none_or(|at| now.saturating_duration_since(at) >= REFILL);
        if due {
            *self = Self { filled: Some(now), left: most };
        }
        due
    }
}

/// The share of a route, unless too many have one.
fn share_of(shares: &mut Vec<Share>, route: Route) -> Option<&mut Share> {
    let known = shares.iter().position(|share| share.route == route);
    if known.is_none() && shares.len() < SHARES_MAX {
        shares.push(Share { route, tried: false, left: SPREAD_BYTES });
        return shares.last_mut();
    }
    known.and_then(|at| shares.get_mut(at))
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
    fn a_route_that_turns_up_gets_its_replay_though_bulk_has_used_up_the_second() {
        let (mut spreads, slot, now) = (Spreads::default(), slot(), Instant::now());
        spreads.stand_by(now, slot, vec![route(1), route(2)]);
        spreads.alarm(now, slot);
        let spread = |at: &u64| {
            !spreads.sends(now + ms(*at), slot, Some(route(1)), &[0; 1200], None).is_empty()
        };
        let kept = (0..200).filter(spread).count();
        let again = spreads.stand_by(now + ms(200), slot, vec![route(3), route(1)]);
        assert_eq!((kept, again.len()), (27, 27));
    }

    #[test]
    fn a_route_gets_32_kib_a_second_however_alarms_and_routes_come_and_go() {
        let (mut spreads, slot, start) = (Spreads::default(), slot(), Instant::now());
        let (mut second, mut got) = (HashMap::<Route, usize>::new(), 0);
        for step in 0..20_000 {
            let now = start + ms(step);
            if step % 1000 == 0 {
                second.clear();
            }
            // It comes and goes; a hundred others each turn up for a moment, too.
            let other = route(10 + u16::try_from(step % 100).unwrap());
            let routes = if step % 3 == 0 { vec![other] } else { vec![route(2), other] };
            // For half of the time without a pause, then with pauses that end each of them.
            if step < 10_000 && step % 50 == 0 || step % 650 == 0 {
                spreads.alarm(now, slot);
            }
            for (route, batch) in spreads.stand_by(now, slot, routes) {
                *second.entry(route).or_default() += batch.contents.len();
            }
            for route in spreads.sends(now, slot, Some(route(1)), &[0; 400], None) {
                *second.entry(route).or_default() += 400;
            }
            let most = second.values().max().copied().unwrap_or(0);
            assert!(most <= SPREAD_BYTES, "{most} bytes at {step} ms");
            let all: usize = second.values().sum();
            assert!(all <= ALL_BYTES + SPREAD_BYTES * ROUTES_MAX, "{all} bytes at {step} ms");
            assert!(spreads.slots[&slot].shares.len() <= SHARES_MAX);
            got = got.max(second.get(&route(2)).copied().unwrap_or(0));
        }
        assert!(got > SPREAD_BYTES / 2, "{got}");
    }

    #[test]
    fn what_a_renewed_route_never_got_leaves_by_it_though_its_second_was_used_up() {
        let (mut spreads, slot, now) = (Spreads::default(), slot(), Instant::now());
        let relayed = Route { local: LocalId(1), ..route(2) };
        spreads.stand_by(now, slot, vec![route(1), relayed]);
        spreads.alarm(now, slot);
        for _ in 0..100 {
            spreads.sends(now, slot, Some(route(1)), &[0; 1000], None);
        }
        assert!(spreads.stand_by(now, slot, vec![relayed]).is_empty());
        spreads.renewed(slot, relayed.local);
        assert_eq!(spreads.stand_by(now, slot, vec![relayed]).len(), 32);
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
