//! Scenario files: one claim each, with the load that shows it and the goals to judge by. Pure.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::load::workload::Workload;
use crate::report::Bound;
use crate::report::metric::Metric;

/// One scenario file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Scenario {
    /// As in `--scenario`, in reports and in file names: lower-case letters, digits and dashes.
    pub(crate) name: String,
    pub(crate) title: String,
    /// What the scenario is to show, in a sentence.
    pub(crate) claim: String,
    pub(crate) workload: Workload,
    #[serde(default, rename = "goal")]
    pub(crate) goals: Vec<Goal>,
    /// Where this run departs from the file, and why.
    #[serde(skip)]
    pub(crate) notes: Vec<String>,
}

/// What peers are meant to reach in a scenario.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "GoalTable")]
pub(crate) struct Goal {
    pub(crate) metric: Metric,
    /// Who is judged.
    pub(crate) peers: Vec<String>,
    /// The limit is a multiple of this peer's value; otherwise it is in the metric's unit.
    pub(crate) relative_to: Option<String>,
    pub(crate) bound: Bound,
    pub(crate) limit: f64,
}

/// `[[goal]]` as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct GoalTable {
    metric: Metric,
    #[serde(default = "ours")]
    peers: Vec<String>,
    relative_to: Option<String>,
    at_most: Option<f64>,
    at_least: Option<f64>,
}

impl TryFrom<GoalTable> for Goal {
    type Error = &'static str;

    fn try_from(table: GoalTable) -> Result<Goal, Self::Error> {
        let (bound, limit) = match (table.at_most, table.at_least) {
            (Some(limit), None) => (Bound::AtMost, limit),
            (None, Some(limit)) => (Bound::AtLeast, limit),
            _ => return Err("a goal has either `at-most` or `at-least`"),
        };
        if !(limit.is_finite() && limit > 0.0) {
            return Err("the limit of a goal is above 0");
        }
        let GoalTable { metric, peers, relative_to, .. } = table;
        Ok(Goal { metric, peers, relative_to, bound, limit })
    }
}

/// Our gateway on its two backends: who is judged unless a goal names others.
fn ours() -> Vec<String> {
    ["switchback-uring", "switchback-epoll"].map(str::to_owned).to_vec()
}

/// Longest name: it is part of file names and stands in tables.
const NAME_BYTES_MAX: usize = 40;

impl Scenario {
    /// Reads the text of a scenario file.
    ///
    /// # Errors
    /// Not TOML, a key that is unknown or missing, or a value out of its range; the message says
    /// which, on which line.
    pub(crate) fn parse(text: &str) -> Result<Scenario> {
        let scenario: Scenario = toml::from_str(text)?;
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let name = &scenario.name;
        ensure!(
            !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.chars().all(is_plain),
            "the name {name:?} is not 1 to {NAME_BYTES_MAX} lower-case letters, digits and dashes"
        );
        check(&scenario.workload).with_context(|| format!("the workload of {name}"))?;
        Ok(scenario)
    }
}

/// Most connections, flows or sessions of one kind: what one address has ports for.
const COUNT_MAX: usize = 60_000;

/// Most messages per second: beyond what one generator thread sends.
const RATE_MAX: f64 = 10_000_000.0;

/// Largest message and transfer.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Refuses sizes that cannot be meant.
fn check(workload: &Workload) -> Result<()> {
    let (counts, rate, message_bytes) = sizes(workload);
    for count in counts {
        ensure!((1..=COUNT_MAX).contains(&count), "{count} is not in 1 to {COUNT_MAX}");
    }
    if let Some(rate) = rate {
        ensure!(rate > 0.0 && rate <= RATE_MAX, "rate {rate} is not in 0 to {RATE_MAX} per second");
    }
    if let Some(bytes) = message_bytes {
        ensure!(
            (1..=MESSAGE_BYTES_MAX).contains(&bytes),
            "{bytes} bytes is not in 1 to {MESSAGE_BYTES_MAX}"
        );
    }
    Ok(())
}

/// The counts, the rate and the bytes of one message or transfer.
fn sizes(workload: &Workload) -> (Vec<usize>, Option<f64>, Option<usize>) {
    match *workload {
        Workload::Bulk { flows, .. } => (vec![flows], None, None),
        Workload::RequestResponse { connections, rate, message_bytes } => {
            (vec![connections], Some(rate), Some(message_bytes))
        }
        Workload::ClosedLoop { connections, message_bytes } => {
            (vec![connections], None, Some(message_bytes))
        }
        Workload::Mixed { bulk_flows, connections, rate, message_bytes } => {
            (vec![bulk_flows, connections], Some(rate), Some(message_bytes))
        }
        Workload::Churn { concurrency } => (vec![concurrency], None, None),
        Workload::ShortFlows { concurrency, bytes } => {
            (vec![concurrency], None, Some(usize::try_from(bytes).unwrap_or(usize::MAX)))
        }
        Workload::Idle { sessions } => (vec![sessions], None, None),
        Workload::SlowReader { slow_flows, connections, rate, message_bytes, .. } => {
            (vec![slow_flows, connections], Some(rate), Some(message_bytes))
        }
    }
}
