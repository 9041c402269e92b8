//! The service's end: dials out only, offers resources, and connects each channel of a session to its target.
//!
//! One task ([`run`]'s) holds the link to the broker and every decision; dialling, handshakes, sessions and channels
//! run in tasks of their own, each bounded, so that nothing slow holds up anything else. Sessions live on while the
//! link is down; the next `register` shows their grants, and the reports that follow show all of them.

mod health;
mod identity;
mod legs;
mod pool;
mod proxy_v2;
mod rate;
mod session;
mod target;
mod untold;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use switchback_shortpath::SessionConfig;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::api::TokenKind;
use crate::code::{Code, Fault};
use crate::dial::BrokerAddress;
use crate::enrol::Enrolment;
use crate::invite::Invite;
use crate::link::report::{REPORT_INTERVAL, Reporter, register_grants};
use crate::link::{self, Doubt, FirstWord, LinkEvent};
use crate::shadow::{BACKLOG_DEFAULT, BACKLOG_MAX, BACKLOG_TOTAL, Budget};
use crate::survey::Survey;
use crate::udp::reach::Reach;
use crate::udp::{self, UdpOptions};
use crate::wire::{
    AGENT_LINK, AboutSession, AgentLeg, FromAgent, LegTicket, PROTOCOL, Resource, SessionId,
    SessionOffer, ToAgent,
};
use health::Health;
use legs::{Purpose, WarmGone};
use pool::WarmPool;
use session::{News, SessionOver, Sessions};
use untold::Untold;

/// Warm legs kept when nobody says otherwise: a burst of four sessions starts without a dial, for four idle sockets.
pub const WARM_LEGS_DEFAULT: u32 = 4;
/// Legs being dialled, waiting or in their handshake at once. A thousand sessions that lost one gateway fit.
const LEGS_IN_FLIGHT_MAX: usize = 2048;
/// Ends of sessions remembered while the link is down.
const ENDED_MAX: usize = 1024;
/// Events that wait for the agent's task, per source.
const EVENTS_MAX: usize = 256;
/// From the order to stop to the last session's close: the session layer takes at most 2 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// What an agent needs to know.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Which broker, and the right to join it; without a token if the state directory holds an enrolment.
    pub invite: Invite,
    /// The agent's name.
    pub name: String,
    /// What it offers.
    pub resources: Vec<Resource>,
    /// Admitted legs kept waiting, see [`WARM_LEGS_DEFAULT`].
    pub warm_legs: u32,
    /// Directory of the agent's keys and enrolment; made on the first run.
    pub state_dir: PathBuf,
}

/// What an agent may be told otherwise.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Sessions served at once. Default 8,192: at a few dozen KiB each, a quarter of a GiB.
    pub sessions_max: usize,
    /// How sessions are held. The default gives a resume window of 60 s.
    pub session: SessionConfig,
    /// How UDP is used.
    pub udp: UdpOptions,
    /// Bytes kept per channel and direction, for watchers to look back at. Default 64 KiB; 0: none. All sessions together
    /// keep 64 MiB at most.
    pub shadow_backlog: usize,
    /// Is told of every change of the agent's state.
    pub state: Option<watch::Sender<AgentState>>,
}

impl Default for AgentOptions {
    fn default() -> Self {
        let (session, udp) = (SessionConfig::default(), UdpOptions::default());
        Self { sessions_max: 8192, session, udp, shadow_backlog: BACKLOG_DEFAULT, state: None }
    }
}

/// An agent at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentState {
    /// Whether the broker knows it: its resources can be used.
    pub registered: bool,
    /// Warm legs being dialled or waiting.
    pub warm_legs: u32,
    /// Sessions it serves.
    pub sessions: usize,
    /// What broke the link or kept it from coming up; absent while it is up.
    pub fault: Option<Fault>,
}

