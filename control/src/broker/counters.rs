//! What the broker counts.
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::broker::moves::Moves;
use crate::code::{Code, Fault};
use crate::wire::LossCounts;

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.add_many(1);
    }

    pub(crate) fn add_many(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One counter per code.
#[derive(Debug)]
pub(crate) struct PerCode(Box<[Counter]>);

impl Default for PerCode {
    fn default() -> Self {
        Self(Code::ALL.iter().map(|_| Counter::default()).collect())
    }
}

impl PerCode {
    pub(crate) fn add(&self, code: Code) {
        self.add_many(code, 1);
    }

    pub(crate) fn add_many(&self, code: Code, count: u64) {
        if let Some(counter) = Code::ALL.iter().position(|known| *known == code) {
            self.0[counter].add_many(count);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Code, u64)> {
        Code::ALL.iter().copied().zip(self.0.iter().map(Counter::get))
    }
}

/// Sums of what ends of sessions count about loss: clients', agents'.
#[derive(Debug, Default)]
pub(crate) struct Losses([LossCounters; 2]);

#[derive(Debug, Default)]
struct LossCounters {
    dup_sent: Counter,
    dup_bytes: Counter,
    dup_won: Counter,
    ms_saved: Counter,
    black_holes: Counter,
    datagrams_dropped: Counter,
}

impl Losses {
    pub(crate) fn add(&self, by_client: bool, counted: &LossCounts) {
        let sums = &self.0[usize::from(!by_client)];
        sums.dup_sent.add_many(counted.dup_sent);
        sums.dup_bytes.add_many(counted.dup_bytes);
        sums.dup_won.add_many(counted.dup_won);
        sums.ms_saved.add_many(counted.ms_saved);
        sums.black_holes.add_many(counted.black_holes);
        sums.datagrams_dropped.add_many(counted.datagrams_dropped);
    }

    /// Clients' sums and agents'.
    pub(crate) fn sums(&self) -> [LossCounts; 2] {
        [&self.0[0], &self.0[1]].map(|sums| LossCounts {
            dup_sent: sums.dup_sent.get(),
            dup_bytes: sums.dup_bytes.get(),
            dup_won: sums.dup_won.get(),
            ms_saved: sums.ms_saved.get(),
            black_holes: sums.black_holes.get(),
            datagrams_dropped: sums.datagrams_dropped.get(),
        })
    }
}

/// Everything counted since the start, besides what the gateway counts.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Refusals and ends told to anyone, by code.
    pub(crate) faults: PerCode,
    /// API answers with an error, by code.
    pub(crate) api_errors: PerCode,
    /// API answers without.
    pub(crate) api_ok: Counter,
    /// Sessions granted.
    pub(crate) sessions_granted: Counter,
    /// Sessions that left the registry, by code.
    pub(crate) sessions_over: PerCode,
    /// HTTPS connections turned away because there were too many.
    pub(crate) connections_refused: Counter,
    /// HTTPS connections turned away because their source had too many.
    pub(crate) source_refused: Counter,
    /// TLS handshakes that failed or took too long.
    pub(crate) handshakes_failed: Counter,
    /// Links closed because the peer did not drain them.
    pub(crate) links_overrun: Counter,
    /// Renewed certificates that are used since.
    pub(crate) certificates_reloaded: Counter,
    /// Times that the certificate files held nothing usable.
    pub(crate) certificates_refused: Counter,
    /// Moves of sessions between transports.
    pub(crate) moves: Moves,
    /// Moves that are no events, as their sessions had told of so many.
    pub(crate) events_left_out: Counter,
    /// What ends of sessions count about loss.
    pub(crate) losses: Losses,
}

impl Counters {
    /// Counts a refusal on its way to someone.
    pub(crate) fn fault(&self, fault: &Fault) {
        self.faults.add(fault.code);
    }
}
