//! TCP_INFO of both legs of every pair that moves bytes, when [`crate::rtt::Rounds`] says so.
//!
//! `tcpi_rtt` only moves when the gateway sends and is acknowledged, so an idle pair has nothing new to say and costs nothing.
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::slots::{Joined, Legs};
use super::turn::Worker;
use crate::LegSide;
use crate::ring::tcp_info;
use crate::rtt::TcpInfo;
use crate::stats::WorkerStats;

impl Worker {
    /// A pair moved bytes.
    pub(crate) fn note_moved(&mut self, key: usize) {
        let Some(joined) = self.pairs.get_mut(key) else { return };
        if joined.sampling.note_moved() {
            joined.meter.set_active(true);
            self.sampling.enter(Instant::now(), key, &mut joined.sampling);
        }
    }

    /// Samples the pairs whose turn it is, if any.
    pub(crate) fn sample_due(&mut self, now: Instant) {
        let Some(mut batch) = self.sampling.batch(now) else { return };
        let began = cpu_time();
        let mut legs = 0;
        while let Some(visit) = self.sampling.next(&mut batch) {
            let joined = self.pairs.get_mut(visit.key as usize);
            let Some(joined) = joined.filter(|joined| joined.sampling.expects(&visit)) else {
                continue; // that pair has ended
            };
            legs += 2;
            let outstanding = sample(joined, now, &self.legs, &self.stats);
            if !self.sampling.sampled(&mut batch, visit, &mut joined.sampling, outstanding) {
                joined.meter.set_active(false);
            }
        }
        let cost = cpu_time().saturating_sub(began);
        self.sampling.finish(&batch, cost);
        self.stats.sampled(legs, cost);
    }
}

/// Samples both legs of a pair; returns whether one of them has bytes outstanding.
fn sample(joined: &mut Joined, now: Instant, legs: &Legs, stats: &WorkerStats) -> bool {
    let [client, agent] = joined.legs.map(|slot| reading(legs, slot));
    // A leg that is already dead has no figures; its end is reported elsewhere.
    let (Some(client), Some(agent)) = (client, agent) else { return false };
    joined.meter.sampled(joined.started, now, [client, agent]);
    for (side, info) in [(LegSide::Client, client), (LegSide::Agent, agent)] {
        if info.rtt_us > 0 {
            stats.rtt(side, info.rtt_us);
        }
    }
    client.outstanding() || agent.outstanding()
}

fn reading(legs: &Legs, slot: usize) -> Option<TcpInfo> {
    tcp_info(&legs.get(slot)?.socket).ok()
}

/// CPU time of this thread: what others take while it is preempted does not count as the cost of a sample.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}
