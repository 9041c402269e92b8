//! The registry of sessions: who, what, where, how it goes, and which ended recently.
use std::borrow::Borrow;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

use switchback_engine::PairId;

use super::gateways::GatewayId;
use super::io::LinkId;
use super::life::Life;
use super::udp::UdpState;
use crate::api::{SessionLife, SessionState};
use crate::broker::seal::Grant;
use crate::code::Code;
use crate::wire::{LossCounts, PathLeg, RttView, SessionId, SessionReport};

/// A session that no leg carries is forgotten after this without a word from either end: the default resume window
/// of 60 s, and half of it again for ends whose clocks started later.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(90);
/// How long an ended session's grant is refused. Ends that come back later than this have given up long before.
const TOMBSTONE_TTL: Duration = Duration::from_secs(3600);
/// Ended sessions remembered, about 64 bytes each.
const TOMBSTONES_MAX: usize = 65_536;
/// Legs of one session at once: the one that works, its successor while it is being replaced, and two whose loss
/// nobody has noticed yet.
pub(super) const LEGS_MAX: usize = 4;
/// Label of a session carried by a pair whose ends have not reported yet.
const TCP_LABEL: &str = "TCP (Reverse-Connect)";

/// One leg of a session: a pair at the gateway, or one in the making.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leg {
    pub(super) pair: PairId,
    pub(super) live: bool,
}

/// One end's last report.
#[derive(Clone, Debug)]
struct Heard {
    report: SessionReport,
    at: Instant,
}

/// A granted session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) grant: Grant,
    /// The client's link, while there is one.
    pub(super) client: Option<LinkId>,
    /// Oldest first.
    pub(super) legs: Vec<Leg>,
    /// Held for later use: counted and shown nowhere until it begins.
    pub(super) ready: bool,
    created_at: Instant,
    was_carried: bool,
    heard_at: Instant,
    from_client: Option<Heard>,
    from_agent: Option<Heard>,
    pub(super) udp: UdpState,
    /// Where its last leg went: its relay is there too.
    pub(super) gateway: Option<GatewayId>,
    /// When its client was told to ask for another leg, as its gateway drains.
    pub(super) told_to_move: Option<Instant>,
    pub(super) life: Life,
}

/// What the API shows of a session, without the figures that only the gateway has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) session: SessionId,
    pub(crate) user: String,
    pub(crate) resource: String,
    pub(crate) agent: String,
    pub(crate) created_ms: u64,
    pub(crate) state: SessionState,
    pub(crate) transport: Option<String>,
    pub(crate) end_to_end: Option<RttView>,
    /// Every leg that is attached, as an end sees it.
    pub(crate) paths: Vec<PathLeg>,
    pub(crate) client_to_target: u64,
    pub(crate) target_to_client: u64,
    pub(crate) channels: u32,
    pub(crate) resumes: u32,
    /// What client and agent count about loss.
    pub(crate) loss: [LossCounts; 2],
    /// The pair that carries it, if any.
    pub(crate) pair: Option<PairId>,
    /// The gateway that its last leg went through.
    pub(crate) gateway: Option<GatewayId>,
    pub(crate) life: SessionLife,
}

impl Session {
    /// A session just granted, or (`was_carried`) one that an end tells a restarted broker about.
    pub(super) fn new(
        grant: Grant,
        client: Option<LinkId>,
        was_carried: bool,
        now: Instant,
    ) -> Self {
        let (from_client, from_agent) = (None, None);
        let (legs, udp) = (Vec::new(), UdpState::new(was_carried, now));
        Self {
            grant,
            client,
            legs,
            ready: false,
            created_at: now,
            was_carried,
            heard_at: now,
            from_client,
            from_agent,
            udp,
            gateway: None,
            told_to_move: None,
            life: Life::new(now),
        }
    }

