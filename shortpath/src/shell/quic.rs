//! A QUIC connection as a leg: one bidirectional stream for frames about the leg, one unidirectional stream per channel and
//! direction, datagrams for what may be lost.
//!
//! Streams keep channels out of each other's way: a lost packet delays its own channel only, and frames of bulk wait behind
//! those of interactive channels. Nothing depends on which stream a frame came in: any of them may carry any frame, so when
//! the peer allows no more streams, the first one serves all.
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use quinn::{Connection, ConnectionStats, PathStats, VarInt};
use tokio::task::JoinSet;

use super::lanes::Lanes;
use super::leg;
use super::room::Hall;
use super::shared::{Port, Shared, State};
use crate::session::frame::Frame;
use crate::session::{LegId, LegKind, PathFigures};

/// Unidirectional streams a peer may have open at once: one per channel a session may hold (600), and room for those that
/// are ending.
pub(crate) const STREAMS_MAX: u32 = 1024;
/// The same when a connection begins: quinn keeps 25 bytes for each that may be opened, in a table whose size is a power of
/// two. With the one bidirectional stream these fill a table of 128.
pub(crate) const STREAMS_FIRST: u32 = 111;

/// A session as the underlay holds it: it does not keep the session open.
#[derive(Clone, Debug)]
pub(crate) struct SessionRef(pub(super) Arc<Shared>);

impl SessionRef {
    /// Makes an established connection a leg of the session.
    pub(crate) fn attach(&self, connection: Connection, kind: LegKind) -> LegId {
        attach(&self.0, connection, kind)
    }

    /// See [`SessionHandle::let_go`](super::SessionHandle::let_go).
    pub(crate) fn let_go(&self, leg: LegId) -> bool {
        leg::let_go(&self.0, leg)
    }

    /// Has `tell` called whenever a leg owes word for too long, before copies of what it carries leave on others. It must be
    /// quick and not come back here: the session is locked meanwhile.
    pub(crate) fn when_in_doubt(&self, tell: Option<Box<dyn Fn() + Send>>) {
        let before = self.0.with(|state, _| std::mem::replace(&mut state.in_doubt, tell));
        drop(before);
    }

    /// What carries the session is in doubt, and nothing has taken its place.
    pub(crate) fn is_troubled(&self) -> bool {
        self.0.with(|state, _| state.session.is_troubled())
    }

    /// This end's network has changed, or the peer's.
    pub(crate) fn network_changed(&self) {
        self.0.with(|state, now| state.session.network_changed(now));
    }

    /// The session is over.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.with(|state, _| state.session.is_closed())
    }
}

/// Makes an established connection a leg of the session.
pub(super) fn attach(shared: &Arc<Shared>, connection: Connection, kind: LegKind) -> LegId {
    let (leg, port) = leg::admit(shared, kind);
    if port.gone.is_cancelled() {
        connection.close(GONE, b"session over");
        return leg;
    }
    // What the handshake has measured: the session need not wait for a PING to choose the leg.
    note(shared, leg, &connection, &connection.stats());
    tokio::spawn(close_when_gone(connection.clone(), port.clone()));
    let run = run(Arc::clone(shared), leg, port.clone(), connection);
    tokio::spawn(leg::until_gone(Arc::clone(shared), leg, port, run));
    leg
}

/// Application error code of a leg that ended (RFC 9000 section 20.2). The session says why in its own words.
const GONE: VarInt = VarInt::from_u32(0);

async fn close_when_gone(connection: Connection, port: Port) {
    port.gone.cancelled().await;
    connection.close(GONE, b"leg over");
}

async fn run(
    shared: Arc<Shared>,
    leg: LegId,
    port: Port,
    connection: Connection,
) -> io::Result<()> {
    let (send, receive) = match connection.side() {
        quinn::Side::Client => connection.open_bi().await?,
        quinn::Side::Server => connection.accept_bi().await?,
    };
    let spawn = |task: TaskOf| {
        tokio::spawn(leg::until_gone(Arc::clone(&shared), leg, port.clone(), task));
    };
    let lanes = Lanes::new(connection.clone(), send);
    spawn(Box::pin(write(Arc::clone(&shared), leg, port.clone(), connection.clone(), lanes)));
    spawn(Box::pin(read_channels(Arc::clone(&shared), leg, connection.clone())));
    spawn(Box::pin(read_datagrams(Arc::clone(&shared), leg, connection.clone())));
    spawn(Box::pin(report(Arc::clone(&shared), leg, connection)));
    leg::read(&shared, leg, receive).await
}

