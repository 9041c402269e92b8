//! What is to be reached, and whether it was. Pure.

use serde::Serialize;

use crate::report::{Bound, Outcome};

/// A figure's name and unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
}

impl Metric {
    /// Milliseconds.
    pub(crate) const fn ms(name: &'static str) -> Metric {
        Metric { name, unit: "ms" }
    }

    /// A share of 1, or yes (1) and no (0).
    pub(crate) const fn share(name: &'static str) -> Metric {
        Metric { name, unit: "share" }
    }
}

/// One measurement's figures by metric, and what cannot be a figure.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sample {
    pub(crate) figures: Vec<(Metric, f64)>,
    /// Words, as the transport's label.
    pub(crate) facts: Vec<(&'static str, String)>,
    /// What each message took, in nanoseconds.
    pub(crate) latencies: Vec<u64>,
}

impl Sample {
    /// Adds a figure.
    pub(crate) fn with(mut self, metric: Metric, value: f64) -> Sample {
        self.figures.push((metric, value));
        self
    }

    /// Adds a figure if it is known.
    pub(crate) fn with_some(self, metric: Metric, value: Option<f64>) -> Sample {
        match value {
            Some(value) => self.with(metric, value),
            None => self,
        }
    }

    /// Adds words.
    pub(crate) fn told(mut self, name: &'static str, text: impl Into<String>) -> Sample {
        self.facts.push((name, text.into()));
        self
    }
}

/// Which of a metric's values a goal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Statistic {
    /// The median.
    P50,
    /// The 99th percentile: of few values the greatest.
    P99,
    /// The least.
    Min,
    /// All of them together.
    Sum,
}

impl Statistic {
    /// Of these values; `None` without any.
    pub(crate) fn of(self, values: &[f64]) -> Option<f64> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let rank = |share: f64| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).copied()
        };
        match self {
            Statistic::P50 => rank(0.5),
            Statistic::P99 => rank(0.99),
            Statistic::Min => sorted.first().copied(),
            Statistic::Sum => (!sorted.is_empty()).then(|| sorted.iter().sum()),
        }
    }
}

/// A bound on a figure of ours, or on its ratio to a peer's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Goal {
    pub(crate) peer: &'static str,
    pub(crate) metric: Metric,
    pub(crate) statistic: Statistic,
    pub(crate) bound: Bound,
    pub(crate) value: f64,
    /// The bound is `value` times this peer's same figure, plus so much.
    pub(crate) relative_to: Option<(&'static str, f64)>,
}

impl Goal {
    /// At most so much.
    pub(crate) fn at_most(
        peer: &'static str,
        metric: Metric,
        statistic: Statistic,
        value: f64,
    ) -> Goal {
        Goal { peer, metric, statistic, bound: Bound::AtMost, value, relative_to: None }
    }

    /// At least so much.
    pub(crate) fn at_least(
        peer: &'static str,
        metric: Metric,
        statistic: Statistic,
        value: f64,
    ) -> Goal {
        Goal { bound: Bound::AtLeast, ..Goal::at_most(peer, metric, statistic, value) }
    }

    /// The bound is a multiple of `other`'s same figure, plus `more`.
    pub(crate) fn times(self, other: &'static str, more: f64) -> Goal {
        Goal { relative_to: Some((other, more)), ..self }
    }

