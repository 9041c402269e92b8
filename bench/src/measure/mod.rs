//! What a run costs and how quiet the machine was meanwhile.

pub(crate) mod cpu;
pub(crate) mod host;
pub(crate) mod memory;
pub(crate) mod netns;
pub(crate) mod noise;
pub(crate) mod placement;
pub(crate) mod threads;
pub(crate) mod tree;
mod veth;

use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::process::Pid;
use serde::Serialize;

use self::cpu::Waits;
use self::noise::MachineTicks;
use self::threads::{ThreadTimes, ThreadUsage};

/// Reads all clocks of a run at once: the peer's processes, this thread, the machine.
#[derive(Debug)]
pub(crate) struct Meter {
    peer: Vec<Pid>,
    /// The one CPU the peer is bound to, if it is bound to one.
    relay_cpu: Option<usize>,
}

/// One reading of a [`Meter`], to be compared with a later one.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    at: Instant,
    peer_cpu: Duration,
    generator_cpu: Duration,
    generator_waits: Waits,
    machine: MachineTicks,
    relay: MachineTicks,
    threads: ThreadTimes,
}

/// The difference of two readings. Shares are 0 to 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Usage {
    pub(crate) wall_s: f64,
    /// CPU seconds of all processes of the peer, all threads, kernel work on their behalf included.
    pub(crate) peer_cpu_s: f64,
    /// CPU seconds of the generator's thread.
    pub(crate) generator_cpu_s: f64,
    /// Share of the time that the generator's thread was ready to run and was not let.
    pub(crate) generator_wait_share: f64,
    /// How often the generator's thread was taken off its CPU against its will.
    pub(crate) generator_preemptions: u64,
    /// Share of the machine's CPU time that the hypervisor gave to others.
    pub(crate) steal_share: f64,
    /// Share of the machine's CPU time used by neither peer nor generator.
    pub(crate) foreign_share: f64,
    /// Share of the machine's CPU time spent in softirqs, where TCP over loopback does most of its
    /// work. It is part of the CPU seconds above wherever it ran inside a system call.
    pub(crate) softirq_share: f64,
    /// The same of the peer's own CPU, if it is bound to one.
    pub(crate) relay_softirq_share: Option<f64>,
    /// The peer's busiest threads, at most 5, busiest first.
    pub(crate) threads: Vec<ThreadUsage>,
}

impl Meter {
    /// A meter for a peer that runs as these processes (none for a direct connection).
    pub(crate) fn new(peer: Vec<Pid>) -> Meter {
        let relay_cpu = peer.first().and_then(|pid| cpu::only_cpu_of(*pid));
        Meter { peer, relay_cpu }
    }

    /// A meter for runs whose target is somewhere else.
    pub(crate) fn of_generator() -> Meter {
        Meter::new(Vec::new())
    }

    /// Reads everything; costs some 100 microseconds, and 20 more per thread of the peer.
    ///
    /// # Errors
    /// All processes of the peer are gone, or `/proc/stat` cannot be read.
    pub(crate) fn begin(&self) -> Result<Reading> {
        // What is slow to read comes first, outside the measured time.
        let threads = ThreadTimes::read(&self.peer);
        self.read(threads)
    }

    /// What was used since `begun`.
    ///
    /// # Errors
    /// As [`Meter::begin`].
    pub(crate) fn used_since(&self, begun: &Reading) -> Result<Usage> {
        let mut now = self.read(ThreadTimes::default())?;
        now.threads = ThreadTimes::read(&self.peer);
        Ok(now.since(begun))
    }

    fn read(&self, threads: ThreadTimes) -> Result<Reading> {
        let (machine, relay) = MachineTicks::read(self.relay_cpu)?;
        let generator_waits = Waits::of_this_thread();
        let peer_cpu = cpu::of_processes(&self.peer)?;
        Ok(Reading {
            at: Instant::now(),
            peer_cpu,
            generator_cpu: cpu::of_this_thread(),
            generator_waits,
            machine,
            relay,
            threads,
        })
    }
}

