//! The quantities a report knows, with unit and direction.

use serde::{Deserialize, Serialize};

/// One measured quantity. The order is that of the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// Round trip from the intended send time, median. In a closed loop: from the send.
    RttP50,
    /// `RttP50` minus the direct connection's in the same round.
    AddedP50,
    /// Round trip, 99th percentile.
    RttP99,
    /// `RttP99` minus the direct connection's in the same round.
    AddedP99,
    /// Round trip, 99.9th percentile.
    RttP999,
    /// `RttP999` minus the direct connection's in the same round.
    AddedP999,
    /// Messages answered per second, all connections together.
    MessagesPerSecond,
    /// CPU of the peer per message, which it forwards twice: there and back.
    CpuPerMessage,
    /// From the connect to the first echoed byte of a new session, median, while as many sessions
    /// as the generator manages are set up: the wait for its core is part of it.
    SetupP50,
    /// As `SetupP50`, 99th percentile.
    SetupP99,
    /// Sessions set up, used and closed per second.
    SessionsPerSecond,
    /// Sessions set up, used and closed per second of CPU of the peer: per second of one core.
    SessionsPerCpuSecond,
    /// Bits that arrived per second, all flows together.
    Throughput,
    /// CPU of the peer per GiB that arrived.
    CpuPerGib,
    /// Idle sessions that were held: fewer than asked for where the open-file limit or the peer
    /// allowed no more.
    SessionsHeld,
    /// Growth of resident memory per idle session.
    RssPerSession,
    /// Resident memory with the first 10 sessions open.
    RssBase,
    /// CPU of the peer while all its sessions rest.
    IdleCpu,
    /// Growth of resident memory while readers were slow.
    RssGrowth,
}

/// What a metric is called and which way is good.
struct Traits {
    unit: &'static str,
    heading: &'static str,
    better: &'static str,
}

impl Metric {
    /// Unit of its values.
    pub(crate) fn unit(self) -> &'static str {
        self.traits().unit
    }

    /// Heading in tables.
    pub(crate) fn heading(self) -> &'static str {
        self.traits().heading
    }

    /// Which way is good: `lower` or `higher`.
    pub(crate) fn better(self) -> &'static str {
        self.traits().better
    }

    /// The metric that states this one's excess over a direct connection.
    pub(crate) fn added(self) -> Option<Metric> {
        match self {
            Metric::RttP50 => Some(Metric::AddedP50),
            Metric::RttP99 => Some(Metric::AddedP99),
            Metric::RttP999 => Some(Metric::AddedP999),
            _ => None,
        }
    }

    /// Whether multiples of another peer's value mean anything: an excess or a growth may be zero
    /// or below, the number of sessions held was asked for, and a set-up under load waits mostly for
    /// the generator.
    pub(crate) fn has_ratios(self) -> bool {
        let without = [
            Metric::AddedP50,
            Metric::AddedP99,
            Metric::AddedP999,
            Metric::SetupP50,
            Metric::SetupP99,
            Metric::SessionsHeld,
            Metric::IdleCpu,
            Metric::RssGrowth,
        ];
        !without.contains(&self)
    }

    fn traits(self) -> Traits {
        let lower = |heading, unit| Traits { unit, heading, better: "lower" };
        let higher = |heading, unit| Traits { unit, heading, better: "higher" };
        match self {
            Metric::RttP50 => lower("RTT p50", "us"),
            Metric::AddedP50 => lower("added p50", "us"),
            Metric::RttP99 => lower("RTT p99", "us"),
            Metric::AddedP99 => lower("added p99", "us"),
            Metric::RttP999 => lower("RTT p99.9", "us"),
            Metric::AddedP999 => lower("added p99.9", "us"),
            Metric::MessagesPerSecond => higher("messages", "1/s"),
            Metric::CpuPerMessage => lower("CPU/message", "us"),
            Metric::SetupP50 => lower("setup p50 (under load)", "us"),
            Metric::SetupP99 => lower("setup p99 (under load)", "us"),
            Metric::SessionsPerSecond => higher("sessions", "1/s"),
            Metric::SessionsPerCpuSecond => higher("sessions/core", "1/s"),
            Metric::Throughput => higher("throughput", "Gbit/s"),
            Metric::CpuPerGib => lower("CPU/GiB", "s/GiB"),
            Metric::SessionsHeld => higher("sessions held", ""),
            Metric::RssPerSession => lower("RSS/session", "KiB"),
            Metric::RssBase => lower("RSS base", "MiB"),
            Metric::IdleCpu => lower("idle CPU", "% of a core"),
            Metric::RssGrowth => lower("RSS growth", "MiB"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excess_is_stated_for_every_round_trip_and_has_no_ratios() {
        for metric in [Metric::RttP50, Metric::RttP99, Metric::RttP999] {
            let added = metric.added().unwrap();
            assert!(metric.has_ratios() && !added.has_ratios());
            assert_eq!(added.heading(), metric.heading().replace("RTT", "added"));
        }
        assert_eq!(Metric::Throughput.added(), None);
    }

    #[test]
    fn names_in_data_are_stable() {
        let name = |metric: Metric| serde_json::to_value(metric).unwrap();
        assert_eq!(name(Metric::RttP999), "rtt_p999");
        assert_eq!(name(Metric::SessionsPerCpuSecond), "sessions_per_cpu_second");
    }
}
