//! One session's UDP at one of its ends: the search, the moves, and what is told about them.
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use switchback_shortpath::path::PairState;
use switchback_shortpath::underlay::{LegView, Shortpath, ShortpathView};
use switchback_shortpath::{
    LegKind, LegState, LegStats, MoveCause, MoveStats, SessionConfig, SessionHandle, SessionKey,
    SessionStats,
};
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, sleep};

use super::reach::{Identity, Reach};
use crate::code::Code;
use crate::link::report::path_legs;
use crate::reason;
use crate::wire::{
    CANDIDATES_MAX, Candidate, CandidateKind, PathMove, PathPair, PathReport, REPORT_MOVES_MAX,
    REPORT_PAIRS_MAX, RelayAccess, Standby, TransportPolicy, UdpAccess, UdpUse,
};

/// Moves that wait for whoever watches; one that is slower misses the oldest.
const MOVES_WAITING: usize = 32;
/// Pauses that `explain` shows: a quarter of what it shows in all.
const PAUSES_KEPT: usize = REPORT_MOVES_MAX / 4;
/// A session that must be direct ends after this without a direct path: connectivity checks are given up after some 7 s
/// (12 tries, RFC 8445 section 14), and one more round may follow a change of network.
pub(crate) const DIRECT_WITHIN: Duration = Duration::from_secs(15);
const DIRECT_LOOK_EVERY: Duration = Duration::from_millis(500);
/// Silence after which a session without standby has another leg dialled: nothing helps it until that is there.
const COLD_SUSPECT_AFTER: Duration = Duration::from_millis(300);

/// The "transport" of a session that nothing carries, where its moves are told.
pub const PAUSED: &str = "paused";

/// What an end knows and does about a session's UDP.
#[derive(Debug)]
pub(crate) struct SessionUdp {
    transport: Mutex<TransportPolicy>,
    reach: Option<Reach>,
    started: Instant,
    search: Mutex<Search>,
    moves: broadcast::Sender<PathMove>,
    /// Since when nothing carries the session, if it was carried before.
    paused: Mutex<Option<Instant>>,
    /// The last pauses, as told, oldest first.
    pauses: Mutex<VecDeque<PathMove>>,
    /// Our address at this session's relay, for the other end.
    relayed: watch::Sender<Option<Candidate>>,
}

#[derive(Debug, Default)]
enum Search {
    /// Not yet, or it cannot be.
    #[default]
    None,
    Running(Shortpath),
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
    /// Code point of the session's packets, if the resource has one.
    pub(crate) dscp: Option<u8>,
}

impl SessionUdp {
    /// Of a session that begins; `reach`: `None` if this end does without UDP.
    pub(crate) fn new(transport: TransportPolicy, reach: Option<Reach>) -> Arc<Self> {
        let (moves, search) = (broadcast::Sender::new(MOVES_WAITING), Mutex::default());
        let (started, relayed) = (Instant::now(), watch::Sender::new(None));
        let (paused, pauses) = (Mutex::default(), Mutex::default());
        let transport = Mutex::new(transport);
        Arc::new(Self { transport, reach, started, search, moves, paused, pauses, relayed })
    }

    /// What may carry the session.
    pub(crate) fn transport(&self) -> TransportPolicy {
        *lock(&self.transport)
    }

    /// Policy changed: this may carry the session from now on. Ways that are closed to it end at once; a relay in place of a
    /// direct path is looked for with the session's next leg.
    pub(crate) fn narrow(self: &Arc<Self>, transport: TransportPolicy, session: &SessionHandle) {
        let before = std::mem::replace(&mut *lock(&self.transport), transport).udp;
        if before == transport.udp {
            return;
        }
        session.allow_only(&allowed(transport.udp));
        if transport.udp == UdpUse::Require {
            tokio::spawn(self.clone().enforce(SessionWatch(session.clone())));
            return;
        }
        let mut search = lock(&self.search);
        if matches!(*search, Search::Running(_)) {
            *search = Search::None;
        }
    }

