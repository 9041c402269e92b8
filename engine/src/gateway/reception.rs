//! What becomes of a connection whose hello is complete, wherever it was completed: on a worker, or at the desk.
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::farewell::say_farewell;
use super::hello::Hello;
use crate::stats::Shared;
use crate::worker::NewLeg;
use crate::{Admission, Admitted, ForeignConnection, LegSide, Refusal, Verdict};

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

    /// Gives a connection that is no leg to the broker, if there is a place for it. `socket` is non-blocking, `head` was
    /// read from it.
    pub(crate) fn hand_over(&self, socket: OwnedFd, peer: SocketAddr, head: Vec<u8>) {
        if !self.shared.enter_foreign() {
            self.shared.refused(Refusal::HelloLimit);
            return say_farewell(&socket, Refusal::HelloLimit);
        }
        let place = ForeignPlace(Some(self.shared.clone()));
        self.shared.foreign.fetch_add(1, Relaxed);
        (self.foreign)(ForeignConnection {
            stream: TcpStream::from(socket),
            peer,
            head: head.into(),
            place,
        });
    }
}

/// The place that a [`ForeignConnection`] takes among the sockets that the descriptor limit can carry. Keep it until the
/// connection is closed. The default takes none.
#[derive(Debug, Default)]
pub struct ForeignPlace(Option<Arc<Shared>>);

impl Drop for ForeignPlace {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.leave_foreign();
        }
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
