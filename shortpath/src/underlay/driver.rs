//! The task that finds UDP paths for one session, and makes legs of them.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{ClientConfig, Connection};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::alarm::Alarm;
use super::endpoint;
use super::exchange::{EAR, Ear, Heard};
use super::keeping::Known;
use super::paths::{SlotId, token_of};
use super::relay::Relay;
use super::search::{Search, Stage};
use super::view::ShortpathView;
use super::{Inner, ShortpathPlan, UdpPolicy};
use crate::LegKind;
use crate::path::{
    Candidate, CandidateKind, Finder, FinderConfig, LocalId, Route, TurnConfig, TurnEvent,
};
use crate::session::Role;
use crate::shell::SessionRef;
use crate::tls::KeyError;

/// What other tasks tell the driver.
enum Outcome {
    Dialled(SlotId, Result<Connection, String>),
    Closed(SlotId, usize, String),
}

/// See the module.
pub(super) struct Driver {
    inner: Arc<Inner>,
    plan: ShortpathPlan,
    session: SessionRef,
    searches: Vec<Search>,
    client: Option<ClientConfig>,
    ear: Ear,
    hears: mpsc::Receiver<Heard>,
    strangers: mpsc::Receiver<(SlotId, Route)>,
    connected: mpsc::Receiver<(SlotId, Connection)>,
    tell: mpsc::Sender<Outcome>,
    told: mpsc::Receiver<Outcome>,
    signalled: mpsc::Receiver<Vec<Candidate>>,
    known: watch::Receiver<Known>,
    network_changes: u64,
    remote: Vec<Candidate>,
    relay: RelayStage,
    relay_reason: Option<&'static str>,
    relayed: watch::Sender<Option<Candidate>>,
    view: watch::Sender<ShortpathView>,
    view_at: Option<Instant>,
    /// The session is not heard.
    doubts: Arc<Notify>,
    alarm: Option<Alarm>,
    stop: CancellationToken,
}

/// A route by which the peer was heard this lately may well carry.
const LATELY: Duration = Duration::from_millis(300);

enum RelayStage {
    /// Policy or the broker gives none.
    Never,
    /// Asked for at this time, if it is needed by then.
    At(Instant),
    Asked(LocalId, Arc<Relay>, mpsc::Receiver<TurnEvent>),
}

/// Head start of direct paths before a relay is asked for: most are there within two RTT of signalling.
const RELAY_AFTER: Duration = Duration::from_millis(300);
/// Where a direct path is up, the relay is only its standby: it waits until the session has outlived the shortest ones.
const RELAY_STANDBY: Duration = Duration::from_millis(500);
/// The end that is dialled has a relay, too: when a NAT binds one end anew, that end's allocation is gone with the rest, and
/// only the other's lets it in at once.
const RELAY_SECOND: Duration = Duration::from_secs(1);
/// After a relay failed.
const RELAY_RETRY: Duration = Duration::from_secs(30);
/// Between two views.
const VIEW: Duration = Duration::from_millis(100);
/// The peer's candidates kept: what its finder takes, for each kind.
const REMOTE_MAX: usize = 96;
/// Messages of the driver's own helpers.
const HELPERS: usize = 16;
/// After the session's end its legs may still say goodbye.
const GOODBYE: Duration = Duration::from_secs(3);

/// For the last packets of connections that were closed. The slot's token is free again after it.
const FAREWELL: Duration = Duration::from_millis(200);

/// What the owner keeps of a driver.
pub(super) struct Reins {
    pub(super) signalled: mpsc::Sender<Vec<Candidate>>,
    pub(super) relayed: watch::Receiver<Option<Candidate>>,
    pub(super) view: watch::Receiver<ShortpathView>,
    pub(super) stop: CancellationToken,
}