    /// Every move from now on, and every pause: a move to [`PAUSED`] and one back.
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
        let Some(reach) = &self.reach else { return };
        if self.transport().udp == UdpUse::Off {
            return;
        }
        let mut search = lock(&self.search);
        if !matches!(*search, Search::None) {
            drop(search);
            return self.add(access.candidates);
        }
        let Wanted { role, key, peer_key, dscp } = wanted;
        let who = Identity { role, key: &key, peer_key, dscp };
        match reach.connect(who, access, self.transport(), session) {
            Ok(shortpath) => {
                let (this, relayed) = (self.clone(), shortpath.relayed());
                *search = Search::Running(shortpath);
                tokio::spawn(async move { this.follow_relay(relayed).await });
            }
            // A later offer may have more luck.
            Err(fault) => tracing::warn!(%fault, "no UDP for this session"),
        }
    }

    /// Passes on where our relay is, until the search ends.
    async fn follow_relay(&self, mut relayed: watch::Receiver<Option<Candidate>>) {
        loop {
            let now = *relayed.borrow_and_update();
            self.relayed.send_replace(now);
            if relayed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Our address at this session's relay, once there is one: to be told to the other end at once.
    pub(crate) fn relayed(&self) -> watch::Receiver<Option<Candidate>> {
        self.relayed.subscribe()
    }

    /// The right to use the relay was renewed.
    pub(crate) fn renew(&self, relay: RelayAccess) {
        let Some(reach) = &self.reach else { return };
        if let Search::Running(shortpath) = &*lock(&self.search) {
            shortpath.renew_relay(reach.relay(relay));
        }
    }

    /// The other end can also be reached here.
    pub(crate) fn add(&self, candidates: Vec<Candidate>) {
        if let Search::Running(shortpath) = &*lock(&self.search)
            && !candidates.is_empty()
        {
            shortpath.add_remote_candidates(candidates);
        }
    }

    /// The session is over: no search any more, and no UDP legs.
    pub(crate) fn end(&self) {
        *lock(&self.search) = Search::Over;
    }

    /// Whether the other end is to hear when this end's network changes.
    pub(crate) fn is_searching(&self) -> bool {
        matches!(*lock(&self.search), Search::Running(_))
    }

    /// The session layer moved to another transport, or its own held it up.
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
        if cause != MoveCause::Recovered {
            // Nobody may be watching.
            let _ = self.moves.send(moved.clone());
        }
        moved
    }

    /// Nothing carries the session any more.
    pub(crate) fn pause(&self) {
        *lock(&self.paused) = Some(Instant::now());
        let pause = self.tell(None, PAUSED, "no_path", Duration::ZERO);
        let mut pauses = lock(&self.pauses);
        if pauses.len() >= PAUSES_KEPT {
            pauses.pop_front();
        }
        pauses.push_back(pause);
    }

    /// Something carries the session, for the first time or again.
    pub(crate) fn resume(&self, session: &SessionHandle) {
        let Some(since) = lock(&self.paused).take() else { return };
        if let Some(leg) = session.stats().leg {
            self.tell(Some(PAUSED), leg.label(), "resumed", since.elapsed());
        }
    }

    fn tell(&self, from: Option<&str>, to: &str, cause: &str, stall: Duration) -> PathMove {
        let told = PathMove {
            at_ms: saturated(self.started.elapsed().as_millis()),
            from: from.map(str::to_owned),
            to: to.to_owned(),
            cause: cause.to_owned(),
            stall_us: saturated(stall.as_micros()),
            rtt_us: None,
        };
        // Nobody may be watching.
        let _ = self.moves.send(told.clone());
        told
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
            Search::Running(shortpath) => Some(shortpath.view()),
            _ => None,
        };
        let may_tell = |kind| self.transport().allows(kind);
        let pairs = view.as_ref().map(|view| pairs(view, may_tell)).unwrap_or_default();
        let local = view.iter().flat_map(|view| &view.local);
        let local = local.filter(|it| may_tell(it.kind)).take(CANDIDATES_MAX);
        let candidates = local.map(|it| shown(it.kind, Some(it.address))).collect();
        let moves = self.timeline(&stats.moves);
        let ignored = self.ignored(view.as_ref());
        let reasons = self.reasons(view.as_ref(), unused(&stats));
        PathReport { legs: path_legs(&stats), candidates, pairs, reasons, moves, ignored }
    }

    /// Moves, stalls without one, and pauses, in the order they came. What ended a pause is a move, and has its length.
    fn timeline(&self, moves: &[MoveStats]) -> Vec<PathMove> {
        let mut all: Vec<_> = moves.iter().map(|moved| self.in_words(moved)).collect();
        all.extend(lock(&self.pauses).iter().cloned());
        all.sort_by_key(|moved| moved.at_ms);
        all.split_off(all.len().saturating_sub(REPORT_MOVES_MAX))
    }

    fn reasons(&self, view: Option<&ShortpathView>, unused: Option<&'static str>) -> Vec<String> {
        let own = match (self.transport().udp, &self.reach) {
            (UdpUse::Off, _) => Some("policy_no_udp"),
            (_, None) => Some("udp_disabled"),
            (UdpUse::RelayOnly, Some(_)) => Some("policy_relay_only"),
            (UdpUse::Prefer | UdpUse::Require, Some(_)) => None,
        };
        let mut reasons: Vec<String> = own.into_iter().map(str::to_owned).collect();
        let searched = view.into_iter().flat_map(|view| view.reasons.iter().copied());
        for reason in searched.chain(unused) {
            if !reasons.iter().any(|known| known == reason) {
                reasons.push(reason.to_owned());
            }
        }
        reasons
    }

    fn ignored(&self, view: Option<&ShortpathView>) -> BTreeMap<String, u64> {
        let of_session = view.into_iter().flat_map(|view| view.ignored.iter().copied());
        let of_process = self.reach.iter().flat_map(Reach::ignored);
        let all = of_session.chain(of_process).filter(|(_, count)| *count > 0);
        all.map(|(name, count)| (name.to_owned(), count)).collect()
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

/// A leg as [`why_unused`] sees it, with its smoothed round trip in microseconds.
type Seen = (LegKind, LegState, Option<u32>);

fn unused(stats: &SessionStats) -> Option<&'static str> {
    let seen = |leg: &LegStats| (leg.kind, leg.state, leg.rtt.map(|rtt| rtt.smoothed_us));
    let legs: Vec<Seen> = stats.legs.iter().map(seen).collect();
    let left = |moved: &&MoveStats| moved.from.is_some_and(is_direct) && !is_direct(moved.to);
    why_unused(&legs, stats.moves.iter().rfind(left).map(|moved| moved.cause))
}

