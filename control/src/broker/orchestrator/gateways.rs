//! The gateways that pairs can meet at: which are there, which one a session's next leg goes through, and how sessions leave
//! one that drains or is gone.
//!
//! The broker's own is one of them, called `local`, and always there. Another one is there while its link is; its pairs
//! outlive the link, as a broker's restart must not end them, and are given up when it says that it no longer holds them or
//! is not heard of for as long as sessions are.
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use switchback_engine::{LegSide, PairId};

use super::Orchestrator;
use super::io::{LinkId, Output};
use super::legs::Pair;
use super::sessions::{LEGS_MAX, Leg, SILENCE_MAX};
use crate::broker::limits::is_name;
use crate::nearest::{Choice, Way, nearest};
use crate::wire::{GATEWAYS_MAX, GatewayPlace, GatewayRtt, LOCAL_GATEWAY, SessionId};

/// A gateway's name.
pub(crate) type GatewayId = Arc<str>;

/// Sessions that are told to move per second: the legs that they ask for are charged to their users, 256 a second each.
const MOVES_PER_TICK: usize = 200;
/// A session that was told to move and did not is told again after this.
const TELL_AGAIN: Duration = Duration::from_secs(10);
/// Pairs believed of one gateway, whatever it says that it may hold: its default, and what all sessions take together.
const PAIRS_MAX: usize = 65_536;
/// Round trips remembered for clients without a link, 1 KiB to 4 KiB each: a user's next command asks for its session with
/// the request for its link, before it can have measured anything.
const REMEMBERED_MAX: usize = 4096;

/// A gateway that says that it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GatewayUp {
    pub(crate) name: GatewayId,
    /// `HOST:PORT`.
    pub(crate) address: String,
    pub(crate) region: Option<String>,
    pub(crate) version: String,
    pub(crate) capacity: usize,
    pub(crate) draining: bool,
}

/// A gateway, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GatewaySnapshot {
    pub(crate) name: GatewayId,
    pub(crate) address: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) version: String,
    pub(crate) link: bool,
    pub(crate) draining: bool,
    pub(crate) pairs: usize,
    pub(crate) capacity: usize,
}

#[derive(Debug)]
struct Gateway {
    /// `None`: the broker's own.
    address: Option<String>,
    region: Option<String>,
    version: String,
    capacity: usize,
    /// Pairs that it says it holds.
    reported: usize,
    draining: bool,
    /// Since when it has no link.
    down_since: Option<Instant>,
    /// While it says what it holds: the pairs that it has not named yet.
    unconfirmed: Option<HashSet<PairId>>,
}

/// All of them by name.
#[derive(Debug)]
pub(super) struct Gateways {
    table: BTreeMap<GatewayId, Gateway>,
    local: GatewayId,
    remembered: HashMap<(String, IpAddr), Vec<GatewayRtt>>,
    order: VecDeque<(String, IpAddr)>,
    /// Live pairs of sessions that no end has spoken of since this broker started.
    orphans: HashMap<SessionId, Vec<PairId>>,
}

impl Gateways {
    /// The broker's own, which may hold so many pairs.
    pub(super) fn new(capacity: usize) -> Self {
        let local: GatewayId = LOCAL_GATEWAY.into();
        let own = Gateway {
            address: None,
            region: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capacity,
            reported: 0,
            draining: false,
            down_since: None,
            unconfirmed: None,
        };
        let (remembered, order, orphans) = (HashMap::new(), VecDeque::new(), HashMap::new());
        Self { table: [(local.clone(), own)].into(), local, remembered, order, orphans }
    }

    pub(super) fn local(&self) -> GatewayId {
        self.local.clone()
    }

    /// Whether another one is there for what `this` carries.
    fn has_other(&self, this: &str) -> bool {
        self.table.iter().any(|(name, it)| &**name != this && it.is_open())
    }

    /// Whether a leg may lead through another gateway than the one at this address.
    pub(super) fn is_another_open(&self, not_via: Option<&str>) -> bool {
        self.table.values().any(|it| it.is_open() && !it.is_at(not_via))
    }

