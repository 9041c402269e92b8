//! A broker to test, and someone to talk to it.
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::tungstenite::{Error as WsError, client::IntoClientRequest};

use crate::api::enrol::{Enrolled, NewEnrolment};
use crate::api::{ErrorBody, IssuedToken, NewToken, TokenKind};
use crate::broker::{Broker, ServeConfig};
use crate::code::Code;
use crate::enrol::proof::{EndKey, Enrolling, SigningIn, fingerprint};
use crate::invite::{Invite, InviteKind};
use crate::wire::{
    AGENT_LINK, CLIENT_LINK, FIRST_WORD, FromAgent, FromClient, LegTicket, PROTOCOL, PublicKey,
    Resource, SealedGrant, SessionId, SessionPurpose, ToAgent, ToClient,
};

/// Far beyond what anything here takes, so that a hang becomes a failure.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it never came")
}

/// A running broker and its first tokens.
pub(super) struct Bench {
    pub(super) broker: Broker,
    pub(super) address: SocketAddr,
    pub(super) admin: String,
    pub(super) join: String,
    /// Ends that have enrolled, by name.
    ends: Mutex<HashMap<String, End>>,
    pin: String,
    data: std::path::PathBuf,
    connector: TlsConnector,
}

/// An enrolled agent.
#[derive(Clone)]
pub(super) struct End {
    pub(super) id: String,
    pub(super) key: Arc<EndKey>,
}

/// An answer of the API.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(super) fn code(&self) -> Option<Code> {
        let body: Result<ErrorBody, _> = serde_json::from_slice(&self.body);
        body.ok().map(|body| body.error.code)
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }
}

pub(super) fn config(data: &Path) -> ServeConfig {
    let mut config = ServeConfig::new("127.0.0.1:0".parse().unwrap(), data);
    config.workers = Some(1);
    config
}

/// TLS to whoever shows this certificate.
pub(super) fn trusting(certificate: CertificateDer<'static>) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(tls))
}

impl Bench {
    /// A broker on its very first start.
    pub(super) async fn first(data: &Path) -> Self {
        Self::first_with(data, |_| ()).await
    }

    /// The same, configured.
    pub(super) async fn first_with(data: &Path, change: impl FnOnce(&mut ServeConfig)) -> Self {
        let mut config = config(data);
        change(&mut config);
        Self::started(Broker::start(config).await.unwrap(), data)
    }

    /// Around a broker on its very first start.
    pub(super) fn started(broker: Broker, data: &Path) -> Self {
        let invites = broker.first_invites().expect("a first start").clone();
        let admin = Invite::parse(invites.login.reveal(), InviteKind::Login).unwrap();
        let join = Invite::parse(invites.join.reveal(), InviteKind::Join).unwrap();
        let pin = admin.pin.clone();
        let (admin, join) = (admin.token.reveal().to_owned(), join.token.reveal().to_owned());
        Self::around(broker, data, (admin, join, pin))
    }

    /// What join and login strings pin.
    pub(super) fn pin(&self) -> String {
        self.pin.clone()
    }

    /// The broker's data directory.
    pub(super) fn data(&self) -> &Path {
        &self.data
    }

    fn around(broker: Broker, data: &Path, (admin, join, pin): (String, String, String)) -> Self {
        let pem = std::fs::read(data.join("tls.crt")).unwrap();
        let connector = trusting(CertificateDer::from_pem_slice(&pem).unwrap());
        let (address, data) = (broker.local_addr(), data.to_owned());
        let ends = Mutex::default();
        Self { broker, address, admin, join, ends, pin, data, connector }
    }

    /// Stops the broker and starts it again on the same data.
    pub(super) async fn restart(self) -> Self {
        let Self { broker, address, admin, join, ends, pin, data, .. } = self;
        broker.shutdown().await;
        let config = ServeConfig { listen: address, ..config(&data) };
        let broker = Broker::start(config).await.unwrap();
        assert!(broker.first_invites().is_none(), "only the first start invites");
        Self { ends, ..Self::around(broker, &data, (admin, join, pin)) }
    }