impl Driver {
    /// Makes a driver and its reins; [`Self::run`] is its task.
    ///
    /// # Errors
    /// When one of the keys cannot be used.
    pub(super) fn new(
        inner: Arc<Inner>,
        plan: ShortpathPlan,
        session: SessionRef,
    ) -> Result<(Self, Reins), KeyError> {
        let (ear, hears) = mpsc::channel(EAR);
        let (strange, strangers) = mpsc::channel(HELPERS);
        let (connect, connected) = mpsc::channel(HELPERS);
        let (tell, told) = mpsc::channel(HELPERS);
        let (signal, signalled) = mpsc::channel(HELPERS);
        let (view, seen) = watch::channel(ShortpathView::default());
        let (relayed, relayed_seen) = watch::channel(None);
        let stop = inner.stop.child_token();
        let reins =
            Reins { signalled: signal, relayed: relayed_seen, view: seen, stop: stop.clone() };
        let known = inner.known.subscribe();
        let network_changes = known.borrow().network_changes;
        let mut driver = Self {
            network_changes,
            relay: relay_at_first(&plan),
            client: None,
            remote: Vec::new(),
            searches: Vec::new(),
            relay_reason: None,
            relayed,
            view_at: Some(now()),
            inner,
            plan,
            session,
            ear,
            hears,
            strangers,
            connected,
            tell,
            told,
            signalled,
            known,
            view,
            doubts: Arc::new(Notify::new()),
            alarm: None,
            stop,
        };
        driver.open(&strange, &connect)?;
        driver.heed_doubts();
        Ok((driver, reins))
    }

    /// A slot and a finder for each kind of leg that policy allows.
    fn open(
        &mut self,
        strange: &mpsc::Sender<(SlotId, Route)>,
        connect: &mpsc::Sender<(SlotId, Connection)>,
    ) -> Result<(), KeyError> {
        let dials = self.plan.role == Role::Client;
        let server = if dials {
            self.client = Some(endpoint::client(&self.plan.key, &self.plan.peer_key)?);
            None
        } else {
            Some(Arc::new(endpoint::server(&self.plan.key, &self.plan.peer_key)?))
        };
        for kind in kinds(self.plan.policy) {
            let token = token_of(&self.plan.token, kind);
            let Some(slot) = self.inner.wire.paths(|paths| paths.open((!dials).then_some(token)))
            else {
                self.relay_reason = Some("token_in_use");
                continue;
            };
            self.inner.wire.watch_strangers(slot, Some(strange.clone()));
            if let Some(config) = &server {
                self.inner.quic.answer(slot, Arc::clone(config), connect.clone());
            }
            self.inner.wire.exchange.listen(&self.plan.local.of_kind(kind).ufrag, &self.ear);
            let finder = self.finder(kind);
            self.searches.push(Search::new(kind, slot, finder, dials));
        }
        Ok(())
    }

    /// Packets are spread from the moment at which the session doubts a leg, as its copies leave right after.
    fn heed_doubts(&self) {
        let (wire, doubts) = (Arc::downgrade(&self.inner.wire), Arc::clone(&self.doubts));
        let slots: Vec<_> = self.searches.iter().map(|search| search.slot).collect();
        self.session.when_in_doubt(Some(Box::new(move || {
            if let Some(wire) = wire.upgrade() {
                wire.alarm(&slots);
            }
            doubts.notify_one();
        })));
    }

    fn finder(&self, kind: LegKind) -> Finder {
        let dials = self.plan.role == Role::Client;
        let (local, remote) = (self.plan.local.clone(), self.plan.remote.clone());
        let mut config = FinderConfig::new(kind, dials, local, remote);
        config.limits.servers = self.known.borrow().servers.clone();
        config.limits.servers.extend(self.plan.relay.iter().map(|relay| relay.server));
        config.limits.networks = self.inner.config.networks.clone();
        Finder::new(now(), config)
    }

    /// Runs until the owner lets go or the session is over.
    pub(super) async fn run(mut self) {
        self.take_known();
        let signalled = std::mem::take(&mut self.plan.remote_candidates);
        self.take_signalled(signalled);
        loop {
            self.step();
            if self.session.is_closed() {
                tokio::select! {
                    () = self.stop.cancelled() => {}
                    () = tokio::time::sleep(GOODBYE) => {}
                }
                break;
            }
            if !self.wait().await {
                break;
            }
        }
        self.end().await;
    }

