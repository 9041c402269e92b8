//! The finder: ICE connectivity checks (RFC 8445, always trickling, RFC 8838) of one session and leg kind.
//!
//! This file is the outside and the clockwork, `checks.rs` the messages, `choose.rs` which pair is used and which are
//! given up, `settings.rs` the knobs.
//!
//! **Fast where it matters.** The first checks leave at once, in a burst of [`FinderTiming::burst`], later ones
//! [`FinderTiming::pacing`] apart. Every authenticated check of the peer triggers one back at once on the same pair, so
//! that two NATs are open one path RTT after the later end has started, whatever was dropped before.
//! [`FinderEvent::Reachable`] comes with the first answer; nomination follows when the answers of about one more RTT
//! have shown which pair is best, and is never final.
//!
//! **Modest where it matters.** Checks to addresses that do not answer are few ([`FinderTiming::tries`]), then stop and
//! are tried again only each 10-30 s. Pairs, remote addresses and answers per second are bounded. Every message of the
//! peer is authenticated before it changes anything.
//!
//! **Not built on the `is` crate** (0.12), although it fits the shape: it sends no triggered check on a pair that is
//! already listed (the usual case between two port-restricted NATs, where that costs a retransmission timeout), forgets
//! a failed pair for good unless all are recreated, keeps peer-reflexive addresses of one peer without limit, and shows
//! neither pairs nor their RTT. `stun-types`, in the tree for the gateway, has the codec.
use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use stun_types::message::{IntegrityKey, TransactionId};

use super::candidate::{
    Candidate, CandidateKind, IceCredentials, LocalId, Route, pair_priority, priority,
};
use super::message::{self, short_term_key};
use super::pair::{Pair, PairState, PairView};
use super::remote::{CandidateRefusal, RemoteCandidates, RemoteLimits};
use super::settings::{FinderConfig, FinderCounters, FinderEvent, FinderTiming};
use crate::LegKind;
use crate::tokens::Tokens;

#[derive(Debug)]
pub(super) struct Local {
    pub(super) id: LocalId,
    pub(super) candidate: Candidate,
    pub(super) priority: u32,
}

/// See the [module](self). `Debug` shows no secrets.
pub struct Finder {
    pub(super) kind: LegKind,
    pub(super) controlling: bool,
    pub(super) tie_breaker: u64,
    pub(super) local: IceCredentials,
    pub(super) remote: IceCredentials,
    pub(super) local_key: IntegrityKey,
    pub(super) remote_key: IntegrityKey,
    pub(super) limits: RemoteLimits,
    pub(super) timing: FinderTiming,
    pub(super) rng: StdRng,
    pub(super) locals: Vec<Local>,
    pub(super) remotes: RemoteCandidates,
    pub(super) pairs: Vec<Pair>,
    pub(super) selected: Option<Route>,
    /// When the first choice is made: about one RTT after the first answer.
    pub(super) settle: Option<Instant>,
    pub(super) reached: bool,
    pub(super) told_failure: bool,
    /// The peer's so far.
    pub(super) nominations: u64,
    /// A base whose mapping ends soon.
    pub(super) retiring: Option<LocalId>,
    doubted: Option<Instant>,
    evicted: Option<Instant>,
    doubted_all: Option<Instant>,
    changed: Option<Instant>,
    /// Requests lately seen, to tell replays.
    pub(super) seen: VecDeque<(TransactionId, Route)>,
    pub(super) outgoing: Tokens,
    pub(super) answering: Tokens,
    pub(super) transmits: VecDeque<(Route, Vec<u8>)>,
    pub(super) events: VecDeque<FinderEvent>,
    pub(super) counters: FinderCounters,
}

/// Local candidates: sockets times interfaces times families.
const LOCALS_MAX: usize = 32;
/// Pairs, peer-reflexive ones included. RFC 8445 section 6.1.2.5 proposes 100 for all streams.
pub(super) const PAIRS_MAX: usize = 96;
/// Answers to the peer's checks: a peer as fast as we are sends 200/s in its first round.
const ANSWERS: (u32, Duration) = (64, Duration::from_millis(5));
/// A dead candidate makes room for a new one at most that often: 12 checks in 5 s is all that a peer gets who names ever
/// new addresses.
const EVICTION_PAUSE: Duration = Duration::from_secs(5);
/// A doubt asks for checks of good pairs at most that often.
const DOUBT_PAUSE: Duration = Duration::from_millis(100);
/// And of failed ones that once answered.
const DOUBT_ALL_PAUSE: Duration = Duration::from_secs(2);

