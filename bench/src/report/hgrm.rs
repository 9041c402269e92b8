//! Percentile files as HdrHistogram's tools and plotters read them. Pure.

use hdrhistogram::Histogram;

/// Lines per halving of the distance to 100 %, as in HdrHistogram's own tools.
const TICKS_PER_HALF_DISTANCE: u32 = 5;

/// The percentile distribution of a histogram of nanoseconds, its values in microseconds.
///
/// The format is that of `outputPercentileDistribution` of HdrHistogram (Java): value, quantile,
/// count up to here, and the distance to 1 as a multiple, which the last line leaves out.
pub(crate) fn render(histogram: &Histogram<u64>) -> String {
    let mut text = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    let mut count = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        count += step.count_since_last_iteration();
        let us = us(step.value_iterated_to());
        let quantile = step.quantile_iterated_to();
        text += &format!("{us:12.3} {quantile:2.12} {count:10}");
        if quantile < 1.0 {
            text += &format!(" {:14.2}", 1.0 / (1.0 - quantile));
        }
        text.push('\n');
    }
    let (mean, deviation) = (histogram.mean() / 1e3, histogram.stdev() / 1e3);
    let (max, total) = (us(histogram.max()), histogram.len());
    let (buckets, sub) = (histogram.buckets(), 2 << sub_bucket_bits(histogram.sigfig()));
    text += &format!("#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]\n");
    text += &format!("#[Max     = {max:12.3}, Total count    = {total:12}]\n");
    text + &format!("#[Buckets = {buckets:12}, SubBuckets     = {sub:12}]\n")
}

fn us(ns: u64) -> f64 {
    ns as f64 / 1e3
}

/// Sub-buckets per half bucket, as a power of two, that tell `digits` decimal digits apart.
fn sub_bucket_bits(digits: u8) -> u32 {
    10_u64.pow(u32::from(digits)).next_power_of_two().ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram() -> Histogram<u64> {
        let mut histogram = Histogram::new_with_bounds(1, 3_600_000_000_000, 3).unwrap();
        (1..=1000_u64).for_each(|us| histogram.record(us * 1000).unwrap());
        histogram
    }

    /// Value, quantile, count and the inverse of the distance, where there is one.
    fn lines(text: &str) -> Vec<Vec<f64>> {
        let numbers = |line: &str| line.split_whitespace().map(|n| n.parse().unwrap()).collect();
        text.lines().skip(2).filter(|line| !line.starts_with('#')).map(numbers).collect()
    }

    #[test]
    fn the_head_and_the_tail_are_those_of_hdr_histogram() {
        let text = render(&histogram());
        assert!(text.starts_with("       Value     Percentile TotalCount 1/(1-Percentile)\n\n"));
        let tail: Vec<&str> = text.lines().rev().take(3).collect();
        // 1000 us to three digits: the end of the bucket.
        assert_eq!(tail[1], "#[Max     =     1000.447, Total count    =         1000]");
        assert!(tail[0].ends_with("SubBuckets     =         2048]"), "{}", tail[0]);
        assert!(tail[2].starts_with("#[Mean    =      500."), "{}", tail[2]);
    }

    #[test]
    fn lines_ascend_to_all_that_was_counted() {
        let lines = lines(&render(&histogram()));
        assert!(lines.is_sorted_by(|a, b| a[0] <= b[0] && a[1] <= b[1] && a[2] <= b[2]));
        let last = lines.last().unwrap();
        assert_eq!(last[1..], [1.0, 1000.0], "the last line has no inverse");
        let half = lines.iter().find(|line| line[1] == 0.5).unwrap();
        assert!((half[0] - 500.0).abs() < 1.0 && half[3] == 2.0, "{half:?}");
    }
}
