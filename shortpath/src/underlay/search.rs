//! One kind of leg of one session: its finder, its slot, and when QUIC is dialled. Decides; the driver acts.
use std::time::{Duration, Instant};

use quinn::Connection;

use super::paths::SlotId;
use super::view::{LegState, LegView};
use crate::path::{Candidate, CandidateKind, Finder, FinderEvent, PairState, PairView, Route};
use crate::{LegId, LegKind};

/// See the module.
pub(super) struct Search {
    pub(super) kind: LegKind,
    pub(super) slot: SlotId,
    pub(super) finder: Finder,
    pub(super) stage: Stage,
    /// The route in use, or to be used.
    pub(super) route: Option<Route>,
    /// Packets of our connection came from here before any check did.
    suspected: Option<Route>,
    /// Not before this may QUIC be dialled again.
    retry_at: Option<Instant>,
    backoff: Duration,
    pub(super) reason: Option<&'static str>,
    pub(super) detail: Option<String>,
    /// Datagrams the connection had sent and received at the last look.
    seen: (u64, u64),
    look_at: Option<Instant>,
    /// When the connection was last seen to receive, or was poked.
    heard_at: Option<Instant>,
    /// The finder has lost the route since the last attempt.
    lost: bool,
    started: bool,
    /// This end dials; the other one waits for it.
    dials: bool,
}

/// Where QUIC stands.
pub(super) enum Stage {
    Idle,
    Dialling,
    Up { connection: Connection, leg: LegId, since: Instant },
}

/// First pause after a failed attempt, and most; it doubles. A path that answers checks and failed QUIC was most often just
/// cut; one that never lets QUIC pass costs a handshake in half a minute.
const BACKOFF: Duration = Duration::from_secs(1);
const BACKOFF_MOST: Duration = Duration::from_secs(30);
/// A connection that lasted this long was good: it is dialled anew as after a first failure.
const LASTED: Duration = Duration::from_secs(5);
/// Between looks whether a connection that sends also receives, while it carries something, and while not.
const LOOK: Duration = Duration::from_millis(250);
const LOOK_IDLE: Duration = Duration::from_secs(1);
/// A connection that has received nothing for this long, though both ends' keepalives come each second, is probed as often.
const DEAF: Duration = Duration::from_millis(1500);
/// Datagrams per look that keepalives explain.
const IDLE_DATAGRAMS: u64 = 4;

impl Search {
    pub(super) fn new(kind: LegKind, slot: SlotId, finder: Finder, dials: bool) -> Self {
        Self {
            kind,
            slot,
            finder,
            stage: Stage::Idle,
            route: None,
            suspected: None,
            retry_at: None,
            backoff: BACKOFF,
            reason: None,
            detail: None,
            seen: (0, 0),
            look_at: None,
            heard_at: None,
            lost: false,
            started: false,
            dials,
        }
    }

    /// Candidates may be added from now on.
    pub(super) fn start(&mut self) {
        self.started = true;
    }

    pub(super) fn is_started(&self) -> bool {
        self.started
    }

    /// What the finder says changes where packets go. Returns the route to admit, and whether to send by it.
    pub(super) fn handle(&mut self, event: FinderEvent) -> Option<(Route, bool)> {
        match event {
            FinderEvent::Reachable(route) | FinderEvent::Selected(route) => {
                self.route = Some(route);
                self.reason = None;
                if std::mem::take(&mut self.lost) {
                    // What failed had no path; now there is one.
                    self.retry_at = None;
                }
                Some((route, true))
            }
            FinderEvent::PeerAt(route) => {
                let first = self.route.is_none();
                self.route.get_or_insert(route);
                Some((route, first))
            }
            FinderEvent::Lost(cause) => {
                self.reason =
                    Some(if cause == "checks_unanswered" { "peer_silent" } else { cause });
                self.lost = true;
                if !self.is_up() {
                    self.route = None;
                }
                None
            }
        }
    }

    /// Packets of our connection come from elsewhere: the peer's NAT has bound it anew, or somebody plays. A check tells;
    /// the finder limits how many addresses anybody may make it check.
    pub(super) fn suspect(&mut self, now: Instant, route: Route) {
        self.suspected = Some(route);
        let candidate = Candidate::new(CandidateKind::ServerReflexive, route.remote);
        // Refused when it is known, which a doubt covers, or when nobody may be checked there.
        let _ = self.finder.add_remote(now, candidate);
        self.finder.doubt(now);
    }