    /// The same, held ready.
    pub(super) fn held_ready(mut self) -> Self {
        self.udp.was_direct = true;
        Self { ready: true, ..self }
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.created_at)
    }

    pub(super) const fn hear(&mut self, now: Instant) {
        self.heard_at = now;
    }

    /// Returns what the end has counted about loss since its last report.
    pub(super) fn report(
        &mut self,
        report: SessionReport,
        by_client: bool,
        now: Instant,
    ) -> LossCounts {
        self.hear(now);
        self.was_carried |= report.transport.is_some();
        self.life.report(&report, by_client, now);
        let counts = report.loss;
        let end = if by_client { &mut self.from_client } else { &mut self.from_agent };
        let before = end.replace(Heard { report, at: now });
        counts.since(&before.map(|heard| heard.report.loss).unwrap_or_default())
    }

    pub(super) fn leg_started(&mut self, pair: PairId, now: Instant) {
        self.hear(now);
        self.was_carried = true;
        for leg in self.legs.iter_mut().filter(|leg| leg.pair == pair) {
            leg.live = true;
        }
    }

    /// Forgets a leg. What the ends reported about their transport before is void once the last live leg is gone.
    pub(super) fn leg_ended(&mut self, pair: PairId, now: Instant) {
        let was_live = self.is_live();
        self.legs.retain(|leg| leg.pair != pair);
        if was_live && !self.is_live() {
            self.hear(now);
            for heard in [&mut self.from_client, &mut self.from_agent].into_iter().flatten() {
                // One that goes on by UDP says so again within a second.
                heard.report.transport = None;
                heard.report.paths.clear();
            }
        }
    }

    /// The client's link is down. What it said of its transport is void: if it lives, its agent says the same.
    pub(super) fn client_gone(&mut self) {
        self.client = None;
        if let Some(heard) = &mut self.from_client {
            heard.report.transport = None;
        }
    }

    fn is_live(&self) -> bool {
        self.legs.iter().any(|leg| leg.live)
    }

    fn is_carried(&self, now: Instant) -> bool {
        let fresh = |heard: &Heard| {
            heard.report.transport.is_some()
                && now.saturating_duration_since(heard.at) < SILENCE_MAX
        };
        self.is_live()
            || self.from_client.as_ref().is_some_and(fresh)
            || self.from_agent.as_ref().is_some_and(fresh)
    }

    pub(super) fn state(&self, now: Instant) -> SessionState {
        if self.is_carried(now) {
            SessionState::Active
        } else if self.was_carried {
            SessionState::Paused
        } else {
            SessionState::Connecting
        }
    }

    /// Whether nothing carries it and neither end has been heard of for too long.
    pub(super) fn is_lost(&self, now: Instant) -> bool {
        !self.is_live() && now.saturating_duration_since(self.heard_at) >= SILENCE_MAX
    }

    pub(super) fn snapshot(&self, now: Instant) -> Snapshot {
        let state = self.state(now);
        let client = self.from_client.as_ref().map(|heard| &heard.report);
        let agent = self.from_agent.as_ref().map(|heard| &heard.report);
        let ends = || client.into_iter().chain(agent);
        let most = |figure: fn(&SessionReport) -> u64| ends().map(figure).max().unwrap_or(0);
        let transport = (state == SessionState::Active).then(|| {
            let reported = ends().find_map(|report| report.transport.clone());
            reported.unwrap_or_else(|| TCP_LABEL.to_owned())
        });
        Snapshot {
            session: self.grant.session.clone(),
            user: self.grant.user.clone(),
            resource: self.grant.resource.clone(),
            agent: self.grant.agent.clone(),
            created_ms: self.grant.created_ms,
            state,
            transport,
            end_to_end: ends().find_map(|report| report.rtt),
            paths: ends().next().map(|report| report.paths.clone()).unwrap_or_default(),
            client_to_target: most(|report| report.client_to_target),
            target_to_client: most(|report| report.target_to_client),
            channels: ends().next().map_or(0, |report| report.channels),
            resumes: ends().map(|report| report.resumes).max().unwrap_or(0),
            loss: [client, agent].map(|end| end.map(|report| report.loss).unwrap_or_default()),
            pair: self.legs.iter().rev().find(|leg| leg.live).map(|leg| leg.pair),
            gateway: self.gateway.clone(),
            life: SessionLife {
                watches: self.grant.purpose.shadow().map(|shadow| shadow.session.clone()),
                jitter_us: ends().find_map(|report| report.jitter_us),
                loss_ppm: ends().filter_map(|report| report.loss_ppm).max(),
                ..self.life.view(now)
            },
        }
    }
}

