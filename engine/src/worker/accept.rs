//! A worker's own listeners: accept, one read, and the leg is here.
//!
//! Established flows go first: a turn serves them, then accepts a few. The kernel reports a connection when its first bytes
//! are there, so nearly every hello is complete at the first read and never leaves the thread. What needs patience goes to
//! the desk: hellos in pieces, silent connections, farewells.
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::inbox::{Ack, DeskSender, Errand};
use super::readiness::LISTENER;
use super::turn::Worker;
use crate::gateway::{Reception, hello, new_leg, say_farewell};
use crate::ring::{Move, accept, receive};
use crate::{Refusal, Verdict};

/// Where connections come in.
pub(crate) struct Door {
    /// The gateway holds weak references, so a worker that ends, however it ends, closes its listeners.
    listeners: Vec<Listening>,
    /// The listener that is served first this turn.
    first: usize,
    pub(crate) reception: Arc<Reception>,
    pub(crate) desk: DeskSender,
}

/// One listener.
struct Listening {
    socket: Arc<OwnedFd>,
    /// Somebody may be waiting: set by events, cleared by `EAGAIN`.
    ready: bool,
    pause: Pause,
}

/// When accept is tried again after it failed for want of descriptors or memory.
#[derive(Debug, Default)]
struct Pause {
    length: Duration,
    until: Option<Instant>,
}

impl Door {
    pub(crate) fn new(
        listeners: Vec<Arc<OwnedFd>>,
        reception: Arc<Reception>,
        desk: DeskSender,
    ) -> Self {
        let listening = |socket| Listening { socket, ready: false, pause: Pause::default() };
        Self {
            listeners: listeners.into_iter().map(listening).collect(),
            first: 0,
            reception,
            desk,
        }
    }

    /// The listeners in the order of this turn: each is first in turn, so none can use up the others' accepts.
    fn rotation(&mut self) -> impl Iterator<Item = usize> + use<> {
        let (count, first) = (self.listeners.len(), self.first);
        self.first = (first + 1) % count.max(1);
        (0..count).map(move |step| (first + step) % count)
    }

    /// A listener's event.
    pub(crate) fn note(&mut self, token: u64) {
        let index = usize::try_from(token - LISTENER).unwrap_or(usize::MAX);
        if let Some(listener) = self.listeners.get_mut(index) {
            listener.ready = true;
        }
    }

    /// How long the worker may sleep for the listeners' sake.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        let ready = self.listeners.iter().filter(|listener| listener.ready);
        ready.map(|listener| listener.pause.left()).min()
    }
}

impl Worker {
    /// Watches the listeners.
    pub(crate) fn open_door(&mut self) -> io::Result<()> {
        let listeners = (LISTENER..).zip(&self.door.listeners);
        for (token, listener) in listeners {
            self.readiness.register(listener.socket.as_fd(), token)?;
        }
        Ok(())
    }

    /// Accepts what waits, within bounds.
    pub(crate) fn accept_some(&mut self) {
        let mut left = ACCEPTS_PER_TURN;
        for index in self.door.rotation() {
            while left > 0
                && let Some((socket, peer)) = self.accept_one(index)
            {
                left -= 1;
                self.greet(socket, peer);
            }
        }
    }

    /// Lets go of the listeners, of which another process may hold its own descriptors, and sends every waiting leg away.
    /// Pairs go on.
    pub(crate) fn stop_accepting(&mut self, ack: Ack) {
        self.draining = true;
        for (token, listener) in (LISTENER..).zip(std::mem::take(&mut self.door.listeners)) {
            self.readiness.deregister(listener.socket.as_fd(), token);
        }
        while let Some((pair, gone)) = self.room.evict() {
            self.leave(pair, gone, Some(Refusal::Draining));
        }
        // Without a desk no hello is unfinished.
        let _ = self.door.desk.send(Errand::Quiet(ack));
    }

