//! The task that finds UDP paths for one session, and makes legs of them.
mod addresses;
mod relays;
mod showing;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quinn::Connection;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::alarm::{Alarm, Allowance};
use super::demux::is_request;
use super::endpoint;
use super::exchange::{EAR, Ear, Heard};
use super::ignored::count;
use super::keeping::Known;
use super::paths::{SlotId, token_of};
use super::relay::Relay;
use super::search::{Search, Stage};
use super::view::ShortpathView;
use super::{Inner, RelayAccess, ShortpathPlan, UdpPolicy};
use crate::LegKind;
use crate::path::{Candidate, CandidateKind, Finder, FinderConfig, LocalId, Route, TurnFailure};
use crate::session::Role;
use crate::shell::SessionRef;
use crate::time::{now, sleep_until};
use crate::tls::KeyError;
use relays::{Asked, RelayPlace, RelayStage, heir_event, relay_at_first, relay_event};

/// What other tasks tell the driver.
enum Outcome {
    Dialled(SlotId, Result<Connection, String>),
    Closed(SlotId, usize, String),
    /// The relay's name resolves to these.
    Located(Vec<SocketAddr>),
}

/// What the owner tells the driver.
#[derive(Debug)]
pub(super) enum Signal {
    /// More candidates of the peer.
    Candidates(Vec<Candidate>),
    /// Credentials for the relay in place of those before.
    Relay(RelayAccess),
}

