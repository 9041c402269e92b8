//! What `explain` shows of a session's search for UDP paths.
use std::net::SocketAddr;

use serde::Serialize;

use super::interfaces::source_to;
use crate::LegKind;
use crate::path::{Candidate, CandidateKind, PairView};

/// What [`ShortpathView::reasons`] may say.
pub const REASONS: [&str; 20] = [
    "policy_no_udp",
    "udp_egress_blocked",
    "hard_nat",
    "no_local_candidates",
    "no_remote_candidates",
    "peer_silent",
    "consent_expired",
    "local_removed",
    "quic_failed",
    "no_relay",
    "relay_unresolved",
    "relay_unreachable",
    "relay_unauthorized",
    "relay_full",
    "relay_forbids_peer",
    "relay_mismatch",
    "relay_refused",
    "relay_no_socket",
    "bad_key",
    "searching",
];

/// The search for UDP paths of one session, as this end sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ShortpathView {
    /// Each kind of leg that policy allows.
    pub legs: Vec<LegView>,
    /// Why no direct path is up; empty while one is. Symbols, all of them in [`REASONS`].
    pub reasons: Vec<&'static str>,
    /// Our candidates that were used.
    pub local: Vec<Candidate>,
    /// The peer's, as signalled.
    pub remote: Vec<Candidate>,
    /// What was ignored or refused of the peer and of strangers who play it, by name; what never happened is left out.
    pub ignored: Vec<(&'static str, u64)>,
}

impl ShortpathView {
    /// Says of which interface each pair is: sockets are bound to none, so that is the kernel's to tell.
    pub(super) fn name_interfaces(&mut self) {
        let local = &self.local;
        for pair in self.legs.iter_mut().flat_map(|leg| &mut leg.pairs) {
            let kind = pair.local_kind;
            if !matches!(kind, CandidateKind::Host | CandidateKind::Managed) {
                continue;
            }
            let remote = pair.remote;
            pair.local_address = pair.local_address.and_then(|any| {
                let address = SocketAddr::new(source_to(remote)?, any.port());
                local.contains(&Candidate::new(kind, address)).then_some(address)
            });
        }
    }
}

/// The sums of `counts` by name, without zeros.
pub(super) fn sums(counts: impl Iterator<Item = (&'static str, u64)>) -> Vec<(&'static str, u64)> {
    let mut sums = std::collections::BTreeMap::new();
    counts.for_each(|(name, count)| *sums.entry(name).or_default() += count);
    sums.into_iter().filter(|(_, sum)| *sum > 0).collect()
}

/// One kind of leg.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LegView {
    /// Such as `udp-direct`.
    pub kind: &'static str,
    /// Where it stands.
    pub state: LegState,
    /// Why it does not carry, if it does not.
    pub reason: Option<&'static str>,
    /// What happened last, for people.
    pub detail: Option<String>,
    /// Candidate pairs, best first.
    pub pairs: Vec<PairView>,
}

/// Where a kind of leg stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LegState {
    /// Waits for its turn: a relay is asked for only when it may be needed.
    #[default]
    Waiting,
    /// No pair answers yet.
    Searching,
    /// A pair answers; QUIC is not there (yet).
    Reachable,
    /// QUIC runs, and the session has the leg.
    Up,
}

impl LegView {
    pub(super) fn new(kind: LegKind) -> Self {
        Self {
            kind: kind.as_str(),
            state: LegState::Waiting,
            reason: None,
            detail: None,
            pairs: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::PairState;

    #[test]
    fn a_pair_is_told_with_the_interface_that_its_packets_leave_from_if_that_is_offered() {
        let host = |address: &str| Candidate::new(CandidateKind::Host, address.parse().unwrap());
        let pair = |local_kind, address: &str| PairView {
            local: 0,
            local_kind,
            local_address: address.parse().ok(),
            remote: "127.0.0.9:9".parse().unwrap(),
            remote_kind: CandidateKind::Host,
            state: PairState::Checking,
            rtt_us: None,
            checks: 1,
            answers: 0,
            requests: 0,
            selected: false,
        };
        let named = |local: Vec<Candidate>| {
            let pairs = vec![
                pair(CandidateKind::Host, "192.0.2.1:5000"),
                pair(CandidateKind::Relayed, "198.51.100.7:6000"),
                pair(CandidateKind::Host, "unknown"),
            ];
            let legs = vec![LegView { pairs, ..LegView::new(LegKind::UdpDirect) }];
            let mut view = ShortpathView { legs, local, ..ShortpathView::default() };
            view.name_interfaces();
            let text = |pair: &PairView| pair.local_address.map(|it| it.to_string());
            view.legs[0].pairs.iter().map(text).collect::<Vec<_>>()
        };
        let both = named(vec![host("192.0.2.1:5000"), host("127.0.0.1:5000")]);
        let relayed = Some("198.51.100.7:6000".to_owned());
        assert_eq!(both, [Some("127.0.0.1:5000".to_owned()), relayed.clone(), None]);
        assert_eq!(named(vec![host("192.0.2.1:5000")]), [None, relayed, None]);
    }
}
