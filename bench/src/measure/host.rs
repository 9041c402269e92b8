//! What machine this is: printed with every report, so that figures can be judged.

use std::fs;

use serde::Serialize;

/// The machine and its network settings.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Host {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    /// Load average over one minute at the start.
    pub(crate) load_1min: f64,
    /// Default congestion control of the namespace the run took place in: the relay's sockets.
    pub(crate) congestion_default: String,
}

impl Host {
    /// Reads `/proc`; what cannot be read is "unknown".
    pub(crate) fn read() -> Host {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Host {
            kernel: line_of("/proc/sys/kernel/osrelease"),
            cpu: cpu_model(&cpuinfo).unwrap_or("unknown").to_owned(),
            cpus: cpus(),
            load_1min: load_1min(&line_of("/proc/loadavg")).unwrap_or(f64::NAN),
            congestion_default: line_of("/proc/sys/net/ipv4/tcp_congestion_control"),
        }
    }
}

/// CPUs that are online, at least 1.
pub(crate) fn cpus() -> usize {
    static CPUS: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *CPUS.get_or_init(|| {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let is_cpu = |line: &&str| {
            line.strip_prefix("cpu")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        text.lines().filter(is_cpu).count().max(1)
    })
}

fn line_of(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

fn cpu_model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, model)| model.trim())
}

fn load_1min(loadavg: &str) -> Option<f64> {
    loadavg.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_and_load_are_parsed() {
        assert_eq!(
            cpu_model("processor\t: 0\nmodel name\t: A CPU @ 3 GHz\n"),
            Some("A CPU @ 3 GHz")
        );
        assert_eq!(cpu_model("processor\t: 0\n"), None);
        assert_eq!(load_1min("0.52 0.58 0.59 1/900 12345"), Some(0.52));
        assert_eq!(load_1min("unknown"), None);
    }

    #[test]
    fn this_machine_has_a_cpu() {
        assert!(cpus() >= 1);
        assert_ne!(Host::read().kernel, "unknown");
    }
}