    pub(super) fn is_up(&self, name: &str) -> bool {
        self.table.get(name).is_some_and(|it| it.down_since.is_none())
    }

    fn is_draining(&self, name: &str) -> bool {
        self.table.get(name).is_some_and(|it| it.draining)
    }

    /// What ends are told; `None` while there is nothing to tell.
    pub(super) fn places(&self) -> Option<Vec<GatewayPlace>> {
        let place = |(name, it): (&GatewayId, &Gateway)| GatewayPlace {
            name: name.to_string(),
            address: it.address.clone(),
            region: it.region.clone(),
        };
        let up = self.table.iter().filter(|(_, it)| it.down_since.is_none()).map(place);
        (self.table.len() > 1).then(|| up.collect())
    }

    /// Takes in what an end without a link had measured.
    pub(super) fn remember(&mut self, user: &str, address: IpAddr, rtts: Vec<GatewayRtt>) {
        let key = (user.to_owned(), address);
        if self.remembered.insert(key.clone(), rtts).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > REMEMBERED_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.remembered.remove(&oldest);
            }
        }
    }

    pub(super) fn remembered(&self, user: &str, address: IpAddr) -> Vec<GatewayRtt> {
        let rtts = self.remembered.get(&(user.to_owned(), address));
        rtts.cloned().unwrap_or_default()
    }
}

impl Gateway {
    /// New legs may go there.
    /// Whether tickets name this address for it.
    fn is_at(&self, address: Option<&str>) -> bool {
        address.is_some_and(|address| self.address.as_deref().unwrap_or_default() == address)
    }

    const fn is_open(&self) -> bool {
        self.down_since.is_none() && !self.draining
    }
}

/// Pairs by id, counted by gateway.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    table: HashMap<PairId, Pair>,
    by_gateway: HashMap<GatewayId, usize>,
}

impl Pairs {
    pub(super) fn insert(&mut self, id: PairId, pair: Pair) {
        *self.by_gateway.entry(pair.gateway.clone()).or_default() += 1;
        if let Some(replaced) = self.table.insert(id, pair) {
            self.uncount(&replaced.gateway);
        }
    }

    pub(super) fn remove(&mut self, id: &PairId) -> Option<Pair> {
        let pair = self.table.remove(id)?;
        self.uncount(&pair.gateway);
        Some(pair)
    }

    fn uncount(&mut self, gateway: &GatewayId) {
        if let Some(count) = self.by_gateway.get_mut(gateway) {
            *count -= 1;
            if *count == 0 {
                self.by_gateway.remove(gateway);
            }
        }
    }

    pub(super) fn get(&self, id: &PairId) -> Option<&Pair> {
        self.table.get(id)
    }

    pub(super) fn get_mut(&mut self, id: &PairId) -> Option<&mut Pair> {
        self.table.get_mut(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&PairId, &Pair)> {
        self.table.iter()
    }

    fn at(&self, gateway: &str) -> usize {
        self.by_gateway.get(gateway).copied().unwrap_or(0)
    }

    fn ids_at(&self, gateway: &str) -> Vec<PairId> {
        let there = self.table.iter().filter(|(_, pair)| &*pair.gateway == gateway);
        there.map(|(id, _)| *id).collect()
    }
}

impl Orchestrator {
    // --- what is asked ---

    /// The gateway that a pair meets at.
    pub(crate) fn gateway_of(&self, pair: PairId) -> Option<&GatewayId> {
        self.pairs.get(&pair).map(|pair| &pair.gateway)
    }

    /// Every gateway, the broker's own among them.
    pub(crate) fn gateways(&self) -> Vec<GatewaySnapshot> {
        let snapshot = |(name, it): (&GatewayId, &Gateway)| GatewaySnapshot {
            name: name.clone(),
            address: it.address.clone(),
            region: it.region.clone(),
            version: it.version.clone(),
            link: it.down_since.is_none(),
            draining: it.draining,
            pairs: self.pairs.at(name).max(it.reported),
            capacity: it.capacity,
        };
        self.gateways.table.iter().map(snapshot).collect()
    }

