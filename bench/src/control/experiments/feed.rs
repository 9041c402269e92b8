//! The feed: read by many, and watched while it changes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hyper::StatusCode;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use switchback_control::link::Pass;
use switchback_control::wire::{AGENT_LINK, Resource};
use tokio::time::{sleep, timeout};

use super::{Case, Experiment, Variant, generator, percentiles};
use crate::control::agents::{Fleet, FleetPlan, end, register};
use crate::control::broker::Broker;
use crate::control::ends::{AGENTS, link, source};
use crate::control::feeds::{CHANGE, Reader, Watchers, at_random};
use crate::control::runner::{Setup, Trial};
use crate::shortpath::goals::{Goal, Metric, Sample, Statistic};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "feed",
    title: "The feed",
    claim: "A feed is read in milliseconds, and its watchers see a change at once.",
    rounds: 1,
    cases,
};

const READ: [Metric; 3] =
    [Metric::ms("read_p50"), Metric::ms("read_p99"), Metric::ms("read_p99.9")];
const CPU_EACH: Metric = Metric { name: "cpu_per_read", unit: "us" };
const BYTES: Metric = Metric { name: "body", unit: "bytes" };
/// From an agent's message to the event at a watcher, each watcher and change.
const SEEN: [Metric; 3] =
    [Metric::ms("change_seen_p50"), Metric::ms("change_seen_p99"), Metric::ms("change_seen_p99.9")];

/// Of a fleet that connects as fast as it can while it is watched.
const CONNECTED: Metric = Metric { name: "links_per_second_while_connecting", unit: "1/s" };
const CPU_PER_LINK: Metric = Metric { name: "cpu_per_link_made", unit: "ms" };

const WHOLE: &str = "whole";
const UNCHANGED: &str = "If-None-Match";
const WATCHERS: [(&str, usize); 2] = [("1 watcher", 1), ("100 watchers", 100)];

const ALONE: &str = "nobody watches";
const WATCHED_BY: [(&str, usize); 3] = [(ALONE, 0), WATCHERS[0], ("10 watchers", 10)];

/// Resources, and agents that offer them.
const SIZES: [(usize, usize); 3] = [(10, 1), (100, 1), (1_000, 10)];

/// Reads a second, at random times.
const RATE: f64 = 20.0;

/// Resources in a feed that is watched.
const WATCHED: usize = 10;
/// The agent whose resources change; the fleet has others.
const CHANGING: usize = 900_000;
/// Between changes: longer than the calm that the broker keeps between two looks of a watcher.
const PAUSE_MS: std::ops::Range<u64> = 150..450;
/// A change that is not seen by then is lost.
const SEEN_WITHIN: Duration = Duration::from_secs(10);

fn cases(setup: &Setup) -> Vec<Case> {
    let (sizes, seconds) = if setup.quick { (&SIZES[..2], 2.0) } else { (&SIZES[..], 10.0) };
    let changes = if setup.quick { 5 } else { 30 };
    let read = |&(resources, agents): &(usize, usize)| Case {
        name: format!("{resources} resources, {RATE} reads/s"),
        variants: [(WHOLE, false), (UNCHANGED, true)]
            .map(|(name, tagged)| {
                Variant::new(name, move |trial| {
                    Box::pin(reading(trial, (resources, agents), seconds, tagged))
                })
            })
            .into(),
        goals: [WHOLE, UNCHANGED]
            .map(|name| Goal::at_most(name, READ[1], Statistic::P50, 50.0))
            .into(),
    };
    let watch = Case {
        name: format!("a change among {WATCHED} resources"),
        variants: WATCHERS
            .map(|(name, watchers)| {
                Variant::new(name, move |trial| Box::pin(watching(trial, watchers, changes)))
            })
            .into(),
        goals: WATCHERS.map(|(name, _)| Goal::at_most(name, SEEN[1], Statistic::P50, 500.0)).into(),
    };
    let agents = if setup.quick { 300 } else { 1_000 };
    let come = Case {
        name: format!("{agents} agents connect"),
        variants: WATCHED_BY
            .map(|(name, watchers)| {
                Variant::new(name, move |trial| Box::pin(coming(trial, agents, watchers)))
            })
            .into(),
        goals: vec![
            Goal::at_least("1 watcher", CONNECTED, Statistic::P50, 0.5).times(ALONE, 0.0),
            Goal::at_least("10 watchers", CONNECTED, Statistic::P50, 0.2).times(ALONE, 0.0),
        ],
    };
    sizes.iter().map(read).chain([watch, come]).collect()
}

