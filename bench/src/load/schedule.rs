//! When each message is meant to be sent: an open-loop schedule, fixed before the first answer.
//!
//! Pure: times are nanoseconds since the start of the run. The schedule never looks at answers, so
//! a stalled target cannot slow it down (no coordinated omission).

use clap::ValueEnum;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

/// How messages are spread over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Arrivals {
    /// Independent users: exponential gaps with the wanted mean.
    #[default]
    Poisson,
    /// A metronome: equal gaps.
    Even,
}

/// One message to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    /// Intended send time in nanoseconds since the start.
    pub(crate) at_ns: u64,
    /// Index of the connection that carries it.
    pub(crate) connection: usize,
}

/// An endless, reproducible sequence of messages: the same seed gives every peer the same load.
#[derive(Debug)]
pub(crate) struct Schedule {
    arrivals: Arrivals,
    mean_gap_ns: f64,
    connections: usize,
    rng: SmallRng,
    next_ns: f64,
    sent: usize,
}

impl Schedule {
    /// `rate` messages per second in total (> 0), dealt in turn to `connections` (> 0) connections.
    pub(crate) fn new(arrivals: Arrivals, rate: f64, connections: usize, seed: u64) -> Schedule {
        let mean_gap_ns = 1e9 / rate;
        Schedule {
            arrivals,
            mean_gap_ns,
            connections: connections.max(1),
            rng: SmallRng::seed_from_u64(seed),
            next_ns: 0.0,
            sent: 0,
        }
    }
}

impl Iterator for Schedule {
    type Item = Due;

    fn next(&mut self) -> Option<Due> {
        let due = Due { at_ns: self.next_ns as u64, connection: self.sent % self.connections };
        self.sent += 1;
        self.next_ns += match self.arrivals {
            Arrivals::Even => self.mean_gap_ns,
            // Inverse transform; 1 - u is in (0, 1], so the logarithm is finite.
            Arrivals::Poisson => -self.mean_gap_ns * (1.0 - self.rng.random::<f64>()).ln(),
        };
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_arrivals_are_a_metronome_dealt_in_turn() {
        let dues: Vec<Due> = Schedule::new(Arrivals::Even, 1000.0, 2, 1).take(4).collect();
        let expected: Vec<Due> =
            (0..4).map(|i| Due { at_ns: i * 1_000_000, connection: (i % 2) as usize }).collect();
        assert_eq!(dues, expected);
    }

    #[test]
    fn poisson_arrivals_hold_the_rate_and_vary_the_gaps() {
        let times: Vec<u64> = Schedule::new(Arrivals::Poisson, 10_000.0, 1, 7)
            .take(100_000)
            .map(|d| d.at_ns)
            .collect();
        let gaps: Vec<f64> = times.windows(2).map(|w| (w[1] - w[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        assert!((mean / 100_000.0 - 1.0).abs() < 0.02, "mean gap {mean} ns");
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!(
            (variance.sqrt() / mean - 1.0).abs() < 0.05,
            "an exponential's deviation is its mean"
        );
        assert!(times.is_sorted());
    }

    #[test]
    fn one_seed_gives_every_peer_the_same_load() {
        let take =
            |seed| Schedule::new(Arrivals::Poisson, 500.0, 3, seed).take(50).collect::<Vec<_>>();
        assert_eq!(take(42), take(42));
        assert_ne!(take(42), take(43));
    }
}