/// Sessions by id, counted by user and agent, and the recently ended.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    table: HashMap<SessionId, Session>,
    by_user: HashMap<String, usize>,
    by_agent: HashMap<String, usize>,
    /// By agent and resource.
    by_service: HashMap<(String, String), usize>,
    ready_by_user: HashMap<String, usize>,
    ready: usize,
    tombstones: HashMap<SessionId, Code>,
    tombstone_order: VecDeque<(Instant, SessionId)>,
    /// Watches by the session they watch.
    watches: HashMap<SessionId, Vec<SessionId>>,
    /// Sessions whose ends said goodbye, and how many pairs of theirs still deliver.
    closing: HashMap<SessionId, (Snapshot, usize)>,
}

impl Sessions {
    pub(super) fn insert(&mut self, session: Session) {
        let by_user = if session.ready { &mut self.ready_by_user } else { &mut self.by_user };
        *by_user.entry(session.grant.user.clone()).or_default() += 1;
        self.ready += usize::from(session.ready);
        if takes_place(&session) {
            self.take_place(&session.grant.agent, &session.grant.resource);
        }
        if let Some(shadow) = session.grant.purpose.shadow() {
            let watches = self.watches.entry(shadow.session.clone()).or_default();
            watches.push(session.grant.session.clone());
        }
        let replaced = self.table.insert(session.grant.session.clone(), session);
        debug_assert!(replaced.is_none(), "session ids are unique");
    }

    pub(super) fn remove(&mut self, id: &SessionId) -> Option<Session> {
        let session = self.table.remove(id)?;
        if session.ready {
            decrement(&mut self.ready_by_user, &session.grant.user);
            self.ready -= 1;
        } else {
            decrement(&mut self.by_user, &session.grant.user);
        }
        if takes_place(&session) {
            decrement(&mut self.by_agent, &session.grant.agent);
            decrement(&mut self.by_service, &service_of(&session));
        }
        if let Some(shadow) = session.grant.purpose.shadow()
            && let Some(watches) = self.watches.get_mut(&shadow.session)
        {
            watches.retain(|watch| watch != id);
            if watches.is_empty() {
                self.watches.remove(&shadow.session);
            }
        }
        Some(session)
    }

    fn take_place(&mut self, agent: &str, resource: &str) {
        *self.by_agent.entry(agent.to_owned()).or_default() += 1;
        *self.by_service.entry((agent.to_owned(), resource.to_owned())).or_default() += 1;
    }

    /// Watches of a session.
    pub(super) fn watchers_of(&self, id: &SessionId) -> &[SessionId] {
        self.watches.get(id).map_or(&[], Vec::as_slice)
    }

    /// Every watch, and what it watches.
    pub(super) fn watches(&self) -> impl Iterator<Item = (SessionId, SessionId)> {
        let pairs = self.watches.iter();
        pairs.flat_map(|(of, by)| by.iter().map(move |watch| (watch.clone(), of.clone())))
    }

    /// A session, just removed, whose legs still deliver.
    pub(super) fn note_closing(&mut self, session: &Session, now: Instant) {
        if session.is_live() && !session.ready {
            let mut snapshot = session.snapshot(now);
            snapshot.state = SessionState::Closing;
            let legs = session.legs.len();
            self.closing.insert(session.grant.session.clone(), (snapshot, legs));
        }
    }

    /// One of its legs has ended.
    pub(super) fn closed_leg(&mut self, id: &SessionId) {
        if let Some((_, legs)) = self.closing.get_mut(id) {
            *legs = legs.saturating_sub(1);
            if *legs == 0 {
                self.closing.remove(id);
            }
        }
    }

