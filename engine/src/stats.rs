//! Counters and gauges of the data plane.
//!
//! Each worker counts in its own block of relaxed atomics; [`crate::Gateway::metrics`] adds them up.
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use hdrhistogram::Histogram;

use crate::gateway::BackendKind;
use crate::relay::Direction;
use crate::{Cause, LegSide, Limits, Phase, Refusal};

/// A snapshot of everything the gateway counts.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Metrics {
    /// Where readiness comes from.
    pub backend: BackendKind,
    /// Connections accepted since the start.
    pub accepted: u64,
    /// Times `accept(2)` failed, for want of descriptors or otherwise.
    pub accept_errors: u64,
    /// Connections handed to the broker's HTTPS.
    pub foreign: u64,
    /// Connections turned away, for every [`Refusal`].
    pub refused: Vec<(Refusal, u64)>,
    /// Unfinished hellos now: those that were not complete at the first read.
    pub hellos_in_flight: usize,
    /// Legs waiting for a mate now.
    pub legs_waiting: usize,
    /// Pairs being relayed now.
    pub pairs_active: usize,
    /// Pairs started since the start.
    pub pairs_started: u64,
    /// Pairs ended, for every combination of cause and phase that has occurred.
    pub pairs_ended: Vec<(Cause, Phase, u64)>,
    /// Bytes delivered to agents' legs.
    pub client_to_agent: u64,
    /// Bytes delivered to clients' legs.
    pub agent_to_client: u64,
    /// Bytes of these two that went through a pipe.
    pub spliced: u64,
    /// Bytes of these two that were copied.
    pub copied: u64,
    /// Pipes that flows hold now.
    pub pipes_in_use: usize,
    /// Pipes kept for reuse now.
    pub pipes_pooled: usize,
    /// Smoothed round-trip times of clients' legs, microseconds: one value per sample.
    pub client_rtt_us: Histogram<u64>,
    /// Smoothed round-trip times of agents' legs, microseconds: one value per sample.
    pub agent_rtt_us: Histogram<u64>,
    /// Every relay worker, by its number.
    pub workers: Vec<WorkerLoad>,
}

/// How loaded a relay worker is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WorkerLoad {
    /// Share of the last 100 ms or so that it worked, 0 to 1. `None` if there is one worker, which has nobody to compare
    /// with and does not measure it, or if this worker has failed.
    pub busy: Option<f64>,
    /// Pairs that it relays.
    pub pairs: usize,
}

/// What the desk and all workers share: limits in force, and the gauges they are held against.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) limits: Limits,
    pub(crate) accepted: AtomicU64,
    pub(crate) accept_errors: AtomicU64,
    pub(crate) foreign: AtomicU64,
    pub(crate) hellos: AtomicUsize,
    refused: [AtomicU64; Refusal::ALL.len()],
    waiting: AtomicUsize,
    pairs: AtomicUsize,
}

impl Shared {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            accepted: AtomicU64::new(0),
            accept_errors: AtomicU64::new(0),
            foreign: AtomicU64::new(0),
            hellos: AtomicUsize::new(0),
            refused: Default::default(),
            waiting: AtomicUsize::new(0),
            pairs: AtomicUsize::new(0),
        }
    }

    pub(crate) fn refused(&self, refusal: Refusal) {
        self.refused[refusal as usize].fetch_add(1, Relaxed);
    }

    /// Takes a place in the waiting room; `false` if there is none.
    pub(crate) fn enter_waiting(&self) -> bool {
        enter(&self.waiting, self.limits.waiting_legs_max)
    }

    pub(crate) fn leave_waiting(&self) {
        self.waiting.fetch_sub(1, Relaxed);
    }

    /// Takes a place for a pair; `false` if there is none.
    pub(crate) fn enter_pair(&self) -> bool {
        enter(&self.pairs, self.limits.pairs_max)
    }

    pub(crate) fn leave_pair(&self) {
        self.pairs.fetch_sub(1, Relaxed);
    }

    /// Everything that is counted, over all workers.
    pub(crate) fn metrics<'a>(
        &self,
        backend: BackendKind,
        workers: impl Iterator<Item = &'a WorkerStats>,
        loads: Vec<WorkerLoad>,
    ) -> Metrics {
        let refused = Refusal::ALL
            .iter()
            .map(|&refusal| (refusal, self.refused[refusal as usize].load(Relaxed)));
        let mut metrics = Metrics {
            backend,
            accepted: self.accepted.load(Relaxed),
            accept_errors: self.accept_errors.load(Relaxed),
            foreign: self.foreign.load(Relaxed),
            refused: refused.collect(),
            hellos_in_flight: self.hellos.load(Relaxed),
            legs_waiting: self.waiting.load(Relaxed),
            pairs_active: self.pairs.load(Relaxed),
            pairs_started: 0,
            pairs_ended: Vec::new(),
            client_to_agent: 0,
            agent_to_client: 0,
            spliced: 0,
            copied: 0,
            pipes_in_use: 0,
            pipes_pooled: 0,
            client_rtt_us: rtt_histogram(),
            agent_rtt_us: rtt_histogram(),
            workers: loads,
        };
        let mut ended = [[0; Phase::ALL.len()]; Cause::ALL.len()];
        workers.for_each(|worker| worker.add_to(&mut metrics, &mut ended));
        for cause in Cause::ALL {
            let counts = Phase::ALL
                .iter()
                .map(|&phase| (cause, phase, ended[cause as usize][phase as usize]));
            metrics.pairs_ended.extend(counts.filter(|&(_, _, count)| count > 0));
        }
        metrics
    }
}

