//! The shell around the orchestrator: feeds it what happens, does what it says, in order.
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;
use switchback_engine::{GatewayEvent, LegSide, PairId, RelayCredentials};
use tokio::sync::{mpsc, watch};

use crate::broker::audit::Audit;
use crate::broker::bus::Bus;
use crate::broker::clock;
use crate::broker::counters::Counters;
use crate::broker::events;
use crate::broker::gateway::DataPlane;
use crate::broker::gateways::{Ending, Member, Members, Meter};
use crate::broker::limits::LINK_QUEUE_MAX;
use crate::broker::orchestrator::{
    AgentSnapshot, Explained, How, Input, LinkId, Notice, Orchestrator, Output, SessionLimits,
    Snapshot,
};
use crate::broker::seal::{Grant, SealKey};
use crate::broker::tuning::Tunings;
use crate::broker::udp::UdpKeys;
use crate::code::{Code, Fault};
use crate::ticket::{TICKET_TTL, Ticket, TicketKey};
use crate::wire::{
    AboutSession, AgentLeg, Candidate, ClientAddress, LegTicket, ResourceKind, SessionId,
    SessionOffer, ToAgent, ToClient, ToGateway, TransportPolicy, UdpAccess,
};

/// What an agent is told with an offer: its client's address, what may carry the session, the client's candidates,
/// whether the session is only held ready, and whether the leg replaces others.
type Told = (Option<ClientAddress>, TransportPolicy, Option<Vec<Candidate>>, bool, bool);

/// Something for a link to do.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// Send this message.
    Text(String),
    /// Close, after everything before was sent.
    Close,
}

/// A session, and the meter of the pair that carries it, if one does.
pub(crate) type Metered = (Snapshot, Option<Meter>);

/// Counts of what is connected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connected {
    pub(crate) agents: usize,
    pub(crate) clients: usize,
    pub(crate) warm_legs: usize,
}

/// The orchestrator with its keys, links and gateway.
pub(crate) struct Hub {
    core: Mutex<Core>,
    seal: SealKey,
    pub(super) udp: UdpKeys,
    tickets: Arc<TicketKey>,
    pub(crate) tunings: Arc<Tunings>,
    pub(crate) data_plane: DataPlane,
    pub(crate) counters: Arc<Counters>,
    pub(crate) audit: Arc<Audit>,
    pub(crate) bus: Arc<Bus>,
    /// Grows whenever someone loses a right, see [`Hub::apply_if`].
    rights: AtomicU64,
    next_link: AtomicU64,
    feeds: watch::Sender<u64>,
}

pub(super) struct Core {
    pub(super) orchestrator: Orchestrator,
    links: HashMap<LinkId, mpsc::Sender<Outgoing>>,
    /// Of live pairs that belong to sessions.
    pub(super) meters: HashMap<PairId, Meter>,
    /// Gateways on other machines.
    pub(super) members: Members,
    pub(super) ending: Ending,
}

impl Hub {
    pub(crate) fn new(
        limits: SessionLimits,
        seal: SealKey,
        udp: UdpKeys,
        tickets: Arc<TicketKey>,
        tunings: Arc<Tunings>,
        (counters, audit): (Arc<Counters>, Arc<Audit>),
    ) -> Self {
        let orchestrator = Orchestrator::new(limits);
        let (links, meters, members) = (HashMap::new(), HashMap::new(), Members::default());
        let core = Core { orchestrator, links, meters, members, ending: Ending::default() };
        Self {
            core: Mutex::new(core),
            seal,
            udp,
            tickets,
            tunings,
            data_plane: DataPlane::default(),
            counters,
            audit,
            bus: Arc::default(),
            rights: AtomicU64::new(0),
            next_link: AtomicU64::new(1),
            feeds: watch::Sender::new(0),
        }
    }

    /// Tells the orchestrator and does what it says.
    pub(crate) fn apply(&self, input: Input) {
        self.apply_locked(&mut self.core(), input);
    }

