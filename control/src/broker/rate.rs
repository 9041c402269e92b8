//! Token buckets: how much a user, a source or a link may ask for. Pure but for [`Rates`], which keeps them.
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::code::{Code, Fault};

/// How fast something may happen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// At once, after a pause.
    pub(crate) burst: f64,
    /// Per second, for long.
    pub(crate) per_second: f64,
}

/// Requests of one user, on all links and the API together: a thousand sessions may start, or resume, at once, four times
/// over; after that as many per second as one agent can be expected to dial.
pub(crate) const USER_REQUESTS: Rate = Rate { burst: 4096.0, per_second: 256.0 };
/// Messages on one link. Reports of a thousand sessions come once a second in dozens of messages.
pub(crate) const LINK_MESSAGES: Rate = Rate { burst: 8192.0, per_second: 1024.0 };
/// Failed sign-ins of one source. People mistype; programs with an old token back off.
pub(crate) const FAILED_SIGN_INS: Rate = Rate { burst: 20.0, per_second: 1.0 };
/// Buckets of one kind. One that is full again says nothing and is dropped.
const BUCKETS_MAX: usize = 16_384;

/// A bucket of tokens that fills with time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    pub(crate) const fn full(rate: Rate, now: Instant) -> Self {
        Self { rate, tokens: rate.burst, at: now }
    }

    /// Takes one token; `false` if there is none.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = self.rate.burst.min(self.tokens + passed * self.rate.per_second);
        self.at = now;
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.tokens >= self.rate.burst
    }
}

/// One bucket per key.
#[derive(Debug)]
pub(crate) struct Rates<K> {
    rate: Rate,
    buckets: Mutex<HashMap<K, Bucket>>,
}

impl<K: Eq + Hash> Rates<K> {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, buckets: Mutex::default() }
    }

    /// Takes one of `key`'s tokens; `false` if there is none.
    pub(crate) fn take(&self, key: K, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= BUCKETS_MAX && !buckets.contains_key(&key) {
            buckets.retain(|_, bucket| !bucket.is_full(now));
            if buckets.len() >= BUCKETS_MAX {
                return false;
            }
        }
        buckets.entry(key).or_insert_with(|| Bucket::full(self.rate, now)).take(now)
    }
}

impl Rates<IpAddr> {
    /// Charges a source one request.
    ///
    /// # Errors
    /// [`Code::RateLimited`]: too many of `what` came from there.
    pub(crate) fn charge(&self, from: SocketAddr, what: &str) -> Result<(), Fault> {
        if self.take(source(from.ip()), Instant::now()) {
            Ok(())
        } else {
            Err(Code::RateLimited.because(format!("too many {what} from this address")))
        }
    }
}

/// What counts as one source: an IPv4 address, or an IPv6 /64, which is what one subscriber gets.
pub(crate) fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6([a, b, c, d, 0, 0, 0, 0].into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const RATE: Rate = Rate { burst: 3.0, per_second: 2.0 };

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let start = Instant::now();
        let mut bucket = Bucket::full(RATE, start);
        let taken = (0..5).filter(|_| bucket.take(start)).count();
        assert_eq!(taken, 3);
        let later = start + Duration::from_secs(1);
        assert_eq!((0..5).filter(|_| bucket.take(later)).count(), 2);
        let much_later = later + Duration::from_secs(3600);
        assert_eq!((0..5).filter(|_| bucket.take(much_later)).count(), 3);
    }

    #[test]
    fn keys_do_not_share_and_their_number_is_bounded() {
        let start = Instant::now();
        let rates = Rates::new(Rate { burst: 1.0, per_second: 1.0 });
        for key in 0..BUCKETS_MAX {
            assert!(rates.take(key, start));
        }
        assert!(!rates.take(0, start));
        assert!(!rates.take(BUCKETS_MAX, start), "no room while every bucket says something");
        assert!(rates.take(BUCKETS_MAX, start + Duration::from_secs(1)));
        assert_eq!(rates.buckets.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_subscribers_addresses_are_one_source() {
        let parse = |text: &str| source(text.parse().unwrap());
        assert_eq!(parse("2001:db8:1:2::1"), parse("2001:db8:1:2:ffff::9"));
        assert_ne!(parse("2001:db8:1:2::1"), parse("2001:db8:1:3::1"));
        assert_eq!(parse("::ffff:192.0.2.1"), parse("192.0.2.1"));
    }
}
