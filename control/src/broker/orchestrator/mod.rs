//! Who is connected, which sessions live, and what must be said to whom. Pure: no clock, no socket, no database.
//!
//! The shell calls [`Orchestrator::handle`] with one thing that happened and does what comes back, in order. What
//! needs the database (may this user use that resource?) or a key (is this grant ours?) is settled before an input is
//! made of it.
//!
//! A session: granted by `Open` → *connecting* → a pair starts → *active* → its last pair ends → *paused* → a `Leg`
//! brings another pair → *active* ... One that is asked for ahead of its use is *ready* until its agent says that it began
//! (`ready`). It leaves the registry when an end says so, when it is killed, or when nothing carries it and neither end was
//! heard of for `SILENCE_MAX`. That a link drops ends nothing but ready ones.

mod agents;
mod endings;
mod io;
mod legs;
#[cfg(test)]
mod random_tests;
mod ready;
mod sessions;
#[cfg(test)]
mod special_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trio;
mod udp;
#[cfg(test)]
mod udp_tests;

use std::collections::HashMap;
use std::time::Instant;

use switchback_engine::{LegSide, PairId};

pub(crate) use agents::WARM_LEGS_MAX;
pub(crate) use io::{How, Input, LinkId, Notice, Output, Registration, Reported, Wish};
pub(crate) use sessions::Snapshot;
pub(crate) use udp::Explained;

use self::agents::Agents;
use self::legs::Pair;
use self::sessions::{Session, Sessions};
use crate::broker::seal::Grant;
use crate::code::{Code, Fault};
use crate::wire::{Candidate, ClientAddress, SessionId, TransportPolicy, UdpUse};

/// How many sessions are granted.
#[derive(Clone, Copy, Debug)]
pub struct SessionLimits {
    /// Sessions at once. Default 65,536, as many as the gateway relays pairs; about 1 KiB each.
    pub total_max: usize,
    /// Sessions at once of one user. Default 4,096: a load test of a thousand fits, taking the whole broker does not.
    pub per_user_max: usize,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self { total_max: 65_536, per_user_max: 4096 }
    }
}

/// A client's link.
#[derive(Debug)]
struct Client {
    user: String,
    token: String,
    address: Option<ClientAddress>,
    /// Some of its candidates were.
    refused: bool,
}

/// Which end speaks.
enum End {
    Client,
    Agent,
}

/// The broker's mind.
#[derive(Debug)]
pub(crate) struct Orchestrator {
    limits: SessionLimits,
    clients: HashMap<LinkId, Client>,
    agents: Agents,
    sessions: Sessions,
    pairs: HashMap<PairId, Pair>,
    out: Vec<Output>,
}

impl Orchestrator {
    pub(crate) fn new(limits: SessionLimits) -> Self {
        let (clients, pairs) = (HashMap::new(), HashMap::new());
        let (agents, sessions) = (Agents::default(), Sessions::default());
        Self { limits, clients, agents, sessions, pairs, out: Vec::new() }
    }

    /// Takes in one thing that happened, and says what to do about it.
    pub(crate) fn handle(&mut self, now: Instant, input: Input) -> Vec<Output> {
        match input {
            Input::ClientUp { link, user, token, address } => {
                self.clients.insert(link, Client { user, token, address, refused: false });
            }
            Input::ClientDown { link } => self.client_down(now, link),
            Input::AgentUp { link, registration } => self.agent_up(now, link, registration),
            Input::AgentDown { link } => self.agent_down(now, link),
            Input::Open { link, wish } => self.open(now, link, wish),
            Input::Leg { link, request, grant, pair, udp } => {
                let answer = self.another_leg(now, link, &grant, pair, udp);
                self.out.push(match answer {
                    Ok((pair, udp)) => {
                        let grant = Box::new(grant);
                        Output::ClientLeg { link, request, grant, pair, udp }
                    }
                    Err(fault) => Output::RefuseClient { link, request, fault },
                });
            }
            Input::Network { link, candidates } => self.network(now, link, candidates),
            Input::Candidates { link, session, candidates } => {
                self.candidates(now, link, &session, &candidates);
            }
            Input::CandidatesRefused { link } => self.candidates_refused(link),
            Input::Moved { link, session, moved, direct } => {
                self.moved(link, &session, moved, direct);
            }
            Input::Explain { session } => self.explain(&session),
            Input::Paths { link, session, paths } => self.paths(now, link, &session, paths),
            Input::Warm { link, pairs } => self.warm(now, link, pairs),
            Input::Reports { link, reports } => {
                reports.into_iter().for_each(|reported| self.report(now, link, reported));
            }
            Input::Begun { link, session } => self.begun(now, link, &session),
            Input::Ended { link, session, code } => self.ended(now, link, &session, code),
            Input::Kill { session, code } => self.kill(now, &session, code),
            Input::TokenRevoked { token } => self.token_revoked(now, &token),
            Input::GrantsChanged { user, resources } => self.grants_changed(now, &user, &resources),
            Input::LegWaiting { pair, side } => self.leg_waiting(pair, side),
            Input::LegGone { pair, side } => self.leg_gone(now, pair, side),
            Input::PairStarted { pair } => self.pair_started(now, pair),
            Input::PairEnded { pair } => self.pair_ended(now, pair),
            Input::Tick => self.tick(now),
        }
        std::mem::take(&mut self.out)
    }

