//! How the two ends of a session learn where the other is by UDP, and what they are asked about it.
//!
//! An agent's candidates are kept with its link, so that grants carry them; when they change, the clients of its sessions
//! are told. What one end says about one session goes to the other end, when that has a link. Who may be told what is the
//! resource's policy.
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use switchback_engine::LegSide;

use super::io::{LinkId, Notice, Output};
use super::rights::narrowed;
use super::{End, Orchestrator};
use crate::broker::policy::Rights;
use crate::broker::rate::{Bucket, Rate};
use crate::broker::seal::Grant;
use crate::broker::udp::RELAY_TTL;
use crate::code::Code;
use crate::path_reason::{CANDIDATE_REFUSED, HARD_NAT_BOTH_SIDES};
use crate::wire::{
    Candidate, CandidateKind, PathMove, PathReport, SessionId, TransportPolicy, UdpUse,
};

/// Candidates messages of one end about one session: a relay, a mapped port and a few interfaces come one by one at the
/// start; after that a network changes now and then.
const CANDIDATES: Rate = Rate { burst: 16.0, per_second: 0.5 };
/// Changes of an agent's network that its clients are told of: each is a message per session.
const NETWORKS: Rate = Rate { burst: 4.0, per_second: 0.2 };
/// Moves and stalls of one session that everybody's events hold: a minute on a bad network, and what a day brings. Clients say
/// as many as they like, and whoever listens must still find what happened to others.
const MOVES_TOLD: Rate = Rate { burst: 8.0, per_second: 0.05 };
/// Half of the time that relay credentials are good: a link that is down for the other half harms nothing.
const RENEW_AFTER: Duration = Duration::from_secs(RELAY_TTL / 2);
/// Sessions whose relay credentials are renewed per tick: a thirtieth of what a link's queue takes, so that an agent with
/// thousands of sessions keeps up after a broker's restart.
const RENEWALS_PER_TICK: usize = 64;

/// What the registry keeps of a session's UDP.
#[derive(Debug)]
pub(super) struct UdpState {
    from_client: Bucket,
    from_agent: Bucket,
    renew_at: Instant,
    paths: [Option<(Instant, Box<PathReport>)>; 2],
    /// Or the time to a direct path would be wrong, as it is not known or passed before anybody used the session.
    pub(super) was_direct: bool,
    /// For what becomes of its moves besides a sum.
    moves: Bucket,
    /// What the client, and what the agent, is to hear when it has a link again.
    missed: [Missed; 2],
}

/// Where the other end went while this one had no link.
#[derive(Debug, Default)]
struct Missed {
    /// The agent's network is another one.
    network: bool,
    /// What the other end said about this session: two messages' worth at most.
    said: Vec<Candidate>,
}

impl Missed {
    /// A message holds all addresses of an end, or that of its relay, in place of those before.
    fn keep(&mut self, message: &[Candidate]) {
        let relayed = |candidate: &Candidate| candidate.kind == CandidateKind::Relayed;
        let named = |kind| message.iter().any(|candidate| relayed(candidate) == kind);
        self.said.retain(|old| !named(relayed(old)));
        self.said.extend_from_slice(message);
    }
}

impl UdpState {
    /// Of a session granted now, or (`known_again`) told of by an end, whose credentials may be as old as they get.
    pub(super) fn new(known_again: bool, now: Instant) -> Self {
        let renew_at = if known_again { now } else { now + RENEW_AFTER };
        let (full, moves) = (Bucket::full(CANDIDATES, now), Bucket::full(MOVES_TOLD, now));
        // Whether it was is not known then, and the time would be wrong.
        let was_direct = known_again;
        let (paths, missed) = ([None, None], Default::default());
        Self { from_client: full, from_agent: full, renew_at, paths, was_direct, moves, missed }
    }
}

/// An agent's candidates, as far as they are known.
#[derive(Debug)]
pub(super) struct Network {
    candidates: Option<Vec<Candidate>>,
    untold: bool,
    telling: Bucket,
    /// Some were refused.
    refused: bool,
}

impl Network {
    pub(super) fn unknown(now: Instant) -> Self {
        let telling = Bucket::full(NETWORKS, now);
        Self { candidates: None, untold: false, telling, refused: false }
    }
}

/// What each end of a session says about its paths, and when it said so: client's, agent's.
pub(crate) type Explained = [Option<(Instant, PathReport)>; 2];

/// What may carry a session, and what its two ends may know of each other; `None`: nothing, it does without UDP.
#[derive(Debug, Default)]
pub(super) struct Peering {
    pub(super) transport: TransportPolicy,
    /// The client's candidates, for the agent, and the agent's, for the client.
    pub(super) candidates: Option<(Vec<Candidate>, Vec<Candidate>)>,
}

impl Orchestrator {
    /// What the ends of a session of `resource` at `agent` may know; `client`: the client's candidates, if it does UDP.
    pub(super) fn peering(
        &self,
        agent: LinkId,
        resource: &str,
        rights: &Rights,
        client: Option<Vec<Candidate>>,
    ) -> Peering {
        let Some(agent) = self.agents.get(agent) else { return Peering::default() };
        let Some(service) = agent.service(resource) else { return Peering::default() };
        let transport = narrowed(service.transport, rights);
        let known = agent.network.candidates.as_ref();
        let both = client.zip(known).filter(|_| transport.udp != UdpUse::Off);
        let candidates =
            both.map(|(client, agent)| (told(transport, &client), told(transport, agent)));
        Peering { transport, candidates }
    }

