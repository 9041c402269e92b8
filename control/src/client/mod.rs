//! The user's end: signs in at the broker, opens sessions, keeps them carried, and forwards applications into them.
//!
//! A [`Client`] holds one link to the broker, however many sessions it opens. A session costs one task here, a few in
//! the session layer, and goes on while the link is down. When it dials its next leg is decided in `legs`, in pure code.

mod desk;
mod echo;
mod keeper;
mod legs;
pub mod local;
pub mod profile;
mod ready;
mod second;
mod session;
mod shadow;
pub mod signin;
mod stdio;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use switchback_shortpath::{Role, SessionHandle, SessionKey, client_config};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use echo::{EchoSender, PROBE_BYTES_MAX, PROBE_BYTES_MIN, echo};
pub use session::{ClientSession, SessionFigures};
pub use shadow::{Injector, Watching, watch};
pub use switchback_shortpath::{Redundancy, SessionConfig};

use crate::code::{Code, Fault};
use crate::dial::leg::Ahead;
use crate::dial::{Backoff, BrokerAddress};
use crate::invite::Invite;
use crate::udp::UdpOptions;
use crate::udp::reach::Reach;
use crate::udp::session::{SessionUdp, SessionWatch, Wanted, under};
use crate::wire::{
    Candidate, FromClient, LegTicket, PROTOCOL, PublicKey, ResourceKind, SealedGrant, SessionId,
    SessionPurpose, ToClient, TransportPolicy, UdpAccess, UdpUse,
};
use desk::{Desk, LinkState, Live};
use keeper::{Keeper, Moving, Phase};
use ready::Shelf;
use second::Second;

/// Pauses between requests for a session that is refused for now.
const OPEN_BACKOFF_FIRST: Duration = Duration::from_millis(100);
const OPEN_BACKOFF_CAP: Duration = Duration::from_secs(2);

/// What a client may be told otherwise.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// How long to try before a temporary refusal is reported: of the link by [`Client::connect`], of a session and its
    /// first leg by [`Client::open`]. Default 20 s: a broker or agent that restarts is back by then.
    pub start_within: Duration,
    /// How sessions are held. The default gives a resume window of 60 s.
    pub session: SessionConfig,
    /// How UDP is used.
    pub udp: UdpOptions,
    /// Resources for which a session is held ready after they were opened once, or by [`Client::prepare`]: one each, for ten
    /// minutes after the last use. The next [`Client::open`] takes it and waits for nobody. Default 4; each costs a pair at
    /// the gateway, which idles. 0 is right for a client that opens each resource once.
    pub ready_max: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        let (session, udp) = (SessionConfig::default(), UdpOptions::default());
        Self { start_within: Duration::from_secs(20), session, udp, ready_max: 4 }
    }
}

/// A signed-in user's link to a broker. Clones share it; it ends with the last clone and the last session.
#[derive(Clone)]
pub struct Client {
    desk: Arc<Desk>,
    options: ClientOptions,
    guard: Arc<DropGuard>,
    reach: Option<Reach>,
    shelf: Arc<Shelf>,
}

impl Client {
    /// Signs in at the invitation's broker.
    ///
    /// # Errors
    /// As [`Client::connect_with`].
    pub async fn connect(invite: Invite) -> Result<Self, Fault> {
        Self::connect_with(invite, ClientOptions::default()).await
    }

    /// Signs in at the invitation's broker.
    ///
    /// # Errors
    /// At once: [`Code::InviteInvalid`], [`Code::BrokerPinMismatch`], [`Code::TokenInvalid`], [`Code::TokenRevoked`].
    /// After [`ClientOptions::start_within`]: the last attempt's fault, as a rule [`Code::BrokerUnreachable`].
    pub async fn connect_with(invite: Invite, options: ClientOptions) -> Result<Self, Fault> {
        let client = Self::begin(invite, options)?;
        client.signed_in().await?;
        Ok(client)
    }