/// Why a direct leg that is there does not carry the session, which left it for this cause. One that was left for a better way
/// although it is no slower is one that loses more.
fn why_unused(legs: &[Seen], left: Option<MoveCause>) -> Option<&'static str> {
    let (_, state, rtt) = legs.iter().find(|(kind, ..)| is_direct(*kind))?;
    let carrier = legs.iter().find(|(_, state, _)| *state == LegState::Selected);
    let (_, _, carriers_rtt) = carrier.filter(|(kind, ..)| !is_direct(*kind))?;
    match state {
        LegState::Quarantined | LegState::Suspect => Some("quarantined"),
        LegState::Standby if left == Some(MoveCause::Throttled) => Some("throttled"),
        LegState::Standby if rtt > carriers_rtt => Some("slower"),
        LegState::Standby if left == Some(MoveCause::Better) => Some("throttled"),
        LegState::Standby | LegState::Starting | LegState::Selected => None,
    }
}

/// A session's configuration under its policy: what may not carry it only stands by.
pub(crate) fn under(transport: TransportPolicy, config: &SessionConfig) -> SessionConfig {
    let may = allowed(transport.udp);
    let allowed = config.allowed.iter().copied().filter(|kind| may.contains(kind)).collect();
    let suspect_after = match transport.standby {
        Standby::Warm | Standby::TwoGateways => config.suspect_after,
        Standby::Cold => config.suspect_after.min(COLD_SUSPECT_AFTER),
    };
    SessionConfig { allowed, suspect_after, ..config.clone() }
}

/// Kinds of legs that may carry a session.
fn allowed(udp: UdpUse) -> Vec<LegKind> {
    let allowed = |kind: &LegKind| match udp {
        UdpUse::Prefer => true,
        UdpUse::Require => is_direct(*kind),
        UdpUse::RelayOnly => !is_direct(*kind),
        UdpUse::Off => *kind == LegKind::TcpReverse,
    };
    LegKind::ALL.into_iter().filter(allowed).collect()
}

/// The pairs as they are told; `may_tell`: which kinds of our addresses the other end may know.
fn pairs(view: &ShortpathView, may_tell: impl Fn(CandidateKind) -> bool) -> Vec<PathPair> {
    let may_tell = &may_tell;
    let of_leg = |leg: &LegView| {
        let kind = leg.kind;
        let pairs = leg.pairs.clone();
        pairs.into_iter().map(move |pair| PathPair {
            transport: kind.to_owned(),
            local: shown(pair.local_kind, pair.local_address.filter(|_| may_tell(pair.local_kind))),
            remote: shown(pair.remote_kind, Some(pair.remote)),
            state: if pair.selected { "selected" } else { state(pair.state) }.to_owned(),
            rtt_us: pair.rtt_us.and_then(|us| u32::try_from(us).ok()),
        })
    };
    view.legs.iter().flat_map(of_leg).take(REPORT_PAIRS_MAX).collect()
}

