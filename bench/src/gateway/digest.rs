//! From samples to figures: medians, spread, added latency, ratios, marks and goals. Pure.

use super::rounds::Samples;
use super::scenario::{Kind, Scenario};
use crate::load::sample::Sample;
use crate::peers::direct::DIRECT;
use crate::peers::own_relay::TOKIO_COPY;
use crate::report::metric::Metric;
use crate::report::{Goal, MetricResult, Noise, PeerResult, ScenarioReport};
use crate::stats::{Ratio, Summary};

/// Peers that ratios refer to.
const REFERENCES: [&str; 2] = [DIRECT, TOKIO_COPY];

/// Above this share of stolen or foreign CPU time a figure is marked as noisy.
///
/// One measurement of 2 s on 2 CPUs has 400 ticks: 5 % is 20 of them, well above their rounding
/// and enough to move a median by about as much.
const NOISY_SHARE: f64 = 0.05;

/// Above this the generator's core, not the peer, limits throughput.
const SATURATED_SHARE: f64 = 0.95;

/// Above this share of late sends the generator shapes the latency percentiles: p99 looks at 1 %.
const LATE_SHARE: f64 = 0.01;

/// Each metric's values by round.
type Columns = Vec<(Metric, Vec<f64>)>;

/// The report of one scenario; peers in the order of `names`.
pub(crate) fn digest(scenario: &Scenario, samples: &Samples, names: &[String]) -> ScenarioReport {
    let table: Vec<(&String, Columns)> = names
        .iter()
        .filter_map(|name| {
            let floor = samples.get(DIRECT).filter(|_| name.as_str() != DIRECT);
            Some((name, columns(samples.get(name)?, floor)))
        })
        .collect();
    let values_of = |name: &str, metric: Metric| {
        let (_, columns) = table.iter().find(|(other, _)| *other == name)?;
        columns.iter().find(|(other, _)| *other == metric).map(|(_, values)| values.as_slice())
    };
    let results = table.iter().map(|(name, columns)| PeerResult {
        peer: (*name).clone(),
        metrics: columns
            .iter()
            .filter_map(|(metric, values)| {
                let ratios = REFERENCES
                    .iter()
                    .filter(|reference| **reference != name.as_str() && metric.has_ratios())
                    .filter_map(|to| Ratio::of(to, values, values_of(to, *metric)?))
                    .collect();
                Some(MetricResult::new(*metric, Summary::of(values)?, ratios))
            })
            .collect(),
        noise: noise(&samples[name.as_str()]),
    });
    ScenarioReport {
        name: scenario.kind.name().to_owned(),
        title: scenario.title.clone(),
        results: results.collect(),
    }
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
    let generator_max = most(|sample| sample.usage.generator_share());
    let late_sends_max = most(|sample| sample.late_share);
    let unanswered: u64 = samples.iter().map(|sample| sample.unanswered).sum();
    let is_bulk = samples.iter().any(|s| s.values.iter().any(|(m, _)| *m == Metric::Throughput));
    let marks = [
        (steal_max + foreign_max > NOISY_SHARE, "noisy"),
        (is_bulk && generator_max > SATURATED_SHARE, "generator-bound"),
        (late_sends_max > LATE_SHARE, "late-sends"),
        (unanswered > 0, "unanswered"),
    ];
    Noise {
        steal_max,
        foreign_max,
        generator_max,
        late_sends_max,
        unanswered,
        marks: marks.iter().filter(|(on, _)| *on).map(|(_, mark)| (*mark).to_owned()).collect(),
    }
}

/// Bulk over 8 flows keeps at least this share of a direct connection's throughput.
const GOAL_THROUGHPUT: f64 = 0.8;

/// CPU per GiB, as a share of what a tokio copy loop takes in the same run: 0.2 s where that takes 0.4 s. The share,
/// because the same machine takes half as long again on a busy day.
const GOAL_CPU_SHARE: f64 = 0.5;

/// Resident memory of an idle session: 25,000 sessions fit into 1 GB.
const GOAL_SESSION_KIB: f64 = 40.0;

/// What the gateway is meant to reach, judged by medians, for every peer that is our gateway.
pub(crate) fn goals(scenarios: &[ScenarioReport]) -> Vec<Goal> {
    let mut goals = Vec::new();
    for scenario in scenarios {
        for result in scenario.results.iter().filter(|r| r.peer.starts_with("switchback-")) {
            let judged = result.metrics.iter().filter_map(|metric| judge(scenario, metric));
            goals.extend(judged.map(|(what, wanted, measured, met)| Goal {
                peer: result.peer.clone(),
                scenario: scenario.name.clone(),
                what: what.to_owned(),
                wanted,
                measured,
                met,
            }));
        }
    }
    goals
}

