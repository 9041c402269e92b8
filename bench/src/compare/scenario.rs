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
        if relative_to.is_some() && !metric.has_ratios() {
            return Err(
                "an excess, a growth or a set-up under load has no multiples: leave out `relative-to`",
            );
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
        name = "mine"
        title = "Mine"
        claim = "It is fast."

        [workload]
        kind = "mixed"
        bulk-flows = 4
        connections = 50
        rate = 5000.0
        message-bytes = 64

        [[goal]]
        metric = "rtt_p50"
        relative-to = "direct"
        at-most = 1.25

        [[goal]]
        metric = "throughput"
        peers = ["nginx"]
        at-least = 10.0
    "#;

    fn refusal(from: &str, to: &str) -> String {
        assert!(WHOLE.contains(from), "{from}");
        format!("{:#}", Scenario::parse(&WHOLE.replace(from, to)).unwrap_err())
    }

    #[test]
    fn a_file_is_one_claim_with_its_load_and_goals() {
        let scenario = Scenario::parse(WHOLE).unwrap();
        let load =
            Workload::Mixed { bulk_flows: 4, connections: 50, rate: 5000.0, message_bytes: 64 };
        assert_eq!((scenario.name.as_str(), scenario.workload), ("mine", load));
        let [of_ours, of_nginx] = &scenario.goals[..] else { panic!("two goals") };
        assert_eq!(of_ours.peers, ["switchback-uring", "switchback-epoll"]);
        assert_eq!((of_ours.bound, of_ours.limit), (Bound::AtMost, 1.25));
        assert_eq!(of_ours.relative_to.as_deref(), Some("direct"));
        assert_eq!(of_nginx.peers, ["nginx"]);
        assert_eq!((of_nginx.bound, of_nginx.limit), (Bound::AtLeast, 10.0));
    }

    #[test]
    fn an_unknown_key_kind_or_metric_is_refused_with_what_is_known() {
        assert!(refusal("title", "titel").contains("unknown field `titel`, expected one of"));
        assert!(refusal("bulk-flows", "bulk-flow").contains("`bulk-flows`"));
        assert!(refusal("\"mixed\"", "\"mixes\"").contains("`slow-reader`"));
        assert!(refusal("rtt_p50", "rtt_p51").contains("`rtt_p999`"));
        assert!(refusal("relative-to", "relative").contains("`relative-to`"));
    }

    #[test]
    fn sizes_that_cannot_be_meant_are_refused() {
        assert!(refusal("connections = 50", "connections = 0").contains("1 to 60000"));
        assert!(refusal("rate = 5000.0", "rate = 0.0").contains("per second"));
        assert!(refusal("rate = 5000.0", "rate = nan").contains("per second"));
        assert!(refusal("message-bytes = 64", "message-bytes = 999999999").contains("bytes"));
        assert!(refusal("\"mine\"", "\"../mine\"").contains("../mine"));
    }

    #[test]
    fn a_goal_has_one_limit_above_zero_that_its_metric_can_have() {
        assert!(refusal("at-least = 10.0", "").contains("either"));
        assert!(refusal("at-least = 10.0", "at-least = 1.0\nat-most = 2.0").contains("either"));
        assert!(refusal("at-least = 10.0", "at-least = 0.0").contains("above 0"));
        assert!(refusal("rtt_p50", "added_p50").contains("no multiples"));
    }
}
