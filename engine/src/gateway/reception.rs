//! What becomes of a connection whose hello is complete, wherever it was completed: on a worker, or at the desk.
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::hello::Hello;
use crate::stats::Shared;
use crate::worker::NewLeg;
use crate::{Admission, Admitted, ForeignConnection, LegSide, Verdict};

/// The owner's two callbacks.
pub(crate) struct Reception {
    pub(crate) shared: Arc<Shared>,
    pub(crate) admission: Arc<dyn Admission>,
    pub(crate) foreign: Box<dyn Fn(ForeignConnection) + Send + Sync>,
}

impl Reception {
    /// Whose connection it is.
    pub(crate) fn judge(&self, hello: &Hello, peer: SocketAddr) -> Verdict {
        match &hello.server_name {
            Some(name) => self.admission.admit(name, peer),
            None => Verdict::Foreign,
        }
    }

    /// Gives a connection that is no leg to the broker. `socket` is non-blocking, `head` was read from it.
    pub(crate) fn hand_over(&self, socket: OwnedFd, peer: SocketAddr, head: Vec<u8>) {
        self.shared.foreign.fetch_add(1, Relaxed);
        (self.foreign)(ForeignConnection {
            stream: TcpStream::from(socket),
            peer,
            head: head.into(),
        });
    }
}

/// The admitted leg behind `socket`, which is non-blocking. `head` is all that was read from it: a client's is forwarded
/// whole, an agent's hello is consumed.
pub(crate) fn new_leg(
    socket: OwnedFd,
    peer: SocketAddr,
    admitted: Admitted,
    hello: &Hello,
    head: &[u8],
) -> NewLeg {
    let said = match admitted.side {
        LegSide::Client => head,
        LegSide::Agent => &head[hello.length..],
    };
    NewLeg { socket, peer, admitted, said: said.to_vec() }
}