/// What one worker counts. Written by that worker only.
#[derive(Debug)]
pub(crate) struct WorkerStats {
    started: AtomicU64,
    ended: [[AtomicU64; Phase::ALL.len()]; Cause::ALL.len()],
    moved: [AtomicU64; 2],
    copied: AtomicU64,
    spliced: AtomicU64,
    pipes_in_use: AtomicUsize,
    pipes_pooled: AtomicUsize,
    rtt: [Mutex<Histogram<u64>>; 2],
}

impl WorkerStats {
    pub(crate) fn new() -> Self {
        Self {
            started: AtomicU64::new(0),
            ended: Default::default(),
            moved: Default::default(),
            copied: AtomicU64::new(0),
            spliced: AtomicU64::new(0),
            pipes_in_use: AtomicUsize::new(0),
            pipes_pooled: AtomicUsize::new(0),
            rtt: [Mutex::new(rtt_histogram()), Mutex::new(rtt_histogram())],
        }
    }

    pub(crate) fn pair_started(&self) {
        self.started.fetch_add(1, Relaxed);
    }

    pub(crate) fn pair_ended(&self, cause: Cause, phase: Phase) {
        self.ended[cause as usize][phase as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn moved(&self, direction: Direction, copied: usize, spliced: usize) {
        self.moved[direction as usize].fetch_add((copied + spliced) as u64, Relaxed);
        self.copied.fetch_add(copied as u64, Relaxed);
        self.spliced.fetch_add(spliced as u64, Relaxed);
    }

    pub(crate) fn pipes(&self, in_use: usize, pooled: usize) {
        self.pipes_in_use.store(in_use, Relaxed);
        self.pipes_pooled.store(pooled, Relaxed);
    }

    pub(crate) fn rtt(&self, side: LegSide, smoothed_us: u32) {
        let mut histogram = self.rtt[side as usize].lock().unwrap_or_else(PoisonError::into_inner);
        histogram.saturating_record(u64::from(smoothed_us));
    }

    fn add_to(
        &self,
        metrics: &mut Metrics,
        ended: &mut [[u64; Phase::ALL.len()]; Cause::ALL.len()],
    ) {
        metrics.pairs_started += self.started.load(Relaxed);
        for (sums, counts) in ended.iter_mut().zip(&self.ended) {
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count.load(Relaxed));
        }
        metrics.client_to_agent += self.moved[Direction::ClientToAgent as usize].load(Relaxed);
        metrics.agent_to_client += self.moved[Direction::AgentToClient as usize].load(Relaxed);
        metrics.copied += self.copied.load(Relaxed);
        metrics.spliced += self.spliced.load(Relaxed);
        metrics.pipes_in_use += self.pipes_in_use.load(Relaxed);
        metrics.pipes_pooled += self.pipes_pooled.load(Relaxed);
        for (sum, side) in
            [(&mut metrics.client_rtt_us, &self.rtt[0]), (&mut metrics.agent_rtt_us, &self.rtt[1])]
        {
            let side = side.lock().unwrap_or_else(PoisonError::into_inner);
            // Same bounds by construction, so adding cannot fail.
            let _ = sum.add(&*side);
        }
    }
}

/// Longest round trip told apart; a minute is beyond every leg's user timeout.
const RTT_MAX_US: u64 = 60_000_000;
/// 1 % steps: about 30 KiB per histogram.
const RTT_DIGITS: u8 = 2;

fn rtt_histogram() -> Histogram<u64> {
    // Only nonsensical constants fail; the fallback then grows as it needs.
    Histogram::new_with_bounds(1, RTT_MAX_US, RTT_DIGITS)
        .or_else(|_| Histogram::new(RTT_DIGITS))
        .unwrap_or_else(|_| unreachable!("2 significant digits are valid"))
}

fn enter(gauge: &AtomicUsize, max: usize) -> bool {
    gauge.fetch_update(Relaxed, Relaxed, |held| (held < max).then_some(held + 1)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_and_given_back() {
        let shared = Shared::new(Limits { pairs_max: 2, ..Limits::default() });
        assert!(shared.enter_pair() && shared.enter_pair() && !shared.enter_pair());
        shared.leave_pair();
        assert!(shared.enter_pair());
    }

    #[test]
    fn metrics_add_up_over_workers() {
        let shared = Shared::new(Limits::default());
        shared.refused(Refusal::TicketExpired);
        let workers = [WorkerStats::new(), WorkerStats::new()];
        for worker in &workers {
            worker.pair_started();
            worker.pair_ended(Cause::AgentReset, Phase::HalfClosed);
            worker.moved(Direction::ClientToAgent, 10, 5);
            worker.rtt(LegSide::Agent, 1000);
        }
        let metrics = shared.metrics(BackendKind::Epoll, workers.iter(), Vec::new());
        assert_eq!(metrics.pairs_ended, [(Cause::AgentReset, Phase::HalfClosed, 2)]);
        assert_eq!((metrics.client_to_agent, metrics.copied, metrics.spliced), (30, 20, 10));
        assert_eq!((metrics.client_rtt_us.len(), metrics.agent_rtt_us.len()), (0, 2));
        assert!(metrics.refused.contains(&(Refusal::TicketExpired, 1)));
    }
}
