//! Latency histograms of the rounds, merged, and the points of them that reports carry. Pure.

use hdrhistogram::Histogram;

use crate::load::sample::{LabelledHistogram, Sample};
use crate::report::{Distribution, PercentilePoint};

/// What was timed in one scenario on one peer, all rounds merged.
#[derive(Clone, Debug)]
pub(crate) struct Timing {
    pub(crate) scenario: String,
    pub(crate) peer: String,
    pub(crate) timed: LabelledHistogram,
}

/// The percentiles in reports: enough to draw the curve on its usual axis.
const PERCENTILES: [f64; 11] = [0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99, 100.0];

/// One histogram per label over all `samples`, in the order of the first sample.
pub(crate) fn merged(samples: &[Sample]) -> Vec<LabelledHistogram> {
    let mut all: Vec<LabelledHistogram> = Vec::new();
    for one in samples.iter().flat_map(|sample| &sample.histograms) {
        match all.iter_mut().find(|known| known.label == one.label) {
            Some(known) => add(&mut known.histogram, &one.histogram),
            None => all.push(one.clone()),
        }
    }
    all.retain(|one| !one.histogram.is_empty());
    all
}

/// Adds counts; a value beyond the range of `sum` counts as its largest.
fn add(sum: &mut Histogram<u64>, part: &Histogram<u64>) {
    for value in part.iter_recorded() {
        sum.saturating_record_n(value.value_iterated_to(), value.count_at_value());
    }
}

/// The points of a histogram of nanoseconds.
pub(crate) fn distribution(timing: &LabelledHistogram) -> Distribution {
    let histogram = &timing.histogram;
    let us_at = |percentile: f64| match percentile {
        0.0 => histogram.min(),
        _ => histogram.value_at_quantile(percentile / 100.0),
    };
    Distribution {
        label: timing.label.to_owned(),
        count: histogram.len(),
        mean_us: histogram.mean() / 1e3,
        points: PERCENTILES
            .map(|percentile| PercentilePoint { percentile, us: us_at(percentile) as f64 / 1e3 })
            .to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Usage;

    fn sample(label: &'static str, values_ns: impl Iterator<Item = u64>) -> Sample {
        let mut histogram = Histogram::new_with_bounds(1, 3_600_000_000_000, 3).unwrap();
        values_ns.for_each(|value| histogram.record(value).unwrap());
        let histograms = vec![LabelledHistogram { label, histogram }];
        let usage = Usage { wall_s: 1.0, ..Usage::default() };
        let values = Vec::new();
        Sample { values, histograms, usage, busy_share: 0.0, late_share: 0.0, unanswered: 0 }
    }

    #[test]
    fn rounds_are_merged_by_label() {
        let all = merged(&[
            sample("rtt", (1..=50).map(|us| us * 1000)),
            sample("rtt", (51..=100).map(|us| us * 1000)),
            sample("setup", std::iter::once(7000)),
            sample("none", std::iter::empty()),
        ]);
        let counts: Vec<(&str, u64)> = all.iter().map(|t| (t.label, t.histogram.len())).collect();
        assert_eq!(counts, [("rtt", 100), ("setup", 1)]);
    }

    #[test]
    fn points_ascend_from_the_fastest_to_the_slowest() {
        let all = merged(&[sample("rtt", (1..=1000).map(|us| us * 1000))]);
        let found = distribution(&all[0]);
        assert_eq!(found.count, 1000);
        let us = |percentile: f64| {
            found.points.iter().find(|point| point.percentile == percentile).unwrap().us
        };
        for (percentile, expected) in [(0.0, 1.0), (50.0, 500.0), (99.0, 990.0), (100.0, 1000.0)] {
            assert!((us(percentile) / expected - 1.0).abs() < 0.002, "{percentile}");
        }
        assert!(found.points.is_sorted_by(|a, b| a.us <= b.us && a.percentile < b.percentile));
    }
}
