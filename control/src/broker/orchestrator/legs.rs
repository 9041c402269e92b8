//! Pairs in the making, alive, and left over: how a session comes by its legs and how it loses them.
use std::time::{Duration, Instant};

use switchback_engine::{LegSide, PairId};

use super::Orchestrator;
use super::gateways::GatewayId;
use super::io::{How, LinkId, Output};
use super::sessions::{LEGS_MAX, Leg, Session};
use crate::broker::seal::Grant;
use crate::code::Code;
use crate::ticket::{DIAL_PATIENCE, TICKET_TTL};
use crate::wire::{Candidate, LegWish, SessionId};

/// A pair that has not started this long after its tickets were minted never will: each leg may arrive at the last
/// moment of its ticket and then wait out its patience. 5 s for the event to reach us.
const PENDING_MAX: Duration =
    Duration::from_secs(TICKET_TTL.as_secs() + DIAL_PATIENCE.as_secs() + 5);
/// Time for a pair to end by itself after its session did: the last bytes cross, then both ends close.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// A pair the orchestrator knows of.
#[derive(Debug)]
pub(super) struct Pair {
    purpose: Purpose,
    /// When it entered its present state.
    since: Instant,
    /// Where its legs meet.
    pub(super) gateway: GatewayId,
}

#[derive(Debug)]
enum Purpose {
    /// A warm leg; `waiting` once it is at the gateway.
    Warm { agent: LinkId, waiting: bool },
    /// A leg of a session. `warm`: the agent's leg was warm and may turn out to be gone.
    Leg { session: SessionId, warm: bool, live: bool },
    /// Its session is over, or does without it. `started`: it had met before.
    Draining { session: SessionId, started: bool },
}

impl Pair {
    pub(super) const fn session(&self) -> Option<&SessionId> {
        match &self.purpose {
            Purpose::Leg { session, .. } | Purpose::Draining { session, .. } => Some(session),
            Purpose::Warm { .. } => None,
        }
    }

    /// One that a broker before this one made, and that carries this session.
    pub(super) fn adopted(gateway: GatewayId, session: SessionId, now: Instant) -> Self {
        let purpose = Purpose::Leg { session, warm: false, live: true };
        Self { purpose, since: now, gateway }
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    pub(super) const fn is_warm(&self) -> bool {
        matches!(self.purpose, Purpose::Warm { .. })
    }

    /// Its legs have met.
    pub(super) const fn is_live(&self) -> bool {
        matches!(
            self.purpose,
            Purpose::Leg { live: true, .. } | Purpose::Draining { started: true, .. }
        )
    }

    /// The gateway has spoken of it.
    pub(super) const fn was_there(&self) -> bool {
        self.is_live() || matches!(self.purpose, Purpose::Warm { waiting: true, .. })
    }
}

impl Orchestrator {
    /// Gets the session a leg: tells the agent, and answers the pair that the client's ticket must name.
    pub(super) fn offer(
        &mut self,
        now: Instant,
        agent: LinkId,
        grant: &Grant,
        fresh: PairId,
        udp: Option<Vec<Candidate>>,
        wish: &LegWish,
    ) -> PairId {
        let client = self.sessions.get(&grant.session).and_then(|session| session.client);
        let gateway = self.choose_gateway(client, agent, wish.not_via.as_deref());
        let pairs = &self.pairs;
        let there = |pair: PairId| pairs.get(&pair).is_some_and(|pair| pair.gateway == gateway);
        let warm = self.agents.get_mut(agent).and_then(|agent| agent.take_warm(there));
        let (pair, how) = warm.map_or((fresh, How::Dial), |pair| (pair, How::Warm));
        let session = grant.session.clone();
        let purpose = Purpose::Leg { session, warm: how == How::Warm, live: false };
        self.pairs.insert(pair, Pair { purpose, since: now, gateway: gateway.clone() });
        self.tune(agent, grant, pair);
        self.tell_offer(agent, grant, pair, how, (udp, wish.instead));
        let surplus = self.sessions.get_mut(&grant.session).and_then(|session| {
            if wish.second {
                // The newest shows where the session is; this one stands by.
                session.legs.insert(0, Leg { pair, live: false });
            } else {
                session.gateway = Some(gateway);
                session.legs.push(Leg { pair, live: false });
            }
            (session.legs.len() > LEGS_MAX).then(|| session.legs.remove(0))
        });
        if let Some(surplus) = surplus {
            self.cut(now, surplus.pair);
        }
        pair
    }

    /// Both legs of `pair` shall have what the agent asks for the resource.
    fn tune(&mut self, agent: LinkId, grant: &Grant, pair: PairId) {
        let service = self.agents.get(agent).and_then(|agent| agent.service(&grant.resource));
        if let Some(tuning) = service.and_then(|service| service.tuning.clone()) {
            self.out.push(Output::Tune { pair, tuning });
        }
    }

