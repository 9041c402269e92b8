//! CPU time of processes, in nanoseconds.
//!
//! `/proc/PID/stat` counts in ticks of 10 ms and `/proc/PID/task/*/schedstat` forgets threads that
//! have ended. The process CPU clock (clock_getcpuclockid(3)) has neither fault: nanoseconds, all
//! threads, ended ones and io_uring's kernel workers included.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::ClockId;
use rustix::process::Pid;
use rustix::time::{ClockId as OwnClock, clock_gettime};

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

/// CPU time used by the calling thread so far.
pub(crate) fn of_this_thread() -> Duration {
    let time = clock_gettime(OwnClock::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
