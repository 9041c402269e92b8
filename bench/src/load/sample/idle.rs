//! Idle: what sessions cost that rest.

use std::net::TcpStream;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Conditions, Sample};
use crate::load::sessions::{self, Limit, Task};
use crate::measure::Meter;
use crate::measure::memory::resident_kib;
use crate::peers::Peer;
use crate::report::metric::Metric;

/// Sessions open already when memory is first looked at, so that what is made once is not counted.
const FIRST_SESSIONS: usize = 10;

/// Sessions that are set up at once: our gateway allows one source 128 unfinished hellos.
const CONCURRENCY: usize = 50;

/// Sessions per dial: their pairs are used long before they expire.
const PER_DIAL: usize = 1000;

/// Rest before memory is read: closed sessions are gone, opened ones have settled.
const SETTLE: Duration = Duration::from_millis(500);

/// Longest opening of all sessions: whoever is slower is not going to be compared at rest.
const OPEN_WITHIN: Duration = Duration::from_secs(60);

/// A session that never moved a byte would be flattered.
const TASK: Task = Task { bytes: 64, echo: true, concurrency: CONCURRENCY, hold: true };

/// Restarts the peer, so that no earlier load counts, fills it with sessions, and lets them rest.
pub(super) fn idle(peer: &mut dyn Peer, sessions: usize, conditions: Conditions) -> Result<Sample> {
    ensure!(sessions > 0, "idle needs at least 1 session");
    peer.stop()?;
    peer.start()?;
    // Kept open: closed ones would leave memory behind for the others to use.
    let first = open(peer, FIRST_SESSIONS, conditions)?;
    sleep(SETTLE);
    let base_kib = resident_kib(&peer.pids())?;
    let held = open(peer, sessions, conditions)?;
    sleep(SETTLE);
    let full_kib = resident_kib(&peer.pids())?;
    let meter = Meter::new(peer.pids());
    let begun = meter.begin()?;
    sleep(conditions.window);
    let usage = meter.used_since(&begun)?;
    let opened = held.len() / 2;
    drop((first, held));
    let grown_kib = full_kib.saturating_sub(base_kib);
    Ok(Sample {
        values: vec![
            (Metric::SessionsHeld, opened as f64),
            (Metric::RssPerSession, grown_kib as f64 / opened.max(1) as f64),
            (Metric::RssBase, base_kib as f64 / 1024.0),
            (Metric::IdleCpu, usage.peer_cpu_s / usage.wall_s * 100.0),
        ],
        histograms: Vec::new(),
        busy_share: usage.generator_share(),
        usage,
        late_share: 0.0,
        unanswered: 0,
    })
}

/// Opens `count` sessions that have echoed one message, or as many as the peer holds.
fn open(peer: &mut dyn Peer, count: usize, conditions: Conditions) -> Result<Vec<TcpStream>> {
    let mut held = Vec::with_capacity(count * 2);
    while held.len() / 2 < count {
        let wanted = (count - held.len() / 2).min(PER_DIAL);
        let dialling = peer.dial(wanted)?;
        let limit = Limit { time: OPEN_WITHIN, sessions: wanted as u64 };
        let tally = match sessions::run(dialling, &conditions.dialer, TASK, limit) {
            // What it holds by now is what it holds at most.
            Err(_) if !held.is_empty() => break,
            run => run?,
        };
        ensure!(tally.sessions > 0, "no session was set up");
        held.extend(tally.held);
        if tally.stopped.is_some() {
            break;
        }
    }
    Ok(held)
}
