//! All parts of Switchback in this process, on loopback, in a directory that goes away with them.
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use switchback_control::agent::{self, AgentConfig};
use switchback_control::api::SessionView;
use switchback_control::api::client::ApiClient;
use switchback_control::broker::{Broker, ServeConfig};
use switchback_control::client::{Client, ClientSession};
use switchback_control::invite::{Invite, InviteKind};
use switchback_control::secret::Secret;
use switchback_control::wire::Resource;
use switchback_control::{Code, Fault};
use switchback_engine::IoChoice;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::board::Board;

/// Name of the demo's resource.
pub(crate) const RESOURCE: &str = "demo";
/// How long the agent may take to offer it: its link needs a few milliseconds on loopback.
const AGENT_PATIENCE: Duration = Duration::from_secs(10);
const AGENT_POLL: Duration = Duration::from_millis(20);
/// How long the session and the agent each may take to say farewell.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
/// One leg ready is enough for one session.
const WARM_LEGS: u32 = 1;
/// How often the broker is asked for its sessions.
const ASK: Duration = Duration::from_millis(400);

/// Broker, gateway, agent and client, connected.
pub(crate) struct Stage {
    /// Local port that leads through the gateway to the target.
    pub(crate) forward: SocketAddr,
    /// The demo user's login string.
    pub(crate) login: Secret,
    /// Kind of I/O that the gateway uses, and why.
    pub(crate) io: (String, String),
    /// The broker's API as the demo user.
    pub(crate) api: ApiClient,
    broker: Option<Broker>,
    address: SocketAddr,
    io_choice: IoChoice,
    session: ClientSession,
    forwarding: JoinHandle<Result<(), Fault>>,
    agent: JoinHandle<Result<(), Fault>>,
    agent_stop: CancellationToken,
    sessions: watch::Receiver<Vec<SessionView>>,
    /// Ends with the stage.
    _asking: JoinSet<()>,
    directory: TempDir,
}

impl Stage {
    /// Starts everything and opens a session to `target`, `HOST:PORT`.
    pub(crate) async fn start(target: String, io_choice: IoChoice) -> Result<Self, Fault> {
        let directory = tempfile::Builder::new()
            .prefix("switchback-demo-")
            .tempdir()
            .map_err(|error| Code::DataDirUnusable.because(format!("demo: {error}")))?;
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let broker =
            Broker::start(serve_config(any_port, directory.path().join("serve"), io_choice))
                .await?;
        let invites = broker.first_invites().ok_or_else(|| {
            Code::Internal.because("demo: a new data directory gave no join and login strings")
        })?;
        let (join, login) = (invites.join.clone(), invites.login.clone());
        let agent_stop = CancellationToken::new();
        let config = agent_config(&join, target, directory.path().join("agent"))?;
        let agent = tokio::spawn(agent::run(config, agent_stop.clone()));
        let invite = Invite::parse(login.reveal(), InviteKind::Login)?;
        let session = open_session(invite.clone()).await?;
        let (forward, forwarding) = forward(session.clone()).await?;
        let (io, io_reason) = broker.io_backend();
        let (sessions, _asking) = ask_for_sessions(invite.clone());
        Ok(Self {
            forward,
            login,
            io: (io.to_owned(), io_reason),
            api: ApiClient::new(invite),
            address: broker.local_addr(),
            broker: Some(broker),
            io_choice,
            session,
            forwarding,
            agent,
            agent_stop,
            sessions,
            _asking,
            directory,
        })
    }

    /// Address of broker and gateway.
    pub(crate) fn gateway(&self) -> SocketAddr {
        self.address
    }

    /// The sessions as the broker sees them, kept up to date.
    pub(crate) fn sessions(&self) -> watch::Receiver<Vec<SessionView>> {
        self.sessions.clone()
    }

    /// The session as the broker sees it now.
    pub(crate) async fn session(&self) -> Result<SessionView, Fault> {
        self.api.session(self.session.id()).await
    }

    /// Ends broker and gateway and starts them again: same port, same data.
    pub(crate) async fn restart(&mut self, board: &Board) -> Result<(), Fault> {
        board.going_down(Instant::now());
        if let Some(broker) = self.broker.take() {
            broker.shutdown().await;
        }
        let data = self.directory.path().join("serve");
        let broker = Broker::start(serve_config(self.address, data, self.io_choice)).await?;
        board.back_up(Instant::now());
        self.broker = Some(broker);
        Ok(())
    }

    /// Ends everything in the order in which nobody has to wait for anybody.
    pub(crate) async fn finish(self) {
        self.forwarding.abort();
        // Who does not end in time is ended with the process.
        let _ = timeout(STOP_PATIENCE, self.session.close()).await;
        self.agent_stop.cancel();
        let _ = timeout(STOP_PATIENCE, self.agent).await;
        if let Some(broker) = self.broker {
            broker.shutdown().await;
        }
    }
}

/// Asks the broker for its sessions again and again; while it is away the last answer stands.
fn ask_for_sessions(invite: Invite) -> (watch::Receiver<Vec<SessionView>>, JoinSet<()>) {
    let (sender, receiver) = watch::channel(Vec::new());
    let api = ApiClient::new(invite);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while !sender.is_closed() {
            if let Ok(sessions) = api.sessions().await {
                sender.send_replace(sessions);
            }
            sleep(ASK).await;
        }
    });
    (receiver, tasks)
}

fn serve_config(listen: SocketAddr, data: PathBuf, io: IoChoice) -> ServeConfig {
    ServeConfig { io, ..ServeConfig::new(listen, data) }
}

fn agent_config(join: &Secret, target: String, state_dir: PathBuf) -> Result<AgentConfig, Fault> {
    Ok(AgentConfig {
        invite: Invite::parse(join.reveal(), InviteKind::Join)?,
        name: "demo-agent".into(),
        resources: vec![Resource::tcp(RESOURCE, target)],
        warm_legs: WARM_LEGS,
        state_dir,
    })
}

/// Opens the session as soon as the agent offers the resource.
async fn open_session(invite: Invite) -> Result<ClientSession, Fault> {
    let client = Client::connect(invite).await?;
    let deadline = Instant::now() + AGENT_PATIENCE;
    loop {
        match client.open(RESOURCE).await {
            Err(fault) if is_early(fault.code) && Instant::now() < deadline => {
                sleep(AGENT_POLL).await
            }
            outcome => return outcome,
        }
    }
}

/// What the broker says before the agent has registered.
fn is_early(code: Code) -> bool {
    matches!(code, Code::ResourceUnknown | Code::ResourceNotGranted | Code::AgentOffline)
}

async fn forward(
    session: ClientSession,
) -> Result<(SocketAddr, JoinHandle<Result<(), Fault>>), Fault> {
    let failed = |error: std::io::Error| Code::Internal.because(format!("demo: {error}"));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((address, tokio::spawn(async move { session.forward(listener).await })))
}
