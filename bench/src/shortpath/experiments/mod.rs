//! One file per claim. Each says which cases there are, who takes part, what one measurement is, and
//! what is to be reached.

mod bulk;
mod direct;
mod events;
mod failover;
mod first_byte;
mod heal;
mod matrix;
mod moves;
mod rebind;
mod restart;
mod tails;
mod turn;

use anyhow::Result;

use super::goals::{Goal, Sample};
use super::peers::PeerKind;
use super::scene::Trial;

/// A claim, and how it is put to the test.
pub(crate) struct Experiment {
    /// The word on the command line.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// What it is to show, in a sentence.
    pub(crate) claim: &'static str,
    /// Who takes part, and why not the others.
    pub(crate) who: &'static str,
    /// Rounds of a full run, unless asked for otherwise.
    pub(crate) rounds: usize,
    /// The cases; fewer and shorter ones if it must be quick.
    pub(crate) cases: fn(quick: bool) -> Vec<Case>,
}

/// One set of conditions.
pub(crate) struct Case {
    pub(crate) name: String,
    /// In the order they are measured, ours first.
    pub(crate) peers: Vec<PeerKind>,
    pub(crate) goals: Vec<Goal>,
    pub(crate) measure: Measure,
}

/// Takes one measurement.
pub(crate) type Measure = Box<dyn Fn(Trial<'_>) -> Result<Sample> + Send + Sync>;

/// All of them, in the order of reports.
pub(crate) const ALL: [Experiment; 12] = [
    matrix::EXPERIMENT,
    first_byte::EXPERIMENT,
    direct::EXPERIMENT,
    failover::EXPERIMENT,
    rebind::EXPERIMENT,
    restart::EXPERIMENT,
    heal::EXPERIMENT,
    tails::EXPERIMENT,
    events::EXPERIMENT,
    moves::EXPERIMENT,
    bulk::EXPERIMENT,
    turn::EXPERIMENT,
];

/// What every experiment claims and who takes part, for `--help`.
pub(crate) fn help() -> String {
    let one = |experiment: &Experiment| {
        let Experiment { name, claim, who, .. } = experiment;
        format!("  {name:<11} {claim}\n{:14}{who}\n", "")
    };
    ALL.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_experiment_has_cases_goals_for_ours_and_a_name_of_its_own() {
        for (index, experiment) in ALL.iter().enumerate() {
            assert!(ALL[..index].iter().all(|other| other.name != experiment.name));
            assert!(help().contains(experiment.claim));
            for quick in [true, false] {
                let cases = (experiment.cases)(quick);
                assert!(!cases.is_empty(), "{}", experiment.name);
                for case in &cases {
                    let names: Vec<_> = case.peers.iter().map(|peer| peer.name()).collect();
                    assert!(case.peers[0].is_ours(), "{}: ours first", case.name);
                    let known = |goal: &Goal| {
                        let other =
                            goal.relative_to.is_none_or(|(other, _)| names.contains(&other));
                        other && names.contains(&goal.peer)
                    };
                    assert!(case.goals.iter().all(known), "{} {}", experiment.name, case.name);
                    let alone = cases.iter().filter(|other| other.name == case.name).count();
                    assert_eq!(alone, 1, "{} {}", experiment.name, case.name);
                }
                assert!(cases.iter().any(|case| !case.goals.is_empty()), "{}", experiment.name);
            }
        }
    }
}
