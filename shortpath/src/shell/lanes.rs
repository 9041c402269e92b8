//! The writing half of a QUIC leg: which stream carries a frame, and how much waits inside quinn.
//!
//! What quinn has taken can no longer be overtaken by what it has not, so it is given little more than the network takes
//! now: its send window follows the congestion window. Frames that go before bulk may exceed it a little.
use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use quinn::{Connection, SendStream};

use super::quic::STREAMS_MAX;
use super::rope::Rope;
use crate::session::ChannelId;
use crate::session::frame::Frame;

/// Priorities of streams: frames about the leg, interactive channels, bulk.
const FIRST: i32 = 2;
const URGENT: i32 = 1;
const BULK: i32 = 0;
/// A channel that sends frames above this is bulk: what the session calls interactive.
const URGENT_BYTES: usize = crate::session::limits::INTERACTIVE_BYTES as usize;
/// Channels with a stream of their own; beyond, idle ones lose theirs. Fewer than [`STREAMS_MAX`], as ended streams count
/// until the peer has read them.
const LANES_MAX: usize = 768;
const _: () = assert!(LANES_MAX < STREAMS_MAX as usize);

pub(super) struct Lanes {
    connection: Connection,
    first: Lane,
    channels: HashMap<ChannelId, Lane>,
    /// Channels with bytes to write.
    waiting: Vec<ChannelId>,
    window: u64,
    rounds: u64,
}

struct Lane {
    stream: SendStream,
    rope: Rope,
    priority: i32,
    /// Our direction has said its last, and so has our receipt of the peer's.
    sent_end: bool,
    acked_end: bool,
    used: u64,
}

impl Lane {
    fn new(stream: SendStream, priority: i32) -> Self {
        let lane = Self {
            stream,
            rope: Rope::joined(),
            priority,
            sent_end: false,
            acked_end: false,
            used: 0,
        };
        // It fails on a closed stream only, which the next write will tell.
        let _ = lane.stream.set_priority(priority);
        lane
    }

    fn push(&mut self, frame: &Frame) {
        self.rope.push(frame);
        match frame {
            Frame::Fin { .. } | Frame::Reset { .. } => self.sent_end = true,
            Frame::Ack(state) => self.acked_end |= state.fin_seen || state.reset_seen,
            _ => {}
        }
    }

    fn prefer(&mut self, priority: i32) {
        if std::mem::replace(&mut self.priority, priority) != priority {
            let _ = self.stream.set_priority(priority);
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.rope.seal();
        while !self.rope.is_empty() {
            let written = match pin!(self.stream.write_chunks(self.rope.parts())).poll(cx) {
                Poll::Ready(written) => written?,
                Poll::Pending => return Poll::Pending,
            };
            self.rope.taken(written.chunks, written.bytes);
        }
        Poll::Ready(Ok(()))
    }
}

impl Lanes {
    pub(super) fn new(connection: Connection, first: SendStream) -> Self {
        let first = Lane::new(first, FIRST);
        let (channels, waiting) = (HashMap::new(), Vec::new());
        Self { connection, first, channels, waiting, window: 0, rounds: 0 }
    }

    /// Frames wait for quinn to take them.
    pub(super) fn pending(&self) -> bool {
        !self.first.rope.is_empty() || !self.waiting.is_empty()
    }

    /// Bytes that wait for quinn.
    pub(super) fn held(&self) -> usize {
        let lanes = self.waiting.iter().filter_map(|id| self.channels.get(id));
        lanes.map(|lane| lane.rope.len()).sum::<usize>() + self.first.rope.len()
    }

    pub(super) fn push(&mut self, frame: &Frame) {
        let Some(id) = channel_of(frame) else { return self.first.push(frame) };
        if !self.channels.contains_key(&id) {
            match self.open() {
                Some(lane) => drop(self.channels.insert(id, lane)),
                None => return self.first.push(frame),
            }
        }
        let Some(lane) = self.channels.get_mut(&id) else { return };
        if let Frame::Data { bytes, .. } = frame {
            lane.prefer(if bytes.len() > URGENT_BYTES { BULK } else { URGENT });
        }
        lane.used = self.rounds;
        if lane.rope.is_empty() {
            self.waiting.push(id);
        }
        lane.push(frame);
    }

