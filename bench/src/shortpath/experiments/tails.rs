//! Small messages over a lossy link.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Case, Experiment};
use crate::shortpath::echo::MESSAGE_BYTES;
use crate::shortpath::goals::{Goal, Metric, Sample, Statistic};
use crate::shortpath::peers::{PeerKind, sum_of};
use crate::shortpath::scene::{Distances, LINGER, Trial, in_lab, ms};
use crate::shortpath::trace::quantile;

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "tails",
    title: "Echo tails under loss",
    claim: "At 5 % loss each way an echo of 40 ms stays below 80 ms at p99.",
    who: "all tunnels",
    rounds: 3,
    cases,
};

const P50: Metric = Metric::ms("p50");
const P99: Metric = Metric::ms("p99");
const P999: Metric = Metric::ms("p99.9");
/// Messages of the measured time that had not come back [`LINGER`] twice after it.
const UNANSWERED: Metric = Metric { name: "unanswered", unit: "messages" };
const DUP_SENT: Metric = Metric { name: "dup_sent", unit: "frames" };
const DUP_WON: Metric = Metric { name: "dup_won", unit: "frames" };
/// Their payload, both ends together.
const DUP_BYTES: Metric = Metric { name: "dup_bytes", unit: "bytes" };
/// Duplicated bytes beyond the budget of 3 % or 64 kbit/s, whichever is more; both ends together.
const DUP_BEYOND: Metric = Metric { name: "dup_bytes_beyond_budget", unit: "bytes" };

const RATE: f64 = 50.0;

/// 40 ms to the agent, nothing but that to the server.
const TOPOLOGY: &str = "pair:client-link=delay=10ms,agent-link=delay=10ms";
/// The same without NATs, for who cannot traverse them.
const ROUTED: &str = "routed:client-link=delay=10ms,agent-link=delay=10ms";
const DISTANCES: Distances = Distances { path: 40 };

/// Loss each way in percent, and what p99 may be, in milliseconds.
const LOSSES: [(u32, f64); 4] = [(0, 43.0), (1, 50.0), (3, 60.0), (5, 80.0)];
const P50_WITHOUT_LOSS_MS: f64 = 41.0;

/// The default budget.
const BUDGET_SHARE: f64 = 0.03;
const BUDGET_BYTES_PER_SECOND: f64 = 8000.0;

fn cases(quick: bool) -> Vec<Case> {
    let measured = Duration::from_secs(if quick { 3 } else { 60 });
    let chosen: &[_] = if quick { &LOSSES[3..] } else { &LOSSES };
    chosen.iter().map(|(loss, p99)| case(*loss, *p99, measured)).collect()
}

fn case(loss: u32, p99: f64, measured: Duration) -> Case {
    let mut goals = vec![
        Goal::at_most("switchback", P99, Statistic::P50, p99),
        Goal::at_most("switchback", DUP_BEYOND, Statistic::P99, 0.0),
    ];
    if loss == 0 {
        goals.push(Goal::at_most("switchback", P50, Statistic::P50, P50_WITHOUT_LOSS_MS));
    }
    Case {
        name: format!("{loss} % loss each way on the client's link, RTT 40 ms"),
        peers: vec![
            PeerKind::Switchback,
            PeerKind::SwitchbackTcp,
            PeerKind::Iroh,
            PeerKind::Quinn,
            PeerKind::Rathole,
            PeerKind::Ssh,
        ],
        goals,
        measure: Box::new(move |trial| measure(trial, loss, measured)),
    }
}

fn measure(trial: Trial<'_>, loss: u32, measured: Duration) -> Result<Sample> {
    let topology = if trial.peer == PeerKind::Quinn { ROUTED } else { TOPOLOGY };
    in_lab(trial, topology, |scene, tunnel| {
        // The two paths are equally long here: settling shows that it works, loss comes later.
        let echo = scene.settle(tunnel, RATE, DISTANCES)?;
        std::thread::sleep(SETTLE);
        scene.ground.shaped()?.link("client").set(&format!("loss={loss}%"))?;
        std::thread::sleep(SETTLE);
        let from_ns = echo.now_ns();
        std::thread::sleep(measured);
        let until_ns = echo.now_ns();
        std::thread::sleep(LINGER);
        let told = tunnel.session();
        let transport = tunnel.transport();
        let trace = echo.finish(LINGER);
        let latencies = trace.round_trips(from_ns, until_ns);
        ensure!(!latencies.is_empty(), "no message came back");
        ensure!(
            trace.broken.is_none(),
            "the connection died: {}",
            trace.broken.unwrap_or_default()
        );
        let at = |share| quantile(&latencies, share).map(ms);
        let bytes = (2 * MESSAGE_BYTES * trace.messages.len()) as f64;
        let seconds = until_ns as f64 / 1e9;
        let mut sample = Sample { latencies: latencies.clone(), ..Sample::default() }
            .with_some(P50, at(0.5))
            .with_some(P99, at(0.99))
            .with_some(P999, at(0.999))
            .with(UNANSWERED, trace.unanswered(from_ns, until_ns) as f64)
            .with_some(DUP_SENT, sum_of(&told, "dup_sent"))
            .with_some(DUP_WON, sum_of(&told, "dup_won"))
            .with_some(DUP_BYTES, sum_of(&told, "dup_bytes"))
            .with_some(
                DUP_BEYOND,
                sum_of(&told, "dup_bytes").map(|dup| beyond(dup, bytes, seconds)),
            );
        if let Some(transport) = transport {
            sample = sample.told("transport", transport);
        }
        Ok(sample)
    })
}

/// Before the loss and after it: estimates settle.
const SETTLE: Duration = Duration::from_secs(1);

/// Duplicated bytes of both ends beyond both ends' budget.
fn beyond(duplicated: f64, bytes: f64, seconds: f64) -> f64 {
    let budget = (BUDGET_SHARE * bytes).max(2.0 * BUDGET_BYTES_PER_SECOND * seconds);
    (duplicated - budget).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_the_greater_of_share_and_rate() {
        assert_eq!(beyond(16_000.0, 1000.0, 1.0), 0.0);
        assert_eq!(beyond(16_001.0, 1000.0, 1.0), 1.0);
        assert_eq!(beyond(40_000.0, 1e6, 1.0), 10_000.0);
    }
}
