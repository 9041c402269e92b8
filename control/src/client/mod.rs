//! The user's end: signs in at the broker, opens sessions, keeps them carried, and forwards applications into them.
//!
//! A [`Client`] holds one link to the broker, however many sessions it opens. A session costs one task here, a few in
//! the session layer, and goes on while the link is down. When it dials its next leg is decided in `legs`, in pure code.

mod desk;
mod keeper;
mod legs;
pub mod profile;
mod session;
mod stdio;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use switchback_shortpath::{Role, SessionHandle, SessionKey, client_config};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use session::{ClientSession, SessionFigures};
pub use switchback_shortpath::SessionConfig;

use crate::code::{Code, Fault};
use crate::dial::{Backoff, BrokerAddress};
use crate::invite::Invite;
use crate::wire::{FromClient, LegTicket, PROTOCOL, PublicKey, SealedGrant, SessionId, ToClient};
use desk::{Desk, LinkState, Live};
use keeper::{Keeper, Phase};

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
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self { start_within: Duration::from_secs(20), session: SessionConfig::default() }
    }
}

/// A signed-in user's link to a broker. Clones share it; it ends with the last clone and the last session.
#[derive(Clone)]
pub struct Client {
    desk: Arc<Desk>,
    options: ClientOptions,
    guard: Arc<DropGuard>,
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
        let home = BrokerAddress::of(&invite)?.host_port();
        let stop = CancellationToken::new();
        let guard = Arc::new(stop.clone().drop_guard());
        let desk = Desk::new(invite, home);
        let mut link = desk.link();
        tokio::spawn(desk.clone().run(stop));
        let deadline = Instant::now() + options.start_within;
        let known = async {
            match link.wait_for(|state| !matches!(state, LinkState::Down(_))).await.as_deref() {
                Ok(LinkState::Over(fault)) => Err(fault.clone()),
                Ok(_) => Ok(()),
                Err(_) => Err(Code::Internal.because("the link's task is gone")),
            }
        };
        timeout_at(deadline, known).await.unwrap_or_else(|_| Err(last_fault(&desk.link())))?;
        tracing::debug!("signed in");
        Ok(Self { desk, options, guard })
    }

    /// Opens a session to a resource of the feed and waits for its first leg.
    ///
    /// # Errors
    /// The broker's refusal, at once or, if it may pass, after [`ClientOptions::start_within`]; else what kept the first
    /// leg from coming.
    pub async fn open(&self, resource: &str) -> Result<ClientSession, Fault> {
        let start_by = Instant::now() + self.options.start_within;
        let key =
            SessionKey::generate().map_err(|error| Code::Internal.because(error.to_string()))?;
        let granted = self.ask(resource, &key, start_by).await?;
        let session = self.start(&key, granted, start_by)?;
        session.carried().await?;
        Ok(session)
    }

    async fn ask(
        &self,
        resource: &str,
        key: &SessionKey,
        start_by: Instant,
    ) -> Result<Granted, Fault> {
        let key = PublicKey(BASE64URL_NOPAD.encode(&key.public()));
        let mut backoff = Backoff::new(OPEN_BACKOFF_FIRST, OPEN_BACKOFF_CAP);
        loop {
            let (resource, key) = (resource.to_owned(), key.clone());
            let open = |request| FromClient::Open { request, protocol: PROTOCOL, resource, key };
            let answer = timeout_at(start_by, self.desk.ask(open)).await;
            let fault = match answer.unwrap_or_else(|_| Err(last_fault(&self.desk.link()))) {
                Ok(answer) => return Granted::of(answer),
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
        granted: Granted,
        start_by: Instant,
    ) -> Result<ClientSession, Fault> {
        let Granted { id, agent, agent_key, grant, ticket } = granted;
        let tls = BASE64URL_NOPAD
            .decode(agent_key.0.as_bytes())
            .ok()
            .and_then(|spki| client_config(key, &spki).ok())
            .ok_or_else(|| Code::MessageMalformed.because("the agent's key is malformed"))?;
        let (handle, events) =
            SessionHandle::start(Role::Client, &id.0, self.options.session.clone());
        let (phase, phases) = watch::channel(Phase::Starting);
        // One order is enough to end a session.
        let (orders, ordered) = mpsc::channel(1);
        let live = Live { handle: handle.clone(), grant: grant.clone(), end: orders.clone() };
        self.desk.admit(id.clone(), live);
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
        };
        tokio::spawn(keeper.run(ticket, start_by, events, ordered));
        Ok(ClientSession::new(id, agent, handle, phases, orders, self.guard.clone()))
    }
}

/// An open session, as the broker granted it.
struct Granted {
    id: SessionId,
    agent: String,
    agent_key: PublicKey,
    grant: SealedGrant,
    ticket: LegTicket,
}

impl Granted {
    fn of(answer: ToClient) -> Result<Self, Fault> {
        match answer {
            ToClient::Granted { session, agent, agent_key, grant, ticket, .. } => {
                Ok(Self { id: session, agent, agent_key, grant, ticket })
            }
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
