//! A broker with two gateways beside its own, a real agent and a real client, in one process.
use std::time::Duration;

use hyper::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::support::{Bench, eventually, soon};
use crate::agent::{self, AgentConfig, AgentOptions};
use crate::api::{
    ExplainView, GatewayState, GatewayView, IssuedToken, NewToken, SessionView, TokenKind,
};
use crate::client::{Client, ClientOptions};
use crate::code::{Code, Fault};
use crate::gateway::{Gateway, GatewayConfig};
use crate::invite::{Invite, InviteKind};
use crate::udp::UdpOptions;
use crate::wire::Resource;

/// Below those that systems give out.
const RELAY_PORTS: (u16, u16) = (30_000, 30_999);

/// A gateway that runs, and the way to end it at once.
struct Running {
    name: &'static str,
    config: GatewayConfig,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Fault>>,
}

impl Running {
    async fn start(bench: &Bench, name: &'static str, config: GatewayConfig) -> Self {
        let (gateway, stop) =
            (Gateway::start(config.clone()).await.unwrap(), CancellationToken::new());
        let task = tokio::spawn(gateway.run(stop.clone(), Duration::ZERO));
        eventually(async || state_of(bench, name).await.is_some_and(|it| it != GatewayState::Lost))
            .await;
        Self { name, config, stop, task }
    }

    /// Ends it and starts it again.
    async fn restart(self, bench: &Bench) -> Self {
        let Self { name, config, stop, task } = self;
        stop.cancel();
        soon(task).await.unwrap().unwrap();
        is_in(bench, name, GatewayState::Lost).await;
        Self::start(bench, name, config).await
    }
}

async fn gateway(bench: &Bench, name: &'static str) -> Running {
    let wish = NewToken::new(TokenKind::Gateway, name);
    let issued: IssuedToken = bench.as_admin(Method::POST, "/v1/tokens", &wish).await.json();
    let invite = Invite::parse(issued.invite.reveal(), InviteKind::Gateway).unwrap();
    let state = bench.data().join(format!("gateway-{name}"));
    let config = GatewayConfig {
        workers: Some(1),
        turn_ports: Some(RELAY_PORTS.0..=RELAY_PORTS.1),
        ..GatewayConfig::new(invite, name.into(), state, "127.0.0.1:0".parse().unwrap())
    };
    Running::start(bench, name, config).await
}

async fn view_of(bench: &Bench, name: &str) -> Option<GatewayView> {
    let gateways: Vec<GatewayView> = bench.get("/v1/gateways", &bench.admin).await.json();
    gateways.into_iter().find(|it| it.name == name)
}

async fn state_of(bench: &Bench, name: &str) -> Option<GatewayState> {
    view_of(bench, name).await.map(|it| it.state)
}

async fn is_in(bench: &Bench, name: &str, state: GatewayState) {
    eventually(async || state_of(bench, name).await == Some(state)).await;
}

async fn drain(bench: &Bench, name: &str, drain: bool) {
    let method = if drain { Method::PUT } else { Method::DELETE };
    let path = format!("/v1/gateways/{name}/drain");
    assert!(bench.as_admin(method, &path, &()).await.status.is_success());
}

async fn only_session(bench: &Bench) -> SessionView {
    let sessions: Vec<SessionView> = bench.get("/v1/sessions", &bench.admin).await.json();
    sessions.into_iter().next().expect("the session lives")
}

/// Echoes until it is dropped.
async fn echo_target() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.into_split();
                tokio::io::copy(&mut reader, &mut writer).await
            });
        }
    });
    address
}

