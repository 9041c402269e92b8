//! What `load` found, as data and as text, and what to distrust about it.

use serde::Serialize;

use super::Mode;
use super::through::Session;
use crate::commands::DEBUG_BUILD;
use crate::load::drive::Outcome;
use crate::load::ledger::LatencyFigures;
use crate::load::schedule::Arrivals;
use crate::measure::Usage;
use crate::report::grid::number;

/// Names the shape of the JSON document.
pub(super) const SCHEMA: &str = "switchback-bench/load/2";

/// One run of `load`. Shares are 0 to 1.
#[derive(Serialize)]
pub(super) struct LoadReport<'a> {
    pub(super) schema: &'static str,
    pub(super) bench_version: &'static str,
    /// Where the connections went; with a session, its local port.
    pub(super) target: &'a str,
    pub(super) session: Option<Session>,
    pub(super) mode: Mode,
    pub(super) connections: u32,
    /// Messages per second; `None` for as many as go.
    pub(super) rate: Option<f64>,
    pub(super) arrivals: Option<Arrivals>,
    pub(super) sizes: Option<String>,
    pub(super) seed: Option<u64>,
    pub(super) window_s: f64,
    pub(super) warmup_s: f64,
    pub(super) spin: Option<bool>,
    pub(super) messages_per_second: Option<f64>,
    pub(super) latency: Option<LatencyFigures>,
    pub(super) throughput: Option<Throughput>,
    /// Share of the window in which the generator had something to do.
    pub(super) generator_busy_share: f64,
    pub(super) usage: Usage,
    pub(super) warnings: Vec<String>,
}

/// Bulk, all connections together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Throughput {
    pub(super) bytes: u64,
    pub(super) seconds: f64,
    pub(super) gbit_per_s: f64,
}

impl Throughput {
    /// Downwards: what arrived within the window. Upwards: what was sent after the warm-up, until
    /// the other end confirmed with its own end of stream that it had read it all; bytes sent within
    /// the window alone may still be in buffers on the way.
    pub(super) fn of(mode: Mode, outcome: &Outcome) -> Throughput {
        let (bytes, seconds) = match mode {
            Mode::Up => (outcome.total_bytes - outcome.warmup_bytes, outcome.delivered_s),
            Mode::Down | Mode::Echo => (outcome.window_bytes, outcome.usage.wall_s),
        };
        Throughput { bytes, seconds, gbit_per_s: bytes as f64 * 8.0 / 1e9 / seconds }
    }
}

/// Above this share of late sends the generator, not the target, shapes the percentiles.
const LATE_SHARE: f64 = 0.01;

/// Above this share of its time a generator has no reserve for the next burst.
const BUSY_SHARE: f64 = 0.9;

/// A generator that waited this long for its CPU, or lost this share of it to the hypervisor, was
/// not measuring meanwhile.
const WAIT_SHARE: f64 = 0.01;

/// Reasons to distrust the figures.
pub(super) fn warnings(
    latency: Option<&LatencyFigures>,
    usage: &Usage,
    busy_share: f64,
) -> Vec<String> {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let late = latency.map_or(0.0, LatencyFigures::late_share);
    let unanswered = latency.map_or(0, |latency| latency.counts.unanswered);
    let possible = [
        (cfg!(debug_assertions), DEBUG_BUILD.to_owned()),
        (
            late > LATE_SHARE,
            format!(
                "{} of messages were sent over 100 us late: the generator is saturated or was not \
                 given CPU, and the percentiles include that",
                percent(late)
            ),
        ),
        (
            busy_share > BUSY_SHARE,
            format!(
                "the generator was busy {} of the time: it may be the limit, not the target",
                percent(busy_share)
            ),
        ),
        (
            usage.generator_wait_share > WAIT_SHARE,
            format!(
                "the generator waited {} of the time for its CPU and was preempted {} times: \
                 something else runs there",
                percent(usage.generator_wait_share),
                usage.generator_preemptions
            ),
        ),
        (
            usage.steal_share > WAIT_SHARE,
            format!(
                "the hypervisor kept {} of the CPU time for others",
                percent(usage.steal_share)
            ),
        ),
        (
            unanswered > 0,
            format!(
                "{unanswered} messages never came back; they count with the age they had reached"
            ),
        ),
    ];
    possible.into_iter().filter(|(applies, _)| *applies).map(|(_, text)| text).collect()
}

