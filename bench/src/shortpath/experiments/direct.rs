//! How soon after the request for a session its echo runs on the direct path.

use std::time::Duration;

use anyhow::{Result, bail};

use super::{Case, Experiment};
use crate::shortpath::goals::{Goal, Metric, Sample, Statistic};
use crate::shortpath::peers::PeerKind;
use crate::shortpath::scene::{Distances, LINGER, Trial, in_lab, ms};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "direct",
    title: "Time to the direct path",
    claim: "The echo is direct 1 broker RTT + 2.5 path RTT + 10 ms after the session was asked for.",
    who: "switchback, iroh; the others have no direct path",
    rounds: 15,
    cases,
};

const TIME_TO_DIRECT: Metric = Metric::ms("time_to_direct");

const RATE: f64 = 200.0;
const PATIENCE: Duration = Duration::from_secs(10);

fn cases(quick: bool) -> Vec<Case> {
    let paths: &[u32] = if quick { &[50] } else { &[20, 50, 100] };
    paths.iter().map(|path| case(Distances { path: *path })).collect()
}

fn case(distances: Distances) -> Case {
    let path = f64::from(distances.path);
    let wanted = distances.broker() + 2.5 * path + 10.0;
    let goal = |statistic, value| Goal::at_most("switchback", TIME_TO_DIRECT, statistic, value);
    Case {
        name: format!("path RTT {path} ms"),
        peers: vec![PeerKind::Switchback, PeerKind::Iroh],
        goals: vec![goal(Statistic::P50, wanted), goal(Statistic::P99, wanted + path)],
        measure: Box::new(move |trial| measure(trial, distances)),
    }
}

fn measure(trial: Trial<'_>, distances: Distances) -> Result<Sample> {
    in_lab(trial, &distances.topology(""), |scene, tunnel| {
        let (echo, begun) = scene.begin_timed(tunnel, RATE)?;
        let direct = echo.until(PATIENCE, |trace| trace.runs_within(distances.direct_ns(), 0));
        let Some(direct) = direct else {
            let path = tunnel.transport().unwrap_or_else(|| "not told".to_owned());
            bail!("not direct within {PATIENCE:?}: transport {path}");
        };
        drop(echo.finish(LINGER));
        let sample = Sample::default().with(TIME_TO_DIRECT, ms(direct.saturating_sub(begun)));
        Ok(match tunnel.transport() {
            Some(transport) => sample.told("transport", transport),
            None => sample,
        })
    })
}