    /// Begins to sign in and does not wait for it: the first [`Client::open`] travels with the request for the link, which
    /// saves it a round trip, and tells what keeps the link from coming. Call within a tokio runtime.
    ///
    /// # Errors
    /// [`Code::InviteInvalid`], [`Code::UdpUnavailable`].
    ///
    /// The sign-in is renewed for as long as the client lives, if [`signin::load`] knows it.
    pub fn begin(invite: Invite, options: ClientOptions) -> Result<Self, Fault> {
        let home = BrokerAddress::of(&invite)?.host_port();
        let reach = Reach::start(&options.udp, &home)?;
        let stop = CancellationToken::new();
        let guard = Arc::new(stop.clone().drop_guard());
        tokio::spawn(signin::keep(invite.clone(), stop.clone()));
        let desk = Desk::new(invite, home);
        tokio::spawn(desk.clone().run(stop, reach.clone()));
        let shelf = Arc::new(Shelf::new(options.ready_max));
        Ok(Self { desk, options, guard, reach, shelf })
    }

    async fn signed_in(&self) -> Result<(), Fault> {
        let deadline = Instant::now() + self.options.start_within;
        let mut link = self.desk.link();
        let known = async {
            match link.wait_for(|state| !matches!(state, LinkState::Down(_))).await.as_deref() {
                Ok(LinkState::Over(fault)) => Err(fault.clone()),
                Ok(_) => Ok(()),
                Err(_) => Err(Code::Internal.because("the link's task is gone")),
            }
        };
        timeout_at(deadline, known).await.unwrap_or_else(|_| Err(last_fault(&self.desk.link())))
    }

    /// Has a session to `resource` held ready, ahead of its first use or as if it were used again. Does not wait for it.
    pub fn prepare(&self, resource: &str) {
        ready::keep(self, resource);
    }

    /// Whether [`Client::open`] would have its session at once.
    #[must_use]
    pub fn is_ready(&self, resource: &str) -> bool {
        self.shelf.is_ready(resource)
    }

    /// Opens a session to a resource of the feed: one that is held ready, at once, or else a new one, after its first leg.
    ///
    /// # Errors
    /// The broker's refusal, at once or, if it may pass, after [`ClientOptions::start_within`]; else what kept the first
    /// leg from coming.
    pub async fn open(&self, resource: &str) -> Result<ClientSession, Fault> {
        if let Some(session) = self.shelf.take(resource) {
            self.desk.begin(session.id());
            return Ok(session);
        }
        let session = self.make(resource, SessionPurpose::Use, false).await?;
        self.prepare(resource);
        Ok(session)
    }

    /// Opens a session to the agent of a resource, which sends back what it gets instead of asking the service.
    ///
    /// # Errors
    /// As [`Client::open`].
    pub async fn open_echo(&self, resource: &str) -> Result<ClientSession, Fault> {
        self.make(resource, SessionPurpose::Echo, false).await
    }

    async fn make(
        &self,
        resource: &str,
        purpose: SessionPurpose,
        ready: bool,
    ) -> Result<ClientSession, Fault> {
        let asked = purpose.shadow().map_or(Duration::ZERO, |_| shadow::CONSENT_PATIENCE);
        let start_by = Instant::now() + self.options.start_within + asked;
        let key =
            SessionKey::generate().map_err(|error| Code::Internal.because(error.to_string()))?;
        let granted = self.ask(resource, &key, (purpose, ready), start_by).await?;
        let session = self.start(&key, granted, ready, start_by)?;
        session.carried().await?;
        Ok(session)
    }