/// Runs an agent until `stop`.
///
/// # Errors
/// As [`run_with`].
pub async fn run(config: AgentConfig, stop: CancellationToken) -> Result<(), Fault> {
    run_with(config, AgentOptions::default(), stop).await
}

/// Runs an agent until `stop`; then closes its sessions.
///
/// # Errors
/// What no retry mends: [`Code::ConfigInvalid`] and [`Code::TuningUnsupported`] for a resource's tuning, here or, from the
/// start, at the gateway; [`Code::DataDirUnusable`], [`Code::DataCorrupt`], [`Code::InviteInvalid`],
/// [`Code::BrokerPinMismatch`], [`Code::TokenInvalid`], [`Code::TokenRevoked`], [`Code::JoinUsed`], [`Code::JoinExpired`],
/// [`Code::AgentNotAllowed`], [`Code::ProtocolVersion`], and [`Code::AgentNameTaken`] if it was so from the start.
pub async fn run_with(
    config: AgentConfig,
    options: AgentOptions,
    stop: CancellationToken,
) -> Result<(), Fault> {
    config.resources.iter().try_for_each(probe_tuning)?;
    let home: Arc<str> = BrokerAddress::of(&config.invite)?.host_port().into();
    let enrolment = Enrolment::open(
        Some(config.state_dir.clone()),
        &config.invite,
        TokenKind::Agent,
        &config.name,
    )?;
    let key = identity::load(&config.state_dir)?;
    let reach = Reach::start(&options.udp, &home)?;
    let (news_sender, mut news) = mpsc::channel(EVENTS_MAX);
    let (gone_sender, mut gone) = mpsc::channel(EVENTS_MAX);
    let AgentOptions { sessions_max, session, udp: _, shadow_backlog, state } = options;
    let backlog = Budget::new(shadow_backlog.min(BACKLOG_MAX), BACKLOG_TOTAL);
    let doubt = Doubt::default();
    let doubted = doubt.clone();
    let sessions = Sessions::new(
        key,
        &config.resources,
        session,
        (sessions_max, reach.clone(), backlog),
        news_sender,
        doubt.clone(),
    );
    let mut network = reach.as_ref().map(Reach::changed);
    let mut health = Health::start(&config.resources, sessions.faults());
    let mut agent = Agent {
        pool: WarmPool::new(config.warm_legs),
        name: config.name,
        resources: config.resources,
        sessions,
        warm: HashMap::new(),
        gone: gone_sender,
        in_flight: Arc::new(Semaphore::new(LEGS_IN_FLIGHT_MAX)),
        link: Link { queue: None, unsaid: VecDeque::new(), reporter: Reporter::default() },
        untold: Untold::default(),
        survey: Survey::start(home.to_string(), reach.is_some()),
        home,
        reach,
        enrolment: enrolment.clone(),
        was_registered: false,
        state: state.unwrap_or_default(),
    };
    let mut ways = agent.survey.found();
    let link_stop = CancellationToken::new();
    let (sender, mut events) = mpsc::channel(EVENTS_MAX);
    tokio::spawn(enrolment.clone().keep_fresh(link_stop.clone()));
    let linking = link_stop.clone();
    let link = tokio::spawn(async move {
        let nothing = FirstWord::default();
        link::run(&*enrolment, AGENT_LINK, sender, doubt, nothing, linking).await
    });
    let mut tick = interval(REPORT_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut again = interval(link::TELL_PAUSE);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ended = loop {
        let warm_at = agent.keep_warm();
        agent.show();
        tokio::select! {
            event = events.recv() => match event.map(|event| agent.handle_link(event)) {
                Some(Ok(Heed::Registered)) => agent.tell_health(&mut health),
                Some(Ok(Heed::Nothing)) => {}
                Some(Err(fault)) => break Err(fault),
                // The link is over, and says why below.
                None => break Ok(()),
            },
            Some(warm_gone) = gone.recv() => agent.warm_gone(&warm_gone),
            Some(news) = news.recv() => match news {
                News::Begun(session) => agent.session_begun(session),
                News::Over(over) => agent.session_over(over),
                News::Relayed(session) => agent.tell_relayed(session),
            },
            Ok(()) = ways.changed() => agent.tell_ways(),
            () = health.changed() => agent.tell_health(&mut health),
            _ = tick.tick() => agent.report(),
            _ = again.tick(), if agent.has_untold() => agent.tell_untold(),
            () = udp::changed(&mut network) => {
                // The link may be of an address that is gone.
                doubted.raise();
                agent.survey.again();
                agent.tell_network();
            }
            () = sleep_until(warm_at.unwrap_or_else(Instant::now)), if warm_at.is_some() => {}
            () = stop.cancelled() => break Ok(()),
        }
    };
    drop(events);
    agent.stop(&mut news).await;
    link_stop.cancel();
    let link = link.await.unwrap_or_else(|_| Err(Code::Internal.because("the link's task died")));
    ended.and(link)
}

/// Tries a resource's tuning on a socket like those to its target.
fn probe_tuning(resource: &Resource) -> Result<(), Fault> {
    let because = |why: String| format!("resource {}, at the agent: {why}", resource.name);
    let Resource { tuning, target, .. } = resource;
    tuning
        .check_for_resource()
        .map_err(|invalid| Code::ConfigInvalid.because(because(invalid.to_string())))?;
    let any: IpAddr = if target.starts_with('[') {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    tuning
        .probe_connection(SocketAddr::new(any, 0))
        .map_err(|refused| Code::TuningUnsupported.because(because(refused.to_string())))
}

struct Agent {
    name: String,
    resources: Vec<Resource>,
    /// The broker's `HOST:PORT`.
    home: Arc<str>,
    sessions: Sessions,
    pool: WarmPool,
    /// Warm legs by pair.
    warm: HashMap<String, oneshot::Sender<Purpose>>,
    gone: mpsc::Sender<WarmGone>,
    in_flight: Arc<Semaphore>,
    link: Link,
    untold: Untold,
    reach: Option<Reach>,
    enrolment: Arc<Enrolment>,
    /// How far the gateways are.
    survey: Survey,
    was_registered: bool,
    state: watch::Sender<AgentState>,
}

/// What an event of the link asks of the agent's task.
enum Heed {
    Nothing,
    /// A broker that knows nothing yet of this agent's health.
    Registered,
}

impl Agent {
    fn handle_link(&mut self, event: LinkEvent<FromAgent, ToAgent>) -> Result<Heed, Fault> {
        match event {
            LinkEvent::Up(queue) => {
                self.link.queue = Some(queue);
                self.link.reporter.link_up();
                self.register();
                if let Some(reach) = &self.reach {
                    reach.locate();
                }
                self.tell_network();
            }
            LinkEvent::Down(fault) => {
                self.link.queue = None;
                // The next link is told of all.
                self.untold = Untold::default();
                self.pool.link_down();
                self.warm.clear();
                self.sessions.end_ready();
                self.state.send_if_modified(|state| {
                    state.registered = false;
                    state.fault = Some(fault);
                    true
                });
            }
            LinkEvent::Message(ToAgent::Registered) => {
                self.registered();
                return Ok(Heed::Registered);
            }
            LinkEvent::Message(ToAgent::Refused { code, message }) => {
                self.refused(code.because(message))?;
            }
            LinkEvent::Message(ToAgent::Rotate) => self.enrolment.ask_for_new_key(),
            LinkEvent::Message(ToAgent::WarmTickets { tickets }) => self.warm_up(tickets),
            LinkEvent::Message(ToAgent::Offer { session, leg }) => self.offered(*session, leg),
            LinkEvent::Message(ToAgent::About(about)) => match about {
                AboutSession::Explain { session } => self.explain(session),
                AboutSession::Candidates { session, candidates } => {
                    self.sessions.add_candidates(&session, candidates);
                }
                AboutSession::Relay { session, relay } => self.sessions.renew(&session, relay),
                AboutSession::Hold { session, held } => self.sessions.hold(&session, held),
                AboutSession::Policy { session, transport, rate_bits } => {
                    self.sessions.narrow(&session, transport, rate_bits);
                }
            },
            LinkEvent::Message(ToAgent::Gateways { gateways }) => self.survey.set(gateways),
            LinkEvent::Message(ToAgent::Begun { session }) => {
                self.sessions.begin(&session);
            }
            LinkEvent::Message(ToAgent::End { session, code }) => self.sessions.end(&session, code),
        }
        Ok(Heed::Nothing)
    }

    fn tell_health(&self, health: &mut Health) {
        if self.state.borrow().registered {
            self.link.say(health.told());
        }
    }

    fn register(&mut self) {
        self.link.say(FromAgent::Register {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.name.clone(),
            key: self.sessions.public_key(),
            resources: self.resources.clone(),
            sessions: register_grants(self.sessions.grants()),
        });
    }

    fn registered(&mut self) {
        tracing::info!(agent = self.name, sessions = self.sessions.len(), "registered");
        self.was_registered = true;
        self.pool.registered();
        self.link.catch_up();
        self.report();
        self.state.send_if_modified(|state| {
            state.registered = true;
            state.fault = None;
            true
        });
        self.tell_all_relayed();
        self.tell_ways();
    }

    /// The broker hears how far the gateways are.
    fn tell_ways(&self) {
        let rtts = self.survey.found().borrow().clone();
        if !rtts.is_empty() && self.state.borrow().registered {
            self.link.say(FromAgent::Rtts { rtts });
        }
    }

    fn refused(&mut self, fault: Fault) -> Result<(), Fault> {
        let never = fault.code == Code::AgentNotAllowed
            || (fault.code == Code::AgentNameTaken && !self.was_registered)
            || (matches!(fault.code, Code::ConfigInvalid | Code::TuningUnsupported)
                && !self.was_registered);
        if never || link::is_final(fault.code) {
            return Err(fault);
        }
        tracing::warn!(%fault, "refused by the broker");
        self.pool.refused(Instant::now(), rand::random());
        Ok(())
    }

    /// Asks for the warm legs that are missing; answers when to look again.
    fn keep_warm(&mut self) -> Option<Instant> {
        if let Some(count) = self.pool.poll(Instant::now()) {
            self.link.say(FromAgent::WarmLegs { count });
        }
        self.pool.deadline()
    }

    fn warm_up(&mut self, mut tickets: Vec<LegTicket>) {
        tickets.truncate(self.pool.tickets(tickets.len()));
        for ticket in tickets {
            let (sender, wanted) = oneshot::channel();
            self.warm.insert(ticket.pair.clone(), sender);
            let (home, gone) = (self.home.clone(), self.gone.clone());
            let pair = ticket.pair.clone();
            if !self.spawn_leg(legs::wait(ticket, home, wanted, gone)) {
                self.warm_gone(&WarmGone { pair, lived: Duration::ZERO });
            }
        }
    }

    fn warm_gone(&mut self, gone: &WarmGone) {
        // One that was used, or given up with its link, is counted already.
        if self.warm.remove(&gone.pair).is_some() {
            self.pool.lost(Instant::now(), gone.lived, rand::random());
        }
    }

    fn offered(&mut self, offer: SessionOffer, leg: AgentLeg) {
        let id = offer.id.clone();
        let purpose = match self.sessions.accept(offer) {
            Ok(purpose) => purpose,
            Err(fault) => {
                tracing::warn!(session = %id, %fault, "offer refused");
                // A session that has another client goes on; one that cannot begin is over.
                if fault.code != Code::PeerKeyMismatch {
                    self.link.say_surely(id, fault.code);
                }
                return;
            }
        };
        match leg {
            AgentLeg::Dial { ticket } => {
                self.spawn_leg(legs::dial(ticket, self.home.clone(), purpose));
            }
            AgentLeg::Warm { pair } => match self.warm.remove(&pair) {
                Some(waiting) => {
                    self.pool.used();
                    if waiting.send(purpose).is_err() {
                        tracing::info!(session = %id, "the warm leg broke as it was needed");
                    }
                }
                // It broke before: the broker learns that from the gateway and has us dial.
                None => tracing::info!(session = %id, "the warm leg is gone"),
            },
        }
    }

    /// What the broker cannot be told of must not be used: rights and limits are its business.
    fn session_begun(&mut self, session: SessionId) {
        if self.sessions.begin(&session)
            && !self.link.say(FromAgent::Begun { session: session.clone() })
        {
            self.sessions.end(&session, Code::BrokerUnreachable);
        }
    }

    fn session_over(&mut self, over: SessionOver) {
        if self.sessions.forget(&over.id) {
            self.link.say_surely(over.id, over.code);
        }
    }

    fn explain(&self, session: SessionId) {
        if let Some(paths) = self.sessions.explain(&session) {
            self.link.say(FromAgent::Paths { session, paths: Box::new(paths) });
        }
    }

    fn report(&mut self) {
        self.link.report(&self.sessions);
    }

    fn show(&self) {
        let (warm_legs, sessions) = (self.pool.legs(), self.sessions.len());
        self.state.send_if_modified(|state| {
            let changed = (state.warm_legs, state.sessions) != (warm_legs, sessions);
            (state.warm_legs, state.sessions) = (warm_legs, sessions);
            changed
        });
    }

    /// Closes all sessions, and tells their clients if that can be done in time.
    async fn stop(mut self, news: &mut mpsc::Receiver<News>) {
        self.sessions.end_all();
        drop(self);
        let last_words = async { while news.recv().await.is_some() {} };
        // Those not told learn it from the broker, or from their resume window.
        let _ = timeout(STOP_TIMEOUT, last_words).await;
    }

    /// False if too many legs are in flight.
    fn spawn_leg(&self, leg: impl Future<Output = ()> + Send + 'static) -> bool {
        let Ok(permit) = self.in_flight.clone().try_acquire_owned() else {
            tracing::warn!(code = %Code::LegLimit, "too many legs in flight, one left out");
            return false;
        };
        tokio::spawn(async move {
            leg.await;
            drop(permit);
        });
        true
    }
}

/// The agent's side of the link, if there is one.
struct Link {
    queue: Option<mpsc::Sender<FromAgent>>,
    /// Ends of sessions that the broker has not been told of.
    unsaid: VecDeque<(SessionId, Code)>,
    reporter: Reporter,
}

impl Link {
    /// Says what is worth nothing on a later link; false if it cannot be said now.
    fn say(&self, message: FromAgent) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.try_send(message).is_ok())
    }

    /// Says that a session ended, now or on a later link.
    fn say_surely(&mut self, session: SessionId, code: Code) {
        if !self.say(FromAgent::Ended { session: session.clone(), code }) {
            if self.unsaid.len() >= ENDED_MAX {
                // The broker forgets the oldest by itself: nobody reports on it any more.
                self.unsaid.pop_front();
            }
            self.unsaid.push_back((session, code));
        }
    }

    fn catch_up(&mut self) {
        for (session, code) in std::mem::take(&mut self.unsaid) {
            self.say_surely(session, code);
        }
    }

    fn report(&mut self, sessions: &Sessions) {
        if self.queue.is_none() {
            return;
        }
        for sessions in self.reporter.due(sessions.figures()) {
            if !self.say(FromAgent::Report { sessions }) {
                // A link in trouble: say everything again.
                return self.reporter.link_up();
            }
        }
    }
}
