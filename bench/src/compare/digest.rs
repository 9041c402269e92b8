//! From samples to figures: medians, spread, added latency, ratios, noise marks. Pure.

use super::goals::judge_all;
use super::rounds::Samples;
use super::scenario::Scenario;
use super::timings::{Timing, distribution, merged};
use crate::load::sample::Sample;
use crate::load::workload::Workload;
use crate::peers::direct::DIRECT;
use crate::report::metric::Metric;
use crate::report::{MetricResult, Noise, OURS, PeerResult, ScenarioReport};
use crate::stats::{Ratio, Summary};

/// One scenario's figures, and the timings behind them by peer.
#[derive(Debug)]
pub(crate) struct Digest {
    pub(crate) report: ScenarioReport,
    pub(crate) timings: Vec<Timing>,
}

/// Peers that ratios refer to.
const REFERENCES: [&str; 2] = [DIRECT, OURS];

/// Above this share of stolen or foreign CPU time a figure is marked as noisy.
///
/// One measurement of 2 s on 2 CPUs has 400 ticks: 5 % is 20 of them, well above their rounding
/// and enough to move a median by about as much.
const NOISY_SHARE: f64 = 0.05;

/// Above this the generator's core, not the peer, is the limit.
const SATURATED_SHARE: f64 = 0.95;

/// Above this share of late sends the generator shapes the latency percentiles: p99 looks at 1 %.
const LATE_SHARE: f64 = 0.01;

/// Each metric's values by round.
type Columns = Vec<(Metric, Vec<f64>)>;

/// The digest of one scenario; peers in the order of `names`.
pub(crate) fn digest(scenario: &Scenario, samples: &Samples, names: &[String]) -> Digest {
    let table: Vec<(&String, Columns)> = names
        .iter()
        .filter_map(|name| {
            let floor = samples.get(DIRECT).filter(|_| name.as_str() != DIRECT);
            Some((name, columns(samples.get(name)?, floor)))
        })
        .collect();
    let mut timings = Vec::new();
    let mut results = Vec::new();
    for (name, columns) in &table {
        let of_peer = &samples[name.as_str()];
        let merged = merged(of_peer);
        results.push(PeerResult {
            peer: (*name).clone(),
            metrics: metrics(name, columns, &table),
            distributions: merged.iter().map(distribution).collect(),
            noise: noise(of_peer),
            threads: of_peer.last().map(|sample| sample.usage.threads.clone()).unwrap_or_default(),
        });
        timings.extend(merged.into_iter().map(|timed| Timing {
            scenario: scenario.name.clone(),
            peer: (*name).clone(),
            timed,
        }));
    }
    let report = ScenarioReport {
        name: scenario.name.clone(),
        title: scenario.title.clone(),
        claim: scenario.claim.clone(),
        workload: scenario.workload.clone(),
        notes: scenario
            .notes
            .iter()
            .cloned()
            .chain(one_round(&scenario.workload))
            .chain(held_fewer(&scenario.workload, &results))
            .collect(),
        goals: judge_all(&scenario.goals, &results, names),
        results,
    };
    Digest { report, timings }
}

/// What the reader of one round must know.
fn one_round(workload: &Workload) -> Option<String> {
    let idle = matches!(workload, Workload::Idle { .. });
    idle.then(|| "one round on a freshly started process; differences are not tested".to_owned())
}

/// A note per peer that held fewer idle sessions than it was given: its figures are of those.
fn held_fewer(workload: &Workload, results: &[PeerResult]) -> Vec<String> {
    let Workload::Idle { sessions } = *workload else { return Vec::new() };
    let note = |result: &PeerResult| {
        let held = result.metrics.iter().find(|m| m.metric == Metric::SessionsHeld)?;
        let held = held.summary.median;
        let fewer = held < sessions as f64;
        fewer.then(|| format!("{} held {held:.0} of {sessions} sessions", result.peer))
    };
    results.iter().filter_map(note).collect()
}