    /// Waits for one thing to happen and takes it in. False when it is time to end.
    async fn wait(&mut self) -> bool {
        let due = self.due();
        tokio::select! {
            () = self.stop.cancelled() => return false,
            () = self.doubts.notified() => self.raise_alarm(),
            Some(heard) = self.hears.recv() => self.hear(heard),
            Some((slot, route)) = self.strangers.recv() => self.meet_stranger(slot, route),
            Some((slot, connection)) = self.connected.recv() => self.up(slot, connection),
            Some(outcome) = self.told.recv() => self.take_outcome(outcome),
            Some(candidates) = self.signalled.recv() => self.take_signalled(candidates),
            changed = self.known.changed() => match changed {
                Ok(()) => self.take_known(),
                Err(_) => return false,
            },
            event = relay_event(&mut self.relay) => self.take_relay(event),
            () = sleep_until(due) => {
                for search in self.searches.iter_mut().filter(|search| search.is_started()) {
                    search.finder.handle_timeout(now());
                    search.look(now());
                }
            }
        }
        self.view_at.get_or_insert_with(|| now() + VIEW);
        true
    }

    fn due(&self) -> Option<Instant> {
        let relay = match self.relay {
            RelayStage::At(at) => Some(at),
            RelayStage::Never | RelayStage::Asked(..) => None,
        };
        let searches = self.searches.iter().filter_map(Search::poll_timeout).min();
        let alarm = self.alarm.as_ref().map(Alarm::next);
        [relay, self.view_at, searches, alarm].into_iter().flatten().min()
    }

    /// Does what the searches and the clock ask for. Routes are admitted before answers leave, so that the packets which
    /// the peer sends on an answer find them open.
    fn step(&mut self) {
        let now = now();
        if matches!(self.relay, RelayStage::At(at) if at <= now) {
            self.ask_relay(now);
        }
        if self.alarm.as_ref().is_some_and(|alarm| alarm.next() <= now) {
            self.repeat_alarm(now);
        }
        let mut seen_by_relay = Vec::new();
        let lately = now.checked_sub(LATELY).unwrap_or(now);
        for at in 0..self.searches.len() {
            let search = &mut self.searches[at];
            while let Some(event) = search.finder.poll_event() {
                let Some((route, send)) = search.handle(event) else { continue };
                let slot = search.slot;
                self.inner.wire.paths(|paths| {
                    if send { paths.direct(slot, route) } else { paths.admit(slot, route) }
                });
                if !send && search.is_up() {
                    // What is in use may be dead, and our next packets are wanted at once.
                    self.inner.wire.alarm(&[slot]);
                }
                self.inner.wire.let_in(slot, route);
                if let RelayStage::Asked(id, relay, _) = &self.relay
                    && route.local == *id
                {
                    relay.permit(route.remote);
                    seen_by_relay.push(route.remote);
                }
            }
            if let Some(route) = search.follow() {
                let slot = search.slot;
                self.inner.wire.paths(|paths| paths.direct(slot, route));
                self.inner.wire.let_in(slot, route);
            }
            let since = self.alarm.as_ref().map_or(lately, Alarm::since);
            self.inner.wire.stand_by(search.slot, search.finder.lively(since));
            if search.wants_dial(now) {
                search.stage = Stage::Dialling;
                self.dial(at);
            }
            self.send_checks(at);
        }
        for address in seen_by_relay {
            self.meet_behind_relay(now, address);
        }
        if self.view_at.is_some_and(|at| at <= now) {
            self.view_at = None;
            self.view.send_replace(self.look());
        }
    }

    fn raise_alarm(&mut self) {
        let now = now();
        if self.alarm.is_none() {
            self.alarm = Some(Alarm::new(now));
            self.look_everywhere(now);
        }
    }

