//! How soon a session is back on a direct path that works again.

use std::time::Duration;

use anyhow::{Result, bail};

use super::failover::{DISTANCES, RATE};
use super::{Case, Experiment};
use crate::shortpath::goals::{Goal, Metric, Sample, Statistic};
use crate::shortpath::peers::PeerKind;
use crate::shortpath::scene::{LINGER, Trial, in_lab, ms};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "heal",
    title: "The direct path heals",
    claim: "A session is back on it within 15 s.",
    who: "switchback, iroh; the others have no direct path",
    rounds: 5,
    cases,
};

const BACK: Metric = Metric { name: "back_on_direct", unit: "s" };
const WITHIN_S: f64 = 15.0;

fn cases(quick: bool) -> Vec<Case> {
    let mut peers = vec![PeerKind::Switchback];
    if !quick {
        // Half a minute each.
        peers.push(PeerKind::Iroh);
    }
    let (dead, patience) = if quick { (2, 17) } else { (20, 60) };
    let (dead, patience) = (Duration::from_secs(dead), Duration::from_secs(patience));
    vec![Case {
        name: format!("all UDP blackholed for {} s", dead.as_secs()),
        peers,
        goals: vec![Goal::at_most("switchback", BACK, Statistic::P99, WITHIN_S)],
        measure: Box::new(move |trial| measure(trial, dead, patience)),
    }]
}

fn measure(trial: Trial<'_>, dead: Duration, patience: Duration) -> Result<Sample> {
    in_lab(trial, &DISTANCES.topology(""), |scene, tunnel| {
        // iroh's connections survive at this rate only.
        let rate = if trial.peer == PeerKind::Iroh { RATE / 10.0 } else { RATE };
        let echo = scene.settle(tunnel, rate, DISTANCES)?;
        let nat = scene.ground.shaped()?.nat("client-nat");
        nat.block("udp=drop")?;
        std::thread::sleep(dead);
        let healed_ns = echo.now_ns();
        nat.block("udp=allow")?;
        let direct_ns = DISTANCES.direct_ns();
        let back = echo.until(patience, |trace| trace.runs_within(direct_ns, healed_ns));
        let trace = echo.finish(LINGER);
        match (back, trace.broken) {
            (Some(back), _) => Ok(Sample::default().with(BACK, ms(back - healed_ns) / 1e3)),
            (None, Some(broken)) => bail!("the connection died: {broken}"),
            (None, None) => bail!("not back on the direct path within {patience:?}"),
        }
    })
}
