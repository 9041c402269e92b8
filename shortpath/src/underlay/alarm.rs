//! How often everything is looked at while a session is not heard, in pure code: often while a rebinding may be the cause, which
//! a look or two mend, and rarely while there is no network.
use std::time::{Duration, Instant};

/// Between two looks: first, and most; it grows by half.
const FIRST: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(super) struct Alarm {
    since: Instant,
    next: Instant,
    pause: Duration,
}

impl Alarm {
    /// The first look is due now.
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, next: now + FIRST, pause: FIRST }
    }

    /// Since when the session is not heard.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// When to ask whether it is heard again, and to look if not.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// It is not: a look is due now.
    pub(super) fn again(&mut self, now: Instant) {
        self.pause = (self.pause * 3 / 2).min(MOST);
        self.next = now + self.pause;
    }
}

/// Looks of all sessions together in a second. One is some dozen packets. Where more sessions are not heard at once, the
/// machine or its network is out of breath, and looking harder would take the rest of it.
pub(super) const LOOKS: u32 = 64;
/// Checks of all sessions together in a second: five that begin may ask as fast as RFC 8445 lets one (200/s), and most
/// need some dozen in all. Where hundreds begin at once, answers would come later than checks are repeated, and nothing
/// else would come through; a check that is left out is repeated like one that was lost.
pub(super) const CHECKS: u32 = 1_000;
const SECOND: Duration = Duration::from_secs(1);

/// What all sessions together may still do in this second.
#[derive(Debug)]
pub(super) struct Allowance {
    most: u32,
    filled: Option<Instant>,
    left: u32,
}

impl Allowance {
    /// So many a second.
    pub(super) fn of(most: u32) -> Self {
        Self { most, filled: None, left: most }
    }

    /// Whether a session may now.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        if self.filled.is_none_or(|at| now.saturating_duration_since(at) >= SECOND) {
            (self.filled, self.left) = (Some(now), self.most);
        }
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_many_in_the_first_second_and_few_in_an_hour() {
        let start = Instant::now();
        let mut alarm = Alarm::new(start);
        let mut looks = Vec::new();
        while alarm.next() < start + Duration::from_secs(3600) {
            let now = alarm.next();
            alarm.again(now);
            looks.push(now.duration_since(start));
        }
        let soon = looks.iter().filter(|at| **at < Duration::from_secs(1)).count();
        assert!(soon >= 4 && looks.len() < 1820, "{soon} of {}", looks.len());
        assert_eq!(alarm.since(), start);
    }
    #[test]
    fn a_thousand_sessions_that_are_not_heard_look_no_more_often_than_a_few() {
        let (start, mut looks, mut taken) = (Instant::now(), Allowance::of(LOOKS), 0);
        for at in 0..10_000 {
            taken += u32::from(looks.take(start + Duration::from_millis(at)));
        }
        assert_eq!(taken, 10 * LOOKS);
    }
}
