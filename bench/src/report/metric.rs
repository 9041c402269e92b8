//! The quantities a report knows, with unit and direction.

use serde::Serialize;

/// One measured quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// Round trip from the intended send time, median.
    RttP50,
    /// `RttP50` minus the direct connection's in the same round.
    AddedP50,
    /// Round trip from the intended send time, 99th percentile.
    RttP99,
    /// `RttP99` minus the direct connection's in the same round.
    AddedP99,
    /// CPU of the peer per message, which it forwards twice: there and back.
    CpuPerMessage,
    /// Bits that arrived per second, all flows together.
    Throughput,
    /// CPU of the peer per GiB that arrived.
    CpuPerGib,
    /// Growth of resident memory per idle session.
    RssPerSession,
    /// Resident memory with the first 10 sessions open.
    RssBase,
}

impl Metric {
    /// Unit of its values.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Metric::RttP50
            | Metric::AddedP50
            | Metric::RttP99
            | Metric::AddedP99
            | Metric::CpuPerMessage => "us",
            Metric::Throughput => "Gbit/s",
            Metric::CpuPerGib => "s/GiB",
            Metric::RssPerSession => "KiB",
            Metric::RssBase => "MiB",
        }
    }

    /// Heading in tables.
    pub(crate) fn heading(self) -> &'static str {
        match self {
            Metric::RttP50 => "RTT p50",
            Metric::AddedP50 => "added p50",
            Metric::RttP99 => "RTT p99",
            Metric::AddedP99 => "added p99",
            Metric::CpuPerMessage => "CPU/message",
            Metric::Throughput => "throughput",
            Metric::CpuPerGib => "CPU/GiB",
            Metric::RssPerSession => "RSS/session",
            Metric::RssBase => "RSS base",
        }
    }

    /// Which way is good.
    pub(crate) fn better(self) -> &'static str {
        if self == Metric::Throughput { "higher" } else { "lower" }
    }

    /// The metric that states this one's excess over a direct connection.
    pub(crate) fn added(self) -> Option<Metric> {
        match self {
            Metric::RttP50 => Some(Metric::AddedP50),
            Metric::RttP99 => Some(Metric::AddedP99),
            _ => None,
        }
    }

    /// Whether multiples of another peer's value mean anything: an excess may be zero or below.
    pub(crate) fn has_ratios(self) -> bool {
        !matches!(self, Metric::AddedP50 | Metric::AddedP99)
    }
}