    /// A stream for a channel, if the peer allows one more now.
    fn open(&mut self) -> Option<Lane> {
        if self.channels.len() >= LANES_MAX {
            let idle = self.channels.iter().filter(|(_, lane)| lane.rope.is_empty());
            let oldest = idle.min_by_key(|(_, lane)| lane.used).map(|(id, _)| *id)?;
            self.channels.remove(&oldest);
        }
        match pin!(self.connection.open_uni()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(stream)) => Some(Lane::new(stream, URGENT)),
            // A lost connection shows on the first stream.
            Poll::Ready(Err(_)) | Poll::Pending => None,
        }
    }

    /// Writes all that waits; dropping the future loses nothing.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        self.rounds += 1;
        std::future::poll_fn(|cx| self.poll_flush(cx)).await
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.follow_congestion_window();
        if !self.poll_urgent(cx)? {
            self.connection.set_send_window(self.window + WINDOW_URGENT);
            let urgent = self.poll_urgent(cx);
            self.connection.set_send_window(self.window);
            urgent?;
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        let mut failed = Ok(());
        waiting.retain(|id| match self.poll_lane(*id, cx) {
            Poll::Pending => true,
            Poll::Ready(Ok(())) => false,
            Poll::Ready(Err(error)) => {
                failed = Err(error);
                false
            }
        });
        self.waiting = waiting;
        failed?;
        if self.pending() { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    /// Whether everything that goes before bulk is written.
    fn poll_urgent(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut written = true;
        let urgent = self.waiting.iter().filter_map(|id| {
            self.channels.get(id).filter(|lane| lane.priority > BULK).map(|_| *id)
        });
        let urgent: Vec<_> = urgent.collect();
        match self.first.poll_write(cx) {
            Poll::Pending => written = false,
            Poll::Ready(result) => result?,
        }
        for id in urgent {
            let Some(lane) = self.channels.get_mut(&id) else { continue };
            match lane.poll_write(cx) {
                Poll::Pending => written = false,
                Poll::Ready(result) => result?,
            }
        }
        Ok(written)
    }

    fn poll_lane(&mut self, id: ChannelId, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(lane) = self.channels.get_mut(&id) else { return Poll::Ready(Ok(())) };
        let written = lane.poll_write(cx);
        if written.is_ready() && lane.sent_end && lane.acked_end {
            self.channels.remove(&id);
        }
        written
    }

    fn follow_congestion_window(&mut self) {
        let window = window(self.connection.stats().path.cwnd);
        if window != self.window {
            self.window = window;
            self.connection.set_send_window(window);
        }
    }

    /// Ends every stream after what was written.
    pub(super) fn finish(&mut self) {
        self.channels.clear();
        // It fails on a stream that has ended already.
        let _ = self.first.stream.finish();
    }
}

/// Bytes that quinn may hold, sent and unsent: the congestion window, half of it again so that an acknowledgement can at
/// once be answered with a larger flight (slow start), and what a fast link takes while our task is scheduled.
const fn window(congestion_window: u64) -> u64 {
    let wanted =
        congestion_window.saturating_add(congestion_window / 2).saturating_add(WINDOW_LEAST);
    if wanted > WINDOW_MOST { WINDOW_MOST } else { wanted }
}

/// 256 KiB: 1 ms at 2 Gbit/s.
const WINDOW_LEAST: u64 = 256 * 1024;
/// As much as the session itself keeps unacknowledged.
const WINDOW_MOST: u64 = 32 * 1024 * 1024;
/// What urgent frames may have beyond it.
const WINDOW_URGENT: u64 = 256 * 1024;

/// The channel whose stream carries the frame; `None` for frames about the leg.
fn channel_of(frame: &Frame) -> Option<ChannelId> {
    match frame {
        Frame::Open { channel, .. }
        | Frame::Data { channel, .. }
        | Frame::Fin { channel, .. }
        | Frame::Reset { channel, .. }
        | Frame::Datagram { channel, .. } => Some(*channel),
        Frame::Ack(state) => Some(state.channel),
        Frame::Hello(_)
        | Frame::Ping(_)
        | Frame::Pong(_)
        | Frame::Seen { .. }
        | Frame::Close { .. } => None,
    }
}
