//! Counters and gauges of the data plane.
//!
//! Each worker counts in its own block of relaxed atomics; [`crate::Gateway::metrics`] adds them up.
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::gateway::{BackendKind, Places};
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
    /// Times a worker spun before it would have slept.
    pub busy_polls: u64,
    /// Time workers spent spinning.
    pub busy_poll_time: Duration,
    /// Legs sampled (`TCP_INFO`) since the start.
    pub samples: u64,
    /// CPU time this took, over all workers.
    pub sampling_time: Duration,
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
    refused: [AtomicU64; Refusal::ALL.len()],
    places: Places,
}

impl Shared {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            accepted: AtomicU64::new(0),
            accept_errors: AtomicU64::new(0),
            foreign: AtomicU64::new(0),
            refused: Default::default(),
            places: Places::default(),
        }
    }

    pub(crate) fn refused(&self, refusal: Refusal) {
        self.refused[refusal as usize].fetch_add(1, Relaxed);
    }

    /// Takes a place for an unfinished hello; `false` if there is none.
    pub(crate) fn enter_hello(&self) -> bool {
        self.places.enter_hello(&self.limits)
    }

    pub(crate) fn leave_hello(&self) {
        self.places.leave_hello();
    }

    /// Takes a place in the waiting room; `false` if there is none.
    pub(crate) fn enter_waiting(&self) -> bool {
        self.places.enter_waiting(&self.limits)
    }

    pub(crate) fn leave_waiting(&self) {
        self.places.leave_waiting();
    }

    /// Takes a place for a pair; `false` if there is none.
    pub(crate) fn enter_pair(&self) -> bool {
        self.places.enter_pair(&self.limits)
    }

    pub(crate) fn leave_pair(&self) {
        self.places.leave_pair();
    }

    /// Takes a place for a refused connection to linger in; `false` if there is none.
    pub(crate) fn enter_farewell(&self) -> bool {
        self.places.enter_farewell(&self.limits)
    }

    pub(crate) fn leave_farewell(&self) {
        self.places.leave_farewell();
    }

    /// Takes a place for a connection of the broker's HTTPS; `false` if there is none.
    pub(crate) fn enter_foreign(&self) -> bool {
        self.places.enter_foreign(&self.limits)
    }

    pub(crate) fn leave_foreign(&self) {
        self.places.leave_foreign();
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
        let [hellos_in_flight, legs_waiting, pairs_active] = self.places.taken();
        let mut metrics = Metrics {
            backend,
            accepted: self.accepted.load(Relaxed),
            accept_errors: self.accept_errors.load(Relaxed),
            foreign: self.foreign.load(Relaxed),
            refused: refused.collect(),
            hellos_in_flight,
            legs_waiting,
            pairs_active,
            pairs_started: 0,
            pairs_ended: Vec::new(),
            client_to_agent: 0,
            agent_to_client: 0,
            spliced: 0,
            copied: 0,
            pipes_in_use: 0,
            pipes_pooled: 0,
            busy_polls: 0,
            busy_poll_time: Duration::ZERO,
            samples: 0,
            sampling_time: Duration::ZERO,
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
    spins: AtomicU64,
    spun_ns: AtomicU64,
    samples: AtomicU64,
    sampling_ns: AtomicU64,
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
            spins: AtomicU64::new(0),
            spun_ns: AtomicU64::new(0),
            samples: AtomicU64::new(0),
            sampling_ns: AtomicU64::new(0),
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

    pub(crate) fn spun(&self, time: Duration) {
        self.spins.fetch_add(1, Relaxed);
        self.spun_ns.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(crate) fn sampled(&self, legs: u64, cost: Duration) {
        self.samples.fetch_add(legs, Relaxed);
        self.sampling_ns.fetch_add(u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX), Relaxed);
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
        metrics.busy_polls += self.spins.load(Relaxed);
        metrics.busy_poll_time += Duration::from_nanos(self.spun_ns.load(Relaxed));
        metrics.samples += self.samples.load(Relaxed);
        metrics.sampling_time += Duration::from_nanos(self.sampling_ns.load(Relaxed));
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

#[cfg(test)]
mod tests {
    use super::*;

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
            worker.sampled(2, Duration::from_micros(3));
        }
        let metrics = shared.metrics(BackendKind::Epoll, workers.iter(), Vec::new());
        assert_eq!(metrics.pairs_ended, [(Cause::AgentReset, Phase::HalfClosed, 2)]);
        assert_eq!((metrics.client_to_agent, metrics.copied, metrics.spliced), (30, 20, 10));
        assert_eq!((metrics.client_rtt_us.len(), metrics.agent_rtt_us.len()), (0, 2));
        assert_eq!((metrics.samples, metrics.sampling_time), (4, Duration::from_micros(6)));
        assert!(metrics.refused.contains(&(Refusal::TicketExpired, 1)));
    }
}