/// Every metric of the peer `name`, with its multiples of the references.
fn metrics(name: &str, columns: &Columns, table: &[(&String, Columns)]) -> Vec<MetricResult> {
    let values_of = |peer: &str, metric: Metric| {
        let (_, columns) = table.iter().find(|(other, _)| *other == peer)?;
        columns.iter().find(|(other, _)| *other == metric).map(|(_, values)| values.as_slice())
    };
    let result = |(metric, values): &(Metric, Vec<f64>)| {
        let ratios = REFERENCES
            .iter()
            .filter(|reference| **reference != name && metric.has_ratios())
            .filter_map(|to| Ratio::of(to, values, values_of(to, *metric)?))
            .collect();
        Some(MetricResult::new(*metric, Summary::of(values)?, ratios))
    };
    columns.iter().filter_map(result).collect()
}

/// The values of every metric by round, with the latency added to the direct connection's.
fn columns(samples: &[Sample], direct: Option<&Vec<Sample>>) -> Columns {
    let Some(first) = samples.first() else { return Vec::new() };
    let mut columns = Vec::new();
    for (metric, _) in &first.values {
        let values = column(samples, *metric);
        if let (Some(added), Some(direct)) = (metric.added(), direct) {
            let floor = column(direct, *metric);
            let over = values.iter().zip(&floor).map(|(value, floor)| value - floor).collect();
            columns.push((*metric, values));
            columns.push((added, over));
        } else {
            columns.push((*metric, values));
        }
    }
    columns
}

fn column(samples: &[Sample], metric: Metric) -> Vec<f64> {
    let value = |sample: &Sample| sample.values.iter().find(|(m, _)| *m == metric).map(|(_, v)| *v);
    samples.iter().filter_map(value).collect()
}

