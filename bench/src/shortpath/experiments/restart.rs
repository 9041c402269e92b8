//! What an application notices when the server is killed and comes back a second later.

use std::time::Duration;

use anyhow::Result;

use super::failover::{DISTANCES, RATE, SETTLE, patience};
use super::{Case, Experiment};
use crate::shortpath::goals::{Goal, Metric, Sample, Statistic};
use crate::shortpath::peers::PeerKind;
use crate::shortpath::scene::{DEAD, STALL, Trial, in_lab, ms};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "restart",
    title: "The gateway is killed",
    claim: "On UDP nothing is noticed; on TCP sessions go on within 1 s of its return.",
    who: "on UDP switchback and iroh, on TCP the others",
    rounds: 10,
    cases,
};

/// From the server's return until the first answer.
const RESUMED: Metric = Metric::ms("resumed");

/// A gap this short at 200 messages per second is the machine's own, in milliseconds.
const NO_GAP_MS: f64 = 25.0;
const RESUMED_MS: f64 = 1000.0;
const AWAY: Duration = Duration::from_secs(1);

fn cases(quick: bool) -> Vec<Case> {
    let on_udp = vec![
        Goal::at_most("switchback", STALL, Statistic::P99, NO_GAP_MS),
        Goal::at_most("switchback", DEAD, Statistic::Sum, 0.0),
    ];
    let on_tcp = vec![
        Goal::at_most("switchback-tcp", RESUMED, Statistic::P99, RESUMED_MS),
        Goal::at_most("switchback-tcp", DEAD, Statistic::Sum, 0.0),
    ];
    let case = |name: &str, peers: &[PeerKind], goals| Case {
        name: name.to_owned(),
        peers: peers.to_vec(),
        goals,
        measure: Box::new(move |trial| measure(trial, patience(quick))),
    };
    vec![
        case("while on UDP", &[PeerKind::Switchback, PeerKind::Iroh], on_udp),
        case("while on TCP", &[PeerKind::SwitchbackTcp, PeerKind::Rathole, PeerKind::Ssh], on_tcp),
    ]
}

fn measure(trial: Trial<'_>, patience: Duration) -> Result<Sample> {
    in_lab(trial, &DISTANCES.topology(""), |scene, tunnel| {
        let echo = scene.settle(tunnel, RATE, DISTANCES)?;
        std::thread::sleep(SETTLE);
        let killed_ns = echo.now_ns();
        tunnel.kill_server();
        std::thread::sleep(AWAY);
        tunnel.restart_server()?;
        let back_ns = echo.now_ns();
        let after = scene.aftermath(echo, back_ns, patience, SETTLE)?;
        let until_ns = scene.clock.now_ns();
        let silence = after.trace.longest_silence(killed_ns, until_ns.max(killed_ns + 1));
        // What was sent while it was away is answered first.
        let answers = after.trace.messages.iter().filter_map(|message| message.back_ns);
        let resumed = answers.into_iter().find(|answer| *answer >= back_ns);
        let resumed = resumed.map(|at| ms(at - back_ns)).filter(|_| !after.dead);
        let mut sample = after.sample(patience);
        sample.figures.retain(|(metric, _)| *metric != STALL);
        let stall = silence.map(ms).filter(|_| !after.dead);
        Ok(sample.with_some(STALL, stall).with_some(RESUMED, resumed))
    })
}
