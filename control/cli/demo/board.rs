//! What the demo counts: shared by the traffic that writes it and the view and summary that read it.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest request that the histograms tell apart; longer ones count as this. Twice the resume window.
const LATENCY_US_MAX: u64 = 120_000_000;

/// All figures of a run.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// Bytes of transfers sent towards the target.
    pub(crate) up: Arc<AtomicU64>,
    /// Bytes of transfers received from the target.
    pub(crate) down: Arc<AtomicU64>,
    /// Requests answered through the gateway.
    pub(crate) answered: AtomicU64,
    checks: Mutex<Checks>,
    requests: Mutex<Requests>,
    restart: Mutex<RestartWatch>,
}

/// Contents that were compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Checks {
    /// Transfers whose bytes were all there and hashed as they should.
    pub(crate) right: u64,
    /// Transfers that arrived changed.
    pub(crate) wrong: u64,
    /// Transfers or requests that broke.
    pub(crate) broken: u64,
    /// What the first of the wrong or broken ones said.
    pub(crate) first_trouble: Option<String>,
}

/// Which way a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Straight to the target.
    Direct,
    /// Client, gateway, agent, target.
    Through,
}

/// What else was going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// Nothing.
    Quiet,
    /// Bulk transfers.
    Busy,
}

/// A request that was answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    /// When it was sent.
    pub(crate) sent: Instant,
    /// When the last byte of its answer was here.
    pub(crate) done: Instant,
    /// How often such requests are sent, if they are sent at a pace.
    pub(crate) pace: Option<Duration>,
}

/// Latencies of requests.
#[derive(Debug)]
struct Requests {
    quiet: [Histogram<u64>; 2],
    busy: [Histogram<u64>; 2],
}

/// Figures of a latency histogram, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Latency {
    /// Requests measured, with those that a long one kept from being sent.
    pub(crate) count: u64,
    /// Median.
    pub(crate) p50_us: u64,
    /// 99th percentile.
    pub(crate) p99_us: u64,
    /// Longest.
    pub(crate) max_us: u64,
}

/// Follows the restart through the eyes of the request stream. Told the time, never asks for it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RestartWatch {
    gone: Option<Instant>,
    back: Option<Instant>,
    over: Option<Instant>,
    pause: Duration,
}

impl Board {
    /// A transfer came to its end.
    pub(crate) fn transferred(&self, right: bool) {
        let mut checks = lock(&self.checks);
        if right {
            checks.right += 1;
        } else {
            checks.wrong += 1;
            checks.first_trouble.get_or_insert_with(|| "a content arrived changed".into());
        }
    }

    /// A transfer or request broke.
    pub(crate) fn broke(&self, what: &str, trouble: &dyn std::fmt::Display) {
        let mut checks = lock(&self.checks);
        checks.broken += 1;
        checks.first_trouble.get_or_insert_with(|| format!("{what}: {trouble}"));
    }

    /// A request was answered.
    pub(crate) fn answered(&self, way: Way, load: Load, request: Request) {
        let Request { sent, done, pace } = request;
        if way == Way::Through {
            self.answered.fetch_add(1, Ordering::Relaxed);
            if lock(&self.restart).judge(sent, done) {
                return;
            }
        }
        let mut requests = lock(&self.requests);
        let histogram = requests.histogram(way, load);
        match pace {
            // Requests that a long one kept from being sent would have waited too (coordinated omission).
            // Refused only beyond the histogram's bound, and the value is kept below it.
            Some(pace) => {
                let waited = micros(done - sent).min(LATENCY_US_MAX);
                let _ = histogram.record_correct(waited, micros(pace));
            }
            None => histogram.saturating_record(micros(done - sent)),
        }
    }

    /// Broker and gateway go down now.
    pub(crate) fn going_down(&self, now: Instant) {
        lock(&self.restart).gone = Some(now);
    }

    /// Broker and gateway listen again.
    pub(crate) fn back_up(&self, now: Instant) {
        lock(&self.restart).back = Some(now);
    }

    /// The contents compared so far.
    pub(crate) fn checks(&self) -> Checks {
        lock(&self.checks).clone()
    }

    /// Latencies so far.
    pub(crate) fn latency(&self, way: Way, load: Load) -> Latency {
        Latency::of(lock(&self.requests).histogram(way, load))
    }

