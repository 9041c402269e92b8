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
use quinn::{Connection, VarInt};
use tokio::task::JoinSet;

use super::lanes::Lanes;
use super::leg;
use super::shared::{Port, Shared, State};
use crate::session::frame::Frame;
use crate::session::{LegId, LegKind, PathFigures};

/// Unidirectional streams a peer may have open at once: one per channel a session may hold (600), and room for those that
/// are ending.
pub(crate) const STREAMS_MAX: u32 = 1024;

/// A session as the underlay holds it: it does not keep the session open.
#[derive(Clone, Debug)]
pub(crate) struct SessionRef(pub(super) Arc<Shared>);

impl SessionRef {
    /// Makes an established connection a leg of the session.
    pub(crate) fn attach(&self, connection: Connection, kind: LegKind) -> LegId {
        attach(&self.0, connection, kind)
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
    let mut readers = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_uni() => {
                let (shared, stream) = (Arc::clone(&shared), stream?);
                readers.spawn(async move { leg::read_frames(&shared, leg, stream).await });
            }
            Some(ended) = readers.join_next() => ended.map_err(io::Error::other)??,
        }
    }
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

async fn report(shared: Arc<Shared>, leg: LegId, connection: Connection) -> io::Result<()> {
    let mut seen = 0;
    loop {
        let stats = connection.stats();
        let figures = PathFigures {
            rtt: stats.path.rtt,
            sent: stats.path.sent_packets,
            lost: stats.path.lost_packets,
        };
        let datagram_max = connection.max_datagram_size().unwrap_or(0);
        let moved = stats.udp_tx.datagrams + stats.udp_rx.datagrams;
        if moved != seen {
            shared.with(|state, now| {
                state.session.note_path(now, leg, figures);
                state.session.set_datagram_max(leg, datagram_max);
            });
        }
        let pause = if moved == seen { REPORT_IDLE } else { REPORT };
        seen = moved;
        tokio::time::sleep(pause).await;
    }
}