/// What is asked of this metric, how much, what was measured, and whether that is enough.
fn judge(
    scenario: &ScenarioReport,
    metric: &MetricResult,
) -> Option<(&'static str, f64, f64, bool)> {
    let median = metric.summary.median;
    match metric.metric {
        Metric::Throughput if scenario.name == Kind::Bulk8.name() => {
            let share = metric.ratios.iter().find(|ratio| ratio.to == DIRECT)?.median;
            let what = "throughput, as a multiple of direct, at least";
            Some((what, GOAL_THROUGHPUT, share, share >= GOAL_THROUGHPUT))
        }
        Metric::CpuPerGib => {
            let share = metric.ratios.iter().find(|ratio| ratio.to == TOKIO_COPY)?.median;
            let what = "CPU per GiB, as a multiple of tokio-copy, at most";
            Some((what, GOAL_CPU_SHARE, share, share <= GOAL_CPU_SHARE))
        }
        Metric::RssPerSession => {
            let met = median < GOAL_SESSION_KIB;
            Some(("KiB per idle session below", GOAL_SESSION_KIB, median, met))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::scenario::scenarios;
    use crate::measure::Usage;

    fn sample(values: Vec<(Metric, f64)>, foreign_share: f64) -> Sample {
        let usage = Usage { wall_s: 1.0, generator_cpu_s: 0.5, foreign_share, ..Usage::default() };
        Sample { values, histograms: Vec::new(), usage, late_share: 0.0, unanswered: 0 }
    }

    fn bulk8(name: &str, gbit_s: f64, cpu: f64) -> (String, Vec<Sample>) {
        let one = |i: u32| {
            let value = gbit_s * (1.0 + f64::from(i) / 1000.0);
            sample(vec![(Metric::Throughput, value), (Metric::CpuPerGib, cpu)], 0.0)
        };
        (name.to_owned(), (0..5).map(one).collect())
    }

    fn names(samples: &Samples) -> Vec<String> {
        samples.keys().cloned().collect()
    }

    #[test]
    fn added_latency_is_taken_round_by_round() {
        let rtt =
            |values: [f64; 3]| values.map(|v| sample(vec![(Metric::RttP50, v)], 0.0)).to_vec();
        let samples = Samples::from([
            (DIRECT.to_owned(), rtt([10.0, 20.0, 30.0])),
            ("relay".to_owned(), rtt([15.0, 26.0, 35.0])),
        ]);
        let scenario = scenarios(&[Kind::Latency1], 0).remove(0);
        let report = digest(&scenario, &samples, &names(&samples));
        let added =
            report.results[1].metrics.iter().find(|m| m.metric == Metric::AddedP50).unwrap();
        assert_eq!(added.summary.values, [5.0, 6.0, 5.0]);
    }

    #[test]
    fn goals_are_judged_for_our_gateway_only() {
        let samples = Samples::from([
            bulk8(DIRECT, 50.0, 0.0),
            bulk8(TOKIO_COPY, 20.0, 0.4),
            bulk8("switchback-uring", 45.0, 0.15),
            bulk8("switchback-epoll", 30.0, 0.25),
        ]);
        let scenario = scenarios(&[Kind::Bulk8], 0).remove(0);
        let report = digest(&scenario, &samples, &names(&samples));
        let goals = goals(&[report]);
        let met = |peer: &str| -> Vec<bool> {
            goals.iter().filter(|goal| goal.peer == peer).map(|goal| goal.met).collect()
        };
        assert_eq!(goals.len(), 4);
        assert_eq!(met("switchback-uring"), [true, true]);
        assert_eq!(met("switchback-epoll"), [false, false]);
    }

    #[test]
    fn ratios_refer_to_direct_and_to_the_copy_loop() {
        let samples = Samples::from([
            bulk8(DIRECT, 50.0, 0.0),
            bulk8(TOKIO_COPY, 20.0, 0.4),
            bulk8("x", 40.0, 0.2),
        ]);
        let scenario = scenarios(&[Kind::Bulk8], 0).remove(0);
        let order = [DIRECT, TOKIO_COPY, "x"].map(str::to_owned);
        let report = digest(&scenario, &samples, &order);
        let ratios = |metric: usize| -> Vec<String> {
            let ratios = &report.results[2].metrics[metric].ratios;
            ratios.iter().map(|r| format!("{:.3} {}", r.median, r.to)).collect()
        };
        assert_eq!(ratios(0), ["0.800 direct", "2.000 tokio-copy"]);
        // A direct connection has no relay CPU to be a multiple of.
        assert_eq!(ratios(1), ["0.500 tokio-copy"]);
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
        let scenario = scenarios(&[Kind::Bulk1], 0).remove(0);
        let report = digest(&scenario, &samples, &["x".to_owned()]);
        assert_eq!(report.results[0].noise.marks, ["noisy"]);
    }
}
