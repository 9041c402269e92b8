//! A broker is started, asked and stopped.
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::api::TokenKind;
use crate::broker::admission::TicketAdmission;
use crate::broker::app::App;
use crate::broker::clock;
use crate::broker::config::{Authority, ServeConfig};
use crate::broker::counters::Counters;
use crate::broker::data::DataDir;
use crate::broker::door::Door;
use crate::broker::hub::Hub;
use crate::broker::identity::Identity;
use crate::broker::orchestrator::Input;
use crate::broker::seal::SealKey;
use crate::broker::store::{NewSubject, Store};
use crate::broker::tuning::Tunings;
use crate::broker::{gateway, http};
use crate::code::{Code, Fault};
use crate::secret::Secret;
use crate::ticket::TicketKey;

const SEAL_KEY_FILE: &str = "seal.key";
/// Name of the user that the first start makes.
const FIRST_USER: &str = "admin";
/// How often silence is looked at. The shortest of the limits it serves is 30 s.
const TICK: Duration = Duration::from_secs(1);
/// How often the database hears which agents are in use. Often enough for a limit of 30 days, even if the broker runs
/// for an hour a day.
const KEEP_AGENTS_EVERY: Duration = Duration::from_secs(1800);

/// The two strings that the very first start prints.
#[derive(Clone, Debug)]
pub struct FirstInvites {
    /// For agents of any name.
    pub join: Secret,
    /// For the first administrator.
    pub login: Secret,
}

/// A running broker with its gateway.
pub struct Broker {
    app: Arc<App>,
    local_addr: SocketAddr,
    first_invites: Option<FirstInvites>,
}

/// What is ready before anything runs.
struct Ground {
    listener: TcpListener,
    local_addr: SocketAddr,
    authority: Authority,
    identity: Identity,
    seal: SealKey,
    store: Store,
}

impl Broker {
    /// Starts broker, gateway and STUN responder on one port. On the first start with a data directory it makes the
    /// broker's keys and its first tokens, see [`Broker::first_invites`].
    ///
    /// Must be called within a multi-threaded tokio runtime.
    ///
    /// # Errors
    /// [`Code::AddressInUse`], [`Code::PortNotPermitted`], [`Code::AddressUnavailable`], [`Code::ConfigInvalid`],
    /// [`Code::DataDirUnusable`], [`Code::DataCorrupt`], [`Code::CertificateUnusable`], [`Code::UringUnavailable`],
    /// [`Code::TuningUnsupported`], [`Code::Internal`]. Then nothing runs.
    pub async fn start(config: ServeConfig) -> Result<Self, Fault> {
        let blocking = config.clone();
        let ground = tokio::task::spawn_blocking(move || Ground::prepare(&blocking))
            .await
            .map_err(|error| Code::Internal.because(format!("start: {error}")))??;
        let Ground { listener, local_addr, authority, identity, seal, store } = ground;
        let tickets = Arc::new(TicketKey::new(&clock::random()));
        let counters = Arc::new(Counters::default());
        let tunings = Arc::new(Tunings::new(local_addr, config.tuning.clone()));
        let hub = Hub::new(config.session_limits, seal, tickets.clone(), tunings.clone(), counters);
        let hub = Arc::new(hub);
        let admission = Arc::new(TicketAdmission::new(tickets, tunings));
        let app = App::new(hub, store, admission.clone(), authority, identity.pin);
        let app = Arc::new(app);
        let begun = begin(&app, &config, listener, identity.tls).await;
        let first_invites = match begun {
            Ok(first_invites) => first_invites,
            Err(fault) => {
                stop(&app).await;
                return Err(fault);
            }
        };
        let (io, reason) = app.hub.data_plane.backend();
        tracing::info!(%local_addr, url = app.authority.url(), io, reason, "broker started");
        Ok(Self { app, local_addr, first_invites })
    }

    /// The address that it listens on.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// `https://HOST:PORT`, as invitations carry it.
    #[must_use]
    pub fn url(&self) -> String {
        self.app.authority.url()
    }

    /// The first join and login strings; only on the very first start with a data directory.
    #[must_use]
    pub const fn first_invites(&self) -> Option<&FirstInvites> {
        self.first_invites.as_ref()
    }

    /// `uring` or `epoll`, and why.
    #[must_use]
    pub fn io_backend(&self) -> (&'static str, String) {
        self.app.hub.data_plane.backend()
    }