fn shown(kind: CandidateKind, address: Option<SocketAddr>) -> String {
    let kind = kind.as_str();
    address.map_or_else(|| kind.to_owned(), |address| format!("{kind} {address}"))
}

const fn state(state: PairState) -> &'static str {
    match state {
        PairState::Waiting => "waiting",
        PairState::Checking => "checking",
        PairState::Succeeded => "succeeded",
        PairState::Failed => "failed",
    }
}

fn saturated(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use switchback_shortpath::path::PairView;
    use switchback_shortpath::{Role, SessionEvent};

    use super::*;
    use crate::udp::UdpOptions;

    impl SessionUdp {
        /// Of an end that has an address at a relay.
        pub(crate) fn relayed_at(relayed: Candidate) -> Arc<Self> {
            let udp = Self::new(TransportPolicy::default(), None);
            udp.relayed.send_replace(Some(relayed));
            udp
        }
    }

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
            SessionUdp::new(transport, None).reasons(None, None)
        };
        assert_eq!(reasons(UdpUse::Off), ["policy_no_udp"]);
        assert_eq!(reasons(UdpUse::Prefer), ["udp_disabled"]);
    }

    #[tokio::test]
    async fn a_session_that_may_only_be_relayed_is_told_as_such() {
        let options = UdpOptions { port_mapping: false, ..UdpOptions::default() };
        let reach = Reach::start(&options, "127.0.0.1:443").unwrap();
        let transport = TransportPolicy { udp: UdpUse::RelayOnly, ..TransportPolicy::default() };
        let of = |view| SessionUdp::new(transport, reach.clone()).reasons(view, None);
        assert_eq!(of(None), ["policy_relay_only"]);
        let view = ShortpathView { reasons: vec!["no_relay"], ..ShortpathView::default() };
        assert_eq!(of(Some(&view)), ["policy_relay_only", "no_relay"]);
    }

    #[test]
    fn a_direct_leg_that_does_not_carry_is_told_with_its_reason() {
        use LegState::{Quarantined, Selected, Standby, Starting};
        let (tcp, direct) = (LegKind::TcpReverse, LegKind::UdpDirect);
        let (throttled, better) = (Some(MoveCause::Throttled), Some(MoveCause::Better));
        for (carrier, state, rtt, left, expected) in [
            (tcp, Standby, 40, throttled, Some("throttled")),
            (tcp, Standby, 90, better, Some("slower")),
            (tcp, Standby, 40, better, Some("throttled")),
            (tcp, Quarantined, 20, throttled, Some("quarantined")),
            (tcp, Standby, 20, None, None),
            (tcp, Starting, 90, None, None),
            (LegKind::UdpManaged, Standby, 90, None, None),
        ] {
            let legs = [(carrier, Selected, Some(50)), (direct, state, Some(rtt))];
            let legs = if is_direct(carrier) { [legs[1], legs[0]] } else { legs };
            assert_eq!(why_unused(&legs, left), expected, "{legs:?} {left:?}");
        }
        assert_eq!(why_unused(&[(tcp, Selected, None)], throttled), None);
    }

    #[test]
    fn pairs_name_both_addresses_but_not_our_own_where_policy_hides_it() {
        let pair = |local: &str, kind| PairView {
            local: 0,
            local_kind: kind,
            local_address: local.parse().ok(),
            remote: "203.0.113.9:4000".parse().unwrap(),
            remote_kind: CandidateKind::ServerReflexive,
            state: PairState::Failed,
            rtt_us: None,
            checks: 3,
            answers: 0,
            requests: 0,
            selected: false,
        };
        let leg = LegView {
            kind: "udp-direct",
            state: switchback_shortpath::underlay::LegState::Searching,
            reason: None,
            detail: None,
            pairs: vec![
                pair("192.168.1.2:50001", CandidateKind::Host),
                pair("10.8.0.2:50001", CandidateKind::Host),
                pair("198.51.100.7:50123", CandidateKind::Relayed),
                pair("not known", CandidateKind::Host),
            ],
        };
        let view = ShortpathView { legs: vec![leg], ..ShortpathView::default() };
        let from = |udp| {
            let policy = TransportPolicy { udp, ..TransportPolicy::default() };
            let told = pairs(&view, |kind| policy.allows(kind)).into_iter();
            told.map(|pair| (pair.local, pair.remote)).unzip::<_, _, Vec<_>, Vec<_>>()
        };
        let (local, remote) = from(UdpUse::Prefer);
        let known =
            ["host 192.168.1.2:50001", "host 10.8.0.2:50001", "relayed 198.51.100.7:50123", "host"];
        assert_eq!(local, known);
        assert!(remote.iter().all(|it| it == "server_reflexive 203.0.113.9:4000"));
        assert_eq!(from(UdpUse::RelayOnly).0, ["host", "host", known[2], "host"]);
        let longest = "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().ok();
        assert!(shown(CandidateKind::ServerReflexive, longest).len() <= 64, "a label's length");
    }

    #[test]
    fn without_standby_silence_has_another_leg_dialled_soon() {
        let of = |standby| {
            let transport = TransportPolicy { standby, ..TransportPolicy::default() };
            under(transport, &SessionConfig::default()).suspect_after
        };
        assert_eq!(of(Standby::Warm), SessionConfig::default().suspect_after);
        assert_eq!(of(Standby::Cold), COLD_SUSPECT_AFTER);
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_stand_among_the_moves_in_the_order_they_came_and_are_bounded() {
        let udp = SessionUdp::new(TransportPolicy::default(), None);
        let (tcp, second) = (LegKind::TcpReverse, Duration::from_secs(1));
        let (mut moves, began) = (Vec::new(), Instant::now());
        for _ in 0..REPORT_MOVES_MAX {
            udp.pause();
            sleep(second).await;
            moves.push(MoveStats {
                ago: began.elapsed(),
                from: Some(tcp),
                to: tcp,
                cause: MoveCause::Lost,
                stall: second,
            });
        }
        let end = began.elapsed();
        moves.iter_mut().for_each(|moved| moved.ago = end - moved.ago);
        let told = udp.timeline(&moves);
        assert!(told.len() == REPORT_MOVES_MAX && told.is_sorted_by_key(|it| it.at_ms));
        let pauses = told.iter().filter(|it| it.to == PAUSED).count();
        assert_eq!(pauses, PAUSES_KEPT);
        let [.., paused, moved] = &told[..] else { panic!("{told:?}") };
        assert_eq!(
            (paused.at_ms, paused.to.as_str(), paused.cause.as_str()),
            (31_000, PAUSED, "no_path")
        );
        assert_eq!((moved.at_ms, moved.stall_us), (32_000, 1_000_000));
    }

    /// Two ends of a session that may use direct paths only, over a TCP leg in memory.
    fn required() -> [(SessionHandle, tokio::sync::mpsc::Receiver<SessionEvent>); 2] {
        let transport = TransportPolicy { udp: UdpUse::Require, ..TransportPolicy::default() };
        let config = under(transport, &SessionConfig::default());
        let ends = [Role::Client, Role::Agent].map(|role| {
            let (session, events) = SessionHandle::start(role, "s", config.clone());
            let udp = SessionUdp::new(transport, None);
            tokio::spawn(udp.enforce(SessionWatch(session.clone())));
            (session, events)
        });
        let (one, two) = tokio::io::duplex(64 * 1024);
        ends[0].0.attach(one, LegKind::TcpReverse);
        ends[1].0.attach(two, LegKind::TcpReverse);
        ends
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_must_be_direct_ends_in_time_and_never_carries_data_over_tcp() {
        let started = Instant::now();
        let [(client, mut told), (_agent, mut heard)] = required();
        let mut channel = client.open().unwrap();
        let write = channel.write(bytes::Bytes::from_static(b"not over tcp")).await;
        assert_eq!(write, Ok(()));
        let mut ends = Vec::new();
        for events in [&mut told, &mut heard] {
            while let Some(event) = events.recv().await {
                assert!(!matches!(event, SessionEvent::Incoming(_)), "it was carried");
                if let SessionEvent::Closed(why) = event {
                    ends.push(reason::of_session(&why).code);
                }
            }
        }
        assert_eq!(ends, [Code::DirectUnavailable, Code::DirectUnavailable]);
        assert!((DIRECT_WITHIN..DIRECT_WITHIN * 2).contains(&started.elapsed()));
        assert_eq!(channel.read().await, Err(switchback_shortpath::ChannelError::Closed));
    }
}
