//! Legs: TCP to a gateway that opens with a ticket, and TLS 1.3 end to end inside.
//!
//! A client's leg presents its ticket as the server name of its ClientHello, which the gateway forwards to the agent.
//! An agent's leg presents its ticket in a ClientHello that the gateway consumes, and is the TLS server of what
//! follows. A gateway that turns a leg away says why in a fatal TLS alert.
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig, ConnectionCommon, ServerConfig};
use switchback_engine::{Refusal, hello};
use switchback_shortpath::{ROUND_BYTES_MAX, Wide};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::code::{Code, Fault};
use crate::dial::tcp;
use crate::wire::LegTicket;

/// TCP to the gateway: three lost SYNs (1 + 2 + 4 s) still connect.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// From a client's ClientHello to the end of its handshake. Longer than a gateway lets a leg wait for its mate (15 s),
/// so that its refusal still arrives.
const CONNECT_TLS_TIMEOUT: Duration = Duration::from_secs(20);
/// From an agent's first look at a leg that is in use to the end of its handshake.
const ACCEPT_TLS_TIMEOUT: Duration = Duration::from_secs(20);
/// A gateway's refusal: a fatal TLS alert record (RFC 8446 section 5.1).
pub(crate) const ALERT_BYTES: usize = 7;

/// The whole of a client's later leg: its session is waiting, and a new attempt with a fresh ticket beats patience.
pub(crate) const RESUME_LEG_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection that was made ahead of its ticket is worth using. The gateway waits 8 s for a hello.
const AHEAD_MAX: Duration = Duration::from_secs(5);

/// When to dial anew rather than wait for it: its SYN is about to be sent again (RFC 6298 section 2.1), as happens when the
/// network changed meanwhile.
const AHEAD_WAIT: Duration = Duration::from_secs(1);

/// TCP to a gateway, begun while the ticket is still being asked for: the two round trips pass at once. Dropping it ends it.
pub(crate) struct Ahead {
    gateway: String,
    begun: Instant,
    dialling: JoinHandle<io::Result<TcpStream>>,
}

impl Ahead {
    /// Begins to dial `gateway`, `HOST:PORT`.
    pub(crate) fn to(gateway: String) -> Self {
        let address = gateway.clone();
        let dialling = tokio::spawn(async move { dial(&address).await });
        Self { gateway, begun: Instant::now(), dialling }
    }

    /// The connection, if it leads to `gateway`, can be used and was made.
    async fn stream(mut self, gateway: &str) -> Option<TcpStream> {
        if self.gateway != gateway || self.begun.elapsed() >= AHEAD_MAX {
            return None;
        }
        let until = self.begun + AHEAD_WAIT;
        timeout_at(until, &mut self.dialling).await.ok()?.ok()?.ok()
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.dialling.abort();
    }
}

/// Dials, unless `ahead` did so, and authenticates a client's leg. `home` is the broker's `HOST:PORT`, where a ticket names no
/// gateway.
///
/// # Errors
/// The gateway's refusal, [`Code::PeerKeyMismatch`], or [`Code::LegFailed`].
pub(crate) async fn connect(
    ticket: &LegTicket,
    home: &str,
    tls: Arc<ClientConfig>,
    ahead: Option<Ahead>,
) -> Result<client::TlsStream<Wide<TcpStream>>, Fault> {
    let name = ServerName::try_from(ticket.server_name.reveal().to_owned())
        .map_err(|_| Code::MessageMalformed.because("the ticket is no server name"))?;
    let gateway = ticket.gateway.as_deref().unwrap_or(home);
    let made = match ahead {
        Some(ahead) => ahead.stream(gateway).await,
        None => None,
    };
    let stream = match made {
        Some(stream) => stream,
        None => dial_for(ticket, home).await?,
    };
    let connecting =
        TlsConnector::from(tls).connect_with(name, Wide::new(stream), |tls| take_rounds(tls));
    timeout(CONNECT_TLS_TIMEOUT, connecting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| explain(&error))
}

