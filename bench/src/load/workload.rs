//! What is sent: the part of a scenario file that the load generator reads.

use serde::{Deserialize, Serialize};

/// One kind of load with its sizes. Rates are messages per second over all connections.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(
    tag = "kind",
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    deny_unknown_fields
)]
pub(crate) enum Workload {
    /// Flows that are filled as fast as they go.
    Bulk {
        flows: usize,
        #[serde(default)]
        both_ways: bool,
    },
    /// Open loop: messages at their due time, whatever has been answered.
    RequestResponse { connections: usize, rate: f64, message_bytes: usize },
    /// Closed loop: every connection sends its next message when the last one is answered.
    ClosedLoop { connections: usize, message_bytes: usize },
    /// Bulk flows beside open-loop messages.
    Mixed { bulk_flows: usize, connections: usize, rate: f64, message_bytes: usize },
    /// Sessions that are set up, exchange one message and end, over and over.
    Churn { concurrency: usize },
    /// Sessions that are set up, carry `bytes` and end, over and over.
    ShortFlows { concurrency: usize, bytes: u64 },
    /// Sessions that moved one message each way and then rest.
    Idle { sessions: usize },
    /// Open-loop messages beside flows whose reader is slow.
    SlowReader {
        slow_flows: usize,
        read_kib_per_second: u64,
        connections: usize,
        rate: f64,
        message_bytes: usize,
    },
}