    pub(super) async fn connect(&self) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        self.connector.connect(name, stream).await.unwrap()
    }

    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: impl Into<Bytes>,
    ) -> Answer {
        let connection = TokioIo::new(self.connect().await);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(connection).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let response = soon(sender.send_request(request)).await.unwrap();
        let status = response.status();
        let body = soon(response.into_body().collect()).await.unwrap().to_bytes();
        Answer { status, body }
    }

    pub(super) async fn get(&self, path: &str, token: &str) -> Answer {
        self.ask(Method::GET, path, Some(token), "").await
    }

    pub(super) async fn as_admin(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Answer {
        let body = serde_json::to_vec(body).unwrap();
        self.ask(method, path, Some(&self.admin), body).await
    }

    /// A token of a user with these grants, and its id.
    pub(super) async fn user(&self, name: &str, grants: &[&str]) -> (String, String) {
        let grants = grants.iter().map(|&grant| grant.to_owned()).collect();
        let wish = NewToken { grants, ..NewToken::new(TokenKind::User, name) };
        self.issue(&wish).await
    }

    pub(super) async fn issue(&self, wish: &NewToken) -> (String, String) {
        let answer = self.as_admin(Method::POST, "/v1/tokens", wish).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        let issued: IssuedToken = answer.json();
        let kind = match wish.kind {
            TokenKind::User => InviteKind::Login,
            TokenKind::Agent => InviteKind::Join,
            TokenKind::Gateway => InviteKind::Gateway,
        };
        let invite = Invite::parse(issued.invite.reveal(), kind).unwrap();
        (invite.token.reveal().to_owned(), issued.id)
    }

    /// The body with which an end of this name shows its key and proves it, for the join string with this token.
    pub(super) fn enrolment(&self, token: &str, name: &str, key: &EndKey) -> NewEnrolment {
        let (aud, join) = (self.pin(), fingerprint(token));
        let sub = format!("agent/{name}");
        let proof = key.sign(None, &Enrolling { aud, sub, join }).unwrap();
        let (name, public) = (name.to_owned(), key.public().to_owned());
        NewEnrolment { kind: TokenKind::Agent, name, key: public, proof }
    }

    pub(super) async fn enrol(&self, token: &str, wish: &NewEnrolment) -> Answer {
        let body = serde_json::to_vec(wish).unwrap();
        self.ask(Method::POST, "/v1/enrol", Some(token), body).await
    }

    /// The enrolled agent of this name; it enrols when first asked for.
    pub(super) async fn end(&self, name: &str) -> End {
        if let Some(end) = self.ends.lock().unwrap().get(name) {
            return end.clone();
        }
        let (token, _) = self.issue(&NewToken::new(TokenKind::Agent, name)).await;
        let key = Arc::new(EndKey::generate().unwrap());
        let answer = self.enrol(&token, &self.enrolment(&token, name, &key)).await;
        let Enrolled { id, .. } = answer.json();
        let end = End { id, key };
        self.ends.lock().unwrap().insert(name.into(), end.clone());
        end
    }

    /// What the agent of this name shows in place of a token.
    pub(super) async fn pass(&self, name: &str) -> String {
        let End { id, key } = self.end(name).await;
        let now = crate::broker::clock::unix_seconds();
        let said = SigningIn::new(&id, &self.pin, now);
        key.sign(Some(&id), &said).unwrap().reveal().to_owned()
    }

    /// A link of the agent of this name, not yet registered.
    pub(super) async fn agent_link(&self, name: &str) -> Link {
        self.link(AGENT_LINK, &self.pass(name).await).await.unwrap()
    }

    pub(super) async fn link(&self, path: &str, token: &str) -> Result<Link, StatusCode> {
        self.link_with(path, token, None).await.map(|(link, _)| link)
    }

    /// A link whose request brings a first word as it stands here, and whether the broker took that.
    pub(super) async fn link_with(
        &self,
        path: &str,
        token: &str,
        word: Option<&str>,
    ) -> Result<(Link, bool), StatusCode> {
        let mut request = format!("wss://localhost{path}").into_client_request().unwrap();
        let bearer = format!("Bearer {token}").parse().unwrap();
        request.headers_mut().insert("authorization", bearer);
        if let Some(word) = word {
            request.headers_mut().insert(FIRST_WORD, word.parse().unwrap());
        }
        let stream = self.connect().await;
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, answer)) => {
                Ok((Link { socket }, answer.headers().contains_key(FIRST_WORD)))
            }
            Err(WsError::Http(response)) => Err(response.status()),
            Err(error) => panic!("{error}"),
        }
    }

    pub(super) async fn client_link(&self, token: &str) -> Link {
        self.link(CLIENT_LINK, token).await.unwrap()
    }

    /// A registered agent that offers `ssh`.
    pub(super) async fn agent(&self, name: &str, sessions: Vec<SealedGrant>) -> Link {
        let mut link = self.agent_link(name).await;
        link.say(&register(name, sessions)).await;
        assert_eq!(link.hear::<ToAgent>().await, ToAgent::Registered);
        link
    }

    /// Dials the gateway with a ticket.
    pub(super) async fn dial(&self, ticket: &LegTicket) -> TcpStream {
        let mut leg = TcpStream::connect(self.address).await.unwrap();
        let hello = switchback_engine::hello::encode(ticket.server_name.reveal(), [7; 96]);
        leg.write_all(&hello).await.unwrap();
        leg
    }
}

