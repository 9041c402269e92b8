//! One session's UDP at one of its ends: the search, the moves, and what is told about them.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use switchback_shortpath::path::PairState;
use switchback_shortpath::underlay::{LegView, Shortpath, ShortpathView};
use switchback_shortpath::{
    LegKind, MoveCause, MoveStats, SessionConfig, SessionHandle, SessionKey,
};
use tokio::sync::broadcast;
use tokio::time::sleep;

use super::reach::{Identity, Reach};
use crate::code::Code;
use crate::link::report::path_legs;
use crate::reason;
use crate::wire::{
    Candidate, PathMove, PathPair, PathReport, REPORT_PAIRS_MAX, RelayAccess, TransportPolicy,
    UdpAccess, UdpUse,
};

/// Moves that wait for whoever watches; one that is slower misses the oldest.
const MOVES_WAITING: usize = 32;
/// A session that must be direct ends after this without a direct path: connectivity checks are given up after some 7 s
/// (12 tries, RFC 8445 section 14), and one more round may follow a change of network.
pub(crate) const DIRECT_WITHIN: Duration = Duration::from_secs(15);
const DIRECT_LOOK_EVERY: Duration = Duration::from_millis(500);

/// What an end knows and does about a session's UDP.
#[derive(Debug)]
pub(crate) struct SessionUdp {
    transport: TransportPolicy,
    reach: Option<Reach>,
    started: Instant,
    search: Mutex<Search>,
    moves: broadcast::Sender<PathMove>,
}

#[derive(Debug, Default)]
enum Search {
    /// Not yet, or it cannot be.
    #[default]
    None,
    /// It is being started; these came meanwhile.
    Starting(Vec<Candidate>),
    /// It runs; the other end was told of these relayed addresses of ours.
    Running { shortpath: Shortpath, told: Vec<Candidate> },
    /// The session is over.
    Over,
}

/// What a search needs besides [`UdpAccess`].
#[derive(Clone)]
pub(crate) struct Wanted {
    pub(crate) role: switchback_shortpath::Role,
    pub(crate) key: SessionKey,
    /// The other end's, DER.
    pub(crate) peer_key: Vec<u8>,
}

impl SessionUdp {
    /// Of a session that begins; `reach`: `None` if this end does without UDP.
    pub(crate) fn new(transport: TransportPolicy, reach: Option<Reach>) -> Arc<Self> {
        let (moves, search) = (broadcast::Sender::new(MOVES_WAITING), Mutex::default());
        Arc::new(Self { transport, reach, started: Instant::now(), search, moves })
    }

    /// What may carry the session.
    pub(crate) const fn transport(&self) -> TransportPolicy {
        self.transport
    }

    /// Every move from now on.
    pub(crate) fn watch(&self) -> broadcast::Receiver<PathMove> {
        self.moves.subscribe()
    }

    /// Where this end can be reached; `None` if it does without UDP.
    pub(crate) fn candidates(&self) -> Option<Vec<Candidate>> {
        self.reach.as_ref().map(Reach::candidates)
    }

    /// Starts the search, or tells the one that runs what is new.
    pub(crate) fn begin(
        self: &Arc<Self>,
        wanted: Wanted,
        access: UdpAccess,
        session: &SessionHandle,
    ) {
        let Some(reach) = self.reach.clone() else { return };
        if self.transport.udp == UdpUse::Off {
            return;
        }
        {
            let mut search = lock(&self.search);
            if !matches!(*search, Search::None) {
                drop(search);
                return self.add(access.candidates);
            }
            *search = Search::Starting(Vec::new());
        }
        let (this, session) = (self.clone(), session.clone());
        tokio::spawn(async move {
            let who = Identity { role: wanted.role, key: &wanted.key, peer_key: wanted.peer_key };
            match reach.connect(who, access, this.transport, &session).await {
                Ok(shortpath) => this.running(shortpath),
                Err(fault) => {
                    tracing::warn!(%fault, "no UDP for this session");
                    *lock(&this.search) = Search::None;
                }
            }
        });
    }