type TaskOf = std::pin::Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// Reads every stream the peer opens, each in a task of its own.
async fn read_channels(shared: Arc<Shared>, leg: LegId, connection: Connection) -> io::Result<()> {
    let (mut readers, hall, mut allowed) = (JoinSet::new(), Hall::default(), STREAMS_FIRST);
    loop {
        tokio::select! {
            stream = connection.accept_uni() => {
                let (shared, stream, room) = (Arc::clone(&shared), stream?, hall.room());
                allowed = allow_more(&connection, readers.len(), allowed);
                readers.spawn(async move { leg::read_frames(&shared, leg, stream, room).await });
            }
            Some(ended) = readers.join_next() => ended.map_err(io::Error::other)??,
        }
    }
}

/// Lets a peer that has opened half of the streams it may open twice as many.
fn allow_more(connection: &Connection, open: usize, allowed: u32) -> u32 {
    if allowed >= STREAMS_MAX || open < allowed as usize / 2 {
        return allowed;
    }
    let more = (2 * allowed).min(STREAMS_MAX);
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(more));
    more
}

async fn read_datagrams(shared: Arc<Shared>, leg: LegId, connection: Connection) -> io::Result<()> {
    loop {
        let mut datagram = BytesMut::from(connection.read_datagram().await?);
        let frame = Frame::decode(&mut datagram);
        shared.with(|state, now| match frame {
            Ok(Some(frame)) if datagram.is_empty() => state.session.handle_frame(now, leg, frame),
            Ok(_) => {}
            Err(error) => state.session.handle_garbage(error),
        });
    }
}

/// Frames per writing round, as on a stream leg.
const ROUND: usize = 64 * 1024;
/// Urgent frames taken in a row while bulk waits for the network.
const URGENT_RUN: usize = 64;

async fn write(
    shared: Arc<Shared>,
    leg: LegId,
    port: Port,
    connection: Connection,
    mut lanes: Lanes,
) -> io::Result<()> {
    let (mut frames, mut datagrams) = (Vec::new(), Vec::new());
    loop {
        let blocked = lanes.pending();
        if blocked && lanes.held() >= HELD_MAX {
            relieve(&mut lanes, STUCK).await?;
            continue;
        }
        port.blocked.store(blocked, Ordering::Relaxed);
        let closed = shared.with(|state, now| {
            let next = || state.session.poll_datagram(now, leg);
            datagrams.extend(std::iter::from_fn(next).take(DATAGRAM_RUN));
            if blocked {
                take_urgent(state, now, leg, &mut frames);
            } else {
                state.session.poll_transmit(now, leg, ROUND, &mut frames);
            }
            state.session.is_closed()
        });
        if blocked && frames.is_empty() {
            // Woken in vain: others have a turn, above all those that make room.
            tokio::task::yield_now().await;
        }
        datagrams.drain(..).for_each(|frame| send_datagram(&connection, &frame));
        if frames.is_empty() && !blocked {
            if closed {
                break;
            }
            port.wake.notified().await;
            continue;
        }
        frames.drain(..).for_each(|frame| lanes.push(&frame));
        tokio::select! {
            biased;
            flushed = lanes.flush() => flushed?,
            () = port.wake.notified() => {}
        }
    }
    lanes.finish();
    // The peer has read our CLOSE when it ends its stream: the reader ends the leg then, or the timekeeper does.
    std::future::pending().await
}

/// Bytes that may wait for the network: a round of bulk, and far more of what goes before it than honest peers ask for.
const HELD_MAX: usize = 1024 * 1024;
/// With as much waiting, the peer must take something within this time.
const STUCK: Duration = Duration::from_secs(5);

/// Waits until the peer has taken what waits.
///
/// # Errors
/// It took nothing within `patience`, or the connection is lost.
async fn relieve(lanes: &mut Lanes, patience: Duration) -> io::Result<()> {
    loop {
        let before = lanes.held();
        match tokio::time::timeout(patience, lanes.flush()).await {
            Ok(flushed) => return flushed,
            Err(_) if lanes.held() < before => {}
            Err(_) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes no frames"));
            }
        }
    }
}

/// Datagrams handed over in a row.
const DATAGRAM_RUN: usize = 64;

/// What does not fit, as the path's MTU has just shrunk, is lost like any other.
fn send_datagram(connection: &Connection, frame: &Frame) {
    let mut bytes = BytesMut::with_capacity(frame.wire_len());
    if let Some(payload) = frame.encode_head(&mut bytes) {
        bytes.extend_from_slice(payload);
    }
    if let Err(error) = connection.send_datagram(bytes.freeze()) {
        tracing::trace!(%error, "a datagram was not sent");
    }
}

/// While bulk waits, only what goes before it.
fn take_urgent(state: &mut State, now: std::time::Instant, leg: LegId, frames: &mut Vec<Frame>) {
    for _ in 0..URGENT_RUN {
        if !state.session.has_urgent(leg) {
            return;
        }
        state.session.poll_transmit(now, leg, 1, frames);
    }
}