/// For a terminal.
pub(super) fn describe(report: &LoadReport<'_>) -> String {
    let mut text = format!("{}, {} connection(s)", report.target, report.connections);
    if let Some(session) = &report.session {
        text += &format!("\n  {session}");
    }
    if let Some(latency) = &report.latency {
        text += &messages(report, latency);
    }
    if let Some(throughput) = &report.throughput {
        text += &format!(
            "\n  throughput   {:>10} Gbit/s ({} bytes in {:.2} s)",
            number(throughput.gbit_per_s),
            throughput.bytes,
            throughput.seconds
        );
    }
    text += &format!(
        "\n  generator: busy {:.0} %, waited for its CPU {:.1} %; noise: steal {:.1} %, other work \
         {:.1} % of the machine\n",
        report.generator_busy_share * 100.0,
        report.usage.generator_wait_share * 100.0,
        report.usage.steal_share * 100.0,
        report.usage.foreign_share * 100.0
    );
    for warning in &report.warnings {
        text += &format!("warning: {warning}\n");
    }
    text
}

fn messages(report: &LoadReport<'_>, latency: &LatencyFigures) -> String {
    let counts = &latency.counts;
    let pace = match report.rate {
        Some(rate) => format!("at {rate}/s"),
        None => "in a closed loop".to_owned(),
    };
    let mut text = format!(
        "\n  {} messages of {} {pace}, {} answered: {}/s",
        counts.sent,
        report.sizes.as_deref().unwrap_or("?"),
        counts.answered,
        number(report.messages_per_second.unwrap_or(0.0))
    );
    let figures = [
        ("p50", latency.p50_us),
        ("p90", latency.p90_us),
        ("p99", latency.p99_us),
        ("p99.9", latency.p99_9_us),
        ("max", latency.max_us),
        ("mean", latency.mean_us),
        ("send lag p99", latency.send_lag_p99_us),
    ];
    for (name, value) in figures {
        text += &format!("\n  {name:<13}{:>10} us", number(value));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::ledger::Ledger;

    fn figures(lag_ns: u64) -> LatencyFigures {
        let mut ledger = Ledger::new(1);
        ledger.count_from(0);
        ledger.sent(0, 64, 0, lag_ns);
        ledger.received(0, 64, lag_ns + 50_000).unwrap();
        ledger.close(1_000_000).figures
    }

    fn warned(latency: &LatencyFigures, usage: &Usage, busy_share: f64) -> Vec<String> {
        let mut warnings = warnings(Some(latency), usage, busy_share);
        warnings.retain(|warning| warning != DEBUG_BUILD);
        warnings
    }

    #[test]
    fn a_quiet_run_is_trusted() {
        assert_eq!(warned(&figures(0), &Usage::default(), 0.5), Vec::<String>::new());
    }

    #[test]
    fn each_reason_for_distrust_is_told() {
        let usage = |wait, steal| Usage {
            generator_wait_share: wait,
            steal_share: steal,
            ..Usage::default()
        };
        for (latency, usage, busy, told) in [
            (figures(200_000), usage(0.0, 0.0), 0.5, "sent over 100 us late"),
            (figures(0), usage(0.0, 0.0), 0.95, "busy 95.0 %"),
            (figures(0), usage(0.02, 0.0), 0.5, "waited 2.0 %"),
            (figures(0), usage(0.0, 0.03), 0.5, "kept 3.0 %"),
        ] {
            let warnings = warned(&latency, &usage, busy);
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            assert!(warnings[0].contains(told), "{warnings:?}");
        }
    }
}
