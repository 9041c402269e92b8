//! Round-trip time of a leg: smoothed as TCP does (RFC 6298), the least ever, and the spread of recent samples.
use std::time::{Duration, Instant};

/// Samples the percentiles are taken over: about a minute of an active leg at one PING a second.
const WINDOW: usize = 64;
/// Samples that a 95th percentile takes.
const TWENTY: usize = 20;
/// Below this many samples the variance says more about the formula's start (half of the first sample) than of the path.
const SETTLED: u32 = 8;
/// Least allowance for variance in [`Rtt::timeout`]: timers and schedulers are no better.
const GRANULARITY: Duration = Duration::from_millis(5);
/// What is waited for without any sample, as QUIC's (RFC 9002 section 6.2.2) with a path twice as fast.
const UNKNOWN: Duration = Duration::from_millis(500);

/// What is shown of a round-trip time, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RttFigures {
    /// Exponentially smoothed, gain 1/8 (RFC 6298 section 2).
    pub smoothed_us: u32,
    /// Least ever seen on the leg.
    pub min_us: u32,
    /// Median of the last 64 samples.
    pub p50_us: u32,
    /// 99th percentile of the last 64 samples.
    pub p99_us: u32,
    /// Mean deviation (RTTVAR of RFC 6298): the jitter.
    pub variation_us: u32,
}

/// An estimate older than this may be of another network: two idle PINGs.
const STALE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, Default)]
pub(super) struct Rtt {
    smoothed: Option<Duration>,
    variation: Duration,
    samples: u32,
    sampled_at: Option<Instant>,
    min: Duration,
    recent: Vec<Duration>,
    next: usize,
}

impl Rtt {
    pub(super) fn sample(&mut self, now: Instant, rtt: Duration) {
        self.min = if self.smoothed.is_some() { self.min.min(rtt) } else { rtt };
        // The order is RFC 6298's: the variance is taken against the old mean.
        self.variation = self
            .smoothed
            .map_or(rtt / 2, |smoothed| (self.variation * 3 + smoothed.abs_diff(rtt)) / 4);
        self.smoothed = Some(self.smoothed.map_or(rtt, |smoothed| (smoothed * 7 + rtt) / 8));
        self.samples = self.samples.saturating_add(1);
        self.sampled_at = Some(now);
        if self.recent.len() < WINDOW {
            self.recent.push(rtt);
        } else {
            self.recent[self.next] = rtt;
        }
        self.next = (self.next + 1) % WINDOW;
    }

    /// Takes an estimate that its source has smoothed already, as a QUIC connection's. While it falls it remembers what it rose
    /// for: of a fall the highest counts, once, and what was on the way down was as low as this one.
    pub(super) fn follow(&mut self, now: Instant, estimate: Duration) {
        let held = self.recent.len();
        for back in 1..held {
            let [later, earlier] =
                [back - 1, back].map(|back| (self.next + held - 1 - back) % held);
            if estimate > self.recent[later] || self.recent[later] > self.recent[earlier] {
                break;
            }
            self.recent[later] = estimate;
        }
        self.sample(now, estimate);
    }

    pub(super) fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    /// After this long an answer is overdue, besides the peer's own delay: RFC 9002's probe timeout.
    pub(super) fn timeout(&self) -> Duration {
        self.smoothed.map_or(UNKNOWN, |smoothed| smoothed + (self.variation * 4).max(GRANULARITY))
    }

    /// What nineteen of twenty round trips stay below: one that a lost packet delayed does not count. With fewer samples
    /// than that, the least and a twentieth: the first of a leg hold what its handshake and busy ends took, an idle leg needs
    /// half a minute for twenty, and meanwhile it should tie with a leg as far away that has them.
    pub(super) fn p95(&self) -> Option<Duration> {
        self.smoothed?;
        if self.recent.len() < TWENTY {
            return Some(self.min + self.min / 20);
        }
        Some(self.rank(95))
    }

    /// There are too few samples to rely on.
    pub(super) fn is_young(&self) -> bool {
        self.samples < SETTLED
    }

    /// The estimate is too young, too old or varies too much to rely on.
    pub(super) fn is_unsure(&self, now: Instant) -> bool {
        let Some(smoothed) = self.smoothed else { return true };
        let old = self.sampled_at.is_none_or(|at| now.saturating_duration_since(at) > STALE);
        self.is_young() || old || self.variation > smoothed / 4 + GRANULARITY
    }

