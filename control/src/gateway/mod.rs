//! A gateway on a machine of its own: the data plane and a link to the broker, nothing else.
//!
//! It dials out to the broker like an agent, tells it the key that its tickets are minted with, and does what it says. What
//! it relays goes on without a broker; when one comes back, it hears which pairs live and whose they are (`books`). Its port
//! answers legs, STUN and TURN; whatever else connects is closed.
mod books;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use switchback_engine::{GatewayEvent, IoChoice, Limits, NoRelay, RelayCredentials, Tuning};
use tokio::sync::{Notify, mpsc};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::api::TokenKind;
use crate::broker::admission::TicketAdmission;
use crate::broker::gateway::{DataPlane, Sockets, listeners, start_plane};
use crate::broker::tuning::Tunings;
use crate::broker::udp::RelayKeys;
use crate::broker::{Relay, ServeConfig, advertised, clock};
use crate::code::{Code, Fault};
use crate::enrol::Enrolment;
use crate::invite::Invite;
use crate::link::{self, Doubt, FirstWord, LinkEvent};
use crate::secret::Secret;
use crate::ticket::TicketKey;
use crate::wire::{
    FromGateway, GATEWAY_LINK, GATEWAY_METERS_MAX, GATEWAY_PAIRS_MAX, GatewayRegister, PROTOCOL,
    PairName, ToGateway,
};
use books::Books;

/// Between messages to the broker that can wait: figures and load.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Pairs whose figures are told per second: half a megabyte.
const METERS_PER_SECOND: usize = 768;
/// Between looks whether a link has sent what filled its queue.
const RETRY: Duration = Duration::from_millis(20);
/// Events of the link that wait.
const EVENTS_MAX: usize = 256;
/// Between looks whether the last pair has ended.
const DRAIN_LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a gateway needs to know.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Which broker, and the right to join it; without a token if the state directory holds an enrolment.
    pub invite: Invite,
    /// The gateway's name.
    pub name: String,
    /// Where it stands, for people.
    pub region: Option<String>,
    /// Directory of the gateway's enrolment; made on the first run.
    pub state_dir: PathBuf,
    /// TCP and UDP address. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// `HOST` or `HOST:PORT` that ends shall dial. Default: the listen address, or for a wildcard the address this machine
    /// sends from.
    pub advertise: Option<String>,
    /// Where readiness comes from.
    pub io: IoChoice,
    /// Relay workers. Default: one per core.
    pub workers: Option<usize>,
    /// How long workers spin before they sleep.
    pub busy_poll: Option<Duration>,
    /// Socket options of the listener and its legs.
    pub tuning: Tuning,
    /// What it holds at most.
    pub limits: Limits,
    /// Whether it relays UDP.
    pub relay: bool,
    /// Ports of its relay. Default: 49152 to 65535.
    pub turn_ports: Option<RangeInclusive<u16>>,
}

impl GatewayConfig {
    /// Everything by default but broker, name, state directory and address.
    #[must_use]
    pub fn new(invite: Invite, name: String, state_dir: PathBuf, listen: SocketAddr) -> Self {
        Self {
            invite,
            name,
            state_dir,
            region: None,
            listen,
            advertise: None,
            io: IoChoice::default(),
            workers: None,
            busy_poll: None,
            tuning: Tuning::default(),
            limits: Limits::default(),
            relay: true,
            turn_ports: None,
        }
    }

    /// What the data plane reads of a server's configuration; the rest is a broker's and unused.
    fn plane(&self) -> ServeConfig {
        ServeConfig {
            io: self.io,
            workers: self.workers,
            busy_poll: self.busy_poll,
            public: self.advertise.clone(),
            tuning: self.tuning.clone(),
            gateway_limits: self.limits,
            relay: if self.relay { Relay::Own } else { Relay::Off },
            turn_ports: self.turn_ports.clone(),
            ..ServeConfig::new(self.listen, "")
        }
    }
}

/// A gateway that relays; it is not known to a broker before [`Gateway::run`].
pub struct Gateway {
    config: GatewayConfig,
    enrolment: Arc<Enrolment>,
    parts: Arc<Parts>,
    local_addr: SocketAddr,
    address: String,
    ticket_key: Secret,
    relay_key: Option<Secret>,
    /// It is about to end.
    leaving: bool,
}

/// What the engine's threads and the link share.
struct Parts {
    plane: DataPlane,
    tunings: Arc<Tunings>,
    books: Mutex<Books>,
    happened: Notify,
}

impl Parts {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, event: GatewayEvent) {
        self.books().note(event);
        self.happened.notify_one();
    }
}

