//! The Prometheus text format, version 0.0.4. Pure.
use std::fmt::{Display, Write};

use hdrhistogram::Histogram;

/// Upper bounds of round-trip buckets, in seconds: dense where interactive use feels a difference (5-200 ms), and down to
/// 100 us for one's own network.
const RTT_BOUNDS: [f64; 16] = [
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2,
    0.5, 1.0,
];

/// Upper bounds of stalls and times to a direct path, in seconds: round trips first, then what the slowest peers take.
pub(super) const WAIT_BOUNDS: [f64; 16] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0];

/// A page in the making. A family's samples follow its head at once, as the format demands.
#[derive(Debug, Default)]
pub(super) struct Page {
    text: String,
    family: String,
}

/// Names and values of labels.
pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

impl Page {
    /// Starts a family of type `counter`, `gauge` or `histogram`.
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) -> &mut Self {
        name.clone_into(&mut self.family);
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        self.put(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        self
    }

    pub(super) fn sample(&mut self, labels: Labels<'_>, value: impl Display) -> &mut Self {
        self.line("", labels, value)
    }

    /// A family of one sample.
    pub(super) fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help).sample(&[], value);
    }

    /// Samples of a histogram of round-trip times in microseconds, as cumulative buckets of seconds.
    pub(super) fn histogram_us(&mut self, labels: Labels<'_>, histogram: &Histogram<u64>) {
        self.histogram_within(labels, histogram, RTT_BOUNDS);
    }

    /// The same within these bounds, in seconds.
    pub(super) fn histogram_within<const N: usize>(
        &mut self,
        labels: Labels<'_>,
        histogram: &Histogram<u64>,
        bounds: [f64; N],
    ) {
        let mut sum_us = 0.0;
        let mut counts = [0; N];
        for step in histogram.iter_recorded() {
            let (value, count) = (step.value_iterated_to() as f64, step.count_at_value());
            sum_us += value * count as f64;
            // The histogram's own resolution rounds up; half a step must not lift a value over its bound.
            let lowest = histogram.lowest_equivalent(step.value_iterated_to()) as f64;
            for (bound, total) in bounds.iter().zip(&mut counts) {
                if lowest <= bound * 1e6 {
                    *total += count;
                }
            }
        }
        for (bound, total) in bounds.iter().zip(counts) {
            let bound = bound.to_string();
            self.line("_bucket", &with(labels, "le", &bound), total);
        }
        self.line("_bucket", &with(labels, "le", "+Inf"), histogram.len());
        self.line("_sum", labels, sum_us / 1e6);
        self.line("_count", labels, histogram.len());
    }

    pub(super) fn finish(self) -> String {
        self.text
    }

    fn line(&mut self, suffix: &str, labels: Labels<'_>, value: impl Display) -> &mut Self {
        let family = std::mem::take(&mut self.family);
        self.put(format_args!("{family}{suffix}"));
        for (index, (name, value)) in labels.iter().enumerate() {
            let opening = if index == 0 { '{' } else { ',' };
            self.put(format_args!("{opening}{name}=\"{}\"", escape(value)));
        }
        let closing = if labels.is_empty() { "" } else { "}" };
        self.put(format_args!("{closing} {value}\n"));
        self.family = family;
        self
    }

    fn put(&mut self, arguments: std::fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ = self.text.write_fmt(arguments);
    }
}

fn with<'a>(labels: Labels<'a>, name: &'a str, value: &'a str) -> Vec<(&'a str, &'a str)> {
    labels.iter().copied().chain([(name, value)]).collect()
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_follow_their_head_and_labels_are_escaped() {
        let mut page = Page::default();
        page.family("x_total", "counter", "Things\nof \\ note.")
            .sample(&[("why", "a \"b\"\\\n")], 1)
            .sample(&[("why", "c"), ("side", "d")], 2);
        page.single("y", "gauge", "Y.", 0.5);
        let expected = "# HELP x_total Things\\nof \\\\ note.\n# TYPE x_total counter\n\
            x_total{why=\"a \\\"b\\\"\\\\\\n\"} 1\nx_total{why=\"c\",side=\"d\"} 2\n\
            # HELP y Y.\n# TYPE y gauge\ny 0.5\n";
        assert_eq!(page.finish(), expected);
    }

    #[test]
    fn buckets_are_cumulative_and_in_seconds() {
        let mut histogram = Histogram::<u64>::new(3).unwrap();
        for value in [50, 100, 1_000, 30_000, 2_000_000] {
            histogram.record(value).unwrap();
        }
        let mut page = Page::default();
        page.family("rtt_seconds", "histogram", "R.");
        page.histogram_us(&[("side", "client")], &histogram);
        let text = page.finish();
        for line in [
            "rtt_seconds_bucket{side=\"client\",le=\"0.0001\"} 2",
            "rtt_seconds_bucket{side=\"client\",le=\"0.001\"} 3",
            "rtt_seconds_bucket{side=\"client\",le=\"0.03\"} 4",
            "rtt_seconds_bucket{side=\"client\",le=\"1\"} 4",
            "rtt_seconds_bucket{side=\"client\",le=\"+Inf\"} 5",
            "rtt_seconds_count{side=\"client\"} 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let sum =
            text.lines().find_map(|line| line.strip_prefix("rtt_seconds_sum{side=\"client\"} "));
        let sum: f64 = sum.unwrap().parse().unwrap();
        assert!((sum - 2.031_15).abs() < 0.003, "{sum}");
    }
}
