//! What planned moves add to an echo's latency: TCP to UDP, UDP to UDP, UDP to TCP.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::failover::{DISTANCES, RATE};
use super::{Case, Experiment};
use crate::shortpath::goals::{Goal, Metric, Sample, Statistic};
use crate::shortpath::peers::{PeerKind, Tunnel};
use crate::shortpath::scene::{LINGER, Trial, in_lab, ms, ns};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "moves",
    title: "Planned moves",
    claim: "A planned move adds at most 1 ms to the p99 of the echoes around it.",
    who: "switchback; iroh from its relay to UDP; the others never move",
    rounds: 10,
    cases,
};

const ADDED: Metric = Metric::ms("added_p99");
/// The longest time without an answer around the move.
const GAP: Metric = Metric::ms("longest_gap");

const ADDED_MS: f64 = 1.0;

/// Before and after the first echo on the new path.
const AROUND_MS: f64 = 200.0;
/// From here on nothing moves any more.
const STEADY_AFTER: Duration = Duration::from_secs(2);

/// Time on TCP before the direct path is allowed: what is compared with, and less than until the relay is up.
const ON_TCP: Duration = Duration::from_millis(150);

/// What the network adds to UDP, each way, to make TCP the better path: more than any margin.
const UDP_SLOWER_MS: u32 = 15;

/// Longer than any move takes: the next look for a direct path may be 15 s away.
const PATIENCE: Duration = Duration::from_secs(20);

const TCP: &str = "TCP (Reverse-Connect)";
const RELAY: &str = "UDP (Relay)";
const DIRECT: &str = "UDP (Shortpath)";

/// What moves, and what makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The direct path is forbidden until the session runs on TCP; the relay is not asked for so soon.
    TcpToUdp,
    /// The direct path is forbidden at first, so the session is on the relay until it is allowed.
    RelayToDirect,
    /// The network delays UDP.
    UdpToTcp,
}

fn cases(quick: bool) -> Vec<Case> {
    let watched = Duration::from_secs(if quick { 1 } else { 4 });
    [Way::TcpToUdp, Way::RelayToDirect, Way::UdpToTcp].map(|way| case(way, watched)).into()
}

fn case(way: Way, watched: Duration) -> Case {
    let words = match way {
        Way::TcpToUdp => "TCP to UDP",
        Way::RelayToDirect => "UDP to UDP",
        Way::UdpToTcp => "UDP to TCP",
    };
    let rivals = (way == Way::TcpToUdp).then_some(PeerKind::Iroh);
    Case {
        name: format!("{words}, path RTT {} ms", DISTANCES.path),
        peers: [PeerKind::Switchback].into_iter().chain(rivals).collect(),
        goals: vec![Goal::at_most("switchback", ADDED, Statistic::P50, ADDED_MS)],
        measure: Box::new(move |trial| measure(trial, way, watched)),
    }
}

fn measure(trial: Trial<'_>, way: Way, watched: Duration) -> Result<Sample> {
    in_lab(trial, &DISTANCES.topology(""), |scene, tunnel| {
        let lab = scene.ground.shaped()?;
        let slower_rtt = f64::from(DISTANCES.path + 2 * UDP_SLOWER_MS);
        let ours = trial.peer == PeerKind::Switchback;
        let echo = if way == Way::UdpToTcp || !ours {
            scene.settle(tunnel, RATE, DISTANCES)?
        } else {
            lab.nat("client-nat").block("udp=only:192.0.2.1")?;
            scene.begin(tunnel, RATE)?
        };
        let (from_ns, new_rtt, slower) = match way {
            Way::TcpToUdp if !ours => (0, DISTANCES.direct_ns(), None),
            Way::TcpToUdp => {
                echo.until(PATIENCE, |trace| trace.runs_within(ns(DISTANCES.relayed() + 10.0), 0));
                std::thread::sleep(ON_TCP);
                lab.nat("client-nat").block("udp=allow")?;
                (echo.now_ns(), DISTANCES.direct_ns(), None)
            }
            Way::RelayToDirect => {
                until_carried_by(tunnel, RELAY)?;
                std::thread::sleep(STEADY_AFTER);
                lab.nat("client-nat").block("udp=allow")?;
                (echo.now_ns(), DISTANCES.direct_ns(), None)
            }
            Way::UdpToTcp => {
                std::thread::sleep(STEADY_AFTER);
                lab.link("client").set(&format!("udp-delay={UDP_SLOWER_MS}ms"))?;
                // What is under way was not delayed yet.
                let from_ns = echo.now_ns() + ns(f64::from(DISTANCES.path));
                (from_ns, ns((DISTANCES.relayed() + slower_rtt) / 2.0), Some(ns(slower_rtt)))
            }
        };
        let moved = echo.until(PATIENCE, |trace| trace.runs_within(new_rtt, from_ns));
        let moved = moved.with_context(|| format!("no move within {PATIENCE:?}"))?;
        std::thread::sleep(STEADY_AFTER + watched);
        if ours {
            until_carried_by(tunnel, if way == Way::UdpToTcp { TCP } else { DIRECT })?;
        }
        let trace = echo.finish(LINGER);
        let first = trace.answered_after(0).context("nothing was answered")?;
        let steady = moved + STEADY_AFTER.as_nanos() as u64;
        let added = trace.added_by_move(moved, ns(AROUND_MS), steady, slower);
        let gap = trace.longest_silence(first.max(from_ns), steady).map(ms);
        Ok(Sample::default().with_some(ADDED, added.map(ms)).with_some(GAP, gap))
    })
}

/// Waits until the session is on this transport.
fn until_carried_by(tunnel: &dyn Tunnel, label: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let transport = tunnel.transport();
        if transport.as_deref() == Some(label) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not on {label} within {PATIENCE:?}: {transport:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
