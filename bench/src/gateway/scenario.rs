//! What is measured. Each scenario runs on every peer in every round.

use clap::ValueEnum;

use crate::load::workload::Workload;

/// Bytes per message in the latency scenarios: a keystroke or a mouse event with its framing.
pub(crate) const MESSAGE_BYTES: usize = 64;

/// A workload with a name for reports.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scenario {
    pub(crate) kind: Kind,
    pub(crate) title: String,
    pub(crate) workload: Workload,
}

/// Scenario names, as in `--only` and in reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Open-loop 64 B round trips, 2,000/s on one flow.
    Latency1,
    /// The same, 10,000/s over 50 flows.
    Latency50,
    /// One flow as fast as it goes.
    Bulk1,
    /// Eight flows as fast as they go.
    Bulk8,
    /// Memory of idle sessions.
    Idle,
}

impl Kind {
    /// The name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Latency1 => "latency1",
            Kind::Latency50 => "latency50",
            Kind::Bulk1 => "bulk1",
            Kind::Bulk8 => "bulk8",
            Kind::Idle => "idle",
        }
    }
}

/// The scenarios of a run, all or those in `only`; memory with this many idle sessions.
pub(crate) fn scenarios(only: &[Kind], idle_sessions: usize) -> Vec<Scenario> {
    let wanted = |kind: &Kind| only.is_empty() || only.contains(kind);
    Kind::value_variants()
        .iter()
        .copied()
        .filter(wanted)
        .map(|kind| {
            let (title, workload) = describe(kind, idle_sessions);
            Scenario { kind, title, workload }
        })
        .collect()
}

fn describe(kind: Kind, idle_sessions: usize) -> (String, Workload) {
    let messages = |connections, rate: f64| {
        let title = format!(
            "Round trip, {MESSAGE_BYTES} B messages, {rate}/s over {connections} flow(s), open loop"
        );
        (title, Workload::RequestResponse { connections, rate, message_bytes: MESSAGE_BYTES })
    };
    match kind {
        Kind::Latency1 => messages(1, 2_000.0),
        Kind::Latency50 => messages(50, 10_000.0),
        Kind::Bulk1 => ("Bulk, 1 flow".to_owned(), Workload::Bulk { flows: 1, both_ways: false }),
        Kind::Bulk8 => ("Bulk, 8 flows".to_owned(), Workload::Bulk { flows: 8, both_ways: false }),
        Kind::Idle => {
            let title = format!("Resident memory, {idle_sessions} idle sessions");
            (title, Workload::Idle { sessions: idle_sessions })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_command_line_and_in_reports_agree() {
        for kind in Kind::value_variants() {
            assert_eq!(kind.to_possible_value().unwrap().get_name(), kind.name());
        }
    }

    #[test]
    fn only_selects() {
        let chosen = scenarios(&[Kind::Bulk8], 10);
        assert_eq!(chosen.len(), 1);
        assert_eq!(chosen[0].workload, Workload::Bulk { flows: 8, both_ways: false });
        assert_eq!(scenarios(&[], 10).len(), 5);
    }
}