    /// Like [`Hub::apply`], unless someone lost a right since `rights` was read: then what `input` was decided on may be
    /// void, nothing is done, and `false` comes back.
    pub(crate) fn apply_if(&self, rights: u64, input: Input) -> bool {
        let mut core = self.core();
        let unchanged = self.rights.load(Ordering::Relaxed) == rights;
        if unchanged {
            self.apply_locked(&mut core, input);
        }
        unchanged
    }

    pub(crate) fn rights(&self) -> u64 {
        self.rights.load(Ordering::Relaxed)
    }

    /// Applies a loss of rights that the database already knows of.
    pub(crate) fn withdraw(&self, input: Input) {
        let mut core = self.core();
        self.rights.fetch_add(1, Ordering::Relaxed);
        if let Input::TokenRevoked { token } = &input {
            for (gateway, link) in core.members.with_token(token) {
                self.refuse_gateway_locked(&mut core, link, Code::TokenRevoked.into());
                // It may not obey: no ticket is made for it from now on, and what it carries moves.
                core.members.remove(&gateway, link);
                let drains = Input::GatewayDrains { gateway: gateway.clone(), drain: true };
                self.apply_locked(&mut core, drains);
                self.apply_locked(&mut core, Input::GatewayDown { gateway });
            }
        }
        self.apply_locked(&mut core, input);
    }

    /// A token is good no more.
    pub(crate) fn token_revoked(&self, token: String) {
        self.bus.publish(events::token_revoked(&token));
        self.withdraw(Input::TokenRevoked { token });
    }

    /// Someone may have lost a right: what was decided and is not done yet is void.
    pub(crate) fn rights_changed(&self) {
        self.withdraw(Input::RightsChanged);
    }

    /// Grants of live sessions, and where their clients are.
    pub(crate) fn live(&self, choose: impl Fn(&Grant) -> bool) -> Vec<(Grant, Option<IpAddr>)> {
        self.core().orchestrator.live(choose)
    }

    /// Where the client of a session is, as far as it has a link.
    pub(crate) fn whereabouts(&self, session: &SessionId) -> Option<IpAddr> {
        self.core().orchestrator.whereabouts(session)
    }

    pub(super) fn apply_locked(&self, core: &mut Core, input: Input) {
        if input.may_change_feeds() {
            self.feeds_changed();
        }
        let ticks = matches!(input, Input::Tick);
        let told = events::of_input(&core.orchestrator, &input);
        told.into_iter().for_each(|event| self.bus.publish(event));
        for output in core.orchestrator.handle(Instant::now(), input) {
            let told = events::of_output(&core.orchestrator, &output);
            told.into_iter().for_each(|event| self.bus.publish(event));
            self.execute(core, output);
        }
        self.tell_ending(core);
        if ticks {
            core.forget_meters();
        }
    }

