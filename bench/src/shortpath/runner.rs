//! Takes the measurements: rounds interleaved, each in a lab and a thread of its own.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use indicatif::ProgressBar;

use super::experiments::{Case, Experiment};
use super::goals::Sample;
use super::peers::PeerKind;
use super::report::{CaseReport, ExperimentReport};
use super::scene::{Setup, Trial};
use super::taken::Taken;
use crate::report::Failure;

/// What is asked for.
pub(crate) struct Plan {
    pub(crate) setup: Setup,
    /// Who may take part.
    pub(crate) peers: Vec<PeerKind>,
    /// Only cases whose name contains this.
    pub(crate) case: Option<String>,
    /// Instead of each experiment's own number.
    pub(crate) rounds: Option<usize>,
    pub(crate) seed: u64,
}

/// Nothing is begun after this in a quick run, per experiment and in all; what has begun may take
/// its patience more.
const QUICK_EXPERIMENT: Duration = Duration::from_secs(13);
const QUICK_ALL: Duration = Duration::from_secs(150);

impl Plan {
    /// Rounds of an experiment.
    fn rounds(&self, experiment: &Experiment) -> usize {
        self.rounds.unwrap_or(if self.setup.quick { 1 } else { experiment.rounds })
    }

    /// Measurements of an experiment.
    pub(crate) fn measurements(&self, experiment: &Experiment) -> u64 {
        let cases = self.cases(experiment);
        let peers: usize = cases.iter().map(|case| self.taking_part(case).len()).sum();
        (peers * self.rounds(experiment)) as u64
    }

    fn cases(&self, experiment: &Experiment) -> Vec<Case> {
        let mut cases = (experiment.cases)(self.setup.quick);
        cases.retain(|case| self.case.as_ref().is_none_or(|text| case.name.contains(text)));
        cases
    }

    fn taking_part(&self, case: &Case) -> Vec<PeerKind> {
        case.peers.iter().copied().filter(|peer| self.peers.contains(peer)).collect()
    }

    /// Takes all measurements of one experiment; `None` if nobody who was asked for takes part.
    pub(crate) fn run(
        &self,
        experiment: &Experiment,
        begun: Instant,
        progress: &ProgressBar,
        failures: &mut Vec<Failure>,
    ) -> Option<ExperimentReport> {
        let cases = self.cases(experiment);
        let none = |peer: PeerKind| (peer, Taken::new(peer.name()));
        let none = |case: &Case| self.taking_part(case).into_iter().map(none).collect();
        let mut outcomes: Vec<Vec<(PeerKind, Taken)>> = cases.iter().map(none).collect();
        if outcomes.iter().all(Vec::is_empty) {
            return None;
        }
        let rounds = self.rounds(experiment);
        let Experiment { name, title, claim, .. } = *experiment;
        let (notes, cases_of) = (Vec::new(), Vec::new());
        let mut report = ExperimentReport { name, title, claim, rounds, notes, cases: cases_of };
        let own = Instant::now();
        let mut left_out = 0;
        for round in 0..rounds {
            for (case, outcomes) in cases.iter().zip(&mut outcomes) {
                // A B C, then C B A: drift of the machine falls on all alike.
                let count = outcomes.len();
                for turn in 0..count {
                    let index = if round % 2 == 0 { turn } else { count - 1 - turn };
                    let spent = own.elapsed() > QUICK_EXPERIMENT || begun.elapsed() > QUICK_ALL;
                    if self.setup.quick && spent {
                        left_out += 1;
                        progress.inc(1);
                        continue;
                    }
                    let (peer, taken) = &mut outcomes[index];
                    let seed = self.seed.wrapping_add(round as u64);
                    let trial = Trial { setup: &self.setup, peer: *peer, seed };
                    let during = [experiment.name, &case.name];
                    taken.take(during, progress, failures, || alone(case, trial));
                }
            }
        }
        if left_out > 0 {
            let note = format!("{left_out} measurements were left out: this is a quick run");
            report.notes.push(note);
        }
        let cases = cases.iter().zip(outcomes).filter(|(_, outcomes)| !outcomes.is_empty());
        let cases = cases.map(|(case, outcomes)| {
            let taken: Vec<_> = outcomes.into_iter().map(|(_, taken)| taken).collect();
            CaseReport::of(&case.name, &case.goals, &taken)
        });
        report.cases = cases.collect();
        Some(report)
    }
}

/// Takes one measurement in a thread that ends with it, and with it the programs it started and the
/// namespaces it was moved into.
fn alone(case: &Case, trial: Trial<'_>) -> Result<Sample> {
    thread::scope(|scope| {
        let measuring = scope.spawn(|| (case.measure)(trial));
        measuring.join().unwrap_or_else(|_| Err(anyhow!("the measurement panicked")))
    })
}