impl Gateway {
    /// Binds the port and starts relaying. Call within a multi-threaded tokio runtime.
    ///
    /// # Errors
    /// [`Code::AddressInUse`], [`Code::PortNotPermitted`], [`Code::AddressUnavailable`], [`Code::ConfigInvalid`],
    /// [`Code::UringUnavailable`], [`Code::TuningUnsupported`], [`Code::Internal`], and those of [`Enrolment::open`]. Then
    /// nothing runs.
    pub async fn start(config: GatewayConfig) -> Result<Self, Fault> {
        tokio::task::spawn_blocking(move || Self::open(config))
            .await
            .map_err(|error| Code::Internal.because(format!("start: {error}")))?
    }

    fn open(config: GatewayConfig) -> Result<Self, Fault> {
        let plane = config.plane();
        let (kind, state) = (TokenKind::Gateway, Some(config.state_dir.clone()));
        let enrolment = Enrolment::open(state, &config.invite, kind, &config.name)?;
        let sockets = Sockets::bind(config.listen, listeners(&plane))?;
        let local_addr = sockets.address()?;
        let address = advertised(config.advertise.as_deref(), local_addr)?;
        let (tickets, relay): ([u8; 32], [u8; 32]) = (clock::random(), clock::random());
        let tunings = Arc::new(Tunings::new(local_addr, config.tuning.clone()));
        let key = Arc::new(TicketKey::new(&tickets));
        let admission = Arc::new(TicketAdmission::new(key, tunings.clone()));
        let believer: Arc<dyn RelayCredentials> =
            if config.relay { RelayKeys::new(&relay).believer() } else { Arc::new(NoRelay) };
        let (books, happened) = (Mutex::default(), Notify::new());
        let parts = Arc::new(Parts { plane: DataPlane::default(), tunings, books, happened });
        let noting = parts.clone();
        let events = Arc::new(move |event| noting.note(event));
        // Nobody else lives here.
        let owners = (admission as Arc<_>, Box::new(drop) as Box<_>, events as Arc<_>);
        start_plane(&parts.plane, sockets, &plane, owners, believer)?;
        let hex = |key: [u8; 32]| Secret::new(HEXLOWER.encode(&key));
        let relay_key = config.relay.then(|| hex(relay));
        let ticket_key = hex(tickets);
        Ok(Self {
            config,
            enrolment,
            parts,
            local_addr,
            address,
            ticket_key,
            relay_key,
            leaving: false,
        })
    }

    /// The address that it listens on.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// `HOST:PORT` that ends are told to dial.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// `uring` or `epoll`, and why.
    #[must_use]
    pub fn io_backend(&self) -> (&'static str, String) {
        self.parts.plane.backend()
    }

