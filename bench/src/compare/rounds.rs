//! Interleaved rounds: A B C, C B A, A B C ... so that drift of the machine falls on all alike.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use indicatif::ProgressBar;

use super::scenario::Scenario;
use crate::load::sample::{Conditions, Sample, sample};
use crate::load::workload::Workload;
use crate::peers::Peer;
use crate::peers::verify::verify;
use crate::report::Failure;

/// All samples of one scenario, by peer name, in the order of the rounds.
pub(crate) type Samples = BTreeMap<String, Vec<Sample>>;

/// How many measurements [`run_scenario`] takes: the length of its progress bar.
pub(crate) fn measurements(scenario: &Scenario, rounds: usize, peers: usize) -> u64 {
    (rounds_of(scenario, rounds) * peers) as u64
}

/// Starts every peer and checks that it carries bytes truly; those that fail are stopped and
/// dropped.
pub(crate) fn start_all(peers: &mut Vec<Box<dyn Peer>>, failures: &mut Vec<Failure>) {
    peers.retain_mut(|peer| {
        let Err(error) = start_and_verify(peer.as_mut()) else { return true };
        failures.push(failure(peer.as_ref(), "start", &error));
        // It has failed already; what stopping it says adds nothing.
        let _ = peer.stop();
        false
    });
}

/// Measures one scenario on all peers in interleaved rounds.
///
/// A peer that fails is left out of the rest of the scenario, and its earlier rounds are discarded:
/// there are no figures of a peer that fails. It is started anew for the next scenario.
pub(crate) fn run_scenario(
    scenario: &Scenario,
    rounds: usize,
    conditions: Conditions,
    peers: &mut [Box<dyn Peer>],
    progress: &ProgressBar,
    failures: &mut Vec<Failure>,
) -> Samples {
    let mut samples = Samples::new();
    let mut failed = vec![false; peers.len()];
    let rounds = rounds_of(scenario, rounds);
    let name = scenario.name.as_str();
    for round in 0..rounds {
        for index in order(round, peers.len()) {
            let peer = peers[index].as_mut();
            progress.set_message(format!("{name} round {}/{rounds} {}", round + 1, peer.name()));
            if !failed[index] {
                match sample(peer, &scenario.workload, Conditions { round, ..conditions }) {
                    Ok(Some(sample)) => {
                        samples.entry(peer.name().to_owned()).or_default().push(sample);
                    }
                    Ok(None) => {}
                    Err(error) => {
                        failed[index] = true;
                        samples.remove(peer.name());
                        failures.push(failure(peer, name, &error));
                        if let Err(error) = start_anew(peer) {
                            failures.push(failure(peer, "restart", &error));
                        }
                    }
                }
            }
            progress.inc(1);
        }
    }
    samples
}

/// Whatever it failed at must not fail the next scenario too.
fn start_anew(peer: &mut dyn Peer) -> Result<()> {
    // It has failed already; what stopping it says adds nothing.
    let _ = peer.stop();
    peer.start()
}

/// Peers of one round: forwards in even rounds, backwards in odd ones.
fn order(round: usize, peers: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..peers).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// Memory does not jitter like time does: one round, on a freshly started process.
fn rounds_of(scenario: &Scenario, rounds: usize) -> usize {
    if matches!(scenario.workload, Workload::Idle { .. }) { 1 } else { rounds }
}

fn start_and_verify(peer: &mut dyn Peer) -> Result<()> {
    peer.start()?;
    for flow in peer.open(2)? {
        verify(flow).context("checking that bytes arrive as they were sent")?;
    }
    Ok(())
}

fn failure(peer: &dyn Peer, during: &str, error: &anyhow::Error) -> Failure {
    Failure {
        peer: peer.name().to_owned(),
        during: during.to_owned(),
        reason: format!("{error:#}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::Flow;
    use crate::peers::direct::Direct;
    use crate::peers::socket::Dialer;
    use std::cell::Cell;
    use std::rc::Rc;
    use std::time::Duration;

    const SCENARIO: &str = r#"
        name = "one"
        title = "One flow"
        claim = "It is fast."
        workload = { kind = "bulk", flows = 1 }
    "#;

    /// Carries `good` openings after each start, then none.
    struct Failing {
        direct: Direct,
        good: usize,
        starts: Rc<Cell<usize>>,
    }

    impl Peer for Failing {
        fn name(&self) -> &str {
            "failing"
        }
        fn version(&self) -> &str {
            "test"
        }
        fn start(&mut self) -> Result<()> {
            self.starts.set(self.starts.get() + 1);
            self.good = 2;
            Ok(())
        }
        fn stop(&mut self) -> Result<()> {
            Ok(())
        }
        fn open(&mut self, count: usize) -> Result<Vec<Flow>> {
            self.good = self.good.checked_sub(1).context("no more flows")?;
            self.direct.open(count)
        }
        fn dial(&mut self, count: usize) -> Result<crate::peers::Dialling> {
            self.direct.dial(count)
        }
        fn pids(&self) -> Vec<rustix::process::Pid> {
            Vec::new()
        }
    }

    #[test]
    fn odd_rounds_run_backwards() {
        assert_eq!(order(0, 3), [0, 1, 2]);
        assert_eq!(order(1, 3), [2, 1, 0]);
        assert_eq!(order(2, 3), [0, 1, 2]);
    }

    #[test]
    fn a_peer_that_fails_midway_has_no_figures_and_stops_nobody() {
        let dialer = Dialer::system_default();
        let starts = Rc::new(Cell::new(0));
        let failing = Failing { direct: Direct::new(dialer), good: 0, starts: starts.clone() };
        let mut peers: Vec<Box<dyn Peer>> = vec![Box::new(Direct::new(dialer)), Box::new(failing)];
        let mut failures = Vec::new();
        start_all(&mut peers, &mut failures);
        assert!(failures.is_empty());
        let scenario = Scenario::parse(SCENARIO).unwrap();
        let conditions = Conditions { window: Duration::from_millis(20), round: 0, dialer };
        let bar = ProgressBar::hidden();
        let samples = run_scenario(&scenario, 3, conditions, &mut peers, &bar, &mut failures);
        assert_eq!(samples["direct"].len(), 3);
        assert!(!samples.contains_key("failing"));
        assert_eq!(failures.len(), 1);
        assert_eq!(
            (failures[0].during.as_str(), failures[0].reason.as_str()),
            ("one", "no more flows")
        );
        assert_eq!(bar.position(), measurements(&scenario, 3, 2));
        assert_eq!(starts.get(), 2, "it is started anew for the next scenario");
    }
}