pub(super) fn register(name: &str, sessions: Vec<SealedGrant>) -> FromAgent {
    FromAgent::Register {
        protocol: PROTOCOL,
        version: "test".into(),
        name: name.into(),
        key: key(name),
        resources: vec![Resource::tcp("ssh", "127.0.0.1:22")],
        sessions,
    }
}

pub(super) fn key(of: &str) -> PublicKey {
    PublicKey(data_encoding::BASE64URL_NOPAD.encode(of.as_bytes()))
}

/// A link to the broker.
pub(super) struct Link {
    pub(super) socket: WebSocketStream<TlsStream<TcpStream>>,
}

/// What a client knows of a session it was granted.
pub(super) struct Held {
    pub(super) session: SessionId,
    pub(super) grant: SealedGrant,
    pub(super) ticket: LegTicket,
}

impl Link {
    pub(super) async fn say(&mut self, message: &impl Serialize) {
        let text = serde_json::to_string(message).unwrap();
        self.socket.send(Message::text(text)).await.unwrap();
    }

    pub(super) async fn hear<T: DeserializeOwned>(&mut self) -> T {
        loop {
            match soon(self.socket.next()).await {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).unwrap(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("the link ended: {other:?}"),
            }
        }
    }

    /// The link ends without another message.
    pub(super) async fn ends(mut self) {
        loop {
            match soon(self.socket.next()).await {
                Some(Ok(Message::Text(text))) => panic!("a message instead of an end: {text}"),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            }
        }
    }

    /// The link ends, whatever is said before.
    pub(super) async fn ends_somehow(mut self) {
        while let Some(Ok(_)) = soon(self.socket.next()).await {}
    }

    pub(super) async fn open(&mut self, resource: &str) -> Result<Held, Code> {
        let (request, resource, key) = (7, resource.into(), key("client"));
        let open = FromClient::Open {
            request,
            protocol: PROTOCOL,
            resource,
            key,
            udp: None,
            purpose: SessionPurpose::Use,
            ready: false,
        };
        self.say(&open).await;
        match self.hear().await {
            ToClient::Granted { request: 7, session, grant, ticket, .. } => {
                Ok(Held { session, grant, ticket })
            }
            ToClient::Refused { request: 7, code, .. } => Err(code),
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn leg(&mut self, grant: SealedGrant) -> Result<LegTicket, Code> {
        self.say(&FromClient::Leg { request: 9, grant, udp: None, wish: Default::default() }).await;
        match self.hear().await {
            ToClient::Leg { request: 9, ticket, .. } => Ok(ticket),
            ToClient::Refused { request: 9, code, .. } => Err(code),
            other => panic!("{other:?}"),
        }
    }
}

/// Bytes cross both ways, so the two legs are a pair. The agent's end first reads the client's hello.
pub(super) async fn assert_joined(client: &mut TcpStream, agent: &mut TcpStream) {
    let hello_head = read(agent, 5).await;
    let rest = usize::from(u16::from_be_bytes([hello_head[3], hello_head[4]]));
    read(agent, rest).await;
    client.write_all(b"ping").await.unwrap();
    assert_eq!(read(agent, 4).await, b"ping");
    agent.write_all(b"pong").await.unwrap();
    assert_eq!(read(client, 4).await, b"pong");
}

async fn read(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    soon(stream.read_exact(&mut bytes)).await.unwrap();
    bytes
}

/// The leg ends, by FIN or reset.
pub(super) async fn assert_cut(mut leg: TcpStream) {
    let mut bytes = [0; 64];
    while let Ok(1..) = soon(leg.read(&mut bytes)).await {}
}

/// Waits until `check` holds.
pub(super) async fn eventually(mut check: impl AsyncFnMut() -> bool) {
    soon(async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