    /// `HOST:PORT` of a gateway; `None`: it is the broker's own, or not known.
    pub(crate) fn address_of(&self, gateway: &str) -> Option<&str> {
        self.gateways.table.get(gateway)?.address.as_deref()
    }

    /// What the agent of this name measured.
    pub(crate) fn rtts_of_agent(&self, agent: &str) -> Vec<GatewayRtt> {
        self.agents.by_name(agent).map(|(_, agent)| agent.rtts.clone()).unwrap_or_default()
    }

    /// Names of the agents that offer this resource now.
    pub(crate) fn agents_of(&self, resource: &str) -> Vec<String> {
        let offers = self.agents.iter().filter(|agent| agent.service(resource).is_some());
        offers.map(|agent| agent.name.clone()).collect()
    }

    // --- choosing ---

    /// The gateway for the next leg between these ends; `not_via`: as a client says.
    pub(super) fn choose_gateway(
        &self,
        client: Option<LinkId>,
        agent: LinkId,
        not_via: Option<&str>,
    ) -> GatewayId {
        let client = client.and_then(|link| self.clients.get(&link)).map(|it| &*it.rtts);
        let agent = self.agents.get(agent).map(|it| &*it.rtts);
        let way = |rtts: Option<&[GatewayRtt]>, name: &str| {
            Way::of(rtts.and_then(|rtts| rtts.iter().find(|rtt| rtt.gateway == name)))
        };
        let choose = |usable: &dyn Fn(&Gateway) -> bool| {
            let usable = self.gateways.table.iter().filter(|(_, it)| usable(it));
            nearest(usable.map(|(name, it)| Choice {
                name,
                client: way(client, name),
                agent: way(agent, name),
                pairs: self.pairs.at(name).max(it.reported),
                capacity: it.capacity,
            }))
        };
        let chosen = choose(&|it| it.is_open() && !it.is_at(not_via))
            .or_else(|| choose(&Gateway::is_open))
            .or_else(|| choose(&|it| it.down_since.is_none()));
        let name = chosen.map(|chosen| chosen.name);
        let known = name.and_then(|name| self.gateways.table.get_key_value(name));
        known.map_or_else(|| self.gateways.local(), |(name, _)| name.clone())
    }

    /// An end says how far the gateways are. Those that are not here may yet come: after this broker's start an end may be
    /// back before they are, and does not say it again.
    pub(super) fn rtts(&mut self, link: LinkId, mut rtts: Vec<GatewayRtt>) {
        rtts.retain(|rtt| is_name(&rtt.gateway));
        rtts.truncate(GATEWAYS_MAX);
        rtts.shrink_to_fit();
        if let Some(client) = self.clients.get_mut(&link) {
            client.rtts = rtts;
        } else if let Some(agent) = self.agents.get_mut(link) {
            agent.rtts = rtts;
        }
    }

    // --- coming and going ---

    pub(super) fn gateway_up(&mut self, up: GatewayUp) {
        let GatewayUp { name, address, region, version, capacity, draining } = up;
        let gateway = Gateway {
            address: Some(address),
            region,
            version,
            capacity,
            reported: 0,
            draining,
            down_since: None,
            unconfirmed: None,
        };
        self.gateways.table.insert(name, gateway);
        self.tell_gateways();
    }

    /// Another gateway than those that are known may come.
    pub(crate) fn has_room_for_gateway(&self, name: &str) -> bool {
        self.gateways.table.contains_key(name) || self.gateways.table.len() < GATEWAYS_MAX
    }

