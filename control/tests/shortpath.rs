//! Client, broker, gateway and agent in one process: sessions find UDP, keep to their policies, and carry datagrams.
use std::cell::Cell;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use switchback_control::agent::{self, AgentConfig, AgentOptions, AgentState};
use switchback_control::api::EndView;
use switchback_control::api::SessionState;
use switchback_control::api::client::ApiClient;
use switchback_control::broker::{Broker, ServeConfig};
use switchback_control::client::{Client, ClientOptions, ClientSession, SessionConfig, echo};
use switchback_control::invite::{Invite, InviteKind};
use switchback_control::udp::UdpOptions;
use switchback_control::wire::{
    Resource, ResourceKind, SessionId, Standby, TransportPolicy, UdpUse,
};
use switchback_control::{Code, Fault, is_direct};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Everything ends within this, or a test hangs: longer than the minute for which a leg that was late is less trusted.
const PATIENCE: Duration = Duration::from_secs(90);
const RELAYED: &str = "UDP (Relay)";
const TCP: &str = "TCP (Reverse-Connect)";

/// Broker, gateway, an agent, and its services, one for each policy.
struct World {
    broker: Option<Broker>,
    listen: SocketAddr,
    data: tempfile::TempDir,
    login: Invite,
    stop: CancellationToken,
    agent: JoinHandle<Result<(), Fault>>,
}

impl World {
    async fn start(agent_udp: UdpOptions) -> Self {
        let data = tempfile::tempdir().unwrap();
        let broker = serve("127.0.0.1:0".parse().unwrap(), &data).await;
        let invites = broker.first_invites().unwrap();
        let join = Invite::parse(invites.join.reveal(), InviteKind::Join).unwrap();
        let login = Invite::parse(invites.login.reveal(), InviteKind::Login).unwrap();
        let (tcp, udp) = (tcp_echo().await.to_string(), udp_echo().await.to_string());
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let with = |name: &str, udp| {
            let transport = TransportPolicy { udp, standby: Standby::Warm };
            Resource { transport, ..Resource::tcp(name, tcp.clone()) }
        };
        let cold = TransportPolicy { udp: UdpUse::Prefer, standby: Standby::Cold };
        let config = AgentConfig {
            invite: join,
            name: "branch".into(),
            resources: vec![
                with("prefer", UdpUse::Prefer),
                with("require", UdpUse::Require),
                with("relay-only", UdpUse::RelayOnly),
                with("off", UdpUse::Off),
                Resource { transport: cold, ..Resource::tcp("cold", tcp.clone()) },
                Resource::udp("game", udp),
                Resource::tcp("closed", closed.to_string()),
            ],
            warm_legs: 1,
            state_dir: data.path().join("agent"),
        };
        let (sender, mut state) = watch::channel(AgentState::default());
        // Short, for those tests that wait for the end of it.
        let session = SessionConfig {
            resume_window: Duration::from_secs(6),
            deserted_after: Duration::from_secs(2),
            ..SessionConfig::default()
        };
        let options = AgentOptions {
            state: Some(sender),
            udp: agent_udp,
            session,
            ..AgentOptions::default()
        };
        let stop = CancellationToken::new();
        let agent = tokio::spawn(agent::run_with(config, options, stop.clone()));
        soon(state.wait_for(|state| state.registered)).await.unwrap();
        let listen = broker.local_addr();
        Self { broker: Some(broker), listen, data, login, stop, agent }
    }

    async fn client(&self, udp: UdpOptions) -> Client {
        let options = ClientOptions { udp, ready_max: 0, ..ClientOptions::default() };
        Client::connect_with(self.login.clone(), options).await.unwrap()
    }

    async fn restart(&mut self) {
        self.broker.take().unwrap().shutdown().await;
        sleep(Duration::from_millis(300)).await;
        self.broker = Some(serve(self.listen, &self.data).await);
    }

