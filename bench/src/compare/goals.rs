//! Goals of a scenario, judged by the medians of the run. Pure.

use super::scenario::Goal;
use crate::report::metric::Metric;
use crate::report::{Bound, GoalResult, Outcome, PeerResult};
use crate::stats::Ratio;

/// Judges every goal for each of its peers that was asked for.
pub(crate) fn judge_all(
    goals: &[Goal],
    results: &[PeerResult],
    asked: &[String],
) -> Vec<GoalResult> {
    goals
        .iter()
        .flat_map(|goal| goal.peers.iter().map(move |peer| (goal, peer)))
        .filter(|(_, peer)| asked.contains(peer))
        .map(|(goal, peer)| judge(goal, peer, results))
        .collect()
}

fn judge(goal: &Goal, peer: &str, results: &[PeerResult]) -> GoalResult {
    let measured = measure(goal, peer, results);
    let met = |value: f64| match goal.bound {
        Bound::AtMost => value <= goal.limit,
        Bound::AtLeast => value >= goal.limit,
    };
    let outcome = match &measured {
        Ok(value) if met(*value) => Outcome::Met,
        Ok(_) => Outcome::Missed,
        Err(_) => Outcome::NotJudged,
    };
    let margin = |value: f64| {
        let over = (value - goal.limit) / goal.limit * 100.0;
        if goal.bound == Bound::AtMost { -over } else { over }
    };
    GoalResult {
        peer: peer.to_owned(),
        metric: goal.metric,
        unit: if goal.relative_to.is_some() { "x" } else { goal.metric.unit() },
        relative_to: goal.relative_to.clone(),
        bound: goal.bound,
        wanted: goal.limit,
        outcome,
        margin_percent: measured.as_ref().ok().map(|value| margin(*value)),
        measured: measured.as_ref().ok().copied(),
        reason: measured.err(),
    }
}

/// The median, as a multiple of the reference's where the goal has one; else why there is none.
fn measure(goal: &Goal, peer: &str, results: &[PeerResult]) -> Result<f64, String> {
    let values = values_of(results, peer, goal.metric)?;
    let Some(reference) = &goal.relative_to else {
        return crate::stats::median(values).ok_or_else(|| format!("{peer} has no figures"));
    };
    let theirs = values_of(results, reference, goal.metric)?;
    let ratio = Ratio::of(reference, values, theirs);
    ratio.map(|ratio| ratio.value).ok_or_else(|| format!("{reference} has a zero to divide by"))
}

fn values_of<'a>(
    results: &'a [PeerResult],
    peer: &str,
    metric: Metric,
) -> Result<&'a [f64], String> {
    let none = || format!("{peer} has no {} here", metric.heading());
    let result = results.iter().find(|result| result.peer == peer).ok_or_else(none)?;
    let found = result.metrics.iter().find(|found| found.metric == metric).ok_or_else(none)?;
    Ok(&found.summary.values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{MetricResult, Noise};
    use crate::stats::Summary;

    fn result(peer: &str, cpu: [f64; 3]) -> PeerResult {
        let summary = Summary::of(&cpu).unwrap();
        PeerResult {
            peer: peer.to_owned(),
            metrics: vec![MetricResult::new(Metric::CpuPerGib, summary, Vec::new())],
            distributions: Vec::new(),
            noise: Noise::default(),
            threads: Vec::new(),
        }
    }

    fn goal(relative_to: Option<&str>, bound: Bound, limit: f64) -> Goal {
        Goal {
            metric: Metric::CpuPerGib,
            peers: vec!["ours".to_owned()],
            relative_to: relative_to.map(str::to_owned),
            bound,
            limit,
        }
    }

    fn one(goal: Goal, results: &[PeerResult]) -> GoalResult {
        judge_all(&[goal], results, &["ours".to_owned()]).remove(0)
    }

    #[test]
    fn a_relative_goal_takes_ratios_round_by_round_and_says_by_how_much() {
        let results = [result("ours", [1.0, 2.0, 3.0]), result("rival", [2.0, 4.0, 6.0])];
        let met = one(goal(Some("rival"), Bound::AtMost, 0.625), &results);
        assert_eq!((met.outcome, met.measured, met.unit), (Outcome::Met, Some(0.5), "x"));
        assert_eq!(met.margin_percent, Some(20.0));
        let missed = one(goal(Some("rival"), Bound::AtLeast, 0.625), &results);
        assert_eq!((missed.outcome, missed.margin_percent), (Outcome::Missed, Some(-20.0)));
    }

    #[test]
    fn an_absolute_goal_is_in_the_metrics_unit() {
        let results = [result("ours", [1.0, 2.0, 3.0])];
        let found = one(goal(None, Bound::AtMost, 2.0), &results);
        assert_eq!((found.outcome, found.measured), (Outcome::Met, Some(2.0)));
        assert_eq!(found.unit, Metric::CpuPerGib.unit());
    }

    #[test]
    fn a_goal_whose_reference_has_no_figures_is_not_judged_and_says_so() {
        let results = [result("ours", [1.0, 2.0, 3.0])];
        let found = one(goal(Some("rival"), Bound::AtMost, 1.0), &results);
        assert_eq!((found.outcome, found.measured), (Outcome::NotJudged, None));
        assert!(found.reason.unwrap().contains("rival"));
    }

    #[test]
    fn peers_nobody_asked_for_have_no_goals() {
        let found = judge_all(&[goal(None, Bound::AtMost, 1.0)], &[], &["direct".to_owned()]);
        assert!(found.is_empty());
    }
}
