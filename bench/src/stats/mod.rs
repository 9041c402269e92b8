//! Summaries of a handful of rounds: median, spread, ratios and whether a difference is established.
//!
//! Rounds are few (5 by default) and their noise is not normal (other tenants, time slices), so
//! everything here is order statistics: the median, the range, the median absolute deviation, and
//! an exact rank test.

mod rank;

pub(crate) use rank::rank_test;

use serde::Serialize;

/// A difference is called established below this probability of arising by chance.
///
/// 0.05 is the custom of the field. Two groups of 4 rounds can just reach it (2/70 = 0.029), two
/// groups of 3 cannot (2/20 = 0.1): see [`ROUNDS_MIN_TO_COMPARE`].
pub(crate) const SIGNIFICANCE: f64 = 0.05;

/// Fewest rounds with which the rank test can reach [`SIGNIFICANCE`] at all.
pub(crate) const ROUNDS_MIN_TO_COMPARE: usize = 4;

/// One metric of one peer over all rounds. Values keep the order of the rounds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) values: Vec<f64>,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// Median absolute deviation from the median, in the metric's unit.
    pub(crate) mad: f64,
}

impl Summary {
    /// Summarises `values`; `None` when there are none.
    pub(crate) fn of(values: &[f64]) -> Option<Summary> {
        let middle = median(values)?;
        let deviations: Vec<f64> = values.iter().map(|v| (v - middle).abs()).collect();
        Some(Summary {
            values: values.to_vec(),
            median: middle,
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            mad: median(&deviations)?,
        })
    }
}

/// One metric of a peer as a multiple of the same metric of another peer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Ratio {
    /// The peer in the denominator.
    pub(crate) to: String,
    /// Median of ours divided by median of theirs.
    pub(crate) value: f64,
    /// Least and greatest of the ratios taken round by round.
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// Two-sided probability, by the rank test, that chance alone separates the two groups so far.
    /// `None` after one round, which tests nothing.
    pub(crate) p_value: Option<f64>,
    /// `p_value` is below [`SIGNIFICANCE`]. Only then may anybody say that one differs.
    pub(crate) established: bool,
}

impl Ratio {
    /// Compares `ours` with `theirs`, both in the order of the rounds.
    ///
    /// `None` when either is empty or a denominator is zero (an idle CPU, for instance).
    pub(crate) fn of(to: &str, ours: &[f64], theirs: &[f64]) -> Option<Ratio> {
        if theirs.contains(&0.0) {
            return None;
        }
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
        let summary = Summary::of(&ratios)?;
        let p_value = (ratios.len() > 1).then(|| rank_test(ours, theirs));
        Some(Ratio {
            to: to.to_owned(),
            value: median(ours)? / median(theirs)?,
            min: summary.min,
            max: summary.max,
            p_value,
            established: p_value.is_some_and(|p| p < SIGNIFICANCE),
        })
    }
}

/// The median; the mean of the middle two for an even count. `None` for an empty slice.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(sorted[sorted.len() / 2 - 1], upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_takes_the_middle_or_the_mean_of_the_middle_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn summary_keeps_rounds_in_order_and_states_the_spread() {
        let summary = Summary::of(&[5.0, 1.0, 2.0, 3.0, 100.0]).unwrap();
        assert_eq!(summary.values, [5.0, 1.0, 2.0, 3.0, 100.0]);
        assert_eq!((summary.median, summary.min, summary.max), (3.0, 1.0, 100.0));
        assert_eq!(summary.mad, 2.0);
    }

    #[test]
    fn ratios_are_paired_by_round_so_drift_cancels() {
        let theirs = [10.0, 20.0, 30.0, 40.0, 50.0];
        let ours: Vec<f64> = theirs.iter().map(|v| v * 0.5).collect();
        let ratio = Ratio::of("peer", &ours, &theirs).unwrap();
        assert_eq!((ratio.value, ratio.min, ratio.max), (0.5, 0.5, 0.5));
    }

    #[test]
    fn a_zero_denominator_has_no_ratio() {
        assert_eq!(Ratio::of("direct", &[1.0], &[0.0]), None);
    }

    #[test]
    fn separated_groups_differ_and_overlapping_groups_do_not() {
        let low = [1.0, 1.1, 1.2, 1.3, 1.4];
        let high = [2.0, 2.1, 2.2, 2.3, 2.4];
        assert!(Ratio::of("x", &low, &high).unwrap().established);
        let mixed = [0.9, 1.15, 1.25, 1.35, 1.5];
        assert!(!Ratio::of("x", &low, &mixed).unwrap().established);
    }
}
