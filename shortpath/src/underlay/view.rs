//! What `explain` shows of a session's search for UDP paths.
use serde::Serialize;

use crate::LegKind;
use crate::path::{Candidate, PairView};

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
