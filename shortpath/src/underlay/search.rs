//! One kind of leg of one session: its finder, its slot, and when QUIC is dialled. Decides; the driver acts.
use std::time::{Duration, Instant};

use quinn::Connection;

use super::paths::SlotId;
use super::view::{LegState, LegView};
use crate::path::{Candidate, CandidateKind, Finder, FinderEvent, Route};
use crate::{LegId, LegKind};

/// See the module.
pub(super) struct Search {
    pub(super) kind: LegKind,
    pub(super) slot: SlotId,
    pub(super) finder: Finder,
    pub(super) stage: Stage,
    /// The route in use, or to be used.
    pub(super) route: Option<Route>,
    /// The routes that were last said to be able to carry; `None`: to be said again.
    pub(super) stands_by: Option<Vec<Route>>,
    /// Packets of our connection came from here before any check did.
    suspected: Option<Route>,
    /// The route in use is not the finder's choice but where the peer sends from; when it was looked at.
    followed: Option<Instant>,
    /// Not before this may QUIC be dialled again.
    retry_at: Option<Instant>,
    /// Attempts in vain: the peer answers checks but not QUIC, or not as it should.
    in_vain: u64,
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
/// A route that was followed is checked that often, and left when a check waits that long.
const FOLLOW: Duration = Duration::from_secs(1);
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
            stands_by: None,
            suspected: None,
            followed: None,
            retry_at: None,
            in_vain: 0,
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
                (self.reason, self.followed) = (None, None);
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
                (self.lost, self.followed) = (true, None);
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

