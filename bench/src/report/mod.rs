//! What a run found, as data. The JSON form is `schema/compare-1.json`.

pub(crate) mod grid;
pub(crate) mod hgrm;
pub(crate) mod html;
pub(crate) mod metric;
pub(crate) mod plot;
pub(crate) mod publish;
pub(crate) mod summary;
pub(crate) mod text;

use serde::Serialize;

use self::metric::Metric;
use crate::load::workload::Workload;
use crate::measure::host::Host;
use crate::measure::placement::Placement;
use crate::measure::threads::ThreadUsage;
use crate::stats::{Ratio, Summary};

/// Names the shape of [`CompareReport`]; the number changes when a reader would break.
pub(crate) const COMPARE_SCHEMA: &str = "switchback-bench/compare/1";

/// The peer that stands for our gateway in ratios.
pub(crate) const OURS: &str = "switchback-uring";

/// Everything `switchback-bench compare` found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CompareReport {
    pub(crate) schema: &'static str,
    pub(crate) bench_version: &'static str,
    /// The arguments of the run, without the program's name.
    pub(crate) command: String,
    pub(crate) host: Host,
    pub(crate) settings: Settings,
    /// Peers that were measured, in the order of all tables.
    pub(crate) peers: Vec<PeerVersion>,
    /// Peers that were asked for and are not on this machine.
    pub(crate) skipped: Vec<Skipped>,
    pub(crate) scenarios: Vec<ScenarioReport>,
    /// Peers that failed; they have no figures where they did.
    pub(crate) failures: Vec<Failure>,
    pub(crate) warnings: Vec<String>,
}

/// How it was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Settings {
    pub(crate) rounds: usize,
    pub(crate) window_s: f64,
    pub(crate) warmup_s: f64,
    /// What the bytes went over: whose namespace, loopback or veth.
    pub(crate) network: &'static str,
    /// Congestion control of the generator's sockets, set on each.
    pub(crate) congestion_generator: &'static str,
    #[serde(flatten)]
    pub(crate) placement: Placement,
}

/// What exactly was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PeerVersion {
    pub(crate) name: String,
    pub(crate) version: String,
    /// It is a mode of our gateway.
    pub(crate) ours: bool,
}

/// A peer that could not be measured here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Skipped {
    pub(crate) peer: String,
    pub(crate) reason: String,
    /// What would change that.
    pub(crate) remedy: String,
}

/// A peer that did not make it through something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Failure {
    pub(crate) peer: String,
    /// A scenario, `start` or `stop`.
    pub(crate) during: String,
    pub(crate) reason: String,
}

/// One scenario on all peers.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ScenarioReport {
    pub(crate) name: String,
    pub(crate) title: String,
    /// What the scenario is to show, in a sentence.
    pub(crate) claim: String,
    /// What was sent, after any reduction.
    pub(crate) workload: Workload,
    /// Where this run departs from the scenario's file, and why.
    pub(crate) notes: Vec<String>,
    /// In the order of [`CompareReport::peers`]; peers without figures are left out.
    pub(crate) results: Vec<PeerResult>,
    pub(crate) goals: Vec<GoalResult>,
}

/// One scenario on one peer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PeerResult {
    pub(crate) peer: String,
    pub(crate) metrics: Vec<MetricResult>,
    /// What was timed, all rounds merged. Empty where nothing is timed (bulk, idle).
    pub(crate) distributions: Vec<Distribution>,
    pub(crate) noise: Noise,
    /// The peer's busiest threads in the last round, busiest first.
    pub(crate) threads: Vec<ThreadUsage>,
}

/// One metric over the rounds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct MetricResult {
    pub(crate) metric: Metric,
    pub(crate) unit: &'static str,
    /// `lower` or `higher`.
    pub(crate) better: &'static str,
    #[serde(flatten)]
    pub(crate) summary: Summary,
    pub(crate) ratios: Vec<Ratio>,
}

impl MetricResult {
    /// A result with the unit and direction of its metric.
    pub(crate) fn new(metric: Metric, summary: Summary, ratios: Vec<Ratio>) -> MetricResult {
        MetricResult { metric, unit: metric.unit(), better: metric.better(), summary, ratios }
    }
}

/// A latency distribution, in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Distribution {
    /// What was timed: `round-trip`, `interactive`, `setup` or `flow`.
    pub(crate) label: String,
    pub(crate) count: u64,
    pub(crate) mean_us: f64,
    /// Ascending, from 0 (the fastest) to 100 (the slowest).
    pub(crate) points: Vec<PercentilePoint>,
}

/// `percentile` percent of what was timed took at most `us` microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct PercentilePoint {
    pub(crate) percentile: f64,
    pub(crate) us: f64,
}

/// How far to trust a row: the worst of its rounds. Shares are 0 to 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Noise {
    /// CPU time of the machine that the hypervisor gave to others.
    pub(crate) steal_max: f64,
    /// CPU time of the machine used by neither peer nor generator.
    pub(crate) foreign_max: f64,
    /// CPU time of the machine spent in softirq: packets handled by the kernel, part of it inside the
    /// peer's own calls.
    pub(crate) softirq_max: f64,
    /// The same of the peer's own CPU, if it is bound to one.
    pub(crate) relay_softirq_max: Option<f64>,
    /// How long the generator had something to do; waiting, also by spinning, is not.
    pub(crate) generator_max: f64,
    /// How long the generator's thread was ready to run and was not let.
    pub(crate) generator_wait_max: f64,
    /// Sends more than 100 us after their intended time.
    pub(crate) late_sends_max: f64,
    /// Messages that never came back, all rounds together.
    pub(crate) unanswered: u64,
    /// `noisy`, `generator-bound`, `late-sends`, `unanswered`.
    pub(crate) marks: Vec<String>,
}

/// A figure that a peer is meant to reach in this scenario, judged by medians.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct GoalResult {
    pub(crate) peer: String,
    pub(crate) metric: Metric,
    /// The metric's unit, or `x` for a multiple of another peer.
    pub(crate) unit: &'static str,
    /// The goal is a multiple of this peer's value.
    pub(crate) relative_to: Option<String>,
    pub(crate) bound: Bound,
    pub(crate) wanted: f64,
    /// `None` when it could not be judged; `reason` says why.
    pub(crate) measured: Option<f64>,
    pub(crate) outcome: Outcome,
    /// How far `measured` lies beyond `wanted`, percent of `wanted`: positive is better than asked.
    pub(crate) margin_percent: Option<f64>,
    pub(crate) reason: Option<String>,
}

/// Which side of a goal is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Bound {
    AtMost,
    AtLeast,
}

/// What became of a goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    Met,
    Missed,
    /// A peer it needs has no figures.
    NotJudged,
}