    // --- what the shell asks ---

    pub(crate) fn session(&self, id: &SessionId, now: Instant) -> Option<Snapshot> {
        let session = self.sessions.get(id).filter(|session| !session.ready)?;
        Some(session.snapshot(now))
    }

    /// Every session, or those of one user.
    pub(crate) fn sessions(&self, user: Option<&str>, now: Instant) -> Vec<Snapshot> {
        let wanted = |session: &&Session| {
            !session.ready && user.is_none_or(|user| session.grant.user == user)
        };
        self.sessions.iter().filter(wanted).map(|session| session.snapshot(now)).collect()
    }

    /// What may carry sessions of `resource` at `agent`, if it is connected.
    pub(crate) fn transport(&self, agent: &str, resource: &str) -> Option<TransportPolicy> {
        self.agents.service(agent, resource).map(|service| service.transport)
    }

    /// Names of the agents connected now.
    pub(crate) fn agents(&self) -> impl Iterator<Item = &str> {
        self.agents.iter().map(|agent| agent.name.as_str())
    }

    pub(crate) fn is_registered(&self, link: LinkId) -> bool {
        self.agents.get(link).is_some()
    }

    /// The session that `pair` was made for.
    pub(crate) fn session_of(&self, pair: PairId) -> Option<SessionId> {
        self.pairs.get(&pair)?.session().cloned()
    }

    /// Agents connected, clients connected, warm legs waiting.
    pub(crate) fn links(&self) -> (usize, usize, usize) {
        let waiting = self.agents.iter().map(agents::Agent::waiting_legs).sum();
        (self.agents.iter().count(), self.clients.len(), waiting)
    }

    // --- links ---

    fn client_down(&mut self, now: Instant, link: LinkId) {
        if self.clients.remove(&link).is_none() {
            return;
        }
        for session in self.sessions.iter_mut().filter(|session| session.client == Some(link)) {
            session.client_gone();
        }
        self.end_ready_without_client(now);
    }

    fn agent_up(&mut self, now: Instant, link: LinkId, mut registration: Registration) {
        if let Some((old, agent)) = self.agents.by_name(&registration.name) {
            if agent.key != registration.key {
                let fault = Code::AgentNameTaken
                    .because(format!("another agent named {} is connected", registration.name));
                self.out.push(Output::RefuseAgent { link, fault });
                self.out.push(Output::Close { link });
                return;
            }
            self.out.push(Output::Close { link: old });
            self.agent_down(now, old);
        }
        let grants = std::mem::take(&mut registration.sessions);
        self.agents.insert(now, link, registration);
        self.out.push(Output::Registered { link });
        for grant in grants {
            self.known_again(now, link, &End::Agent, &grant);
        }
    }

    /// Without its link an agent cannot be told to use a warm leg, so those go.
    fn agent_down(&mut self, now: Instant, link: LinkId) {
        let Some(agent) = self.agents.remove(link) else { return };
        self.end_ready_of_agent(now, &agent.name);
        for pair in agent.warm_pairs() {
            self.pairs.remove(&pair);
            self.out.push(Output::EndPair { pair });
        }
    }

    // --- sessions ---

    fn open(&mut self, now: Instant, link: LinkId, wish: Wish) {
        let Wish { request, pair, ready, .. } = wish;
        match self.grant(now, link, wish) {
            Ok((agent, grant, udp::Peering { transport, candidates })) => {
                let (client, udp) = candidates.unzip();
                let pair = self.offer(now, agent, &grant, pair, client);
                let service = self.agents.service(&grant.agent, &grant.resource);
                let kind = service.map(|service| service.kind).unwrap_or_default();
                let grant = Box::new(grant);
                let began = (!ready).then(|| Output::Began { grant: grant.clone() });
                self.out.push(Output::Granted { link, request, grant, pair, transport, udp, kind });
                self.out.extend(began);
            }
            Err(fault) => self.out.push(Output::RefuseClient { link, request, fault }),
        }
    }