impl Reading {
    fn since(&self, earlier: &Reading) -> Usage {
        let wall = self.at.duration_since(earlier.at);
        let wall_s = wall.as_secs_f64();
        let peer_cpu_s = self.peer_cpu.saturating_sub(earlier.peer_cpu).as_secs_f64();
        let generator_cpu_s =
            self.generator_cpu.saturating_sub(earlier.generator_cpu).as_secs_f64();
        let waits = self.generator_waits.since(&earlier.generator_waits);
        let machine = self.machine.since(&earlier.machine);
        let relay = self.relay.since(&earlier.relay);
        let ours = (peer_cpu_s + generator_cpu_s) / (wall_s * host::cpus() as f64);
        Usage {
            wall_s,
            peer_cpu_s,
            generator_cpu_s,
            generator_wait_share: waits.ready.as_secs_f64() / wall_s,
            generator_preemptions: waits.preemptions,
            steal_share: machine.steal_share(),
            foreign_share: (machine.busy_share() - ours).max(0.0),
            softirq_share: machine.softirq_share(),
            relay_softirq_share: relay.is_known().then(|| relay.softirq_share()),
            threads: self.threads.busiest_since(&earlier.threads, wall),
        }
    }
}

impl Usage {
    /// How busy the generator's thread was, 0 to 1.
    pub(crate) fn generator_share(&self) -> f64 {
        self.generator_cpu_s / self.wall_s
    }

    /// Both together, for a measurement in slices: times add up, shares are weighted by time, and
    /// the threads are those of the longer one.
    pub(crate) fn and(self, other: Usage) -> Usage {
        if self.wall_s == 0.0 {
            return other;
        }
        let wall_s = self.wall_s + other.wall_s;
        let mean = |a: f64, b: f64| (a * self.wall_s + b * other.wall_s) / wall_s;
        Usage {
            wall_s,
            peer_cpu_s: self.peer_cpu_s + other.peer_cpu_s,
            generator_cpu_s: self.generator_cpu_s + other.generator_cpu_s,
            generator_wait_share: mean(self.generator_wait_share, other.generator_wait_share),
            generator_preemptions: self.generator_preemptions + other.generator_preemptions,
            steal_share: mean(self.steal_share, other.steal_share),
            foreign_share: mean(self.foreign_share, other.foreign_share),
            softirq_share: mean(self.softirq_share, other.softirq_share),
            relay_softirq_share: self
                .relay_softirq_share
                .zip(other.relay_softirq_share)
                .map(|(a, b)| mean(a, b)),
            threads: if self.wall_s >= other.wall_s { self.threads } else { other.threads },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_generator_shows_as_its_own_cpu() {
        let meter = Meter::new(vec![rustix::process::getpid()]);
        let before = meter.begin().unwrap();
        let start = Instant::now();
        let mut sum = 0_u64;
        while start.elapsed() < Duration::from_millis(50) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let usage = meter.used_since(&before).unwrap();
        assert!(usage.generator_cpu_s > 0.0 && usage.generator_share() <= 1.01, "{usage:?}");
        assert!(usage.peer_cpu_s >= usage.generator_cpu_s * 0.99, "this thread is in this process");
        assert!(!usage.threads.is_empty(), "{usage:?}");
    }

    #[test]
    fn slices_add_up_and_their_shares_are_weighted_by_time() {
        let slice = |wall_s, steal_share| Usage {
            wall_s,
            peer_cpu_s: 1.0,
            steal_share,
            relay_softirq_share: Some(0.5),
            ..Usage::default()
        };
        let both = Usage::default().and(slice(1.0, 0.4)).and(slice(3.0, 0.0));
        assert!((both.wall_s - 4.0).abs() < 1e-9 && (both.peer_cpu_s - 2.0).abs() < 1e-9);
        assert!((both.steal_share - 0.1).abs() < 1e-9);
        assert_eq!(both.relay_softirq_share, Some(0.5));
    }
}
