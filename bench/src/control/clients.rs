//! Simulated clients: each holds a link as one user, asks for sessions when it is told to, and ends each at once.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use switchback_control::Code;
use switchback_control::invite::Invite;
use switchback_control::wire::{
    CLIENT_LINK, Candidate, CandidateKind, FromClient, PROTOCOL, SessionPurpose, ToClient,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::agents::Fleet;
use super::broker::Broker;
use super::ends::{CLIENTS, Link, hear, key, link, say, source};
use super::pace::{Turn, pace};
use super::tally::{Answer, Tally};
use crate::load::schedule::{Arrivals, Schedule};
use crate::measure::Usage;

/// How long the last answers are waited for: a request without one by then will not be answered while anybody waits.
const PATIENCE: Duration = Duration::from_secs(3);

/// A wish for a session, with its number.
struct Ask {
    request: u64,
    resource: usize,
}

/// Clients that run until this is dropped.
pub(crate) struct Clients {
    asks: Vec<mpsc::UnboundedSender<Ask>>,
    answers: mpsc::UnboundedReceiver<Answer>,
    _tasks: JoinSet<()>,
}

/// Sessions to ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wishes {
    /// Per second, all clients together; at random times.
    pub(crate) rate: f64,
    pub(crate) seconds: f64,
    /// They are of `r-0` and so on, in turn.
    pub(crate) resources: usize,
    pub(crate) seed: u64,
}

impl Clients {
    /// Signs one client in for each of these users.
    ///
    /// # Errors
    /// A link cannot be made.
    pub(crate) async fn start(users: &[Invite]) -> Result<Clients> {
        let (sender, answers) = mpsc::unbounded_channel();
        let (mut asks, mut tasks) = (Vec::new(), JoinSet::new());
        for (number, user) in users.iter().enumerate() {
            let from = source(CLIENTS, number);
            let link = link(user, CLIENT_LINK, from).await.context("a client's link")?;
            let (ask, asked) = mpsc::unbounded_channel();
            asks.push(ask);
            let sender = sender.clone();
            tasks.spawn(async move {
                // Without a link its requests go unanswered, and are counted as that.
                let _ = attend(link, from, asked, sender).await;
            });
        }
        Ok(Clients { asks, answers, _tasks: tasks })
    }

    /// Asks for sessions whatever comes back, and for what it costs the broker.
    ///
    /// # Errors
    /// The broker has ended.
    pub(crate) async fn ask(
        &mut self,
        broker: &Broker,
        fleet: &mut Fleet,
        wishes: Wishes,
    ) -> Result<(Tally, Usage)> {
        let Wishes { rate, seconds, resources, seed } = wishes;
        // What came too late for the time before.
        while fleet.offers.try_recv().is_ok() || self.answers.try_recv().is_ok() {}
        let schedule = Schedule::new(Arrivals::Poisson, rate, self.asks.len(), seed);
        let meter = broker.meter()?;
        let reading = meter.begin()?;
        let mut turns = pace(schedule, seconds)?;
        let mut times = Vec::new();
        while let Some(Turn { connection, due }) = turns.recv().await {
            let ask = Ask { request: times.len() as u64, resource: times.len() % resources };
            times.push(due);
            self.asks[connection].send(ask).ok().context("a client's link ended")?;
        }
        let mut tally = Tally::new(times);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !tally.is_complete() {
            tokio::select! {
                Some(answer) = self.answers.recv() => tally.answered(answer),
                Some(offer) = fleet.offers.recv() => tally.offered(offer),
                () = tokio::time::sleep_until(deadline) => break,
            }
        }
        Ok((tally, meter.used_since(&reading)?))
    }
}

/// Asks and ends, until the link does.
async fn attend(
    mut link: Link,
    from: Ipv4Addr,
    mut asked: mpsc::UnboundedReceiver<Ask>,
    answers: mpsc::UnboundedSender<Answer>,
) -> Result<()> {
    loop {
        tokio::select! {
            ask = asked.recv() => {
                let Some(ask) = ask else { return Ok(()) };
                say(&mut link, &open(&ask, from)).await?;
            }
            message = hear::<ToClient>(&mut link) => {
                let at = Instant::now();
                let answer = match message? {
                    ToClient::Granted { request, session, .. } => {
                        let over = FromClient::Ended { session: session.clone(), code: Code::SessionClosed };
                        say(&mut link, &over).await?;
                        Answer { request, outcome: Ok(session), at }
                    }
                    ToClient::Refused { request, code, .. } => Answer { request, outcome: Err(code), at },
                    _ => continue,
                };
                answers.send(answer)?;
            }
        }
    }
}

/// What a client asks that does UDP, with two addresses.
fn open(ask: &Ask, from: Ipv4Addr) -> FromClient {
    let candidate = |kind, port| Candidate::new(kind, SocketAddr::from((from, port)));
    let candidates = vec![
        candidate(CandidateKind::Host, 40_000),
        candidate(CandidateKind::ServerReflexive, 40_001),
    ];
    FromClient::Open {
        request: ask.request,
        protocol: PROTOCOL,
        resource: format!("r-{}", ask.resource),
        key: key(CLIENTS, ask.request),
        udp: Some(candidates),
        purpose: SessionPurpose::default(),
        ready: false,
    }
}

/// Asks for one session, and says how it ended: granted, or refused with a code.
///
/// # Errors
/// The link has ended.
pub(crate) async fn try_one(link: &mut Link, request: u64) -> Result<Result<(), Code>> {
    say(link, &open(&Ask { request, resource: 0 }, source(CLIENTS, 0))).await?;
    loop {
        match hear::<ToClient>(link).await? {
            ToClient::Granted { session, .. } => {
                say(link, &FromClient::Ended { session, code: Code::SessionClosed }).await?;
                return Ok(Ok(()));
            }
            ToClient::Refused { code, .. } => return Ok(Err(code)),
            _ => {}
        }
    }
}