    /// Judges it by what `values` has for a peer and metric.
    pub(crate) fn judge(&self, values: impl Fn(&str, Metric) -> Vec<f64>) -> Judged {
        let of = |peer| self.statistic.of(&values(peer, self.metric));
        let measured = of(self.peer);
        let wanted = match self.relative_to {
            None => Some(self.value),
            Some((other, more)) => of(other).map(|other| self.value * other + more),
        };
        let (outcome, reason) = match (measured, wanted) {
            (None, _) => (Outcome::NotJudged, Some(format!("{} has no such figure", self.peer))),
            (_, None) => {
                let other = self.relative_to.map_or("", |(other, _)| other);
                (Outcome::NotJudged, Some(format!("{other} has no such figure")))
            }
            (Some(measured), Some(wanted)) => {
                let met = match self.bound {
                    Bound::AtMost => measured <= wanted,
                    Bound::AtLeast => measured >= wanted,
                };
                (if met { Outcome::Met } else { Outcome::Missed }, None)
            }
        };
        Judged {
            peer: self.peer,
            metric: self.metric.name,
            unit: self.metric.unit,
            statistic: self.statistic,
            bound: self.bound,
            relative_to: self.relative_to.map(|(other, _)| other),
            wanted,
            measured,
            outcome,
            reason,
        }
    }
}

/// A goal and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Judged {
    pub(crate) peer: &'static str,
    pub(crate) metric: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) statistic: Statistic,
    pub(crate) bound: Bound,
    /// `wanted` was derived from this peer's figure.
    pub(crate) relative_to: Option<&'static str>,
    /// `None`: it depends on a peer without figures.
    pub(crate) wanted: Option<f64>,
    pub(crate) measured: Option<f64>,
    pub(crate) outcome: Outcome,
    /// Why it could not be judged.
    pub(crate) reason: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Metric = Metric::ms("stall");

    fn judged(goal: Goal, ours: &[f64], theirs: &[f64]) -> Judged {
        goal.judge(|peer, metric| match (peer, metric.name) {
            ("ours", "stall") => ours.to_vec(),
            ("theirs", "stall") => theirs.to_vec(),
            _ => Vec::new(),
        })
    }

    #[test]
    fn of_few_rounds_the_99th_percentile_is_the_worst_and_the_median_one_that_occurred() {
        let values = [5.0, 1.0, 9.0, 3.0];
        let of = |statistic: Statistic| statistic.of(&values).unwrap();
        assert_eq!(
            [Statistic::P50, Statistic::P99, Statistic::Min, Statistic::Sum].map(of),
            [3.0, 9.0, 1.0, 18.0]
        );
        assert_eq!(Statistic::P99.of(&[]), None);
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(Statistic::P99.of(&hundred), Some(99.0));
    }

    #[test]
    fn a_goal_is_met_on_its_bound_and_missed_beyond() {
        let most = Goal::at_most("ours", STALL, Statistic::P50, 120.0);
        assert_eq!(judged(most, &[120.0], &[]).outcome, Outcome::Met);
        assert_eq!(judged(most, &[120.1], &[]).outcome, Outcome::Missed);
        let least = Goal::at_least("ours", STALL, Statistic::Min, 1.0);
        assert_eq!(judged(least, &[1.0, 1.0], &[]).outcome, Outcome::Met);
        assert_eq!(judged(least, &[1.0, 0.0], &[]).outcome, Outcome::Missed);
    }

    #[test]
    fn a_relative_goal_follows_the_other_peer_in_the_same_case() {
        let goal = Goal::at_most("ours", STALL, Statistic::P50, 0.8).times("theirs", 1.0);
        let met = judged(goal, &[9.0], &[10.0]);
        assert_eq!((met.outcome, met.wanted), (Outcome::Met, Some(9.0)));
        assert_eq!(judged(goal, &[9.1], &[10.0]).outcome, Outcome::Missed);
    }

    #[test]
    fn what_was_not_measured_is_not_judged_and_says_who_is_missing() {
        let goal = Goal::at_most("ours", STALL, Statistic::P50, 1.0).times("theirs", 0.0);
        let judged_without = |ours: &[f64]| judged(goal, ours, &[]);
        assert_eq!(judged_without(&[]).reason.unwrap(), "ours has no such figure");
        let missing = judged_without(&[0.5]);
        assert_eq!(missing.outcome, Outcome::NotJudged);
        assert_eq!(missing.reason.unwrap(), "theirs has no such figure");
    }
}
