//! Both ends' addresses as they change, and which search is given which.
use super::Driver;
use super::relays::{Asked, RelayStage};
use crate::LegKind;
use crate::path::{Candidate, CandidateKind};
use crate::session::Role;
use crate::time::now;

/// The peer's candidates kept: more than it may signal at once, and its relay.
const REMOTE_MAX: usize = 96;

impl Driver {
    pub(super) fn take_signalled(&mut self, candidates: Vec<Candidate>) {
        if names_another_network(&self.remote, &candidates) {
            self.session.network_changed();
        }
        take_in(&mut self.remote, candidates);
        self.give_candidates();
        self.permit_peers();
    }

    pub(super) fn take_known(&mut self) {
        let (changes, shifts) = {
            let known = self.known.borrow_and_update();
            (known.network_changes, known.shifts)
        };
        let (now, twin) = (now(), self.inner.wire.twin_id());
        for search in &mut self.searches {
            if !shifts.twin {
                search.finder.remove_local(now, twin);
            }
            search.finder.retire(now, shifts.retiring);
        }
        self.heed_servers();
        self.give_candidates();
        if std::mem::replace(&mut self.network_changes, changes) != changes {
            self.searches.iter_mut().for_each(|search| search.network_changed(now));
            if let RelayStage::Asked(Asked { relay, .. }) = &self.relay {
                relay.doubt();
            }
            self.want_relay_soon();
            self.session.network_changed();
        }
    }

    /// Gives every search the candidates it may use; those it has, it ignores.
    pub(super) fn give_candidates(&mut self) {
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
}

/// A message of the peer's holds all its addresses, or that of its relay: they take the place of those it named before. New
/// ones come first, as the finder may have room for one only.
fn take_in(known: &mut Vec<Candidate>, message: Vec<Candidate>) {
    let relayed = |candidate: &Candidate| candidate.kind == CandidateKind::Relayed;
    let named = |is_relayed| message.iter().any(|candidate| relayed(candidate) == is_relayed);
    let replaced = [named(false), named(true)];
    let kept = known.iter().filter(|old| !replaced[usize::from(relayed(old))]).copied();
    let kept: Vec<_> = kept.collect();
    let (old, new): (Vec<_>, Vec<_>) = message.into_iter().partition(|one| known.contains(one));
    known.clear();
    for candidate in new.into_iter().chain(kept).chain(old) {
        if known.len() < REMOTE_MAX && !known.contains(&candidate) {
            known.push(candidate);
        }
    }
}

/// The peer has an address that it did not have. Another port of one, as a NAT that binds anew gives it, is no other network,
/// nor is a relay.
fn names_another_network(known: &[Candidate], message: &[Candidate]) -> bool {
    let has = |candidate: &Candidate| {
        let ip = candidate.address.ip();
        candidate.kind == CandidateKind::Relayed || known.iter().any(|it| it.address.ip() == ip)
    };
    !message.iter().all(has)
}

/// Which of our own candidates a finder uses. In a managed network only one end has a fixed listener.
fn serves_locally(leg: LegKind, role: Role, candidate: CandidateKind) -> bool {
    match (leg, role) {
        (LegKind::UdpManaged, Role::Agent) => candidate == CandidateKind::Managed,
        _ => candidate != CandidateKind::Managed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(kind: CandidateKind, port: u16) -> Candidate {
        Candidate::new(kind, ([198, 51, 100, 7], port).into())
    }

    #[test]
    fn a_peer_is_in_another_network_when_it_has_an_address_that_it_had_not() {
        let (host, relayed) =
            (candidate(CandidateKind::Host, 1), candidate(CandidateKind::Relayed, 2));
        let moved = Candidate::new(CandidateKind::Host, ([203, 0, 113, 9], 1).into());
        assert!(names_another_network(&[], &[host]));
        assert!(names_another_network(&[host], &[host, moved]));
        for message in [&[][..], &[host], &[candidate(CandidateKind::ServerReflexive, 7), relayed]]
        {
            assert!(!names_another_network(&[host], message), "{message:?}");
        }
    }

    #[test]
    fn the_newest_addresses_of_a_peer_that_moves_for_ever_are_the_first_to_be_tried() {
        let host = |port| candidate(CandidateKind::Host, port);
        let relayed = candidate(CandidateKind::Relayed, 9);
        let mut known = vec![relayed];
        for port in 1000..2000 {
            take_in(&mut known, vec![host(1), host(port)]);
            let expected: &[_] = if port == 1000 {
                &[host(1), host(1000), relayed]
            } else {
                &[host(port), relayed, host(1)]
            };
            assert_eq!(known, expected);
        }
        take_in(&mut known, vec![candidate(CandidateKind::Relayed, 10)]);
        assert_eq!(known, [candidate(CandidateKind::Relayed, 10), host(1999), host(1)]);
        take_in(&mut known, (1..=1000).map(host).collect());
        assert_eq!(known.len(), REMOTE_MAX);
    }
}