    /// Sessions that are closing, or those of one user.
    pub(super) fn closing(&self, user: Option<&str>) -> impl Iterator<Item = Snapshot> {
        let all = self.closing.values().map(|(snapshot, _)| snapshot);
        all.filter(move |it| user.is_none_or(|user| it.user == user)).cloned()
    }

    /// Remembers that the session ended with `code`, so that its grant revives nothing.
    pub(super) fn bury(&mut self, id: SessionId, code: Code, now: Instant) {
        if self.tombstone_order.len() >= TOMBSTONES_MAX {
            self.exhume_oldest();
        }
        if self.tombstones.insert(id.clone(), code).is_none() {
            self.tombstone_order.push_back((now, id));
        }
    }

    pub(super) fn forget_old_tombstones(&mut self, now: Instant) {
        let is_old = |at: &Instant| now.saturating_duration_since(*at) >= TOMBSTONE_TTL;
        while self.tombstone_order.front().is_some_and(|(at, _)| is_old(at)) {
            self.exhume_oldest();
        }
    }

    fn exhume_oldest(&mut self) {
        if let Some((_, id)) = self.tombstone_order.pop_front() {
            self.tombstones.remove(&id);
        }
    }

    pub(super) fn tombstone(&self, id: &SessionId) -> Option<Code> {
        self.tombstones.get(id).copied()
    }

    pub(super) fn get(&self, id: &SessionId) -> Option<&Session> {
        self.table.get(id)
    }

    pub(super) fn get_mut(&mut self, id: &SessionId) -> Option<&mut Session> {
        self.table.get_mut(id)
    }

    pub(super) fn of_user(&self, user: &str) -> usize {
        self.by_user.get(user).copied().unwrap_or(0)
    }

    pub(super) fn of_agent(&self, agent: &str) -> usize {
        self.by_agent.get(agent).copied().unwrap_or(0)
    }

    /// Sessions of `resource` at `agent`.
    pub(super) fn of_service(&self, agent: &str, resource: &str) -> usize {
        let key = (agent.to_owned(), resource.to_owned());
        self.by_service.get(&key).copied().unwrap_or(0)
    }

    /// Ready ones of this user.
    pub(super) fn ready_of_user(&self, user: &str) -> usize {
        self.ready_by_user.get(user).copied().unwrap_or(0)
    }

    /// All ready ones.
    pub(super) const fn ready(&self) -> usize {
        self.ready
    }

    /// All that have begun.
    pub(super) fn in_use(&self) -> usize {
        self.table.len() - self.ready
    }

    /// A ready session begins; false if there is no such.
    pub(super) fn begin(&mut self, id: &SessionId, now: Instant) -> bool {
        let Some(session) = self.table.get_mut(id).filter(|session| session.ready) else {
            return false;
        };
        session.ready = false;
        session.hear(now);
        self.ready -= 1;
        decrement(&mut self.ready_by_user, &session.grant.user);
        *self.by_user.entry(session.grant.user.clone()).or_default() += 1;
        let (agent, resource) = (session.grant.agent.clone(), session.grant.resource.clone());
        self.take_place(&agent, &resource);
        true
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Session> {
        self.table.values()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.table.values_mut()
    }

    /// Ids of the sessions that `choose` chooses.
    pub(super) fn ids_where(&self, choose: impl Fn(&Session) -> bool) -> Vec<SessionId> {
        let chosen = self.table.iter().filter(|(_, session)| choose(session));
        chosen.map(|(id, _)| id.clone()).collect()
    }
}

/// Whether it counts where agents share a resource: what nobody uses yet does not, and who watches takes nobody's place.
fn takes_place(session: &Session) -> bool {
    !session.ready && session.grant.purpose.is_default()
}

fn service_of(session: &Session) -> (String, String) {
    (session.grant.agent.clone(), session.grant.resource.clone())
}

fn decrement<Q: Hash + Eq + ?Sized, K: Hash + Eq + Borrow<Q>>(
    counts: &mut HashMap<K, usize>,
    name: &Q,
) {
    if let Some(count) = counts.get_mut(name) {
        *count -= 1;
        if *count == 0 {
            counts.remove(name);
        }
    }
}
