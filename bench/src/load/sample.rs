//! One measurement: one workload, on one peer, in one round.

mod idle;
mod lifecycle;

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;

use super::GIB;
use super::drive::{self, Load, Outcome, Unwatched, Watch, Window};
use super::exchange::{Exchange, Messages, Pacing};
use super::ledger::Closed;
use super::schedule::Arrivals;
use super::sizes::Sizes;
use super::streams::Streams;
use super::workload::Workload;
use crate::measure::memory::resident_kib;
use crate::measure::{Meter, Usage};
use crate::peers::socket::Dialer;
use crate::peers::{Flow, Peer};
use crate::report::metric::Metric;

/// Cut from every measurement: windows and buffers grow, caches and branch predictors warm up.
pub(crate) const WARMUP: Duration = Duration::from_millis(300);

/// How a measurement is taken, the same for all peers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conditions {
    /// Measured time after the warm-up.
    pub(crate) window: Duration,
    /// Seeds the schedule of messages: all peers of a round get the same one.
    pub(crate) round: usize,
    /// Makes the connections that the load dials itself.
    pub(crate) dialer: Dialer,
}

/// What one measurement found.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) values: Vec<(Metric, f64)>,
    /// Latencies in nanoseconds, for percentile curves.
    pub(crate) histograms: Vec<LabelledHistogram>,
    pub(crate) usage: Usage,
    /// Share of the window in which the generator had something to do, spinning or not, 0 to 1.
    pub(crate) busy_share: f64,
    /// Share of sends that were late, 0 to 1.
    pub(crate) late_share: f64,
    /// Messages that never came back.
    pub(crate) unanswered: u64,
}

/// A distribution of times.
#[derive(Clone, Debug)]
pub(crate) struct LabelledHistogram {
    /// `round-trip`, `interactive`, `setup` or `flow`.
    pub(crate) label: &'static str,
    /// In nanoseconds.
    pub(crate) histogram: Histogram<u64>,
}

/// Measures `workload` on a running `peer`. `None` where it has no meaning (memory of no process).
///
/// # Errors
/// The peer refuses or loses flows or bytes, or has ended; or the workload asks for nothing.
pub(crate) fn sample(
    peer: &mut dyn Peer,
    workload: &Workload,
    conditions: Conditions,
) -> Result<Option<Sample>> {
    let open = |rate| Pacing::Open { rate, arrivals: Arrivals::Poisson };
    let measured = match *workload {
        Workload::Bulk { flows, both_ways } => {
            let streams = Streams::between(peer.open(flows)?, both_ways)?;
            steady(peer, None, Some(streams), conditions)
        }
        Workload::RequestResponse { connections, rate, message_bytes } => {
            let exchange = exchange(peer, connections, open(rate), message_bytes, conditions)?;
            steady(peer, Some(exchange), None, conditions)
        }
        Workload::ClosedLoop { connections, message_bytes } => {
            let exchange = exchange(peer, connections, Pacing::Closed, message_bytes, conditions)?;
            closed_loop(peer, exchange, conditions)
        }
        Workload::Mixed { bulk_flows, connections, rate, message_bytes } => {
            let exchange = exchange(peer, connections, open(rate), message_bytes, conditions)?;
            let streams = Streams::between(peer.open(bulk_flows)?, false)?;
            steady(peer, Some(exchange), Some(streams), conditions)
        }
        Workload::SlowReader {
            slow_flows,
            read_kib_per_second,
            connections,
            rate,
            message_bytes,
        } => {
            let exchange = exchange(peer, connections, open(rate), message_bytes, conditions)?;
            let streams = Streams::slowly(peer.open(slow_flows)?, read_kib_per_second)?;
            slow_reader(peer, exchange, streams, conditions)
        }
        Workload::Churn { concurrency } => lifecycle::churn(peer, concurrency, conditions),
        Workload::ShortFlows { concurrency, bytes } => {
            lifecycle::short_flows(peer, concurrency, bytes, conditions)
        }
        Workload::Idle { .. } if peer.pids().is_empty() => return Ok(None),
        Workload::Idle { sessions } => idle::idle(peer, sessions, conditions),
    };
    measured.map(Some)
}

fn exchange(
    peer: &mut dyn Peer,
    connections: usize,
    pacing: Pacing,
    message_bytes: usize,
    conditions: Conditions,
) -> Result<Exchange> {
    let valid = matches!(pacing, Pacing::Closed)
        || matches!(pacing, Pacing::Open { rate, .. } if rate.is_finite() && rate > 0.0);
    ensure!(valid, "the rate of messages must be above 0");
    let sizes = Sizes::One(
        super::sizes::size(&message_bytes.to_string())
            .map_err(|why| anyhow::anyhow!("message-bytes {message_bytes}: {why}"))?,
    );
    let flows = peer.open(connections)?;
    let (near, far): (Vec<TcpStream>, Vec<TcpStream>) =
        flows.into_iter().map(|Flow { near, far }| (near, far)).unzip();
    Exchange::new(near, far, Messages { pacing, sizes, seed: conditions.round as u64 })
}