fn noise(samples: &[Sample]) -> Noise {
    let most = |share: fn(&Sample) -> f64| samples.iter().map(share).fold(0.0, f64::max);
    let steal_max = most(|sample| sample.usage.steal_share);
    let foreign_max = most(|sample| sample.usage.foreign_share);
    let generator_max = most(|sample| sample.busy_share);
    let late_sends_max = most(|sample| sample.late_share);
    let unanswered: u64 = samples.iter().map(|sample| sample.unanswered).sum();
    let marks = [
        (steal_max + foreign_max > NOISY_SHARE, "noisy"),
        (generator_max > SATURATED_SHARE, "generator-bound"),
        (late_sends_max > LATE_SHARE, "late-sends"),
        (unanswered > 0, "unanswered"),
    ];
    Noise {
        steal_max,
        foreign_max,
        softirq_max: most(|sample| sample.usage.softirq_share),
        relay_softirq_max: samples
            .iter()
            .filter_map(|sample| sample.usage.relay_softirq_share)
            .reduce(f64::max),
        generator_max,
        generator_wait_max: most(|sample| sample.usage.generator_wait_share),
        late_sends_max,
        unanswered,
        marks: marks.iter().filter(|(on, _)| *on).map(|(_, mark)| (*mark).to_owned()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Usage;

    const SCENARIO: &str = r#"
        name = "x"
        title = "X"
        claim = "It is fast."
        workload = { kind = "bulk", flows = 1 }
    "#;

    fn sample(values: Vec<(Metric, f64)>, foreign_share: f64) -> Sample {
        let usage = Usage { wall_s: 1.0, generator_cpu_s: 0.5, foreign_share, ..Usage::default() };
        let histograms = Vec::new();
        Sample { values, histograms, usage, busy_share: 0.5, late_share: 0.0, unanswered: 0 }
    }

    fn bulk(name: &str, gbit_s: f64, cpu: f64) -> (String, Vec<Sample>) {
        let one = |i: u32| {
            let value = gbit_s * (1.0 + f64::from(i) / 1000.0);
            sample(vec![(Metric::Throughput, value), (Metric::CpuPerGib, cpu)], 0.0)
        };
        (name.to_owned(), (0..5).map(one).collect())
    }

    fn report(samples: &Samples, names: &[&str]) -> ScenarioReport {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        digest(&Scenario::parse(SCENARIO).unwrap(), samples, &names).report
    }

    #[test]
    fn added_latency_is_taken_round_by_round() {
        let rtt =
            |values: [f64; 3]| values.map(|v| sample(vec![(Metric::RttP50, v)], 0.0)).to_vec();
        let samples = Samples::from([
            (DIRECT.to_owned(), rtt([10.0, 20.0, 30.0])),
            ("relay".to_owned(), rtt([15.0, 26.0, 35.0])),
        ]);
        let report = report(&samples, &[DIRECT, "relay"]);
        let added =
            report.results[1].metrics.iter().find(|m| m.metric == Metric::AddedP50).unwrap();
        assert_eq!(added.summary.values, [5.0, 6.0, 5.0]);
    }

    #[test]
    fn ratios_refer_to_direct_and_to_ours() {
        let samples =
            Samples::from([bulk(DIRECT, 50.0, 0.0), bulk(OURS, 20.0, 0.4), bulk("x", 40.0, 0.2)]);
        let report = report(&samples, &[DIRECT, OURS, "x"]);
        let ratios = |metric: usize| -> Vec<String> {
            let ratios = &report.results[2].metrics[metric].ratios;
            ratios.iter().map(|r| format!("{:.3} {}", r.value, r.to)).collect()
        };
        assert_eq!(ratios(0), ["0.800 direct", "2.000 switchback-uring"]);
        // A direct connection has no relay CPU to be a multiple of.
        assert_eq!(ratios(1), ["0.500 switchback-uring"]);
    }

    #[test]
    fn peers_without_samples_are_left_out_and_the_order_is_kept() {
        let samples = Samples::from([bulk(DIRECT, 50.0, 0.0), bulk("a", 40.0, 0.2)]);
        let report = report(&samples, &["gone", "a", DIRECT]);
        let peers: Vec<&str> = report.results.iter().map(|r| r.peer.as_str()).collect();
        assert_eq!(peers, ["a", DIRECT]);
    }

    #[test]
    fn a_peer_that_holds_fewer_idle_sessions_is_noted() {
        let held = |count| vec![sample(vec![(Metric::SessionsHeld, count)], 0.0)];
        let samples = Samples::from([("a".to_owned(), held(100.0)), ("b".to_owned(), held(90.0))]);
        let mut scenario = Scenario::parse(SCENARIO).unwrap();
        scenario.workload = Workload::Idle { sessions: 100 };
        let names = ["a", "b"].map(str::to_owned);
        let notes = digest(&scenario, &samples, &names).report.notes;
        assert_eq!(notes[1..], ["b held 90 of 100 sessions"]);
    }

    #[test]
    fn a_generator_without_reserve_marks_the_row_whatever_it_sends() {
        for metric in [Metric::Throughput, Metric::MessagesPerSecond, Metric::SessionsPerSecond] {
            let round = |busy_share| Sample { busy_share, ..sample(vec![(metric, 1.0)], 0.0) };
            let samples = Samples::from([
                ("x".to_owned(), vec![round(0.5), round(0.97)]),
                ("y".to_owned(), vec![round(0.5), round(0.9)]),
            ]);
            let report = report(&samples, &["x", "y"]);
            assert_eq!(report.results[0].noise.marks, ["generator-bound"]);
            assert_eq!(report.results[1].noise.marks, Vec::<String>::new());
            assert!((report.results[0].noise.generator_max - 0.97).abs() < 1e-9);
        }
    }

    #[test]
    fn a_noisy_round_marks_the_row() {
        let samples = Samples::from([(
            "x".to_owned(),
            vec![
                sample(vec![(Metric::CpuPerGib, 1.0)], 0.0),
                sample(vec![(Metric::CpuPerGib, 1.0)], 0.3),
            ],
        )]);
        assert_eq!(report(&samples, &["x"]).results[0].noise.marks, ["noisy"]);
    }
}
