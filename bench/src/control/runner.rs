//! Takes the measurements: rounds interleaved, each with a broker, a thread and a runtime of its own.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use indicatif::ProgressBar;

use super::experiments::{Case, Experiment, Variant};
use crate::measure::placement::Placement;
use crate::report::Failure;
use crate::shortpath::goals::Sample;
use crate::shortpath::report::{CaseReport, ExperimentReport};
use crate::shortpath::taken::Taken;

/// What every measurement needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// Ours.
    pub(crate) binary: PathBuf,
    /// Short and few.
    pub(crate) quick: bool,
    /// Numbers of agents to connect; empty: the experiment's own.
    pub(crate) agents: Vec<usize>,
    /// The broker's CPU, and ours.
    pub(crate) placement: Placement,
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trial<'a> {
    pub(crate) setup: &'a Setup,
    /// Of all chance.
    pub(crate) seed: u64,
}

/// What is asked for.
pub(crate) struct Plan {
    pub(crate) setup: Setup,
    /// Instead of each experiment's own number.
    pub(crate) rounds: Option<usize>,
    pub(crate) seed: u64,
}

/// A quick run begins no measurement after this.
const QUICK_ALL: Duration = Duration::from_secs(50);

/// What the runtime's last threads may take to end.
const LEAVE: Duration = Duration::from_secs(1);

impl Plan {
    fn rounds(&self, experiment: &Experiment) -> usize {
        self.rounds.unwrap_or(if self.setup.quick { 1 } else { experiment.rounds })
    }

    /// Measurements of an experiment.
    pub(crate) fn measurements(&self, experiment: &Experiment) -> u64 {
        let cases = (experiment.cases)(&self.setup);
        let variants: usize = cases.iter().map(|case| case.variants.len()).sum();
        (variants * self.rounds(experiment)) as u64
    }

    /// Takes all measurements of one experiment.
    pub(crate) fn run(
        &self,
        experiment: &Experiment,
        begun: Instant,
        progress: &ProgressBar,
        failures: &mut Vec<Failure>,
    ) -> ExperimentReport {
        let cases = (experiment.cases)(&self.setup);
        let none = |case: &Case| case.variants.iter().map(|one| Taken::new(one.name)).collect();
        let mut outcomes: Vec<Vec<Taken>> = cases.iter().map(none).collect();
        let rounds = self.rounds(experiment);
        let mut left_out = 0;
        for round in 0..rounds {
            for (case, outcomes) in cases.iter().zip(&mut outcomes) {
                for (variant, taken) in case.variants.iter().zip(outcomes) {
                    if self.setup.quick && begun.elapsed() > QUICK_ALL {
                        left_out += 1;
                        progress.inc(1);
                        continue;
                    }
                    let trial =
                        Trial { setup: &self.setup, seed: self.seed.wrapping_add(round as u64) };
                    let during = [experiment.name, &case.name];
                    taken.take(during, progress, failures, || alone(variant, trial));
                }
            }
        }
        let note = format!("{left_out} measurements were left out: this is a quick run");
        let notes = (left_out > 0).then_some(note).into_iter().collect();
        let cases = cases.iter().zip(&outcomes);
        let cases = cases.map(|(case, taken)| CaseReport::of(&case.name, &case.goals, taken));
        let Experiment { name, title, claim, .. } = *experiment;
        ExperimentReport { name, title, claim, rounds, notes, cases: cases.collect() }
    }
}

/// Takes one measurement in a thread that ends with it, and with it the broker it started.
fn alone(variant: &Variant, trial: Trial<'_>) -> Result<Sample> {
    thread::scope(|scope| {
        let measuring = scope.spawn(|| {
            trial.setup.placement.pin_generator().context("pinning to a CPU")?;
            // One thread: its CPU time is the generator's, and nobody else's.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let outcome = runtime.block_on((variant.measure)(trial));
            runtime.shutdown_timeout(LEAVE);
            outcome
        });
        measuring.join().unwrap_or_else(|_| Err(anyhow!("the measurement panicked")))
    })
}