/// Dials an agent's leg and presents its ticket; what comes next on it is a client's ClientHello or a refusal.
///
/// # Errors
/// [`Code::LegFailed`].
pub(crate) async fn present(ticket: &LegTicket, home: &str) -> Result<TcpStream, Fault> {
    let mut stream = dial_for(ticket, home).await?;
    let mut random = [0; 96];
    rand::fill(&mut random[..]);
    let hello = hello::encode(ticket.server_name.reveal(), random);
    // A fresh connection's send buffer takes this whole.
    stream.write_all(&hello).await.map_err(|error| explain(&error))?;
    Ok(stream)
}

/// Authenticates the client at the other end of an agent's leg.
///
/// # Errors
/// The gateway's refusal, [`Code::PeerKeyMismatch`], or [`Code::LegFailed`].
pub(crate) async fn accept(
    stream: TcpStream,
    tls: Arc<ServerConfig>,
) -> Result<server::TlsStream<Wide<TcpStream>>, Fault> {
    let accepting = TlsAcceptor::from(tls).accept_with(Wide::new(stream), |tls| take_rounds(tls));
    timeout(ACCEPT_TLS_TIMEOUT, accepting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| explain(&error))
}

/// As much is encrypted at a time as a leg is given at once.
fn take_rounds<D>(tls: &mut ConnectionCommon<D>) {
    tls.set_buffer_limit(Some(ROUND_BYTES_MAX));
}

/// The refusal that a gateway's alert record holds, if these first bytes of a leg are one.
pub(crate) fn refusal(first: &[u8]) -> Option<Code> {
    match first {
        [21, 3, _, 0, 2, 2, description, ..] => {
            Some(Refusal::from_alert(*description).map_or(Code::LegFailed, Code::from))
        }
        _ => None,
    }
}

async fn dial_for(ticket: &LegTicket, home: &str) -> Result<TcpStream, Fault> {
    let gateway = ticket.gateway.as_deref().unwrap_or(home);
    let failed = |error: io::Error| Code::LegFailed.because(format!("gateway {gateway}: {error}"));
    dial(gateway).await.map_err(failed)
}

async fn dial(gateway: &str) -> io::Result<TcpStream> {
    let stream = tcp::connect(gateway, DIAL_TIMEOUT).await?;
    tcp::give_up_on_silence(&stream)?;
    tcp::queue_little(&stream)?;
    Ok(stream)
}

fn explain(error: &io::Error) -> Fault {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let code = match tls {
        Some(rustls::Error::InvalidCertificate(_)) => Code::PeerKeyMismatch,
        Some(rustls::Error::AlertReceived(alert)) => match alert {
            AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied => Code::PeerKeyMismatch,
            alert => Refusal::from_alert(u8::from(*alert)).map_or(Code::LegFailed, Code::from),
        },
        _ => Code::LegFailed,
    };
    code.because(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_read_from_its_alert_and_nothing_else_is() {
        for refusal_sent in Refusal::ALL {
            let record = [21, 3, 3, 0, 2, 2, refusal_sent.alert()];
            assert_eq!(refusal(&record), Some(Code::from(refusal_sent)));
        }
        assert_eq!(refusal(&[21, 3, 3, 0, 2, 2, 40]), Some(Code::LegFailed));
        assert_eq!(refusal(&[22, 3, 1, 0, 200, 1, 0]), None);
        assert_eq!(refusal(&[21, 3, 3]), None);
    }

    #[tokio::test]
    async fn a_refused_client_leg_carries_the_gateways_code() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let home = listener.local_addr().unwrap().to_string();
        let gateway = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let alert = Refusal::LegUnpaired.alert();
            stream.write_all(&[21, 3, 3, 0, 2, 2, alert]).await.unwrap();
            stream
        });
        let (own, peer) = (key(), key());
        let tls = switchback_shortpath::client_config(&own, &peer.public()).unwrap();
        let ticket = LegTicket {
            pair: "p".into(),
            server_name: crate::secret::Secret::new("ticket.client.switchback.internal"),
            gateway: None,
        };
        let fault = connect(&ticket, &home, tls, None).await.unwrap_err();
        assert_eq!(fault.code, Code::LegUnpaired);
        assert!(!fault.detail.contains("ticket.client"));
        drop(gateway);
    }

    fn key() -> switchback_shortpath::SessionKey {
        switchback_shortpath::SessionKey::generate().unwrap()
    }
}
