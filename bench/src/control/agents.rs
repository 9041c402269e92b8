//! Simulated agents: each keeps a link, registers what it offers, and hears of sessions.
//!
//! A link that breaks is made again with the product's pauses (`switchback_control::link`). One thing is not as in a fleet of
//! machines: all share one CPU, so only so many make a link at a time. Otherwise handshakes would wait for this process until
//! the broker gave them up, and that would be measured.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::Rng;
use switchback_control::api::TokenKind;
use switchback_control::dial::Backoff;
use switchback_control::enrol::Enrolment;
use switchback_control::invite::Invite;
use switchback_control::link::Pass;
use switchback_control::wire::{
    AGENT_LINK, Candidate, CandidateKind, FromAgent, PROTOCOL, Resource, ToAgent,
};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{interval_at, timeout};
use tokio_tungstenite::tungstenite::Message;

use futures_util::SinkExt;

use super::ends::{AGENTS, Link, hear, key, link, say, source};
use super::tally::Offer;

/// Links that are being made at once.
const MAKING: usize = 128;

/// From `register` to its answer: each is a transaction of the broker's one database, and a fleet waits in line.
const REGISTERED_WITHIN: Duration = Duration::from_secs(60);

/// Between an agent's own pings.
const PING: Duration = Duration::from_secs(15);

/// Pauses between attempts: the product's, which tries often in the first seconds after a good link broke.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_SOON: Duration = Duration::from_millis(500);
const PAUSE_LATER: Duration = Duration::from_secs(3);
const SOON: Duration = Duration::from_secs(6);
/// A link that lived this long was no attempt that the broker turned down.
const SETTLED: Duration = Duration::from_secs(1);

/// Kinds of trouble that are remembered.
const TROUBLES_MAX: usize = 8;

/// Agents that a broker is to hold.
#[derive(Clone, Debug)]
pub(crate) struct FleetPlan {
    /// Used in turn.
    pub(crate) joins: Vec<Invite>,
    pub(crate) agents: usize,
    /// What each offers, at most 100: `r-0` and so on through the fleet.
    pub(crate) resources_each: usize,
}

/// Agents that run until this is dropped.
pub(crate) struct Fleet {
    shared: Arc<Shared>,
    agents: usize,
    /// What agents are told of sessions.
    pub(crate) offers: mpsc::UnboundedReceiver<Offer>,
    _tasks: JoinSet<()>,
}

struct Shared {
    plan: FleetPlan,
    up: watch::Sender<usize>,
    making: Semaphore,
    troubles: Mutex<BTreeMap<String, usize>>,
    offers: mpsc::UnboundedSender<Offer>,
}

impl Fleet {
    /// Starts them all; they come up by and by.
    pub(crate) fn start(plan: FleetPlan) -> Fleet {
        let (sender, offers) = mpsc::unbounded_channel();
        let agents = plan.agents;
        let shared = Arc::new(Shared {
            plan,
            up: watch::Sender::new(0),
            making: Semaphore::new(MAKING),
            troubles: Mutex::default(),
            offers: sender,
        });
        let mut tasks = JoinSet::new();
        for number in 0..agents {
            tasks.spawn(live(shared.clone(), number));
        }
        Fleet { shared, agents, offers, _tasks: tasks }
    }

    /// Waits until all are registered.
    ///
    /// # Errors
    /// Some are not; with why, as far as they know.
    pub(crate) async fn all_up(&self, within: Duration) -> Result<()> {
        let mut up = self.shared.up.subscribe();
        let all = up.wait_for(|up| *up >= self.agents);
        match timeout(within, all).await {
            Ok(Ok(_)) => Ok(()),
            _ => bail!(
                "{} of {} agents are connected after {within:?}{}",
                *self.shared.up.borrow(),
                self.agents,
                self.troubles()
            ),
        }
    }

    /// Waits until none has a link.
    ///
    /// # Errors
    /// Some still have.
    pub(crate) async fn all_down(&self, within: Duration) -> Result<()> {
        let mut up = self.shared.up.subscribe();
        let down = timeout(within, up.wait_for(|up| *up == 0)).await;
        down.context("agents keep links to a broker that has ended")?.map(drop).map_err(Into::into)
    }

    /// Failed attempts so far.
    pub(crate) fn failures(&self) -> usize {
        self.shared.troubles().values().sum()
    }

    fn troubles(&self) -> String {
        let mut text = String::new();
        for (trouble, times) in self.shared.troubles().iter() {
            // Writing to a string does not fail.
            let _ = write!(text, "; {times} times: {trouble}");
        }
        text
    }
}

