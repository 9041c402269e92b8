//! What a session's search shows of itself: legs and pairs, and why no direct path is up.
use std::net::SocketAddr;

use super::Driver;
use super::relays::RelayStage;
use crate::LegKind;
use crate::path::{Candidate, PairView, TurnFailure};
use crate::underlay::UdpPolicy;
use crate::underlay::keeping::Known;
use crate::underlay::search::Search;
use crate::underlay::view::{ShortpathView, sums};

impl Driver {
    pub(super) fn look(&self) -> ShortpathView {
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
            ignored: sums(self.searches.iter().flat_map(Search::ignored)),
        };
        for pair in view.legs.iter_mut().flat_map(|leg| &mut leg.pairs) {
            pair.local_address = self.base_of(&known, pair);
        }
        view.reasons = self.reasons(&known, &view);
        view
    }

    /// Our best candidate of the pair's kind on its socket. With several interfaces it may be any of theirs.
    fn base_of(&self, known: &Known, pair: &PairView) -> Option<SocketAddr> {
        let fits = |it: &Candidate| {
            it.kind == pair.local_kind && it.address.is_ipv6() == pair.remote.is_ipv6()
        };
        let own = known.locals.iter().filter(|(_, id)| id.0 == pair.local).map(|(it, _)| *it);
        let relayed = *self.relayed.borrow();
        own.chain(relayed).find(fits).map(|candidate| candidate.address)
    }

    /// Why no direct path is up.
    fn reasons(&self, known: &Known, view: &ShortpathView) -> Vec<&'static str> {
        let up = |search: &&Search| search.is_up();
        if self.searches.iter().filter(up).any(|search| search.kind != LegKind::UdpRelay) {
            return Vec::new();
        }
        let mut reasons = Vec::new();
        let mut push = |reason| {
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        };
        if self.plan.policy == UdpPolicy::NONE {
            push("policy_no_udp");
        }
        if view.local.is_empty() {
            push("no_local_candidates");
        }
        if self.remote.is_empty() {
            push("no_remote_candidates");
        }
        known.nat_reasons().for_each(&mut push);
        view.legs.iter().filter_map(|leg| leg.reason).for_each(&mut push);
        if !self.searches.iter().any(|search| search.is_up()) {
            self.relay_reason.filter(|reason| *reason != "standby").into_iter().for_each(&mut push);
            self.relay_refuses.map(TurnFailure::as_str).into_iter().for_each(&mut push);
            if self.plan.policy.relay && self.plan.relay.is_none() {
                push("no_relay");
            }
            if matches!(self.relay, RelayStage::Nowhere) {
                push("relay_unresolved");
            }
            if reasons.is_empty() {
                reasons.push("searching");
            }
        }
        reasons
    }
}
