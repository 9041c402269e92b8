//! A broker is started, asked and stopped.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::api::{EventKind, EventView, TokenKind};
use crate::broker::admission::TicketAdmission;
use crate::broker::app::App;
use crate::broker::audit::Audit;
use crate::broker::config::{Authority, ServeConfig};
use crate::broker::counters::Counters;
use crate::broker::data::{DataDir, DataLock};
use crate::broker::door::Door;
use crate::broker::enrolment::{JOIN_LIFE, JOIN_USES, join_end};
use crate::broker::events::about;
use crate::broker::gateway::{self, Sockets};
use crate::broker::http;
use crate::broker::hub::Hub;
use crate::broker::identity::Identity;
use crate::broker::orchestrator::Input;
use crate::broker::policy::{self, Judge};
use crate::broker::seal::SealKey;
use crate::broker::signin::{self, Signins};
use crate::broker::store::{Database, NewSubject, Store};
use crate::broker::takeover::{Draining, Giver, Predecessor, Successor};
use crate::broker::tuning::Tunings;
use crate::broker::udp::UdpKeys;
use crate::broker::{certificate, clock};
use crate::claims::Claims;
use crate::code::{Code, Fault};
use crate::secret::Secret;
use crate::ticket::TicketKey;
use crate::wire::LOCAL_GATEWAY;

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
    config: ServeConfig,
    local_addr: SocketAddr,
    first_invites: Option<FirstInvites>,
    giver: Giver,
    lock: Arc<DataLock>,
}