    async fn end(self) {
        self.stop.cancel();
        soon(self.agent).await.unwrap().unwrap();
        if let Some(broker) = self.broker {
            broker.shutdown().await;
        }
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("it never came")
}

fn holds_tcp(end: EndView) -> bool {
    end.paths.legs.iter().any(|leg| leg.transport == TCP)
}

async fn serve(listen: SocketAddr, data: &tempfile::TempDir) -> Broker {
    for _ in 0..100 {
        let mut config = ServeConfig::new(listen, data.path().join("broker"));
        config.workers = Some(1);
        match Broker::start(config).await {
            Ok(broker) => return broker,
            Err(fault) => assert_eq!(fault.code, Code::AddressInUse, "{fault}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("the port stays taken");
}

async fn tcp_echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    address
}

/// Sends every datagram back, but for `who`, which is answered with the address that it came from.
async fn udp_echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 65_536];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let (said, seen_as) = (&buffer[..length], from.to_string());
            let answer = if said == b"who" { seen_as.as_bytes() } else { said };
            let _ = socket.send_to(answer, from).await;
        }
    });
    address
}

/// The session is carried by a leg that is `wanted`; what both ends know of its paths, where it never is.
async fn until(login: &Invite, session: &ClientSession, wanted: impl Fn(&str) -> bool) {
    let there = async {
        while !session.stats().transport.as_deref().is_some_and(&wanted) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    if timeout(PATIENCE, there).await.is_err() {
        let explained = ApiClient::new(login.clone()).explain(session.id()).await;
        panic!("it stays on {:?}: {explained:#?}", session.stats());
    }
}

/// Where applications reach the session.
async fn forwarded(session: &ClientSession) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let session = session.clone();
    tokio::spawn(async move { session.forward(listener).await });
    address
}

/// A connection of an application through the session.
async fn application(session: &ClientSession) -> TcpStream {
    TcpStream::connect(forwarded(session).await).await.unwrap()
}

/// How a connection to `local` fails: a reset may come before `connect` has returned.
async fn refusal(local: SocketAddr) -> ErrorKind {
    let read = async { TcpStream::connect(local).await?.read(&mut [0; 1]).await };
    read.await.unwrap_err().kind()
}