    async fn ask(
        &self,
        resource: &str,
        key: &SessionKey,
        (purpose, ready): (SessionPurpose, bool),
        start_by: Instant,
    ) -> Result<(Granted, Ahead), Fault> {
        let key = PublicKey(BASE64URL_NOPAD.encode(&key.public()));
        let patience = desk::ANSWER_TIMEOUT
            + purpose.shadow().map_or(Duration::ZERO, |_| shadow::CONSENT_PATIENCE);
        let mut backoff = Backoff::new(OPEN_BACKOFF_FIRST, OPEN_BACKOFF_CAP);
        loop {
            let (resource, key, reach) = (resource.to_owned(), key.clone(), self.reach.clone());
            let told = Arc::new(Mutex::new(None));
            let (telling, purpose) = (told.clone(), purpose.clone());
            let open = move |request| {
                tracing::debug!("session asked for");
                let udp = reach.as_ref().map(Reach::candidates);
                telling.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&udp);
                let (resource, key, purpose) = (resource.clone(), key.clone(), purpose.clone());
                FromClient::Open { request, protocol: PROTOCOL, resource, key, udp, purpose, ready }
            };
            let ahead = self.desk.dial_ahead();
            let answer = timeout_at(start_by, self.desk.ask_within(patience, open)).await;
            let fault = match answer.unwrap_or_else(|_| Err(last_fault(&self.desk.link()))) {
                Ok(answer) => {
                    let told = told.lock().unwrap_or_else(PoisonError::into_inner).take();
                    return Ok((Granted::of(answer, told)?, ahead));
                }
                Err(fault) => fault,
            };
            let again = Instant::now() + backoff.pause(rand::random());
            if !legs::may_pass(fault.code) || again >= start_by {
                return Err(fault);
            }
            sleep(again - Instant::now()).await;
        }
    }

    fn start(
        &self,
        key: &SessionKey,
        (granted, ahead): (Granted, Ahead),
        ready: bool,
        start_by: Instant,
    ) -> Result<ClientSession, Fault> {
        let Granted {
            id,
            agent,
            agent_key,
            grant,
            ticket,
            transport,
            udp: access,
            kind,
            shadow_target,
            told,
        } = granted;
        let malformed = || Code::MessageMalformed.because("the agent's key is malformed");
        let peer_key = BASE64URL_NOPAD.decode(agent_key.0.as_bytes()).map_err(|_| malformed())?;
        let tls = client_config(key, &peer_key).map_err(|_| malformed())?;
        let config = under(transport, &self.options.session);
        let (handle, events) = SessionHandle::start(Role::Client, &id.0, config);
        let (phase, phases) = watch::channel(Phase::Starting);
        // One order is enough to end a session.
        let (orders, ordered) = mpsc::channel(1);
        let udp = SessionUdp::new(transport, self.reach.clone());
        let wanted = Wanted { role: Role::Client, key: key.clone(), peer_key, dscp: None };
        if let Some(access) = access {
            udp.begin(wanted.clone(), *access, &handle);
        }
        if transport.udp == UdpUse::Require {
            tokio::spawn(udp.clone().enforce(SessionWatch(handle.clone())));
        }
        let relocate = Arc::new(Notify::new());
        let live = Live {
            handle: handle.clone(),
            grant: grant.clone(),
            end: orders.clone(),
            udp: udp.clone(),
            relocate: relocate.clone(),
            ready,
        };
        self.desk.admit(id.clone(), live);
        // What the gateway's STUN answered while the broker was asked: the first session of a link is asked for before it.
        if udp.is_searching() && udp.candidates() != told {
            self.desk.tell_candidates(&id, &udp);
        }
        let desk = self.desk.clone();
        let (guard, handle_kept) = (self.guard.clone(), handle.clone());
        let keeper = Keeper {
            desk,
            guard,
            id: id.clone(),
            grant,
            tls,
            handle: handle_kept,
            phase,
            legs: BTreeSet::new(),
            udp: udp.clone(),
            wanted,
            cold_at: None,
            relocate,
            moving: Moving::default(),
            second: Second::new(Instant::now()),
        };
        tokio::spawn(keeper.run((ticket, ahead), start_by, events, ordered));
        let held = session::Held { id, agent, kind, shadow_target, handle, udp };
        Ok(ClientSession::new(held, phases, orders, self.guard.clone()))
    }
}

/// An open session, as the broker granted it.
struct Granted {
    id: SessionId,
    agent: String,
    agent_key: PublicKey,
    grant: SealedGrant,
    ticket: LegTicket,
    transport: TransportPolicy,
    udp: Option<Box<UdpAccess>>,
    kind: ResourceKind,
    shadow_target: bool,
    /// Where the agent was told that this client is.
    told: Option<Vec<Candidate>>,
}

impl Granted {
    fn of(answer: ToClient, told: Option<Vec<Candidate>>) -> Result<Self, Fault> {
        match answer {
            ToClient::Granted {
                session: id,
                agent,
                agent_key,
                grant,
                ticket,
                transport,
                udp,
                kind,
                shadow_target,
                ..
            } => Ok(Self {
                id,
                agent,
                agent_key,
                grant,
                ticket,
                transport,
                udp,
                kind,
                shadow_target,
                told,
            }),
            _ => Err(Code::MessageMalformed.because("the broker answered another question")),
        }
    }
}

fn last_fault(link: &watch::Receiver<LinkState>) -> Fault {
    match &*link.borrow() {
        LinkState::Down(Some(fault)) | LinkState::Over(fault) => fault.clone(),
        LinkState::Down(None) | LinkState::Up(_) => {
            Code::BrokerUnreachable.because("the broker did not answer in time")
        }
    }
}
