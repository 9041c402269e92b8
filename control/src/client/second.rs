//! When a session dials a leg through a second gateway, see [`Standby::TwoGateways`](crate::wire::Standby::TwoGateways). Pure: the
//! clock is the caller's.
use std::time::Duration;

use tokio::time::Instant;

/// From a session's first leg to its second: what the application waits for comes first.
const FIRST_AFTER: Duration = Duration::from_secs(2);
/// Whether there is something to carry is looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Between attempts, doubled each time: a gateway that is started again is used again within a minute.
const PAUSE_FIRST: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The leg that stands by at another gateway.
#[derive(Debug)]
pub(super) struct Second<Leg> {
    leg: Option<(Leg, String)>,
    dialling: bool,
    not_before: Instant,
    pause: Duration,
}

impl<Leg: Copy + PartialEq> Second<Leg> {
    /// None yet.
    pub(super) fn new(now: Instant) -> Self {
        Self { leg: None, dialling: false, not_before: now + FIRST_AFTER, pause: PAUSE_FIRST }
    }

    /// When to look whether one is wanted; `None`: not while there is one, or one is dialled.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.leg.is_none() && !self.dialling).then_some(self.not_before)
    }

    /// Whether to dial now, that is if one is `wanted`. An attempt counts as running then.
    pub(super) fn begin(&mut self, now: Instant, wanted: bool) -> bool {
        if wanted {
            self.dialling = true;
        } else {
            self.not_before = now + LOOK_EVERY;
        }
        wanted
    }

    /// The attempt succeeded, through this gateway.
    pub(super) fn attached(&mut self, leg: Leg, via: String) {
        (self.leg, self.dialling, self.pause) = (Some((leg, via)), false, PAUSE_FIRST);
    }

    /// The attempt failed.
    pub(super) fn failed(&mut self, now: Instant) {
        (self.dialling, self.not_before) = (false, now + self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    /// Whether this is the one; it is no more.
    pub(super) fn lost(&mut self, now: Instant, leg: Leg) -> bool {
        let is_it = self.leg.as_ref().is_some_and(|(second, _)| *second == leg);
        if is_it {
            self.take(now);
        }
        is_it
    }

    /// It takes the place of the first, or leaves with it.
    pub(super) fn take(&mut self, now: Instant) -> Option<(Leg, String)> {
        self.not_before = now + PAUSE_FIRST;
        self.leg.take()
    }

    /// As [`Self::take`], if it leads through this gateway.
    pub(super) fn take_via(&mut self, now: Instant, via: &str) -> Option<Leg> {
        self.leg.as_ref().filter(|(_, its)| its == via)?;
        self.take(now).map(|(leg, _)| leg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_leg_comes_first_and_what_carries_nothing_has_no_second() {
        let now = Instant::now();
        let mut second = Second::<u64>::new(now);
        assert_eq!(second.due(), Some(now + FIRST_AFTER));
        assert!(!second.begin(now + FIRST_AFTER, false));
        assert_eq!(second.due(), Some(now + FIRST_AFTER + LOOK_EVERY));
        assert!(second.begin(now + 60 * SECOND, true));
        assert_eq!(second.due(), None, "one attempt at a time");
        second.attached(7, "b:443".into());
        assert_eq!(second.due(), None);
    }

    #[test]
    fn attempts_that_fail_are_repeated_within_a_minute_each() {
        let mut now = Instant::now();
        let mut second = Second::<u64>::new(now);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            assert!(second.begin(now, true));
            second.failed(now);
            let due = second.due().unwrap();
            pauses.push((due - now).as_secs());
            now = due;
        }
        assert_eq!(pauses, [5, 10, 20, 40, 60, 60]);
        second.attached(7, "b:443".into());
        assert!(second.lost(now, 7));
        assert_eq!(second.due(), Some(now + PAUSE_FIRST), "a good one begins anew");
    }

    #[test]
    fn it_takes_the_place_of_the_first_once() {
        let now = Instant::now();
        let mut second = Second::<u64>::new(now);
        second.attached(7, "b:443".into());
        assert!(!second.lost(now, 6));
        assert_eq!(second.take_via(now, "a:443"), None);
        assert_eq!(second.take(now), Some((7, "b:443".into())));
        assert_eq!(second.take(now), None);
        second.attached(8, "a:443".into());
        assert_eq!(second.take_via(now, "a:443"), Some(8), "both would lead through one gateway");
        assert_eq!(second.due(), Some(now + PAUSE_FIRST));
    }
}