    /// Takes in where an agent is now.
    pub(super) fn network(&mut self, now: Instant, link: LinkId, candidates: Vec<Candidate>) {
        let Some(agent) = self.agents.get_mut(link) else { return };
        if agent.network.candidates.as_ref() != Some(&candidates) {
            agent.network.candidates = Some(candidates);
            agent.network.untold = true;
            self.tell_networks(now);
        }
    }

    /// Tells clients where their agents are now, if that changed and is due.
    pub(super) fn tell_networks(&mut self, now: Instant) {
        for agent in self.agents.iter_mut() {
            let network = &mut agent.network;
            if !network.untold || !network.telling.take(now) {
                continue;
            }
            network.untold = false;
            let Some(candidates) = &network.candidates else { continue };
            for session in self.sessions.iter_mut().filter(|it| it.grant.agent == agent.name) {
                let Some(service) = agent.resources.get(&session.grant.resource) else { continue };
                let Some(link) = session.client else {
                    session.udp.missed[of(LegSide::Client)].network = true;
                    continue;
                };
                let transport = narrowed(service.transport, &session.grant.rights);
                let candidates = told(transport, candidates);
                if !candidates.is_empty() {
                    let (session, notice) =
                        (session.grant.session.clone(), Notice::Candidates(candidates));
                    self.out.push(Output::Tell { link, end: LegSide::Client, session, notice });
                }
            }
        }
    }

    /// Passes on what one end of a session says about itself.
    pub(super) fn candidates(
        &mut self,
        now: Instant,
        link: LinkId,
        id: &SessionId,
        candidates: &[Candidate],
    ) {
        let Some(end) = self.speaker(link, id) else { return };
        let Some(session) = self.sessions.get_mut(id).filter(|it| it.grant.udp) else { return };
        let bucket = match end {
            End::Client => &mut session.udp.from_client,
            End::Agent => &mut session.udp.from_agent,
        };
        if !bucket.take(now) {
            return self.out.push(Output::Ignored { code: Code::RateLimited });
        }
        let grant = session.grant.clone();
        let other = match end {
            End::Client => LegSide::Agent,
            End::Agent => LegSide::Client,
        };
        if self.link_of(&grant, other).is_none() {
            if let Some(session) = self.sessions.get_mut(id) {
                session.udp.missed[of(other)].keep(candidates);
            }
            return;
        }
        let candidates = told(self.transport_of(&grant), candidates);
        if !candidates.is_empty() {
            self.tell(&grant, other, Notice::Candidates(candidates));
        }
    }

    /// The client of a session is heard on this link.
    pub(super) fn client_at(&mut self, link: LinkId, id: &SessionId) {
        if let Some(session) = self.sessions.get_mut(id)
            && session.client != Some(link)
        {
            session.client = Some(link);
            self.tell_missed(id, LegSide::Client);
            self.tell_watchers(id);
        }
    }

