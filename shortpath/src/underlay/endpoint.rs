//! The process's one QUIC endpoint: client and server at once, over the [`Wire`].
use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, Connecting, Connection, ConnectionId, ConnectionIdGenerator, Endpoint,
    EndpointConfig, IdleTimeout, Incoming, ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::demux::{CID_LEN, TOKEN_CID_LEN};
use super::paths::{SlotId, Token, slot_at, virtual_address};
use super::wire::Wire;
use super::witness::Witnessed;
use crate::shell::STREAMS_FIRST;
use crate::tls::{KeyError, SessionKey, quic_client_config, quic_server_config};

/// See the module.
#[derive(Debug)]
pub(super) struct Quic {
    endpoint: Endpoint,
    gate: Arc<Gate>,
}

/// Who may be dialled, by slot.
#[derive(Debug, Default)]
struct Gate {
    open: Mutex<HashMap<SlotId, Callee>>,
    /// Handshakes of peers that failed: a wrong key above all.
    refused: AtomicU64,
}

#[derive(Clone, Debug)]
struct Callee {
    config: Arc<ServerConfig>,
    connected: mpsc::Sender<(SlotId, Connection)>,
    /// Handshakes under way.
    places: Arc<Semaphore>,
}

/// Handshakes at once for one slot: a peer dials once, and again when that failed.
const HANDSHAKES: usize = 4;
/// From a client's first packet to its last of the handshake: the path answers checks, so that is RTTs.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes nobody has accepted or refused yet; they are answered in microseconds.
const INCOMING: usize = 256;

thread_local! {
    /// The slot that connection ids are made for. quinn asks for the first within `connect_with` and `accept_with`; those it
    /// asks for later are of nobody. quinn's servers use such a one (RFC 9000 section 10.3: only they have reset tokens),
    /// and [`Witnessed`] learns whose it is.
    static SLOT: Cell<Option<SlotId>> = const { Cell::new(None) };
}

fn for_slot<T>(slot: SlotId, act: impl FnOnce() -> T) -> T {
    SLOT.set(Some(slot));
    let result = act();
    SLOT.set(None);
    result
}