/// Agents that offer so many resources together.
async fn offered(broker: &Broker, resources: usize, agents: usize) -> Result<Fleet> {
    let joins = broker.joins(1).await?;
    let fleet = Fleet::start(FleetPlan { joins, agents, resources_each: resources / agents });
    fleet.all_up(super::UP_WITHIN).await?;
    Ok(fleet)
}

async fn reading(
    trial: Trial<'_>,
    (resources, agents): (usize, usize),
    seconds: f64,
    tagged: bool,
) -> Result<Sample> {
    let broker = Broker::start(trial.setup, None).await?;
    let _fleet = offered(&broker, resources, agents).await?;
    let user = broker.users(1).await?.pop().context("no user")?;
    let reader = Reader::start(user).await?;
    // Links' first words are heard by now, so that the feed stays as it is.
    sleep(SETTLE).await;
    let first = reader.read(None).await?;
    ensure!(first.status == StatusCode::OK, "the broker answered {}", first.status);
    let (tag, expected) = match tagged {
        true => (Some(first.tag.context("a feed without a tag")?), StatusCode::NOT_MODIFIED),
        false => (None, StatusCode::OK),
    };
    let schedule = (at_random(RATE, trial.seed), seconds);
    let read = reader.read_often(&broker, schedule, tag, expected).await;
    let (times, usage) = read.map_err(|error| broker.explain(error))?;
    let body = if tagged { 0 } else { first.bytes };
    let mut sample = percentiles(Sample::default(), READ, &times)
        .with(CPU_EACH, usage.peer_cpu_s * 1e6 / times.len().max(1) as f64)
        .with(BYTES, body as f64);
    sample.latencies = times;
    Ok(generator(sample, &usage))
}

const SETTLE: Duration = Duration::from_millis(300);

async fn watching(trial: Trial<'_>, watchers: usize, changes: usize) -> Result<Sample> {
    let broker = Broker::start(trial.setup, None).await?;
    let _fleet = offered(&broker, WATCHED, 1).await?;
    let user = broker.users(1).await?.pop().context("no user")?;
    let join = broker.joins(1).await?.pop().context("no join string")?;
    let changing = end(&join, CHANGING)?;
    let mut watching = Watchers::start(&user, watchers).await?;
    let mut random = SmallRng::seed_from_u64(trial.seed);
    let meter = broker.meter()?;
    let begun = meter.begin()?;
    let mut seen = Vec::new();
    let mut before = None;
    for change in 0..changes {
        sleep(Duration::from_millis(random.random_range(PAUSE_MS))).await;
        // An agent's resources change with its link: the new one takes the old one's place.
        let mut changed =
            link(&changing.invite().await?, AGENT_LINK, source(AGENTS, CHANGING)).await?;
        let name = format!("{CHANGE}{change}");
        let told = Instant::now();
        let resource = Resource::tcp(name.clone(), "127.0.0.1:22");
        let waiting = async {
            let mut left = watchers;
            while left > 0 {
                let (what, at) = watching.seen.recv().await.context("no watcher is left")?;
                if what == name {
                    seen.push(at.saturating_duration_since(told).as_nanos() as u64);
                    left -= 1;
                }
            }
            anyhow::Ok(())
        };
        // The agent waits for its answer while watchers are told.
        let both =
            async { tokio::try_join!(register(&mut changed, CHANGING, vec![resource]), waiting) };
        let both = timeout(SEEN_WITHIN, both).await.with_context(|| format!("{name} was not seen"));
        both.and_then(|both| both).map_err(|error| broker.explain(error))?;
        before = Some(changed);
    }
    drop(before);
    let usage = meter.used_since(&begun)?;
    let mut sample = percentiles(Sample::default(), SEEN, &seen);
    sample.latencies = seen;
    Ok(generator(sample, &usage))
}

/// A fleet comes, each agent with a resource, and who watches is told.
async fn coming(trial: Trial<'_>, agents: usize, watchers: usize) -> Result<Sample> {
    let broker = Broker::start(trial.setup, None).await?;
    let user = broker.users(1).await?.pop().context("no user")?;
    let joins = broker.joins(1).await?;
    let _watching = Watchers::start(&user, watchers).await?;
    let meter = broker.meter()?;
    let begun = meter.begin()?;
    let fleet = Fleet::start(FleetPlan { joins, agents, resources_each: 1 });
    fleet.all_up(FLEET_WITHIN).await.map_err(|error| broker.explain(error))?;
    let usage = meter.used_since(&begun)?;
    let sample = Sample::default()
        .with(CONNECTED, agents as f64 / usage.wall_s)
        .with(CPU_PER_LINK, usage.peer_cpu_s * 1e3 / agents as f64);
    Ok(generator(sample, &usage))
}

const FLEET_WITHIN: Duration = Duration::from_secs(120);