    fn tell_offer(
        &mut self,
        agent: LinkId,
        grant: &Grant,
        pair: PairId,
        how: How,
        (udp, instead): (Option<Vec<Candidate>>, bool),
    ) {
        let service = self.agents.get(agent).and_then(|agent| agent.service(&grant.resource));
        let transport = service.map(|service| service.transport).unwrap_or_default();
        let transport = super::rights::narrowed(transport, &grant.rights);
        let client_address = service.filter(|service| service.told_client).and_then(|_| {
            let client = self.sessions.get(&grant.session)?.client?;
            self.clients.get(&client)?.address
        });
        let ready = self.sessions.get(&grant.session).is_some_and(|session| session.ready);
        let grant = Box::new(grant.clone());
        self.out.push(Output::Offer {
            link: agent,
            grant,
            pair,
            how,
            client_address,
            transport,
            udp,
            ready,
            instead,
        });
    }

    pub(super) fn warm(&mut self, now: Instant, link: LinkId, mut pairs: Vec<PairId>) {
        let gateway = self.choose_gateway(None, link, None);
        let Some(agent) = self.agents.get_mut(link) else { return };
        pairs.truncate(agent.warm_room());
        if pairs.is_empty() {
            let fault = Code::LegLimit.because("this agent holds as many warm legs as it may");
            self.out.push(Output::RefuseAgent { link, fault });
            return;
        }
        for &pair in &pairs {
            agent.warm_asked(pair);
            let purpose = Purpose::Warm { agent: link, waiting: false };
            self.pairs.insert(pair, Pair { purpose, since: now, gateway: gateway.clone() });
        }
        self.out.push(Output::WarmTickets { link, pairs });
    }

    pub(super) fn leg_waiting(&mut self, pair: PairId, side: LegSide) {
        let Some(known) = self.pairs.get_mut(&pair) else { return };
        match (&mut known.purpose, side) {
            (Purpose::Warm { agent, waiting }, LegSide::Agent) => {
                *waiting = true;
                if let Some(agent) = self.agents.get_mut(*agent) {
                    agent.warm_arrived(pair);
                }
            }
            // Nobody comes to meet it.
            (Purpose::Draining { .. }, _) => self.out.push(Output::EndPair { pair }),
            (Purpose::Warm { .. } | Purpose::Leg { .. }, _) => {}
        }
    }

    pub(super) fn leg_gone(&mut self, now: Instant, pair: PairId, side: LegSide) {
        let Some(known) = self.pairs.get_mut(&pair) else { return };
        match &mut known.purpose {
            Purpose::Warm { agent, .. } => {
                if let Some(agent) = self.agents.get_mut(*agent) {
                    agent.warm_gone(pair);
                }
                self.pairs.remove(&pair);
            }
            Purpose::Leg { session, warm, live: false } => {
                // A warm leg left just as it was to be used: the agent can still dial in time for the client's.
                if *warm && side == LegSide::Agent {
                    *warm = false;
                    known.since = now;
                    let session = session.clone();
                    self.dial_instead(now, &session, pair);
                } else {
                    self.forget_leg(now, pair);
                }
            }
            Purpose::Leg { .. } | Purpose::Draining { .. } => {}
        }
    }

    /// Has the agent dial for `pair`, over whichever link it has now. Without one the pair ends at once, so that the
    /// client asks anew rather than waits for nobody.
    fn dial_instead(&mut self, now: Instant, session: &SessionId, pair: PairId) {
        let Some(session) = self.sessions.get_mut(session) else { return };
        let agent = self.agents.by_name(&session.grant.agent);
        match agent.filter(|(_, agent)| agent.key == session.grant.agent_key) {
            Some((link, _)) => {
                let grant = session.grant.clone();
                // What it was told of UDP with the first offer still holds.
                self.tell_offer(link, &grant, pair, How::Dial, (None, false));
            }
            None => {
                session.leg_ended(pair, now);
                self.cut(now, pair);
            }
        }
    }

    pub(super) fn pair_started(&mut self, now: Instant, pair: PairId) {
        let Some(known) = self.pairs.get_mut(&pair) else { return };
        match &mut known.purpose {
            Purpose::Leg { session, live, .. } => {
                // A gateway whose link was down says it again.
                if !std::mem::replace(live, true) {
                    known.since = now;
                }
                if let Some(session) = self.sessions.get_mut(session) {
                    session.leg_started(pair, now);
                    if session.legs.last().is_some_and(|newest| newest.pair == pair) {
                        session.gateway = Some(known.gateway.clone());
                    }
                }
            }
            // The session ended while its legs met.
            Purpose::Draining { .. } => self.out.push(Output::EndPair { pair }),
            // No client ever had a ticket for it.
            Purpose::Warm { .. } => {}
        }
    }

    /// The pair that carries a session and its gateway, as far as is known here: the newest where it was last sent to, unless
    /// that gateway is gone and another leg stood by.
    pub(super) fn carried_by(&self, session: &Session) -> (Option<PairId>, Option<GatewayId>) {
        let at = |pair: &PairId| self.pairs.get(pair).map(|pair| &pair.gateway);
        let is_up = |pair: &PairId| at(pair).is_some_and(|gateway| self.gateways.is_up(gateway));
        let live = || session.legs.iter().rev().filter(|leg| leg.live).map(|leg| leg.pair);
        let own = live().find(|pair| at(pair) == session.gateway.as_ref());
        let carrier = own.filter(is_up).or_else(|| live().find(is_up));
        let carrier = carrier.or(own).or_else(|| live().next());
        let gateway = carrier.as_ref().and_then(at).or(session.gateway.as_ref());
        (carrier, gateway.cloned())
    }

