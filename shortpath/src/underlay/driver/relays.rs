//! A session's allocations at its relay: when one is asked for, replaced, and given back.
mod place;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::Driver;
use crate::LegKind;
use crate::path::{Candidate, CandidateKind, LocalId, TurnConfig, TurnEvent, TurnFailure};
use crate::session::Role;
use crate::time::now;
use crate::underlay::relay::Relay;
use crate::underlay::search::Search;
use crate::underlay::whereabouts::Choice;
use crate::underlay::{RelayAccess, ShortpathPlan, UnderlayConfig};

pub(super) use place::RelayPlace;

/// An allocation, asked for or there.
pub(super) struct Asked {
    since: Instant,
    server: SocketAddr,
    pub(super) id: LocalId,
    pub(super) relay: Arc<Relay>,
    pub(super) events: mpsc::Receiver<TurnEvent>,
}

pub(super) enum RelayStage {
    /// Policy or the broker gives none.
    Never,
    /// Wanted, but nobody knows its address yet.
    Nowhere,
    /// Asked for at this time, if it is needed by then.
    At(Instant),
    Asked(Asked),
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
/// How long a direct path has lasted when a session without standby does without its relay.
const RELAY_COLD: Duration = Duration::from_secs(5);
/// An allocation stays beside its heir for so long: by then the heir's pairs are checked and used.
const RELAY_HANDOVER: Duration = Duration::from_secs(10);

/// Of the least age that mappings reach: then an allocation is replaced.
const RELAY_OLD: f64 = 0.7;
/// Where mappings end at a lesser age, allocations are not replaced but made anew when they are lost: each costs the gateway
/// a port for as long as it stays.
const RELAY_AGE_MIN: Duration = Duration::from_secs(8);

impl Driver {
    pub(super) fn want_relay_soon(&mut self) {
        match &mut self.relay {
            RelayStage::At(at) => *at = (*at).min(now()),
            RelayStage::Nowhere => self.locate_relay(),
            RelayStage::Never | RelayStage::Asked(_) => {}
        }
    }

    /// The time for a relay has come: asks, unless it can wait.
    pub(super) fn ask_relay(&mut self, now: Instant) {
        let up = |search: &Search| search.kind != LegKind::UdpRelay && search.is_up();
        let waits = self.plan.role == Role::Client && self.relay_reason.is_none();
        if self.searches.iter().any(up) && (waits || !self.plan.standby) {
            let pause = if self.plan.standby { RELAY_STANDBY } else { RELAY_RETRY };
            self.relay_reason = Some("standby");
            self.relay = RelayStage::At(now + pause);
            return;
        }
        if self.plan.relay.is_none() {
            return self.relay = RelayStage::Never;
        }
        let Some(choice) = self.relay_choice() else {
            return self.relay = RelayStage::Nowhere;
        };
        match self.open_relay(choice) {
            Some(asked) => self.relay = RelayStage::Asked(asked),
            None => {
                self.relay_reason = Some("relay_no_socket");
                self.relay = RelayStage::At(now + RELAY_RETRY);
            }
        }
    }

    fn open_relay(&self, Choice { server, tries }: Choice) -> Option<Asked> {
        let RelayAccess { username, password, .. } = self.plan.relay.clone()?;
        let config = TurnConfig { tries, ..TurnConfig::new(server, username, password) };
        let own = &self.inner.config;
        let own = UnderlayConfig { dscp: self.plan.dscp.or(own.dscp), ..own.clone() };
        match Relay::open(&self.inner.wire, config, &own) {
            Ok((id, relay, events)) => Some(Asked { since: now(), server, id, relay, events }),
            Err(error) => {
                tracing::warn!(%error, "no socket for a relay");
                None
            }
        }
    }

