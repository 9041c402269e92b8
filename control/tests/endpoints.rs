//! Agent and client against the real broker and gateway, in one process, over TCP alone: `shortpath.rs` has the UDP.
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use socket2::Socket;
use switchback_control::agent::{self, AgentConfig, AgentOptions, AgentState};
use switchback_control::api::client::ApiClient;
use switchback_control::broker::{Broker, ServeConfig};
use switchback_control::client::{Client, ClientOptions, ClientSession};
use switchback_control::invite::{Invite, InviteKind};
use switchback_control::udp::UdpOptions;
use switchback_control::wire::Resource;
use switchback_control::{Code, Fault};
use switchback_shortpath::ChannelError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

#[path = "endpoints/far_away.rs"]
mod far_away;
#[path = "endpoints/fast_start.rs"]
mod fast_start;

/// Everything ends within this, or a test hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Broker, gateway, agent and an echo service.
struct World {
    broker: Option<Broker>,
    listen: SocketAddr,
    data: tempfile::TempDir,
    join: Invite,
    login: Invite,
    echo: SocketAddr,
}

struct RunningAgent {
    state: watch::Receiver<AgentState>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Fault>>,
}

impl World {
    async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let broker = serve("127.0.0.1:0".parse().unwrap(), data.path()).await;
        let listen = broker.local_addr();
        let invites = broker.first_invites().unwrap();
        let join = Invite::parse(invites.join.reveal(), InviteKind::Join).unwrap();
        let login = Invite::parse(invites.login.reveal(), InviteKind::Login).unwrap();
        let echo = echo_service().await;
        Self { broker: Some(broker), listen, data, join, login, echo }
    }

    fn agent(&self, warm_legs: u32) -> RunningAgent {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = AgentConfig {
            invite: self.join.clone(),
            name: "branch".into(),
            resources: vec![
                Resource::tcp("echo", self.echo.to_string()),
                Resource::tcp("closed", closed.to_string()),
                Resource {
                    tuning: "dscp=af41,max-pacing-rate=1gbit".parse().unwrap(),
                    ..Resource::tcp("tuned", self.echo.to_string())
                },
            ],
            warm_legs,
            state_dir: self.data.path().join("agent"),
        };
        let (sender, state) = watch::channel(AgentState::default());
        let udp = UdpOptions::off();
        let options = AgentOptions { state: Some(sender), udp, ..AgentOptions::default() };
        let stop = CancellationToken::new();
        let task = tokio::spawn(agent::run_with(config, options, stop.clone()));
        RunningAgent { state, stop, task }
    }

    async fn client(&self) -> Client {
        Client::connect(self.login.clone()).await.unwrap()
    }

    /// The same broker and gateway again, on the same port, after a pause.
    async fn restart(&mut self) {
        self.broker.take().unwrap().shutdown().await;
        sleep(Duration::from_millis(300)).await;
        self.broker = Some(serve(self.listen, self.data.path()).await);
    }
}

impl RunningAgent {
    async fn until(&mut self, wanted: impl FnMut(&AgentState) -> bool) {
        timeout(PATIENCE, self.state.wait_for(wanted)).await.unwrap().unwrap();
    }
}

async fn serve(listen: SocketAddr, data: &Path) -> Broker {
    // The port of a broker that just stopped may take a moment.
    for _ in 0..100 {
        let mut config = ServeConfig::new(listen, data.join("broker"));
        config.workers = Some(1);
        match Broker::start(config).await {
            Ok(broker) => return broker,
            Err(fault) => assert_eq!(fault.code, Code::AddressInUse, "{fault}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("the port stays taken");
}

/// Sends everything back, and ends its direction when the other one ends.
async fn echo_service() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        }
    });
    address
}

/// A local port that leads into the session.
async fn forward(session: &ClientSession) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let session = session.clone();
    tokio::spawn(async move { session.forward(listener).await });
    address
}

async fn echoes(through: SocketAddr, text: &[u8]) {
    let echoed = async {
        let mut stream = TcpStream::connect(through).await.unwrap();
        stream.write_all(text).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await.unwrap();
        assert_eq!(back, text);
    };
    timeout(PATIENCE, echoed).await.unwrap();
}

