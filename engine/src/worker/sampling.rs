//! Round-trip times of both legs of every pair that moved bytes, once a second, and once when a pair starts.
//!
//! `tcpi_rtt` only moves when the gateway sends and is acknowledged, so an idle pair has nothing new to say and costs nothing.
use std::time::{Duration, Instant};

use super::slots::{Joined, Legs};
use super::turn::Worker;
use crate::LegSide;
use crate::ring::rtt;
use crate::stats::WorkerStats;

/// Pairs that moved bytes since the last sample, and when the next one is due.
#[derive(Debug, Default)]
pub(crate) struct Sampling {
    moved: Vec<usize>,
    due: Option<Instant>,
}

impl Sampling {
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }
}

impl Worker {
    /// A pair moved bytes: it is sampled with the next round.
    pub(crate) fn note_moved(&mut self, key: usize) {
        let Some(joined) = self.pairs.get_mut(key) else { return };
        if std::mem::replace(&mut joined.moved, true) {
            return;
        }
        self.sampling.moved.push(key);
        if self.sampling.due.is_none() {
            self.sampling.due = Some(Instant::now() + PERIOD);
        }
    }

    /// Samples the pairs that moved, if it is time.
    pub(crate) fn sample_due(&mut self, now: Instant) {
        if self.sampling.due.is_none_or(|due| due > now) {
            return;
        }
        self.sampling.due = None;
        for key in std::mem::take(&mut self.sampling.moved) {
            // A slot's new tenant that has not moved anything is not meant.
            if self.pairs.get_mut(key).is_some_and(|joined| std::mem::take(&mut joined.moved)) {
                self.sample_pair(key);
            }
        }
    }

    /// Samples both legs of a pair now.
    pub(crate) fn sample_pair(&mut self, key: usize) {
        let Some(joined) = self.pairs.get_mut(key) else { return };
        for side in [LegSide::Client, LegSide::Agent] {
            sample_leg(joined, side, &self.legs, &self.stats);
        }
    }
}

/// What people watch; a faster rhythm would show the estimator's noise.
const PERIOD: Duration = Duration::from_secs(1);

fn sample_leg(joined: &mut Joined, side: LegSide, legs: &Legs, stats: &WorkerStats) {
    let Some(leg) = legs.get(joined.legs[side as usize]) else { return };
    // A leg that is already dead has no figures; its end is reported elsewhere.
    if let Ok(Some(sample)) = rtt(&leg.socket) {
        let figures = joined.windows[side as usize].record(sample.smoothed_us, sample.min_us);
        joined.meter.set_rtt(side, figures);
        stats.rtt(side, sample.smoothed_us);
    }
}
