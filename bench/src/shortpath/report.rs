//! What a run of experiments found, as data. The JSON forms are `schema/shortpath-1.json` and `schema/control-1.json`.

use serde::Serialize;

use super::goals::{Goal, Judged, Metric, Sample, Statistic};
use super::taken::Taken;
use super::trace::histogram;
use crate::compare::timings::distribution;
use crate::load::sample::LabelledHistogram;
use crate::measure::host::Host;
use crate::report::{Distribution, Failure, Outcome, PeerVersion, Skipped};

/// Names the shape of a `shortpath` run's [`ClaimsReport`]; the number changes when a reader would break.
pub(crate) const SCHEMA: &str = "switchback-bench/shortpath/1";

/// Everything that `switchback-bench shortpath` or `control` found: claims, each with figures and goals.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ClaimsReport {
    pub(crate) schema: &'static str,
    /// What is compared within a case: `peer`, or `variant` where it is ourselves under different circumstances.
    #[serde(skip)]
    pub(crate) compared: &'static str,
    pub(crate) bench_version: &'static str,
    /// The arguments of the run, without the program's name.
    pub(crate) command: String,
    pub(crate) host: Host,
    pub(crate) quick: bool,
    /// Of all chance: losses and ports in a lab, arrivals.
    pub(crate) seed: u64,
    pub(crate) peers: Vec<PeerVersion>,
    /// Peers that were asked for and are not on this machine.
    pub(crate) skipped: Vec<Skipped>,
    pub(crate) experiments: Vec<ExperimentReport>,
    /// Measurements without figures: the first of each peer and case.
    pub(crate) failures: Vec<Failure>,
    pub(crate) warnings: Vec<String>,
}

/// One claim.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ExperimentReport {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) claim: &'static str,
    pub(crate) rounds: usize,
    /// What was left out, and why.
    pub(crate) notes: Vec<String>,
    pub(crate) cases: Vec<CaseReport>,
}

/// One set of conditions.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CaseReport {
    pub(crate) name: String,
    pub(crate) results: Vec<PeerResult>,
    pub(crate) goals: Vec<Judged>,
}

/// One peer under one set of conditions.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PeerResult {
    pub(crate) peer: &'static str,
    pub(crate) measured: usize,
    /// Measurements that ended without figures.
    pub(crate) failed: usize,
    pub(crate) figures: Vec<Figure>,
    pub(crate) facts: Vec<Fact>,
    /// Of the echo's messages, all rounds merged, where latency is the claim.
    pub(crate) distribution: Option<Distribution>,
}

/// A metric's values over the rounds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) metric: &'static str,
    pub(crate) unit: &'static str,
    /// In the order they were measured.
    pub(crate) values: Vec<f64>,
    pub(crate) p50: f64,
    /// Of fewer than a hundred values the greatest.
    pub(crate) p99: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// Words, and how often they were said.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Fact {
    pub(crate) name: &'static str,
    pub(crate) text: String,
    pub(crate) times: usize,
}

impl CaseReport {
    /// What `outcomes` (samples and failures by peer) come to.
    pub(crate) fn of(name: &str, goals: &[Goal], outcomes: &[Taken]) -> CaseReport {
        let measured = outcomes.iter().filter(|taken| taken.samples.len() + taken.failed > 0);
        let results = measured.map(result);
        let values = |peer: &str, metric: Metric| {
            let of = outcomes.iter().filter(|taken| taken.name == peer);
            of.flat_map(|taken| values(&taken.samples, metric)).collect()
        };
        let judge = |goal: &Goal| {
            let judged = goal.judge(values);
            let failed = outcomes.iter().find(|taken| taken.name == goal.peer);
            without_failures(judged, failed.map_or(0, |taken| taken.failed))
        };
        let asked = |goal: &&Goal| outcomes.iter().any(|taken| taken.name == goal.peer);
        CaseReport {
            name: name.to_owned(),
            results: results.collect(),
            goals: goals.iter().filter(asked).map(judge).collect(),
        }
    }
}

/// A goal is not met by the measurements that happened to work.
fn without_failures(judged: Judged, failed: usize) -> Judged {
    if failed == 0 || judged.outcome == Outcome::Missed {
        return judged;
    }
    let reason = Some(format!("{failed} measurements failed"));
    Judged { outcome: Outcome::Missed, reason, ..judged }
}

fn values(samples: &[Sample], metric: Metric) -> Vec<f64> {
    let figures = samples.iter().flat_map(|sample| &sample.figures);
    figures.filter(|(known, _)| *known == metric).map(|(_, value)| *value).collect()
}

fn result(Taken { name: peer, samples, failed }: &Taken) -> PeerResult {
    let mut metrics: Vec<Metric> = Vec::new();
    let mut facts: Vec<Fact> = Vec::new();
    for sample in samples {
        for (metric, _) in &sample.figures {
            if !metrics.contains(metric) {
                metrics.push(*metric);
            }
        }
        for (name, text) in &sample.facts {
            match facts.iter_mut().find(|fact| fact.name == *name && fact.text == *text) {
                Some(fact) => fact.times += 1,
                None => facts.push(Fact { name, text: text.clone(), times: 1 }),
            }
        }
    }
    let figure = |metric: &Metric| {
        let values = values(samples, *metric);
        let of = |statistic: Statistic| statistic.of(&values).unwrap_or_default();
        let (p50, p99, min) = (of(Statistic::P50), of(Statistic::P99), of(Statistic::Min));
        let max = values.iter().copied().fold(min, f64::max);
        let Metric { name, unit } = *metric;
        Figure { metric: name, unit, p50, p99, min, max, values }
    };
    let latencies: Vec<u64> = samples.iter().flat_map(|sample| sample.latencies.clone()).collect();
    let merged = || LabelledHistogram { label: "round-trip", histogram: histogram(&latencies) };
    PeerResult {
        peer,
        measured: samples.len() + failed,
        failed: *failed,
        figures: metrics.iter().map(figure).collect(),
        facts,
        distribution: (!latencies.is_empty()).then(|| distribution(&merged())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Metric = Metric::ms("stall");

    fn case(samples: Vec<Sample>, failed: usize) -> CaseReport {
        let goal = |peer| Goal::at_most(peer, STALL, Statistic::P50, 100.0);
        let goals = [goal("switchback"), goal("switchback-tcp")];
        CaseReport::of("cut", &goals, &[Taken { name: "switchback", samples, failed }])
    }

    fn sample(stall: f64) -> Sample {
        Sample::default().with(STALL, stall).told("transport", "UDP")
    }

    #[test]
    fn rounds_become_figures_and_words_are_counted() {
        let samples = vec![sample(90.0), sample(110.0), sample(80.0)];
        let report = case(samples, 0);
        let figure = &report.results[0].figures[0];
        assert_eq!((figure.p50, figure.p99, figure.min, figure.max), (90.0, 110.0, 80.0, 110.0));
        assert_eq!(figure.values, [90.0, 110.0, 80.0]);
        assert_eq!(report.results[0].facts[0].times, 3);
        // The goal of who was not asked for is left out.
        assert_eq!(report.goals.len(), 1);
        assert_eq!(report.goals[0].outcome, Outcome::Met);
    }

    #[test]
    fn a_goal_is_missed_when_a_measurement_failed() {
        let report = case(vec![sample(90.0)], 1);
        assert_eq!(report.goals[0].outcome, Outcome::Missed);
        assert_eq!(report.results[0].measured, 2);
        let nothing = case(Vec::new(), 0);
        assert_eq!(nothing.goals[0].outcome, Outcome::NotJudged);
        assert!(nothing.results.is_empty());
    }
}
