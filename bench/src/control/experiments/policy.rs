//! What policies cost a session, and how soon a changed one decides.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use switchback_control::Code;
use switchback_control::wire::CLIENT_LINK;
use tokio::time::sleep;

use super::sessions::{
    self, AGENTS, CPU_EACH, GRANT, REFUSED, Stage, WARM_UP_RATE, WARM_UP_SECONDS,
};
use super::{Case, Experiment, Variant};
use crate::control::broker::Broker;
use crate::control::clients::try_one;
use crate::control::ends::{CLIENTS, link, source};
use crate::control::rules::{closing, policies};
use crate::control::runner::{Setup, Trial};
use crate::peers::child::scratch_dir;
use crate::shortpath::goals::{Goal, Metric, Sample, Statistic};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "policy",
    title: "Policies",
    claim: "A thousand rules cost a session little, and a changed file decides within a second or two.",
    rounds: 2,
    cases,
};

/// From the new file in its place until a request is decided by it.
const DECIDES: Metric = Metric::ms("changed_file_decides_after");

type Rules = (&'static str, Option<usize>);
const RULES: [Rules; 4] = [
    ("built-in", None),
    ("10 rules", Some(10)),
    ("100 rules", Some(100)),
    ("1000 rules", Some(1000)),
];
const RULES_QUICK: [Rules; 2] = [RULES[0], RULES[2]];

/// Sessions a second, at random times.
const RATE: f64 = 100.0;

/// Rules of a file that changes.
const CHANGING: usize = 100;
const WATCHED: &str = "by itself";
const TOLD: &str = "SIGHUP";
/// Between requests that ask whether it decides: a user may ask 256 times a second.
const ASK_EVERY: Duration = Duration::from_millis(8);
/// Between changes: anywhere in the second after which the broker looks at its files again.
const PAUSE_MS: std::ops::Range<u64> = 100..1_100;
const DECIDES_WITHIN: Duration = Duration::from_secs(10);

fn cases(setup: &Setup) -> Vec<Case> {
    let (rules, seconds): (&[Rules], f64) =
        if setup.quick { (&RULES_QUICK, 2.0) } else { (&RULES, 5.0) };
    let variant = |&(name, rules): &Rules| {
        Variant::new(name, move |trial| Box::pin(deciding(trial, rules, seconds)))
    };
    let changes = if setup.quick { 2 } else { 6 };
    let change =
        |name, told| Variant::new(name, move |trial| Box::pin(changing(trial, changes, told)));
    let granted = rules.iter().flat_map(|(name, _)| {
        let at_most = |metric, most| Goal::at_most(name, metric, Statistic::P50, most);
        [at_most(GRANT[1], 50.0), at_most(REFUSED, 0.0)]
    });
    vec![
        Case {
            name: format!("{RATE} sessions/s"),
            variants: rules.iter().map(variant).collect(),
            goals: granted.collect(),
        },
        Case {
            name: format!("a file of {CHANGING} rules changes"),
            variants: vec![change(WATCHED, false), change(TOLD, true)],
            goals: vec![
                Goal::at_most(WATCHED, DECIDES, Statistic::P99, 2000.0),
                Goal::at_most(TOLD, DECIDES, Statistic::P99, 500.0),
            ],
        },
    ]
}

async fn deciding(trial: Trial<'_>, rules: Option<usize>, seconds: f64) -> Result<Sample> {
    let files = scratch_dir()?;
    let path = rules.map(|_| files.path().join("rules.cedar"));
    if let (Some(path), Some(rules)) = (&path, rules) {
        fs::write(path, policies(rules))?;
    }
    let broker = Broker::start(trial.setup, path.as_deref()).await?;
    let mut stage = Stage::around(broker, AGENTS).await?;
    stage.ask(WARM_UP_RATE, WARM_UP_SECONDS, trial.seed).await?;
    let (tally, usage) = stage.ask(RATE, seconds, trial.seed).await?;
    let sample = sessions::sample(&tally, &usage);
    // The figures that policies change.
    let kept = [GRANT[0], GRANT[1], GRANT[2], CPU_EACH, REFUSED, super::GENERATOR];
    let figures = sample.figures.into_iter().filter(|(metric, _)| kept.contains(metric)).collect();
    Ok(Sample { figures, ..sample })
}

async fn changing(trial: Trial<'_>, changes: usize, told: bool) -> Result<Sample> {
    let files = scratch_dir()?;
    let path = files.path().join("rules.cedar");
    fs::write(&path, policies(CHANGING))?;
    let broker = Broker::start(trial.setup, Some(&path)).await?;
    let random = SmallRng::seed_from_u64(trial.seed);
    let outcome = change(&broker, &path, changes, told, random).await;
    outcome.map_err(|error| broker.explain(error))
}

async fn change(
    broker: &Broker,
    path: &Path,
    changes: usize,
    told: bool,
    mut random: SmallRng,
) -> Result<Sample> {
    let _fleet = super::fleet(broker, 1).await?;
    let user = broker.users(1).await?.pop().context("no user")?;
    let mut link = link(&user, CLIENT_LINK, source(CLIENTS, 0)).await?;
    let mut request = 0;
    let mut sample = Sample::default();
    for number in 0..changes {
        sleep(Duration::from_millis(random.random_range(PAUSE_MS))).await;
        let closed = number % 2 == 0;
        let text = if closed { closing(CHANGING, "r-0") } else { policies(CHANGING) };
        let new = path.with_extension("new");
        fs::write(&new, text)?;
        let changed = Instant::now();
        fs::rename(&new, path)?;
        if told {
            broker.hang_up()?;
        }
        loop {
            request += 1;
            match (try_one(&mut link, request).await?, closed) {
                (Err(Code::PolicyDenied), true) | (Ok(()), false) => break,
                (Err(Code::PolicyDenied), false) | (Ok(()), true) => {}
                (Err(code), _) => bail!("the broker refuses with {code}"),
            }
            if changed.elapsed() > DECIDES_WITHIN {
                bail!("the changed policies do not decide within {DECIDES_WITHIN:?}");
            }
            sleep(ASK_EVERY).await;
        }
        sample = sample.with(DECIDES, changed.elapsed().as_secs_f64() * 1e3);
    }
    Ok(sample)
}