    /// The suspected route, once it has answered a check of ours: the peer is there and sends from there, so packets go there
    /// at once, without waiting until the old route is known to be dead. Until then it only gets a share of what the session
    /// sends in doubt, as a signed check of the peer may be an old one that somebody replays. When a route that was followed
    /// falls silent, the finder's choice is used again, which the finder will not tell twice. Where there is no choice yet,
    /// there is nothing to return to, and the finder tells its first.
    pub(super) fn follow(&mut self, now: Instant) -> Option<Route> {
        if let Some(route) = self.suspected.filter(|route| self.finder.is_good(*route)) {
            self.suspected = None;
            self.route = Some(route);
            self.followed = (self.finder.selected() != Some(route)).then_some(now);
            return Some(route);
        }
        let since =
            self.followed.filter(|since| now.saturating_duration_since(*since) >= FOLLOW)?;
        let (Some(route), Some(choice)) = (self.route, self.finder.selected()) else {
            self.followed = None;
            return None;
        };
        if self.finder.verify(now, route, since) {
            self.followed = Some(now);
            return None;
        }
        (self.followed, self.route) = (None, Some(choice));
        Some(choice)
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

    /// The attempt failed, or the connection is gone. Returns the route by which the next one leaves.
    pub(super) fn ended(&mut self, now: Instant, detail: String) -> Option<Route> {
        let lasted = match &self.stage {
            Stage::Up { since, .. } => now.saturating_duration_since(*since) >= LASTED,
            Stage::Idle | Stage::Dialling => false,
        };
        self.in_vain += u64::from(matches!(self.stage, Stage::Dialling));
        let pause = if lasted { BACKOFF } else { self.backoff };
        self.backoff = (pause * 2).min(BACKOFF_MOST);
        self.retry_at = Some(now + pause);
        self.stage = Stage::Idle;
        (self.reason, self.detail, self.look_at) = (Some("quic_failed"), Some(detail), None);
        (self.suspected, self.followed) = (None, None);
        self.route = self.finder.selected();
        self.route
    }

    /// The network is another one: what failed may work now.
    pub(super) fn network_changed(&mut self, now: Instant) {
        (self.retry_at, self.backoff) = (None, BACKOFF);
        self.finder.network_changed(now);
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
        let followed = self.followed.map(|since| since + FOLLOW);
        [retry, self.look_at, followed, self.finder.poll_timeout()].into_iter().flatten().min()
    }

    /// What the finder ignored or refused, and attempts in vain.
    pub(super) fn ignored(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let candidates = self.finder.refused().filter(|(refusal, _)| refusal.is_fault());
        let candidates = candidates.map(|(refusal, count)| (refusal.as_str(), count));
        let attempts = std::iter::once(("quic_failed", self.in_vain));
        candidates.chain(attempts).chain(self.finder.counters().suspicious())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::{FinderConfig, IceCredentials, LocalId};
    use crate::underlay::paths::Paths;

    /// The client's finder on two sockets, and the agent's search, over a network without delay: the agent's replies go where
    /// the client sends from, unless `dead` says that nothing arrives there.
    struct Two {
        now: Instant,
        client: Finder,
        search: Search,
        dead: Vec<Route>,
        /// The client's checks are lost, not its answers.
        mute: bool,
        /// All that the client sent, and from where the agent had it.
        sent: Vec<(Route, Vec<u8>)>,
        directed: Vec<Route>,
    }

    const ONE: LocalId = LocalId(0);

    fn client_at(port: u16) -> Route {
        Route { local: ONE, remote: ([192, 0, 2, 1], port).into() }
    }

    impl Two {
        fn new() -> Self {
            let mut two = Self::strangers();
            two.run(Duration::from_secs(1), 1);
            assert_eq!(two.search.finder.selected(), Some(client_at(1)));
            assert_eq!(two.search.route, Some(client_at(1)));
            two
        }

        /// They have not met yet.
        fn strangers() -> Self {
            let now = Instant::now();
            let credentials = |name: &str| IceCredentials {
                ufrag: name.into(),
                password: "some-password-of-some-length".into(),
            };
            let finder = |dials, (own, other), ip: &str, port| {
                let (own, other) = (credentials(own), credentials(other));
                let config = FinderConfig::new(LegKind::UdpDirect, dials, own, other);
                let mut finder = Finder::new(now, config);
                let address = std::net::SocketAddr::new(ip.parse().unwrap(), port);
                finder.add_local(now, Candidate::new(CandidateKind::Host, address), ONE);
                finder
            };
            let mut client = finder(true, ("ours", "theirs"), "192.0.2.1", 1);
            let agent = finder(false, ("theirs", "ours"), "192.0.2.2", 9);
            let host = Candidate::new(CandidateKind::Host, "192.0.2.2:9".parse().unwrap());
            client.add_remote(now, host).unwrap();
            let slot = Paths::default().open(None).unwrap();
            let search = Search::new(LegKind::UdpDirect, slot, agent, false);
            let (dead, sent, directed) = (Vec::new(), Vec::new(), Vec::new());
            Self { now, client, search, dead, mute: false, sent, directed }
        }

        /// The client's packets come from `port` meanwhile.
        fn run(&mut self, time: Duration, port: u16) {
            let end = self.now + time;
            while self.now < end {
                while let Some((_, bytes)) = self.client.poll_transmit() {
                    // The type of Binding requests, RFC 8489 section 18.2.
                    if self.mute && bytes.starts_with(&[0, 1]) {
                        continue;
                    }
                    self.search.finder.handle_packet(self.now, client_at(port), &bytes);
                    self.sent.push((client_at(port), bytes));
                }
                self.step(port);
                self.now += Duration::from_millis(10);
                self.client.handle_timeout(self.now);
                self.search.finder.handle_timeout(self.now);
            }
        }

        /// As the driver does it.
        fn step(&mut self, port: u16) {
            while let Some(event) = self.search.finder.poll_event() {
                self.search.handle(event);
            }
            self.directed.extend(self.search.follow(self.now));
            while let Some((route, bytes)) = self.search.finder.poll_transmit() {
                let back = Route { local: ONE, remote: "192.0.2.2:9".parse().unwrap() };
                if route == client_at(port) && !self.dead.contains(&route) {
                    self.client.handle_packet(self.now, back, &bytes);
                }
            }
        }
    }

    #[test]
    fn a_replayed_check_turns_nothing_to_a_victim_however_old_it_is() {
        let (mut two, victim) = (Two::new(), client_at(666));
        for _ in 0..65 {
            two.client.doubt(two.now);
            two.run(Duration::from_millis(110), 1);
        }
        assert!(two.sent.len() > 65, "{}", two.sent.len());
        // More than the agent remembers have come since; and a packet of our connection seems to come from there, too.
        let (_, replayed) = two.sent[0].clone();
        two.search.suspect(two.now, victim);
        two.search.finder.handle_packet(two.now, victim, &replayed);
        assert!(
            two.search
                .finder
                .pairs()
                .iter()
                .any(|pair| pair.remote == victim.remote && pair.requests == 1)
        );
        two.run(Duration::from_secs(20), 1);
        assert_eq!((two.directed, two.search.route), (vec![], Some(client_at(1))));
    }

    #[test]
    fn a_peer_that_was_bound_anew_is_followed_with_the_first_check_it_answers() {
        let mut two = Two::new();
        let moved = two.now;
        two.search.suspect(moved, client_at(2));
        two.client.doubt(moved);
        two.run(Duration::from_millis(20), 2);
        assert_eq!(two.directed, [client_at(2)]);
        // Meanwhile it is among the routes by which packets are spread.
        assert!(two.search.finder.lively(moved).contains(&client_at(2)));
        two.run(Duration::from_secs(3), 2);
        assert_eq!(two.search.route, Some(client_at(2)));
    }

    #[test]
    fn a_followed_route_that_dies_is_left_for_the_choice_that_was_never_told_again() {
        let mut two = Two::new();
        // The peer is good at both, and prefers the first.
        let standby = client_at(2);
        two.search.suspect(two.now, standby);
        two.client.doubt(two.now);
        two.run(Duration::from_millis(150), 2);
        two.client.doubt(two.now);
        two.run(Duration::from_secs(1), 1);
        two.search.route = Some(standby);
        two.search.followed = Some(two.now);
        (two.dead, two.directed) = (vec![standby], Vec::new());
        assert_eq!(two.search.finder.selected(), Some(client_at(1)));
        two.run(Duration::from_millis(2500), 1);
        assert_eq!((two.directed, two.search.route), (vec![client_at(1)], Some(client_at(1))));
    }

    #[test]
    fn a_followed_peer_that_vanishes_before_anything_is_chosen_keeps_nobody_awake() {
        let mut two = Two::strangers();
        // Its first QUIC packet has outrun its first check.
        two.mute = true;
        two.search.suspect(two.now, client_at(1));
        two.run(Duration::from_millis(500), 1);
        assert_eq!(two.directed, [client_at(1)]);
        assert!(two.search.followed.is_some() && two.search.finder.selected().is_none());
        two.dead.push(client_at(1));
        for _ in 0..100 {
            two.run(Duration::from_millis(50), 1);
            two.step(1);
            let next = two.search.poll_timeout();
            assert!(next.is_none_or(|at| at > two.now), "{:?}", two.now - next.unwrap());
        }
        assert_eq!(two.directed, [client_at(1)]);
    }

    #[test]
    fn the_next_connection_leaves_by_the_choice_and_not_where_the_last_one_died() {
        let mut two = Two::new();
        two.search.route = Some(client_at(2));
        let route = two.search.ended(two.now, "lost".into());
        assert_eq!((route, two.search.route), (Some(client_at(1)), Some(client_at(1))));
    }
}
