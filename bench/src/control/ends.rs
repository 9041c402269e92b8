//! A simulated end's connection to the broker: TCP from an address of its own, TLS to the pinned key, a WebSocket.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use data_encoding::BASE64URL_NOPAD;
use futures_util::{SinkExt, StreamExt};
use hyper::header::{AUTHORIZATION, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;
use switchback_control::dial::{BrokerAddress, BrokerStream, secure, tcp};
use switchback_control::invite::Invite;
use switchback_control::wire::{MESSAGE_BYTES_MAX, PublicKey};
use tokio::net::TcpSocket;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// A link to the broker.
pub(crate) type Link = WebSocketStream<BrokerStream>;

/// From the request for a link to the switch of protocols, as agents and clients wait for it.
const UPGRADE_WITHIN: Duration = Duration::from_secs(10);

/// Bytes of a link's buffers, as the product's own links have them.
const BUFFER_BYTES: usize = 4096;

/// Links from one source address: below the 1,024 connections that the broker lets a source hold.
const PER_SOURCE: usize = 800;

/// Sources of agents, clients and readers are apart, so that none takes another's room.
pub(crate) const AGENTS: u8 = 1;
pub(crate) const CLIENTS: u8 = 2;
pub(crate) const READERS: u8 = 3;

/// The address that the `number`-th end of a kind dials from: 127.KIND.0.1 and so on, all of them this machine's.
pub(crate) fn source(kind: u8, number: usize) -> Ipv4Addr {
    let group = number / PER_SOURCE;
    Ipv4Addr::new(127, kind, (group / 250 % 256) as u8, (group % 250) as u8 + 1)
}

/// A key that nobody holds: 44 bytes, as an Ed25519 SubjectPublicKeyInfo has them, with the number inside.
pub(crate) fn key(kind: u8, number: u64) -> PublicKey {
    let mut bytes = [kind; 44];
    bytes[36..].copy_from_slice(&number.to_be_bytes());
    PublicKey(BASE64URL_NOPAD.encode(&bytes))
}

/// TLS to the broker from `source`.
///
/// # Errors
/// No connection, or another broker's key.
pub(crate) async fn connect(invite: &Invite, source: Ipv4Addr) -> Result<BrokerStream> {
    let broker: SocketAddr = BrokerAddress::of(invite)?.host_port().parse()?;
    let connecting = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((source, 0)))?;
        let stream = socket.connect(broker).await?;
        tcp::tune(&stream)?;
        Ok(stream)
    };
    Ok(secure(invite, connecting).await?)
}

/// `Authorization` of an invitation.
///
/// # Errors
/// Its token is no header.
pub(crate) fn bearer(invite: &Invite) -> Result<HeaderValue> {
    let mut bearer = HeaderValue::try_from(format!("Bearer {}", invite.token.reveal()))?;
    bearer.set_sensitive(true);
    Ok(bearer)
}

/// A link to `path` from `source`.
///
/// # Errors
/// No connection, or the broker refuses the link.
pub(crate) async fn link(invite: &Invite, path: &str, source: Ipv4Addr) -> Result<Link> {
    let stream = connect(invite, source).await?;
    let host_port = BrokerAddress::of(invite)?.host_port();
    let mut request = format!("wss://{host_port}{path}").into_client_request()?;
    request.headers_mut().insert(AUTHORIZATION, bearer(invite)?);
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(Some(MESSAGE_BYTES_MAX));
    let upgrading = tokio_tungstenite::client_async_with_config(request, stream, Some(config));
    let (link, _) = timeout(UPGRADE_WITHIN, upgrading).await.context("no answer")??;
    Ok(link)
}

/// Sends a message.
///
/// # Errors
/// The link is broken.
pub(crate) async fn say(link: &mut Link, message: &impl Serialize) -> Result<()> {
    Ok(link.send(Message::text(serde_json::to_string(message)?)).await?)
}

/// The next message. May be dropped and called again.
///
/// # Errors
/// The link has ended, or the message is none of ours.
pub(crate) async fn hear<M: DeserializeOwned>(link: &mut Link) -> Result<M> {
    loop {
        match link.next().await.context("the broker ended the link")?? {
            Message::Text(text) => return Ok(serde_json::from_str(&text)?),
            Message::Close(_) => bail!("the broker closed the link"),
            // Pings are answered below us.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_source_holds_more_links_than_the_broker_lets_it() {
        let sources: Vec<_> = (0..10_000).map(|number| source(AGENTS, number)).collect();
        for one in &sources {
            let links = sources.iter().filter(|other| *other == one).count();
            assert!(one.is_loopback() && links <= 1024, "{one} {links}");
        }
        assert_ne!(source(AGENTS, 0), source(CLIENTS, 0));
    }

    #[test]
    fn keys_differ_and_read_as_keys() {
        assert_ne!(key(AGENTS, 1), key(AGENTS, 2));
        assert_ne!(key(AGENTS, 1), key(CLIENTS, 1));
        assert_eq!(key(AGENTS, 1).0.len(), 59, "as long as an Ed25519 key");
    }
}