    /// A name and an outgoing queue for a new link.
    pub(crate) fn attach(&self) -> (LinkId, mpsc::Receiver<Outgoing>) {
        let link = LinkId(self.next_link.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = mpsc::channel(LINK_QUEUE_MAX);
        self.core().links.insert(link, sender);
        (link, receiver)
    }

    /// The link is gone; `down` says what kind it was.
    pub(crate) fn detach(&self, link: LinkId, down: Input) {
        let mut core = self.core();
        core.links.remove(&link);
        self.apply_locked(&mut core, down);
    }

    pub(crate) fn refuse_agent(&self, link: LinkId, fault: Fault, close: bool) {
        let mut core = self.core();
        self.execute(&mut core, Output::RefuseAgent { link, fault });
        if close {
            self.execute(&mut core, Output::Close { link });
        }
    }

    pub(crate) fn refuse_client(&self, link: LinkId, request: u64, fault: Fault, close: bool) {
        let mut core = self.core();
        self.execute(&mut core, Output::RefuseClient { link, request, fault });
        if close {
            self.execute(&mut core, Output::Close { link });
        }
    }

    /// Tells an end that a session it shows is over.
    pub(crate) fn end_at(&self, output: Output) {
        self.execute(&mut self.core(), output);
    }

    pub(crate) fn open_grant(&self, sealed: &crate::wire::SealedGrant) -> Option<Grant> {
        self.seal.open(sealed)
    }

    /// Admission of one leg to the gateway that its pair meets at.
    fn ticket_at(&self, core: &Core, pair: PairId, side: LegSide, warm: bool) -> LegTicket {
        match core.member_of(pair) {
            Some(member) => member.ticket(pair, side, warm),
            None => self.ticket(pair, side, warm),
        }
    }

    /// Admission of one leg to the gateway of this process, from now on for [`TICKET_TTL`].
    pub(crate) fn ticket(&self, pair: PairId, side: LegSide, warm: bool) -> LegTicket {
        let expiry = clock::steady_seconds() + TICKET_TTL.as_secs();
        let expiry = u32::try_from(expiry).unwrap_or(u32::MAX);
        let server_name = self.tickets.mint(&Ticket::new(pair, side, warm, expiry));
        LegTicket { pair: pair.to_string(), server_name, gateway: None }
    }

    /// Takes in what the gateway tells.
    pub(crate) fn gateway_event(&self, event: GatewayEvent) {
        let mut core = self.core();
        let input = match event {
            GatewayEvent::LegWaiting { pair, side } => Input::LegWaiting { pair, side },
            GatewayEvent::LegGone { pair, side, refusal } => {
                if let Some(session) = core.orchestrator.session_of(pair) {
                    let reason = refusal.map_or("hung up", switchback_engine::Refusal::as_str);
                    tracing::info!(%session, %pair, side = side.as_str(), reason, "leg gone");
                }
                Input::LegGone { pair, side }
            }
            GatewayEvent::PairStarted { pair, client, agent, meter } => {
                if let Some(session) = core.orchestrator.session_of(pair) {
                    tracing::info!(%session, %pair, %client, %agent, "pair started");
                    core.meters.insert(pair, Meter::Local(meter));
                }
                Input::PairStarted { pair }
            }
            GatewayEvent::PairEnded { pair, outcome } => {
                core.meters.remove(&pair);
                let session = core.orchestrator.session_of(pair);
                log_outcome(session.as_ref(), pair, &outcome);
                Input::PairEnded { pair }
            }
            _ => return,
        };
        self.apply_locked(&mut core, input);
    }

    /// Has an end make itself a new key, if it is connected.
    pub(crate) fn order_rotation(&self, enrolment: &str) {
        let mut core = self.core();
        for link in core.orchestrator.agents_with(enrolment) {
            self.send(&mut core, link, &ToAgent::Rotate);
        }
        for (_, link) in core.members.with_token(enrolment) {
            self.send(&mut core, link, &ToGateway::Rotate);
        }
    }

    /// Enrolments of the agents and gateways that are connected.
    pub(crate) fn enrolments(&self) -> Vec<String> {
        let core = self.core();
        let agents = core.orchestrator.agent_enrolments();
        agents.chain(core.members.tokens()).map(str::to_owned).collect()
    }

    // --- what the API asks ---

    /// Sessions with the meters of the pairs that carry them; of one user, or all. Whoever wants the figures reads the meters
    /// after this lock, which the relay workers need, is free again.
    pub(crate) fn sessions(&self, user: Option<&str>) -> Vec<Metered> {
        let core = self.core();
        let sessions = core.orchestrator.sessions(user, Instant::now());
        let metered = sessions.into_iter().map(|session| core.metered(session));
        metered.collect()
    }

    pub(crate) fn session(&self, id: &SessionId) -> Option<Metered> {
        let core = self.core();
        let session = core.orchestrator.session(id, Instant::now())?;
        Some(core.metered(session))
    }

    /// Whom the gateway relays for.
    pub(crate) fn relay_credentials(&self) -> Arc<dyn RelayCredentials> {
        self.udp.believer()
    }

    /// What both ends of a session said last when asked, and whether each can be asked.
    pub(crate) fn explained(&self, id: &SessionId) -> Option<(Explained, [bool; 2])> {
        self.core().orchestrator.explained(id)
    }

    /// What may carry sessions of `resource` at `agent`, if it is connected.
    pub(crate) fn transport(&self, agent: &str, resource: &str) -> Option<TransportPolicy> {
        self.core().orchestrator.transport(agent, resource)
    }

    /// How the agent of this name is, if it is connected.
    pub(crate) fn agent_state(&self, name: &str) -> Option<AgentSnapshot> {
        self.core().orchestrator.agent_state(name, Instant::now())
    }

    /// Changes whenever what anybody's feed shows may have changed.
    pub(crate) fn feeds(&self) -> watch::Receiver<u64> {
        self.feeds.subscribe()
    }

    /// How many wait for that.
    pub(crate) fn followers(&self) -> usize {
        self.feeds.receiver_count()
    }

    /// What feeds show may have changed.
    pub(crate) fn feeds_changed(&self) {
        self.feeds.send_modify(|generation| *generation += 1);
    }

    /// What may carry a session, its policies considered; `None` while its agent is not connected.
    pub(crate) fn transport_of(&self, session: &SessionId) -> Option<TransportPolicy> {
        self.core().orchestrator.transport_now(session)
    }

    /// Where the agent of `resource` listens on its managed port, as far as the resource's sessions may know.
    pub(crate) fn managed(&self, agent: &str, resource: &str) -> Vec<SocketAddr> {
        self.core().orchestrator.managed(agent, resource)
    }

    /// See [`Orchestrator::shadow_target`].
    pub(crate) fn shadow_target(&self, id: &SessionId) -> Option<bool> {
        self.core().orchestrator.shadow_target(id)
    }

    /// Names of the agents connected now.
    pub(crate) fn agents(&self) -> Vec<String> {
        self.core().orchestrator.agents().map(str::to_owned).collect()
    }

    pub(crate) fn is_registered(&self, link: LinkId) -> bool {
        self.core().orchestrator.is_registered(link)
    }

    pub(crate) fn connected(&self) -> Connected {
        let (agents, clients, warm_legs) = self.core().orchestrator.links();
        Connected { agents, clients, warm_legs }
    }

    // --- doing what the orchestrator says ---

    fn execute(&self, core: &mut Core, output: Output) {
        match output {
            Output::Registered { link } => self.send(core, link, &ToAgent::Registered),
            Output::WarmTickets { link, pairs } => {
                let ticket = |pair| self.ticket_at(core, pair, LegSide::Agent, true);
                let tickets = pairs.into_iter().map(ticket).collect();
                self.send(core, link, &ToAgent::WarmTickets { tickets });
            }
            Output::Offer {
                link,
                grant,
                pair,
                how,
                client_address,
                transport,
                udp,
                ready,
                instead,
            } => {
                let told = (client_address, transport, udp, ready, instead);
                let message = self.offer(core, &grant, pair, how, told);
                self.expect(core, pair, &grant.session);
                self.send(core, link, &message);
            }
            Output::Tune { pair, tuning } => self.tune(core, pair, tuning),
            Output::Granted { link, request, grant, pair, transport, udp, kind } => {
                let message = self.granted(core, request, &grant, pair, (transport, udp), kind);
                self.send(core, link, &message);
            }
            Output::ClientLeg { link, request, grant, pair, udp } => {
                let ticket = self.ticket_at(core, pair, LegSide::Client, false);
                let udp = self.udp_access(core, &grant, LegSide::Client, udp);
                self.send(core, link, &ToClient::Leg { request, ticket, udp });
            }
            Output::Tell { link, end, session, notice } => {
                self.tell(core, link, end, session, notice);
            }
            Output::Moved { moved, first_direct, told, .. } => {
                self.counters.moves.add(&moved, first_direct);
                self.counters.events_left_out.add_many(u64::from(!told));
            }
            Output::Lossy { by_client, counted } => self.counters.losses.add(by_client, &counted),
            Output::Ignored { code } => self.counters.faults.add(code),
            Output::RefuseClient { link, request, fault } => {
                self.counters.fault(&fault);
                let Fault { code, detail: message } = fault;
                self.send(core, link, &ToClient::Refused { request, code, message });
            }
            Output::RefuseAgent { link, fault } => {
                self.counters.fault(&fault);
                let Fault { code, detail: message } = fault;
                self.send(core, link, &ToAgent::Refused { code, message });
            }
            Output::BegunAtAgent { link, session } => {
                self.send(core, link, &ToAgent::Begun { session });
            }
            Output::EndAtAgent { link, session, code } => {
                self.send(core, link, &ToAgent::End { session, code });
            }
            Output::EndAtClient { link, session, code } => {
                self.send(core, link, &ToClient::End { session, code });
            }
            Output::Close { link } => self.queue(core, link, Outgoing::Close),
            Output::EndPair { pair } => self.end_pair(core, pair),
            Output::EndPairAt { gateway, pair } => self.end_pair_at(core, &gateway, pair),
            Output::Relocate { link, session } => {
                self.send(core, link, &ToClient::Relocate { session });
            }
            Output::GatewaysAtClient { link, gateways } => {
                self.send(core, link, &ToClient::Gateways { gateways });
            }
            Output::GatewaysAtAgent { link, gateways } => {
                self.send(core, link, &ToAgent::Gateways { gateways });
            }
            Output::EndRelay { session } => self.end_relay(core, &session),
            Output::Notify { link, notice } => self.send(core, link, &ToClient::Notice(notice)),
            Output::Audit(event) => self.audit.tell(event.record()),
            Output::Began { grant } => {
                self.counters.sessions_granted.add();
                let Grant { session, user, resource, agent, .. } = *grant;
                tracing::info!(%session, user, resource, agent, "session granted");
            }
            Output::SessionOver { session, code, .. } => {
                self.counters.sessions_over.add(code);
                tracing::info!(%session, %code, "session over");
            }
        }
    }

    fn offer(
        &self,
        core: &Core,
        grant: &Grant,
        pair: PairId,
        how: How,
        (client_address, transport, udp, ready, instead): Told,
    ) -> ToAgent {
        let session = Box::new(SessionOffer {
            id: grant.session.clone(),
            user: grant.user.clone(),
            resource: grant.resource.clone(),
            client_key: grant.client_key.clone(),
            grant: self.seal.seal(grant, clock::random()),
            client_address,
            transport,
            udp: self.udp_access(core, grant, LegSide::Agent, udp),
            purpose: grant.purpose.clone(),
            ready,
            instead,
            rate_bits: grant.rights.obligations.rate_bits,
        });
        let leg = match how {
            How::Dial => {
                AgentLeg::Dial { ticket: self.ticket_at(core, pair, LegSide::Agent, false) }
            }
            How::Warm => AgentLeg::Warm { pair: pair.to_string() },
        };
        ToAgent::Offer { session, leg }
    }

    /// What an end needs to look for the other, which is at `candidates`.
    fn udp_access(
        &self,
        core: &Core,
        grant: &Grant,
        side: LegSide,
        candidates: Option<Vec<Candidate>>,
    ) -> Option<Box<UdpAccess>> {
        let (Grant { session, user, .. }, now) = (grant, clock::unix_seconds());
        let candidates = candidates?;
        let mut access = self.udp.access(session, user, side, candidates, now);
        access.relay = self.relay(core, session, user, side);
        Some(Box::new(access))
    }

    fn tell(
        &self,
        core: &mut Core,
        link: LinkId,
        end: LegSide,
        session: SessionId,
        notice: Notice,
    ) {
        let about = match notice {
            Notice::Candidates(candidates) => AboutSession::Candidates { session, candidates },
            Notice::Explain => AboutSession::Explain { session },
            Notice::Hold(held) => AboutSession::Hold { session, held },
            Notice::Policy { transport, rate_bits } => {
                AboutSession::Policy { session, transport, rate_bits }
            }
            Notice::Relay { user } => match self.relay(core, &session, &user, end) {
                Some(relay) => AboutSession::Relay { session, relay },
                None => return,
            },
        };
        match end {
            LegSide::Client => self.send(core, link, &ToClient::About(about)),
            LegSide::Agent => self.send(core, link, &ToAgent::About(about)),
        }
    }

    fn granted(
        &self,
        core: &Core,
        request: u64,
        grant: &Grant,
        pair: PairId,
        (transport, udp): (TransportPolicy, Option<Vec<Candidate>>),
        kind: ResourceKind,
    ) -> ToClient {
        ToClient::Granted {
            request,
            session: grant.session.clone(),
            agent: grant.agent.clone(),
            agent_key: grant.agent_key.clone(),
            grant: self.seal.seal(grant, clock::random()),
            ticket: self.ticket_at(core, pair, LegSide::Client, false),
            transport,
            udp: self.udp_access(core, grant, LegSide::Client, udp),
            kind,
            shadow_target: grant.purpose.shadow().is_some_and(|shadow| shadow.target),
        }
    }

    pub(super) fn send(&self, core: &mut Core, link: LinkId, message: &impl Serialize) {
        match serde_json::to_string(message) {
            Ok(text) => self.queue(core, link, Outgoing::Text(text)),
            Err(error) => tracing::error!(%error, "a message could not be written"),
        }
    }

    /// A link that does not drain its queue loses it, and so ends.
    pub(super) fn queue(&self, core: &mut Core, link: LinkId, outgoing: Outgoing) {
        let Some(sender) = core.links.get(&link) else { return };
        if let Err(mpsc::error::TrySendError::Full(_)) = sender.try_send(outgoing) {
            self.counters.links_overrun.add();
            tracing::warn!(link = link.0, "link does not drain, closing it");
            core.links.remove(&link);
        }
    }

    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// The gateway on another machine that a pair meets at, while it has a link.
    pub(super) fn member_of(&self, pair: PairId) -> Option<&Member> {
        self.members.get(self.orchestrator.gateway_of(pair)?)
    }

    pub(super) fn forget_link(&mut self, link: LinkId) {
        self.links.remove(&link);
    }

    /// Those of pairs that are known no more: not every end of a pair is told.
    fn forget_meters(&mut self) {
        let orchestrator = &self.orchestrator;
        self.meters.retain(|pair, _| orchestrator.gateway_of(*pair).is_some());
    }

    fn metered(&self, session: Snapshot) -> Metered {
        let meter = session.pair.and_then(|pair| self.meters.get(&pair)).cloned();
        (session, meter)
    }
}

fn log_outcome(session: Option<&SessionId>, pair: PairId, outcome: &switchback_engine::Outcome) {
    let session = session.map_or("-", |session| session.0.as_str());
    tracing::info!(
        session,
        %pair,
        cause = outcome.cause.as_str(),
        phase = outcome.phase.as_str(),
        client_to_agent = outcome.client_to_agent,
        agent_to_client = outcome.agent_to_client,
        duration_ms = clock::millis(outcome.duration),
        "pair ended"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::orchestrator::{GatewayId, GatewayUp};
    use crate::wire::PairView;

    #[test]
    fn meters_go_with_their_pairs_however_those_went() {
        let orchestrator = Orchestrator::new(SessionLimits::default());
        let (links, meters, members) = (HashMap::new(), HashMap::new(), Members::default());
        let ending = Ending::default();
        let mut core = Core { orchestrator, links, meters, members, ending };
        let (name, now): (GatewayId, _) = ("a".into(), Instant::now());
        let up = GatewayUp {
            name: name.clone(),
            address: "a.example:443".into(),
            region: None,
            version: "1".into(),
            capacity: 8,
            draining: false,
        };
        core.orchestrator.handle(now, Input::GatewayUp { up });
        let (known, other) = (PairId([1; 16]), PairId([2; 16]));
        let holds = |held| Input::GatewayHolds { gateway: name.clone(), held, last: true };
        let held = vec![(known, Some(SessionId("s".into())), true)];
        core.orchestrator.handle(now, holds(held));
        for pair in [known, other] {
            core.meters.insert(pair, Meter::Linked(Arc::new(PairView::default())));
        }
        core.forget_meters();
        assert_eq!(core.meters.keys().collect::<Vec<_>>(), [&known]);
        core.orchestrator.handle(now, holds(vec![]));
        core.forget_meters();
        assert!(core.meters.is_empty(), "the gateway no longer holds it");
    }
}