    pub(super) fn pair_ended(&mut self, now: Instant, pair: PairId) {
        self.forget_leg(now, pair);
    }

    /// The pair, or the leg that waits for it, is no more, and the gateway cannot say so.
    pub(super) fn lose(&mut self, now: Instant, pair: PairId) {
        if let Some(Pair { purpose: Purpose::Warm { agent, .. }, .. }) = self.pairs.get(&pair)
            && let Some(agent) = self.agents.get_mut(*agent)
        {
            agent.warm_gone(pair);
        }
        self.forget_leg(now, pair);
    }

    fn forget_leg(&mut self, now: Instant, pair: PairId) {
        let Some(known) = self.pairs.remove(&pair) else { return };
        match known.purpose {
            Purpose::Leg { session, .. } => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.leg_ended(pair, now);
                }
            }
            Purpose::Draining { session, .. } => self.sessions.closed_leg(&session),
            Purpose::Warm { .. } => {}
        }
    }

    /// Ends a pair or its waiting legs now. It stays known until the gateway says how it ended, or, if it never
    /// started, for as long as a late leg might still start it.
    fn cut(&mut self, now: Instant, pair: PairId) {
        self.out.push(Output::EndPair { pair });
        self.drain(now, pair);
    }

    fn drain(&mut self, now: Instant, pair: PairId) {
        if let Some(known) = self.pairs.get_mut(&pair)
            && let Purpose::Leg { session, live, .. } = &known.purpose
        {
            let purpose = Purpose::Draining { session: session.clone(), started: *live };
            known.purpose = purpose;
            known.since = now;
        }
    }

    /// Forgets a session and cuts its legs.
    pub(super) fn cut_session(&mut self, now: Instant, id: &SessionId, code: Code) {
        let Some(session) = self.sessions.remove(id) else { return };
        session.legs.iter().for_each(|leg| self.cut(now, leg.pair));
        self.bury(now, &session, code);
    }

    /// Forgets a session whose ends said goodbye; its live legs may deliver what is under way.
    pub(super) fn drain_session(&mut self, now: Instant, id: &SessionId, code: Code) {
        let Some(session) = self.sessions.remove(id) else { return };
        self.sessions.note_closing(&session, now);
        for leg in &session.legs {
            if leg.live {
                self.drain(now, leg.pair);
            } else {
                self.cut(now, leg.pair);
            }
        }
        self.bury(now, &session, code);
    }

    fn bury(&mut self, now: Instant, session: &Session, code: Code) {
        self.sessions.bury(session.grant.session.clone(), code, now);
        self.out.push(Output::EndRelay { session: session.grant.session.clone() });
        self.say_over(now, session, code);
    }

    /// One that never began was never heard of either.
    fn say_over(&mut self, now: Instant, session: &Session, code: Code) {
        let grant = &session.grant;
        if grant.purpose.is_default() && !session.ready {
            self.last_agents.remember(now, &grant.user, &grant.resource, &grant.agent);
        }
        if !session.ready {
            self.life_over(now, session, code);
            let grant = Box::new(session.grant.clone());
            let session = grant.session.clone();
            self.out.push(Output::SessionOver { session, grant, code });
        }
    }

    pub(super) fn tick(&mut self, now: Instant) {
        self.sessions.forget_old_tombstones(now);
        self.expire_pairs(now);
        self.tend_gateways(now);
        self.tell_networks(now);
        self.renew_relays(now);
        // No tombstone: an end that comes back after all may still show its grant. Nor is its relay taken away: it may be all
        // that carries the session.
        for id in self.sessions.ids_where(|session| session.is_lost(now)) {
            let Some(session) = self.sessions.remove(&id) else { continue };
            session.legs.iter().for_each(|leg| self.cut(now, leg.pair));
            self.say_over(now, &session, Code::SessionLost);
        }
        self.shadow_tick(now);
        self.end_old_ready(now);
    }

    fn expire_pairs(&mut self, now: Instant) {
        let is_due = |pair: &Pair| {
            let limit = match pair.purpose {
                Purpose::Warm { waiting: true, .. } | Purpose::Leg { live: true, .. } => {
                    return false;
                }
                Purpose::Draining { started: true, .. } => DRAIN_MAX,
                // As long as its tickets may still bring legs.
                Purpose::Warm { .. } | Purpose::Leg { .. } | Purpose::Draining { .. } => {
                    PENDING_MAX
                }
            };
            now.saturating_duration_since(pair.since) >= limit
        };
        let due = self.pairs.iter().filter(|(_, pair)| is_due(pair));
        let due: Vec<PairId> = due.map(|(pair, _)| *pair).collect();
        for pair in due {
            self.lose(now, pair);
            self.out.push(Output::EndPair { pair });
        }
    }
}