impl fmt::Debug for Finder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Finder")
            .field("kind", &self.kind)
            .field("controlling", &self.controlling)
            .field("selected", &self.selected)
            .field("pairs", &self.pairs())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl Finder {
    /// A finder without candidates.
    #[must_use]
    pub fn new(now: Instant, config: FinderConfig) -> Self {
        let mut rng = StdRng::from_seed(config.seed);
        let (local, remote) =
            (config.local.of_kind(config.kind), config.remote.of_kind(config.kind));
        Self {
            kind: config.kind,
            controlling: config.controlling,
            tie_breaker: rng.random(),
            local_key: short_term_key(&local.password),
            remote_key: short_term_key(&remote.password),
            local,
            remote,
            outgoing: Tokens::new(now, config.timing.burst, config.timing.pacing),
            answering: Tokens::new(now, ANSWERS.0, ANSWERS.1),
            limits: config.limits,
            timing: config.timing,
            rng,
            locals: Vec::new(),
            remotes: RemoteCandidates::default(),
            pairs: Vec::new(),
            selected: None,
            settle: None,
            reached: false,
            told_failure: false,
            nominations: 0,
            retiring: None,
            doubted: None,
            evicted: None,
            doubted_all: None,
            changed: None,
            seen: VecDeque::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            counters: FinderCounters::default(),
        }
    }

    /// Addresses that are servers' instead of those before: no candidate there is taken from now on.
    pub fn set_servers(&mut self, servers: Vec<SocketAddr>) {
        self.limits.servers = servers;
    }

    /// Adds one of our addresses on the base that sends for it. The same again is ignored; a loopback address lets
    /// loopback candidates of the peer in, so add ours first.
    pub fn add_local(&mut self, now: Instant, candidate: Candidate, base: LocalId) {
        let candidate = Candidate::new(candidate.kind, candidate.address);
        let known = self.locals.iter().any(|l| l.id == base && l.candidate == candidate);
        if known || self.locals.len() >= LOCALS_MAX {
            return;
        }
        self.limits.loopback |= candidate.address.ip().is_loopback();
        let alike = |l: &&Local| {
            l.candidate.kind == candidate.kind
                && l.candidate.address.is_ipv6() == candidate.address.is_ipv6()
        };
        let order = u16::try_from(self.locals.iter().filter(alike).count()).unwrap_or(u16::MAX);
        let priority = candidate.priority(order);
        self.locals.push(Local { id: base, candidate, priority });
        for remote in self.remotes.taken().to_vec() {
            self.pair_up(now, base, remote.address, remote.kind);
        }
        self.pump(now);
    }

    /// The base has one address, and this is it from now on, as when an allocation is made anew on its socket. Its pairs
    /// stay, and are checked at once.
    pub fn rename_local(&mut self, now: Instant, candidate: Candidate, base: LocalId) {
        self.locals.retain(|local| local.id != base);
        self.add_local(now, candidate, base);
        self.check_base(now, base);
    }

    /// Checks all pairs of a base at once: it reaches peers anew.
    pub fn check_base(&mut self, now: Instant, base: LocalId) {
        for pair in self.pairs.iter_mut().filter(|pair| pair.route.local == base) {
            pair.again(now);
        }
        self.pump(now);
    }

    /// The mapping of this base ends soon (`None`: of none): other good pairs are used, if there are any, and the peer is
    /// told, so that it does the same.
    pub fn retire(&mut self, now: Instant, base: Option<LocalId>) {
        let before = std::mem::replace(&mut self.retiring, base);
        if before == base {
            return;
        }
        for pair in &mut self.pairs {
            let local = Some(pair.route.local);
            if pair.state == PairState::Succeeded && (local == base || local == before) {
                (pair.due, pair.triggered) = (now, true);
            }
        }
        self.pump(now);
    }

    /// The socket or allocation is gone, and its pairs with it.
    pub fn remove_local(&mut self, now: Instant, base: LocalId) {
        self.locals.retain(|local| local.id != base);
        self.pairs.retain(|pair| pair.route.local != base);
        if self.selected.is_some_and(|route| route.local == base) {
            self.replace_selected(now, "local_removed");
        }
        self.pump(now);
    }

    /// Adds one of the peer's addresses, at any time.
    ///
    /// # Errors
    ///
    /// The address is not one to send checks to; counted, nothing else happens.
    pub fn add_remote(
        &mut self,
        now: Instant,
        candidate: Candidate,
    ) -> Result<(), CandidateRefusal> {
        self.make_room(now, Candidate::new(candidate.kind, candidate.address));
        let taken = self.remotes.take(&self.limits, self.kind, candidate)?;
        let mut bases: Vec<_> = self.locals.iter().map(|local| local.id).collect();
        bases.sort_unstable();
        bases.dedup();
        for base in bases {
            self.pair_up(now, base, taken.address, taken.kind);
        }
        self.pump(now);
        Ok(())
    }

    /// A peer that moves or is rebound often has new addresses in place of dead ones: the oldest that has failed goes, if
    /// the last one to go did so long enough ago.
    fn make_room(&mut self, now: Instant, candidate: Candidate) {
        let Some(lack) = self.remotes.lacks_room(&self.limits, self.kind, candidate) else {
            return;
        };
        if self.evicted.is_some_and(|at| now.saturating_duration_since(at) < EVICTION_PAUSE) {
            return;
        }
        let same_host = lack == CandidateRefusal::TooManyOfHost;
        let is_dead = |address: SocketAddr| {
            let mut pairs = self.pairs.iter().filter(|pair| pair.route.remote == address);
            pairs.all(|pair| pair.rounds > 0 && pair.state != PairState::Succeeded)
        };
        let mut dead = self.remotes.taken().iter().map(|taken| taken.address).filter(|address| {
            (!same_host || address.ip() == candidate.address.ip()) && is_dead(*address)
        });
        let Some(address) = dead.next() else { return };
        self.evicted = Some(now);
        self.remotes.forget(address);
        self.pairs.retain(|pair| pair.route.remote != address);
    }

    /// Whether a STUN datagram is for this finder: its username names us, or it answers a check of ours. Cheap, no
    /// cryptography; [`Finder::handle_packet`] verifies.
    #[must_use]
    pub fn accepts(&self, datagram: &[u8]) -> bool {
        let Some(id) = message::transaction(datagram) else { return false };
        if self.pairs.iter().any(|pair| pair.in_flight.iter().any(|check| check.id == id)) {
            return message::is_stun(datagram);
        }
        message::parse(datagram).is_some_and(|message| self.is_named(&message))
    }

    /// A STUN datagram that came in on the route. What is not for us, or not signed, changes nothing but a counter.
    pub fn handle_packet(&mut self, now: Instant, route: Route, datagram: &[u8]) {
        let route = Route { remote: super::canonical(route.remote), ..route };
        if let Some(message) = message::parse(datagram) {
            self.handle_message(now, route, &message);
        }
        self.pump(now);
    }

    /// The owner has a reason to doubt what is known: bytes of the session stay unacknowledged, or come from elsewhere. Good pairs are checked at once, ten times a second at most; failed ones that once answered too, each
    /// 2 s at most. Those that never did are tried as seldom as without doubt: a peer that acknowledges nothing makes us
    /// doubt for as long as it likes, and shall not make us scan.
    pub fn doubt(&mut self, now: Instant) {
        if !is_past(now, self.doubted, DOUBT_PAUSE) {
            return;
        }
        self.doubted = Some(now);
        let all = is_past(now, self.doubted_all, DOUBT_ALL_PAUSE);
        if all {
            self.doubted_all = Some(now);
        }
        for at in 0..self.pairs.len() {
            let worth = self.is_rested(now, &self.pairs[at]);
            let pair = &mut self.pairs[at];
            match pair.state {
                PairState::Succeeded => pair.due = pair.due.min(now),
                PairState::Failed if (all && pair.answers > 0) || worth => pair.again(now),
                _ => {}
            }
        }
        self.pump(now);
    }

    /// Our own network is another one, which no peer brings about: the likeliest of all failed pairs are checked at once, each
    /// 2 s at most.
    pub fn network_changed(&mut self, now: Instant) {
        if is_past(now, self.changed, DOUBT_ALL_PAUSE) {
            self.changed = Some(now);
            for at in 0..self.pairs.len() {
                let pair = &self.pairs[at];
                if pair.state == PairState::Failed
                    && (pair.answers > 0 || self.is_worth_a_retry(pair))
                {
                    self.pairs[at].again(now);
                }
            }
        }
        self.doubt(now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.pump(now);
    }

    /// When [`Finder::handle_timeout`] is due, if nothing comes before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let check = self.pairs.iter().filter(|pair| self.wants_check(pair)).map(|pair| pair.due);
        let check = check.min().map(|due| due.max(self.outgoing.ready()));
        [check, self.settle].into_iter().flatten().min()
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<(Route, Vec<u8>)> {
        self.transmits.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<FinderEvent> {
        self.events.pop_front()
    }

    /// Every pair, best first, for people.
    #[must_use]
    pub fn pairs(&self) -> Vec<PairView> {
        let mut pairs: Vec<_> = self.pairs.iter().collect();
        pairs.sort_by_key(|pair| std::cmp::Reverse(pair.priority));
        pairs.into_iter().map(|pair| pair.view(Some(pair.route) == self.selected)).collect()
    }

    /// The pair in use.
    #[must_use]
    pub fn selected(&self) -> Option<Route> {
        self.selected
    }

    /// Smoothed round-trip time of a route's checks.
    #[must_use]
    pub fn rtt(&self, route: Route) -> Option<Duration> {
        self.pairs.iter().find(|pair| pair.route == route)?.rtt
    }

    /// What was sent and ignored so far.
    #[must_use]
    pub fn counters(&self) -> FinderCounters {
        self.counters
    }

    /// How many of the peer's candidates were refused, by reason.
    pub fn refused(&self) -> impl Iterator<Item = (CandidateRefusal, u64)> + '_ {
        self.remotes.refused()
    }

    /// Makes the pair, if the families fit, it is new and there is room.
    pub(super) fn pair_up(
        &mut self,
        now: Instant,
        base: LocalId,
        remote: SocketAddr,
        remote_kind: CandidateKind,
    ) {
        let route = Route { local: base, remote };
        let fitting =
            |l: &&Local| l.id == base && l.candidate.address.is_ipv6() == remote.is_ipv6();
        let Some(best) = self.locals.iter().filter(fitting).max_by_key(|l| l.priority) else {
            return;
        };
        let (local_kind, local) = (best.candidate.kind, best.priority);
        if self.kind == LegKind::UdpRelay && !leads_over_a_relay(local_kind, remote_kind) {
            return;
        }
        let theirs = priority(remote_kind, remote.is_ipv6(), 0);
        let worth = pair_priority(self.controlling, local, theirs);
        if let Some(pair) = self.pairs.iter_mut().find(|pair| pair.route == route) {
            // A signalled candidate explains what was peer-reflexive until now, or the base got a better address.
            (pair.local_kind, pair.remote_kind) = (local_kind, remote_kind);
            pair.priority = pair.priority.max(worth);
        } else if self.pairs.len() < PAIRS_MAX {
            self.pairs.push(Pair::new(now, route, local_kind, remote_kind, worth));
            self.told_failure = false;
        }
    }

    /// Routes that may well carry now, the latest sign of life first: those that answered, and those by which the peer was
    /// heard since `since`.
    pub(crate) fn lively(&self, since: Instant) -> Vec<Route> {
        let heard = |pair: &&Pair| pair.heard.is_some_and(|at| at >= since);
        let lively = |pair: &&Pair| pair.state == PairState::Succeeded || heard(pair);
        let mut pairs: Vec<_> = self.pairs.iter().filter(lively).collect();
        pairs.sort_by_key(|pair| std::cmp::Reverse(pair.alive()));
        pairs.into_iter().map(|pair| pair.route).collect()
    }

    /// The route answers, as far as is known.
    pub(crate) fn is_good(&self, route: Route) -> bool {
        let good = |pair: &Pair| pair.route == route && pair.state == PairState::Succeeded;
        self.pairs.iter().any(good)
    }

    /// Whether the route is good and no check waits there that left before `since`. If so, it is checked again.
    pub(crate) fn verify(&mut self, now: Instant, route: Route, since: Instant) -> bool {
        let good = self.is_good(route);
        let Some(pair) = self.pairs.iter_mut().find(|pair| pair.route == route) else {
            return false;
        };
        if !good || pair.waits_since().is_some_and(|sent| sent <= since) {
            return false;
        }
        pair.due = pair.due.min(now);
        pair.triggered = true;
        self.pump(now);
        true
    }

    /// The clockwork: gives up, chooses, and sends what is due and may leave.
    fn pump(&mut self, now: Instant) {
        self.give_up(now);
        self.choose(now);
        while self.outgoing.ready() <= now {
            let Some(at) = self.next_due(now) else { break };
            self.outgoing.take(now);
            self.send_check(now, at);
        }
    }

    /// The pair whose check is most urgent: triggered ones, the selected one, fresh ones by priority, then the rest.
    fn next_due(&self, now: Instant) -> Option<usize> {
        let due = self.pairs.iter().enumerate();
        due.filter(|(_, pair)| pair.due <= now && self.wants_check(pair))
            .max_by_key(|(_, pair)| {
                let selected = Some(pair.route) == self.selected;
                let fresh = pair.state == PairState::Waiting;
                (pair.triggered, selected, fresh, pair.priority)
            })
            .map(|(at, _)| at)
    }

    pub(super) fn selected_pair(&self) -> Option<&Pair> {
        let route = self.selected?;
        self.pairs.iter().find(|pair| pair.route == route)
    }
}

/// Whether that was never, or as long ago as `pause`.
fn is_past(now: Instant, at: Option<Instant>, pause: Duration) -> bool {
    at.is_none_or(|at| now.saturating_duration_since(at) >= pause)
}

/// One end's relay is enough. Whoever turned up by a check has come that way.
const fn leads_over_a_relay(local: CandidateKind, remote: CandidateKind) -> bool {
    matches!(local, CandidateKind::Relayed)
        || matches!(remote, CandidateKind::Relayed | CandidateKind::PeerReflexive)
}
