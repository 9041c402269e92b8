//! The shell around the orchestrator: feeds it what happens, does what it says, in order.
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;
use switchback_engine::{GatewayEvent, LegSide, PairId, PairMeter, RelayCredentials};
use tokio::sync::mpsc;

use crate::broker::clock;
use crate::broker::counters::Counters;
use crate::broker::gateway::DataPlane;
use crate::broker::limits::LINK_QUEUE_MAX;
use crate::broker::orchestrator::{
    Explained, How, Input, LinkId, Notice, Orchestrator, Output, SessionLimits, Snapshot,
};
use crate::broker::seal::{Grant, SealKey};
use crate::broker::tuning::Tunings;
use crate::broker::udp::{UdpKeys, relay_users};
use crate::code::Fault;
use crate::ticket::{TICKET_TTL, Ticket, TicketKey};
use crate::wire::{
    AboutSession, AgentLeg, Candidate, ClientAddress, LegTicket, ResourceKind, SessionId,
    SessionOffer, ToAgent, ToClient, TransportPolicy, UdpAccess,
};

/// What an agent is told with an offer: its client's address, what may carry the session, the client's candidates, and
/// whether the session is only held ready.
type Told = (Option<ClientAddress>, TransportPolicy, Option<Vec<Candidate>>, bool);

/// Something for a link to do.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// Send this message.
    Text(String),
    /// Close, after everything before was sent.
    Close,
}

/// A session, and the meter of the pair that carries it, if one does.
pub(crate) type Metered = (Snapshot, Option<Arc<PairMeter>>);

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
    udp: UdpKeys,
    tickets: Arc<TicketKey>,
    pub(crate) tunings: Arc<Tunings>,
    pub(crate) data_plane: DataPlane,
    pub(crate) counters: Arc<Counters>,
    /// Grows whenever someone loses a right, see [`Hub::apply_if`].
    rights: AtomicU64,
    next_link: AtomicU64,
}

struct Core {
    orchestrator: Orchestrator,
    links: HashMap<LinkId, mpsc::Sender<Outgoing>>,
    /// Of live pairs that belong to sessions.
    meters: HashMap<PairId, Arc<PairMeter>>,
}