    /// A gateway says what it holds, `last`: and that this was all.
    pub(super) fn gateway_holds(
        &mut self,
        now: Instant,
        name: &GatewayId,
        held: Vec<(PairId, Option<SessionId>, bool)>,
        last: bool,
    ) {
        if let Some(gateway) = self.gateways.table.get_mut(name)
            && gateway.unconfirmed.is_none()
        {
            gateway.unconfirmed = Some(self.pairs.ids_at(name).into_iter().collect());
        }
        for (pair, session, met) in held {
            if let Some(Gateway { unconfirmed: Some(unconfirmed), .. }) =
                self.gateways.table.get_mut(name)
            {
                unconfirmed.remove(&pair);
            }
            match (self.pairs.get(&pair), session) {
                (Some(known), _) if known.gateway == *name => {
                    if met {
                        self.pair_started(now, pair);
                    } else if known.is_warm() {
                        self.leg_waiting(pair, LegSide::Agent);
                    }
                }
                (None, Some(session)) if met => self.adopt(now, name, pair, session),
                // Whoever knew of it is gone.
                _ => self.out.push(Output::EndPairAt { gateway: name.clone(), pair }),
            }
        }
        if !last {
            return;
        }
        let Some(gateway) = self.gateways.table.get_mut(name) else { return };
        let over = gateway.unconfirmed.take().unwrap_or_default();
        for pair in over {
            // Its legs may be on their way yet.
            if self.pairs.get(&pair).is_some_and(Pair::was_there) {
                self.lose(now, pair);
            }
        }
    }

    /// Without a link a gateway is no place for new legs. Those that wait there cannot be used without its word.
    pub(super) fn gateway_down(&mut self, now: Instant, name: &GatewayId) {
        let Some(gateway) = self.gateways.table.get_mut(name) else { return };
        gateway.down_since = Some(now);
        gateway.unconfirmed = None;
        for pair in self.pairs.ids_at(name) {
            if self.pairs.get(&pair).is_some_and(|pair| !pair.is_live()) {
                self.lose(now, pair);
            }
        }
        self.tell_gateways();
    }

    pub(super) fn gateway_drains(&mut self, now: Instant, name: &GatewayId, drain: bool) {
        let Some(gateway) = self.gateways.table.get_mut(name) else { return };
        if std::mem::replace(&mut gateway.draining, drain) == drain {
            return;
        }
        if drain {
            self.send_warm_legs_away(now, name);
            self.relocate(now);
        }
    }

    /// A pair that a broker before this one made, of a session that may be known or is yet to be told of. The gateway's word
    /// is all there is for it, so it gets no more pairs than it may hold, and a session no more than it may have.
    fn adopt(&mut self, now: Instant, name: &GatewayId, pair: PairId, session: SessionId) {
        let capacity = self.gateways.table.get(name).map_or(0, |it| it.capacity.min(PAIRS_MAX));
        let pairs = &self.pairs;
        let known = |pair: &&PairId| pairs.get(pair).is_some();
        let orphans = self.gateways.orphans.get(&session);
        let orphans = orphans.map_or(0, |orphans| orphans.iter().filter(known).count());
        if self.sessions.tombstone(&session).is_some()
            || self.pairs.at(name) >= capacity
            || orphans >= LEGS_MAX
        {
            self.out.push(Output::EndPairAt { gateway: name.clone(), pair });
            return;
        }
        self.pairs.insert(pair, Pair::adopted(name.clone(), session.clone(), now));
        self.gateways.orphans.entry(session.clone()).or_default().push(pair);
        if self.sessions.get(&session).is_some() {
            self.claim(now, &session);
        }
    }

    /// A session is known again: pairs that carry it are its legs. None of them takes the place of one that this broker made.
    pub(super) fn claim(&mut self, now: Instant, id: &SessionId) {
        let Some(pairs) = self.gateways.orphans.remove(id) else { return };
        let Some(session) = self.sessions.get_mut(id) else { return };
        for pair in pairs {
            let Some(known) = self.pairs.get(&pair) else { continue };
            let gateway = known.gateway.clone();
            if session.legs.len() >= LEGS_MAX {
                self.pairs.remove(&pair);
                self.out.push(Output::EndPairAt { gateway, pair });
                continue;
            }
            session.legs.push(Leg { pair, live: true });
            session.gateway.get_or_insert(gateway);
            session.leg_started(pair, now);
        }
    }