    fn repeat_alarm(&mut self, now: Instant) {
        if !self.session.is_troubled() {
            self.alarm = None;
            return;
        }
        if let Some(alarm) = &mut self.alarm {
            alarm.again(now);
        }
        let slots: Vec<_> = self.searches.iter().map(|search| search.slot).collect();
        self.inner.wire.alarm(&slots);
        self.look_everywhere(now);
    }

    /// Whatever is known may be of yesterday: pairs, allocations, and our own addresses.
    fn look_everywhere(&mut self, now: Instant) {
        self.searches.iter_mut().for_each(|search| search.finder.doubt(now));
        if let RelayStage::Asked(_, relay, _) = &self.relay {
            relay.doubt();
        }
        self.inner.doubt.notify_one();
    }

    /// The peer's checks reach our relay from there. If its NAT has bound it anew, that is where to punch.
    fn meet_behind_relay(&mut self, now: Instant, address: SocketAddr) {
        let relayed = |candidate: &Candidate| {
            candidate.kind == CandidateKind::Relayed && candidate.address.ip() == address.ip()
        };
        let server = self.plan.relay.as_ref().map(|relay| relay.server.ip());
        if self.remote.iter().any(relayed) || server == Some(address.ip()) {
            return;
        }
        let candidate = Candidate::new(CandidateKind::ServerReflexive, address);
        for search in self.searches.iter_mut().filter(|it| it.kind == LegKind::UdpDirect) {
            // Refused when it is known, or nobody may be checked there.
            let _ = search.finder.add_remote(now, candidate);
        }
        (0..self.searches.len()).for_each(|at| self.send_checks(at));
    }

    fn send_checks(&mut self, at: usize) {
        while let Some((route, datagram)) = self.searches[at].finder.poll_transmit() {
            self.inner.wire.send_stun(&self.ear, route, &datagram);
        }
    }

