//! What a run found, as data. The JSON form is `schema/gateway-1.json`.

pub(crate) mod grid;
pub(crate) mod metric;
pub(crate) mod text;

use serde::Serialize;

use self::metric::Metric;
use crate::gateway::rounds::Failure;
use crate::measure::host::Host;
use crate::measure::placement::Placement;
use crate::stats::{Ratio, Summary};

/// Names the shape of [`GatewayReport`]; the number changes when a reader would break.
pub(crate) const GATEWAY_SCHEMA: &str = "switchback-bench/gateway/1";

/// Everything `switchback-bench gateway` found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct GatewayReport {
    pub(crate) schema: &'static str,
    pub(crate) bench_version: &'static str,
    pub(crate) host: Host,
    pub(crate) settings: Settings,
    pub(crate) peers: Vec<PeerVersion>,
    pub(crate) scenarios: Vec<ScenarioReport>,
    pub(crate) goals: Vec<Goal>,
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
    pub(crate) message_bytes: usize,
    /// `private` namespace or the `host`'s.
    pub(crate) network: &'static str,
    /// Congestion control of the generator's sockets, set on each.
    pub(crate) congestion_generator: &'static str,
    #[serde(flatten)]
    pub(crate) placement: Placement,
}

/// What exactly was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PeerVersion {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// One scenario on all peers.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ScenarioReport {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) results: Vec<PeerResult>,
}

/// One scenario on one peer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PeerResult {
    pub(crate) peer: String,
    pub(crate) metrics: Vec<MetricResult>,
    pub(crate) noise: Noise,
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

/// How far to trust a row: the worst of its rounds. Shares are 0 to 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Noise {
    /// CPU time of the machine that the hypervisor gave to others.
    pub(crate) steal_max: f64,
    /// CPU time of the machine used by neither peer nor generator.
    pub(crate) foreign_max: f64,
    /// How busy the generator's thread was (always about 1 where it spins).
    pub(crate) generator_max: f64,
    /// Sends more than 100 us after their intended time.
    pub(crate) late_sends_max: f64,
    /// Messages that never came back, all rounds together.
    pub(crate) unanswered: u64,
    /// `noisy`, `generator-bound`, `late-sends`, `unanswered`.
    pub(crate) marks: Vec<String>,
}

/// A figure the gateway is meant to reach.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Goal {
    pub(crate) peer: String,
    pub(crate) scenario: String,
    pub(crate) what: String,
    pub(crate) wanted: f64,
    pub(crate) measured: f64,
    pub(crate) met: bool,
}
