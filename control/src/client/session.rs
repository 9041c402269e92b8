//! A session as its user holds it: channels, local ports, standard input and output.
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use switchback_shortpath::{
    CarryEnd, CarryOutcome, Channel, ChannelError, OpenError, SessionHandle, carry, carry_stdio,
};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::sleep;
use tokio_util::sync::DropGuard;
use tokio_util::task::TaskTracker;

use crate::client::desk::Ending;
use crate::client::keeper::Phase;
use crate::client::{local, stdio};
use crate::code::{Code, Fault};
use crate::dial::tcp;
use crate::link::report::rtt_view;
use crate::reason;
use crate::udp::flows;
use crate::udp::session::{SessionUdp, is_direct};
use crate::wire::{PathMove, ResourceKind, RttView, SessionId, TransportPolicy, UdpUse};

/// Between looks whether a session that must be direct is so: a tenth of what connecting takes.
const DIRECT_LOOK_EVERY: Duration = Duration::from_millis(10);

/// Figures of a session at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFigures {
    /// Label of the transport that carries it; absent while none does.
    pub transport: Option<String>,
    /// End-to-end round trip; absent until measured.
    pub rtt: Option<RttView>,
    /// Application bytes from client to target.
    pub client_to_target: u64,
    /// Application bytes from target to client.
    pub target_to_client: u64,
    /// Open channels.
    pub channels: u32,
    /// Legs lost so far.
    pub resumes: u32,
}

/// A session. Clones are the same one; it is closed when the last is dropped.
#[derive(Clone, Debug)]
pub struct ClientSession(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    held: Held,
    phase: watch::Receiver<Phase>,
    orders: mpsc::Sender<Ending>,
    /// [`ClientSession::close`] was called.
    closing: AtomicBool,
    /// The desk stays open while a session needs it.
    _desk: Arc<DropGuard>,
}

/// What a client holds of a session.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) id: SessionId,
    pub(super) agent: String,
    pub(super) kind: ResourceKind,
    pub(super) shadow_target: bool,
    pub(super) handle: SessionHandle,
    pub(super) udp: Arc<SessionUdp>,
}

