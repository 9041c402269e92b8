//! Churn and short flows: what it costs to begin and end sessions.

use std::time::Duration;

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;

use super::{Conditions, LabelledHistogram, Sample, WARMUP};
use crate::load::sessions::{self, Limit, Tally, Task};
use crate::load::{GIB, ledger};
use crate::measure::{Meter, Usage};
use crate::peers::{Dialling, Peer};
use crate::report::metric::Metric;

/// Bytes of the one message of a churned session: a keystroke or a mouse event with its framing.
const MESSAGE_BYTES: u64 = 64;

/// Fewest and most pairs minted for one slice of the window: enough to outweigh the ramps at its
/// ends, and far fewer than tickets expire while they wait (a minute).
const SLICE_SESSIONS: (f64, f64) = (500.0, 4000.0);

/// Rest after minting, so that what the peer still does for it is not measured.
const SETTLE: Duration = Duration::from_millis(20);

/// Sessions that are set up, exchange one message and end, over and over.
pub(super) fn churn(
    peer: &mut dyn Peer,
    concurrency: usize,
    conditions: Conditions,
) -> Result<Sample> {
    let task = Task { bytes: MESSAGE_BYTES, echo: true, concurrency, hold: false };
    let cycles = repeat(peer, task, conditions)?;
    let us = |quantile| cycles.latency_ns.value_at_quantile(quantile) as f64 / 1e3;
    let mut values = vec![(Metric::SetupP50, us(0.5)), (Metric::SetupP99, us(0.99))];
    values.extend(cycles.rates());
    Ok(cycles.into_sample(values, "setup"))
}

/// Sessions that are set up, carry `bytes` one way and end, over and over.
pub(super) fn short_flows(
    peer: &mut dyn Peer,
    concurrency: usize,
    bytes: u64,
    conditions: Conditions,
) -> Result<Sample> {
    ensure!(bytes > 0, "a short flow carries at least 1 byte");
    let task = Task { bytes, echo: false, concurrency, hold: false };
    let cycles = repeat(peer, task, conditions)?;
    let carried = (cycles.sessions * bytes) as f64;
    let mut values = vec![(Metric::Throughput, carried * 8.0 / 1e9 / cycles.usage.wall_s)];
    values.extend(cycles.rates());
    if cycles.usage.peer_cpu_s > 0.0 {
        values.push((Metric::CpuPerGib, cycles.usage.peer_cpu_s / (carried / GIB)));
    }
    Ok(cycles.into_sample(values, "flow"))
}

/// All slices of a window.
struct Cycles {
    sessions: u64,
    latency_ns: Histogram<u64>,
    usage: Usage,
}

impl Cycles {
    fn rates(&self) -> impl Iterator<Item = (Metric, f64)> {
        let (sessions, usage) = (self.sessions as f64, &self.usage);
        let per_core = (Metric::SessionsPerCpuSecond, sessions / usage.peer_cpu_s);
        [(Metric::SessionsPerSecond, sessions / usage.wall_s)]
            .into_iter()
            .chain((usage.peer_cpu_s > 0.0).then_some(per_core))
    }

    fn into_sample(self, values: Vec<(Metric, f64)>, label: &'static str) -> Sample {
        let histogram = LabelledHistogram { label, histogram: self.latency_ns };
        Sample {
            values,
            histograms: vec![histogram],
            // It sleeps until a session may go on.
            busy_share: self.usage.generator_share(),
            usage: self.usage,
            late_share: 0.0,
            unanswered: 0,
        }
    }
}

/// Runs the task for the window, in as many slices as the pairs last for; minting more of them is
/// not measured.
fn repeat(peer: &mut dyn Peer, task: Task, conditions: Conditions) -> Result<Cycles> {
    ensure!(task.concurrency > 0, "churn needs a concurrency of at least 1");
    let meter = Meter::new(peer.pids());
    let (mut rate, _) = slice(peer, task, SLICE_SESSIONS.0, WARMUP, None, conditions)?;
    let mut cycles =
        Cycles { sessions: 0, latency_ns: ledger::histogram(), usage: Usage::default() };
    while cycles.usage.wall_s < conditions.window.as_secs_f64() {
        let left_s = conditions.window.as_secs_f64() - cycles.usage.wall_s;
        let time = Duration::from_secs_f64(left_s);
        // A tenth more, as it may be faster now.
        let wanted = (rate * left_s * 1.1).clamp(SLICE_SESSIONS.0, SLICE_SESSIONS.1);
        let (tally, usage);
        (rate, (tally, usage)) = slice(peer, task, wanted, time, Some(&meter), conditions)?;
        cycles.sessions += tally.sessions;
        cycles.latency_ns.add(&tally.latency_ns)?;
        cycles.usage = cycles.usage.and(usage);
    }
    Ok(cycles)
}

/// One slice, and sessions per second in it.
fn slice(
    peer: &mut dyn Peer,
    task: Task,
    wanted: f64,
    time: Duration,
    meter: Option<&Meter>,
    conditions: Conditions,
) -> Result<(f64, (Tally, Usage))> {
    let dialling = peer.dial(wanted as usize)?;
    if matches!(dialling, Dialling::Legs { .. }) {
        std::thread::sleep(SETTLE);
    }
    let uncounted = Meter::of_generator();
    let meter = meter.unwrap_or(&uncounted);
    let begun = meter.begin()?;
    let limit = Limit { time, sessions: u64::MAX };
    let tally = sessions::run(dialling, &conditions.dialer, task, limit)?;
    let usage = meter.used_since(&begun)?;
    ensure!(tally.sessions > 0, "no session was set up");
    Ok((tally.sessions as f64 / usage.wall_s, (tally, usage)))
}