    /// The suspected route, once a signed message has come that way: the peer is there and sends from there, so packets go
    /// there at once, without waiting until the old route is known to be dead.
    pub(super) fn follow(&mut self) -> Option<Route> {
        let route = self.suspected?;
        let signed = |pair: &PairView| {
            (pair.local, pair.remote) == (route.local.0, route.remote)
                && (pair.state == PairState::Succeeded || pair.requests > 0)
        };
        if !self.finder.pairs().iter().any(signed) {
            return None;
        }
        self.suspected = None;
        self.route = Some(route);
        Some(route)
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.stage, Stage::Up { .. })
    }

    /// Since when its connection is up.
    pub(super) fn up_since(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Up { since, .. } => Some(*since),
            Stage::Idle | Stage::Dialling => None,
        }
    }

    /// What the session calls its connection.
    pub(super) fn leg(&self) -> Option<LegId> {
        match &self.stage {
            Stage::Up { leg, .. } => Some(*leg),
            Stage::Idle | Stage::Dialling => None,
        }
    }

    /// The route answers and nothing forbids to dial.
    pub(super) fn wants_dial(&self, now: Instant) -> bool {
        self.may_dial() && self.retry_at.is_none_or(|at| at <= now)
    }

    fn may_dial(&self) -> bool {
        self.dials && matches!(self.stage, Stage::Idle) && self.route.is_some()
    }

    pub(super) fn connected(&mut self, now: Instant, connection: Connection, leg: LegId) {
        (self.reason, self.detail, self.seen) = (None, None, (0, 0));
        (self.look_at, self.heard_at, self.lost) = (Some(now + LOOK), Some(now), false);
        let old = std::mem::replace(&mut self.stage, Stage::Up { connection, leg, since: now });
        if let Stage::Up { connection, .. } = old {
            connection.close(quinn::VarInt::from_u32(0), b"replaced");
        }
    }

    /// The attempt failed, or the connection is gone.
    pub(super) fn ended(&mut self, now: Instant, detail: String) {
        let lasted = match &self.stage {
            Stage::Up { since, .. } => now.saturating_duration_since(*since) >= LASTED,
            Stage::Idle | Stage::Dialling => false,
        };
        let pause = if lasted { BACKOFF } else { self.backoff };
        self.backoff = (pause * 2).min(BACKOFF_MOST);
        self.retry_at = Some(now + pause);
        self.stage = Stage::Idle;
        (self.reason, self.detail, self.look_at) = (Some("quic_failed"), Some(detail), None);
        self.route = self.finder.selected();
    }

    /// The network is another one: what failed may work now.
    pub(super) fn network_changed(&mut self, now: Instant) {
        (self.retry_at, self.backoff) = (None, BACKOFF);
        self.finder.doubt(now);
    }

    /// Looks whether the connection still receives what it asks for; if not, the route is doubted.
    pub(super) fn look(&mut self, now: Instant) {
        if self.look_at.is_none_or(|at| at > now) {
            return;
        }
        let Stage::Up { connection, .. } = &self.stage else { return };
        let stats = connection.stats();
        let seen = (stats.udp_tx.datagrams, stats.udp_rx.datagrams);
        let (sent, received) = (seen.0 - self.seen.0, seen.1 - self.seen.1);
        self.seen = seen;
        let idle = sent.max(received) <= IDLE_DATAGRAMS;
        self.look_at = Some(now + if idle && received > 0 { LOOK_IDLE } else { LOOK });
        if sent > 0 && received == 0 {
            self.finder.doubt(now);
        }
        if received > 0 {
            self.heard_at = Some(now);
        } else if self.heard_at.is_some_and(|at| at + DEAF <= now) {
            self.heard_at = Some(now);
            // QUIC's own probes come ever more rarely. If the path is well again, this one finds out, and all that was lost goes
            // again at its acknowledgement. The peer's session ignores what holds no frame.
            let _ = connection.send_datagram(bytes::Bytes::new());
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let retry = self.retry_at.filter(|_| self.may_dial());
        [retry, self.look_at, self.finder.poll_timeout()].into_iter().flatten().min()
    }

    /// What the finder ignored or refused.
    pub(super) fn ignored(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let candidates = self.finder.refused().filter(|(refusal, _)| refusal.is_fault());
        let candidates = candidates.map(|(refusal, count)| (refusal.as_str(), count));
        candidates.chain(self.finder.counters().suspicious())
    }

    pub(super) fn view(&self) -> LegView {
        let state = match &self.stage {
            Stage::Up { .. } => LegState::Up,
            _ if self.route.is_some() => LegState::Reachable,
            _ if self.started => LegState::Searching,
            _ => LegState::Waiting,
        };
        LegView {
            state,
            reason: self.reason.filter(|_| !self.is_up()),
            detail: self.detail.clone(),
            pairs: self.finder.pairs(),
            ..LegView::new(self.kind)
        }
    }
}
