//! Ten thousand agents that rest, and their broker's restart.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::time::sleep;

use super::{AGENTS_PER_JOIN, Case, Experiment, UP_WITHIN, Variant, generator, up_within};
use crate::control::agents::{Fleet, FleetPlan};
use crate::control::broker::Broker;
use crate::control::runner::{Setup, Trial};
use crate::shortpath::goals::{Goal, Metric, Sample, Statistic};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "agents",
    title: "Agents that are connected",
    claim: "One broker on one core holds 10,000 agents, at rest for next to nothing, and has them back soon after a restart.",
    rounds: 1,
    cases,
};

const CONNECTED: Metric = Metric { name: "links_per_second_while_connecting", unit: "1/s" };
const CPU_EACH: Metric = Metric { name: "cpu_per_link_made", unit: "ms" };
const LINK: Metric = Metric { name: "resident_memory_per_link", unit: "KiB" };
const RESIDENT: Metric = Metric { name: "resident_memory", unit: "MiB" };
const PEAK: Metric = Metric { name: "most_resident_memory", unit: "MiB" };
const IDLE: Metric = Metric { name: "cpu_at_rest", unit: "% of a core" };
const STOPPED: Metric = Metric { name: "stopped_within", unit: "s" };
const BACK: Metric = Metric { name: "all_back_after_restart", unit: "s" };
const FAILED: Metric = Metric { name: "attempts_failed_after_restart", unit: "times" };

const BROKER: &str = "broker";

/// Numbers of agents: the last is what issue and README promise.
const AGENTS: [usize; 3] = [100, 1_000, 10_000];
const AGENTS_QUICK: [usize; 2] = [100, 1_000];

/// After the last has registered, until memory is read: what they say next is read by then.
const SETTLE: Duration = Duration::from_secs(1);

fn cases(setup: &Setup) -> Vec<Case> {
    let own: &[usize] = if setup.quick { &AGENTS_QUICK } else { &AGENTS };
    let asked = if setup.agents.is_empty() { own } else { &setup.agents };
    let case = |agents: &usize| {
        let agents = *agents;
        Case {
            name: format!("{agents} agents"),
            variants: vec![Variant::new(BROKER, move |trial| Box::pin(measure(trial, agents)))],
            goals: goals(agents),
        }
    };
    asked.iter().map(case).collect()
}

fn goals(agents: usize) -> Vec<Goal> {
    // Of a hundred agents a round of the heap is more than their links.
    let memory = Goal::at_most(BROKER, LINK, Statistic::P50, 64.0);
    let idle = Goal::at_most(BROKER, IDLE, Statistic::P50, 10.0);
    let back = Goal::at_most(BROKER, BACK, Statistic::P50, if agents > 2_000 { 30.0 } else { 5.0 });
    if agents >= 1_000 { vec![memory, idle, back] } else { vec![idle, back] }
}

async fn measure(trial: Trial<'_>, agents: usize) -> Result<Sample> {
    let mut broker = Broker::start(trial.setup, None).await?;
    let outcome = ramp(trial, &mut broker, agents).await;
    outcome.map_err(|error| broker.explain(error))
}

async fn ramp(trial: Trial<'_>, broker: &mut Broker, agents: usize) -> Result<Sample> {
    let joins = broker.joins(agents.div_ceil(AGENTS_PER_JOIN)).await?;
    let plan = FleetPlan { joins, agents, resources_each: 1 };
    let within = up_within(agents);
    let empty_kib = broker.resident_kib()?;
    let meter = broker.meter()?;
    let begun = meter.begin()?;
    let fleet = Fleet::start(plan);
    fleet.all_up(within).await?;
    let made = meter.used_since(&begun)?;
    let links = agents as f64;
    sleep(SETTLE).await;
    let resident_kib = broker.resident_kib()?;
    let rested = meter.begin()?;
    sleep(Duration::from_secs(if trial.setup.quick { 3 } else { 10 })).await;
    let rest = meter.used_since(&rested)?;
    let peak_kib = broker.peak_kib()?;
    let failed = fleet.failures();
    let begun = Instant::now();
    broker.stop().await?;
    let stopped = begun.elapsed();
    fleet.all_down(UP_WITHIN).await?;
    broker.again().await?;
    let begun = Instant::now();
    fleet.all_up(within).await?;
    let back = begun.elapsed();
    let sample = Sample::default()
        .with(CONNECTED, links / made.wall_s)
        .with(CPU_EACH, made.peer_cpu_s * 1e3 / links)
        .with(LINK, (resident_kib - empty_kib) / links)
        .with(RESIDENT, resident_kib / 1024.0)
        .with(PEAK, peak_kib / 1024.0)
        .with(IDLE, rest.peer_cpu_s * 100.0 / rest.wall_s)
        .with(STOPPED, stopped.as_secs_f64())
        .with(BACK, back.as_secs_f64())
        .with(FAILED, (fleet.failures() - failed) as f64);
    Ok(generator(sample, &made))
}
