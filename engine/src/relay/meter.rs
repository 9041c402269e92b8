//! Live figures of one pair, written by its worker and read by anyone.
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::Instant;

use crate::rtt::{LegRecord, TcpInfo, who_is_slow};
use crate::{Finding, LegFigures, LegSide};

/// Live figures of one pair, shared with the owner. Reading disturbs no worker: one that finds the readings being read leaves
/// out a sample.
#[derive(Debug, Default)]
pub struct PairMeter {
    client_to_agent: AtomicU64,
    agent_to_client: AtomicU64,
    active: AtomicBool,
    /// Of the client's and the agent's leg. Boxed, because many pairs are set up and never say much.
    legs: Mutex<Option<Box<[LegRecord; 2]>>>,
}

/// What a [`PairMeter`] shows at one moment. The figures of both legs are from one sample; the byte counters are current.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairFigures {
    /// Bytes delivered to the agent's leg.
    pub client_to_agent: u64,
    /// Bytes delivered to the client's leg.
    pub agent_to_client: u64,
    /// Bytes moved within the last second or two, or are outstanding on a leg.
    pub active: bool,
    /// The client's leg; `None` until the first sample.
    pub client: Option<LegFigures>,
    /// The agent's leg; `None` until the first sample.
    pub agent: Option<LegFigures>,
}

impl PairFigures {
    /// Which part of the pair holds it back, and why we say so.
    #[must_use]
    pub fn who_is_slow(&self) -> Finding {
        who_is_slow(self.active, [self.client.as_ref(), self.agent.as_ref()])
    }
}

impl PairMeter {
    /// The figures now.
    #[must_use]
    pub fn figures(&self) -> PairFigures {
        let now = Instant::now();
        let [client, agent] = {
            let legs = self.legs.lock().unwrap_or_else(PoisonError::into_inner);
            [LegSide::Client, LegSide::Agent]
                .map(|side| legs.as_ref().and_then(|legs| legs[side as usize].figures(now)))
        };
        PairFigures {
            client_to_agent: self.client_to_agent.load(Relaxed),
            agent_to_client: self.agent_to_client.load(Relaxed),
            active: self.active.load(Relaxed),
            client,
            agent,
        }
    }

    pub(crate) fn set_bytes(&self, client_to_agent: u64, agent_to_client: u64) {
        self.client_to_agent.store(client_to_agent, Relaxed);
        self.agent_to_client.store(agent_to_client, Relaxed);
    }

    pub(crate) fn set_active(&self, active: bool) {
        self.active.store(active, Relaxed);
    }

    /// Takes in a reading of the client's and the agent's leg. The pair started at `started`.
    pub(crate) fn sampled(&self, started: Instant, now: Instant, readings: [TcpInfo; 2]) {
        let mut legs = match self.legs.try_lock() {
            Ok(legs) => legs,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        match &mut *legs {
            Some(legs) => legs.iter_mut().zip(readings).for_each(|(leg, info)| leg.next(now, info)),
            none => *none = Some(readings.map(|info| LegRecord::first(started, now, info)).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Slow;

    fn reading(rtt_us: u32) -> TcpInfo {
        TcpInfo {
            rtt_us,
            rttvar_us: 1,
            unacked_segments: 0,
            cwnd_segments: 10,
            since_ack_ms: 0,
            retransmits: 0,
            transfer: None,
            arrivals: None,
        }
    }

    #[test]
    fn figures_show_what_was_set_and_none_before() {
        let meter = PairMeter::default();
        assert_eq!(meter.figures(), PairFigures::default());
        assert_eq!(meter.figures().who_is_slow().slow, Slow::Unmeasured);
        meter.set_bytes(10, 20);
        meter.set_active(true);
        let started = Instant::now();
        meter.sampled(started, started + Duration::from_millis(100), [reading(7), reading(9)]);
        meter.sampled(started, started + Duration::from_millis(400), [reading(8), reading(5)]);
        let shown = meter.figures();
        assert_eq!((shown.client_to_agent, shown.agent_to_client, shown.active), (10, 20, true));
        let (client, agent) = (shown.client.unwrap(), shown.agent.unwrap());
        assert_eq!((client.rtt.p50_us, client.rtt.smoothed_us), (7, 8));
        assert_eq!((agent.rtt.p99_us, agent.rtt.smoothed_us), (9, 5));
        assert_eq!(client.interval, Duration::from_millis(300));
        assert_eq!(agent.interval, client.interval, "both legs are from one sample");
    }

    #[test]
    fn a_worker_never_waits_for_a_reader() {
        let meter = PairMeter::default();
        let started = Instant::now();
        let reader = meter.legs.lock().unwrap();
        meter.sampled(started, started, [reading(7), reading(9)]);
        drop(reader);
        assert_eq!(meter.figures().client, None);
        meter.sampled(started, started, [reading(7), reading(9)]);
        assert!(meter.figures().client.is_some());
    }
}