/// An agent with `echo`, without UDP, and a client's local port to it.
async fn use_echo(bench: &Bench, state: &std::path::Path) -> (Client, TcpStream) {
    let url = bench.broker.url();
    let invite = |kind, token: &str| {
        let (pin, token) = (bench.pin(), crate::secret::Secret::new(token));
        Invite { kind, url: url.clone(), pin, token }
    };
    let config = AgentConfig {
        invite: invite(InviteKind::Join, &bench.join),
        name: "lab".into(),
        resources: vec![Resource::tcp("echo", echo_target().await)],
        warm_legs: 2,
        state_dir: state.to_owned(),
    };
    let options = AgentOptions { udp: UdpOptions::off(), ..AgentOptions::default() };
    tokio::spawn(agent::run_with(config, options, CancellationToken::new()));
    let udp = UdpOptions::off();
    let options = ClientOptions { udp, ready_max: 0, ..ClientOptions::default() };
    let invite = invite(InviteKind::Login, &bench.admin);
    let client = Client::connect_with(invite, options).await.unwrap();
    let session = loop {
        // Until the agent is there, the resource is unknown.
        match client.open("echo").await {
            Ok(session) => break session,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let local = listener.local_addr().unwrap();
    tokio::spawn(async move { session.forward(listener).await });
    (client, TcpStream::connect(local).await.unwrap())
}

/// Messages through the echo until `stop`; each must come back as it was.
async fn pump(stream: TcpStream, stop: CancellationToken) -> u64 {
    let (mut reader, mut writer) = stream.into_split();
    let sending = tokio::spawn(async move {
        let mut sent = 0_u64;
        while !stop.is_cancelled() {
            writer.write_all(&sent.to_be_bytes().repeat(512)).await.unwrap();
            sent += 1;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        writer.shutdown().await.unwrap();
        sent
    });
    let mut got = 0_u64;
    let mut message = [0; 4096];
    while reader.read_exact(&mut message).await.is_ok() {
        assert_eq!(message[..], got.to_be_bytes().repeat(512), "message {got}");
        got += 1;
    }
    assert_eq!(sending.await.unwrap(), got, "every message came back");
    got
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_move_off_a_gateway_that_drains_and_outlive_one_that_is_cut() {
    let (data, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bench = Bench::first(data.path()).await;
    let mut running = vec![gateway(&bench, "a").await, gateway(&bench, "b").await];
    drain(&bench, "local", true).await;
    let (_client, stream) = use_echo(&bench, state.path()).await;
    let stop = CancellationToken::new();
    let pumping = tokio::spawn(pump(stream, stop.clone()));
    let before = only_session(&bench).await;
    let first = before.gateway.clone();
    let other = running.iter().map(|it| it.name).find(|name| *name != first).unwrap();
    assert_ne!(first, bench.address.to_string(), "not through one that drains");

    drain(&bench, &first, true).await;
    eventually(async || only_session(&bench).await.gateway == other).await;
    is_in(&bench, &first, GatewayState::Drained).await;
    let moved = only_session(&bench).await;
    assert_eq!((&moved.id, moved.resumes), (&before.id, 0), "it left, and lost nothing");

    drain(&bench, &first, false).await;
    let at = running.iter().position(|it| it.name == other).unwrap();
    let Running { stop: cut, task, .. } = running.remove(at);
    cut.cancel();
    soon(task).await.unwrap().unwrap();
    eventually(async || only_session(&bench).await.gateway == first).await;
    is_in(&bench, other, GatewayState::Lost).await;
    eventually(async || only_session(&bench).await.rtt.client_leg.is_some()).await;
    stop.cancel();
    assert!(soon(pumping).await.unwrap() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_relays_on_without_a_broker_and_tells_the_next_one_what_it_holds() {
    let (data, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bench = Bench::first(data.path()).await;
    let _gateway = gateway(&bench, "a").await;
    drain(&bench, "local", true).await;
    let (_client, stream) = use_echo(&bench, state.path()).await;
    let stop = CancellationToken::new();
    let pumping = tokio::spawn(pump(stream, stop.clone()));
    let before = only_session(&bench).await;
    assert_eq!(before.gateway, "a");
    let path = format!("/v1/sessions/{}/explain", before.id);
    let places = bench.get(&path, &bench.admin).await.json::<ExplainView>().places;
    let there = format!("{}:{}", places.gateway, places.gateway_port);
    let is_there = view_of(&bench, "a").await.unwrap().address == there;
    assert!(is_there && there != bench.address.to_string(), "firewall rules name {there}");
    assert_eq!((places.relay, places.relay_ports), (None, Some(RELAY_PORTS)));
    let bench = bench.restart().await;
    is_in(&bench, "a", GatewayState::Up).await;
    eventually(async || {
        let sessions: Vec<SessionView> = bench.get("/v1/sessions", &bench.admin).await.json();
        sessions.iter().any(|it| it.id == before.id && it.gateway == "a" && it.resumes == 0)
    })
    .await;
    stop.cancel();
    assert!(soon(pumping).await.unwrap() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_was_drained_stays_so_over_restarts_until_it_is_undrained() {
    let data = tempfile::tempdir().unwrap();
    let bench = Bench::first(data.path()).await;
    let running = gateway(&bench, "a").await;
    for name in ["a", "local"] {
        drain(&bench, name, true).await;
        is_in(&bench, name, GatewayState::Drained).await;
    }
    let running = running.restart(&bench).await;
    assert_eq!(state_of(&bench, "a").await, Some(GatewayState::Drained), "it was started anew");
    let bench = bench.restart().await;
    eventually(async || view_of(&bench, "a").await.is_some()).await;
    for name in ["a", "local"] {
        assert_eq!(state_of(&bench, name).await, Some(GatewayState::Drained), "{name}");
        drain(&bench, name, false).await;
        assert_eq!(state_of(&bench, name).await, Some(GatewayState::Up), "{name}");
    }
    let running = running.restart(&bench).await;
    assert_eq!(state_of(&bench, "a").await, Some(GatewayState::Up));

    // While one is away it can be let come back.
    drain(&bench, "a", true).await;
    running.stop.cancel();
    is_in(&bench, "a", GatewayState::Lost).await;
    drain(&bench, "a", false).await;
    let config = running.config.clone();
    soon(running.task).await.unwrap().unwrap();
    let again = Running::start(&bench, "a", config).await;
    assert_eq!(state_of(&bench, "a").await, Some(GatewayState::Up));
    drop(again);
    let unknown = bench.as_admin(Method::PUT, "/v1/gateways/nowhere/drain", &()).await;
    assert_eq!(unknown.code(), Some(Code::GatewayUnknown));
    let unknown = bench.as_admin(Method::DELETE, "/v1/gateways/nowhere/drain", &()).await;
    assert_eq!(unknown.code(), Some(Code::GatewayUnknown));
}
