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
mod gateways;
#[cfg(test)]
mod gateways_tests;
mod io;
mod legs;
mod life;
mod pool;
#[cfg(test)]
mod pool_tests;
#[cfg(test)]
mod random_tests;
mod ready;
mod rights;
#[cfg(test)]
mod rights_tests;
mod sessions;
mod shadow;
#[cfg(test)]
mod shadow_tests;
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

pub(crate) use agents::{AgentSnapshot, WARM_LEGS_MAX};
pub(crate) use gateways::{GatewayId, GatewaySnapshot, GatewayUp};
pub(crate) use io::{How, Input, LinkId, Notice, Output, Registration, Reported, Wish};
pub(crate) use sessions::Snapshot;
pub(crate) use udp::Explained;

use self::agents::Agents;
use self::gateways::{Gateways, Pairs};
use self::pool::{LastAgents, Member};
use self::sessions::{Session, Sessions};
use self::shadow::Shadows;
use crate::broker::seal::Grant;
use crate::code::{Code, Fault};
use crate::wire::{
    Candidate, ClientAddress, GatewayRtt, LegWish, SessionId, TransportPolicy, UdpUse,
};

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
    /// How far the gateways are from it.
    rtts: Vec<GatewayRtt>,
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
    pairs: Pairs,
    gateways: Gateways,
    shadows: Shadows,
    last_agents: LastAgents,
    out: Vec<Output>,
}

impl Orchestrator {
    pub(crate) fn new(limits: SessionLimits) -> Self {
        let (clients, pairs) = (HashMap::new(), Pairs::default());
        let (agents, sessions) = (Agents::default(), Sessions::default());
        let gateways = Gateways::new(limits.total_max);
        let (shadows, last_agents) = (Shadows::default(), LastAgents::default());
        let out = Vec::new();
        Self { limits, clients, agents, sessions, pairs, gateways, shadows, last_agents, out }
    }