/// See the module.
pub(super) struct Driver {
    inner: Arc<Inner>,
    plan: ShortpathPlan,
    session: SessionRef,
    searches: Vec<Search>,
    client: Option<endpoint::Client>,
    ear: Ear,
    hears: mpsc::Receiver<Heard>,
    strangers: mpsc::Receiver<(SlotId, Route)>,
    connected: mpsc::Receiver<(SlotId, Connection)>,
    tell: mpsc::Sender<Outcome>,
    told: mpsc::Receiver<Outcome>,
    signalled: mpsc::Receiver<Signal>,
    known: watch::Receiver<Known>,
    network_changes: u64,
    remote: Vec<Candidate>,
    relay: RelayStage,
    relay_place: RelayPlace,
    /// The allocation that will take the present one's place.
    heir: Option<Asked>,
    /// The one before, until packets have found their way through its heir.
    retired: Option<(LocalId, Arc<Relay>, Instant)>,
    relay_reason: Option<&'static str>,
    /// What the relay says of the peer.
    relay_refuses: Option<TurnFailure>,
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
/// Between two views.
const VIEW: Duration = Duration::from_millis(100);
/// Messages of the driver's own helpers.
const HELPERS: usize = 16;
/// After the session's end its legs may still say goodbye.
const GOODBYE: Duration = Duration::from_secs(3);

/// For the last packets of connections that were closed. The slot's token is free again after it.
const FAREWELL: Duration = Duration::from_millis(200);

/// What the owner keeps of a driver.
pub(super) struct Reins {
    pub(super) signalled: mpsc::Sender<Signal>,
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
            relay_place: RelayPlace::default(),
            client: None,
            remote: Vec::new(),
            searches: Vec::new(),
            heir: None,
            retired: None,
            relay_reason: None,
            relay_refuses: None,
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
            Some(endpoint::server(&self.plan.key, &self.plan.peer_key)?)
        };
        for kind in kinds(self.plan.policy) {
            let token = token_of(&self.plan.token, kind);
            let Some(slot) = self.inner.wire.paths(|paths| paths.open((!dials).then_some(token)))
            else {
                // Only a search of the same session that has just ended may have it: the next offer starts another.
                tracing::warn!(kind = kind.as_str(), "the session's token is in use");
                continue;
            };
            self.inner.wire.paths(|paths| paths.mark(slot, self.plan.dscp));
            self.inner.wire.watch_strangers(slot, Some(strange.clone()));
            if let Some(config) = &server {
                let config = endpoint::callee(config, (&self.inner.wire, slot));
                self.inner.quic.answer(slot, config, connect.clone());
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
        config.limits.networks = self.inner.config.networks.clone();
        // Pairs in reserve stay open behind NATs that forget soon.
        let keepalive = self.known.borrow().keepalive().unwrap_or(config.timing.standby);
        config.timing.standby = config.timing.standby.min(keepalive);
        Finder::new(now(), config)
    }

    /// Runs until the owner lets go or the session is over.
    pub(super) async fn run(mut self) {
        self.locate_relay();
        self.take_known();
        let signalled = std::mem::take(&mut self.plan.remote_candidates);
        self.take_signalled(signalled);
        loop {
            self.step();
            if self.session.is_closed() || !self.wait().await {
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
            Some(signal) = self.signalled.recv() => match signal {
                Signal::Candidates(candidates) => self.take_signalled(candidates),
                Signal::Relay(access) => self.renew_relay(access),
            },
            changed = self.known.changed() => match changed {
                Ok(()) => self.take_known(),
                Err(_) => return false,
            },
            event = relay_event(&mut self.relay) => self.take_relay(event),
            event = heir_event(&mut self.heir) => self.take_heir(event),
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
            RelayStage::Never | RelayStage::Nowhere | RelayStage::Asked(_) => None,
        };
        let retired = self.retired.as_ref().map(|(_, _, until)| *until);
        let searches = self.searches.iter().filter_map(Search::poll_timeout).min();
        let alarm = self.alarm.as_ref().map(Alarm::next);
        let old = self.relay_is_old_at();
        [relay, retired, self.view_at, searches, alarm, old].into_iter().flatten().min()
    }

    /// Does what the searches and the clock ask for. Routes are admitted before answers leave, so that the packets which
    /// the peer sends on an answer find them open.
    fn step(&mut self) {
        let now = now();
        if matches!(self.relay, RelayStage::At(at) if at <= now) {
            self.ask_relay(now);
        }
        if !self.plan.standby {
            self.give_relay_back(now);
        }
        self.replace_old_relay(now);
        if self.retired.as_ref().is_some_and(|(_, _, until)| *until <= now) {
            self.retire_relay();
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
                if !send && search.is_up() {
                    // What is in use may be dead, and our next packets are wanted at once.
                    self.inner.wire.alarm(&[slot]);
                }
                self.inner.wire.admit(slot, route, send);
                if let RelayStage::Asked(Asked { id, relay, .. }) = &self.relay
                    && route.local == *id
                {
                    relay.permit(route.remote);
                    seen_by_relay.push(route.remote);
                }
            }
            if let Some(route) = search.follow(now) {
                let slot = search.slot;
                self.inner.wire.admit(slot, route, true);
            }
            let since = self.alarm.as_ref().map_or(lately, Alarm::since);
            let lively = search.finder.lively(since);
            if search.stands_by.as_ref() != Some(&lively) {
                self.inner.wire.stand_by(search.slot, lively.clone());
                search.stands_by = Some(lively);
            }
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
        if !allows(&self.inner.looks) {
            return;
        }
        self.searches.iter_mut().for_each(|search| search.finder.doubt(now));
        if let RelayStage::Asked(Asked { relay, .. }) = &self.relay {
            relay.doubt();
        }
        self.inner.doubt.notify_one();
    }

    /// The peer's checks reach our relay from there. If its NAT has bound it anew, that is where to punch.
    fn meet_behind_relay(&mut self, now: Instant, address: SocketAddr) {
        let relayed = |candidate: &Candidate| {
            candidate.kind == CandidateKind::Relayed && candidate.address.ip() == address.ip()
        };
        let servers = self.relay_addresses();
        if self.remote.iter().any(relayed) || servers.iter().any(|it| it.ip() == address.ip()) {
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
            if is_request(&datagram) && !allows(&self.inner.checks) {
                count(&self.inner.wire.counters.checks_held);
                continue;
            }
            self.inner.wire.send_stun(&self.ear, route, &datagram);
        }
    }

    fn dial(&self, at: usize) {
        let search = &self.searches[at];
        let Some(client) = &self.client else { return };
        let token = token_of(&self.plan.token, search.kind);
        let rtt = search.route.and_then(|route| search.finder.rtt(route));
        let end = (&self.inner.wire, search.slot);
        let config = endpoint::attempt(client, end, token, rtt);
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
            Outcome::Located(found) => self.relay_located(found),
            Outcome::Dialled(slot, Ok(connection)) => self.up(slot, connection),
            Outcome::Dialled(slot, Err(detail)) => {
                self.ended(slot, detail);
            }
            Outcome::Closed(slot, id, detail) => {
                let Some(search) = self.search(slot) else { return };
                if matches!(&search.stage, Stage::Up { connection, .. } if connection.stable_id() == id)
                {
                    self.ended(slot, detail);
                    self.want_relay_soon();
                }
            }
        }
    }

    fn ended(&mut self, slot: SlotId, detail: String) {
        let route = self.search(slot).and_then(|search| search.ended(now(), detail));
        route.into_iter().for_each(|route| self.inner.wire.admit(slot, route, true));
    }

    /// A connection is there: it becomes a leg.
    fn up(&mut self, slot: SlotId, connection: Connection) {
        let session = self.session.clone();
        let Some(search) = self.search(slot) else { return };
        let leg = session.attach(connection.clone(), search.kind);
        tracing::debug!(?leg, kind = search.kind.as_str(), "a UDP leg is up");
        search.connected(now(), connection.clone(), leg);
        let tell = self.tell.clone();
        tokio::spawn(async move {
            let closed = connection.closed().await.to_string();
            // The driver may be gone by then.
            drop(tell.send(Outcome::Closed(slot, connection.stable_id(), closed)).await);
        });
    }

    /// The legs of a session that is over close by themselves, once the peer has read their last bytes and words.
    async fn let_legs_end(&self) {
        let all = async {
            for search in &self.searches {
                if let Stage::Up { connection, .. } = &search.stage {
                    connection.closed().await;
                }
            }
        };
        // Some peers do not answer any more.
        let _ = tokio::time::timeout(GOODBYE, all).await;
    }

    /// Closes what is left. Paths stay for a moment, by which the peer is told.
    async fn end(&mut self) {
        self.session.when_in_doubt(None);
        if self.session.is_closed() {
            self.let_legs_end().await;
        }
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
        if let RelayStage::Asked(Asked { relay, .. }) = &self.relay {
            relay.close();
        }
        if let Some(heir) = &self.heir {
            heir.relay.close();
        }
        if let Some((_, relay, _)) = &self.retired {
            relay.close();
        }
    }
}

fn kinds(policy: UdpPolicy) -> impl Iterator<Item = LegKind> {
    let kinds = [
        (policy.direct, LegKind::UdpDirect),
        (policy.managed, LegKind::UdpManaged),
        (policy.relay, LegKind::UdpRelay),
    ];
    kinds.into_iter().filter(|(allowed, _)| *allowed).map(|(_, kind)| kind)
}

/// Takes one of what all sessions together may still do.
fn allows(allowance: &Mutex<Allowance>) -> bool {
    allowance.lock().unwrap_or_else(PoisonError::into_inner).take(now())
}
