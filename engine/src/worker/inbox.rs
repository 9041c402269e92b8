//! What other threads send a worker, and what a worker sends the desk.
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};
use tokio::sync::mpsc;

use crate::{Admitted, Cause, PairId, Refusal, Tuning};

/// An admitted leg on its way to its worker.
#[derive(Debug)]
pub(crate) struct NewLeg {
    /// Non-blocking, with the options that [`crate::ring::prepare_listener`] gave its listener.
    pub(crate) socket: OwnedFd,
    pub(crate) peer: SocketAddr,
    pub(crate) admitted: Admitted,
    /// Bytes for the mate: all that was read of a client, what follows the hello of an agent.
    pub(crate) said: Vec<u8>,
}

/// Two legs that have met, on their way to the worker that relays them.
#[derive(Debug)]
pub(crate) struct MovedPair {
    pub(crate) pair: PairId,
    /// The client's and the agent's.
    pub(crate) legs: [MovedLeg; 2],
}

/// One leg of them.
#[derive(Debug)]
pub(crate) struct MovedLeg {
    pub(crate) socket: OwnedFd,
    pub(crate) peer: SocketAddr,
    pub(crate) said: Vec<u8>,
    pub(crate) tuning: Option<Arc<Tuning>>,
}

/// A message to a worker.
#[derive(Debug)]
pub(crate) enum Message {
    Leg(NewLeg),
    /// Counted as a pair already.
    Pair(Box<MovedPair>),
    End {
        pair: PairId,
        cause: Cause,
    },
    StopAccepting(Ack),
    Stop,
}

/// Dropped when everybody concerned has done what was asked; then its receiver is disconnected.
pub(crate) type Ack = std::sync::mpsc::Sender<()>;

/// The sending end of a worker's inbox: a channel and the eventfd that wakes the worker.
#[derive(Debug)]
pub(crate) struct InboxSender {
    pub(crate) messages: Sender<Message>,
    pub(crate) wake: Arc<OwnedFd>,
}

impl InboxSender {
    /// Sends and wakes. The message comes back if the worker is gone.
    pub(crate) fn send(&self, message: Message) -> Result<(), Message> {
        self.messages.send(message).map_err(|unsent| unsent.0)?;
        // A full counter (2^64 - 2 wake-ups unread) is the only failure, and then the worker is awake.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        Ok(())
    }
}

/// The receiving end.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) messages: Receiver<Message>,
    pub(crate) wake: Arc<OwnedFd>,
}

impl Inbox {
    /// Takes the wake-up, so that the next one is an edge again.
    pub(crate) fn acknowledge(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0; 8][..]);
    }
}

/// What a worker leaves to the desk, because it takes time.
#[derive(Debug)]
pub(crate) enum Errand {
    /// A connection whose hello is not complete; it has a hello's place.
    Hello { socket: OwnedFd, peer: SocketAddr, head: Vec<u8> },
    /// A connection to be sent away with an alert; it has a farewell's place.
    Farewell { socket: OwnedFd, refusal: Refusal },
    /// To be dropped when no hello is unfinished any more. The gateway is stopping.
    Quiet(Ack),
}

/// The way to the desk. Bounded by the places that hellos and farewells take before they are sent.
pub(crate) type DeskSender = mpsc::UnboundedSender<Errand>;

/// The desk's end; over when every sender is gone.
pub(crate) type Errands = mpsc::UnboundedReceiver<Errand>;