    /// Takes in one thing that happened, and says what to do about it.
    pub(crate) fn handle(&mut self, now: Instant, input: Input) -> Vec<Output> {
        match input {
            Input::ClientUp { link, user, token, address } => {
                self.client_up(
                    link,
                    Client { user, token, address, rtts: Vec::new(), refused: false },
                );
            }
            Input::ClientDown { link } => self.client_down(now, link),
            Input::AgentUp { link, registration } => self.agent_up(now, link, registration),
            Input::AgentDown { link } => self.agent_down(now, link),
            Input::Open { link, wish } => self.open(now, link, wish),
            Input::GatewayUp { up } => self.gateway_up(up),
            Input::GatewayDown { gateway } => self.gateway_down(now, &gateway),
            Input::GatewayHolds { gateway, held, last } => {
                self.gateway_holds(now, &gateway, held, last);
            }
            Input::GatewayDrains { gateway, drain } => self.gateway_drains(now, &gateway, drain),
            Input::GatewayLoad { gateway, pairs } => self.gateway_load(&gateway, pairs),
            Input::Rtts { link, rtts } => self.rtts(link, rtts),
            Input::Leg { link, request, grant, pair, udp, wish } => {
                let answer = self.another_leg(now, link, &grant, (pair, wish), udp);
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
                self.moved(now, link, &session, moved, direct);
            }
            Input::Explain { session } => self.explain(&session),
            Input::Paths { link, session, paths } => self.paths(now, link, &session, paths),
            Input::Health { link, targets, load_percent } => {
                self.agents.health(link, &targets, load_percent);
            }
            Input::LinkRtt { link, rtt } => self.agents.measured(link, rtt),
            Input::Drain { agent, draining } => self.agents.drain(&agent, draining),
            Input::Warm { link, pairs } => self.warm(now, link, pairs),
            Input::Reports { link, reports } => {
                reports.into_iter().for_each(|reported| self.report(now, link, reported));
            }
            Input::Begun { link, session } => self.begun(now, link, &session),
            Input::Consent { link, id, yes } => self.consent(now, link, id, yes),
            Input::Hold { session, by, held } => self.hold(&session, by, held),
            Input::Message { session, from, text } => self.message(&session, from, text),
            Input::Ended { link, session, code } => self.ended(now, link, &session, code),
            Input::Kill { session, code } => self.kill(now, &session, code),
            Input::Condemned { link, grant, code } => self.condemned(now, link, &grant, code),
            Input::Judged { session, verdict } => self.judged(now, &session, verdict),
            Input::TokenRevoked { token } => self.token_revoked(now, &token),
            Input::TokenExpired { token } => self.token_expired(now, &token),
            Input::RightsChanged => self.forget_asked(),
            Input::SigninChanged { token } => self.signin_changed(now, &token),
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
        Some(self.snapshot_of(session, now))
    }

    /// Every session, or those of one user.
    pub(crate) fn sessions(&self, user: Option<&str>, now: Instant) -> Vec<Snapshot> {
        let wanted = |session: &&Session| {
            !session.ready && user.is_none_or(|user| session.grant.user == user)
        };
        let live = self.sessions.iter().filter(wanted).map(|it| self.snapshot_of(it, now));
        live.chain(self.sessions.closing(user)).collect()
    }

    /// What may carry sessions of `resource` at `agent`, if it is connected.
    pub(crate) fn transport(&self, agent: &str, resource: &str) -> Option<TransportPolicy> {
        self.agents.service(agent, resource).map(|service| service.transport)
    }

    /// How the agent of this name is, if it is connected.
    pub(crate) fn agent_state(&self, name: &str, now: Instant) -> Option<AgentSnapshot> {
        let (_, agent) = self.agents.by_name(name)?;
        Some(agent.snapshot(self.sessions.of_agent(name), now))
    }

    /// Links of the agent with this enrolment.
    pub(crate) fn agents_with(&self, enrolment: &str) -> Vec<LinkId> {
        self.agents.with_token(enrolment)
    }

    /// Enrolments of the agents connected now.
    pub(crate) fn agent_enrolments(&self) -> impl Iterator<Item = &str> {
        self.agents.iter().map(|agent| &*agent.token)
    }

    /// Names of the agents connected now.
    pub(crate) fn agents(&self) -> impl Iterator<Item = &str> {
        self.agents.iter().map(|agent| agent.name.as_str())
    }

    /// The user of a client's link.
    pub(crate) fn client_of(&self, link: LinkId) -> Option<&str> {
        self.clients.get(&link).map(|client| client.user.as_str())
    }

    /// The agent of a link.
    pub(crate) fn agent_of(&self, link: LinkId) -> Option<&str> {
        self.agents.get(link).map(|agent| agent.name.as_str())
    }

    pub(crate) fn is_registered(&self, link: LinkId) -> bool {
        self.agents.get(link).is_some()
    }

    /// The session that `pair` was made for.
    pub(crate) fn session_of(&self, pair: PairId) -> Option<SessionId> {
        self.pairs.get(&pair)?.session().cloned()
    }

    /// The gateway that a session was last sent to.
    pub(crate) fn gateway_of_session(&self, id: &SessionId) -> Option<&GatewayId> {
        self.sessions.get(id)?.gateway.as_ref()
    }

    /// Agents connected, clients connected, warm legs waiting.
    pub(crate) fn links(&self) -> (usize, usize, usize) {
        let waiting = self.agents.iter().map(agents::Agent::waiting_legs).sum();
        (self.agents.iter().count(), self.clients.len(), waiting)
    }

    // --- links ---

    fn client_up(&mut self, link: LinkId, mut client: Client) {
        if let Some(address) = client.address {
            client.rtts = self.gateways.remembered(&client.user, address.client.ip());
        }
        self.clients.insert(link, client);
        if let Some(gateways) = self.gateways.places() {
            self.out.push(Output::GatewaysAtClient { link, gateways });
        }
    }

    fn client_down(&mut self, now: Instant, link: LinkId) {
        let Some(client) = self.clients.remove(&link) else { return };
        if let Some(address) = client.address.filter(|_| !client.rtts.is_empty()) {
            self.gateways.remember(&client.user, address.client.ip(), client.rtts);
        }
        for session in self.sessions.iter_mut().filter(|session| session.client == Some(link)) {
            session.client_gone();
        }
        self.asked_link_down(link);
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
        if let Some(gateways) = self.gateways.places() {
            self.out.push(Output::GatewaysAtAgent { link, gateways });
        }
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
        let Some(wish) = self.consent_first(now, link, wish) else { return };
        let Wish { request, pair, ready, .. } = wish;
        match self.grant(now, link, wish) {
            Ok((agent, grant, udp::Peering { transport, candidates })) => {
                let (client, udp) = candidates.unzip();
                let pair = self.offer(now, agent, &grant, pair, client, &LegWish::default());
                let service = self.agents.service(&grant.agent, &grant.resource);
                let kind = service.map(|service| service.kind).unwrap_or_default();
                let grant = Box::new(grant);
                let began = (!ready).then(|| Output::Began { grant: grant.clone() });
                let id = grant.session.clone();
                self.out.push(Output::Granted { link, request, grant, pair, transport, udp, kind });
                self.out.extend(began);
                if !ready {
                    self.life_began(now, &id);
                }
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
        let (agent_link, agent) = self.agent_for(now, &user, &wish)?;
        let offered = agent.service(&wish.resource).map(|it| it.transport).unwrap_or_default();
        if wish.rights.obligations.narrow(offered).is_none() {
            return Err(Code::PolicyConflict.into());
        }
        let udp = wish.udp.is_some();
        let peering = self.peering(agent_link, &wish.resource, &wish.rights, wish.udp);
        if peering.transport.udp == UdpUse::Require && peering.candidates.is_none() {
            return Err(Code::DirectRequired.into());
        }
        let watched = wish.purpose.shadow().and_then(|shadow| self.sessions.get(&shadow.session));
        let grant = Grant {
            watched: watched.map(|watched| watched.grant.user.clone()),
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
            source: wish.source,
            udp,
            rights: wish.rights,
        };
        let session = Session::new(grant.clone(), Some(link), false, now);
        self.sessions.insert(if wish.ready { session.held_ready() } else { session });
        Ok((agent_link, grant, peering))
    }

    fn members(&self, now: Instant, user: &str, resource: &str) -> Vec<Member> {
        let last = self.last_agents.of(now, user, resource);
        let member = |(link, agent): (LinkId, &agents::Agent)| {
            let service = agent.service(resource)?;
            Some(Member {
                link,
                sessions: self.sessions.of_agent(&agent.name),
                share: (self.sessions.of_service(&agent.name, resource), service.pool.sessions_max),
                balance: service.pool.balance,
                draining: agent.draining,
                healthy: service.fault.is_none(),
                known_to_user: last == Some(agent.name.as_str()),
                load_percent: agent.load_percent,
                rtt: agent.link_rtt,
            })
        };
        self.agents.that_offer(resource).filter_map(member).collect()
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
        (pair, wish): (PairId, LegWish),
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
            if grant.purpose.shadow().is_some() {
                let detail =
                    "the agent has not shown this watch; it was asked for once, and may be over";
                return Err(Code::AgentOffline.because(detail));
            }
        }
        self.known_again(now, link, &End::Client, grant);
        let grant = &self.bound(grant)?;
        let found = self.agents.by_name(&grant.agent);
        let (agent_link, agent) = found.ok_or_else(|| self.offline(now, grant))?;
        if agent.key != grant.agent_key {
            return Err(Code::GrantInvalid.because("the agent has a new key since"));
        }
        if wish.second && !self.gateways.is_another_open(wish.not_via.as_deref()) {
            return Err(Code::GatewayUnknown.because("there is no second gateway now"));
        }
        let udp = udp.filter(|_| grant.udp);
        let peering = self.peering(agent_link, &grant.resource, &grant.rights, udp);
        let (client, udp) = peering.candidates.unzip();
        Ok((self.offer(now, agent_link, grant, pair, client, &wish), udp))
    }

    /// Why a session's agent does not answer, and where to instead.
    fn offline(&self, now: Instant, grant: &Grant) -> Fault {
        let others = self.members(now, &grant.user, &grant.resource);
        let other = pool::choose(&others).ok().and_then(|link| self.agents.get(link));
        Code::AgentOffline.because(match other {
            Some(other) => format!(
                "agent {} is not connected; a new session would be served by {}",
                grant.agent, other.name
            ),
            None => format!("agent {} is not connected", grant.agent),
        })
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
            // Consent was given to one watch, which lives at its agent. What a client kept of it revives nothing.
            let over = grant.purpose.shadow().is_some() && matches!(end, End::Client);
            if over || self.check_room(&grant.user).is_err() {
                return;
            }
            self.sessions.insert(Session::new(grant.clone(), None, true, now));
            self.claim(now, &grant.session);
        }
        self.judged(now, &grant.session, Ok(grant.rights));
        self.tell_policy_again(end, &grant.session);
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
