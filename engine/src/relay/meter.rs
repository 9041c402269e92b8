//! Live figures of one pair, written by its worker and read by anyone.
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::{LegSide, RttFigures};

/// Live figures of one pair, shared with the owner. Reading takes no lock and disturbs no worker.
#[derive(Debug, Default)]
pub struct PairMeter {
    client_to_agent: AtomicU64,
    agent_to_client: AtomicU64,
    client_rtt: RttCell,
    agent_rtt: RttCell,
}

/// What a [`PairMeter`] shows at one moment. The fields are read one by one, not as one atomic whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PairFigures {
    /// Bytes delivered to the agent's leg.
    pub client_to_agent: u64,
    /// Bytes delivered to the client's leg.
    pub agent_to_client: u64,
    /// Round trip of the client's leg; `None` until the first sample.
    pub client_rtt: Option<RttFigures>,
    /// Round trip of the agent's leg; `None` until the first sample.
    pub agent_rtt: Option<RttFigures>,
}

impl PairMeter {
    /// The figures now.
    #[must_use]
    pub fn figures(&self) -> PairFigures {
        PairFigures {
            client_to_agent: self.client_to_agent.load(Relaxed),
            agent_to_client: self.agent_to_client.load(Relaxed),
            client_rtt: self.client_rtt.load(),
            agent_rtt: self.agent_rtt.load(),
        }
    }

    pub(crate) fn set_bytes(&self, client_to_agent: u64, agent_to_client: u64) {
        self.client_to_agent.store(client_to_agent, Relaxed);
        self.agent_to_client.store(agent_to_client, Relaxed);
    }

    pub(crate) fn set_rtt(&self, side: LegSide, figures: RttFigures) {
        match side {
            LegSide::Client => self.client_rtt.store(figures),
            LegSide::Agent => self.agent_rtt.store(figures),
        }
    }
}

/// Figures of one leg. The kernel's smoothed value is never 0 once there is one, so 0 means none yet.
#[derive(Debug, Default)]
struct RttCell {
    smoothed_us: AtomicU32,
    min_us: AtomicU32,
    p50_us: AtomicU32,
    p99_us: AtomicU32,
}

impl RttCell {
    fn load(&self) -> Option<RttFigures> {
        let smoothed_us = self.smoothed_us.load(Relaxed);
        (smoothed_us > 0).then(|| RttFigures {
            smoothed_us,
            min_us: self.min_us.load(Relaxed),
            p50_us: self.p50_us.load(Relaxed),
            p99_us: self.p99_us.load(Relaxed),
        })
    }

    fn store(&self, figures: RttFigures) {
        self.min_us.store(figures.min_us, Relaxed);
        self.p50_us.store(figures.p50_us, Relaxed);
        self.p99_us.store(figures.p99_us, Relaxed);
        self.smoothed_us.store(figures.smoothed_us, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_show_what_was_set_and_none_before() {
        let meter = PairMeter::default();
        assert_eq!(meter.figures(), PairFigures::default());
        let rtt = RttFigures { smoothed_us: 4, min_us: 1, p50_us: 2, p99_us: 3 };
        meter.set_bytes(10, 20);
        meter.set_rtt(LegSide::Agent, rtt);
        let shown = meter.figures();
        assert_eq!((shown.client_to_agent, shown.agent_to_client), (10, 20));
        assert_eq!((shown.client_rtt, shown.agent_rtt), (None, Some(rtt)));
    }
}
