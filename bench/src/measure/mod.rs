//! What a run costs and how quiet the machine was meanwhile.

pub(crate) mod cpu;
pub(crate) mod host;
pub(crate) mod memory;
pub(crate) mod netns;
pub(crate) mod noise;
pub(crate) mod placement;

use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::process::Pid;
use serde::Serialize;

use self::noise::MachineTicks;

/// Reads all clocks of a run at once: the peer's processes, this thread, the machine.
#[derive(Debug)]
pub(crate) struct Meter {
    peer: Vec<Pid>,
}

/// One reading of a [`Meter`].
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    at: Instant,
    peer_cpu: Duration,
    generator_cpu: Duration,
    machine: MachineTicks,
}

/// The difference of two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Usage {
    pub(crate) wall_s: f64,
    /// CPU seconds of all processes of the peer, all threads, kernel work on their behalf included.
    pub(crate) peer_cpu_s: f64,
    /// CPU seconds of the generator's thread.
    pub(crate) generator_cpu_s: f64,
    /// Share of the machine's CPU time that the hypervisor gave to others, 0 to 1.
    pub(crate) steal_share: f64,
    /// Share of the machine's CPU time used by neither peer nor generator, 0 to 1.
    pub(crate) foreign_share: f64,
    /// Share of the machine's CPU time spent in softirq, 0 to 1. Part of it is in `peer_cpu_s`.
    pub(crate) softirq_share: f64,
}

impl Meter {
    /// A meter for a peer that runs as these processes (none for a direct connection).
    pub(crate) fn new(peer: Vec<Pid>) -> Meter {
        Meter { peer }
    }

    /// A meter for runs whose target is somewhere else.
    pub(crate) fn of_generator() -> Meter {
        Meter::new(Vec::new())
    }

    /// Reads everything; costs some 50 microseconds, most of it for `/proc/stat`.
    ///
    /// # Errors
    /// A process of the peer is gone, or `/proc/stat` cannot be read.
    pub(crate) fn read(&self) -> Result<Reading> {
        let mut peer_cpu = Duration::ZERO;
        for pid in &self.peer {
            peer_cpu += cpu::of_process(*pid)?;
        }
        Ok(Reading {
            at: Instant::now(),
            peer_cpu,
            generator_cpu: cpu::of_this_thread(),
            machine: MachineTicks::read()?,
        })
    }
}

impl Reading {
    /// What was used from `earlier` until this reading.
    pub(crate) fn since(&self, earlier: &Reading) -> Usage {
        let wall_s = self.at.duration_since(earlier.at).as_secs_f64();
        let peer_cpu_s = self.peer_cpu.saturating_sub(earlier.peer_cpu).as_secs_f64();
        let generator_cpu_s =
            self.generator_cpu.saturating_sub(earlier.generator_cpu).as_secs_f64();
        let machine = self.machine.since(&earlier.machine);
        let ours = (peer_cpu_s + generator_cpu_s) / (wall_s * host::cpus() as f64);
        Usage {
            wall_s,
            peer_cpu_s,
            generator_cpu_s,
            steal_share: machine.steal_share(),
            foreign_share: (machine.busy_share() - ours).max(0.0),
            softirq_share: machine.softirq_share(),
        }
    }
}

impl Usage {
    /// How busy the generator's thread was, 0 to 1.
    pub(crate) fn generator_share(&self) -> f64 {
        self.generator_cpu_s / self.wall_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_generator_shows_as_its_own_cpu() {
        let meter = Meter::new(vec![rustix::process::getpid()]);
        let before = meter.read().unwrap();
        let start = Instant::now();
        let mut sum = 0_u64;
        while start.elapsed() < Duration::from_millis(50) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let usage = meter.read().unwrap().since(&before);
        assert!(usage.generator_cpu_s > 0.0 && usage.generator_share() <= 1.01, "{usage:?}");
        assert!(usage.peer_cpu_s >= usage.generator_cpu_s * 0.99, "this thread is in this process");
    }
}
