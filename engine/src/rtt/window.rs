//! The last round-trip samples of one leg, and what they say.
//!
//! Pure. Smoothed and minimum come from the kernel (RFC 6298 estimator and `tcpi_min_rtt`); the quantiles are over the
//! kernel's smoothed value, sampled once a second while bytes move.

/// What is known about the round trip of one leg, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RttFigures {
    /// The kernel's smoothed round-trip time at the last sample.
    pub smoothed_us: u32,
    /// The kernel's minimum since the connection began (or its own window, see `tcp_min_rtt_wlen`).
    pub min_us: u32,
    /// Median of the last 64 samples.
    pub p50_us: u32,
    /// 99th percentile of the last 64 samples.
    pub p99_us: u32,
}

/// The last [`SAMPLES_MAX`] samples. Holds no heap before the first one and grows with them, so that idle legs stay small.
#[derive(Debug, Default)]
pub(crate) struct Window {
    samples: Vec<u32>,
    next: usize,
}

impl Window {
    /// Adds a sample of `smoothed_us` and returns the figures with it.
    pub(crate) fn record(&mut self, smoothed_us: u32, min_us: u32) -> RttFigures {
        if self.samples.len() < SAMPLES_MAX {
            self.samples.push(smoothed_us);
        } else {
            self.samples[self.next] = smoothed_us;
        }
        self.next = (self.next + 1) % SAMPLES_MAX;
        let mut sorted = [0; SAMPLES_MAX];
        let sorted = &mut sorted[..self.samples.len()];
        sorted.copy_from_slice(&self.samples);
        sorted.sort_unstable();
        RttFigures {
            smoothed_us,
            min_us,
            p50_us: quantile(sorted, 50),
            p99_us: quantile(sorted, 99),
        }
    }
}

/// A minute at one sample a second.
const SAMPLES_MAX: usize = 64;

/// Nearest-rank percentile of a sorted, non-empty slice.
fn quantile(sorted: &[u32], percent: usize) -> u32 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sample_is_every_quantile() {
        let figures = Window::default().record(700, 500);
        assert_eq!(figures, RttFigures { smoothed_us: 700, min_us: 500, p50_us: 700, p99_us: 700 });
    }

    #[test]
    fn quantiles_are_nearest_rank() {
        let mut window = Window::default();
        let last = (1..=50).rev().map(|n| window.record(n, 1)).last().unwrap();
        assert_eq!((last.p50_us, last.p99_us, last.smoothed_us), (25, 50, 1));
    }

    #[test]
    fn old_samples_fall_out() {
        let mut window = Window::default();
        for _ in 0..SAMPLES_MAX {
            window.record(1_000_000, 1);
        }
        let last = (0..SAMPLES_MAX).map(|_| window.record(10, 1)).last().unwrap();
        assert_eq!((last.p50_us, last.p99_us), (10, 10));
        assert_eq!(window.samples.len(), SAMPLES_MAX);
    }

    #[test]
    fn an_unused_window_holds_no_heap() {
        assert_eq!(Window::default().samples.capacity(), 0);
    }
}
