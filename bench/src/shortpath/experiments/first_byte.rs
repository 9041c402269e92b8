//! How long an application waits for its first byte.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::{Case, Experiment};
use crate::shortpath::goals::{Goal, Metric, Sample, Statistic};
use crate::shortpath::peers::{PeerKind, Tunnel, dial, first_byte};
use crate::shortpath::scene::{Distances, Scene, Trial, in_lab};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "first-byte",
    title: "First byte echoed",
    claim: "The first byte is back within 2 relayed RTT + 10 ms, UDP or not.",
    who: "all tunnels; rathole and ssh have no sessions, only connections",
    rounds: 15,
    cases,
};

/// The first session of a client that is connected, from the application's dial until its first byte is back.
const SESSION: Metric = Metric::ms("session");
/// The same of its next session, after the first has ended: what TLS resumption is for.
const RESUMED: Metric = Metric::ms("resumed");
/// A client that is started anew, from the moment at which it is signed in.
const NEW_CLIENT: Metric = Metric::ms("new_client");
/// The same from the start of its process.
const COLD: Metric = Metric::ms("cold");
/// A fresh connection over the session that is there.
const CONNECTION: Metric = Metric::ms("connection");
/// An echo after nothing has passed for [`AWAY`], from the network's return until the first answer.
const BACK: Metric = Metric::ms("back");

/// How long nothing passes: TCP has sent its last bytes again four times by then, and every leg is given up or silent.
const AWAY: Duration = Duration::from_secs(3);

/// For what follows a session's beginning and end: moves, reports, and the next session made ready.
const REST: Duration = Duration::from_millis(1000);

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
        let goal =
            |metric, rtts| Goal::at_most(ours, metric, Statistic::P50, rtts * relayed + 10.0);
        goals.extend([SESSION, NEW_CLIENT].map(|metric| goal(metric, 2.0)));
        goals.extend([RESUMED, CONNECTION].map(|metric| goal(metric, 1.1)));
    }
    // UDP must cost the first byte nothing.
    for metric in [SESSION, NEW_CLIENT] {
        let never_later = Goal::at_most("switchback", metric, Statistic::P50, 1.0);
        goals.push(never_later.times("switchback-tcp", NOISE_MS));
    }
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
        let ours = trial.peer.is_ours();
        let mut sample = Sample::default();
        if ours {
            tunnel.client_on_demand()?;
            for metric in [SESSION, RESUMED] {
                thread::sleep(REST);
                sample = sample.with(metric, first_byte_of_new(scene, tunnel)?);
            }
        }
        let started = Instant::now();
        tunnel.client()?;
        let dialled = Instant::now();
        let mut stream = dial(scene.ground, tunnel.entry())?;
        let back = first_byte(&mut stream, PATIENCE)?;
        let since = |at: Instant| back.saturating_duration_since(at).as_secs_f64() * 1e3;
        sample = match trial.peer {
            // Dialling found a tunnel that had been tried: that was no session's beginning.
            PeerKind::Rathole | PeerKind::Ssh => sample,
            PeerKind::Iroh => sample.with(SESSION, since(dialled)).with(COLD, since(started)),
            _ => {
                let signed_in = tunnel.signed_in();
                sample.with_some(NEW_CLIENT, signed_in.map(since)).with(COLD, since(started))
            }
        };
        for _ in 0..CONNECTIONS {
            sample = sample.with(CONNECTION, first_byte_of_new(scene, tunnel)?);
        }
        match ours {
            true => Ok(sample.with(BACK, back_after_nothing(scene, &mut stream, udp)?)),
            false => Ok(sample),
        }
    })
}

/// Milliseconds from an application's dial until its first byte is back.
fn first_byte_of_new(scene: &Scene<'_>, tunnel: &dyn Tunnel) -> Result<f64> {
    let dialled = Instant::now();
    let mut stream = dial(scene.ground, tunnel.entry())?;
    let back = first_byte(&mut stream, PATIENCE)?;
    Ok(back.saturating_duration_since(dialled).as_secs_f64() * 1e3)
}

/// Milliseconds from the return of a network that let nothing pass for [`AWAY`] until a byte sent meanwhile is back.
fn back_after_nothing(scene: &Scene<'_>, stream: &mut TcpStream, udp: Udp) -> Result<f64> {
    thread::sleep(REST);
    let nat = scene.ground.shaped()?.nat("client-nat");
    nat.block("udp=drop,tcp=drop")?;
    let sent = thread::spawn({
        let mut stream = stream.try_clone()?;
        move || first_byte(&mut stream, AWAY + PATIENCE)
    });
    thread::sleep(AWAY);
    let returned = Instant::now();
    nat.block(if udp == Udp::Passes { "udp=allow,tcp=allow" } else { "tcp=allow" })?;
    let Ok(back) = sent.join() else { bail!("the echo's thread failed") };
    Ok(back?.saturating_duration_since(returned).as_secs_f64() * 1e3)
}
