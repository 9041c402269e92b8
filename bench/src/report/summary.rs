//! The summary of a document: one row per figure that has goals. Pure.

use std::collections::BTreeSet;

use super::grid::{markdown_table, number};
use super::metric::Metric;
use super::text::{amount, limit};
use super::{CompareReport, GoalResult, Outcome, PeerResult, ScenarioReport};
use crate::peers::direct::DIRECT;

/// A markdown table: scenario and figure, ours, direct, the best rival, and what became of the
/// goals. Empty where no scenario has goals.
pub(crate) fn table(report: &CompareReport) -> String {
    let ours: Vec<&str> =
        report.peers.iter().filter(|peer| peer.ours).map(|peer| peer.name.as_str()).collect();
    let rows: Vec<Vec<String>> = report
        .scenarios
        .iter()
        .flat_map(|scenario| judged_metrics(scenario).into_iter().map(move |m| (scenario, m)))
        .map(|(scenario, metric)| row(scenario, metric, &ours))
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let mut header = vec!["scenario".to_owned(), "figure".to_owned()];
    header.extend(ours.iter().map(|name| (*name).to_owned()));
    header.extend(["direct", "best rival", "goals"].map(str::to_owned));
    markdown_table(&header, rows.into_iter())
}

fn judged_metrics(scenario: &ScenarioReport) -> BTreeSet<Metric> {
    scenario.goals.iter().map(|goal| goal.metric).collect()
}

fn row(scenario: &ScenarioReport, metric: Metric, ours: &[&str]) -> Vec<String> {
    let figure = |peer: &str| {
        let result = scenario.results.iter().find(|result| result.peer == peer);
        result.and_then(|result| median(result, metric)).map_or("-".to_owned(), number)
    };
    let mut cells = vec![
        scenario.name.clone(),
        format!("{} {}", metric.heading(), metric.unit()).trim_end().to_owned(),
    ];
    cells.extend(ours.iter().map(|peer| figure(peer)));
    cells.push(figure(DIRECT));
    cells.push(best_rival(scenario, metric, ours).unwrap_or_else(|| "-".to_owned()));
    let goals = scenario.goals.iter().filter(|goal| goal.metric == metric);
    let goals: Vec<String> =
        goals.map(|goal| verdict(goal) + &doubts(scenario, &goal.peer)).collect();
    cells.push(goals.join("\n"));
    cells
}

fn median(result: &PeerResult, metric: Metric) -> Option<f64> {
    let found = result.metrics.iter().find(|found| found.metric == metric)?;
    Some(found.summary.median)
}

/// The relay with the best median that is not ours, and that median.
fn best_rival(scenario: &ScenarioReport, metric: Metric, ours: &[&str]) -> Option<String> {
    let sign = if metric.better() == "higher" { -1.0 } else { 1.0 };
    let is_rival = |name: &str| name != DIRECT && !ours.contains(&name);
    scenario
        .results
        .iter()
        .filter(|result| is_rival(&result.peer))
        .filter_map(|result| Some((median(result, metric)?, &result.peer)))
        .min_by(|(a, _), (b, _)| (a * sign).total_cmp(&(b * sign)))
        .map(|(value, peer)| format!("{} {peer}", number(value)))
}

/// ` (noisy)`: the marks of the peer's row.
fn doubts(scenario: &ScenarioReport, peer: &str) -> String {
    let result = scenario.results.iter().find(|result| result.peer == peer);
    let marks = result.map(|result| result.noise.marks.join(", ")).unwrap_or_default();
    if marks.is_empty() { marks } else { format!(" ({marks})") }
}

/// `met: switchback-uring 0.61x <= 0.65x haproxy-splice`.
fn verdict(goal: &GoalResult) -> String {
    let verdict = match goal.outcome {
        Outcome::Met => "met",
        Outcome::Missed => "MISSED",
        Outcome::NotJudged => "not judged",
    };
    let measured = goal.measured.map(|value| amount(value, goal.unit)).unwrap_or_default();
    format!("{verdict}: {} {measured} {}", goal.peer, limit(goal)).replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::workload::Workload;
    use crate::report::{Bound, MetricResult, Noise};
    use crate::stats::Summary;

    fn result(peer: &str, gbit_s: f64) -> PeerResult {
        let summary = Summary::of(&[gbit_s]).unwrap();
        PeerResult {
            peer: peer.to_owned(),
            metrics: vec![MetricResult::new(Metric::Throughput, summary, Vec::new())],
            distributions: Vec::new(),
            noise: Noise::default(),
            threads: Vec::new(),
        }
    }

    #[test]
    fn a_row_names_the_best_rival_and_what_became_of_the_goals() {
        let goal = GoalResult {
            peer: "ours".into(),
            metric: Metric::Throughput,
            unit: "x",
            relative_to: Some(DIRECT.into()),
            bound: Bound::AtLeast,
            wanted: 0.97,
            measured: Some(0.9),
            outcome: Outcome::Missed,
            margin_percent: Some(-7.0),
            reason: None,
        };
        let scenario = ScenarioReport {
            name: "bulk8".into(),
            title: String::new(),
            claim: String::new(),
            workload: Workload::Bulk { flows: 8, both_ways: false },
            notes: Vec::new(),
            results: vec![
                result(DIRECT, 50.0),
                result("slow", 20.0),
                result("fast", 40.0),
                result("ours", 45.0),
            ],
            goals: vec![goal],
        };
        let cells = row(&scenario, Metric::Throughput, &["ours", "absent"]);
        let expected = ["bulk8", "throughput Gbit/s", "45.0", "-", "50.0", "40.0 fast"];
        assert_eq!(cells[..6], expected);
        assert_eq!(cells[6], "MISSED: ours 0.90x >= 0.97x direct");
    }
}
