//! What the owner of a session holds.
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::channel::Channel;
use super::datagrams::DatagramFlow;
use super::leg;
use super::quic::SessionRef;
use super::shared::{Shared, deliver_events, keep_time};
use crate::session::{
    CLOSE_NORMAL, CloseReason, LegFigures, LegId, LegKind, MoveCause, OpenError, Role, RttFigures,
    Session, SessionConfig,
};

/// What the owner of a session is told.
#[derive(Debug)]
pub enum SessionEvent {
    /// The peer opened a channel.
    Incoming(Channel),
    /// The peer opened a channel for datagrams.
    IncomingDatagrams(DatagramFlow),
    /// Another leg carries the session, or (`Recovered`) the one that does held bytes up and answers again. Several moves the owner has not taken become one.
    Moved {
        /// The kind of leg before; `None`: this is the first.
        from: Option<LegKind>,
        /// The kind of leg now.
        to: LegKind,
        /// Why.
        cause: MoveCause,
        /// How long bytes on their way came to nothing; 0 for a planned move.
        stall: Duration,
    },
    /// A leg owes word for longer than its round trips explain, or the last sound one is gone. Often that is a lost packet; if
    /// it is a network that changed, other connections of this machine had better be looked at now. It comes again, after 1 s
    /// and then up to 8 s, while nothing carries the session beyond doubt.
    InDoubt,
    /// A leg is silent although it owes an answer: make another. The silent one stays attached and in use until another
    /// is ready, for it may recover.
    LegSuspect(LegId),
    /// A leg is gone: closed, failed, silent for too long, or pushed out by others.
    LegLost {
        /// Which.
        leg: LegId,
        /// What ended it, for people.
        error: String,
    },
    /// No leg carries the session; it is lost unless one does within the resume window.
    Down,
    /// A leg carries the session: after the first attach, and after each [`SessionEvent::Down`].
    Resumed,
    /// The session is over; the last event.
    Closed(CloseReason),
}

/// Whether a session is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// A leg carries it.
    Connected,
    /// It waits for a leg.
    Down,
    /// It is over.
    Closed,
}

/// Figures of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStats {
    /// Whether it is carried.
    pub state: LinkState,
    /// Transport of the leg that carries it; `None` while none does.
    pub leg: Option<LegKind>,
    /// Round-trip time of that leg, end to end; `None` before the first sample.
    pub rtt: Option<RttFigures>,
    /// Application bytes taken from all channels.
    pub bytes_sent: u64,
    /// Application bytes handed out on all channels.
    pub bytes_received: u64,
    /// Channels held now, those included whose end the peer has yet to confirm.
    pub channels: u32,
    /// Legs lost so far.
    pub legs_lost: u32,
    /// Every leg attached now.
    pub legs: Vec<LegStats>,
    /// The last 32 moves, oldest first, and among them the last 16 stalls that ended without one.
    pub moves: Vec<MoveStats>,
    /// Second copies of frames sent: of small writes on lossy or unknown paths, and of what a silent leg carries.
    pub dup_sent: u64,
    /// Payload bytes of those.
    pub dup_bytes: u64,
    /// Copies of ours that came before their originals.
    pub dup_won: u64,
    /// Estimate in milliseconds of what they saved: for each, the probe timeout of the leg in use, the least that
    /// re-sending would have taken.
    pub ms_saved: u64,
    /// Times QUIC found packets of full size vanishing on a path that carries small ones, and went back to those.
    pub black_holes: u64,
    /// Datagrams of UDP services given up for newer ones, in queues of this end.
    pub datagrams_dropped: u64,
}

/// Figures of one leg.
pub type LegStats = LegFigures;

/// One move of a session from leg to leg, or a stall that ended without one: from a kind to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoveStats {
    /// How long ago.
    pub ago: Duration,
    /// From which kind of leg; `None`: the first.
    pub from: Option<LegKind>,
    /// To which kind.
    pub to: LegKind,
    /// Why.
    pub cause: MoveCause,
    /// How long bytes on their way came to nothing.
    pub stall: Duration,
}

/// One end of a session. Clones share it; dropping the last one closes it with [`CLOSE_NORMAL`].
#[derive(Clone, Debug)]
pub struct SessionHandle(Arc<Owner>);

#[derive(Debug)]
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.with(|state, now| state.session.close(now, CLOSE_NORMAL));
    }
}

/// Events waiting in the receiver. What waits behind them is bounded by what causes it: one `Incoming` per channel held,
/// one `Moved`
/// between any two of the others, and at most four per leg the owner attached (suspicion is not repeated while untold). So a slow owner never blocks the
/// session.
const EVENTS: usize = 16;