struct Ids {
    wire: Arc<Wire>,
    number: AtomicU32,
}

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        if SLOT.get().is_none() {
            self.wire.forget_id(number);
        }
        ConnectionId::new(&self.wire.ids.make(SLOT.get(), number))
    }

    fn cid_len(&self) -> usize {
        CID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

impl Quic {
    /// Starts the endpoint. Call within a tokio runtime.
    ///
    /// # Errors
    /// When no key can be generated.
    pub(super) fn start(wire: &Arc<Wire>) -> io::Result<Self> {
        let mut config = EndpointConfig::default();
        // The first bits of a packet tell QUIC from STUN and TURN (RFC 9443): they must stay as they are.
        config.grease_quic_bit(false);
        let ids = Arc::clone(wire);
        config.cid_generator(move || {
            Box::new(Ids { wire: Arc::clone(&ids), number: AtomicU32::new(rand::random()) })
        });
        let endpoint = Endpoint::new_with_abstract_socket(
            config,
            Some(nobody().map_err(io::Error::other)?),
            Arc::clone(wire) as _,
            Arc::new(TokioRuntime),
        )?;
        let gate = Arc::new(Gate::default());
        tokio::spawn(accept(endpoint.clone(), Arc::clone(&gate)));
        Ok(Self { endpoint, gate })
    }

    /// Dials the peer behind a slot; give up by dropping the future.
    ///
    /// # Errors
    /// What ended the handshake, for people.
    pub(super) async fn dial(
        &self,
        slot: SlotId,
        config: ClientConfig,
    ) -> Result<Connection, String> {
        let to = virtual_address(slot);
        let connecting = for_slot(slot, || self.endpoint.connect_with(config, to, SERVER_NAME));
        shake(connecting.map_err(|error| error.to_string())?).await
    }

    /// Lets peers dial a slot.
    pub(super) fn answer(
        &self,
        slot: SlotId,
        config: Arc<ServerConfig>,
        connected: mpsc::Sender<(SlotId, Connection)>,
    ) {
        let places = Arc::new(Semaphore::new(HANDSHAKES));
        self.gate.with(|open| open.insert(slot, Callee { config, connected, places }));
    }

    /// Nobody may dial the slot any more.
    pub(super) fn hush(&self, slot: SlotId) {
        self.gate.with(|open| open.remove(&slot));
    }

    /// Handshakes of peers that failed so far.
    pub(super) fn refused(&self) -> u64 {
        self.gate.refused.load(Ordering::Relaxed)
    }

    /// Ends every connection.
    pub(super) fn close(&self) {
        self.endpoint.close(VarInt::from_u32(0), b"shutting down");
    }
}

/// The name in the handshake: means nothing, as keys are pinned.
const SERVER_NAME: &str = "switchback";

impl Gate {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<SlotId, Callee>) -> T) -> T {
        act(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn accept(endpoint: Endpoint, gate: Arc<Gate>) {
    while let Some(incoming) = endpoint.accept().await {
        let slot = slot_at(incoming.remote_address());
        let callee = slot.and_then(|slot| gate.with(|open| open.get(&slot).cloned()));
        match slot.zip(callee) {
            Some((slot, callee)) => meet(incoming, slot, callee, &gate),
            None => incoming.ignore(),
        }
    }
}

/// Accepts a peer that dials a slot. No Retry (RFC 9000 section 8.1): the address has answered a signed check.
fn meet(incoming: Incoming, slot: SlotId, callee: Callee, gate: &Arc<Gate>) {
    let Ok(place) = Arc::clone(&callee.places).try_acquire_owned() else {
        return incoming.ignore();
    };
    let Ok(connecting) = for_slot(slot, || incoming.accept_with(callee.config)) else { return };
    let gate = Arc::clone(gate);
    tokio::spawn(async move {
        match shake(connecting).await {
            Ok(connection) => drop(callee.connected.send((slot, connection)).await),
            Err(error) => {
                gate.refused.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%error, "a QUIC handshake failed");
            }
        }
        drop(place);
    });
}

async fn shake(connecting: Connecting) -> Result<Connection, String> {
    match timeout(HANDSHAKE, connecting).await {
        Ok(connection) => connection.map_err(|error| error.to_string()),
        Err(_) => Err("the QUIC handshake took too long".to_owned()),
    }
}

/// For peers of nobody: keys that are thrown away. They are ignored before it matters.
fn nobody() -> Result<ServerConfig, KeyError> {
    let (own, peer) = (SessionKey::generate()?, SessionKey::generate()?);
    let mut config = ServerConfig::with_crypto(quic_server_config(&own, &peer.public())?);
    config.max_incoming(INCOMING).incoming_buffer_size_total(4 * 1024 * 1024);
    Ok(config)
}

/// What makes a session's QUIC server.
///
/// # Errors
/// See [`KeyError`].
pub(super) fn server(own: &SessionKey, peer: &[u8]) -> Result<ServerConfig, KeyError> {
    let mut config = ServerConfig::with_crypto(quic_server_config(own, peer)?);
    // Addresses never change for quinn: see `paths`.
    config.migration(false);
    config.transport_config(Arc::new(transport(None)));
    Ok(config)
}

/// [`server`] for those who dial a slot.
pub(super) fn callee(
    server: &ServerConfig,
    (wire, slot): (&Arc<Wire>, SlotId),
) -> Arc<ServerConfig> {
    let crypto = Witnessed::new(Arc::clone(&server.crypto), Arc::clone(wire), slot);
    let mut config = server.clone();
    config.crypto = Arc::new(crypto);
    Arc::new(config)
}

/// What makes a session's QUIC client.
pub(super) type Client = Arc<QuicClientConfig>;

/// See [`Client`].
///
/// # Errors
/// See [`KeyError`].
pub(super) fn client(own: &SessionKey, peer: &[u8]) -> Result<Client, KeyError> {
    quic_client_config(own, peer)
}

/// [`client`] for one attempt behind a slot: the first packet shows the token, and a number that tells attempts apart.
pub(super) fn attempt(
    client: &Client,
    (wire, slot): (&Arc<Wire>, SlotId),
    token: Token,
    rtt: Option<Duration>,
) -> ClientConfig {
    let crypto = Arc::clone(client) as Arc<dyn quinn::crypto::ClientConfig>;
    let crypto = Witnessed::new(crypto, Arc::clone(wire), slot);
    let mut config = ClientConfig::new(Arc::new(crypto));
    let mut id = [0; TOKEN_CID_LEN];
    id[..token.len()].copy_from_slice(&token);
    id[token.len()..].copy_from_slice(&rand::random::<[u8; TOKEN_CID_LEN - 17]>());
    config.initial_dst_cid_provider(Arc::new(move || ConnectionId::new(&id)));
    config.transport_config(Arc::new(transport(rtt)));
    config
}

/// Silence after which quinn gives a connection up. The session has judged by its own bytes long before.
const IDLE_MS: u32 = 30_000;
/// Below the shortest mapping timeouts seen (2 s), and what shows a dead path soon.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Most unread bytes of one stream: the largest window of a channel, twice, as frames may be sent again.
const STREAM_WINDOW: u32 = 8 * 1024 * 1024;
/// Most unread bytes of a connection, kept for reordering only as our tasks read at once: 1 Gbit/s x 130 ms.
const WINDOW: u32 = 16 * 1024 * 1024;
/// Datagrams waiting to be sent or read: they are stale after moments, and the oldest goes.
const DATAGRAMS: usize = 256 * 1024;
/// What a handshake's signatures take beyond the path's RTT.
const RTT_EXTRA: Duration = Duration::from_millis(5);
/// RTT assumed where none was measured, at most: RFC 9002's (section 6.2.2).
const RTT_MOST: Duration = Duration::from_millis(333);
/// RTT assumed where none was measured: a peer that has just been heard is dialled before a check of ours is answered. Most
/// paths are shorter, and on a longer one a first packet sent twice costs nothing else.
const RTT_GUESS: Duration = Duration::from_millis(100);

fn transport(rtt: Option<Duration>) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS_FIRST))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(WINDOW))
        .datagram_receive_buffer_size(Some(DATAGRAMS))
        .datagram_send_buffer_size(DATAGRAMS)
        .congestion_controller_factory(Arc::new(CubicConfig::default()));
    // The first timeout is three times this (RFC 9002 section 6.2.2).
    config.initial_rtt(rtt.map_or(RTT_GUESS, |rtt| (rtt + RTT_EXTRA).min(RTT_MOST)));
    config
}
