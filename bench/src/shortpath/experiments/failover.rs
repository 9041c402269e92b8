//! What an application notices when the path under it dies without a word.

use std::time::Duration;

use anyhow::Result;

use super::{Case, Experiment};
use crate::shortpath::goals::{Goal, Sample, Statistic};
use crate::shortpath::peers::PeerKind;
use crate::shortpath::scene::{DEAD, Distances, STALL, Trial, in_lab};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "failover",
    title: "The path dies",
    claim: "A blackholed direct path stalls an echo for 2 RTT + 20 ms, and no session dies.",
    who: "switchback, iroh; the others have no path to fail over from",
    rounds: 20,
    cases,
};

pub(super) const RATE: f64 = 200.0;
pub(super) const DISTANCES: Distances = Distances { path: 50 };

/// Second stalls show in this time.
pub(super) const SETTLE: Duration = Duration::from_millis(1500);

/// How long a silence is waited for to end. iroh's known ones are 15.2 s and, rarely, 65.8 s.
pub(super) fn patience(quick: bool) -> Duration {
    Duration::from_secs(if quick { 5 } else { 25 })
}

/// At most 3 RTT, or 150 ms where that is less: shorter is not noticed.
pub(super) fn unnoticed() -> f64 {
    (3.0 * f64::from(DISTANCES.path)).max(150.0)
}

fn cases(quick: bool) -> Vec<Case> {
    let cut =
        [("direct path blackholed", "udp=only:192.0.2.1"), ("all UDP blackholed", "udp=drop")];
    cut.map(|(name, policy)| case(name, policy, quick)).into()
}

fn case(name: &str, policy: &'static str, quick: bool) -> Case {
    let wanted = 2.0 * f64::from(DISTANCES.path) + 20.0;
    Case {
        name: format!("{name}, path RTT {} ms", DISTANCES.path),
        peers: vec![PeerKind::Switchback, PeerKind::Iroh],
        goals: vec![
            Goal::at_most("switchback", STALL, Statistic::P50, wanted),
            Goal::at_most("switchback", STALL, Statistic::P99, unnoticed()),
            Goal::at_most("switchback", DEAD, Statistic::Sum, 0.0),
        ],
        measure: Box::new(move |trial| measure(trial, policy, patience(quick))),
    }
}

fn measure(trial: Trial<'_>, policy: &str, patience: Duration) -> Result<Sample> {
    in_lab(trial, &DISTANCES.topology(""), |scene, tunnel| {
        let echo = scene.settle(tunnel, RATE, DISTANCES)?;
        std::thread::sleep(SETTLE);
        scene.ground.shaped()?.nat("client-nat").block(policy)?;
        let from_ns = echo.now_ns();
        let after = scene.aftermath(echo, from_ns, patience, SETTLE)?;
        Ok(after.sample(patience))
    })
}
