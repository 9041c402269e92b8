//! A client against a broker and an agent of the test's making: legs die when the test says so.
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use socket2::SockRef;
use switchback_shortpath::session::CLOSE_NORMAL;
use switchback_shortpath::{
    Channel, LegKind, Role, SessionConfig, SessionEvent, SessionHandle, SessionKey, server_config,
};
use tokio::io::{AsyncReadExt, copy_bidirectional, duplex};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Client, ClientOptions, ClientSession};
use crate::code::{Code, Fault};
use crate::invite::InviteKind;
use crate::link::fake_broker::{FakeBroker, FakeLink};
use crate::secret::Secret;
use crate::wire::{
    AboutSession, Candidate, CandidateKind, FromClient, IceCredentials, LegTicket, PublicKey,
    ResourceKind, SessionId, ToClient, TransportPolicy, UdpAccess,
};

const PATIENCE: Duration = Duration::from_secs(20);
const ID: &str = "k3m9x2q7w4ht";

/// Broker, gateway and agent in one.
struct OtherSide {
    broker: FakeBroker,
    link: FakeLink,
    gateway: TcpListener,
    key: SessionKey,
    client_key: PublicKey,
}

type Opening = JoinHandle<Result<ClientSession, Fault>>;

impl OtherSide {
    /// A client connects and asks for a session, which is granted.
    async fn grant(start_within: Duration) -> (Self, Opening) {
        Self::grant_after(start_within, &[], None).await
    }

    /// The same, after the broker said something else, and with UDP.
    async fn grant_after(
        start_within: Duration,
        before: &[ToClient],
        udp: Option<Box<UdpAccess>>,
    ) -> (Self, Opening) {
        let broker = FakeBroker::start().await;
        let invite = broker.invite(InviteKind::Login);
        let options = ClientOptions { start_within, ready_max: 0, ..ClientOptions::default() };
        let opening =
            tokio::spawn(
                async move { Client::connect_with(invite, options).await?.open("ssh").await },
            );
        let mut link = broker.link().await;
        let FromClient::Open { request, key: client_key, .. } = link.receive().await else {
            panic!("a client opens first")
        };
        let gateway = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let key = SessionKey::generate().unwrap();
        let mut side = Self { broker, link, gateway, key, client_key };
        let granted = ToClient::Granted {
            request,
            session: SessionId(ID.into()),
            agent: "branch".into(),
            agent_key: PublicKey(BASE64URL_NOPAD.encode(&side.key.public())),
            grant: Secret::new("sealed"),
            ticket: side.ticket(),
            transport: TransportPolicy::default(),
            udp,
            kind: ResourceKind::Tcp,
            shadow_target: false,
        };
        for message in before {
            side.link.send(message).await;
        }
        side.link.send(&granted).await;
        (side, opening)
    }

    fn ticket(&self) -> LegTicket {
        LegTicket {
            pair: "pair".into(),
            server_name: Secret::new("ticket.client.switchback.internal"),
            gateway: Some(self.gateway.local_addr().unwrap().to_string()),
        }
    }

    /// The client's next leg.
    async fn leg(&self) -> TlsStream<TcpStream> {
        let spki = BASE64URL_NOPAD.decode(self.client_key.0.as_bytes()).unwrap();
        let tls = TlsAcceptor::from(server_config(&self.key, &spki).unwrap());
        loop {
            let (stream, _) = timeout(PATIENCE, self.gateway.accept()).await.unwrap().unwrap();
            // A connection that was made ahead and got no ticket ends without a word.
            if let Ok(leg) = tls.accept(stream).await {
                return leg;
            }
        }
    }

    /// The client asks for another leg, and is answered.
    async fn answer_leg(&mut self) {
        let (request, grant) = self.leg_request().await;
        assert_eq!(grant.reveal(), "sealed");
        let ticket = self.ticket();
        self.link.send(&ToClient::Leg { request, ticket, udp: None }).await;
    }

