//! CPU time of processes, in nanoseconds, and how long a thread was kept waiting for its CPU.
//!
//! `/proc/PID/stat` counts in ticks of 10 ms and `/proc/PID/task/*/schedstat` forgets threads that
//! have ended. The process CPU clock (clock_getcpuclockid(3)) has neither fault: nanoseconds, all
//! threads, ended ones and io_uring's kernel workers included.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::ClockId;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity};
use rustix::time::{ClockId as OwnClock, clock_gettime};

use super::tree::cpu_of_ended_children;

/// CPU time used by all threads of `pid` so far, user and system.
///
/// # Errors
/// No such process, or not permitted to see it.
pub(crate) fn of_process(pid: Pid) -> Result<Duration> {
    let number = pid.as_raw_nonzero().get();
    let clock = ClockId::pid_cpu_clock_id(nix::unistd::Pid::from_raw(number))
        .with_context(|| format!("no CPU clock of process {number}: has it ended?"))?;
    let time = clock.now().with_context(|| format!("reading the CPU clock of process {number}"))?;
    Ok(Duration::from(time))
}

/// CPU time used by `pids` so far, and by their children that have ended ([`cpu_of_ended_children`]).
///
/// A process that has ended is left out: its time is its parent's ended children's then. What a
/// process started since `pids` were listed has used shows when it has ended.
///
/// # Errors
/// All of them are gone.
pub(crate) fn of_processes(pids: &[Pid]) -> Result<Duration> {
    let times: Vec<Result<Duration>> = pids.iter().map(|pid| of_process(*pid)).collect();
    if times.iter().all(Result::is_err) {
        return times.into_iter().next().unwrap_or(Ok(Duration::ZERO));
    }
    let ended: Duration = pids.iter().map(|pid| cpu_of_ended_children(*pid)).sum();
    Ok(times.into_iter().flatten().sum::<Duration>() + ended)
}

/// CPU time used by the calling thread so far.
pub(crate) fn of_this_thread() -> Duration {
    let time = clock_gettime(OwnClock::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// The CPU that `pid` is bound to, if it may use only one.
pub(crate) fn only_cpu_of(pid: Pid) -> Option<usize> {
    let allowed = sched_getaffinity(Some(pid)).ok()?;
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    cpus.next().filter(|_| cpus.next().is_none())
}

/// What kept a thread from running although it was ready, since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waits {
    /// Time on a run queue.
    pub(crate) ready: Duration,
    /// Involuntary context switches.
    pub(crate) preemptions: u64,
}

impl Waits {
    /// Of the calling thread; zero where the kernel does not tell (no CONFIG_SCHED_INFO).
    pub(crate) fn of_this_thread() -> Waits {
        let read = |name| fs::read_to_string(format!("/proc/thread-self/{name}"));
        Waits {
            ready: read("schedstat").ok().and_then(|text| ready_time(&text)).unwrap_or_default(),
            preemptions: read("status").ok().and_then(|text| preemptions(&text)).unwrap_or(0),
        }
    }

    /// From `earlier` until this.
    pub(crate) fn since(&self, earlier: &Waits) -> Waits {
        Waits {
            ready: self.ready.saturating_sub(earlier.ready),
            preemptions: self.preemptions.saturating_sub(earlier.preemptions),
        }
    }
}

/// The second number of schedstat: nanoseconds spent waiting on a run queue.
fn ready_time(schedstat: &str) -> Option<Duration> {
    schedstat.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

fn preemptions(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("nonvoluntary_ctxt_switches:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_read_from_their_files() {
        assert_eq!(ready_time("100 2500 3\n"), Some(Duration::from_nanos(2500)));
        assert_eq!(ready_time(""), None);
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t9\n";
        assert_eq!(preemptions(status), Some(9));
        assert_eq!(preemptions("Name:\tx\n"), None);
    }

    #[test]
    fn a_process_clock_counts_threads_that_have_ended() {
        let me = rustix::process::getpid();
        let before = of_process(me).unwrap();
        let spent = std::thread::spawn(|| {
            while of_this_thread() < Duration::from_millis(20) {
                std::hint::spin_loop();
            }
            of_this_thread()
        });
        let spent = spent.join().unwrap();
        assert!(of_process(me).unwrap() - before >= spent);
    }

    #[test]
    fn a_process_that_never_was_is_an_error() {
        // PID_MAX_LIMIT is 2^22.
        let beyond_pid_max = Pid::from_raw(1 << 23).unwrap();
        assert!(of_process(beyond_pid_max).is_err());
        assert!(of_processes(&[beyond_pid_max]).is_err());
        // One of several may have ended: its parent is charged.
        assert!(of_processes(&[beyond_pid_max, rustix::process::getpid()]).is_ok());
        assert_eq!(of_processes(&[]).unwrap(), Duration::ZERO);
    }
}
