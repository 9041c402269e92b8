//! The rate that policy leaves a session, all its channels together, in each direction.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use switchback_shortpath::Tap;

/// What may go at once after a pause: keystrokes and small answers do not wait for each other.
const BURST: Duration = Duration::from_millis(100);

/// A cap on what an agent pumps between a session and its service.
#[derive(Debug)]
pub(super) struct RateCap {
    /// Bits a second; 0: none.
    bits: AtomicU64,
    /// When what was let through so far is paid off: to the service, and from it.
    paid: Mutex<[Option<Instant>; 2]>,
}

impl RateCap {
    pub(super) fn new(bits: Option<u64>) -> Arc<Self> {
        Arc::new(Self { bits: AtomicU64::new(bits.unwrap_or(0)), paid: Mutex::default() })
    }

    pub(super) fn set(&self, bits: Option<u64>) {
        self.bits.store(bits.unwrap_or(0), Ordering::Relaxed);
    }

    /// How long to wait after these bytes.
    fn take(&self, now: Instant, way: usize, bytes: usize) -> Option<Duration> {
        let bits = self.bits.load(Ordering::Relaxed);
        if bits == 0 {
            return None;
        }
        let cost = Duration::from_secs_f64(bytes as f64 * 8.0 / bits as f64);
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let rested = now.checked_sub(BURST).unwrap_or(now);
        let until = paid[way].map_or(rested, |until| until.max(rested)) + cost;
        paid[way] = Some(until);
        Some(until.saturating_duration_since(now)).filter(|wait| !wait.is_zero())
    }
}

/// A tap whose bytes go no faster than a session's rate.
pub(super) struct Capped<T> {
    pub(super) tap: T,
    pub(super) rate: Arc<RateCap>,
}

impl<T: Tap> Tap for Capped<T> {
    fn inward(&self, bytes: &Bytes) {
        self.tap.inward(bytes);
    }

    fn outward(&self, bytes: &Bytes) {
        self.tap.outward(bytes);
    }

    fn pass(&self) -> impl Future<Output = ()> + Send {
        self.tap.pass()
    }

    fn is_held(&self) -> bool {
        self.tap.is_held()
    }

    fn pace_inward(&self, bytes: usize) -> Option<Duration> {
        self.rate.take(Instant::now(), 0, bytes)
    }

    fn pace_outward(&self, bytes: usize) -> Option<Duration> {
        self.rate.take(Instant::now(), 1, bytes)
    }

    fn injected(&self) -> impl Future<Output = Bytes> + Send {
        self.tap.injected()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capped_session_sends_no_faster_than_its_rate_and_without_a_cap_nothing_waits() {
        let cap = RateCap::new(Some(8_000_000));
        let start = Instant::now();
        let mut now = start;
        let mut sent = 0_u64;
        while now < start + Duration::from_secs(10) {
            let wait = cap.take(now, 0, 16_384).unwrap_or_default();
            sent += 16_384;
            now += wait.max(Duration::from_micros(100));
        }
        let rate = sent as f64 / 10.0;
        assert!((0.98e6..1.03e6).contains(&rate), "{rate} bytes a second");
        assert_eq!(cap.take(now, 1, 1000), None, "the other direction is its own");
        cap.set(None);
        assert_eq!(cap.take(now, 0, 1 << 30), None);
    }

    #[test]
    fn small_writes_after_a_pause_do_not_wait() {
        let cap = RateCap::new(Some(64_000));
        let now = Instant::now();
        assert_eq!(cap.take(now, 0, 100), None);
        assert!(cap.take(now, 0, 10_000).is_some());
        assert_eq!(cap.take(now + Duration::from_secs(2), 0, 100), None);
    }
}