    /// Sends a connection away with an alert.
    pub(crate) fn send_away(&self, socket: OwnedFd, refusal: Refusal) {
        self.shared.refused(refusal);
        if !self.shared.enter_farewell() {
            return say_farewell(&socket, refusal);
        }
        // Without a desk the gateway is about to end, and nobody lingers.
        if self.door.desk.send(Errand::Farewell { socket, refusal }).is_err() {
            self.shared.leave_farewell();
        }
    }

    fn accept_one(&mut self, index: usize) -> Option<(OwnedFd, SocketAddr)> {
        let listener = self.door.listeners.get_mut(index)?;
        while listener.ready && listener.pause.is_over() {
            match accept(&listener.socket) {
                Ok(accepted) => {
                    listener.pause = Pause::default();
                    return Some(accepted);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => listener.ready = false,
                Err(error) if connection_lost(&error) => {}
                Err(error) => {
                    self.shared.accept_errors.fetch_add(1, Relaxed);
                    listener.pause.grow(&error);
                }
            }
        }
        None
    }

    /// A connection is here, and usually its hello.
    fn greet(&mut self, socket: OwnedFd, peer: SocketAddr) {
        self.shared.accepted.fetch_add(1, Relaxed);
        let bytes_max = self.shared.limits.hello_bytes_max;
        let room = bytes_max.min(self.scratch.len());
        let bytes = match receive(&socket, &mut self.scratch[..room]) {
            Move::Bytes(bytes) => bytes,
            Move::WouldBlock => 0,
            Move::End | Move::Failed(_) => {
                return self.send_away(socket, Refusal::HelloTruncated);
            }
        };
        let head = &self.scratch[..bytes];
        match hello::judge(head, bytes_max) {
            Ok(Some(hello)) => match self.door.reception.judge(&hello, peer) {
                Verdict::Admit(admitted) => {
                    let leg = new_leg(socket, peer, admitted, &hello, head);
                    self.arrive(leg);
                }
                Verdict::Foreign => self.door.reception.hand_over(socket, peer, head.to_vec()),
                Verdict::Refuse(refusal) => self.send_away(socket, refusal),
            },
            Ok(None) => self.leave_to_desk(socket, peer, head.to_vec()),
            Err(refusal) => self.send_away(socket, refusal),
        }
    }

    /// The hello is not complete: the desk waits for the rest.
    fn leave_to_desk(&self, socket: OwnedFd, peer: SocketAddr, head: Vec<u8>) {
        if !self.shared.enter_hello() {
            return self.send_away(socket, Refusal::HelloLimit);
        }
        if self.door.desk.send(Errand::Hello { socket, peer, head }).is_err() {
            self.shared.leave_hello();
        }
    }
}

impl Pause {
    fn is_over(&self) -> bool {
        self.until.is_none_or(|until| until <= Instant::now())
    }

    fn left(&self) -> Duration {
        self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }

    fn grow(&mut self, error: &io::Error) {
        if self.length.is_zero() || self.length == PAUSE_MAX {
            tracing::warn!(%error, "cannot accept connections; trying again");
        }
        self.length = (self.length * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        self.until = Some(Instant::now() + self.length);
    }
}

/// Over all listeners of a worker. Each takes 10 to 20 us, so established flows wait no longer for arrivals than for a few budgets of bulk.
const ACCEPTS_PER_TURN: usize = 8;
/// First pause after accept failed for want of descriptors or memory; doubled up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The connection died before it was accepted, which is its own affair (accept(2), "Error handling").
fn connection_lost(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
        || matches!(
            error.raw_os_error(),
            Some(
                libc::EPROTO
                    | libc::ENETDOWN
                    | libc::EHOSTDOWN
                    | libc::EHOSTUNREACH
                    | libc::ENETUNREACH
            )
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_stay_bounded() {
        let (mut pause, error) = (Pause::default(), io::Error::from_raw_os_error(libc::EMFILE));
        assert!(pause.is_over());
        let lengths: Vec<u128> = (0..9)
            .map(|_| {
                pause.grow(&error);
                pause.length.as_millis()
            })
            .collect();
        assert_eq!(lengths, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        assert!(!pause.is_over());
    }
}