/// Between reports of a connection's own figures while it carries anything, and while it does not.
const REPORT: Duration = Duration::from_millis(100);
const REPORT_IDLE: Duration = Duration::from_millis(500);

/// Tells the session what the connection knows of its path.
fn note(shared: &Arc<Shared>, leg: LegId, connection: &Connection, stats: &ConnectionStats) {
    let PathStats {
        rtt,
        sent_packets: sent,
        lost_packets: lost,
        black_holes_detected: black_holes,
        ..
    } = stats.path;
    let datagram_max = connection.max_datagram_size().unwrap_or(0);
    shared.with(|state, now| {
        state.session.note_path(now, leg, PathFigures { rtt, sent, lost, black_holes });
        state.session.set_datagram_max(leg, datagram_max);
    });
}

async fn report(shared: Arc<Shared>, leg: LegId, connection: Connection) -> io::Result<()> {
    let mut seen = 0;
    loop {
        let stats = connection.stats();
        let moved = stats.udp_tx.datagrams + stats.udp_rx.datagrams;
        if moved != seen {
            note(&shared, leg, &connection, &stats);
        }
        let pause = if moved == seen { REPORT_IDLE } else { REPORT };
        seen = moved;
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use quinn::{ClientConfig, Endpoint, ServerConfig, TransportConfig};

    use super::*;
    use crate::tls::{SessionKey, quic_client_config, quic_server_config};

    /// Lanes full of what goes before bulk, to a peer that grants `credit` bytes a stream; and the peer's end.
    async fn full_lanes(credit: u32) -> (Lanes, Connection) {
        let mut transport = TransportConfig::default();
        transport.stream_receive_window(credit.into());
        let (connection, peer) = connections(transport).await;
        let (send, _) = connection.open_bi().await.unwrap();
        let mut lanes = Lanes::new(connection, send);
        while lanes.held() < HELD_MAX {
            lanes.push(&Frame::Pong(1));
        }
        (lanes, peer)
    }

    /// The client's end, and the server's with this configuration.
    async fn connections(transport: TransportConfig) -> (Connection, Connection) {
        let (ours, theirs) = (SessionKey::generate().unwrap(), SessionKey::generate().unwrap());
        let server = quic_server_config(&theirs, &ours.public()).unwrap();
        let mut server = ServerConfig::with_crypto(server);
        server.transport_config(Arc::new(transport));
        let loopback = ([127, 0, 0, 1], 0).into();
        let server = Endpoint::server(server, loopback).unwrap();
        let to = server.local_addr().unwrap();
        let peer = tokio::spawn(async move { server.accept().await.unwrap().await.unwrap() });
        let client = quic_client_config(&ours, &theirs.public()).unwrap();
        let dialling = Endpoint::client(loopback).unwrap();
        let dialling = dialling.connect_with(ClientConfig::new(client), to, "switchback").unwrap();
        let connection = dialling.await.unwrap();
        (connection, peer.await.unwrap())
    }

    #[tokio::test]
    async fn a_peer_with_many_channels_is_allowed_a_stream_for_each() {
        let mut transport = TransportConfig::default();
        transport.max_concurrent_uni_streams(STREAMS_FIRST.into());
        let (connection, peer) = connections(transport).await;
        let reader = tokio::spawn(async move {
            let (mut open, mut allowed) = (Vec::new(), STREAMS_FIRST);
            while open.len() < STREAMS_MAX as usize {
                let stream = peer.accept_uni().await.unwrap();
                allowed = allow_more(&peer, open.len(), allowed);
                open.push(stream);
            }
            (peer, open, allowed)
        });
        let mut streams = Vec::new();
        for _ in 0..STREAMS_MAX {
            let open = tokio::time::timeout(Duration::from_secs(20), connection.open_uni());
            let mut stream = open.await.expect("one more is allowed").unwrap();
            stream.write_all(b"x").await.unwrap();
            streams.push(stream);
        }
        let (_peer, _open, allowed) = reader.await.unwrap();
        assert_eq!(allowed, STREAMS_MAX);
        let more = tokio::time::timeout(Duration::from_millis(100), connection.open_uni());
        assert!(more.await.is_err(), "and not one more");
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_loses_the_leg_and_not_our_memory() {
        let (mut lanes, _peer) = full_lanes(1000).await;
        let error = relieve(&mut lanes, Duration::from_millis(300)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_peer_that_takes_what_waits_keeps_the_leg() {
        let (mut lanes, peer) = full_lanes(10_000).await;
        tokio::spawn(async move {
            let (_send, mut receive) = peer.accept_bi().await.unwrap();
            while let Ok(Some(_)) = receive.read(&mut [0; 10_000]).await {}
        });
        relieve(&mut lanes, STUCK).await.unwrap();
        assert_eq!(lanes.held(), 0);
    }
}