    pub(super) fn take_relay(&mut self, event: Option<TurnEvent>) {
        let RelayStage::Asked(Asked { id, relay, server, .. }) = &self.relay else { return };
        let (id, relay, server) = (*id, Arc::clone(relay), *server);
        let failed = match event {
            Some(TurnEvent::Allocated { relayed, .. }) => return self.use_relay(id, relayed),
            Some(TurnEvent::Renewing) => return self.reach_anew(id),
            Some(TurnEvent::Bound(_)) => return self.heed_peer(None),
            Some(TurnEvent::PeerRefused(_, failure)) => return self.heed_peer(Some(failure)),
            Some(TurnEvent::Failed(failure)) => failure.as_str(),
            None => "relay_unreachable",
        };
        self.relayed.send_replace(None);
        self.drop_relay(id, &relay);
        (self.relay_reason, self.relay_refuses) = (Some(failed), None);
        let pause = if self.relay_failed(server) { Duration::ZERO } else { RELAY_RETRY };
        self.relay = RelayStage::At(now() + pause);
    }

    /// An allocation is there: its address is a candidate of ours, and the peer's are let in.
    fn use_relay(&mut self, id: LocalId, relayed: SocketAddr) {
        self.relay_place.turns.work();
        (self.relay_reason, self.relay_refuses) = (None, None);
        let candidate = Candidate::new(CandidateKind::Relayed, relayed);
        self.relayed.send_replace(Some(candidate));
        if let Some(search) = self.relay_search() {
            search.start();
            search.finder.rename_local(now(), candidate, id);
            search.stands_by = None;
            let slot = search.slot;
            self.inner.wire.renewed(slot, id);
        }
        self.give_candidates();
        self.permit_peers();
    }

    /// A peer has its channel, or why it has none: what is no fault of ours or the peer's, and lasts, is told while no UDP leg
    /// is up. That an address is of another family (443) is none.
    fn heed_peer(&mut self, failure: Option<TurnFailure>) {
        use TurnFailure::{Forbidden, Full};
        self.relay_refuses = match (self.relay_refuses, failure) {
            (Some(Forbidden), _) | (_, Some(Forbidden)) => Some(Forbidden),
            (_, Some(Full)) => Some(Full),
            (_, None) => None,
            (before, Some(_)) => before,
        };
    }

    /// The allocation is being made anew on its socket: what is sent through it may arrive again.
    fn reach_anew(&mut self, id: LocalId) {
        self.relay_refuses = None;
        if let Some(search) = self.relay_search() {
            search.finder.check_base(now(), id);
            search.stands_by = None;
            let slot = search.slot;
            self.inner.wire.renewed(slot, id);
        }
    }

    fn relay_search(&mut self) -> Option<&mut Search> {
        self.searches.iter_mut().find(|search| search.kind == LegKind::UdpRelay)
    }

    fn drop_relay(&mut self, id: LocalId, relay: &Relay) {
        relay.close();
        if let Some(search) = self.relay_search() {
            search.finder.remove_local(now(), id);
        }
    }

    /// New credentials: an allocation that lives gets an heir, one that is to come is asked for with them.
    pub(super) fn renew_relay(&mut self, access: RelayAccess) {
        let known = self.plan.relay.as_ref().is_none_or(|old| old.username == access.username);
        if known || matches!(self.relay, RelayStage::Never) {
            return;
        }
        if self.plan.relay.as_ref().is_some_and(|old| old.server != access.server) {
            self.relay_place = RelayPlace::default();
        }
        self.plan.relay = Some(access);
        self.locate_relay();
        self.ask_heir();
    }

    /// Where the NAT ends mappings at an age, an allocation gets its heir before its own mapping ends.
    pub(super) fn replace_old_relay(&mut self, now: Instant) {
        if let Some(at) = self.relay_is_old_at()
            && at <= now
        {
            self.ask_heir();
            if let RelayStage::Asked(asked) = &mut self.relay {
                // Another try half a life later, should there be no heir.
                asked.since += at.saturating_duration_since(asked.since) / 2;
            }
        }
    }

    /// When the present allocation's mapping is old.
    pub(super) fn relay_is_old_at(&self) -> Option<Instant> {
        let RelayStage::Asked(asked) = &self.relay else { return None };
        let least = self.known.borrow().shifts.least.filter(|_| self.heir.is_none())?;
        Some(asked.since + old_after(least)?)
    }