    /// Serves the broker until `stop`. Then the broker is asked to move the sessions away, which takes a moment; pairs that
    /// are left after `drain` are cut, and resume elsewhere.
    ///
    /// # Errors
    /// What no retry mends: [`Code::BrokerPinMismatch`], [`Code::TokenInvalid`], [`Code::TokenRevoked`], [`Code::JoinUsed`],
    /// [`Code::JoinExpired`], [`Code::GatewayNameTaken`], [`Code::GatewayNotAllowed`], [`Code::ProtocolVersion`].
    pub async fn run(mut self, stop: CancellationToken, drain: Duration) -> Result<(), Fault> {
        let (sender, mut events) = mpsc::channel(EVENTS_MAX);
        let (enrolment, doubt) = (self.enrolment.clone(), Doubt::default());
        let (ending, nothing) = (CancellationToken::new(), FirstWord::default());
        let linking = ending.clone();
        tokio::spawn(enrolment.clone().keep_fresh(ending.clone()));
        let link = tokio::spawn(async move {
            link::run(&*enrolment, GATEWAY_LINK, sender, doubt, nothing, linking).await
        });
        let mut tick = interval(TELL_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let parts = self.parts.clone();
        let mut broker = Broker::default();
        let mut leaving = None;
        let ended = loop {
            let full = broker.tell_events(&parts);
            if parts.books().is_overrun() {
                broker.tell_held(parts.books().tell_all());
                continue;
            }
            tokio::select! {
                event = events.recv() => match event.map(|event| self.handle(event, &mut broker)) {
                    Some(Ok(())) => {}
                    Some(Err(fault)) => break Err(fault),
                    None => break Ok(()),
                },
                () = parts.happened.notified(), if !full => {}
                () = sleep(RETRY), if full => {}
                _ = tick.tick() => broker.tell_figures(&parts),
                () = stop.cancelled(), if leaving.is_none() => {
                    tracing::info!(pairs = parts.plane.pairs(), "leaving: sessions move elsewhere");
                    self.leaving = true;
                    broker.say(FromGateway::Draining);
                    leaving = Some(Instant::now() + drain);
                }
                () = sleep(DRAIN_LOOK_EVERY), if leaving.is_some() => {
                    let over = leaving.is_some_and(|end| Instant::now() >= end);
                    if over || parts.plane.pairs() == 0 {
                        break Ok(());
                    }
                }
            }
        };
        drop(events);
        ending.cancel();
        let link =
            link.await.unwrap_or_else(|_| Err(Code::Internal.because("the link's task died")));
        // A panic there was reported when it happened.
        drop(tokio::task::spawn_blocking(move || parts.plane.shutdown()).await);
        ended.and(link)
    }

    fn handle(
        &mut self,
        event: LinkEvent<FromGateway, ToGateway>,
        broker: &mut Broker,
    ) -> Result<(), Fault> {
        match event {
            LinkEvent::Up(queue) => {
                broker.queue = Some(queue);
                broker.say(FromGateway::Register(Box::new(self.introduction())));
            }
            LinkEvent::Down(fault) => {
                tracing::warn!(%fault, "no link to the broker; what is relayed goes on");
                *broker = Broker::default();
                self.parts.books().mute();
            }
            LinkEvent::Message(message) => return self.obey(message, broker),
        }
        Ok(())
    }

    fn obey(&mut self, message: ToGateway, broker: &mut Broker) -> Result<(), Fault> {
        let parts = &self.parts;
        match message {
            ToGateway::Registered => {
                let held = parts.books().tell_all();
                tracing::info!(gateway = self.config.name, pairs = held.len(), "registered");
                broker.tell_held(held);
            }
            ToGateway::Rotate => self.enrolment.ask_for_new_key(),
            ToGateway::Refused { code, message } => {
                let fault = code.because(message);
                if code == Code::GatewayNotAllowed || link::is_final(code) {
                    return Err(fault);
                }
                tracing::warn!(%fault, "refused by the broker");
            }
            ToGateway::Expect { pair: PairName(pair), session } => {
                parts.books().expect(Instant::now(), pair, session);
            }
            ToGateway::Tune { pair: PairName(pair), tuning } => {
                parts.tunings.expect(pair, Arc::new(tuning), clock::steady_seconds());
            }
            ToGateway::EndPairs { pairs } => {
                pairs.into_iter().for_each(|PairName(pair)| parts.plane.end_pair(pair));
            }
            ToGateway::EndRelay { users } => parts.plane.end_relay(&users),
            ToGateway::Drain { drain } => {
                tracing::info!(drain, "sessions are moved away, or may come again");
            }
        }
        Ok(())
    }

    fn introduction(&self) -> GatewayRegister {
        GatewayRegister {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.config.name.clone(),
            region: self.config.region.clone(),
            address: self.address.clone(),
            ticket_key: self.ticket_key.clone(),
            relay_key: self.relay_key.clone(),
            relay_ports: self.config.plane().relay_places().1,
            now: clock::steady_seconds(),
            capacity: u32::try_from(self.config.limits.pairs_max).unwrap_or(u32::MAX),
            draining: self.leaving,
        }
    }
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

/// The broker at the other end of the link, if there is one.
#[derive(Default)]
struct Broker {
    queue: Option<mpsc::Sender<FromGateway>>,
    /// What is held and not told yet: before anything that happened since.
    held: Vec<crate::wire::HeldPair>,
    telling: bool,
}

impl Broker {
    fn say(&self, message: FromGateway) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.try_send(message).is_ok())
    }

    fn has_room(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.capacity() > link::PLACES_LEFT)
    }

    fn tell_held(&mut self, held: Vec<crate::wire::HeldPair>) {
        self.held = held;
        self.telling = true;
    }

    /// Tells as much as the link has room for; whether more is left.
    fn tell_events(&mut self, parts: &Parts) -> bool {
        while self.telling && self.has_room() {
            let rest = self.held.split_off(self.held.len().min(GATEWAY_PAIRS_MAX));
            let pairs = std::mem::replace(&mut self.held, rest);
            self.telling = !self.held.is_empty();
            self.say(FromGateway::Holds { pairs, last: !self.telling });
        }
        while !self.telling && self.has_room() {
            let Some(events) = parts.books().some_events() else { return false };
            self.say(FromGateway::Events { events });
        }
        self.queue.is_some() && (self.telling || parts.books().has_events())
    }

    fn tell_figures(&self, parts: &Parts) {
        if self.telling || !self.has_room() {
            return;
        }
        let pairs = u32::try_from(parts.plane.pairs()).unwrap_or(u32::MAX);
        self.say(FromGateway::Load { pairs });
        let mut moved = parts.books().moved(METERS_PER_SECOND);
        while !moved.is_empty() {
            let rest = moved.split_off(moved.len().min(GATEWAY_METERS_MAX));
            self.say(FromGateway::Meters { pairs: std::mem::replace(&mut moved, rest) });
        }
    }
}
