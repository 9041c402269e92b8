//! One file per claim. Each says which cases there are, what is varied in each, what one measurement is, and what is to be
//! reached.

mod agents;
mod feed;
mod policy;
mod sessions;

use std::pin::Pin;
use std::time::Duration;

use anyhow::Result;

use super::agents::{Fleet, FleetPlan};
use super::broker::Broker;
use super::runner::{Setup, Trial};
use crate::measure::Usage;
use crate::shortpath::goals::{Goal, Metric, Sample};

/// A claim, and how it is put to the test.
pub(crate) struct Experiment {
    /// The word on the command line.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// What it is to show, in a sentence.
    pub(crate) claim: &'static str,
    /// Rounds of a full run, unless asked for otherwise.
    pub(crate) rounds: usize,
    pub(crate) cases: fn(&Setup) -> Vec<Case>,
}

/// One set of conditions.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) variants: Vec<Variant>,
    /// By a variant's name.
    pub(crate) goals: Vec<Goal>,
}

/// What is varied within a case, and compared.
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    pub(crate) measure: Measure,
}

/// Takes one measurement, with a broker of its own.
pub(crate) type Measure = Box<dyn for<'a> Fn(Trial<'a>) -> Measuring<'a> + Send + Sync>;
pub(crate) type Measuring<'a> = Pin<Box<dyn Future<Output = Result<Sample>> + 'a>>;

impl Variant {
    fn new<M>(name: &'static str, measure: M) -> Variant
    where
        M: for<'a> Fn(Trial<'a>) -> Measuring<'a> + Send + Sync + 'static,
    {
        Variant { name, measure: Box::new(measure) }
    }
}

/// All of them, in the order of reports.
pub(crate) const ALL: [Experiment; 4] =
    [agents::EXPERIMENT, sessions::EXPERIMENT, feed::EXPERIMENT, policy::EXPERIMENT];

/// What every experiment claims, for `--help`.
pub(crate) fn help() -> String {
    ALL.iter().map(|Experiment { name, claim, .. }| format!("  {name:<9} {claim}\n")).collect()
}

/// Base, and per agent: a link costs both ends a millisecond or two of CPU.
const UP_WITHIN: Duration = Duration::from_secs(30);
const UP_EACH: Duration = Duration::from_millis(12);

/// Agents of one join string: a fleet joins with several.
const AGENTS_PER_JOIN: usize = 3_000;

/// So many agents with a resource each may take this long to connect.
fn up_within(agents: usize) -> Duration {
    UP_WITHIN + UP_EACH * u32::try_from(agents).unwrap_or(u32::MAX)
}

/// So many agents with a resource each, all of them connected.
async fn fleet(broker: &Broker, agents: usize) -> Result<Fleet> {
    let joins = broker.joins(agents.div_ceil(AGENTS_PER_JOIN)).await?;
    let fleet = Fleet::start(FleetPlan { joins, agents, resources_each: 1 });
    fleet.all_up(up_within(agents)).await.map_err(|error| broker.explain(error))?;
    Ok(fleet)
}

/// How long the generator had something to do: near 1 the figures are its own.
const GENERATOR: Metric = Metric::share("generator_busy");

/// The generator's share of its CPU, for every sample.
fn generator(sample: Sample, usage: &Usage) -> Sample {
    sample.with(GENERATOR, usage.generator_share())
}

/// The values' 50th, 99th and 99.9th percentile, nanoseconds as milliseconds, under these names.
fn percentiles(sample: Sample, names: [Metric; 3], values: &[u64]) -> Sample {
    use crate::shortpath::trace::quantile;
    let of = |share| quantile(values, share).map(|ns| ns as f64 / 1e6);
    let [p50, p99, p999] = names;
    sample.with_some(p50, of(0.5)).with_some(p99, of(0.99)).with_some(p999, of(0.999))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::placement::Placement;

    #[test]
    fn every_experiment_has_goals_that_name_a_variant_and_a_name_of_its_own() {
        for (index, experiment) in ALL.iter().enumerate() {
            assert!(ALL[..index].iter().all(|other| other.name != experiment.name));
            assert!(help().contains(experiment.claim));
            for quick in [true, false] {
                let placement = Placement::default();
                let setup = Setup { binary: "x".into(), quick, agents: Vec::new(), placement };
                let cases = (experiment.cases)(&setup);
                assert!(cases.iter().any(|case| !case.goals.is_empty()), "{}", experiment.name);
                for case in &cases {
                    let names: Vec<_> = case.variants.iter().map(|variant| variant.name).collect();
                    let known = |goal: &Goal| names.contains(&goal.peer);
                    assert!(case.goals.iter().all(known), "{} {}", experiment.name, case.name);
                    let alone = cases.iter().filter(|other| other.name == case.name).count();
                    assert_eq!(alone, 1, "{} {}", experiment.name, case.name);
                }
            }
        }
    }

    #[test]
    fn percentiles_are_in_milliseconds_and_absent_without_values() {
        let names = ["p50", "p99", "p999"].map(Metric::ms);
        let values: Vec<u64> = (1..=1000).map(|ms| ms * 1_000_000).collect();
        let figures = percentiles(Sample::default(), names, &values).figures;
        let values: Vec<f64> = figures.iter().map(|(_, value)| *value).collect();
        assert_eq!(values, [500.0, 990.0, 999.0]);
        assert!(percentiles(Sample::default(), names, &[]).figures.is_empty());
    }
}
