//! The new process's side: it asks for the sockets, and for the word to go.
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use super::SOCKET_FILE;
use super::channel::Channel;
use super::messages::{PROTOCOL, ToServing, ToSuccessor};
use crate::broker::gateway::Sockets;
use crate::code::{Code, Fault};

/// From the hello to the offer: the serving process only has to duplicate a few descriptors.
const OFFER_DEADLINE: Duration = Duration::from_secs(10);
/// From `ready` to `go`. The serving process gives its workers 2 s to let go of the listeners, and connections 3 s.
const GO_DEADLINE: Duration = Duration::from_secs(20);

/// The process that serves now.
#[derive(Debug)]
pub(in crate::broker) struct Predecessor {
    channel: Channel,
}

impl Predecessor {
    /// Asks the server of the data directory for its sockets.
    ///
    /// # Errors
    /// [`Code::TakeoverNone`], [`Code::TakeoverMismatch`], [`Code::TakeoverBusy`], [`Code::ProtocolVersion`],
    /// [`Code::TakeoverFailed`].
    pub(in crate::broker) async fn ask(
        data: &Path,
        listen: SocketAddr,
    ) -> Result<(Self, Sockets), Fault> {
        let path = data.join(SOCKET_FILE);
        let channel = Channel::call(&path).map_err(|error| {
            let code = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Code::TakeoverNone,
                _ => Code::TakeoverFailed,
            };
            code.because(format!("{}: {error}", path.display()))
        })?;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let hello = ToServing::Hello { protocol: PROTOCOL, version, listen };
        channel.send(&hello, &[]).await.map_err(|error| lost(&error))?;
        let (answer, descriptors) = answer_in(OFFER_DEADLINE, &channel).await?;
        match answer {
            ToSuccessor::Refused(fault) => Err(fault),
            ToSuccessor::Offer { listeners, stun, .. }
                if listeners > 0 && descriptors.len() == listeners + usize::from(stun) =>
            {
                Ok((Self { channel }, Sockets::adopt(descriptors, stun)))
            }
            ToSuccessor::Offer { .. } | ToSuccessor::Go => {
                Err(Code::TakeoverFailed.because("the running server made no offer of sockets"))
            }
        }
    }

    /// Says that we are ready, and waits for the word to go and the data directory's lock. From then on nobody else
    /// serves.
    ///
    /// # Errors
    /// [`Code::TakeoverFailed`]; then the other process goes on serving, once we have ended.
    pub(in crate::broker) async fn ready(&self) -> Result<OwnedFd, Fault> {
        self.channel.send(&ToServing::Ready, &[]).await.map_err(|error| lost(&error))?;
        let (answer, mut descriptors) = answer_in(GO_DEADLINE, &self.channel).await?;
        match (answer, descriptors.pop()) {
            (ToSuccessor::Go, Some(lock)) => Ok(lock),
            _ => Err(Code::TakeoverFailed.because("the running server did not let go")),
        }
    }

    /// Says that we serve.
    pub(in crate::broker) async fn serving(self) {
        if let Err(error) = self.channel.send(&ToServing::Serving, &[]).await {
            // It ended, and its pairs with it: they resume here.
            tracing::warn!(%error, "the process before this one is gone");
        }
    }
}

async fn answer_in(
    limit: Duration,
    channel: &Channel,
) -> Result<(ToSuccessor, Vec<OwnedFd>), Fault> {
    let answer = timeout(limit, channel.receive()).await;
    answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|error| lost(&error))
}

fn lost(error: &io::Error) -> Fault {
    Code::TakeoverFailed.because(format!("the running server: {error}"))
}