impl Hub {
    pub(crate) fn new(
        limits: SessionLimits,
        seal: SealKey,
        udp: UdpKeys,
        tickets: Arc<TicketKey>,
        tunings: Arc<Tunings>,
        counters: Arc<Counters>,
    ) -> Self {
        let orchestrator = Orchestrator::new(limits);
        let core = Core { orchestrator, links: HashMap::new(), meters: HashMap::new() };
        Self {
            core: Mutex::new(core),
            seal,
            udp,
            tickets,
            tunings,
            data_plane: DataPlane::default(),
            counters,
            rights: AtomicU64::new(0),
            next_link: AtomicU64::new(1),
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
        self.apply_locked(&mut core, input);
    }

    fn apply_locked(&self, core: &mut Core, input: Input) {
        for output in core.orchestrator.handle(Instant::now(), input) {
            self.execute(core, output);
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

    /// Admission of one leg, from now on for [`TICKET_TTL`].
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
                    core.meters.insert(pair, meter);
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

    /// Where the agent of `resource` listens on its managed port, as far as the resource's sessions may know.
    pub(crate) fn managed(&self, agent: &str, resource: &str) -> Vec<SocketAddr> {
        self.core().orchestrator.managed(agent, resource)
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
                let tickets = pairs.into_iter().map(|pair| self.ticket(pair, LegSide::Agent, true));
                let tickets = tickets.collect();
                self.send(core, link, &ToAgent::WarmTickets { tickets });
            }
            Output::Offer { link, grant, pair, how, client_address, transport, udp, ready } => {
                let told = (client_address, transport, udp, ready);
                let message = self.offer(&grant, pair, how, told);
                self.send(core, link, &message);
            }
            Output::Tune { pair, tuning } => {
                self.tunings.expect(pair, tuning, clock::steady_seconds())
            }
            Output::Granted { link, request, grant, pair, transport, udp, kind } => {
                let message = self.granted(request, &grant, pair, (transport, udp), kind);
                self.send(core, link, &message);
            }
            Output::ClientLeg { link, request, grant, pair, udp } => {
                let ticket = self.ticket(pair, LegSide::Client, false);
                let udp = self.udp_access(&grant, LegSide::Client, udp);
                self.send(core, link, &ToClient::Leg { request, ticket, udp });
            }
            Output::Tell { link, end, session, notice } => {
                self.tell(core, link, end, session, notice);
            }
            Output::Moved { moved, first_direct } => self.counters.moves.add(&moved, first_direct),
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
            Output::EndPair { pair } => self.data_plane.end_pair(pair),
            Output::EndRelay { session } => self.data_plane.end_relay(&relay_users(&session)),
            Output::Began { grant } => {
                self.counters.sessions_granted.add();
                let Grant { session, user, resource, agent, .. } = *grant;
                tracing::info!(%session, user, resource, agent, "session granted");
            }
            Output::SessionOver { session, code } => {
                self.counters.sessions_over.add(code);
                tracing::info!(%session, %code, "session over");
            }
        }
    }

    fn offer(
        &self,
        grant: &Grant,
        pair: PairId,
        how: How,
        (client_address, transport, udp, ready): Told,
    ) -> ToAgent {
        let session = Box::new(SessionOffer {
            id: grant.session.clone(),
            user: grant.user.clone(),
            resource: grant.resource.clone(),
            client_key: grant.client_key.clone(),
            grant: self.seal.seal(grant, clock::random()),
            client_address,
            transport,
            udp: self.udp_access(grant, LegSide::Agent, udp),
            purpose: grant.purpose,
            ready,
        });
        let leg = match how {
            How::Dial => AgentLeg::Dial { ticket: self.ticket(pair, LegSide::Agent, false) },
            How::Warm => AgentLeg::Warm { pair: pair.to_string() },
        };
        ToAgent::Offer { session, leg }
    }

    /// What an end needs to look for the other, which is at `candidates`.
    fn udp_access(
        &self,
        grant: &Grant,
        side: LegSide,
        candidates: Option<Vec<Candidate>>,
    ) -> Option<Box<UdpAccess>> {
        let (Grant { session, user, .. }, now) = (grant, clock::unix_seconds());
        candidates.map(|candidates| Box::new(self.udp.access(session, user, side, candidates, now)))
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
            Notice::Relay { user } => {
                match self.udp.relay(&session, &user, end, clock::unix_seconds()) {
                    Some(relay) => AboutSession::Relay { session, relay },
                    None => return,
                }
            }
        };
        match end {
            LegSide::Client => self.send(core, link, &ToClient::About(about)),
            LegSide::Agent => self.send(core, link, &ToAgent::About(about)),
        }
    }

    fn granted(
        &self,
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
            ticket: self.ticket(pair, LegSide::Client, false),
            transport,
            udp: self.udp_access(grant, LegSide::Client, udp),
            kind,
        }
    }

    fn send(&self, core: &mut Core, link: LinkId, message: &impl Serialize) {
        match serde_json::to_string(message) {
            Ok(text) => self.queue(core, link, Outgoing::Text(text)),
            Err(error) => tracing::error!(%error, "a message could not be written"),
        }
    }

    /// A link that does not drain its queue loses it, and so ends.
    fn queue(&self, core: &mut Core, link: LinkId, outgoing: Outgoing) {
        let Some(sender) = core.links.get(&link) else { return };
        if let Err(mpsc::error::TrySendError::Full(_)) = sender.try_send(outgoing) {
            self.counters.links_overrun.add();
            tracing::warn!(link = link.0, "link does not drain, closing it");
            core.links.remove(&link);
        }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
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
        duration_ms = u64::try_from(outcome.duration.as_millis()).unwrap_or(u64::MAX),
        "pair ended"
    );
}
