//! What else the machine was doing, from `/proc/stat`: printed beside every figure.

use std::fs;

use anyhow::{Context, Result};

/// The machine's CPU time by kind, in ticks since boot, over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MachineTicks {
    busy: u64,
    /// Part of `busy`.
    softirq: u64,
    idle: u64,
    steal: u64,
}

impl MachineTicks {
    /// Reads `/proc/stat`: the whole machine, and `cpu` alone (all zero without one).
    ///
    /// # Errors
    /// `/proc` is not mounted or has another shape.
    pub(crate) fn read(cpu: Option<usize>) -> Result<(MachineTicks, MachineTicks)> {
        let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        let machine = Self::parse(&text, "cpu ").context("/proc/stat has no cpu line")?;
        let one = cpu.and_then(|cpu| Self::parse(&text, &format!("cpu{cpu} ")));
        Ok((machine, one.unwrap_or_default()))
    }

    /// The line of `cpu` (proc_stat(5)): user nice system idle iowait irq softirq steal guest ...
    ///
    /// Guest time is part of user time already.
    fn parse(text: &str, cpu: &str) -> Option<MachineTicks> {
        let line = text.lines().find_map(|line| line.strip_prefix(cpu))?;
        let ticks: Vec<u64> =
            line.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = ticks[..] else {
            return None;
        };
        Some(MachineTicks {
            busy: user + nice + system + irq + softirq,
            softirq,
            idle: idle + iowait,
            steal,
        })
    }

    /// Ticks from `earlier` until this. Idle counters may step back; that counts as no time.
    pub(crate) fn since(&self, earlier: &MachineTicks) -> MachineTicks {
        MachineTicks {
            busy: self.busy.saturating_sub(earlier.busy),
            softirq: self.softirq.saturating_sub(earlier.softirq),
            idle: self.idle.saturating_sub(earlier.idle),
            steal: self.steal.saturating_sub(earlier.steal),
        }
    }

    /// Share of all CPU time spent working, 0 to 1.
    pub(crate) fn busy_share(&self) -> f64 {
        self.share(self.busy)
    }

    /// Share of all CPU time the hypervisor kept for others, 0 to 1.
    pub(crate) fn steal_share(&self) -> f64 {
        self.share(self.steal)
    }

    /// Share of all CPU time spent in softirqs, 0 to 1.
    pub(crate) fn softirq_share(&self) -> f64 {
        self.share(self.softirq)
    }

    /// Whether any time has passed.
    pub(crate) fn is_known(&self) -> bool {
        *self != MachineTicks::default()
    }

    fn share(&self, part: u64) -> f64 {
        let total = self.busy + self.idle + self.steal;
        if total == 0 { 0.0 } else { part as f64 / total as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_line_is_read_by_kind() {
        let text = "cpu  10 1 20 60 4 2 3 7 5 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        let ticks = MachineTicks::parse(text, "cpu ").unwrap();
        assert_eq!(ticks, MachineTicks { busy: 36, softirq: 3, idle: 64, steal: 7 });
        let first = MachineTicks::parse(text, "cpu0 ").unwrap();
        assert_eq!(first, MachineTicks { busy: 5, softirq: 1, idle: 2, steal: 1 });
        assert_eq!(MachineTicks::parse(text, "cpu1 "), None);
        assert_eq!(MachineTicks::parse("cpu  1 2 3\n", "cpu "), None);
        assert_eq!(MachineTicks::parse("intr 5\n", "cpu "), None);
    }

    #[test]
    fn shares_are_of_the_time_between_two_readings() {
        let earlier = MachineTicks { busy: 100, softirq: 10, idle: 100, steal: 0 };
        let later = MachineTicks { busy: 130, softirq: 30, idle: 160, steal: 10 };
        let between = later.since(&earlier);
        assert!((between.busy_share() - 0.3).abs() < 1e-9);
        assert!((between.steal_share() - 0.1).abs() < 1e-9);
        assert!((between.softirq_share() - 0.2).abs() < 1e-9);
        assert!((later.since(&later).steal_share()).abs() < 1e-9);
    }

    #[test]
    fn this_machine_can_be_read() {
        let (machine, first) = MachineTicks::read(Some(0)).unwrap();
        assert!(machine.is_known() && first.is_known());
        assert!(!MachineTicks::read(None).unwrap().1.is_known());
    }
}
