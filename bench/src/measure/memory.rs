//! Resident memory of processes.

use std::fs;

use anyhow::{Context, Result};
use rustix::process::Pid;

/// Resident memory of all `pids` in KiB, from `/proc/PID/smaps_rollup`.
///
/// The resident set of one process; of several the proportional one, in which pages they share are
/// counted once. `statm` is cheaper, but the kernel batches its counters per CPU and may be some
/// hundred KiB off; smaps walks the page tables. Kernel memory (socket buffers, pipes) is in none.
///
/// # Errors
/// A process has ended or may not be looked at.
pub(crate) fn resident_kib(pids: &[Pid]) -> Result<u64> {
    let field = if pids.len() > 1 { "Pss:" } else { "Rss:" };
    let mut sum_kib = 0;
    for pid in pids {
        let path = format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero());
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        sum_kib += parse_kib(&text, field).with_context(|| format!("no {field} in {path}"))?;
    }
    Ok(sum_kib)
}

/// The most that was resident of a process so far, in KiB (`VmHWM` of proc_pid_status(5), which is a few hundred KiB off).
///
/// # Errors
/// It has ended or may not be looked at.
pub(crate) fn peak_kib(pid: Pid) -> Result<u64> {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    parse_kib(&text, "VmHWM:").with_context(|| format!("no VmHWM in {path}"))
}

/// A line of smaps_rollup or status, in KiB.
fn parse_kib(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_among_its_neighbours() {
        let text =
            "55d0-7ffd ---p 00000000 00:00 0    [rollup]\nRss:     10240 kB\nPss:  9000 kB\n";
        assert_eq!(parse_kib(text, "Rss:"), Some(10_240));
        assert_eq!(parse_kib(text, "Pss:"), Some(9000));
        assert_eq!(parse_kib("Pss: 1 kB\n", "Rss:"), None);
        assert_eq!(parse_kib("Rss: many kB\n", "Rss:"), None);
    }

    #[test]
    fn touched_memory_becomes_resident() {
        let me = [rustix::process::getpid()];
        let before = resident_kib(&me).unwrap();
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = resident_kib(&me).unwrap();
        assert!(after >= before + 60 * 1024, "{before} KiB then {after} KiB");
        drop(block);
        let peak = peak_kib(me[0]).unwrap();
        assert!(peak >= before + 60 * 1024, "{before} KiB then {peak} KiB at most");
    }
}
