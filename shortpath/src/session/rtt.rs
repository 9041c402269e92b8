//! Round-trip time of a leg: smoothed as TCP does (RFC 6298), the least ever, and the spread of recent samples.
use std::time::Duration;

/// Samples the percentiles are taken over: about a minute of an active leg at one PING a second.
const WINDOW: usize = 64;

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
}

#[derive(Clone, Debug, Default)]
pub(super) struct Rtt {
    smoothed: Option<Duration>,
    min: Duration,
    recent: Vec<Duration>,
    next: usize,
}

impl Rtt {
    pub(super) fn sample(&mut self, rtt: Duration) {
        self.min = if self.smoothed.is_some() { self.min.min(rtt) } else { rtt };
        self.smoothed = Some(self.smoothed.map_or(rtt, |smoothed| (smoothed * 7 + rtt) / 8));
        if self.recent.len() < WINDOW {
            self.recent.push(rtt);
        } else {
            self.recent[self.next] = rtt;
        }
        self.next = (self.next + 1) % WINDOW;
    }

    pub(super) fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    /// `None` before the first sample.
    pub(super) fn figures(&self) -> Option<RttFigures> {
        let smoothed = self.smoothed?;
        let mut sorted = self.recent.clone();
        sorted.sort_unstable();
        // Nearest rank: the least sample that at least `percent` of all do not exceed.
        let rank = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1];
        Some(RttFigures {
            smoothed_us: micros(smoothed),
            min_us: micros(self.min),
            p50_us: micros(rank(50)),
            p99_us: micros(rank(99)),
        })
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

    #[test]
    fn nothing_is_claimed_before_the_first_sample() {
        assert_eq!(Rtt::default().figures(), None);
    }

    #[test]
    fn smoothing_has_the_gain_of_rfc_6298() {
        let mut rtt = Rtt::default();
        rtt.sample(ms(80));
        rtt.sample(ms(160));
        assert_eq!(rtt.smoothed(), Some(ms(90)));
    }

    #[test]
    fn percentiles_forget_old_samples_and_the_minimum_does_not() {
        let mut rtt = Rtt::default();
        rtt.sample(ms(1));
        (0..WINDOW).for_each(|_| rtt.sample(ms(50)));
        let figures = rtt.figures().unwrap();
        assert_eq!((figures.min_us, figures.p50_us, figures.p99_us), (1_000, 50_000, 50_000));
    }

    #[test]
    fn p99_shows_the_one_slow_sample_in_a_window() {
        let mut rtt = Rtt::default();
        (0..WINDOW - 1).for_each(|_| rtt.sample(ms(10)));
        rtt.sample(ms(300));
        let figures = rtt.figures().unwrap();
        assert_eq!((figures.p50_us, figures.p99_us), (10_000, 300_000));
    }
}