impl SessionHandle {
    /// Starts one end of the session both ends call `id`, without legs; the resume window runs. Call within a tokio
    /// runtime. The receiver yields `None` after [`SessionEvent::Closed`].
    #[must_use]
    pub fn start(
        role: Role,
        id: &str,
        config: SessionConfig,
    ) -> (Self, mpsc::Receiver<SessionEvent>) {
        let now = crate::time::now();
        let shared = Shared::new(Session::new(now, role, id, rand::random(), config));
        let (sender, receiver) = mpsc::channel(EVENTS);
        tokio::spawn(keep_time(Arc::clone(&shared)));
        tokio::spawn(deliver_events(Arc::clone(&shared), sender));
        (Self(Arc::new(Owner(shared))), receiver)
    }

    /// Gives the session an established stream (TLS done, `TCP_NODELAY` set) to run over, and takes it over whole. At
    /// most eight at once; one more pushes out the worst. A session that is over drops it.
    pub fn attach(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        kind: LegKind,
    ) -> LegId {
        leg::attach(&self.0.0, stream, kind)
    }

    /// As [`SessionHandle::attach`], in place of the legs of this kind that are there: they carry until this one can, and
    /// nothing new after that.
    pub fn attach_instead(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        kind: LegKind,
    ) -> LegId {
        let leg = leg::attach(&self.0.0, stream, kind);
        self.0.0.with(|state, now| state.session.supersede(now, leg));
        leg
    }

    /// Closes a leg that the session does without: another that is well carries it, and nothing is on its way on this one.
    /// False, and nothing happens, otherwise. No [`SessionEvent::LegLost`] tells of it.
    pub fn let_go(&self, leg: LegId) -> bool {
        leg::let_go(&self.0.0, leg)
    }

    /// For those who add legs and must not keep the session open.
    pub(crate) fn reference(&self) -> SessionRef {
        SessionRef(Arc::clone(&self.0.0))
    }

    /// Opens a channel; works without a leg.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(&self) -> Result<Channel, OpenError> {
        let shared = &self.0.0;
        shared.with(|state, _| {
            let id = state.session.open()?;
            Ok(Channel::new(Arc::clone(shared), id, state.signals_of(id)))
        })
    }

    /// Opens a channel that carries datagrams; works without a leg.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_datagrams(&self) -> Result<DatagramFlow, OpenError> {
        let shared = &self.0.0;
        shared.with(|state, _| {
            let id = state.session.open_datagrams()?;
            Ok(DatagramFlow::new(Arc::clone(shared), id, state.signals_of(id)))
        })
    }

    /// Ends the session for both ends. Frames already queued leave first, for at most
    /// [`SessionConfig::close_within`]; channels fail at once. Only the first call counts.
    pub fn close(&self, code: u16) {
        self.0.0.with(|state, now| state.session.close(now, code));
    }

    /// From now on only legs of `kinds` carry it, of those that could before.
    pub fn allow_only(&self, kinds: &[LegKind]) {
        self.0.0.with(|state, now| state.session.allow_only(now, kinds));
    }

    /// Figures of this moment.
    #[must_use]
    pub fn stats(&self) -> SessionStats {
        let (now, figures, closed) = self
            .0
            .0
            .with(|state, now| (now, state.session.figures(now), state.session.is_closed()));
        let moves = figures.moves.iter().map(|one| MoveStats {
            ago: now.saturating_duration_since(one.at),
            from: one.from,
            to: one.to,
            cause: one.cause,
            stall: one.stall,
        });
        SessionStats {
            state: match (closed, figures.connected) {
                (true, _) => LinkState::Closed,
                (false, true) => LinkState::Connected,
                (false, false) => LinkState::Down,
            },
            leg: figures.leg.filter(|_| figures.connected),
            rtt: figures.rtt,
            bytes_sent: figures.bytes_sent,
            bytes_received: figures.bytes_received,
            channels: u32::try_from(figures.channels).unwrap_or(u32::MAX),
            legs_lost: figures.legs_lost,
            moves: moves.collect(),
            legs: figures.legs,
            dup_sent: figures.dup_sent,
            dup_bytes: figures.dup_bytes,
            dup_won: figures.dup_won,
            ms_saved: u64::try_from(figures.saved.as_millis()).unwrap_or(u64::MAX),
            black_holes: figures.black_holes,
            datagrams_dropped: figures.datagrams_dropped,
        }
    }
}
