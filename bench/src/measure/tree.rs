//! Processes and what they started: a peer may be several.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use rustix::process::Pid;

/// `roots` and all their descendants at this moment, parents before children.
///
/// Looks at every process of the machine once (some 10 microseconds each): not while measuring.
pub(crate) fn with_descendants(roots: &[Pid]) -> Vec<Pid> {
    let mut children: HashMap<Pid, Vec<Pid>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let number = entry.file_name().to_string_lossy().parse().ok();
        let Some(pid) = number.and_then(Pid::from_raw) else { continue };
        if let Some(parent) = Stat::read(pid).and_then(|stat| stat.parent) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = roots.to_vec();
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    found
}

/// CPU time of the children of `pid` that have ended and were waited for, theirs included, in ticks
/// of 10 ms. A parent that ignores SIGCHLD is not charged (wait(2)), so nothing is seen there.
pub(crate) fn cpu_of_ended_children(pid: Pid) -> Duration {
    Stat::read(pid).map_or(Duration::ZERO, |stat| stat.ended_children)
}

/// What is used of `/proc/PID/stat` (proc_pid_stat(5)).
struct Stat {
    parent: Option<Pid>,
    ended_children: Duration,
}

/// USER_HZ, the same on every Linux architecture but alpha.
const TICKS_PER_SECOND: u64 = 100;

impl Stat {
    fn read(pid: Pid) -> Option<Stat> {
        let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        Self::parse(&text)
    }

    /// Counts from behind the command's name, which may hold blanks and parentheses.
    fn parse(text: &str) -> Option<Stat> {
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // Fields 4 (ppid), 16 and 17 (cutime, cstime) of the manual, which counts pid as 1.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let ticks = number(16)? + number(17)?;
        Some(Stat {
            parent: Pid::from_raw(i32::try_from(number(4)?).ok()?),
            ended_children: Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn parent_and_ended_children_are_read_behind_any_name() {
        let text = "17 (a) b) S 5 17 17 0 -1 4194560 1 2 3 4 70 80 12 30 20 0 1 0 99 0 0";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(stat.parent, Pid::from_raw(5));
        assert_eq!(stat.ended_children, Duration::from_millis(420));
        assert!(Stat::parse("17 (short) S 5").is_none());
    }

    #[test]
    fn grandchildren_belong_to_the_tree() {
        let mut command = Command::new("sh");
        command.args(["-c", "sh -c 'cat; :' | cat; :"]).stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let root = Pid::from_child(&child);
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        // sh, its two children, and the grandchild.
        while with_descendants(&[root]).len() < 4 {
            assert!(std::time::Instant::now() < deadline, "{:?}", with_descendants(&[root]));
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(with_descendants(&[root]), [root]);
    }

    #[test]
    fn a_child_that_was_waited_for_is_charged_to_its_parent() {
        let mut command = Command::new("sh");
        let spin = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
        command.args(["-c", &format!("sh -c '{spin}'; echo done; cat")]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = [0; 5];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        assert!(cpu_of_ended_children(Pid::from_child(&child)) >= Duration::from_millis(10));
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
