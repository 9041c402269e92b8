//! How many warm legs to ask for, and when. Pure: the clock and the dice are the caller's.
//!
//! A warm leg is admitted and waits at the gateway, so that a session need not wait for its dial. One request is in
//! flight at a time; a leg that was used or sent away in its time is replaced at once, one that failed young after a
//! growing pause.
use std::time::Duration;

use tokio::time::Instant;

use crate::dial::Backoff;

const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_CAP: Duration = Duration::from_secs(10);
/// A request unanswered for this long is lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A leg that waited this long was a good one: the gateway sends waiting legs away after minutes.
const GOOD_LEG: Duration = Duration::from_secs(10);

/// The warm legs of one agent, as numbers.
#[derive(Debug)]
pub(super) struct WarmPool {
    wanted: u32,
    /// Being dialled or waiting at the gateway.
    legs: u32,
    registered: bool,
    /// A request is in flight until then.
    asked_until: Option<Instant>,
    not_before: Option<Instant>,
    backoff: Backoff,
}

impl WarmPool {
    /// A pool that keeps `wanted` legs once it is registered.
    pub(super) fn new(wanted: u32) -> Self {
        let backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_CAP);
        Self { wanted, legs: 0, registered: false, asked_until: None, not_before: None, backoff }
    }

    /// The broker knows this agent on a new link.
    pub(super) fn registered(&mut self) {
        self.registered = true;
        self.asked_until = None;
    }

    /// The link is gone, and with it every answer. The legs go as well: the broker sends those of an agent away that it
    /// cannot reach, and a new broker knows of none.
    pub(super) fn link_down(&mut self) {
        self.registered = false;
        self.asked_until = None;
        self.legs = 0;
    }

    /// Tickets came: how many of them to use.
    pub(super) fn tickets(&mut self, count: usize) -> usize {
        self.asked_until = None;
        let room = self.wanted.saturating_sub(self.legs);
        let used = room.min(u32::try_from(count).unwrap_or(u32::MAX));
        self.legs += used;
        used as usize
    }

    /// The broker refused a request, presumably ours.
    pub(super) fn refused(&mut self, now: Instant, dice: f64) {
        if self.asked_until.take().is_some() {
            self.not_before = Some(now + self.backoff.pause(dice));
        }
    }

    /// A leg was taken by a session.
    pub(super) fn used(&mut self) {
        self.legs = self.legs.saturating_sub(1);
        self.backoff.reset();
        self.not_before = None;
    }

    /// A leg that had lived for `lived` is gone unused.
    pub(super) fn lost(&mut self, now: Instant, lived: Duration, dice: f64) {
        self.legs = self.legs.saturating_sub(1);
        if lived >= GOOD_LEG {
            self.backoff.reset();
        } else {
            // Of legs that fail together only the first one lengthens the pause.
            let paused = self.not_before.is_some_and(|until| until > now);
            if !paused {
                self.not_before = Some(now + self.backoff.pause(dice));
            }
        }
    }

    /// Legs being dialled or waiting.
    pub(super) const fn legs(&self) -> u32 {
        self.legs
    }

    /// How many tickets to ask for now; the request then counts as made.
    pub(super) fn poll(&mut self, now: Instant) -> Option<u32> {
        let missing = self.wanted.saturating_sub(self.legs);
        let held =
            [self.asked_until, self.not_before].into_iter().flatten().any(|until| now < until);
        if !self.registered || missing == 0 || held {
            return None;
        }
        self.asked_until = Some(now + ANSWER_TIMEOUT);
        self.not_before = None;
        Some(missing)
    }

    /// When to poll again if nothing happens before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let idle = !self.registered || self.legs >= self.wanted;
        let until = [self.asked_until, self.not_before].into_iter().flatten().max();
        if idle { None } else { until }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn full() -> (WarmPool, Instant) {
        let (mut pool, now) = (WarmPool::new(4), Instant::now());
        pool.registered();
        assert_eq!(pool.poll(now), Some(4));
        assert_eq!(pool.tickets(4), 4);
        (pool, now)
    }

    #[test]
    fn nothing_is_asked_before_the_agent_is_registered() {
        let mut pool = WarmPool::new(4);
        assert_eq!(pool.poll(Instant::now()), None);
        assert_eq!(pool.deadline(), None);
    }

    #[test]
    fn one_request_is_in_flight_and_a_lost_one_is_repeated() {
        let (mut pool, now) = (WarmPool::new(2), Instant::now());
        pool.registered();
        assert_eq!(pool.poll(now), Some(2));
        assert_eq!(pool.poll(now + SECOND), None);
        assert_eq!(pool.deadline(), Some(now + ANSWER_TIMEOUT));
        assert_eq!(pool.poll(now + ANSWER_TIMEOUT), Some(2));
    }

    #[test]
    fn a_used_leg_is_replaced_at_once_and_surplus_tickets_are_left() {
        let (mut pool, now) = full();
        assert_eq!(pool.poll(now), None);
        pool.used();
        assert_eq!(pool.poll(now), Some(1));
        assert_eq!(pool.tickets(9), 1);
        assert_eq!(pool.legs(), 4);
    }

    #[test]
    fn legs_that_fail_young_are_replaced_after_one_growing_pause() {
        let (mut pool, mut now) = full();
        let mut pauses = Vec::new();
        for _ in 0..3 {
            (0..4).for_each(|_| pool.lost(now, Duration::ZERO, 1.0));
            assert_eq!(pool.poll(now), None);
            let until = pool.deadline().unwrap();
            pauses.push(until.duration_since(now).as_millis());
            now = until;
            assert_eq!(pool.poll(now), Some(4));
            assert_eq!(pool.tickets(4), 4);
        }
        assert_eq!(pauses, [200, 400, 800]);
    }

    #[test]
    fn a_leg_sent_away_in_its_time_is_replaced_at_once() {
        let (mut pool, now) = full();
        pool.lost(now + 300 * SECOND, 300 * SECOND, 1.0);
        assert_eq!(pool.poll(now + 300 * SECOND), Some(1));
    }

    #[test]
    fn a_refused_request_is_repeated_later_and_a_new_link_asks_at_once() {
        let (mut pool, now) = (WarmPool::new(1), Instant::now());
        pool.registered();
        assert_eq!(pool.poll(now), Some(1));
        pool.refused(now, 1.0);
        assert_eq!(pool.poll(now), None);
        assert_eq!(pool.poll(now + SECOND), Some(1));
        assert_eq!(pool.tickets(1), 1);
        pool.link_down();
        assert_eq!(pool.poll(now + 60 * SECOND), None);
        pool.registered();
        assert_eq!(pool.poll(now + SECOND), Some(1));
    }
}
