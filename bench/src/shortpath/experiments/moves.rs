//! What the planned move from TCP to UDP adds to an echo's latency.

use std::time::Duration;

use anyhow::{Context, Result};

use super::failover::{DISTANCES, RATE};
use super::{Case, Experiment};
use crate::shortpath::goals::{Goal, Metric, Sample, Statistic};
use crate::shortpath::peers::PeerKind;
use crate::shortpath::scene::{LINGER, Trial, in_lab, ms, ns};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "moves",
    title: "Planned moves",
    claim: "Moving from TCP to UDP adds at most 1 ms to the p99 of the echoes around it.",
    who: "switchback, iroh; the others never move",
    rounds: 10,
    cases,
};

const ADDED: Metric = Metric::ms("added_p99");
/// The longest time without an answer in the first seconds.
const GAP: Metric = Metric::ms("longest_gap");

const ADDED_MS: f64 = 1.0;

/// Before and after the first echo on the new path.
const AROUND_MS: f64 = 200.0;
/// From here on nothing moves any more.
const STEADY_AFTER: Duration = Duration::from_secs(2);

fn cases(quick: bool) -> Vec<Case> {
    let watched = Duration::from_secs(if quick { 1 } else { 4 });
    vec![Case {
        name: format!("TCP to UDP, path RTT {} ms", DISTANCES.path),
        peers: vec![PeerKind::Switchback, PeerKind::Iroh],
        goals: vec![Goal::at_most("switchback", ADDED, Statistic::P50, ADDED_MS)],
        measure: Box::new(move |trial| measure(trial, watched)),
    }]
}

fn measure(trial: Trial<'_>, watched: Duration) -> Result<Sample> {
    in_lab(trial, &DISTANCES.topology(""), |scene, tunnel| {
        let echo = scene.settle(tunnel, RATE, DISTANCES)?;
        std::thread::sleep(STEADY_AFTER + watched);
        let trace = echo.finish(LINGER);
        let moved = trace.runs_within(DISTANCES.direct_ns(), 0).context("the move is gone")?;
        let first = trace.answered_after(0).context("nothing was answered")?;
        let steady = moved + STEADY_AFTER.as_nanos() as u64;
        let added = trace.added_by_move(moved, ns(AROUND_MS), steady);
        let gap = trace.longest_silence(first, steady).map(ms);
        Ok(Sample::default().with_some(ADDED, added.map(ms)).with_some(GAP, gap))
    })
}
