//! What other threads send a worker, and what a worker sends the desk.
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

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
    /// A connection whose hello is not complete.
    Hello { socket: OwnedFd, peer: SocketAddr, head: Vec<u8> },
    /// A leg to be sent away with an alert.
    Farewell { socket: OwnedFd, refusal: Refusal },
    /// To be dropped when no hello is unfinished any more. The gateway is stopping.
    Quiet(Ack),
}

/// The way to the desk, and back for those that do not fit.
#[derive(Clone, Debug)]
pub(crate) struct DeskSender {
    errands: mpsc::UnboundedSender<Errand>,
    backlog: Arc<AtomicUsize>,
}

/// The desk's end.
#[derive(Debug)]
pub(crate) struct Errands {
    errands: mpsc::UnboundedReceiver<Errand>,
    backlog: Arc<AtomicUsize>,
}

/// Errands from workers to a desk. They end when every sender is gone.
pub(crate) fn errands() -> (DeskSender, Errands) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let backlog = Arc::new(AtomicUsize::new(0));
    (
        DeskSender { errands: sender, backlog: backlog.clone() },
        Errands { errands: receiver, backlog },
    )
}

impl DeskSender {
    /// Sends; the errand comes back if the desk is gone or too far behind. [`Errand::Quiet`] is never too much.
    pub(crate) fn send(&self, errand: Errand) -> Result<(), Errand> {
        let behind = self.backlog.fetch_add(1, Relaxed) >= BACKLOG_MAX;
        let unsent = if behind && !matches!(errand, Errand::Quiet(_)) {
            errand
        } else {
            match self.errands.send(errand) {
                Ok(()) => return Ok(()),
                Err(unsent) => unsent.0,
            }
        };
        self.backlog.fetch_sub(1, Relaxed);
        Err(unsent)
    }
}

impl Errands {
    pub(crate) async fn next(&mut self) -> Option<Errand> {
        let errand = self.errands.recv().await?;
        self.backlog.fetch_sub(1, Relaxed);
        Some(errand)
    }
}

/// Errands that the desk has not looked at yet, a descriptor each. It looks at a hundred thousand a second, so this many
/// mean a flood.
const BACKLOG_MAX: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    fn farewell() -> Errand {
        let socket = std::fs::File::open("/dev/null").unwrap().into();
        Errand::Farewell { socket, refusal: Refusal::LegLimit }
    }

    #[test]
    fn a_flood_of_errands_is_bounded_and_quiet_still_gets_through() {
        let (sender, mut errands) = errands();
        let sent = (0..BACKLOG_MAX + 10).filter(|_| sender.send(farewell()).is_ok()).count();
        assert_eq!(sent, BACKLOG_MAX);
        let (ack, _) = std::sync::mpsc::channel();
        assert!(sender.send(Errand::Quiet(ack)).is_ok());
        for _ in 0..2 {
            assert!(errands.errands.try_recv().is_ok());
            errands.backlog.fetch_sub(1, Relaxed);
        }
        assert!(sender.send(farewell()).is_ok(), "room again");
    }
}