    /// An end has a link: it hears where the other went meanwhile.
    pub(super) fn tell_missed(&mut self, id: &SessionId, end: LegSide) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        let Missed { network, said } = std::mem::take(&mut session.udp.missed[of(end)]);
        let grant = session.grant.clone();
        let agent = self.agents.by_name(&grant.agent).filter(|_| network);
        let moved = agent.and_then(|(_, agent)| agent.network.candidates.clone());
        let all: Vec<_> = moved.into_iter().flatten().chain(said).collect();
        let candidates = told(self.transport_of(&grant), &all);
        if !candidates.is_empty() {
            self.tell(&grant, end, Notice::Candidates(candidates));
        }
    }

    /// Takes note that an end offers what no peer may be sent to.
    pub(super) fn candidates_refused(&mut self, link: LinkId) {
        if let Some(client) = self.clients.get_mut(&link) {
            client.refused = true;
        } else if let Some(agent) = self.agents.get_mut(link) {
            agent.network.refused = true;
        }
    }

    /// Takes note of a move or stall that a client tells of. Those of a ready session nobody waits for; how long it took to a
    /// direct path says nothing of its use.
    pub(super) fn moved(
        &mut self,
        now: Instant,
        link: LinkId,
        id: &SessionId,
        moved: Box<PathMove>,
        direct: bool,
    ) {
        let Some(End::Client) = self.speaker(link, id) else { return };
        let Some(session) = self.sessions.get_mut(id) else { return };
        if session.ready {
            return;
        }
        let first_direct = direct && !session.udp.was_direct;
        session.udp.was_direct |= direct;
        let told = session.udp.moves.take(now);
        let grant = Box::new(session.grant.clone());
        self.out.push(Output::Moved { grant, moved, first_direct, told });
    }

    /// Asks both ends what they see.
    pub(super) fn explain(&mut self, id: &SessionId) {
        let Some(session) = self.sessions.get(id) else { return };
        let grant = session.grant.clone();
        for end in [LegSide::Client, LegSide::Agent] {
            self.tell(&grant, end, Notice::Explain);
        }
    }

    /// Keeps what an end sees.
    pub(super) fn paths(
        &mut self,
        now: Instant,
        link: LinkId,
        id: &SessionId,
        paths: Box<PathReport>,
    ) {
        let Some(end) = self.speaker(link, id) else { return };
        let Some(session) = self.sessions.get_mut(id) else { return };
        session.udp.paths[usize::from(matches!(end, End::Agent))] = Some((now, paths));
    }

    /// What both ends said last, and whether each has a link to be asked on: client's, agent's.
    pub(crate) fn explained(&self, id: &SessionId) -> Option<(Explained, [bool; 2])> {
        let session = self.sessions.get(id)?;
        let mut said = session
            .udp
            .paths
            .each_ref()
            .map(|paths| paths.as_ref().map(|(at, paths)| (*at, PathReport::clone(paths))));
        let links = [LegSide::Client, LegSide::Agent].map(|end| self.link_of(&session.grant, end));
        for (said, link) in said.iter_mut().zip(links) {
            if let (Some((_, paths)), true) = (said, link.is_some_and(|it| self.was_refused(it))) {
                paths.reasons.push(CANDIDATE_REFUSED.to_owned());
            }
        }
        let hard = |said: &Option<(Instant, PathReport)>| {
            said.as_ref().is_some_and(|(_, paths)| paths.reasons.iter().any(|it| it == "hard_nat"))
        };
        if said.iter().all(hard) {
            for (_, paths) in said.iter_mut().flatten() {
                paths.reasons.push(HARD_NAT_BOTH_SIDES.to_owned());
            }
        }
        Some((said, links.map(|link| link.is_some())))
    }

    /// Where the agent of `resource` listens on its managed port, as far as the resource's sessions may know.
    pub(crate) fn managed(&self, agent: &str, resource: &str) -> Vec<SocketAddr> {
        let Some((_, agent)) = self.agents.by_name(agent) else { return Vec::new() };
        let Some(service) = agent.service(resource) else { return Vec::new() };
        let known = agent.network.candidates.as_deref().unwrap_or_default();
        let managed = |it: &Candidate| it.kind == CandidateKind::Managed;
        told(service.transport, known).into_iter().filter(managed).map(|it| it.address).collect()
    }

    fn was_refused(&self, link: LinkId) -> bool {
        self.clients.get(&link).is_some_and(|client| client.refused)
            || self.agents.get(link).is_some_and(|agent| agent.network.refused)
    }

    /// Renews the relay credentials that are due, a few at a time.
    pub(super) fn renew_relays(&mut self, now: Instant) {
        let due = self.sessions.iter_mut().filter(|session| session.udp.renew_at <= now);
        let mut grants = Vec::new();
        for session in due.take(RENEWALS_PER_TICK) {
            session.udp.renew_at = now + RENEW_AFTER;
            grants.push(session.grant.clone());
        }
        for grant in grants {
            if matches!(self.transport_of(&grant).udp, UdpUse::Off | UdpUse::Require) {
                continue;
            }
            for end in [LegSide::Client, LegSide::Agent] {
                self.tell(&grant, end, Notice::Relay { user: grant.user.clone() });
            }
        }
    }

    /// What may carry sessions of this grant's resource, as its agent has it now.
    pub(super) fn transport_of(&self, grant: &Grant) -> TransportPolicy {
        let agent = self.agents.by_name(&grant.agent);
        let service = agent.and_then(|(_, agent)| agent.service(&grant.resource));
        // Without its agent nothing is told to anybody.
        service.map_or(TransportPolicy { udp: UdpUse::Off, ..TransportPolicy::default() }, |it| {
            narrowed(it.transport, &grant.rights)
        })
    }

    /// Which end of the session speaks on `link`, if it may.
    fn speaker(&self, link: LinkId, id: &SessionId) -> Option<End> {
        let (end, session) = (self.end_of(link)?, self.sessions.get(id)?);
        self.may_speak_for(link, &end, &session.grant).then_some(end)
    }

    pub(super) fn tell(&mut self, grant: &Grant, end: LegSide, notice: Notice) {
        if let Some(link) = self.link_of(grant, end) {
            let session = grant.session.clone();
            self.out.push(Output::Tell { link, end, session, notice });
        }
    }

    fn link_of(&self, grant: &Grant, end: LegSide) -> Option<LinkId> {
        match end {
            LegSide::Client => self.sessions.get(&grant.session)?.client,
            LegSide::Agent => {
                let (link, agent) = self.agents.by_name(&grant.agent)?;
                (agent.key == grant.agent_key).then_some(link)
            }
        }
    }
}

const fn of(end: LegSide) -> usize {
    match end {
        LegSide::Client => 0,
        LegSide::Agent => 1,
    }
}

fn told(transport: TransportPolicy, candidates: &[Candidate]) -> Vec<Candidate> {
    candidates.iter().copied().filter(|candidate| transport.allows(candidate.kind)).collect()
}