impl ClientSession {
    pub(super) fn new(
        held: Held,
        phase: watch::Receiver<Phase>,
        orders: mpsc::Sender<Ending>,
        desk: Arc<DropGuard>,
    ) -> Self {
        let closing = AtomicBool::new(false);
        Self(Arc::new(Inner { held, phase, orders, closing, _desk: desk }))
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &SessionId {
        &self.0.held.id
    }

    /// Name of the agent that serves it.
    #[must_use]
    pub fn agent(&self) -> &str {
        &self.0.held.agent
    }

    /// What its resource carries.
    #[must_use]
    pub fn kind(&self) -> ResourceKind {
        self.0.held.kind
    }

    /// Whether this watch is connected to the resource's shadow target: its channels carry that service's bytes.
    #[must_use]
    pub fn sees_target(&self) -> bool {
        self.0.held.shadow_target
    }

    /// What may carry it.
    #[must_use]
    pub fn transport(&self) -> TransportPolicy {
        self.0.held.udp.transport()
    }

    /// Every move to another transport from now on; a pause is one to [`PAUSED`](crate::udp::PAUSED).
    #[must_use]
    pub fn moves(&self) -> broadcast::Receiver<PathMove> {
        self.0.held.udp.watch()
    }

    /// How far it is, to watch without holding it.
    pub(super) fn phase(&self) -> watch::Receiver<Phase> {
        self.0.phase.clone()
    }

    /// Whether a leg carries it now.
    pub(super) fn is_carried(&self) -> bool {
        self.over().is_none() && self.0.held.handle.stats().leg.is_some()
    }

    /// Its figures.
    #[must_use]
    pub fn stats(&self) -> SessionFigures {
        let stats = self.0.held.handle.stats();
        SessionFigures {
            transport: stats.leg.map(|leg| leg.label().to_owned()),
            rtt: stats.rtt.map(rtt_view),
            client_to_target: stats.bytes_sent,
            target_to_client: stats.bytes_received,
            channels: stats.channels,
            resumes: stats.legs_lost,
        }
    }

    /// Opens a channel: one connection from the agent to the target. Does not wait for it.
    ///
    /// # Errors
    /// [`Code::ChannelLimit`], or why the session is over.
    pub fn open_channel(&self) -> Result<Channel, Fault> {
        self.0.held.handle.open().map_err(|error| match error {
            OpenError::ChannelLimit => Code::ChannelLimit.into(),
            OpenError::Closed => self.over().unwrap_or_else(|| Code::SessionClosed.into()),
        })
    }

    /// Carries every connection to `listener` as a channel until the session is over.
    ///
    /// # Errors
    /// Why the session ended, unless [`Self::close`] ended it.
    pub async fn forward(&self, listener: TcpListener) -> Result<(), Fault> {
        loop {
            tokio::select! {
                outcome = self.ended() => return outcome,
                stream = local::accept(&listener) => self.carry(stream),
            }
        }
    }

    /// As [`Self::forward`], beginning with a connection that was accepted already, until there was none for `idle`.
    /// What is still carried when this ends or is dropped goes on to its own end, as the session's end allows.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub async fn forward_while_used(
        &self,
        first: TcpStream,
        listener: &TcpListener,
        idle: Duration,
    ) -> Result<(), Fault> {
        let carried = TaskTracker::new();
        // It is waited for while there are more to come.
        carried.close();
        let mut next = Some(first);
        loop {
            if let Some(carrying) = next.take().and_then(|stream| self.carrying(stream)) {
                carried.spawn(carrying);
            }
            let unused = async {
                carried.wait().await;
                sleep(idle).await;
            };
            tokio::select! {
                outcome = self.ended() => return outcome,
                stream = local::accept(listener) => next = Some(stream),
                () = unused => return Ok(()),
            }
        }
    }

    /// Carries every address that sends to `socket` as a flow of datagrams until the session is over.
    ///
    /// # Errors
    /// Why the session ended, unless [`Self::close`] ended it.
    pub async fn forward_datagrams(&self, socket: UdpSocket) -> Result<(), Fault> {
        tokio::select! {
            outcome = self.ended() => outcome,
            Err(_) = flows::forward(&self.0.held.handle, socket) => Err(self.closed().await),
        }
    }

    /// Carries standard input and output over one channel until the target has finished.
    ///
    /// # Errors
    /// What ended it before: a refusal of the target, the end of the session, or the local stream's failure.
    pub async fn stdio(&self) -> Result<(), Fault> {
        let channel = self.open_channel()?;
        let (input, output) = stdio::couple(tokio::io::stdin(), tokio::io::stdout());
        let outcome = carry_stdio(channel, input, output).await;
        self.judge(outcome).await
    }

    /// Waits until the session is over and says why; [`Code::SessionClosed`] if one of its ends closed it.
    pub async fn closed(&self) -> Fault {
        let mut phase = self.0.phase.clone();
        let over = phase.wait_for(|phase| matches!(phase, Phase::Over(_))).await;
        match over.as_deref() {
            Ok(Phase::Over(fault)) => fault.clone(),
            _ => Code::SessionClosed.into(),
        }
    }

    /// Waits until the session is over; why, unless [`Self::close`] ended it.
    async fn ended(&self) -> Result<(), Fault> {
        let fault = self.closed().await;
        if self.0.closing.load(Ordering::Relaxed) { Ok(()) } else { Err(fault) }
    }

    /// Ends the session for both ends; returns when the other end was told or cannot be.
    pub async fn close(&self) {
        self.0.closing.store(true, Ordering::Relaxed);
        // Full or closed: it is ending already.
        let _ = self.0.orders.try_send(Ending::ByUs);
        self.closed().await;
    }

