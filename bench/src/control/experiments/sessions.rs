//! Sessions asked for at a rate, rising until the broker no longer keeps up.
//!
//! A session is asked for, granted, offered to its agent, and ended by its client. Nobody dials a leg.

use anyhow::Result;

use super::{Case, Experiment, Variant, generator, percentiles};
use crate::control::agents::Fleet;
use crate::control::broker::Broker;
use crate::control::clients::{Clients, Wishes};
use crate::control::runner::{Setup, Trial};
use crate::control::search::Search;
use crate::control::tally::Tally;
use crate::measure::Usage;
use crate::shortpath::goals::{Goal, Metric, Sample, Statistic};
use crate::shortpath::trace::quantile;

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "sessions",
    title: "Sessions granted",
    claim: "A broker on one core grants sessions in milliseconds, at rates that 10,000 users coming to work do not reach.",
    rounds: 2,
    cases,
};

/// From the intended time of the request to the grant at the client, and to the offer at the agent.
pub(super) const GRANT: [Metric; 3] =
    [Metric::ms("grant_p50"), Metric::ms("grant_p99"), Metric::ms("grant_p99.9")];
const OFFER: [Metric; 3] =
    [Metric::ms("offer_p50"), Metric::ms("offer_p99"), Metric::ms("offer_p99.9")];
pub(super) const CPU_EACH: Metric = Metric { name: "cpu_per_session", unit: "us" };
const BUSY: Metric = Metric { name: "broker_cpu", unit: "% of a core" };
const UNANSWERED: Metric = Metric { name: "unanswered", unit: "requests" };
pub(super) const REFUSED: Metric = Metric { name: "refused", unit: "requests" };
const HIGHEST: Metric = Metric { name: "highest_rate_with_p99_under_50_ms", unit: "1/s" };

/// Users, each with a link; a user may ask for 256 sessions a second.
const USERS: usize = 64;
/// Agents that serve sessions, each with a resource.
pub(super) const AGENTS: usize = 32;

/// A grant later than this is noticed by who waits for it, on top of the round trips of the legs.
const KEEPS_UP_MS: f64 = 50.0;

/// Where the search begins and ends, per second.
const FIRST: f64 = 200.0;
const MOST: f64 = 12_800.0;
const SEARCH: &str = "search";

/// A rate for fleets of any size.
const AMONG: f64 = 200.0;