    /// The heir takes over once it is there; without one, the present allocation stays for as long as the server lets it.
    pub(super) fn take_heir(&mut self, event: Option<TurnEvent>) {
        match event {
            Some(TurnEvent::Bound(_) | TurnEvent::PeerRefused(..) | TurnEvent::Renewing) => {}
            Some(TurnEvent::Allocated { relayed, .. }) => {
                let Some(heir) = self.heir.take() else { return };
                self.retire_relay();
                let id = heir.id;
                let before = std::mem::replace(&mut self.relay, RelayStage::Asked(heir));
                if let RelayStage::Asked(Asked { id, relay, .. }) = before {
                    let least = self.known.borrow().shifts.least;
                    let stays = least.map_or(RELAY_HANDOVER, |least| RELAY_HANDOVER.min(least / 4));
                    self.retired = Some((id, relay, now() + stays));
                }
                self.use_relay(id, relayed);
            }
            Some(TurnEvent::Failed(_)) | None => {
                if let Some(heir) = self.heir.take() {
                    heir.relay.close();
                }
            }
        }
    }

    /// Without standby, a relay that was asked for before a direct path was there is given back once that has lasted.
    pub(super) fn give_relay_back(&mut self, now: Instant) {
        let RelayStage::Asked(Asked { id, relay, .. }) = &self.relay else { return };
        let (id, relay) = (*id, Arc::clone(relay));
        let lasts = |search: &Search| {
            search.kind != LegKind::UdpRelay
                && search.up_since().is_some_and(|since| since + RELAY_COLD <= now)
        };
        let leg = self.relay_search().and_then(|search| search.leg());
        if !self.searches.iter().any(lasts) || leg.is_some_and(|leg| !self.session.let_go(leg)) {
            return;
        }
        if let Some(heir) = self.heir.take() {
            heir.relay.close();
        }
        self.retire_relay();
        self.relayed.send_replace(None);
        self.drop_relay(id, &relay);
        self.relay_reason = Some("standby");
        self.relay = RelayStage::At(now + RELAY_RETRY);
    }

    pub(super) fn retire_relay(&mut self) {
        if let Some((id, relay, _)) = self.retired.take() {
            self.drop_relay(id, &relay);
        }
    }

    pub(super) fn permit_peers(&self) {
        let RelayStage::Asked(Asked { relay, .. }) = &self.relay else { return };
        let reachable = self.remote.iter().filter(|candidate| {
            candidate.kind.serves(LegKind::UdpRelay)
                && (self.inner.config.loopback || !candidate.address.ip().is_loopback())
        });
        reachable.for_each(|candidate| relay.permit(candidate.address));
    }
}

/// The age at which an allocation is replaced where mappings reach `least`; `None` where that is too little.
fn old_after(least: Duration) -> Option<Duration> {
    (least >= RELAY_AGE_MIN).then(|| least.mul_f64(RELAY_OLD))
}

/// When a session asks for its relay, if it may.
pub(super) fn relay_at_first(plan: &ShortpathPlan) -> RelayStage {
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

pub(super) async fn relay_event(relay: &mut RelayStage) -> Option<TurnEvent> {
    match relay {
        RelayStage::Asked(asked) => asked.events.recv().await,
        RelayStage::Never | RelayStage::Nowhere | RelayStage::At(_) => std::future::pending().await,
    }
}

pub(super) async fn heir_event(heir: &mut Option<Asked>) -> Option<TurnEvent> {
    match heir {
        Some(heir) => heir.events.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_not_replaced_where_mappings_end_before_eight_seconds() {
        let s = Duration::from_secs;
        assert_eq!([s(0), s(4), s(8) - s(1) / 1000].map(old_after), [None; 3]);
        assert_eq!([s(10), s(600)].map(old_after), [Some(s(7)), Some(s(420))]);
    }
}
