//! What spoils figures, said once each. Pure.

use std::path::Path;

use crate::commands::DEBUG_BUILD;
use crate::measure::host::Host;
use crate::report::{PeerResult, ScenarioReport, Settings};
use crate::stats::ROUNDS_MIN_TO_COMPARE;

/// Above this load average before the run, somebody else is at work.
const LOAD_BUSY: f64 = 0.5;

/// Builds without optimisation: this program, and the gateway at `binary`.
pub(crate) fn of_builds(binary: &Path) -> Vec<String> {
    let debug_binary = binary.components().any(|part| part.as_os_str() == "debug");
    let possible = [
        (cfg!(debug_assertions), DEBUG_BUILD),
        (debug_binary, "the gateway is a debug build: build it with --release"),
    ];
    possible.into_iter().filter(|(applies, _)| *applies).map(|(_, text)| text.to_owned()).collect()
}

/// What is known to spoil the figures before they are taken.
pub(crate) fn beforehand(settings: &Settings, host: &Host) -> Vec<String> {
    let bbr = host.congestion_default.starts_with("bbr");
    let few = settings.rounds < ROUNDS_MIN_TO_COMPARE;
    let unpinned = settings.placement.relay_cpu.is_none();
    let busy = host.load_1min > LOAD_BUSY;
    let possible = [
        (
            bbr,
            "the relays' sockets use BBR, which is 2 to 4 times slower and erratic on loopback: \
             run as root (--network private) or set net.ipv4.tcp_congestion_control"
                .to_owned(),
        ),
        (
            !bbr && host.congestion_default != settings.congestion_generator,
            format!(
                "the relays' sockets use {}, the generator's {}: run as root (--network private)",
                host.congestion_default, settings.congestion_generator
            ),
        ),
        (few, format!("fewer than {ROUNDS_MIN_TO_COMPARE} rounds establish no difference")),
        (unpinned, "only one CPU: relay and generator share it, nothing is pinned".to_owned()),
        (busy, format!("the machine is busy: load {:.2} before the run", host.load_1min)),
    ];
    possible.into_iter().filter(|(applies, _)| *applies).map(|(_, text)| text).collect()
}

/// What each mark in the noise column means.
const MEANINGS: [(&str, &str); 4] = [
    ("noisy", "over 5 % of the machine went to others in some round: do not quote these figures"),
    ("generator-bound", "the generator's core is the limit, not the peer: compare CPU per unit"),
    ("late-sends", "over 1 % of messages were sent late: percentiles include the generator"),
    ("unanswered", "messages never came back; they count with the age they had reached"),
];

/// One warning per mark that occurs, with the rows that bear it.
pub(crate) fn afterwards(scenarios: &[ScenarioReport]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (mark, meaning) in MEANINGS {
        let rows: Vec<String> =
            scenarios.iter().filter_map(|scenario| marked(scenario, mark)).collect();
        if !rows.is_empty() {
            warnings.push(format!("{mark}: {meaning}: {}", rows.join(", ")));
        }
    }
    warnings
}

/// `bulk8 (direct, nginx)`, or `bulk8 (all)`; `None` where no row has the mark.
fn marked(scenario: &ScenarioReport, mark: &str) -> Option<String> {
    let has = |result: &&PeerResult| result.noise.marks.iter().any(|other| other == mark);
    let peers: Vec<&str> =
        scenario.results.iter().filter(has).map(|result| result.peer.as_str()).collect();
    let list = match peers.len() {
        0 => return None,
        n if n > 1 && n == scenario.results.len() => "all".to_owned(),
        _ => peers.join(", "),
    };
    Some(format!("{} ({list})", scenario.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::workload::Workload;
    use crate::report::Noise;

    fn scenario(name: &str, marks: &[(&str, &[&str])]) -> ScenarioReport {
        let result = |(peer, marks): &(&str, &[&str])| PeerResult {
            peer: (*peer).to_owned(),
            metrics: Vec::new(),
            distributions: Vec::new(),
            threads: Vec::new(),
            noise: Noise {
                marks: marks.iter().map(|mark| (*mark).to_owned()).collect(),
                ..Noise::default()
            },
        };
        ScenarioReport {
            name: name.to_owned(),
            title: String::new(),
            claim: String::new(),
            workload: Workload::Churn { concurrency: 1 },
            notes: Vec::new(),
            results: marks.iter().map(result).collect(),
            goals: Vec::new(),
        }
    }

    #[test]
    fn a_mark_is_explained_once_with_all_its_rows() {
        let warnings = afterwards(&[
            scenario("one", &[("a", &["noisy"]), ("b", &["noisy"])]),
            scenario("two", &[("a", &["noisy", "unanswered"]), ("b", &[])]),
        ]);
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].starts_with("noisy: ") && warnings[0].ends_with("one (all), two (a)"));
        assert!(warnings[1].starts_with("unanswered: ") && warnings[1].ends_with(": two (a)"));
        assert!(afterwards(&[scenario("one", &[("a", &[])])]).is_empty());
    }

    #[test]
    fn a_debug_build_of_the_gateway_is_told_by_its_directory() {
        let told = |path: &str| of_builds(Path::new(path)).iter().any(|w| w.contains("gateway"));
        assert!(told("/target/debug/switchback") && !told("/target/release/switchback"));
    }
}
