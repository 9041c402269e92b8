//! The serving process's side: it finds its successor, yields to it, and drains.
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, interval, sleep, timeout};

use super::SOCKET_FILE;
use super::channel::{Channel, Doorbell};
use super::messages::{PROTOCOL, ToServing, ToSuccessor, judge};
use crate::broker::app::App;
use crate::broker::data::{DataDir, DataLock};
use crate::broker::gateway::{DataPlane, Sockets};
use crate::code::{Code, Fault};

/// From a call to its hello: both are on this machine.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// From the offer to `ready`. The new process checks the whole database, and the old one serves meanwhile.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Pause after the socket failed, for want of descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How often a draining process counts its pairs: its end is at most this late.
const COUNT_EVERY: Duration = Duration::from_millis(200);
/// How often it logs how many are left.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Where a serving process can be asked to yield.
#[derive(Debug)]
pub(in crate::broker) struct Giver {
    doorbell: Option<Doorbell>,
    configured: SocketAddr,
    bound: SocketAddr,
}

/// A new process that is ready to serve, and waits for our word.
#[derive(Debug)]
pub struct Successor {
    channel: Channel,
    /// Ours, for the case that it fails after all.
    sockets: Sockets,
}

impl Giver {
    /// Opens the socket in `data`, whose lock the caller holds. A server serves without one, too: some file systems have
    /// no sockets.
    pub(in crate::broker) fn open(
        data: &DataDir,
        configured: SocketAddr,
        bound: SocketAddr,
    ) -> Self {
        let path = data.file(SOCKET_FILE);
        let doorbell = Doorbell::open(&path)
            .inspect_err(|error| {
                tracing::warn!(path = %path.display(), %error, "no process can take over from this one");
            })
            .ok();
        Self { doorbell, configured, bound }
    }

    /// Waits until a new process is ready to take over. What goes wrong before is logged, and changes nothing.
    pub(in crate::broker) async fn successor(&self, data_plane: &DataPlane) -> Successor {
        let Some(doorbell) = &self.doorbell else { return std::future::pending().await };
        loop {
            let channel = next_caller(doorbell).await;
            let peer = channel.peer();
            tracing::info!(pid = peer, "a new process asks to take over");
            let mut agreement = std::pin::pin!(self.agree(channel, data_plane));
            let agreed = loop {
                tokio::select! {
                    agreed = &mut agreement => break agreed,
                    other = next_caller(doorbell) => drop(tokio::spawn(put_off(other))),
                }
            };
            match agreed {
                Ok(successor) => return successor,
                Err(fault) => tracing::warn!(pid = peer, %fault, "no takeover, serving on"),
            }
        }
    }

    async fn agree(&self, channel: Channel, data_plane: &DataPlane) -> Result<Successor, Fault> {
        let heard = heard_in(HELLO_DEADLINE, &channel).await?;
        let ToServing::Hello { protocol, version, listen } = heard else {
            return Err(Code::TakeoverFailed.because("the new process did not say hello"));
        };
        let agreed = judge(protocol, listen, self.configured, self.bound);
        let sockets = match agreed.and_then(|()| data_plane.sockets()) {
            Ok(sockets) => sockets,
            Err(fault) => {
                refuse(&channel, &fault).await;
                return Err(fault);
            }
        };
        tracing::info!(pid = channel.peer(), version, "offering the sockets");
        let descriptors = sockets.descriptors();
        let stun = sockets.has_stun();
        let listeners = descriptors.len() - usize::from(stun);
        let offer = ToSuccessor::Offer { protocol: PROTOCOL, listeners, stun };
        channel.send(&offer, &descriptors).await.map_err(|error| lost(&error))?;
        match heard_in(READY_DEADLINE, &channel).await? {
            ToServing::Ready => Ok(Successor { channel, sockets }),
            _ => Err(Code::TakeoverFailed.because("the new process did not say that it is ready")),
        }
    }
}

async fn next_caller(doorbell: &Doorbell) -> Channel {
    loop {
        match doorbell.accept().await {
            Ok(channel) => return channel,
            Err(error) => {
                tracing::warn!(%error, "a call at the takeover socket failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Refuses a caller once it has said hello: closing over what it says would destroy what it is told.
async fn put_off(channel: Channel) {
    if heard_in(HELLO_DEADLINE, &channel).await.is_ok() {
        tracing::warn!(pid = channel.peer(), "takeover refused: another is under way");
        refuse(&channel, &Code::TakeoverBusy.into()).await;
    }
}

async fn refuse(channel: &Channel, fault: &Fault) {
    // It may be gone; it learns nothing then.
    let _ = channel.send(&ToSuccessor::Refused(fault.clone()), &[]).await;
}

async fn heard_in(limit: Duration, channel: &Channel) -> Result<ToServing, Fault> {
    let heard = timeout(limit, channel.receive()).await;
    let heard = heard.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    heard.map(|(message, _)| message).map_err(|error| lost(&error))
}

fn lost(error: &io::Error) -> Fault {
    Code::TakeoverFailed.because(format!("the new process: {error}"))
}

impl Successor {
    /// The new process's id.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.channel.peer()
    }

    /// Lets it serve, and waits until it does. Our sockets come back if it does not: then it has ended, and nobody serves.
    pub(in crate::broker) async fn serve(self, lock: &DataLock) -> Result<(), (Fault, Sockets)> {
        let Self { channel, sockets } = self;
        let begun = async {
            channel.send(&ToSuccessor::Go, &[lock.as_fd()]).await?;
            // Without a limit: a process that lives may begin to serve at any moment, and there must not be two.
            channel.receive().await
        };
        match begun.await {
            Ok((ToServing::Serving, _)) => Ok(()),
            Ok(_) => Err((Code::TakeoverFailed.because("the new process does not serve"), sockets)),
            Err(error) => Err((lost(&error), sockets)),
        }
    }
}

/// A gateway that accepts nothing more; its pairs go on. To be ended with [`Draining::end`].
pub struct Draining {
    app: Arc<App>,
}

impl Draining {
    pub(in crate::broker) const fn new(app: Arc<App>) -> Self {
        Self { app }
    }

    /// Waits until every pair has ended by itself, at most for `limit`. Tells the log how many are left now and then.
    /// Safe to drop.
    pub async fn emptied(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut count = interval(COUNT_EVERY);
        let mut tell_at = Instant::now();
        let mut told = None;
        loop {
            let now = count.tick().await;
            let pairs = self.app.hub.data_plane.pairs();
            if pairs == 0 {
                return tracing::info!("drained: every pair has ended by itself");
            }
            if now >= deadline {
                return tracing::info!(
                    pairs,
                    "the drain's time is over, the pairs left resume elsewhere"
                );
            }
            if now >= tell_at && told != Some(pairs) {
                let left_s = deadline.saturating_duration_since(now).as_secs();
                tracing::info!(pairs, left_s, "draining");
                (tell_at, told) = (now + TELL_EVERY, Some(pairs));
            }
        }
    }

    /// Ends the pairs that are left; their sessions resume through whoever serves now. Takes up to 3 s.
    pub async fn end(self) {
        let hub = self.app.hub.clone();
        // A panic there was reported when it happened.
        drop(tokio::task::spawn_blocking(move || hub.data_plane.shutdown()).await);
    }
}

impl std::fmt::Debug for Draining {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Draining").field("pairs", &self.app.hub.data_plane.pairs()).finish()
    }
}