    fn dial(&self, at: usize) {
        let search = &self.searches[at];
        let Some(client) = &self.client else { return };
        let token = token_of(&self.plan.token, search.kind);
        let rtt = search.route.and_then(|route| search.finder.rtt(route));
        let config = endpoint::attempt(client, token, rtt);
        let (slot, tell, inner) = (search.slot, self.tell.clone(), Arc::clone(&self.inner));
        let stop = self.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                result = inner.quic.dial(slot, config) => {
                    // An error gives a connection back that nobody wants any more; dropped, it closes.
                    drop(tell.send(Outcome::Dialled(slot, result)).await);
                }
            }
        });
    }

    fn search(&mut self, slot: SlotId) -> Option<&mut Search> {
        self.searches.iter_mut().find(|search| search.slot == slot)
    }

    fn hear(&mut self, heard: Heard) {
        let accepts = |search: &&mut Search| search.finder.accepts(&heard.datagram);
        if let Some(search) = self.searches.iter_mut().find(accepts) {
            search.finder.handle_packet(now(), heard.route, &heard.datagram);
        }
    }

    fn meet_stranger(&mut self, slot: SlotId, route: Route) {
        if let Some(search) = self.search(slot) {
            search.suspect(now(), route);
        }
    }

    fn take_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Dialled(slot, Ok(connection)) => self.up(slot, connection),
            Outcome::Dialled(slot, Err(detail)) => {
                if let Some(search) = self.search(slot) {
                    search.ended(now(), detail);
                }
            }
            Outcome::Closed(slot, id, detail) => {
                let Some(search) = self.search(slot) else { return };
                if matches!(&search.stage, Stage::Up { connection, .. } if connection.stable_id() == id)
                {
                    search.ended(now(), detail);
                    self.want_relay_soon();
                }
            }
        }
    }

    /// A connection is there: it becomes a leg.
    fn up(&mut self, slot: SlotId, connection: Connection) {
        let session = self.session.clone();
        let Some(search) = self.search(slot) else { return };
        let leg = session.attach(connection.clone(), search.kind);
        tracing::debug!(?leg, kind = search.kind.as_str(), "a UDP leg is up");
        search.connected(now(), connection.clone());
        let tell = self.tell.clone();
        tokio::spawn(async move {
            let closed = connection.closed().await.to_string();
            // The driver may be gone by then.
            drop(tell.send(Outcome::Closed(slot, connection.stable_id(), closed)).await);
        });
    }

    fn take_signalled(&mut self, candidates: Vec<Candidate>) {
        for candidate in candidates {
            if self.remote.len() < REMOTE_MAX && !self.remote.contains(&candidate) {
                self.remote.push(candidate);
            }
        }
        self.give_candidates();
        self.permit_peers();
    }

    fn take_known(&mut self) {
        let changes = self.known.borrow_and_update().network_changes;
        self.give_candidates();
        if std::mem::replace(&mut self.network_changes, changes) != changes {
            let now = now();
            self.searches.iter_mut().for_each(|search| search.network_changed(now));
            if let RelayStage::Asked(_, relay, _) = &self.relay {
                relay.doubt();
            }
            self.want_relay_soon();
        }
    }

    /// Gives every search the candidates it may use; those it has, it ignores.
    fn give_candidates(&mut self) {
        let now = now();
        let locals = self.known.borrow().locals.clone();
        for search in &mut self.searches {
            search.start();
            for (candidate, base) in &locals {
                if serves_locally(search.kind, self.plan.role, candidate.kind) {
                    search.finder.add_local(now, *candidate, *base);
                }
            }
            for candidate in &self.remote {
                // Refusals are the finder's to count.
                let _ = search.finder.add_remote(now, *candidate);
            }
        }
    }

    fn want_relay_soon(&mut self) {
        if let RelayStage::At(at) = &mut self.relay {
            *at = (*at).min(now());
        }
    }

    /// The time for a relay has come: asks, unless it can wait.
    fn ask_relay(&mut self, now: Instant) {
        let up = |search: &Search| search.kind != LegKind::UdpRelay && search.is_up();
        let waits = self.plan.role == Role::Client && self.relay_reason.is_none();
        if waits && self.searches.iter().any(up) {
            self.relay_reason = Some("standby");
            self.relay = RelayStage::At(now + RELAY_STANDBY);
            return;
        }
        let Some(access) = &self.plan.relay else { return self.relay = RelayStage::Never };
        let config =
            TurnConfig::new(access.server, access.username.clone(), access.password.clone());
        match Relay::open(&self.inner.wire, config, &self.inner.config) {
            Ok((id, relay, events)) => {
                self.relay_reason = None;
                self.relay = RelayStage::Asked(id, relay, events);
            }
            Err(error) => {
                tracing::warn!(%error, "no socket for a relay");
                self.relay_reason = Some("relay_no_socket");
                self.relay = RelayStage::At(now + RELAY_RETRY);
            }
        }
    }

    fn take_relay(&mut self, event: Option<TurnEvent>) {
        let RelayStage::Asked(id, relay, _) = &self.relay else { return };
        let id = *id;
        let failed = match event {
            Some(TurnEvent::Allocated { relayed, .. }) => {
                let candidate = Candidate::new(CandidateKind::Relayed, relayed);
                self.relayed.send_replace(Some(candidate));
                self.inner.relays.send_modify(|count| *count += 1);
                let relays = |search: &&mut Search| search.kind == LegKind::UdpRelay;
                if let Some(search) = self.searches.iter_mut().find(relays) {
                    search.finder.rename_local(now(), candidate, id);
                    self.inner.wire.renewed(search.slot, id);
                }
                self.give_candidates();
                return self.permit_peers();
            }
            Some(TurnEvent::Renewing) => {
                let relays = |search: &&mut Search| search.kind == LegKind::UdpRelay;
                if let Some(search) = self.searches.iter_mut().find(relays) {
                    search.finder.check_base(now(), id);
                    self.inner.wire.renewed(search.slot, id);
                }
                return;
            }
            Some(TurnEvent::Bound(_) | TurnEvent::PeerRefused(..)) => return,
            Some(TurnEvent::Failed(failure)) => failure.as_str(),
            None => "relay_unreachable",
        };
        relay.close();
        self.relayed.send_replace(None);
        let relays = |search: &&mut Search| search.kind == LegKind::UdpRelay;
        if let Some(search) = self.searches.iter_mut().find(relays) {
            search.finder.remove_local(now(), id);
        }
        self.relay_reason = Some(failed);
        self.relay = RelayStage::At(now() + RELAY_RETRY);
    }

    fn permit_peers(&self) {
        let RelayStage::Asked(_, relay, _) = &self.relay else { return };
        let reachable = self.remote.iter().filter(|candidate| {
            candidate.kind.serves(LegKind::UdpRelay) && !candidate.address.ip().is_loopback()
                || self.inner.config.loopback
        });
        reachable.for_each(|candidate| relay.permit(candidate.address));
    }

    fn look(&self) -> ShortpathView {
        let known = self.known.borrow();
        let mut view = ShortpathView {
            legs: self.searches.iter().map(Search::view).collect(),
            reasons: Vec::new(),
            local: known
                .locals
                .iter()
                .map(|(candidate, _)| *candidate)
                .chain(*self.relayed.borrow())
                .collect(),
            remote: self.remote.clone(),
        };
        if self.searches.iter().any(Search::is_up) {
            return view;
        }
        if self.searches.is_empty() {
            view.reasons.push("policy_no_udp");
        }
        view.reasons.extend(known.nat_reasons());
        view.reasons.extend(self.relay_reason.filter(|reason| *reason != "standby"));
        view.reasons.extend(view.legs.iter().filter_map(|leg| leg.reason));
        view.reasons.dedup();
        if view.reasons.is_empty() {
            view.reasons.push("searching");
        }
        view
    }

    /// Closes what is left. Paths stay for a moment, by which the peer is told.
    async fn end(&mut self) {
        self.session.when_in_doubt(None);
        for search in &self.searches {
            if let Stage::Up { connection, .. } = &search.stage {
                connection.close(quinn::VarInt::from_u32(0), b"shortpath over");
            }
            self.inner.quic.hush(search.slot);
            self.inner.wire.watch_strangers(search.slot, None);
            self.inner.wire.exchange.forget(&self.plan.local.of_kind(search.kind).ufrag);
        }
        tokio::time::sleep(FAREWELL).await;
        for search in &self.searches {
            self.inner.wire.close(search.slot);
        }
        if let RelayStage::Asked(_, relay, _) = &self.relay {
            relay.close();
        }
    }
}