    /// Stops everything within a few seconds. Pairs end; the ends resume their sessions with the next start.
    pub async fn shutdown(self) {
        stop(&self.app).await;
        tracing::info!("broker stopped");
    }
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

/// A broker that is dropped without [`Broker::shutdown`] stops in the background: the gateway's end takes up to 3 s, too
/// long to wait for in a runtime's thread.
impl Drop for Broker {
    fn drop(&mut self) {
        if self.app.stop.is_cancelled() {
            return;
        }
        self.app.stop.cancel();
        let hub = self.app.hub.clone();
        std::thread::spawn(move || hub.data_plane.shutdown());
    }
}

impl Ground {
    /// Everything that blocks.
    fn prepare(config: &ServeConfig) -> Result<Self, Fault> {
        let listener = gateway::bind(config.listen)?;
        let local_addr = listener
            .local_addr()
            .map_err(|error| Code::Internal.because(format!("listener: {error}")))?;
        let authority = Authority::choose(config.public.as_deref(), local_addr)?;
        let data = DataDir::open(&config.data)?;
        let hosts = [authority.host.clone(), local_addr.ip().to_string()];
        let identity = Identity::load(&data, config.tls.as_ref(), &hosts)?;
        let seal = seal_key(&data)?;
        let store = Store::open(data)?;
        Ok(Self { listener, local_addr, authority, identity, seal, store })
    }
}

fn seal_key(data: &DataDir) -> Result<SealKey, Fault> {
    let Some(bytes) = data.read(SEAL_KEY_FILE)? else {
        let fresh = clock::random();
        data.write(SEAL_KEY_FILE, &fresh)?;
        return Ok(SealKey::new(&fresh));
    };
    let bytes: [u8; 32] = bytes
        .try_into()
        .map_err(|_| Code::DataCorrupt.because(format!("{SEAL_KEY_FILE} is not 32 bytes long")))?;
    Ok(SealKey::new(&bytes))
}

async fn begin(
    app: &Arc<App>,
    config: &ServeConfig,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
) -> Result<Option<FirstInvites>, Fault> {
    let first_invites = first_invites(app).await?;
    let router = http::router(app.clone());
    let (counters, tasks) = (app.counters.clone(), app.tasks.clone());
    let door = Door::new(tls, router, counters, tasks, app.stop.clone());
    let runtime = tokio::runtime::Handle::current();
    let foreign = Box::new(move |connection| door.take(connection, &runtime));
    let (config, hub, admission) = (config.clone(), app.hub.clone(), app.admission.clone());
    let started = tokio::task::spawn_blocking(move || {
        gateway::start(listener, &config, admission, foreign, &hub)
    });
    started.await.map_err(|error| Code::Internal.because(format!("gateway: {error}")))??;
    app.tasks.spawn(tick(app.clone()));
    app.tasks.spawn(keep_agents(app.clone()));
    Ok(first_invites)
}

/// On the first start: an administrator who may use everything, and a token for agents of any name.
async fn first_invites(app: &App) -> Result<Option<FirstInvites>, Fault> {
    let everything = vec!["*".to_owned()];
    let user = NewSubject {
        kind: TokenKind::User,
        name: FIRST_USER.into(),
        admin: true,
        grants: everything,
    };
    let agent =
        NewSubject { kind: TokenKind::Agent, name: "*".into(), admin: false, grants: Vec::new() };
    let Some(issued) = app.store.issue_first(vec![user, agent]).await? else { return Ok(None) };
    let [login, join] = issued.as_slice() else {
        return Err(Code::Internal.because("two first tokens were asked for"));
    };
    let login = app.invite(login, TokenKind::User);
    let join = app.invite(join, TokenKind::Agent);
    Ok(Some(FirstInvites { join, login }))
}

async fn tick(app: Arc<App>) {
    let mut clock = tokio::time::interval(TICK);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = app.stop.cancelled() => return,
            _ = clock.tick() => app.hub.apply(Input::Tick),
        }
    }
}

/// From the start on, so that what was forgotten while the broker did not run goes at once.
async fn keep_agents(app: Arc<App>) {
    let mut clock = tokio::time::interval(KEEP_AGENTS_EVERY);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = app.stop.cancelled() => return,
            _ = clock.tick() => {}
        }
        if let Err(fault) = app.store.keep_agents(app.hub.agents()).await {
            tracing::error!(%fault, "unused agents could not be forgotten");
        }
    }
}

/// Gateway first, so that nothing new comes in; the database last, when nobody needs it any more.
async fn stop(app: &Arc<App>) {
    let hub = app.hub.clone();
    // A panic there was reported when it happened.
    drop(tokio::task::spawn_blocking(move || hub.data_plane.shutdown()).await);
    app.stop.cancel();
    Door::close(&app.tasks).await;
    app.store.close().await;
}
