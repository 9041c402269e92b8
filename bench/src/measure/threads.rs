//! CPU time of each thread of the peer: which of them is the busy one.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::Pid;
use serde::Serialize;

/// Threads shown: a relay has one busy thread, or a few.
const BUSIEST: usize = 5;

/// Below this share of a core a thread is not worth a line.
const SHARE_MIN: f64 = 0.001;

/// CPU time of every living thread of some processes, io_uring's kernel workers included.
#[derive(Clone, Debug, Default)]
pub(crate) struct ThreadTimes {
    by_tid: HashMap<u32, (String, Duration)>,
}

/// One thread's part in a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ThreadUsage {
    /// At most 15 bytes, as the kernel keeps it.
    pub(crate) name: String,
    /// Share of one core, 0 to 1.
    pub(crate) cpu_share: f64,
}

impl ThreadTimes {
    /// Reads `/proc/PID/task`; threads that end meanwhile, or may not be seen, are left out.
    pub(crate) fn read(pids: &[Pid]) -> ThreadTimes {
        let mut by_tid = HashMap::new();
        for pid in pids {
            let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()));
            for task in tasks.into_iter().flatten().flatten() {
                by_tid.extend(one_thread(&task.path()));
            }
        }
        ThreadTimes { by_tid }
    }

    /// The busiest threads since `earlier`, a `wall` time ago. A thread that was not there then
    /// counts from its start; one that is no longer there is not known.
    pub(crate) fn busiest_since(&self, earlier: &ThreadTimes, wall: Duration) -> Vec<ThreadUsage> {
        let share = |(tid, (name, time)): (&u32, &(String, Duration))| {
            let before = earlier.by_tid.get(tid).map_or(Duration::ZERO, |(_, time)| *time);
            let used_s = time.saturating_sub(before).as_secs_f64();
            ThreadUsage { name: name.clone(), cpu_share: used_s / wall.as_secs_f64() }
        };
        let mut threads: Vec<ThreadUsage> =
            self.by_tid.iter().map(share).filter(|thread| thread.cpu_share >= SHARE_MIN).collect();
        threads
            .sort_by(|a, b| b.cpu_share.total_cmp(&a.cpu_share).then_with(|| a.name.cmp(&b.name)));
        threads.truncate(BUSIEST);
        threads
    }
}

fn one_thread(task: &Path) -> Option<(u32, (String, Duration))> {
    let tid = task.file_name()?.to_str()?.parse().ok()?;
    let name = fs::read_to_string(task.join("comm")).ok()?.trim_end().to_owned();
    let schedstat = fs::read_to_string(task.join("schedstat")).ok()?;
    Some((tid, (name, on_cpu(&schedstat)?)))
}

/// The first number of schedstat: nanoseconds on a CPU.
fn on_cpu(schedstat: &str) -> Option<Duration> {
    schedstat.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(threads: &[(u32, &str, u64)]) -> ThreadTimes {
        let entry = |(tid, name, ms): &(u32, &str, u64)| {
            (*tid, ((*name).to_owned(), Duration::from_millis(*ms)))
        };
        ThreadTimes { by_tid: threads.iter().map(entry).collect() }
    }

    #[test]
    fn the_busiest_come_first_and_the_idle_are_left_out() {
        let earlier = times(&[(1, "main", 500), (2, "worker", 100)]);
        let later = times(&[(1, "main", 500), (2, "worker", 900), (3, "iou-wrk-2", 250)]);
        let busiest = later.busiest_since(&earlier, Duration::from_secs(1));
        let expected = [("worker", 0.8), ("iou-wrk-2", 0.25)];
        assert_eq!(busiest.len(), expected.len());
        for (thread, (name, share)) in busiest.iter().zip(expected) {
            assert_eq!(thread.name, name);
            assert!((thread.cpu_share - share).abs() < 1e-9);
        }
    }

    #[test]
    fn no_more_than_five_are_told() {
        let many: Vec<_> = (0..20).map(|tid| (tid, "worker", 100)).collect();
        let busiest = times(&many).busiest_since(&times(&[]), Duration::from_secs(1));
        assert_eq!(busiest.len(), BUSIEST);
    }

    #[test]
    fn this_process_has_a_thread() {
        let me = ThreadTimes::read(&[rustix::process::getpid()]);
        assert!(!me.by_tid.is_empty());
    }
}
