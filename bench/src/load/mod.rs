//! The workloads: open-loop request and response, and bulk.
//!
//! `schedule` and `ledger` decide and count (pure); `request_response` and `bulk` move the bytes,
//! both ends of a flow on one thread, so that the relay in between is what is measured.

pub(crate) mod bulk;
pub(crate) mod ledger;
pub(crate) mod request_response;
pub(crate) mod sample;
pub(crate) mod schedule;
pub(crate) mod workload;

use std::time::Duration;

/// How long answers may straggle after the last send, and bulk tails after the window.
///
/// 5 s: far above any queue a working relay holds on loopback, so whoever misses it has lost bytes.
pub(crate) const DRAIN: Duration = Duration::from_secs(5);
