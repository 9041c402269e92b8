//! A token bucket: what may happen how often.
use std::time::{Duration, Instant};

/// A token bucket: `burst` at once, then one per `interval`.
#[derive(Debug)]
pub(crate) struct Tokens {
    interval: Duration,
    depth: Duration,
    /// When the bucket would be full again; that minus the depth is when a token is there.
    full: Instant,
}

impl Tokens {
    pub(crate) fn new(now: Instant, burst: u32, interval: Duration) -> Self {
        Self { interval, depth: interval * burst.max(1), full: now }
    }

    /// When the next token is there.
    pub(crate) fn ready(&self) -> Instant {
        let next = self.full + self.interval;
        next.checked_sub(self.depth).unwrap_or(self.full)
    }

    /// Takes one if it is there.
    pub(crate) fn try_take(&mut self, now: Instant) -> bool {
        let some = self.ready() <= now;
        if some {
            self.take(now);
        }
        some
    }

    pub(crate) fn take(&mut self, now: Instant) {
        self.full = self.full.max(now) + self.interval;
    }
}
