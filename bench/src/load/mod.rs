//! What is sent: workloads, and the generator that carries them out on one thread.
//!
//! `workload` names a load, `sample` takes one measurement of it. `schedule`, `sizes` and `ledger`
//! decide and count (pure). `exchange` carries messages, `streams` carries bulk, and `drive` is the
//! one loop that turns either or both; `sessions` sets sessions up and takes them down again.
//! Both ends of a flow are on one thread, so that the relay in between is what is measured.

pub(crate) mod drive;
pub(crate) mod exchange;
pub(crate) mod ledger;
pub(crate) mod sample;
pub(crate) mod schedule;
pub(crate) mod sessions;
pub(crate) mod sizes;
pub(crate) mod streams;
pub(crate) mod workload;

use std::time::Duration;

/// How long answers may straggle after the last send, and bulk tails after the window.
///
/// 5 s: far above any queue a working relay holds on loopback, so whoever misses it has lost bytes.
pub(crate) const DRAIN: Duration = Duration::from_secs(5);

/// Bytes per GiB.
pub(crate) const GIB: f64 = (1_u64 << 30) as f64;

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