/// Block `number` of a stream that never repeats within a test.
fn block(number: u64) -> Vec<u8> {
    (0..4096)
        .flat_map(|word: u64| {
            (number << 16 | word).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_reach_the_service_and_half_close_delivers_the_tail() {
    let world = World::start().await;
    let mut agent = world.agent(2);
    agent.until(|state| state.registered).await;
    let session = world.client().await.open("echo").await.unwrap();
    assert_eq!(session.agent(), "branch");
    let port = forward(&session).await;
    for round in 0..5_u8 {
        echoes(port, &vec![round; 100_000 * usize::from(round) + 1]).await;
    }
    let stats = session.stats();
    assert_eq!(stats.transport.as_deref(), Some("TCP (Reverse-Connect)"));
    assert_eq!((stats.client_to_target, stats.target_to_client), (1_000_005, 1_000_005));
    session.close().await;
    assert_eq!(session.open_channel().unwrap_err().code, Code::SessionClosed);
    agent.until(|state| state.sessions == 0).await;
    agent.stop.cancel();
    assert_eq!(agent.task.await.unwrap(), Ok(()));
    world.broker.unwrap().shutdown().await;
}

/// This process's connections with the DSCP af41: local and peer address.
fn connections_of_video() -> Vec<(SocketAddr, SocketAddr)> {
    let own = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let marked = |socket: Socket| {
        let address = |found: std::io::Result<socket2::SockAddr>| found.ok()?.as_socket();
        let ends = (address(socket.local_addr())?, address(socket.peer_addr())?);
        socket.tos_v4().is_ok_and(|tos| tos >> 2 == 34).then_some(ends)
    };
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|number| pidfd_getfd(&own, number, PidfdGetfdFlags::empty()).ok())
        .filter_map(|descriptor| marked(descriptor.into()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resources_tuning_reaches_its_own_sockets_at_gateway_and_agent_and_no_other() {
    // With a leg that was dialled for the session, and with one that waited for it.
    for warm_legs in [0, 2] {
        let world = World::start().await;
        let mut agent = world.agent(warm_legs);
        agent.until(|state| state.registered && state.warm_legs == warm_legs).await;
        // One that is held ready would have legs of its own.
        let options = ClientOptions { ready_max: 0, ..ClientOptions::default() };
        let client = Client::connect_with(world.login.clone(), options).await.unwrap();
        let plain = client.open("echo").await.unwrap();
        echoes(forward(&plain).await, b"untuned").await;
        let of_this_world = |(local, peer): &(SocketAddr, SocketAddr)| {
            [local, peer].iter().any(|end| [world.listen, world.echo].contains(end))
        };
        assert!(!connections_of_video().iter().any(of_this_world));
        let session = client.open("tuned").await.unwrap();
        let mut stream = TcpStream::connect(forward(&session).await).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        timeout(PATIENCE, stream.read_exact(&mut [0])).await.unwrap().unwrap();
        let found = connections_of_video();
        let count = |is: &dyn Fn(&(SocketAddr, SocketAddr)) -> bool| {
            found.iter().filter(|ends| is(ends)).count()
        };
        assert_eq!(count(&|(local, _)| *local == world.listen), 2, "both legs at the gateway");
        assert_eq!(count(&|(_, peer)| *peer == world.listen), 1, "the agent's end of its leg");
        assert_eq!(count(&|(_, peer)| *peer == world.echo), 1, "the connection to the service");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_target_is_told_and_an_unknown_resource_too() {
    let world = World::start().await;
    let mut agent = world.agent(0);
    agent.until(|state| state.registered).await;
    let client = world.client().await;
    assert_eq!(client.open("nothing").await.unwrap_err().code, Code::ResourceUnknown);
    let session = client.open("closed").await.unwrap();
    let mut channel = session.open_channel().unwrap();
    let refused = timeout(PATIENCE, channel.read()).await.unwrap().unwrap_err();
    let ChannelError::Reset(number) = refused else { panic!("{refused:?}") };
    assert_eq!(switchback_control::reason::of_reset(number), Code::TargetRefused);
    let port = forward(&session).await;
    let mut local = TcpStream::connect(port).await.unwrap();
    let reset = timeout(PATIENCE, local.read(&mut [0; 1])).await.unwrap();
    assert_eq!(reset.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_agent_is_waited_for_and_then_told() {
    let world = World::start().await;
    let mut agent = world.agent(0);
    agent.until(|state| state.registered).await;
    agent.stop.cancel();
    agent.task.await.unwrap().unwrap();
    let options =
        ClientOptions { start_within: Duration::from_secs(1), ..ClientOptions::default() };
    let hasty = Client::connect_with(world.login.clone(), options).await.unwrap();
    assert_eq!(hasty.open("echo").await.unwrap_err().code, Code::AgentOffline);
    let client = world.client().await;
    let opening = tokio::spawn(async move { client.open("echo").await });
    let _agent = world.agent(0);
    let session = timeout(PATIENCE, opening).await.unwrap().unwrap().unwrap();
    echoes(forward(&session).await, b"after all").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_survives_two_restarts_of_broker_and_gateway_with_every_byte_right() {
    const BLOCKS: u64 = 2000;
    let mut world = World::start().await;
    let mut agent = world.agent(2);
    agent.until(|state| state.registered).await;
    let client = world.client().await;
    let session = client.open("echo").await.unwrap();
    let stream = TcpStream::connect(forward(&session).await).await.unwrap();
    let (mut from, mut to) = stream.into_split();
    let (progress, mut sent) = watch::channel(0);
    let sender = tokio::spawn(async move {
        let mut hash = Context::new(&SHA256);
        for number in 0..BLOCKS {
            let block = block(number);
            hash.update(&block);
            to.write_all(&block).await.unwrap();
            progress.send_replace(number);
        }
        to.shutdown().await.unwrap();
        hash.finish()
    });
    let receiver = tokio::spawn(async move {
        let (mut hash, mut bytes) = (Context::new(&SHA256), vec![0; 65_536]);
        loop {
            match from.read(&mut bytes).await.unwrap() {
                0 => return hash.finish(),
                count => hash.update(&bytes[..count]),
            }
        }
    });
    for at in [BLOCKS / 4, BLOCKS / 2] {
        timeout(PATIENCE, sent.wait_for(|&number| number >= at)).await.unwrap().unwrap();
        world.restart().await;
    }
    let sent = timeout(PATIENCE, sender).await.unwrap().unwrap();
    let received = timeout(PATIENCE, receiver).await.unwrap().unwrap();
    assert_eq!(sent.as_ref(), received.as_ref());
    assert!(session.stats().resumes >= 2);
    // The new broker learned of the session from its ends.
    let known = ApiClient::new(world.login.clone()).sessions().await.unwrap();
    assert!(known.iter().any(|view| &view.id == session.id() && view.resource == "echo"));
    // A session that never lost its agent is not the only thing that works again.
    let other = client.open("echo").await.unwrap();
    echoes(forward(&other).await, b"new").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_session_ends_at_both_ends_with_its_code() {
    let world = World::start().await;
    let mut agent = world.agent(1);
    agent.until(|state| state.registered).await;
    let session = world.client().await.open("echo").await.unwrap();
    let mut stream = TcpStream::connect(forward(&session).await).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.read_exact(&mut [0; 1]).await.unwrap();
    ApiClient::new(world.login.clone()).kill(session.id()).await.unwrap();
    let fault = timeout(PATIENCE, session.closed()).await.unwrap();
    assert_eq!(fault.code, Code::SessionKilled);
    assert!(timeout(PATIENCE, stream.read(&mut [0; 1])).await.unwrap().is_err());
    agent.until(|state| state.sessions == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warm_legs_are_kept_used_and_replaced() {
    let world = World::start().await;
    let mut agent = world.agent(3);
    agent.until(|state| state.warm_legs == 3).await;
    let client = world.client().await;
    for _ in 0..6 {
        let session = client.open("echo").await.unwrap();
        echoes(forward(&session).await, b"warm").await;
        agent.until(|state| state.warm_legs == 3).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sessions_share_one_client_and_one_agent() {
    const SESSIONS: usize = 200;
    let world = World::start().await;
    let mut agent = world.agent(4);
    agent.until(|state| state.registered).await;
    let client = world.client().await;
    let mut opening = tokio::task::JoinSet::new();
    for number in 0..SESSIONS {
        let client = client.clone();
        opening.spawn(async move {
            let session = client.open("echo").await.unwrap();
            let mut channel = session.open_channel().unwrap();
            let text = bytes::Bytes::from(format!("session {number}"));
            channel.write(text.clone()).await.unwrap();
            assert_eq!(channel.read().await.unwrap(), Some(text));
            session
        });
    }
    let sessions = timeout(PATIENCE, opening.join_all()).await.unwrap();
    agent.until(|state| state.sessions == SESSIONS).await;
    let closing: Vec<_> = sessions
        .into_iter()
        .map(|session| tokio::spawn(async move { session.close().await }))
        .collect();
    for close in closing {
        timeout(PATIENCE, close).await.unwrap().unwrap();
    }
    agent.until(|state| state.sessions == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_enrolment_is_revoked_stops_with_that_code() {
    let world = World::start().await;
    let mut agent = world.agent(1);
    agent.until(|state| state.registered).await;
    let admin = ApiClient::new(world.login.clone());
    let tokens = admin.tokens().await.unwrap();
    let end = tokens.iter().find(|token| token.enrolment.is_some()).unwrap();
    admin.revoke(&end.id, false).await.unwrap();
    let fault = timeout(PATIENCE, agent.task).await.unwrap().unwrap().unwrap_err();
    assert_eq!(fault.code, Code::TokenRevoked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_crashed_and_came_back_ends_old_connections_and_takes_new_sessions() {
    let world = World::start().await;
    let crashing = tokio::runtime::Runtime::new().unwrap();
    let mut agent = {
        let _inside = crashing.enter();
        world.agent(1)
    };
    agent.until(|state| state.registered).await;
    let client = world.client().await;
    let session = client.open("echo").await.unwrap();
    let mut stream = TcpStream::connect(forward(&session).await).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.read_exact(&mut [0; 1]).await.unwrap();
    crashing.shutdown_background();
    let mut agent = world.agent(1);
    agent.until(|state| state.registered).await;
    let ended = timeout(PATIENCE, stream.read(&mut [0; 1])).await.unwrap();
    assert!(ended.is_err(), "no false end of file");
    timeout(PATIENCE, session.closed()).await.unwrap();
    let again = client.open("echo").await.unwrap();
    echoes(forward(&again).await, b"again").await;
}