/// Messages, bulk or both for as long as the window is.
fn steady(
    peer: &mut dyn Peer,
    exchange: Option<Exchange>,
    streams: Option<Streams>,
    conditions: Conditions,
) -> Result<Sample> {
    let label = if streams.is_some() { "interactive" } else { "round-trip" };
    let outcome = drive(peer, exchange, streams, conditions, &mut Unwatched)?;
    Ok(finished(steady_values(peer, &outcome)?, outcome, label))
}

fn steady_values(peer: &dyn Peer, outcome: &Outcome) -> Result<Vec<(Metric, f64)>> {
    let has_process = !peer.pids().is_empty();
    let usage = &outcome.usage;
    let mut values = Vec::new();
    if let Some(closed) = &outcome.messages {
        values.extend(round_trips(closed));
        let messages = outcome.window_answered.max(1) as f64;
        // Beside bulk the CPU goes to the bulk.
        if has_process && outcome.total_bytes == 0 {
            values.push((Metric::CpuPerMessage, usage.peer_cpu_s * 1e6 / messages));
        }
    }
    if outcome.total_bytes > 0 {
        let bytes = outcome.window_bytes as f64;
        ensure!(bytes > 0.0, "no byte arrived within the window");
        values.push((Metric::Throughput, bytes * 8.0 / 1e9 / usage.wall_s));
        if has_process {
            values.push((Metric::CpuPerGib, usage.peer_cpu_s / (bytes / GIB)));
        }
    }
    Ok(values)
}

/// How many messages there were is what a closed loop finds out.
fn closed_loop(peer: &mut dyn Peer, exchange: Exchange, conditions: Conditions) -> Result<Sample> {
    let outcome = drive(peer, Some(exchange), None, conditions, &mut Unwatched)?;
    let mut values = steady_values(peer, &outcome)?;
    let per_second = outcome.window_answered as f64 / outcome.usage.wall_s;
    values.push((Metric::MessagesPerSecond, per_second));
    Ok(finished(values, outcome, "round-trip"))
}

fn slow_reader(
    peer: &mut dyn Peer,
    exchange: Exchange,
    streams: Streams,
    conditions: Conditions,
) -> Result<Sample> {
    let before_kib = resident_kib(&peer.pids())?;
    let mut watch = Resident { pids: peer.pids(), kib: 0 };
    let outcome = drive(peer, Some(exchange), Some(streams), conditions, &mut watch)?;
    let mut values: Vec<(Metric, f64)> = outcome.messages.iter().flat_map(round_trips).collect();
    if !watch.pids.is_empty() {
        let grown_kib = watch.kib.saturating_sub(before_kib);
        values.push((Metric::RssGrowth, grown_kib as f64 / 1024.0));
    }
    Ok(finished(values, outcome, "interactive"))
}

/// Resident memory at the end of the window, while everything is still full.
struct Resident {
    pids: Vec<rustix::process::Pid>,
    kib: u64,
}

impl Watch for Resident {
    fn window_over(&mut self) -> Result<()> {
        self.kib = resident_kib(&self.pids)?;
        Ok(())
    }
}

fn drive(
    peer: &mut dyn Peer,
    exchange: Option<Exchange>,
    streams: Option<Streams>,
    conditions: Conditions,
    watch: &mut dyn Watch,
) -> Result<Outcome> {
    let window = Window { warmup: WARMUP, measured: conditions.window };
    let load = Load { exchange, streams, window, spin: true };
    drive::run(load, &Meter::new(peer.pids()), watch)
}

fn round_trips(closed: &Closed) -> [(Metric, f64); 3] {
    let figures = &closed.figures;
    [
        (Metric::RttP50, figures.p50_us),
        (Metric::RttP99, figures.p99_us),
        (Metric::RttP999, figures.p99_9_us),
    ]
}

fn finished(values: Vec<(Metric, f64)>, outcome: Outcome, label: &'static str) -> Sample {
    let figures = outcome.messages.as_ref().map(|closed| &closed.figures);
    Sample {
        values,
        late_share: figures.map_or(0.0, |figures| figures.late_share()),
        unanswered: figures.map_or(0, |figures| figures.counts.unanswered),
        usage: outcome.usage,
        busy_share: outcome.busy_share,
        histograms: outcome
            .messages
            .map(|closed| LabelledHistogram { label, histogram: closed.histogram })
            .into_iter()
            .collect(),
    }
}

#[cfg(test)]
mod tests;