    fn running(&self, shortpath: Shortpath) {
        let mut search = lock(&self.search);
        if let Search::Starting(waiting) = &mut *search {
            if !waiting.is_empty() {
                shortpath.add_remote_candidates(std::mem::take(waiting));
            }
            *search = Search::Running { shortpath, told: Vec::new() };
        }
    }

    /// The other end can also be reached here.
    pub(crate) fn add(&self, candidates: Vec<Candidate>) {
        match &mut *lock(&self.search) {
            Search::Starting(waiting) if waiting.len() < crate::wire::CANDIDATES_MAX => {
                waiting.extend(candidates);
            }
            Search::Running { shortpath, .. } if !candidates.is_empty() => {
                shortpath.add_remote_candidates(candidates);
            }
            _ => {}
        }
    }

    /// The session is over: no search any more, and no UDP legs.
    pub(crate) fn end(&self) {
        *lock(&self.search) = Search::Over;
    }

    /// Whether the other end is to hear when this end's network changes.
    pub(crate) fn is_searching(&self) -> bool {
        matches!(*lock(&self.search), Search::Starting(_) | Search::Running { .. })
    }

    /// Relayed addresses of ours that the other end has not been told of.
    pub(crate) fn untold(&self) -> Vec<Candidate> {
        let mut search = lock(&self.search);
        let Search::Running { shortpath, told } = &mut *search else { return Vec::new() };
        let relayed = *shortpath.relayed().borrow();
        let fresh: Vec<_> = relayed.into_iter().filter(|it| !told.contains(it)).collect();
        told.extend(&fresh);
        fresh
    }

    /// The session layer moved to another transport.
    pub(crate) fn moved(
        &self,
        (from, to): (Option<LegKind>, LegKind),
        cause: MoveCause,
        stall: Duration,
        session: &SessionHandle,
    ) -> PathMove {
        let stats = MoveStats { ago: Duration::ZERO, from, to, cause, stall };
        let rtt = session.stats().rtt.map(|rtt| rtt.smoothed_us);
        let moved = PathMove { rtt_us: rtt, ..self.in_words(&stats) };
        // Nobody may be watching.
        let _ = self.moves.send(moved.clone());
        moved
    }

    fn in_words(&self, moved: &MoveStats) -> PathMove {
        let at = self.started.elapsed().saturating_sub(moved.ago);
        PathMove {
            at_ms: saturated(at.as_millis()),
            from: moved.from.map(|kind| kind.label().to_owned()),
            to: moved.to.label().to_owned(),
            cause: moved.cause.as_str().to_owned(),
            stall_us: saturated(moved.stall.as_micros()),
            rtt_us: None,
        }
    }

    /// What this end sees.
    pub(crate) fn report(&self, session: &SessionHandle) -> PathReport {
        let stats = session.stats();
        let view = match &*lock(&self.search) {
            Search::Running { shortpath, .. } => Some(shortpath.view()),
            _ => None,
        };
        let pairs = view.as_ref().map(pairs).unwrap_or_default();
        let moves = stats.moves.iter().map(|moved| self.in_words(moved)).collect();
        PathReport { legs: path_legs(&stats), pairs, reasons: self.reasons(view.as_ref()), moves }
    }

    fn reasons(&self, view: Option<&ShortpathView>) -> Vec<String> {
        let own = match (self.transport.udp, &self.reach) {
            (UdpUse::Off, _) => Some("policy_no_udp"),
            (_, None) => Some("udp_disabled"),
            (UdpUse::RelayOnly, Some(_)) => Some("policy_relay_only"),
            (UdpUse::Prefer | UdpUse::Require, Some(_)) => None,
        };
        let mut reasons: Vec<String> = own.into_iter().map(str::to_owned).collect();
        for reason in view.iter().flat_map(|view| &view.reasons) {
            if !reasons.iter().any(|known| known == reason) {
                reasons.push((*reason).to_owned());
            }
        }
        reasons
    }

