//! How long an application waits for its first byte.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Case, Experiment};
use crate::shortpath::goals::{Goal, Metric, Sample, Statistic};
use crate::shortpath::peers::{PeerKind, dial, first_byte};
use crate::shortpath::scene::{Distances, Trial, in_lab};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "first-byte",
    title: "First byte echoed",
    claim: "The first byte is back within 2 relayed RTT + 10 ms, UDP or not.",
    who: "all tunnels; rathole and ssh have no sessions, only connections",
    rounds: 15,
    cases,
};

/// A fresh session of a client that is signed in, until the first byte is back.
const SESSION: Metric = Metric::ms("session");
/// A fresh connection over the session that is there.
const CONNECTION: Metric = Metric::ms("connection");
/// From the start of the client's process.
const COLD: Metric = Metric::ms("cold");

/// Connections per measurement.
const CONNECTIONS: usize = 3;

/// Longer than anything that works takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// Noise of two processes on one machine, in milliseconds.
const NOISE_MS: f64 = 5.0;

/// What the network does to UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Udp {
    Passes,
    Blackholed,
}

fn cases(quick: bool) -> Vec<Case> {
    let paths: &[u32] = if quick { &[50] } else { &[20, 50, 100] };
    let of = |path: &u32| [Udp::Passes, Udp::Blackholed].map(|udp| case(*path, udp));
    paths.iter().flat_map(of).collect()
}

fn case(path: u32, udp: Udp) -> Case {
    let distances = Distances { path };
    let relayed = distances.relayed();
    let (words, mut peers) = match udp {
        Udp::Passes => ("UDP passes", vec![PeerKind::Rathole, PeerKind::Ssh]),
        Udp::Blackholed => ("UDP blackholed", Vec::new()),
    };
    peers.splice(0..0, [PeerKind::Switchback, PeerKind::SwitchbackTcp, PeerKind::Iroh]);
    let mut goals = Vec::new();
    for ours in ["switchback", "switchback-tcp"] {
        goals.push(Goal::at_most(ours, SESSION, Statistic::P50, 2.0 * relayed + 10.0));
        goals.push(Goal::at_most(ours, CONNECTION, Statistic::P50, 1.1 * relayed + 10.0));
    }
    // UDP must cost the first byte nothing.
    let never_later = Goal::at_most("switchback", SESSION, Statistic::P50, 1.0);
    goals.push(never_later.times("switchback-tcp", NOISE_MS));
    let measure = move |trial: Trial<'_>| measure(trial, distances, udp);
    Case {
        name: format!("relayed RTT {relayed} ms, {words}"),
        peers,
        goals,
        measure: Box::new(measure),
    }
}

fn measure(trial: Trial<'_>, distances: Distances, udp: Udp) -> Result<Sample> {
    in_lab(trial, &distances.topology(""), |scene, tunnel| {
        if udp == Udp::Blackholed {
            scene.ground.shaped()?.nat("client-nat").block("udp=drop")?;
        }
        let started = Instant::now();
        tunnel.client()?;
        let dialled = Instant::now();
        let mut stream = dial(scene.ground, tunnel.entry())?;
        let back = first_byte(&mut stream, PATIENCE)?;
        let since = |at: Instant| back.saturating_duration_since(at).as_secs_f64() * 1e3;
        let mut sample = Sample::default();
        match trial.peer {
            // Dialling found a tunnel that had been tried: that was no session's beginning.
            PeerKind::Rathole | PeerKind::Ssh => {}
            PeerKind::Iroh => {
                sample = sample.with(SESSION, since(dialled)).with(COLD, since(started));
            }
            _ => {
                let asked = tunnel.asked();
                sample = sample.with_some(SESSION, asked.map(since)).with(COLD, since(started));
            }
        }
        for _ in 0..CONNECTIONS {
            let dialled = Instant::now();
            let mut stream = dial(scene.ground, tunnel.entry())?;
            let back = first_byte(&mut stream, PATIENCE)?;
            let took = back.saturating_duration_since(dialled).as_secs_f64() * 1e3;
            sample = sample.with(CONNECTION, took);
        }
        Ok(sample)
    })
}