impl Shared {
    fn troubles(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, usize>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, number: usize) -> Result<Arc<Enrolment>> {
        let joins = &self.plan.joins;
        end(joins.get(number % joins.len().max(1)).context("no join string")?, number)
    }

    fn note(&self, error: &anyhow::Error) {
        let mut troubles = self.troubles();
        let text = format!("{error:#}");
        if troubles.len() < TROUBLES_MAX || troubles.contains_key(&text) {
            *troubles.entry(text).or_default() += 1;
        }
    }
}

/// The enrolment of an agent, which is made with its first link.
///
/// # Errors
/// No key could be made.
pub(crate) fn end(join: &Invite, number: usize) -> Result<Arc<Enrolment>> {
    Ok(Enrolment::open(None, join, TokenKind::Agent, &format!("agent-{number}"))?)
}

/// The resources of an agent.
pub(crate) fn resources(agent: usize, each: usize) -> Vec<Resource> {
    let first = agent * each;
    (first..first + each)
        .map(|number| Resource::tcp(format!("r-{number}"), "127.0.0.1:22"))
        .collect()
}

/// One agent, for ever.
async fn live(shared: Arc<Shared>, number: usize) {
    let mut later = Backoff::new(PAUSE_FIRST, PAUSE_LATER);
    let mut soon = Backoff::new(PAUSE_FIRST, PAUSE_SOON);
    let mut lost: Option<Instant> = None;
    let end = match shared.end(number) {
        Ok(end) => end,
        Err(error) => return shared.note(&error),
    };
    loop {
        match begin(&shared, &end, number).await {
            Err(error) => shared.note(&error),
            Ok(link) => {
                shared.up.send_modify(|up| *up += 1);
                let since = Instant::now();
                // It ends with the link; why does not matter, another follows.
                let _ = attend(link, &shared).await;
                shared.up.send_modify(|up| *up -= 1);
                if since.elapsed() >= SETTLED {
                    soon.reset();
                    lost = Some(Instant::now());
                }
            }
        }
        let restarts = lost.is_some_and(|at| at.elapsed() < SOON);
        let backoff = if restarts { &mut soon } else { &mut later };
        tokio::time::sleep(backoff.pause(rand::random())).await;
    }
}

/// Makes a link and says what an agent says first.
async fn begin(shared: &Shared, end: &Enrolment, number: usize) -> Result<Link> {
    let _turn = shared.making.acquire().await?;
    let from = source(AGENTS, number);
    let mut link = link(&end.invite().await?, AGENT_LINK, from).await?;
    register(&mut link, number, resources(number, shared.plan.resources_each)).await?;
    let here = (from, 40_000).into();
    let candidates = vec![Candidate::new(CandidateKind::Host, here)];
    say(&mut link, &FromAgent::Network { candidates }).await?;
    say(&mut link, &FromAgent::Health { targets: Vec::new(), load_percent: 7 }).await?;
    Ok(link)
}

/// Registers, and waits for the answer.
///
/// # Errors
/// The broker refuses, or does not answer.
pub(crate) async fn register(
    link: &mut Link,
    number: usize,
    resources: Vec<Resource>,
) -> Result<()> {
    let register = FromAgent::Register {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        name: format!("agent-{number}"),
        key: key(AGENTS, number as u64),
        resources,
        sessions: Vec::new(),
    };
    say(link, &register).await?;
    let answer = async {
        loop {
            match hear::<ToAgent>(link).await? {
                ToAgent::Registered => return Ok(()),
                ToAgent::Refused { code, message } => bail!("{code}: {message}"),
                _ => {}
            }
        }
    };
    timeout(REGISTERED_WITHIN, answer).await.context("no answer to register")?
}

/// Hears what the broker says, and shows signs of life, until the link ends.
async fn attend(mut link: Link, shared: &Shared) -> Result<()> {
    // Agents start at different times, and so do their pings.
    let first = PING.mul_f64(rand::rng().random());
    let mut pings = interval_at(tokio::time::Instant::now() + first, PING);
    loop {
        tokio::select! {
            message = hear::<ToAgent>(&mut link) => {
                if let ToAgent::Offer { session, .. } = message? {
                    // Nobody may be counting any more.
                    let _ = shared.offers.send(Offer { session: session.id, at: Instant::now() });
                }
            }
            _ = pings.tick() => link.send(Message::Ping(bytes::Bytes::new())).await?,
        }
    }
}