    /// Ends the session if it must be direct and was not for too long. Runs as long as the session.
    pub(crate) async fn enforce(self: Arc<Self>, session: SessionWatch) {
        let mut direct_at = Instant::now();
        while !matches!(*lock(&self.search), Search::Over) {
            let Some(direct) = session.is_direct() else { return };
            if direct {
                direct_at = Instant::now();
            } else if direct_at.elapsed() >= DIRECT_WITHIN {
                return session.end();
            }
            sleep(DIRECT_LOOK_EVERY).await;
        }
    }
}

/// A session that is looked at until its [`SessionUdp::end`].
pub(crate) struct SessionWatch(pub(crate) SessionHandle);

impl SessionWatch {
    /// Whether a direct path carries it; `None` once it is over.
    fn is_direct(&self) -> Option<bool> {
        let stats = self.0.stats();
        let over = stats.state == switchback_shortpath::LinkState::Closed;
        (!over).then(|| stats.leg.is_some_and(is_direct))
    }

    fn end(&self) {
        self.0.close(reason::to_wire(Code::DirectUnavailable));
    }
}

/// Whether this kind of leg leads from end to end without the gateway.
pub(crate) const fn is_direct(kind: LegKind) -> bool {
    matches!(kind, LegKind::UdpDirect | LegKind::UdpManaged)
}

/// A session's configuration under its policy: what may not carry it only stands by.
pub(crate) fn under(transport: TransportPolicy, config: &SessionConfig) -> SessionConfig {
    let allowed = |kind: &LegKind| match transport.udp {
        UdpUse::Prefer => true,
        UdpUse::Require => is_direct(*kind),
        UdpUse::RelayOnly => !is_direct(*kind),
        UdpUse::Off => *kind == LegKind::TcpReverse,
    };
    let allowed = config.allowed.iter().copied().filter(allowed).collect();
    SessionConfig { allowed, ..config.clone() }
}

fn pairs(view: &ShortpathView) -> Vec<PathPair> {
    let of_leg = |leg: &LegView| {
        let kind = leg.kind;
        let pairs = leg.pairs.clone();
        pairs.into_iter().map(move |pair| PathPair {
            transport: kind.to_owned(),
            local: pair.local_kind.as_str().to_owned(),
            remote: format!("{} {}", pair.remote_kind.as_str(), pair.remote),
            state: if pair.selected { "selected" } else { state(pair.state) }.to_owned(),
            rtt_us: pair.rtt_us.and_then(|us| u32::try_from(us).ok()),
        })
    };
    view.legs.iter().flat_map(of_leg).take(REPORT_PAIRS_MAX).collect()
}

const fn state(state: PairState) -> &'static str {
    match state {
        PairState::Waiting => "waiting",
        PairState::Checking => "checking",
        PairState::Succeeded => "succeeded",
        PairState::Failed => "failed",
    }
}

/// Notes that relay rights were renewed: a search that runs keeps its allocations, which outlive their credentials.
pub(crate) fn renewed(udp: &SessionUdp, relay: RelayAccess) {
    tracing::debug!(
        username = relay.username,
        searching = udp.is_searching(),
        "relay rights renewed"
    );
}

fn saturated(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_keeps_what_it_forbids_from_carrying() {
        let allowed = |udp| {
            let transport = TransportPolicy { udp, ..TransportPolicy::default() };
            under(transport, &SessionConfig::default()).allowed
        };
        assert_eq!(allowed(UdpUse::Prefer), LegKind::ALL);
        assert_eq!(allowed(UdpUse::Require), [LegKind::UdpDirect, LegKind::UdpManaged]);
        assert_eq!(allowed(UdpUse::RelayOnly), [LegKind::TcpReverse, LegKind::UdpRelay]);
        assert_eq!(allowed(UdpUse::Off), [LegKind::TcpReverse]);
    }

    #[test]
    fn an_end_without_udp_says_why_it_has_none() {
        let reasons = |udp| {
            let transport = TransportPolicy { udp, ..TransportPolicy::default() };
            SessionUdp::new(transport, None).reasons(None)
        };
        assert_eq!(reasons(UdpUse::Off), ["policy_no_udp"]);
        assert_eq!(reasons(UdpUse::Prefer), ["udp_disabled"]);
    }
}