    /// `None` before the first sample.
    pub(super) fn figures(&self) -> Option<RttFigures> {
        let smoothed = self.smoothed?;
        Some(RttFigures {
            smoothed_us: micros(smoothed),
            min_us: micros(self.min),
            p50_us: micros(self.rank(50)),
            p99_us: micros(self.rank(99)),
            variation_us: micros(self.variation),
        })
    }

    /// Nearest rank: the least recent sample that at least `percent` of all do not exceed.
    fn rank(&self, percent: usize) -> Duration {
        let mut sorted = self.recent.clone();
        sorted.sort_unstable();
        let at = (sorted.len() * percent).div_ceil(100).max(1) - 1;
        sorted.get(at).copied().unwrap_or_default()
    }
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn of(samples: impl IntoIterator<Item = u64>) -> Rtt {
        let (mut rtt, now) = (Rtt::default(), Instant::now());
        samples.into_iter().for_each(|sample| rtt.sample(now, ms(sample)));
        rtt
    }

    #[test]
    fn the_timeout_has_the_terms_of_rfc_9002() {
        assert_eq!(Rtt::default().timeout(), UNKNOWN);
        assert_eq!(of([40]).timeout(), ms(40 + 4 * 20));
        // 3/4 x 20 + 1/4 x 8 = 17
        assert_eq!(of([40, 48]).timeout(), ms(41 + 4 * 17));
        assert_eq!(of([40; 100]).timeout(), ms(40) + GRANULARITY);
    }

    #[test]
    fn one_delayed_round_trip_of_twenty_does_not_count_and_two_do() {
        assert_eq!(of([40]).p95(), Some(ms(42)));
        assert_eq!(of([40, 280, 40]).p95(), Some(ms(42)));
        assert_eq!(of([280].into_iter().chain([40; 7])).p95(), Some(ms(42)));
        assert_eq!(of([280].into_iter().chain([40; 19])).p95(), Some(ms(40)));
        assert_eq!(of([280, 280].into_iter().chain([40; 18])).p95(), Some(ms(280)));
    }

    #[test]
    fn an_estimate_that_falls_counts_its_highest_once() {
        let (mut rtt, now) = (Rtt::default(), Instant::now());
        // One late answer, and what a QUIC connection makes of the next ones, of 1 ms.
        let mut estimate = Duration::from_millis(18);
        for round in 0..30 {
            rtt.follow(now, estimate);
            if round >= TWENTY {
                assert_eq!(rtt.p95(), Some(estimate), "in round {round}");
            }
            estimate = (estimate * 7 + ms(1)) / 8;
        }
        assert_eq!(rtt.figures().unwrap().p99_us, 18_000, "it is not forgotten");
        // Late ones all the time do count.
        for round in 0..WINDOW as u64 * 2 {
            rtt.follow(now, ms(10 + 15 * (round % 2)));
        }
        assert_eq!(rtt.p95(), Some(ms(25)));
    }

    #[test]
    fn young_old_and_varying_estimates_are_unsure() {
        let now = Instant::now();
        assert!(of([40; 3]).is_unsure(now));
        assert!(!of([40; 20]).is_unsure(now));
        assert!(of([40; 20]).is_unsure(now + ms(31_000)));
        assert!(of((0..20).map(|i| 20 + 60 * (i % 2))).is_unsure(now));
    }

    #[test]
    fn nothing_is_claimed_before_the_first_sample() {
        assert_eq!(Rtt::default().figures(), None);
    }

    #[test]
    fn smoothing_has_the_gain_of_rfc_6298() {
        assert_eq!(of([80, 160]).smoothed(), Some(ms(90)));
    }

    #[test]
    fn percentiles_forget_old_samples_and_the_minimum_does_not() {
        let figures = of([1].into_iter().chain([50; WINDOW])).figures().unwrap();
        assert_eq!((figures.min_us, figures.p50_us, figures.p99_us), (1_000, 50_000, 50_000));
    }

    #[test]
    fn p99_shows_the_one_slow_sample_in_a_window() {
        let figures = of([10; WINDOW - 1].into_iter().chain([300])).figures().unwrap();
        assert_eq!((figures.p50_us, figures.p99_us), (10_000, 300_000));
    }
}
