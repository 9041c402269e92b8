//! What a finder is made of and tells: its knobs, events and counters.
use std::time::Duration;

use serde::Serialize;

use super::candidate::{IceCredentials, Route};
use super::remote::RemoteLimits;
use crate::LegKind;

/// A symbolic reason, stable: `no_local_candidates`, `no_remote_candidates`, `checks_unanswered`, `consent_expired`,
/// `local_removed`.
pub type CauseText = &'static str;

/// What the owner has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinderEvent {
    /// The first pair that answered, once until [`FinderEvent::Lost`]: a QUIC client starts now.
    Reachable(Route),
    /// The pair to use: nominated, or better than the one before.
    Selected(Route),
    /// An authenticated check came from here: admit its QUIC packets. Once per route while the pair lives.
    PeerAt(Route),
    /// Nothing answers any more, or nothing ever did. The search goes on at a slower pace.
    Lost(CauseText),
}

/// The clockwork. The defaults are meant; tests turn single knobs.
#[derive(Clone, Debug)]
pub struct FinderTiming {
    /// Ta, the time between checks. 5 ms is the least that RFC 8445 section 14.2 permits; 200 checks/s of 150 bytes are
    /// 0.24 Mbit/s.
    pub pacing: Duration,
    /// Checks that may leave without waiting: as many as TCP's first flight has segments (RFC 6928).
    pub burst: u32,
    /// Waits after the first checks of a pair that nothing has come by. Both ends learn of each other at about the same time, and
    /// a check that meets the peer's NAT some milliseconds before that has been opened is lost; the one after it is not.
    pub early: [Duration; 2],
    /// Wait for the first answer after those; grows by half with each try. RFC 8445's 500 ms is meant for links of its days; an
    /// answer that comes later still counts.
    pub first_rto: Duration,
    /// Largest wait between two checks of a round.
    pub max_rto: Duration,
    /// Unanswered checks that fail a pair. 14 take 6.8 s.
    pub tries: u32,
    /// Unanswered checks in a later round.
    pub retry_tries: u32,
    /// First and largest pause before a failed pair is tried again; it grows by half.
    pub retry_first: Duration,
    /// See `retry_first`.
    pub retry_last: Duration,
    /// Failed pairs that are tried again, the best ones.
    pub retry_pairs: usize,
    /// Between consent checks on the selected pair, times 0.8-1.2 (RFC 7675 section 5.1).
    pub consent: Duration,
    /// Without an answer for that long nothing may be sent any more. RFC 7675 wants at most 30 s; the session has judged
    /// by its own bytes long before.
    pub consent_lost: Duration,
    /// Between checks that keep other good pairs open. Below the 30 s after which many NATs forget.
    pub standby: Duration,
    /// Good pairs of each base kept open besides the selected one.
    pub standbys: usize,
}

impl Default for FinderTiming {
    fn default() -> Self {
        Self {
            pacing: Duration::from_millis(5),
            burst: 10,
            early: [Duration::from_millis(5), Duration::from_millis(15)],
            first_rto: Duration::from_millis(40),
            max_rto: Duration::from_secs(1),
            tries: 14,
            retry_tries: 3,
            retry_first: Duration::from_secs(10),
            retry_last: Duration::from_secs(30),
            retry_pairs: 16,
            consent: Duration::from_secs(5),
            consent_lost: Duration::from_secs(10),
            standby: Duration::from_secs(15),
            standbys: 2,
        }
    }
}

/// What a finder is made of.
#[derive(Clone, Debug)]
pub struct FinderConfig {
    /// The leg it finds a path for; decides which remote candidates it takes.
    pub kind: LegKind,
    /// The client controls, the agent is controlled. A conflict is resolved as RFC 8445 section 7.3.1.1 says.
    pub controlling: bool,
    /// Our *base* credentials, as signalled; the finder derives those of its kind.
    pub local: IceCredentials,
    /// The peer's, likewise.
    pub remote: IceCredentials,
    /// What the peer may have us check.
    pub limits: RemoteLimits,
    /// The clockwork.
    pub timing: FinderTiming,
    /// For transaction ids, the tie-breaker and jitter. From the system's generator, unless a test sets it.
    pub seed: [u8; 32],
}

impl FinderConfig {
    /// Default limits and timing, a fresh seed.
    #[must_use]
    pub fn new(
        kind: LegKind,
        controlling: bool,
        local: IceCredentials,
        remote: IceCredentials,
    ) -> Self {
        Self {
            kind,
            controlling,
            local,
            remote,
            limits: RemoteLimits::default(),
            timing: FinderTiming::default(),
            seed: rand::random(),
        }
    }
}

/// What was sent, and what was ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FinderCounters {
    /// Checks sent.
    pub checks: u64,
    /// Checks answered by the peer.
    pub answers: u64,
    /// The peer's checks answered by us.
    pub requests: u64,
    /// Messages with our username or transaction, but a wrong signature.
    pub forged: u64,
    /// Requests that were seen before, from elsewhere.
    pub replayed: u64,
    /// Answers that came another way than the check went.
    pub astray: u64,
    /// Requests beyond the limits on answers, addresses or pairs, or from addresses nobody may be checked at.
    pub refused: u64,
    /// Error answers other than a role conflict.
    pub errors: u64,
    /// Role conflicts resolved.
    pub conflicts: u64,
}

impl FinderCounters {
    /// What should not happen between two honest ends on a quiet network, by name.
    #[must_use]
    pub const fn suspicious(&self) -> [(&'static str, u64); 5] {
        [
            ("check_forged", self.forged),
            ("check_replayed", self.replayed),
            ("check_astray", self.astray),
            ("check_refused", self.refused),
            ("check_error", self.errors),
        ]
    }
}