async fn echoes(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
    let mut back = vec![0; text.len()];
    soon(stream.read_exact(&mut back)).await.unwrap();
    assert_eq!(back, text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_direct_and_its_connections_do_not_notice() {
    let world = World::start(UdpOptions::default()).await;
    let client = world.client(UdpOptions::default()).await;
    let session = client.open("prefer").await.unwrap();
    let mut moves = session.moves();
    let mut stream = application(&session).await;
    echoes(&mut stream, b"before").await;
    until(&world.login, &session, is_direct).await;
    echoes(&mut stream, b"after").await;
    let moved = async {
        loop {
            let moved = moves.recv().await.unwrap();
            if is_direct(&moved.to) {
                return moved;
            }
        }
    };
    let direct = session.stats().transport;
    if direct.is_some() {
        // The first moves may have been made before anybody watched.
        let _ = timeout(Duration::from_millis(200), moved).await;
    }
    let api = ApiClient::new(world.login.clone());
    // An end's view of its pairs is as old as its last look, up to a second.
    let succeeded = |end: &EndView| {
        end.paths.pairs.iter().any(|pair| matches!(pair.state.as_str(), "selected" | "succeeded"))
    };
    let ends = soon(async {
        loop {
            let explained = api.explain(session.id()).await.unwrap();
            let ends = [explained.client.unwrap(), explained.agent.unwrap()];
            if ends.iter().all(succeeded) {
                return ends;
            }
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    for end in ends {
        assert!(end.age_ms < 5000);
        assert!(end.paths.legs.iter().any(|leg| leg.transport == TCP), "{:?}", end.paths);
        assert!(end.paths.moves.iter().any(|moved| is_direct(&moved.to)), "{:?}", end.paths);
        let own = |text: &String| text.starts_with("host 127.0.0.1:");
        assert!(end.paths.candidates.iter().any(own), "{:?}", end.paths);
        assert!(end.paths.pairs.iter().any(|pair| own(&pair.local)), "{:?}", end.paths);
    }
    session.close().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_tell_paths_moves_stalls_and_time_to_direct() {
    let world = World::start(UdpOptions::default()).await;
    let client = world.client(UdpOptions::default()).await;
    let session = client.open("prefer").await.unwrap();
    let off = client.open("off").await.unwrap();
    until(&world.login, &session, is_direct).await;
    let api = ApiClient::new(world.login.clone());
    let expected = [
        "switchback_sessions_by_transport{transport=\"UDP (Shortpath)\"} 1",
        "switchback_sessions_by_transport{transport=\"UDP (Relay)\"} 0",
        "switchback_sessions_by_transport{transport=\"TCP (Reverse-Connect)\"} 1",
        "switchback_session_moves_total{transport=\"UDP (Shortpath)\",cause=\"",
        "switchback_session_stall_seconds_count{transport=\"UDP (Shortpath)\"} ",
        "switchback_session_stall_seconds_bucket{transport=\"UDP (Shortpath)\",le=\"+Inf\"} ",
        "switchback_session_time_to_direct_seconds_count 1",
        "switchback_session_time_to_direct_seconds_bucket{le=\"+Inf\"} 1",
    ];
    let told = async {
        loop {
            let metrics = api.metrics().await.unwrap();
            let lacks =
                expected.iter().find(|line| !metrics.lines().any(|it| it.starts_with(**line)));
            if lacks.is_none() {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    if timeout(PATIENCE, told).await.is_err() {
        panic!("{}", api.metrics().await.unwrap());
    }
    session.close().await;
    off.close().await;
    world.end().await;
}

/// Another process, as far as that goes: it ends with all its sockets, and says goodbye to nobody.
struct Victim(Option<tokio::runtime::Runtime>);

impl Victim {
    fn new() -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        Self(Some(builder.worker_threads(1).enable_all().build().unwrap()))
    }

    /// Opens `prefer` there, and waits for a direct path with TCP beside it; the session's id.
    async fn open(&self, login: Invite) -> SessionId {
        let runtime = self.0.as_ref().unwrap();
        let opened = runtime.spawn(async move {
            let client = Client::connect(login.clone()).await.unwrap();
            let session = client.open("prefer").await.unwrap();
            until(&login, &session, is_direct).await;
            let id = session.id().clone();
            let api = ApiClient::new(login);
            // The agent has its TCP leg too: what ends with the client's sockets tells it of their end.
            let tcp = async {
                while !api.explain(&id).await.is_ok_and(|it| it.agent.is_some_and(holds_tcp)) {
                    sleep(Duration::from_millis(10)).await;
                }
            };
            soon(tcp).await;
            // Held for as long as the runtime lives.
            tokio::spawn(async move {
                std::future::pending::<()>().await;
                drop((client, session));
            });
            id
        });
        // It tells of its own why it hangs.
        opened.await.unwrap()
    }

    fn kill(mut self) {
        self.0.take().unwrap().shutdown_background();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_clients_session_is_soon_paused_and_ends_with_its_resume_window() {
    let world = World::start(UdpOptions::default()).await;
    let api = ApiClient::new(world.login.clone());
    let victim = Victim::new();
    let id = victim.open(world.login.clone()).await;
    victim.kill();
    let killed = Instant::now();
    let state = async |wanted: Option<SessionState>| {
        while api.session(&id).await.ok().map(|session| session.state) != wanted {
            assert!(killed.elapsed() < Duration::from_secs(30), "never {wanted:?}");
            sleep(Duration::from_millis(100)).await;
        }
        killed.elapsed()
    };
    let paused = state(Some(SessionState::Paused)).await;
    assert!(paused < Duration::from_secs(5), "{paused:?}");
    let over = state(None).await;
    assert!((Duration::from_secs(5)..Duration::from_secs(9)).contains(&over), "{over:?}");
    let gone = soon(async {
        while !api.metrics().await.unwrap().lines().any(|it| it == "switchback_gateway_pairs 0") {
            sleep(Duration::from_millis(100)).await;
        }
    });
    gone.await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_standby_a_session_on_udp_holds_no_place_at_the_gateway() {
    let world = World::start(UdpOptions::default()).await;
    let client = world.client(UdpOptions::default()).await;
    let session = client.open("cold").await.unwrap();
    let mut stream = application(&session).await;
    until(&world.login, &session, is_direct).await;
    let api = ApiClient::new(world.login.clone());
    soon(async {
        while !api.metrics().await.unwrap().lines().any(|it| it == "switchback_gateway_pairs 0") {
            echoes(&mut stream, b"all along").await;
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let alone = |end: &EndView| end.paths.legs.iter().all(|leg| is_direct(&leg.transport));
    soon(async {
        loop {
            let explained = api.explain(session.id()).await.unwrap();
            if [explained.client.unwrap(), explained.agent.unwrap()].iter().all(alone) {
                return;
            }
            echoes(&mut stream, b"and after").await;
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(session.stats().resumes, 0, "nothing was lost");
    session.close().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_on_udp_outlives_its_broker_and_gateway_without_a_gap() {
    let mut world = World::start(UdpOptions::default()).await;
    let client = world.client(UdpOptions::default()).await;
    let session = client.open("prefer").await.unwrap();
    let mut stream = application(&session).await;
    until(&world.login, &session, is_direct).await;
    let back = Cell::new(false);
    let chatter = async {
        while !back.get() {
            echoes(&mut stream, b"still here").await;
            sleep(Duration::from_millis(20)).await;
        }
    };
    let restart = async {
        world.restart().await;
        back.set(true);
    };
    tokio::join!(chatter, restart);
    echoes(&mut stream, b"and after").await;
    let api = ApiClient::new(world.login.clone());
    let known = soon(async {
        loop {
            match api.session(session.id()).await {
                Ok(known) if known.transport.as_deref().is_some_and(is_direct) => return known,
                _ => sleep(Duration::from_millis(100)).await,
            }
        }
    });
    assert_eq!(known.await.id, *session.id());
    session.close().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_target_is_told_whatever_carries_the_session() {
    let world = World::start(UdpOptions::default()).await;
    let client = world.client(UdpOptions::default()).await;
    let session = client.open("closed").await.unwrap();
    let local = forwarded(&session).await;
    for _ in 0..20 {
        assert_eq!(soon(refusal(local)).await, ErrorKind::ConnectionReset);
        sleep(Duration::from_millis(20)).await;
    }
    until(&world.login, &session, is_direct).await;
    assert_eq!(soon(refusal(local)).await, ErrorKind::ConnectionReset);
    session.close().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_policy_is_kept() {
    let world = World::start(UdpOptions::default()).await;
    let client = world.client(UdpOptions::default()).await;
    let required = soon(client.open("require")).await.unwrap();
    assert!(is_direct(&required.stats().transport.unwrap()));
    echoes(&mut application(&required).await, b"direct").await;
    let relayed = client.open("relay-only").await.unwrap();
    echoes(&mut application(&relayed).await, b"over tcp at first").await;
    until(&world.login, &relayed, |label| label == RELAYED).await;
    echoes(&mut application(&relayed).await, b"relayed").await;
    let off = client.open("off").await.unwrap();
    assert_eq!(off.transport().udp, UdpUse::Off);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(off.stats().transport.as_deref(), Some(TCP));
    let api = ApiClient::new(world.login.clone());
    let explained = api.explain(off.id()).await.unwrap();
    assert_eq!(explained.policy.udp, UdpUse::Off);
    for end in [explained.client.unwrap(), explained.agent.unwrap()] {
        assert_eq!((end.paths.reasons, end.paths.pairs), (vec!["policy_no_udp".into()], vec![]));
    }
    let feed = api.resources().await.unwrap();
    let policy =
        |name: &str| feed.iter().find(|it| it.name == name).unwrap().transport.unwrap().udp;
    assert_eq!((policy("off"), policy("require")), (UdpUse::Off, UdpUse::Require));
    for session in [required, relayed, off] {
        session.close().await;
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_without_udp_stays_on_tcp_and_gets_nothing_that_must_be_direct() {
    let world = World::start(UdpOptions::default()).await;
    let client = world.client(UdpOptions::off()).await;
    let refused = client.open("require").await.unwrap_err();
    assert_eq!(refused.code, Code::DirectRequired);
    let session = client.open("prefer").await.unwrap();
    echoes(&mut application(&session).await, b"tcp").await;
    let api = ApiClient::new(world.login.clone());
    let explained = api.explain(session.id()).await.unwrap();
    assert_eq!(explained.client.unwrap().paths.reasons, ["udp_disabled"]);
    session.close().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_udp_service_answers_each_local_address_by_itself() {
    let world = World::start(UdpOptions::default()).await;
    let client = world.client(UdpOptions::default()).await;
    let session = client.open("game").await.unwrap();
    assert_eq!(session.kind(), ResourceKind::Udp);
    let port = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = port.local_addr().unwrap();
    let forwarding = session.clone();
    let forwarded = tokio::spawn(async move { forwarding.forward_datagrams(port).await });
    let mut players = Vec::new();
    for name in ["one", "two"] {
        let player = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        player.connect(address).await.unwrap();
        ask(&player, name).await;
        players.push(player);
    }
    until(&world.login, &session, is_direct).await;
    for (player, name) in players.iter().zip(["one again", "two again"]) {
        ask(player, name).await;
    }
    assert_eq!(session.stats().channels, 2);
    session.close().await;
    assert_eq!(soon(forwarded).await.unwrap(), Ok(()));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_asks_from_a_new_port_each_time_is_always_answered() {
    let world = World::start(UdpOptions::off()).await;
    let client = world.client(UdpOptions::off()).await;
    let session = client.open("game").await.unwrap();
    let port = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = port.local_addr().unwrap();
    let forwarding = session.clone();
    let forwarded = tokio::spawn(async move { forwarding.forward_datagrams(port).await });
    // One that is in use throughout keeps its flow, and so its address at the service.
    let busy = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    busy.connect(address).await.unwrap();
    let seen_as = answer_to(&busy, "who").await;
    for number in 0..700 {
        let resolver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        resolver.connect(address).await.unwrap();
        ask(&resolver, &number.to_string()).await;
        if number % 100 == 0 {
            assert_eq!(answer_to(&busy, "who").await, seen_as, "after {number}");
        }
    }
    session.close().await;
    assert_eq!(soon(forwarded).await.unwrap(), Ok(()));
    world.end().await;
}

/// Datagrams may be lost, so a question is asked until it is answered.
async fn answer_to(player: &UdpSocket, question: &str) -> String {
    let mut answer = [0; 64];
    soon(async {
        loop {
            player.send(question.as_bytes()).await.unwrap();
            let heard = timeout(Duration::from_millis(500), player.recv(&mut answer)).await;
            if let Ok(Ok(length)) = heard {
                return String::from_utf8_lossy(&answer[..length]).into_owned();
            }
        }
    })
    .await
}

async fn ask(player: &UdpSocket, question: &str) {
    soon(async { while answer_to(player, question).await != question {} }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_echo_session_answers_without_the_service() {
    let world = World::start(UdpOptions::off()).await;
    let client = world.client(UdpOptions::default()).await;
    let session = client.open_echo("off").await.unwrap();
    let (mut sender, mut replies) = echo(&session, 100).unwrap();
    for number in [7, 8, 9] {
        sender.send(number, 100).await.unwrap();
        assert_eq!(soon(replies.recv()).await, Some(Ok(number)));
    }
    session.close().await;
    assert!(matches!(soon(replies.recv()).await, Some(Err(_)) | None));
    world.end().await;
}