type Rate = (&'static str, f64);
const RATES: [Rate; 5] =
    [("100/s", 100.0), ("250/s", 250.0), ("500/s", 500.0), ("1000/s", 1000.0), ("2000/s", 2000.0)];
const RATES_QUICK: [Rate; 3] = [RATES[0], RATES[2], RATES[3]];

/// Agents that are connected in all; the others rest.
const FLEETS: [(&str, usize); 3] =
    [("32 agents", AGENTS), ("1000 agents", 1_000), ("10000 agents", 10_000)];

fn cases(setup: &Setup) -> Vec<Case> {
    let (rates, seconds): (&[Rate], f64) =
        if setup.quick { (&RATES_QUICK, 2.0) } else { (&RATES, 5.0) };
    let variant = |&(name, rate): &Rate| {
        Variant::new(name, move |trial| Box::pin(at_rate(trial, AGENTS, rate, seconds)))
    };
    let fleets = if setup.quick { &FLEETS[..2] } else { &FLEETS[..] };
    let among = |&(name, agents): &(&'static str, usize)| {
        Variant::new(name, move |trial| Box::pin(at_rate(trial, agents, AMONG, seconds)))
    };
    let probe = if setup.quick { 1.0 } else { 2.0 };
    vec![
        Case {
            name: "at a rate".to_owned(),
            variants: rates.iter().map(variant).collect(),
            goals: vec![
                Goal::at_most("100/s", GRANT[1], Statistic::P50, KEEPS_UP_MS),
                Goal::at_most("500/s", GRANT[1], Statistic::P50, KEEPS_UP_MS),
            ],
        },
        Case {
            name: format!("{AMONG}/s among more agents"),
            variants: fleets.iter().map(among).collect(),
            goals: fleets
                .iter()
                .map(|(name, _)| Goal::at_most(name, GRANT[1], Statistic::P50, KEEPS_UP_MS))
                .collect(),
        },
        Case {
            name: "as many as there can be".to_owned(),
            variants: vec![Variant::new(SEARCH, move |trial| Box::pin(highest(trial, probe)))],
            goals: vec![Goal::at_least(SEARCH, HIGHEST, Statistic::P50, 500.0)],
        },
    ]
}

/// A broker with agents and clients.
pub(super) struct Stage {
    pub(super) broker: Broker,
    fleet: Fleet,
    clients: Clients,
}

impl Stage {
    /// Around a broker that has nobody yet.
    pub(super) async fn around(broker: Broker, agents: usize) -> Result<Stage> {
        let fleet = super::fleet(&broker, agents).await?;
        let clients = Clients::start(&broker.users(USERS).await?).await?;
        Ok(Stage { broker, fleet, clients })
    }

    /// Asks for sessions.
    pub(super) async fn ask(
        &mut self,
        rate: f64,
        seconds: f64,
        seed: u64,
    ) -> Result<(Tally, Usage)> {
        let wishes = Wishes { rate, seconds, resources: AGENTS, seed };
        let asked = self.clients.ask(&self.broker, &mut self.fleet, wishes).await;
        asked.map_err(|error| self.broker.explain(error))
    }
}

/// What was asked at one rate, as figures.
pub(super) fn sample(tally: &Tally, usage: &Usage) -> Sample {
    let granted = tally.grants.len().max(1) as f64;
    let refused: usize = tally.refused.values().sum();
    let sample = percentiles(Sample::default(), GRANT, &tally.grants);
    let mut sample = percentiles(sample, OFFER, &tally.offers)
        .with(CPU_EACH, usage.peer_cpu_s * 1e6 / granted)
        .with(BUSY, usage.peer_cpu_s * 100.0 / usage.wall_s)
        .with(UNANSWERED, tally.unanswered() as f64)
        .with(REFUSED, refused as f64);
    for (code, times) in &tally.refused {
        sample = sample.told("refused", format!("{code} ({times} of {})", tally.asked()));
    }
    sample.latencies.clone_from(&tally.grants);
    generator(sample, usage)
}

async fn at_rate(trial: Trial<'_>, agents: usize, rate: f64, seconds: f64) -> Result<Sample> {
    let mut stage = Stage::around(Broker::start(trial.setup, None).await?, agents).await?;
    // Caches, connections and the database's pages are warm after this.
    stage.ask(WARM_UP_RATE, WARM_UP_SECONDS, trial.seed).await?;
    let (tally, usage) = stage.ask(rate, seconds, trial.seed).await?;
    Ok(sample(&tally, &usage))
}

/// What everybody begins with.
pub(super) const WARM_UP_RATE: f64 = 100.0;
pub(super) const WARM_UP_SECONDS: f64 = 0.5;

async fn highest(trial: Trial<'_>, seconds: f64) -> Result<Sample> {
    let mut stage = Stage::around(Broker::start(trial.setup, None).await?, AGENTS).await?;
    stage.ask(WARM_UP_RATE, WARM_UP_SECONDS, trial.seed).await?;
    let mut search = Search::new(FIRST, MOST);
    let mut best = None;
    while let Some(rate) = search.next() {
        let (tally, usage) = stage.ask(rate, seconds, trial.seed).await?;
        let kept = keeps_up(&tally);
        search.tried(kept);
        if kept {
            best = Some(usage);
        }
    }
    let sample = Sample::default().with_some(HIGHEST, search.found());
    Ok(best.map_or(sample.clone(), |usage| generator(sample, &usage)))
}

fn keeps_up(tally: &Tally) -> bool {
    let p99 = quantile(&tally.grants, 0.99).map(|ns| ns as f64 / 1e6);
    tally.is_complete() && tally.refused.is_empty() && p99.is_some_and(|ms| ms < KEEPS_UP_MS)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use switchback_control::Code;
    use switchback_control::wire::SessionId;

    use super::*;
    use crate::control::tally::{Answer, Offer};

    #[test]
    fn a_rate_is_kept_up_with_if_all_are_granted_and_in_time() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let tally = |outcome: Result<SessionId, Code>, ms| {
            let mut tally = Tally::new(vec![start]);
            tally.offered(Offer { session: SessionId("s".into()), at: at(1) });
            tally.answered(Answer { request: 0, outcome, at: at(ms) });
            tally
        };
        let granted = || Ok(SessionId("s".into()));
        assert!(keeps_up(&tally(granted(), 49)));
        assert!(!keeps_up(&tally(granted(), 50)));
        assert!(!keeps_up(&tally(Err(Code::RateLimited), 1)));
        assert!(!keeps_up(&Tally::new(vec![start])));
    }
}