    /// The restart so far.
    pub(crate) fn restart(&self) -> RestartWatch {
        *lock(&self.restart)
    }
}

impl RestartWatch {
    /// Whether a request fell into the restart, so that it tells of the pause and not of ordinary latency.
    ///
    /// The restart is over with the first answer to a request that was sent after broker and gateway were back.
    fn judge(&mut self, sent: Instant, done: Instant) -> bool {
        let Some(gone) = self.gone else { return false };
        if done < gone || self.over.is_some_and(|over| sent >= over) {
            return false;
        }
        self.pause = self.pause.max(done - sent);
        if self.over.is_none() && self.back.is_some_and(|back| sent >= back) {
            self.over = Some(done);
        }
        true
    }

    /// How long broker and gateway were away.
    pub(crate) fn outage(&self) -> Option<Duration> {
        Some(self.back?.saturating_duration_since(self.gone?))
    }

    /// The longest that a request had to wait because of it; absent until requests flow again.
    pub(crate) fn pause(&self) -> Option<Duration> {
        self.over.map(|_| self.pause)
    }

    /// Whether it goes on now.
    pub(crate) fn is_going_on(&self) -> bool {
        self.gone.is_some() && self.over.is_none()
    }
}

impl Default for Requests {
    fn default() -> Self {
        let empty = || {
            // The bounds are constants that the histogram accepts.
            Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("valid bounds")
        };
        Self { quiet: [empty(), empty()], busy: [empty(), empty()] }
    }
}

impl Requests {
    fn histogram(&mut self, way: Way, load: Load) -> &mut Histogram<u64> {
        let [direct, through] = match load {
            Load::Quiet => &mut self.quiet,
            Load::Busy => &mut self.busy,
        };
        match way {
            Way::Direct => direct,
            Way::Through => through,
        }
    }
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            count: histogram.len(),
            p50_us: histogram.value_at_quantile(0.5),
            p99_us: histogram.value_at_quantile(0.99),
            max_us: histogram.max(),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Figures stay readable even if a writer panicked between two of them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn a_restart_is_told_as_a_pause_and_not_as_latency() {
        let start = Instant::now();
        let at = |ms| start + MS(ms);
        let board = Board::default();
        let through = |sent, done| {
            let request = Request { sent: at(sent), done: at(done), pace: None };
            board.answered(Way::Through, Load::Busy, request);
        };
        through(0, 1);
        board.going_down(at(100));
        through(99, 700); // was under way
        through(720, 722); // before the return is noted
        board.back_up(at(730));
        assert_eq!(board.restart().pause(), None);
        through(740, 750); // the first after the return
        through(760, 762);
        assert_eq!(board.restart().outage(), Some(MS(630)));
        assert_eq!(board.restart().pause(), Some(MS(601)));
        assert!(!board.restart().is_going_on());
        let latency = board.latency(Way::Through, Load::Busy);
        assert_eq!((latency.count, latency.max_us / 1000), (2, 2));
        assert_eq!(board.answered.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn requests_that_a_long_one_kept_back_count_as_late() {
        let (board, sent) = (Board::default(), Instant::now());
        let request = Request { sent, done: sent + MS(100), pace: Some(MS(20)) };
        board.answered(Way::Direct, Load::Quiet, request);
        // 100, 80, 60, 40 and 20 ms.
        let latency = board.latency(Way::Direct, Load::Quiet);
        assert_eq!((latency.count, latency.p50_us / 1000), (5, 60));
    }

    #[test]
    fn direct_requests_do_not_hide_in_the_restart() {
        let start = Instant::now();
        let board = Board::default();
        board.going_down(start);
        let request = Request { sent: start, done: start + MS(5), pace: None };
        board.answered(Way::Direct, Load::Quiet, request);
        assert_eq!(board.latency(Way::Direct, Load::Quiet).count, 1);
        assert_eq!(board.latency(Way::Direct, Load::Busy), Latency::default());
    }

    #[test]
    fn the_first_trouble_is_kept() {
        let board = Board::default();
        board.transferred(true);
        board.broke("download", &"reset");
        board.transferred(false);
        let checks = board.checks();
        assert_eq!((checks.right, checks.wrong, checks.broken), (1, 1, 1));
        assert_eq!(checks.first_trouble.as_deref(), Some("download: reset"));
    }
}