fn relay_at_first(plan: &ShortpathPlan) -> RelayStage {
    if plan.relay.is_none() || !plan.policy.relay {
        return RelayStage::Never;
    }
    let head_start = match plan.role {
        Role::Agent => RELAY_SECOND,
        Role::Client if plan.policy.direct || plan.policy.managed => RELAY_AFTER,
        Role::Client => Duration::ZERO,
    };
    RelayStage::At(now() + head_start)
}

fn kinds(policy: UdpPolicy) -> impl Iterator<Item = LegKind> {
    let kinds = [
        (policy.direct, LegKind::UdpDirect),
        (policy.managed, LegKind::UdpManaged),
        (policy.relay, LegKind::UdpRelay),
    ];
    kinds.into_iter().filter(|(allowed, _)| *allowed).map(|(_, kind)| kind)
}

/// Which of our own candidates a finder uses. In a managed network only one end has a fixed listener.
fn serves_locally(leg: LegKind, role: Role, candidate: CandidateKind) -> bool {
    match (leg, role) {
        (LegKind::UdpManaged, Role::Agent) => candidate == CandidateKind::Managed,
        _ => candidate != CandidateKind::Managed,
    }
}

async fn relay_event(relay: &mut RelayStage) -> Option<TurnEvent> {
    match relay {
        RelayStage::Asked(_, _, events) => events.recv().await,
        RelayStage::Never | RelayStage::At(_) => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