    fn grant(
        &mut self,
        now: Instant,
        link: LinkId,
        wish: Wish,
    ) -> Result<(LinkId, Grant, udp::Peering), Fault> {
        let client = self.clients.get(&link).ok_or(Code::TokenInvalid)?;
        let (user, token) = (client.user.clone(), client.token.clone());
        if wish.ready { self.check_ready_room(&user) } else { self.check_room(&user) }?;
        if self.sessions.get(&wish.session).is_some() {
            return Err(Code::Internal.because("two sessions of one id"));
        }
        let served = |agent: &str| self.sessions.of_agent(agent);
        let (agent_link, agent) =
            self.agents.pick(&wish.resource, served).ok_or(Code::AgentOffline)?;
        let peering = self.peering(agent_link, &wish.resource, wish.udp);
        if peering.transport.udp == UdpUse::Require && peering.candidates.is_none() {
            return Err(Code::DirectRequired.into());
        }
        let grant = Grant {
            session: wish.session,
            user,
            token,
            resource: wish.resource,
            agent: agent.name.clone(),
            agent_token: agent.token.clone(),
            client_key: wish.client_key,
            agent_key: agent.key.clone(),
            created_ms: wish.created_ms,
            purpose: wish.purpose,
        };
        let session = Session::new(grant.clone(), Some(link), false, now);
        self.sessions.insert(if wish.ready { session.held_ready() } else { session });
        Ok((agent_link, grant, peering))
    }

    fn check_room(&self, user: &str) -> Result<(), Fault> {
        if self.sessions.in_use() >= self.limits.total_max {
            return Err(Code::SessionLimit.because("the broker holds as many sessions as it may"));
        }
        if self.sessions.of_user(user) >= self.limits.per_user_max {
            return Err(Code::SessionLimit.because("you hold as many sessions as you may"));
        }
        Ok(())
    }

    fn another_leg(
        &mut self,
        now: Instant,
        link: LinkId,
        grant: &Grant,
        pair: PairId,
        udp: Option<Vec<Candidate>>,
    ) -> Result<(PairId, Option<Vec<Candidate>>), Fault> {
        let client = self.clients.get(&link).ok_or(Code::TokenInvalid)?;
        if client.user != grant.user {
            return Err(Code::GrantInvalid.because("the session belongs to another user"));
        }
        if let Some(code) = self.sessions.tombstone(&grant.session) {
            return Err(code.because("the session has ended"));
        }
        if self.sessions.get(&grant.session).is_none() {
            self.check_room(&grant.user)?;
        }
        self.known_again(now, link, &End::Client, grant);
        let (agent_link, agent) = self.agents.by_name(&grant.agent).ok_or(Code::AgentOffline)?;
        if agent.key != grant.agent_key {
            return Err(Code::GrantInvalid.because("the agent has a new key since"));
        }
        let (client, udp) = self.peering(agent_link, &grant.resource, udp).candidates.unzip();
        Ok((self.offer(now, agent_link, grant, pair, client), udp))
    }

    /// An end shows a session's grant: the registry learns of the session if it did not know, and that the end lives.
    fn known_again(&mut self, now: Instant, link: LinkId, end: &End, grant: &Grant) {
        if let Some(code) = self.sessions.tombstone(&grant.session) {
            self.tell_end(link, end, &grant.session, code);
            return;
        }
        if !self.may_speak_for(link, end, grant) {
            return;
        }
        if self.sessions.get(&grant.session).is_none() {
            if self.check_room(&grant.user).is_err() {
                return;
            }
            self.sessions.insert(Session::new(grant.clone(), None, true, now));
        }
        if let Some(session) = self.sessions.get_mut(&grant.session) {
            session.hear(now);
        }
        match end {
            End::Client => self.client_at(link, &grant.session),
            End::Agent => self.tell_missed(&grant.session, LegSide::Agent),
        }
    }

    fn may_speak_for(&self, link: LinkId, end: &End, grant: &Grant) -> bool {
        match end {
            End::Client => self.clients.get(&link).is_some_and(|client| client.user == grant.user),
            End::Agent => self
                .agents
                .get(link)
                .is_some_and(|agent| agent.name == grant.agent && agent.key == grant.agent_key),
        }
    }

    fn end_of(&self, link: LinkId) -> Option<End> {
        if self.clients.contains_key(&link) {
            Some(End::Client)
        } else {
            self.agents.get(link).map(|_| End::Agent)
        }
    }

    fn report(&mut self, now: Instant, link: LinkId, reported: Reported) {
        let Reported { report, grant } = reported;
        let Some(end) = self.end_of(link) else { return };
        if let Some(grant) = grant.filter(|grant| grant.session == report.session) {
            self.known_again(now, link, &end, &grant);
        } else if let Some(code) = self.sessions.tombstone(&report.session) {
            self.tell_end(link, &end, &report.session, code);
        }
        let Some(session) = self.sessions.get(&report.session) else { return };
        if !self.may_speak_for(link, &end, &session.grant) {
            return;
        }
        let by_client = matches!(end, End::Client);
        if by_client && session.client.is_none() {
            self.client_at(link, &report.session);
        }
        let Some(session) = self.sessions.get_mut(&report.session) else { return };
        if by_client && session.client != Some(link) {
            return;
        }
        let counted = session.report(report, by_client, now);
        if !counted.is_zero() {
            self.out.push(Output::Lossy { by_client, counted });
        }
    }
}