    async fn leg_request(&mut self) -> (u64, Secret) {
        loop {
            match timeout(PATIENCE, self.link.receive()).await.unwrap() {
                FromClient::Leg { request, grant, .. } => return (request, grant),
                FromClient::Report { .. } => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }
}

fn agent_end() -> (SessionHandle, mpsc::Receiver<SessionEvent>) {
    SessionHandle::start(Role::Agent, ID, SessionConfig::default())
}

/// Text goes over a channel and is read at the agent.
async fn arrives(channel: &mut Channel, at: &mut Channel, text: &'static str) {
    channel.write(Bytes::from_static(text.as_bytes())).await.unwrap();
    let read = timeout(PATIENCE, at.read()).await.unwrap().unwrap();
    assert_eq!(read.as_deref(), Some(text.as_bytes()));
}

async fn incoming(events: &mut mpsc::Receiver<SessionEvent>) -> Channel {
    loop {
        if let SessionEvent::Incoming(channel) =
            timeout(PATIENCE, events.recv()).await.unwrap().unwrap()
        {
            return channel;
        }
    }
}

#[tokio::test]
async fn a_leg_that_dies_before_it_carried_anything_is_replaced() {
    let (mut side, opening) = OtherSide::grant(PATIENCE).await;
    drop(side.leg().await);
    let session = timeout(PATIENCE, opening).await.unwrap().unwrap().unwrap();
    side.answer_leg().await;
    drop(side.leg().await);
    side.answer_leg().await;
    let (agent, mut events) = agent_end();
    agent.attach(side.leg().await, LegKind::TcpReverse);
    let mut channel = session.open_channel().unwrap();
    channel.write(Bytes::from_static(b"first")).await.unwrap();
    let mut at = incoming(&mut events).await;
    assert_eq!(at.read().await.unwrap().as_deref(), Some(&b"first"[..]));
}

#[tokio::test]
async fn a_session_goes_on_without_the_link_and_asks_for_a_leg_on_the_next_one() {
    let (mut side, opening) = OtherSide::grant(PATIENCE).await;
    let (agent, mut events) = agent_end();
    let mut leg = side.leg().await;
    let (near, mut far) = duplex(64 * 1024);
    let path = tokio::spawn(async move { copy_bidirectional(&mut leg, &mut far).await });
    agent.attach(near, LegKind::TcpReverse);
    let session = timeout(PATIENCE, opening).await.unwrap().unwrap().unwrap();
    let mut channel = session.open_channel().unwrap();
    channel.write(Bytes::from_static(b"first")).await.unwrap();
    let mut at = incoming(&mut events).await;
    assert_eq!(at.read().await.unwrap().as_deref(), Some(&b"first"[..]));

    side.link.close().await;
    arrives(&mut channel, &mut at, "without the link").await;
    path.abort();
    channel.write(Bytes::from_static(b"without a leg")).await.unwrap();
    side.link = side.broker.link().await;
    side.answer_leg().await;
    agent.attach(side.leg().await, LegKind::TcpReverse);
    let read = timeout(PATIENCE, at.read()).await.unwrap().unwrap();
    assert_eq!(read.as_deref(), Some(&b"without a leg"[..]));
}

#[tokio::test]
async fn a_first_leg_that_never_comes_is_told_with_its_last_code() {
    let (mut side, opening) = OtherSide::grant(Duration::from_secs(1)).await;
    // Whatever speaks no TLS there, the leg failed.
    drop(side.gateway.accept().await.unwrap());
    let (request, _) = side.leg_request().await;
    let message = "not connected".to_owned();
    side.link.send(&ToClient::Refused { request, code: Code::AgentOffline, message }).await;
    let fault = timeout(PATIENCE, opening).await.unwrap().unwrap().unwrap_err();
    assert_eq!(fault.code, Code::AgentOffline);
}

#[tokio::test]
async fn a_gateway_that_plays_the_agent_is_found_out() {
    let (mut side, opening) = OtherSide::grant(PATIENCE).await;
    side.key = SessionKey::generate().unwrap();
    let spki = BASE64URL_NOPAD.decode(side.client_key.0.as_bytes()).unwrap();
    let tls = TlsAcceptor::from(server_config(&side.key, &spki).unwrap());
    let (stream, _) = side.gateway.accept().await.unwrap();
    assert!(tls.accept(stream).await.is_err());
    let fault = timeout(PATIENCE, opening).await.unwrap().unwrap().unwrap_err();
    assert_eq!(fault.code, Code::PeerKeyMismatch);
}

#[tokio::test]
async fn a_refusal_that_no_time_mends_ends_a_session_without_a_leg() {
    let (mut side, opening) = OtherSide::grant(PATIENCE).await;
    drop(side.leg().await);
    let session = timeout(PATIENCE, opening).await.unwrap().unwrap().unwrap();
    let (request, _) = side.leg_request().await;
    let message = "the agent has a new key".to_owned();
    side.link.send(&ToClient::Refused { request, code: Code::GrantInvalid, message }).await;
    let fault = timeout(PATIENCE, session.closed()).await.unwrap();
    assert_eq!(fault.code, Code::GrantInvalid);
    assert_eq!(session.open_channel().unwrap_err().code, Code::GrantInvalid);
}

#[tokio::test]
async fn what_had_arrived_is_delivered_when_a_session_ends_while_it_is_used() {
    // All that the first window takes, and more than small socket buffers do.
    const TAIL: usize = 256 * 1024;
    const BUFFER: u32 = 4096;
    let (side, opening) = OtherSide::grant(PATIENCE).await;
    let (agent, mut events) = agent_end();
    agent.attach(side.leg().await, LegKind::TcpReverse);
    let session = timeout(PATIENCE, opening).await.unwrap().unwrap().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let application = TcpSocket::new_v4().unwrap();
    application.set_recv_buffer_size(BUFFER).unwrap();
    let mut application = application.connect(listener.local_addr().unwrap()).await.unwrap();
    let (first, _) = listener.accept().await.unwrap();
    SockRef::from(&first).set_send_buffer_size(BUFFER as usize).unwrap();
    let used = tokio::spawn(async move {
        session.forward_while_used(first, &listener, PATIENCE).await.unwrap_err()
    });
    let (_reader, mut writer) = incoming(&mut events).await.split();
    writer.write(Bytes::from(vec![7; TAIL])).await.unwrap();
    writer.finish();
    timeout(PATIENCE, writer.delivered()).await.unwrap().unwrap();
    agent.close(CLOSE_NORMAL);
    let fault = timeout(PATIENCE, used).await.unwrap().unwrap();
    assert_eq!(fault.code, Code::SessionClosed);
    let mut tail = Vec::new();
    timeout(PATIENCE, application.read_to_end(&mut tail)).await.unwrap().unwrap();
    assert_eq!(tail.len(), TAIL);
}

fn told_of(session: &str, port: u16) -> ToClient {
    let (session, address) = (SessionId(session.into()), ([127, 0, 0, 1], port).into());
    let candidates = vec![Candidate::new(CandidateKind::Relayed, address)];
    ToClient::About(AboutSession::Candidates { session, candidates })
}

#[tokio::test]
async fn candidates_that_come_before_their_session_is_admitted_are_held_for_it() {
    let credentials = |name: &str| {
        let (ufrag, password) = (format!("{name}ufrag"), "p".repeat(24));
        IceCredentials { ufrag, password }
    };
    let access = UdpAccess {
        local: credentials("client"),
        remote: credentials("agent"),
        token: Secret::new("0123456789abcdef0123456789abcdef"),
        candidates: vec![],
        relay: None,
    };
    let mut before: Vec<_> = (0..100).map(|number| told_of(&format!("other{number}"), 7)).collect();
    before.push(told_of(ID, 4007));
    let (mut side, opening) =
        OtherSide::grant_after(PATIENCE, &before, Some(Box::new(access))).await;
    let asked = async {
        loop {
            let session = SessionId(ID.into());
            side.link.send(&ToClient::About(AboutSession::Explain { session })).await;
            while let Ok(said) = timeout(Duration::from_millis(100), side.link.receive()).await {
                let FromClient::Paths { paths, .. } = said else { continue };
                if paths.pairs.iter().any(|pair| pair.remote == "relayed 127.0.0.1:4007") {
                    return;
                }
            }
        }
    };
    timeout(PATIENCE, asked).await.expect("it looks there");
    opening.abort();
}

/// A client that opens a session without waiting for its link; why it got none.
fn opening_at_once(broker: &FakeBroker) -> JoinHandle<Fault> {
    let options = ClientOptions { ready_max: 0, ..ClientOptions::default() };
    let client = Client::begin(broker.invite(InviteKind::Login), options).unwrap();
    tokio::spawn(async move { client.open("ssh").await.map(drop).unwrap_err() })
}

async fn hears_its_refusal(link: &mut FakeLink, request: u64, opening: JoinHandle<Fault>) {
    let (code, message) = (Code::ResourceUnknown, String::new());
    link.send(&ToClient::Refused { request, code, message }).await;
    let fault = timeout(PATIENCE, opening).await.unwrap().unwrap();
    assert_eq!(fault.code, Code::ResourceUnknown);
}

#[tokio::test]
async fn a_client_that_opens_at_once_asks_with_its_request_for_the_link() {
    let broker = FakeBroker::start().await;
    let opening = opening_at_once(&broker);
    // What it takes for its gateway is dialled as well; only the link shakes hands.
    let stream = loop {
        if let Some(stream) = broker.accept().await {
            break stream;
        }
    };
    let (mut link, word) = FakeBroker::upgrade_with_word::<FromClient>(stream).await;
    let FromClient::Open { request, resource, .. } = word else { panic!("{word:?}") };
    assert_eq!(resource, "ssh");
    hears_its_refusal(&mut link, request, opening).await;
}

#[tokio::test]
async fn a_client_that_opens_at_once_says_so_again_on_the_link_of_a_broker_without_first_words() {
    let broker = FakeBroker::start().await;
    let opening = opening_at_once(&broker);
    let mut link = broker.link().await;
    let FromClient::Open { request, .. } = link.receive().await else { panic!("it opens first") };
    hears_its_refusal(&mut link, request, opening).await;
}

#[tokio::test]
async fn what_keeps_the_link_from_coming_is_told_to_who_opens_at_once() {
    let broker = FakeBroker::start().await;
    let client = Client::begin(broker.invite(InviteKind::Login), ClientOptions::default()).unwrap();
    let opening = tokio::spawn(async move { client.open("ssh").await.map(drop).unwrap_err() });
    let stream = loop {
        if let Some(stream) = broker.accept().await {
            break stream;
        }
    };
    FakeBroker::turn_away(stream, 401, Code::TokenRevoked.into()).await;
    let fault = timeout(PATIENCE, opening).await.unwrap().unwrap();
    assert_eq!(fault.code, Code::TokenRevoked);
}
