//! A broker's front for tests: real TLS, real WebSocket, and whatever the test wants behind it.
use std::net::SocketAddr;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::BASE64URL_NOPAD;
use futures_util::{SinkExt, StreamExt};
use rcgen::PublicKeyData;
use rustls::pki_types::PrivateKeyDer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async};

use crate::api::ErrorBody;
use crate::code::Fault;
use crate::invite::{Invite, InviteKind};
use crate::secret::Secret;
use crate::wire::FIRST_WORD;

pub(crate) const TOKEN: &str = "t0ken";

pub(crate) struct FakeBroker {
    listener: TcpListener,
    tls: TlsAcceptor,
    pin: String,
}

pub(crate) struct FakeLink(WebSocketStream<TlsStream<TcpStream>>);

impl FakeBroker {
    pub(crate) async fn start() -> Self {
        let (tls, pin) = identity();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { listener, tls, pin }
    }

    /// Answers with another key from now on, as an interceptor would, until it gets back what this returns.
    pub(crate) fn swap_key(&mut self, tls: Option<TlsAcceptor>) -> TlsAcceptor {
        std::mem::replace(&mut self.tls, tls.unwrap_or_else(|| identity().0))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    pub(crate) fn invite(&self, kind: InviteKind) -> Invite {
        let (url, pin) = (format!("https://{}", self.address()), self.pin.clone());
        Invite { kind, url, pin, token: Secret::new(TOKEN) }
    }

    /// The next connection, TLS done; `None` if its handshake fails.
    pub(crate) async fn accept(&self) -> Option<TlsStream<TcpStream>> {
        let (stream, _) = self.listener.accept().await.unwrap();
        self.tls.accept(stream).await.ok()
    }

    /// The next link.
    pub(crate) async fn link(&self) -> FakeLink {
        // A client also dials what it takes for its gateway, and may not need that.
        let stream = loop {
            if let Some(stream) = self.accept().await {
                break stream;
            }
        };
        Self::upgrade(stream).await
    }

    /// Makes a link of a connection.
    pub(crate) async fn upgrade(stream: TlsStream<TcpStream>) -> FakeLink {
        #[expect(clippy::result_large_err, reason = "tungstenite's signature")]
        let check = |request: &Request, response: Response| {
            assert_eq!(request.headers()["authorization"], format!("Bearer {TOKEN}"));
            Ok(response)
        };
        FakeLink(accept_hdr_async(stream, check).await.unwrap())
    }

    /// Makes a link of a connection whose request brings a first word, and takes that.
    pub(crate) async fn upgrade_with_word<In: DeserializeOwned>(
        stream: TlsStream<TcpStream>,
    ) -> (FakeLink, In) {
        let mut word = None;
        #[expect(clippy::result_large_err, reason = "tungstenite's signature")]
        let check = |request: &Request, mut response: Response| {
            let text = BASE64URL_NOPAD.decode(request.headers()[FIRST_WORD].as_bytes()).unwrap();
            word = Some(serde_json::from_slice(&text).unwrap());
            response.headers_mut().insert(FIRST_WORD, "taken".parse().unwrap());
            Ok(response)
        };
        let link = FakeLink(accept_hdr_async(stream, check).await.unwrap());
        (link, word.unwrap())
    }

    /// Refuses the next link with this fault, as the broker's API does.
    pub(crate) async fn refuse(&self, status: u16, fault: Fault) {
        Self::turn_away(self.accept().await.unwrap(), status, fault).await;
    }

    /// Refuses this one.
    pub(crate) async fn turn_away(stream: TlsStream<TcpStream>, status: u16, fault: Fault) {
        let body = serde_json::to_string(&ErrorBody::from(fault)).unwrap();
        #[expect(clippy::result_large_err, reason = "tungstenite's signature")]
        let refuse = |_: &Request, _: Response| -> Result<Response, ErrorResponse> {
            let length = body.len();
            let response = Response::builder().status(status).header("content-length", length);
            Err(response.body(Some(body)).unwrap())
        };
        assert!(accept_hdr_async(stream, refuse).await.is_err());
    }
}

impl FakeLink {
    pub(crate) async fn receive<In: DeserializeOwned>(&mut self) -> In {
        loop {
            if let Message::Text(text) = self.0.next().await.unwrap().unwrap() {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }

    pub(crate) async fn send<Out: Serialize>(&mut self, message: &Out) {
        self.send_text(serde_json::to_string(message).unwrap()).await;
    }

    pub(crate) async fn send_text(&mut self, text: String) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    pub(crate) async fn close(&mut self) {
        // The other end may be faster.
        let _ = self.0.close(None).await;
    }
}

/// A self-signed certificate's server, and the pin of its key.
fn identity() -> (TlsAcceptor, String) {
    let certified = rcgen::generate_simple_self_signed(["switchback".to_owned()]).unwrap();
    let spki = certified.signing_key.subject_public_key_info();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let pin = BASE64URL_NOPAD.encode(digest(&SHA256, &spki).as_ref());
    (TlsAcceptor::from(Arc::new(config)), pin)
}