    /// Nobody has spoken of their sessions for as long as sessions are remembered without. The oldest pair counts: another one
    /// gives no session more time.
    fn end_orphans(&mut self, now: Instant) {
        let pairs = &self.pairs;
        let oldest = |orphans: &[PairId]| {
            orphans.iter().filter_map(|pair| pairs.get(pair)).map(|it| it.age(now)).max()
        };
        let is_old = |orphans: &[PairId]| oldest(orphans).is_none_or(|age| age >= SILENCE_MAX);
        let old = self.gateways.orphans.extract_if(|_, orphans| is_old(orphans.as_slice()));
        let old: Vec<PairId> = old.flat_map(|(_, orphans)| orphans).collect();
        for pair in old {
            if let Some(Pair { gateway, .. }) = self.pairs.remove(&pair) {
                self.out.push(Output::EndPairAt { gateway, pair });
            }
        }
    }

    pub(super) fn gateway_load(&mut self, name: &str, pairs: usize) {
        if let Some(gateway) = self.gateways.table.get_mut(name) {
            gateway.reported = pairs;
        }
    }

    /// Their agents ask for others.
    fn send_warm_legs_away(&mut self, now: Instant, name: &GatewayId) {
        for pair in self.pairs.ids_at(name) {
            if self.pairs.get(&pair).is_some_and(Pair::is_warm) {
                self.out.push(Output::EndPairAt { gateway: name.clone(), pair });
                self.lose(now, pair);
            }
        }
    }

    /// Once a second: sessions leave gateways that drain, and gateways that are gone are forgotten with what they held.
    pub(super) fn tend_gateways(&mut self, now: Instant) {
        self.relocate(now);
        self.end_orphans(now);
        let gone = |it: &Gateway| {
            it.down_since.is_some_and(|at| now.saturating_duration_since(at) >= SILENCE_MAX)
        };
        let gone = self.gateways.table.iter().filter(|(_, it)| gone(it));
        let gone: Vec<_> = gone.map(|(name, _)| name.clone()).collect();
        for name in gone {
            for pair in self.pairs.ids_at(&name) {
                self.lose(now, pair);
            }
            self.gateways.table.remove(&name);
        }
    }

    /// Tells the clients of sessions on gateways that drain to ask for another leg, some at a time.
    fn relocate(&mut self, now: Instant) {
        let drains = |name: &str| self.gateways.is_draining(name) && self.gateways.has_other(name);
        if !self.gateways.table.keys().any(|name| drains(name)) {
            return;
        }
        let pairs = &self.pairs;
        let on = |pair: &PairId| pairs.get(pair).is_some_and(|pair| drains(&pair.gateway));
        let due = self.sessions.iter_mut().filter_map(|session| {
            let link = session.client?;
            let untold = session
                .told_to_move
                .is_none_or(|at| now.saturating_duration_since(at) >= TELL_AGAIN);
            let newest = session.legs.iter().rev().find(|leg| leg.live)?;
            (untold && on(&newest.pair)).then(|| {
                session.told_to_move = Some(now);
                Output::Relocate { link, session: session.grant.session.clone() }
            })
        });
        self.out.extend(due.take(MOVES_PER_TICK).collect::<Vec<_>>());
    }

    /// Every end hears which gateways there are.
    fn tell_gateways(&mut self) {
        let Some(gateways) = self.gateways.places() else { return };
        let links: Vec<_> = self.clients.keys().copied().collect();
        for link in links {
            self.out.push(Output::GatewaysAtClient { link, gateways: gateways.clone() });
        }
        let links: Vec<_> = self.agents.links().collect();
        for link in links {
            self.out.push(Output::GatewaysAtAgent { link, gateways: gateways.clone() });
        }
    }
}
