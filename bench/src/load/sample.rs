//! One measurement: one scenario, on one peer, in one round.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

use hdrhistogram::Histogram;

use super::bulk::{self, Bulk, GIB};
use super::request_response::{self, RequestResponse};
use super::schedule::Arrivals;
use super::workload::Workload;
use crate::measure::memory::resident_kib;
use crate::measure::{Meter, Usage};
use crate::peers::socket::CONNECT_WITHIN;
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
}

/// Bytes of the message that touches a session.
const MESSAGE_BYTES: usize = 64;

/// What one measurement found.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) values: Vec<(Metric, f64)>,
    /// Latencies in nanoseconds, for percentile curves.
    pub(crate) histograms: Vec<LabelledHistogram>,
    pub(crate) usage: Usage,
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

/// Sessions open already when memory is first looked at, so that what is made once is not counted.
const FIRST_SESSIONS: usize = 10;

/// Rest before memory is read: closed sessions are gone, opened ones have settled.
const SETTLE: Duration = Duration::from_millis(500);

/// Measures `workload` on a running `peer`. `None` where it has no meaning (memory of no process).
///
/// # Errors
/// The peer refuses or loses flows or bytes, or has ended.
pub(crate) fn sample(
    peer: &mut dyn Peer,
    workload: &Workload,
    conditions: Conditions,
) -> Result<Option<Sample>> {
    match *workload {
        Workload::RequestResponse { connections, rate, .. } => {
            round_trips(peer, connections, rate, conditions).map(Some)
        }
        Workload::Bulk { flows, .. } => bulk_flows(peer, flows, conditions).map(Some),
        Workload::Idle { .. } if peer.pids().is_empty() => Ok(None),
        Workload::Idle { sessions } => idle(peer, sessions).map(Some),
        _ => anyhow::bail!("unknown workload"),
    }
}

fn round_trips(
    peer: &mut dyn Peer,
    connections: usize,
    rate: f64,
    conditions: Conditions,
) -> Result<Sample> {
    let has_process = !peer.pids().is_empty();
    let flows = peer.open(connections)?;
    let (near, far): (Vec<_>, Vec<_>) = flows.into_iter().map(|f| (f.near, f.far)).unzip();
    let load = RequestResponse {
        rate,
        message_bytes: MESSAGE_BYTES,
        arrivals: Arrivals::Poisson,
        seed: conditions.round as u64,
        warmup: WARMUP,
        window: conditions.window,
        spin: true,
    };
    let outcome = request_response::run(&near, &far, &load, &Meter::new(peer.pids()))?;
    let (figures, usage) = (outcome.figures, outcome.usage);
    let messages = figures.counts.sent.max(1) as f64;
    let mut values = vec![(Metric::RttP50, figures.p50_us), (Metric::RttP99, figures.p99_us)];
    if has_process {
        values.push((Metric::CpuPerMessage, usage.peer_cpu_s * 1e6 / messages));
    }
    Ok(Sample {
        values,
        histograms: Vec::new(),
        usage,
        late_share: figures.late_share(),
        unanswered: figures.counts.unanswered,
    })
}

fn bulk_flows(peer: &mut dyn Peer, flows: usize, conditions: Conditions) -> Result<Sample> {
    let has_process = !peer.pids().is_empty();
    let flows = peer.open(flows)?;
    let load = Bulk { warmup: WARMUP, window: conditions.window };
    let outcome = bulk::run(flows, load, &Meter::new(peer.pids()))?;
    let (bytes, usage) = (outcome.window_bytes as f64, outcome.usage);
    anyhow::ensure!(bytes > 0.0, "no byte arrived within the window");
    let mut values = vec![(Metric::Throughput, bytes * 8.0 / 1e9 / usage.wall_s)];
    if has_process {
        values.push((Metric::CpuPerGib, usage.peer_cpu_s / (bytes / GIB)));
    }
    Ok(Sample { values, usage, histograms: Vec::new(), late_share: 0.0, unanswered: 0 })
}

/// Restarts the peer, so that no earlier load counts, and fills it with resting sessions.
fn idle(peer: &mut dyn Peer, sessions: usize) -> Result<Sample> {
    peer.stop()?;
    peer.start()?;
    let meter = Meter::new(peer.pids());
    // Kept open: closed ones would leave memory behind for the others to use.
    let first = peer.open(FIRST_SESSIONS)?;
    touch_all(&first)?;
    sleep(SETTLE);
    let base_kib = resident_kib(&peer.pids())?;
    let begun = meter.begin()?;
    let flows = peer.open(sessions)?;
    touch_all(&flows)?;
    sleep(SETTLE);
    let full_kib = resident_kib(&peer.pids())?;
    let usage = meter.used_since(&begun)?;
    drop(first);
    let grown_kib = full_kib.saturating_sub(base_kib);
    Ok(Sample {
        values: vec![
            (Metric::RssPerSession, grown_kib as f64 / sessions.max(1) as f64),
            (Metric::RssBase, base_kib as f64 / 1024.0),
        ],
        histograms: Vec::new(),
        usage,
        late_share: 0.0,
        unanswered: 0,
    })
}

/// One message each way on every flow: a session that never moved a byte would be flattered.
fn touch_all(flows: &[Flow]) -> Result<()> {
    for Flow { near, far } in flows {
        pass(near, far).and_then(|()| pass(far, near)).context("touching an idle session")?;
    }
    Ok(())
}

fn pass(mut from: &TcpStream, mut to: &TcpStream) -> Result<()> {
    to.set_read_timeout(Some(CONNECT_WITHIN))?;
    from.write_all(&[7; MESSAGE_BYTES])?;
    to.read_exact(&mut [0; MESSAGE_BYTES])?;
    Ok(())
}
