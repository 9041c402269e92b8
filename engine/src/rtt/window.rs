//! The last round-trip samples of one leg.
//!
//! Pure. The quantiles are over the kernel's smoothed value, sampled about once a second while bytes move.

/// The last [`SAMPLES_MAX`] samples. Holds no heap before the first one and grows with them, so that idle legs stay small.
#[derive(Debug, Default)]
pub(crate) struct Window {
    samples: Vec<u32>,
    next: u8,
}

impl Window {
    /// Adds a sample.
    pub(crate) fn record(&mut self, smoothed_us: u32) {
        match self.samples.get_mut(usize::from(self.next)) {
            Some(oldest) => *oldest = smoothed_us,
            None => self.samples.push(smoothed_us),
        }
        self.next = (self.next + 1) % SAMPLES_MAX;
    }

    /// Median and 99th percentile (nearest rank); `None` before the first sample. Readers pay for it, not the worker.
    pub(crate) fn p50_p99(&self) -> Option<(u32, u32)> {
        let mut scratch = [0; SAMPLES_MAX as usize];
        let scratch = &mut scratch[..self.samples.len()];
        scratch.copy_from_slice(&self.samples);
        (!scratch.is_empty()).then(|| (quantile(scratch, 50), quantile(scratch, 99)))
    }
}

/// A minute at one sample a second.
const SAMPLES_MAX: u8 = 64;

/// Nearest-rank percentile of a non-empty slice, which it reorders.
fn quantile(samples: &mut [u32], percent: usize) -> u32 {
    let rank = (samples.len() * percent).div_ceil(100).max(1);
    *samples.select_nth_unstable(rank - 1).1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(samples: impl IntoIterator<Item = u32>) -> Window {
        let mut window = Window::default();
        samples.into_iter().for_each(|sample| window.record(sample));
        window
    }

    #[test]
    fn one_sample_is_every_quantile_and_none_is_none() {
        assert_eq!(window([700]).p50_p99(), Some((700, 700)));
        assert_eq!(window([]).p50_p99(), None);
    }

    #[test]
    fn quantiles_are_nearest_rank() {
        assert_eq!(window((1..=50).rev()).p50_p99(), Some((25, 50)));
    }

    #[test]
    fn old_samples_fall_out_in_their_order() {
        let slow = std::iter::repeat_n(1_000_000, SAMPLES_MAX.into());
        let mut window = window(slow.chain(1..=SAMPLES_MAX.into()));
        assert_eq!(window.p50_p99(), Some((32, 64)));
        window.record(9);
        assert!(!window.samples.contains(&1) && window.samples.contains(&2));
        assert_eq!(window.samples.len(), usize::from(SAMPLES_MAX));
    }

    #[test]
    fn an_unused_window_holds_no_heap() {
        assert_eq!(Window::default().samples.capacity(), 0);
    }
}