/// How a handover ended.
#[derive(Debug)]
pub enum Handover {
    /// The successor serves; pairs of this process go on.
    Done(Draining),
    /// The successor ended before it served. This process serves again; pairs from before go on.
    ///
    /// Each has a gateway for them now, the broker's and the draining one, and either cuts its limits to the process's whole
    /// descriptor limit: until the drain is over the two together may meet that, and then refuse connections.
    Undone(Box<Broker>, Draining),
    /// `stop` was heard first. Pairs go on; whether the successor will serve is not known.
    Stopped(Draining),
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
        let (ground, sockets, lock) = blocking(&config, |config| {
            let sockets = Sockets::bind(config.listen, gateway::listeners(config))?;
            let address = sockets.address()?;
            let data = DataDir::open(&config.data)?;
            let lock = data.lock()?;
            Ok((Ground::prepare(config, data, address)?, sockets, lock))
        })
        .await?;
        Self::open(config, ground, sockets, Arc::new(lock)).await
    }

    /// Starts in the place of the process that serves the same data directory and address now: it hands its sockets
    /// over, and keeps its pairs. Everything else that can fail is done before it stops accepting.
    ///
    /// # Errors
    /// As [`Broker::start`] but for the address, and [`Code::TakeoverNone`], [`Code::TakeoverMismatch`],
    /// [`Code::TakeoverBusy`], [`Code::TakeoverFailed`], [`Code::ProtocolVersion`]. Then the other process goes on.
    pub async fn take_over(config: ServeConfig) -> Result<Self, Fault> {
        let (predecessor, sockets) = Predecessor::ask(&config.data, config.listen).await?;
        let address = sockets.address()?;
        let ground = Ground::prepare_blocking(&config, address).await?;
        blocking(&config, gateway::rehearse).await?;
        let lock = predecessor.ready().await?;
        let lock = Arc::new(ground.data.inherit_lock(lock)?);
        let broker = Self::open(config, ground, sockets, lock).await?;
        predecessor.serving().await;
        Ok(broker)
    }

    async fn open(
        config: ServeConfig,
        ground: Ground,
        sockets: Sockets,
        lock: Arc<DataLock>,
    ) -> Result<Self, Fault> {
        let Ground { data, local_addr, authority, identity, seal, udp, database, .. } = ground;
        let (signins, judge) = (ground.signins, ground.judge);
        let store_lock = lock.clone();
        let store = blocking(&config, move |_| Store::open(database, store_lock)).await?;
        let tickets = Arc::new(TicketKey::new(&clock::random()));
        let counters = Arc::new(Counters::default());
        let tunings = Arc::new(Tunings::new(local_addr, config.tuning.clone()));
        let limits = config.session_limits;
        let told = (counters, Arc::new(Audit::new(&data)));
        let hub = Hub::new(limits, seal, udp, tickets.clone(), tunings.clone(), told);
        let hub = Arc::new(hub);
        let admission = Arc::new(TicketAdmission::new(tickets, tunings));
        let mut app =
            App::new(hub, store, admission.clone(), judge, authority, identity.pin, &config);
        app.signins = signins;
        let app = Arc::new(app);
        let watched = config.tls.clone().map(|files| (files, identity.certificate));
        if let Some((files, used)) = watched {
            app.tasks.spawn(certificate::watch(app.clone(), files, used));
        }
        let begun = begin(&app, &config, sockets, identity.tls).await;
        let first_invites = match begun {
            Ok(first_invites) => first_invites,
            Err(fault) => {
                stop(&app).await;
                return Err(fault);
            }
        };
        let giver = Giver::open(&data, config.listen, local_addr);
        let (io, reason) = app.hub.data_plane.backend();
        app.hub.bus.publish(EventView {
            detail: Some(format!("version {}", env!("CARGO_PKG_VERSION"))),
            ..about(EventKind::BrokerStarted)
        });
        tracing::info!(%local_addr, url = app.authority.url(), io, reason, "broker started");
        Ok(Self { app, config, local_addr, first_invites, giver, lock })
    }

    /// Waits until a new process is ready to take this one's place. What goes wrong before is logged, and changes
    /// nothing. Safe to drop and call again; a process that was in the middle of it is turned away.
    pub async fn successor(&self) -> Successor {
        self.giver.successor(&self.app.hub.data_plane).await
    }

    /// Yields to a new process: accepts nothing more, ends links and requests, closes the database, and lets it serve.
    /// Connections that are made meanwhile, a few milliseconds as a rule and 5 s at most, wait for it. Once `stop` is ready
    /// it is not waited for any longer.
    ///
    /// # Errors
    /// As [`Broker::start`], if the new process failed and this one could not serve again. Then nothing runs.
    pub async fn hand_over(
        self,
        successor: Successor,
        stop: impl Future<Output = ()>,
    ) -> Result<Handover, Fault> {
        let pid = successor.pid();
        let hub = self.app.hub.clone();
        // A panic there was reported when it happened.
        drop(tokio::task::spawn_blocking(move || hub.data_plane.stop_accepting()).await);
        close(&self.app).await;
        let draining = Draining::new(self.app.clone());
        let (config, lock) = (self.config.clone(), self.lock.clone());
        drop(self);
        let served = tokio::select! {
            served = successor.serve(&lock) => served,
            () = stop => return Ok(Handover::Stopped(draining)),
        };
        let Err((fault, sockets)) = served else {
            tracing::info!(pid, "the new process serves");
            return Ok(Handover::Done(draining));
        };
        tracing::error!(pid, %fault, "the takeover failed, serving again");
        match Self::serve_again(config, sockets, lock).await {
            Ok(broker) => Ok(Handover::Undone(Box::new(broker), draining)),
            Err(fault) => {
                draining.end().await;
                Err(fault)
            }
        }
    }

    async fn serve_again(
        config: ServeConfig,
        sockets: Sockets,
        lock: Arc<DataLock>,
    ) -> Result<Self, Fault> {
        let ground = Ground::prepare_blocking(&config, sockets.address()?).await?;
        Self::open(config, ground, sockets, lock).await
    }

    /// Has everything that comes from files read anew: SIGHUP's meaning. What cannot be used is logged, and what was before
    /// is used on.
    pub fn reload(&self) {
        self.app.reload.ask();
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

    /// What clients pin without a string: SHA-256 of the certificate's SubjectPublicKeyInfo, base64url.
    #[must_use]
    pub fn pin(&self) -> &str {
        &self.app.pin
    }

    /// The OIDC provider that users may sign in by.
    #[must_use]
    pub fn oidc_issuer(&self) -> Option<&str> {
        self.config.oidc.as_ref().map(|oidc| oidc.issuer.as_str())
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

/// What is read before anything runs. Another process may still be serving from the same data directory: nothing it
/// relies on is changed.
struct Ground {
    data: DataDir,
    local_addr: SocketAddr,
    authority: Authority,
    identity: Identity,
    seal: SealKey,
    udp: UdpKeys,
    database: Database,
    signins: Signins,
    judge: Judge,
}

impl Ground {
    /// Everything that blocks.
    fn prepare(config: &ServeConfig, data: DataDir, local_addr: SocketAddr) -> Result<Self, Fault> {
        let authority = Authority::choose(config.public.as_deref(), local_addr)?;
        let hosts = [authority.host.clone(), local_addr.ip().to_string()];
        let identity = Identity::load(&data, config.tls.as_ref(), &hosts)?;
        let key = seal_key(&data)?;
        let (seal, udp) = (SealKey::new(&key), UdpKeys::new(&key, config.relay.clone()));
        let database = Database::open(&data)?;
        let (signins, judge) = (Signins::new(config.oidc.clone())?, Judge::new(config)?);
        Ok(Self { data, local_addr, authority, identity, seal, udp, database, signins, judge })
    }

    async fn prepare_blocking(config: &ServeConfig, local_addr: SocketAddr) -> Result<Self, Fault> {
        let prepare = move |config: &ServeConfig| {
            Self::prepare(config, DataDir::open(&config.data)?, local_addr)
        };
        blocking(config, prepare).await
    }
}

/// Runs a part of the start that blocks.
async fn blocking<T: Send + 'static>(
    config: &ServeConfig,
    part: impl FnOnce(&ServeConfig) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let config = config.clone();
    tokio::task::spawn_blocking(move || part(&config))
        .await
        .map_err(|error| Code::Internal.because(format!("start: {error}")))?
}

fn seal_key(data: &DataDir) -> Result<[u8; 32], Fault> {
    let Some(bytes) = data.read(SEAL_KEY_FILE)? else {
        let fresh = clock::random();
        data.write(SEAL_KEY_FILE, &fresh)?;
        return Ok(fresh);
    };
    bytes
        .try_into()
        .map_err(|_| Code::DataCorrupt.because(format!("{SEAL_KEY_FILE} is not 32 bytes long")))
}

async fn begin(
    app: &Arc<App>,
    config: &ServeConfig,
    sockets: Sockets,
    tls: Arc<rustls::ServerConfig>,
) -> Result<Option<FirstInvites>, Fault> {
    let first_invites = first_invites(app).await?;
    if app.store.is_gateway_draining(LOCAL_GATEWAY).await? {
        app.hub.drain_gateway(LOCAL_GATEWAY, true);
    }
    let router = http::router(app.clone());
    let (counters, tasks) = (app.counters.clone(), app.tasks.clone());
    let door = Door::new(tls, router, counters, tasks, app.stop.clone());
    let runtime = tokio::runtime::Handle::current();
    let foreign = Box::new(move |connection| door.take(connection, &runtime));
    let (hub, admission) = (app.hub.clone(), app.admission.clone());
    blocking(config, move |config| gateway::start(sockets, config, admission, foreign, &hub))
        .await?;
    app.tasks.spawn(tick(app.clone()));
    app.tasks.spawn(keep_agents(app.clone()));
    app.tasks.spawn(signin::end_in_time(app.clone()));
    app.tasks.spawn(policy::run(app.clone()));
    let audited = app.clone();
    app.tasks.spawn(async move { audited.audit.run(&audited.store, &audited.stop).await });
    Ok(first_invites)
}

/// On the first start: an administrator who may use everything, and a join string for one agent of any name.
async fn first_invites(app: &App) -> Result<Option<FirstInvites>, Fault> {
    let everything = vec!["*".to_owned()];
    let user = NewSubject {
        kind: TokenKind::User,
        name: FIRST_USER.into(),
        admin: true,
        grants: everything,
        claims: Claims::default(),
        expires_ms: None,
        uses: None,
    };
    let agent = NewSubject {
        kind: TokenKind::Agent,
        name: "*".into(),
        admin: false,
        grants: Vec::new(),
        expires_ms: Some(join_end(JOIN_LIFE)),
        uses: Some(JOIN_USES),
        ..user.clone()
    };
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
        if let Err(fault) = app.store.keep_enrolments(app.hub.enrolments()).await {
            tracing::error!(%fault, "which ends are connected was not noted");
        }
    }
}

/// Gateway first, so that nothing new comes in; the database last, when nobody needs it any more.
async fn stop(app: &Arc<App>) {
    let hub = app.hub.clone();
    // A panic there was reported when it happened.
    drop(tokio::task::spawn_blocking(move || hub.data_plane.shutdown()).await);
    close(app).await;
}

/// Ends everything but the gateway.
async fn close(app: &Arc<App>) {
    app.stop.cancel();
    Door::close(&app.tasks).await;
    // What the last requests told.
    app.audit.flush(&app.store).await;
    app.store.close().await;
}
