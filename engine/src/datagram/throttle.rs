//! How often a source gets an answer without credentials.
//!
//! Pure: token buckets in a table of fixed size, so strangers can fill neither memory nor time. Two sources that fall into
//! one place share its bucket; the hash is keyed, so nobody can choose his neighbour.
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use crate::gateway::Source;

/// The buckets of one worker.
pub(crate) struct Throttle {
    buckets: Box<[Bucket]>,
    hash: RandomState,
    per_s: f32,
    burst: f32,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f32,
    at: Instant,
}

/// 192 KiB. A gateway with more active sources on one worker than this shares buckets between some.
const BUCKETS: usize = 8192;

impl Throttle {
    /// `per_s` answers per second for each source in the long run, and `burst` at once.
    pub(crate) fn new(per_s: u32, burst: u32, now: Instant) -> Self {
        let (per_s, burst) = (per_s as f32, burst as f32);
        let buckets = vec![Bucket { tokens: burst, at: now }; BUCKETS].into_boxed_slice();
        Self { buckets, hash: RandomState::new(), per_s, burst }
    }

    /// Takes one answer's worth from `source`; `false` if it has had enough.
    pub(crate) fn take(&mut self, source: Source, now: Instant) -> bool {
        let place = self.hash.hash_one(source) as usize % BUCKETS;
        let bucket = &mut self.buckets[place];
        let passed = now.checked_duration_since(bucket.at).unwrap_or(Duration::ZERO);
        bucket.tokens = (bucket.tokens + passed.as_secs_f32() * self.per_s).min(self.burst);
        bucket.at = now.max(bucket.at);
        let enough = bucket.tokens >= 1.0;
        if enough {
            bucket.tokens -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(ip: &str) -> Source {
        Source::of(format!("{ip}:1").parse().unwrap())
    }

    #[test]
    fn a_burst_then_the_rate() {
        let start = Instant::now();
        let mut throttle = Throttle::new(10, 5, start);
        let mut taken = |ms| {
            let now = start + Duration::from_millis(ms);
            (0..100).filter(|_| throttle.take(source("192.0.2.1"), now)).count()
        };
        assert_eq!((taken(0), taken(0), taken(1000), taken(1100)), (5, 0, 5, 1));
    }

    #[test]
    fn one_source_does_not_silence_the_others() {
        let now = Instant::now();
        let mut throttle = Throttle::new(1, 1, now);
        while throttle.take(source("192.0.2.1"), now) {}
        let served = (0..200).filter(|n| throttle.take(source(&format!("198.51.100.{n}")), now));
        assert!(served.count() > 150);
    }

    #[test]
    fn an_earlier_now_gives_nothing_away() {
        let start = Instant::now() + Duration::from_secs(5);
        let mut throttle = Throttle::new(10, 1, start);
        assert!(throttle.take(source("192.0.2.1"), start));
        assert!(!throttle.take(source("192.0.2.1"), start - Duration::from_secs(3)));
    }
}
