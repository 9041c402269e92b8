//! What other threads send a worker, and what a worker sends the front.
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};

use crate::{Admitted, Cause, PairId, Refusal};

/// An admitted leg on its way to its worker.
#[derive(Debug)]
pub(crate) struct NewLeg {
    /// Prepared by [`crate::ring::prepare_leg`].
    pub(crate) socket: OwnedFd,
    pub(crate) peer: SocketAddr,
    pub(crate) admitted: Admitted,
    /// Bytes for the mate: all that was read of a client, what follows the hello of an agent.
    pub(crate) said: Vec<u8>,
}

/// A message to a worker.
#[derive(Debug)]
pub(crate) enum Message {
    Leg(NewLeg),
    End { pair: PairId, cause: Cause },
    Stop,
}

/// A leg that the front shall send away with an alert.
#[derive(Debug)]
pub(crate) struct Farewell {
    pub(crate) socket: OwnedFd,
    pub(crate) refusal: Refusal,
}

/// Where workers send legs to be sent away. Bounded by the legs there are.
pub(crate) type FarewellSender = tokio::sync::mpsc::UnboundedSender<Farewell>;

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