    /// Waits for the first leg.
    pub(super) async fn carried(&self) -> Result<(), Fault> {
        let mut phase = self.0.phase.clone();
        match phase.wait_for(|phase| !matches!(phase, Phase::Starting)).await.as_deref() {
            Ok(Phase::Up) => {}
            Ok(Phase::Over(fault)) => return Err(fault.clone()),
            _ => return Err(Code::Internal.because("the session's keeper is gone")),
        }
        if self.transport().udp == UdpUse::Require {
            return self.direct().await;
        }
        Ok(())
    }

    /// Waits for a direct path; a session that must have one ends without.
    async fn direct(&self) -> Result<(), Fault> {
        let direct = || self.0.held.handle.stats().leg.is_some_and(is_direct);
        let found = async {
            while !direct() {
                sleep(DIRECT_LOOK_EVERY).await;
            }
        };
        tokio::select! {
            () = found => Ok(()),
            fault = self.closed() => Err(fault),
        }
    }

    fn carry(&self, stream: TcpStream) {
        if let Some(carrying) = self.carrying(stream) {
            tokio::spawn(carrying);
        }
    }

    /// What carries a connection until its end; `None` if it was turned away.
    fn carrying(&self, stream: TcpStream) -> Option<impl Future<Output = ()> + Send + use<>> {
        let channel = match tcp::tune(&stream) {
            Ok(()) => self.open_channel(),
            Err(error) => Err(Code::Internal.because(error.to_string())),
        };
        let channel = match channel {
            Ok(channel) => channel,
            Err(fault) => {
                tracing::warn!(session = %self.0.held.id, %fault, "local connection turned away");
                local::turn_away(&stream);
                return None;
            }
        };
        let (id, phase) = (self.0.held.id.clone(), self.0.phase.clone());
        Some(async move {
            if let Err(fault) = fault_of(carry(channel, stream).await, &phase) {
                tracing::warn!(session = %id, %fault, "connection ended early");
            }
        })
    }

    /// The end of standard input and output; when the session ended with the channel, the session's reason.
    async fn judge(&self, outcome: CarryOutcome) -> Result<(), Fault> {
        match outcome.end {
            CarryEnd::Channel(ChannelError::Closed | ChannelError::Lost) => {
                Err(self.closed().await)
            }
            _ => fault_of(outcome, &self.0.phase),
        }
    }

    fn over(&self) -> Option<Fault> {
        over(&self.0.phase)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Full or closed: it is ending already.
        let _ = self.orders.try_send(Ending::ByUs);
    }
}

fn over(phase: &watch::Receiver<Phase>) -> Option<Fault> {
    match &*phase.borrow() {
        Phase::Over(fault) => Some(fault.clone()),
        _ => None,
    }
}

fn fault_of(outcome: CarryOutcome, phase: &watch::Receiver<Phase>) -> Result<(), Fault> {
    match outcome.end {
        CarryEnd::Finished => Ok(()),
        CarryEnd::Channel(ChannelError::Reset(number)) => Err(reason::of_reset(number).into()),
        CarryEnd::Channel(ChannelError::Lost) => Err(Code::SessionLost.into()),
        CarryEnd::Channel(ChannelError::Closed) => {
            Err(over(phase).unwrap_or_else(|| Code::SessionClosed.into()))
        }
        CarryEnd::Channel(ChannelError::Finished) => {
            Err(Code::Internal.because("the channel was used after its end"))
        }
        CarryEnd::Socket(error) => local_fault(&error),
    }
}

/// Why a channel that carried no application ended.
pub(super) fn reset_fault(error: ChannelError) -> Fault {
    match error {
        ChannelError::Reset(number) => reason::of_reset(number).into(),
        ChannelError::Lost => Code::SessionLost.into(),
        ChannelError::Closed | ChannelError::Finished => Code::SessionClosed.into(),
    }
}

/// A local application may leave when it likes; anything else is worth telling.
fn local_fault(error: &io::Error) -> Result<(), Fault> {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Ok(()),
        _ => Err(Code::Internal.because(format!("local connection: {error}"))),
    }
}
