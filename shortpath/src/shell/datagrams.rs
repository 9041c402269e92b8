//! Channels of datagrams as the application holds them, and carrying a UDP socket over one.
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until};

use super::carry::Tap;
use super::shared::{Shared, Signals};
use crate::session::frame::DATAGRAM_MAX;
use crate::session::{ChannelError, ChannelId, DatagramError, RESET_DROPPED, RESET_SOCKET};

/// Datagrams in both directions: unreliable, unordered, whole. Up to 256 of them or 256 KiB wait per direction; beyond, the
/// newest win. Dropped, it ends for both ends.
#[derive(Debug)]
pub struct DatagramFlow {
    shared: Arc<Shared>,
    id: ChannelId,
    signals: Arc<Signals>,
}

impl Drop for DatagramFlow {
    fn drop(&mut self) {
        self.shared.with(|state, _| {
            state.session.reset(self.id, RESET_DROPPED);
            state.session.release(self.id);
            state.forget_signals(self.id);
        });
    }
}

impl DatagramFlow {
    pub(super) fn new(shared: Arc<Shared>, id: ChannelId, signals: Arc<Signals>) -> Self {
        Self { shared, id, signals }
    }

    /// Its id: the same at both ends.
    #[must_use]
    pub fn id(&self) -> ChannelId {
        self.id
    }

    /// Sends a datagram of up to 65,507 bytes, never waiting. It may be lost; one too long for a datagram of the path
    /// travels in a stream.
    ///
    /// # Errors
    /// [`DatagramError`].
    pub fn send(&self, bytes: Bytes) -> Result<(), DatagramError> {
        self.shared.with(|state, _| state.session.send_datagram(self.id, bytes))
    }

    /// Waits for a datagram. `None`: either end has ended the flow, or the session is over. Dropping the future loses
    /// nothing. One task may wait.
    pub async fn recv(&self) -> Option<Bytes> {
        self.next().await.ok()
    }

    /// Ends it for both ends; `code` tells the peer why.
    pub fn reset(&self, code: u16) {
        self.shared.with(|state, _| state.session.reset(self.id, code));
    }

    async fn next(&self) -> Result<Bytes, ChannelError> {
        loop {
            let read = self.shared.with(|state, _| state.session.read_datagram(self.id))?;
            if let Some(bytes) = read {
                return Ok(bytes);
            }
            self.signals.readable.notified().await;
        }
    }
}

/// How a carried flow ended.
#[derive(Debug)]
pub struct FlowOutcome {
    /// Payload bytes from the socket into the flow.
    pub bytes_in: u64,
    /// Payload bytes from the flow into the socket.
    pub bytes_out: u64,
    /// What ended it.
    pub end: FlowEnd,
}

/// What ended a carried flow.
#[derive(Debug, thiserror::Error)]
pub enum FlowEnd {
    /// Nothing came from either side for as long as asked for.
    #[error("idle")]
    Idle,
    /// The other end closed it, or the session is over.
    #[error("{0}")]
    Closed(ChannelError),
    /// The socket failed.
    #[error("socket: {0}")]
    Socket(io::Error),
}

/// Carries a *connected* UDP socket over a flow, until the flow ends, nothing has come from either side for `idle`
/// (RFC 4787 asks NATs for two minutes at least), or the socket fails. A refused datagram (ICMP port unreachable) is a lost
/// one and ends nothing.
pub async fn carry_datagrams(flow: DatagramFlow, socket: UdpSocket, idle: Duration) -> FlowOutcome {
    carry_datagrams_with(flow, socket, idle, &()).await
}

/// As [`carry_datagrams`], under a `tap`. A direction that has to wait leaves its datagrams in their queue, which drops some in
/// time, as a narrow link does.
pub async fn carry_datagrams_with(
    flow: DatagramFlow,
    socket: UdpSocket,
    idle: Duration,
    tap: &impl Tap,
) -> FlowOutcome {
    let mut buffer = vec![0; DATAGRAM_MAX + 1];
    let (mut bytes_in, mut bytes_out) = (0, 0);
    let (mut inward_from, mut outward_from) = (None, None);
    let end = loop {
        let step = tokio::time::timeout(idle, async {
            tokio::select! {
                read = not_before(inward_from, socket.recv(&mut buffer)) => Step::Inward(read),
                next = not_before(outward_from, flow.next()) => Step::Outward(next),
                bytes = tap.injected() => Step::Outward(Ok(bytes)),
            }
        });
        match step.await {
            Err(_) => break FlowEnd::Idle,
            Ok(Step::Inward(Ok(_)) | Step::Outward(Ok(_))) if tap.is_held() => {}
            Ok(Step::Inward(Ok(len))) => {
                let bytes = Bytes::copy_from_slice(&buffer[..len]);
                tap.inward(&bytes);
                inward_from = tap.pace_inward(len).map(|wait| Instant::now() + wait);
                match flow.send(bytes) {
                    Ok(()) => bytes_in += len as u64,
                    Err(DatagramError::TooLong) => {}
                    Err(DatagramError::Ended(error)) => break FlowEnd::Closed(error),
                }
            }
            Ok(Step::Outward(Ok(bytes))) => {
                tap.outward(&bytes);
                outward_from = tap.pace_outward(bytes.len()).map(|wait| Instant::now() + wait);
                match socket.send(&bytes).await {
                    Ok(_) => bytes_out += bytes.len() as u64,
                    Err(error) if is_loss(&error) => {}
                    Err(error) => break FlowEnd::Socket(error),
                }
            }
            Ok(Step::Inward(Err(error))) if is_loss(&error) => {}
            Ok(Step::Inward(Err(error))) => break FlowEnd::Socket(error),
            Ok(Step::Outward(Err(error))) => break FlowEnd::Closed(error),
        }
    };
    if matches!(end, FlowEnd::Socket(_)) {
        flow.reset(RESET_SOCKET);
    }
    FlowOutcome { bytes_in, bytes_out, end }
}

async fn not_before<T>(at: Option<Instant>, then: impl Future<Output = T>) -> T {
    if let Some(at) = at {
        sleep_until(at).await;
    }
    then.await
}

enum Step {
    Inward(io::Result<usize>),
    Outward(Result<Bytes, ChannelError>),
}

/// Linux's `errno` for a datagram that no packet holds.
const EMSGSIZE: i32 = 90;

/// What UDP shows as an error and means as loss: nobody listens yet or any more, no route for now, a datagram too long for
/// the link, a full queue.
fn is_loss(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionRefused, HostUnreachable, NetworkUnreachable, QuotaExceeded, WouldBlock,
    };
    let too_long = error.raw_os_error() == Some(EMSGSIZE);
    let known = [ConnectionRefused, HostUnreachable, NetworkUnreachable, QuotaExceeded, WouldBlock];
    too_long || known.contains(&error.kind())
}
