//! One session's UDP at one of its ends.
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use switchback_shortpath::{LegKind, SessionHandle};
use tokio::sync::broadcast;

use crate::link::report::path_legs;
use crate::wire::{PathMove, PathReport, TransportPolicy, UdpUse};

/// Moves that wait for whoever watches; one that is slower misses the oldest.
const MOVES_WAITING: usize = 32;

/// What an end knows and does about a session's UDP.
#[derive(Debug)]
pub(crate) struct SessionUdp {
    transport: TransportPolicy,
    enabled: bool,
    started: Instant,
    moves: broadcast::Sender<PathMove>,
}

impl SessionUdp {
    /// Of a session that begins; `enabled`: this end does UDP.
    pub(crate) fn new(transport: TransportPolicy, enabled: bool) -> Self {
        let moves = broadcast::Sender::new(MOVES_WAITING);
        Self { transport, enabled, started: Instant::now(), moves }
    }

    /// What may carry the session.
    pub(crate) const fn transport(&self) -> TransportPolicy {
        self.transport
    }

    /// Every move from now on.
    pub(crate) fn watch(&self) -> broadcast::Receiver<PathMove> {
        self.moves.subscribe()
    }

    /// The session layer moved to another transport.
    pub(crate) fn moved(
        &self,
        (from, to): (Option<LegKind>, LegKind),
        cause: &str,
        stall: Duration,
        rtt_us: Option<u32>,
    ) -> PathMove {
        let labels = (from.map(LegKind::label), to.label());
        let moved = lock(&self.journal).moved(Instant::now(), labels, cause, stall, rtt_us);
        // Nobody may be watching.
        let _ = self.moves.send(moved.clone());
        moved
    }

    /// What this end sees.
    pub(crate) fn report(&self, handle: &SessionHandle) -> PathReport {
        let legs = path_legs(&handle.stats());
        let mut reasons = Vec::new();
        match (self.transport.udp, self.enabled) {
            (UdpUse::Off, _) => reasons.push("policy_no_udp".to_owned()),
            (_, false) => reasons.push("udp_disabled".to_owned()),
            (UdpUse::RelayOnly, true) => reasons.push("policy_relay_only".to_owned()),
            (UdpUse::Prefer | UdpUse::Require, true) => {}
        }
        PathReport { legs, pairs: Vec::new(), reasons, moves: lock(&self.journal).moves() }
    }
}

/// Whether this kind of leg leads from end to end without the gateway.
pub(crate) const fn is_direct(kind: LegKind) -> bool {
    matches!(kind, LegKind::UdpDirect | LegKind::UdpManaged)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
