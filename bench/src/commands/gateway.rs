//! `gateway`: our gateway beside a direct connection and a tokio copy loop.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use super::{DEBUG_BUILD, Verdict, write_json, write_text};
use crate::gateway::digest::{digest, goals};
use crate::gateway::rounds::{Failure, measurements, run_scenario, start_all};
use crate::gateway::scenario::{Kind, MESSAGE_BYTES, scenarios};
use crate::load::sample::{Conditions, WARMUP};
use crate::measure::host::Host;
use crate::measure::netns::{self, CONGESTION, Network, NetworkMode};
use crate::measure::placement::{Placement, raise_open_files};
use crate::peers::Peer;
use crate::peers::catalogue::{PeerKind, Setup, build};
use crate::peers::child::end_with_signals;
use crate::report::{
    GATEWAY_SCHEMA, GatewayReport, PeerResult, PeerVersion, ScenarioReport, Settings, text,
};
use crate::stats::ROUNDS_MIN_TO_COMPARE;

/// Examples at the end of `--help`.
pub(crate) const EXAMPLES: &str = "\
Examples:
  Everything, about four minutes; the gateway is the `switchback` beside this program:
    cargo build --release && cargo run --release -p switchback-bench -- gateway
  A first look in under a minute:
    switchback-bench gateway --quick
  Only bulk, with the figures as data and as a document:
    switchback-bench gateway --only bulk1,bulk8 --json bulk.json --markdown bulk.md
  Without our gateway, to see what this machine can do:
    switchback-bench gateway --peers direct,tokio-copy

Exit code: 0 all measured, 1 something failed, 2 wrong usage, 130 ended by a signal.";

/// Flags of `gateway`.
#[derive(Args, Debug)]
pub(crate) struct GatewayArgs {
    /// Interleaved rounds; at least 4 to establish a difference [default: 5, quick: 3]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=50))]
    rounds: Option<u16>,
    /// Measured seconds per measurement, after a warm-up of 0.3 s [default: 2, quick: 0.5]
    #[arg(long, value_parser = seconds)]
    seconds: Option<f64>,
    /// The switchback binary [default: the one beside this program]
    #[arg(long, env = "SWITCHBACK_BIN")]
    binary: Option<PathBuf>,
    /// Write the report as JSON (schema/gateway-1.json); `-` prints it instead of the tables
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report as markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Fewer, shorter rounds and fewer idle sessions: shows orders of magnitude, establishes nothing
    #[arg(long)]
    quick: bool,
    /// Who is measured; direct and tokio-copy are what ratios refer to
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [PeerKind::Direct, PeerKind::TokioCopy, PeerKind::SwitchbackUring, PeerKind::SwitchbackEpoll])]
    peers: Vec<PeerKind>,
    /// Scenarios to run [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Idle sessions for the memory scenario [default: 1000, quick: 100]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=5000))]
    idle_sessions: Option<u16>,
    /// Where to run: a private network namespace has a known congestion control
    #[arg(long, value_enum, default_value_t)]
    network: NetworkMode,
}

/// Files open per idle session in this process (two ends), and room for the rest.
const FILES_PER_SESSION: u64 = 2;
const FILES_SPARE: u64 = 256;

/// Measures and reports.
///
/// # Errors
/// Nothing could be measured at all: no binary, no namespace, no place to write.
pub(crate) fn run(args: &GatewayArgs) -> Result<Verdict> {
    let binary = find_binary(args)?;
    let network = netns::enter(args.network)?;
    end_with_signals()?;
    let placement = Placement::choose();
    let sessions = usize::from(args.idle_sessions.unwrap_or(if args.quick { 100 } else { 1000 }));
    let limit = raise_open_files().unwrap_or(u64::MAX);
    ensure!(
        limit >= sessions as u64 * FILES_PER_SESSION + FILES_SPARE,
        "{limit} open files are too few for {sessions} idle sessions: lower --idle-sessions"
    );
    let settings = settings(args, network, placement);
    let host = Host::read();
    let mut warnings = warnings(&settings, &host, binary.as_deref());
    eprintln!("network: {}", network.description());
    let mut failures = Vec::new();
    let mut peers = build_peers(args, binary.clone(), network, placement);
    // From here on: the relays' spawner takes its own affinity.
    placement.pin_generator().context("pinning the generator")?;
    start_all(&mut peers, &mut failures);
    let versions = peers
        .iter()
        .map(|peer| PeerVersion { name: peer.name().into(), version: peer.version().into() })
        .collect();
    let scenarios = measure(args, &settings, sessions, &mut peers, &mut failures);
    stop_all(&mut peers, &mut failures);
    warnings.extend(late_warnings(&scenarios));
    let report = GatewayReport {
        schema: GATEWAY_SCHEMA,
        bench_version: env!("CARGO_PKG_VERSION"),
        host,
        settings,
        peers: versions,
        goals: goals(&scenarios),
        scenarios,
        failures,
        warnings,
    };
    publish(args, &report)
}

fn measure(
    args: &GatewayArgs,
    settings: &Settings,
    sessions: usize,
    peers: &mut [Box<dyn Peer>],
    failures: &mut Vec<Failure>,
) -> Vec<ScenarioReport> {
    let plan = scenarios(&args.only, sessions);
    let total = plan.iter().map(|s| measurements(s, settings.rounds, peers.len())).sum();
    let progress = ProgressBar::new(total);
    progress.set_style(
        ProgressStyle::with_template("{elapsed_precise} {wide_bar} {pos}/{len} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let conditions = Conditions { window: Duration::from_secs_f64(settings.window_s), round: 0 };
    let names: Vec<String> = peers.iter().map(|peer| peer.name().to_owned()).collect();
    let mut reports = Vec::new();
    for scenario in &plan {
        let samples =
            run_scenario(scenario, settings.rounds, conditions, peers, &progress, failures);
        reports.push(digest(scenario, &samples, &names));
    }
    progress.finish_and_clear();
    reports
}

fn stop_all(peers: &mut [Box<dyn Peer>], failures: &mut Vec<Failure>) {
    for peer in peers {
        if let Err(error) = peer.stop() {
            failures.push(Failure {
                peer: peer.name().to_owned(),
                during: "stop".to_owned(),
                reason: format!("{error:#}"),
            });
        }
    }
}

fn publish(args: &GatewayArgs, report: &GatewayReport) -> Result<Verdict> {
    if let Some(path) = &args.json {
        write_json(path, report)?;
    }
    if let Some(path) = &args.markdown {
        write_text(path, &text::markdown(report))?;
    }
    if args.json.as_deref() != Some(Path::new("-")) {
        write_text(Path::new("-"), &text::terminal(report))?;
    }
    Ok(if report.failures.is_empty() { Verdict::Complete } else { Verdict::Incomplete })
}

fn settings(args: &GatewayArgs, network: Network, placement: Placement) -> Settings {
    Settings {
        rounds: usize::from(args.rounds.unwrap_or(if args.quick { 3 } else { 5 })),
        window_s: args.seconds.unwrap_or(if args.quick { 0.5 } else { 2.0 }),
        warmup_s: WARMUP.as_secs_f64(),
        message_bytes: MESSAGE_BYTES,
        network: network.name(),
        congestion_generator: CONGESTION,
        placement,
    }
}

fn build_peers(
    args: &GatewayArgs,
    binary: Option<PathBuf>,
    network: Network,
    placement: Placement,
) -> Vec<Box<dyn Peer>> {
    let setup = Setup::new(network, placement, binary.unwrap_or_default());
    let wanted = PeerKind::value_variants().iter().filter(|kind| args.peers.contains(kind));
    let is_here = |peer: &Box<dyn Peer>| match peer.available() {
        Ok(()) => true,
        Err(skip) => {
            eprintln!("skipped: {}: {skip}", peer.name());
            false
        }
    };
    wanted.map(|kind| build(*kind, &setup)).filter(is_here).collect()
}

/// The gateway's binary, if a chosen peer needs it.
fn find_binary(args: &GatewayArgs) -> Result<Option<PathBuf>> {
    if !args.peers.iter().any(|kind| kind.is_ours()) {
        return Ok(None);
    }
    let beside = || std::env::current_exe().map(|path| path.with_file_name("switchback"));
    let path = args.binary.clone().map_or_else(beside, Ok)?;
    ensure!(
        path.is_file(),
        "no gateway at {}: build it (cargo build --release), name it (--binary PATH), or leave it \
         out (--peers direct,tokio-copy)",
        path.display()
    );
    Ok(Some(path.canonicalize()?))
}

/// What is known to spoil the figures before they are taken.
fn warnings(settings: &Settings, host: &Host, binary: Option<&Path>) -> Vec<String> {
    let debug_binary =
        binary.is_some_and(|path| path.components().any(|c| c.as_os_str() == "debug"));
    let bbr = host.congestion_default.starts_with("bbr");
    let few = settings.rounds < ROUNDS_MIN_TO_COMPARE;
    let unpinned = settings.placement.relay_cpu.is_none();
    let busy = host.load_1min > 0.5;
    let possible = [
        (cfg!(debug_assertions), DEBUG_BUILD.to_owned()),
        (debug_binary, "the gateway is a debug build: build it with --release".to_owned()),
        (
            bbr,
            "the relays' sockets use BBR, which is 2 to 4 times slower and erratic on loopback: \
               run as root (--network private) or set net.ipv4.tcp_congestion_control"
                .to_owned(),
        ),
        (few, format!("fewer than {ROUNDS_MIN_TO_COMPARE} rounds establish no difference")),
        (unpinned, "only one CPU: relay and generator share it, nothing is pinned".to_owned()),
        (busy, format!("the machine is busy: load {:.2} before the run", host.load_1min)),
    ];
    possible.into_iter().filter(|(applies, _)| *applies).map(|(_, text)| text).collect()
}

/// What the marks in the tables mean, once per scenario and mark.
fn late_warnings(scenarios: &[ScenarioReport]) -> Vec<String> {
    const MEANINGS: [(&str, &str); 4] = [
        (
            "noisy",
            "over 5 % of the machine went to others in some round: do not quote these figures",
        ),
        ("generator-bound", "throughput is limited by the generator's core; compare CPU/GiB"),
        ("late-sends", "over 1 % of messages were sent late: percentiles include the generator"),
        ("unanswered", "messages never came back; they count with the age they had reached"),
    ];
    let mut warnings = Vec::new();
    for scenario in scenarios {
        for (mark, meaning) in MEANINGS {
            let marked = |result: &&PeerResult| result.noise.marks.iter().any(|m| m == mark);
            let peers: Vec<&str> =
                scenario.results.iter().filter(marked).map(|result| result.peer.as_str()).collect();
            if !peers.is_empty() {
                warnings.push(format!(
                    "{} {mark} ({}): {meaning}",
                    scenario.name,
                    peers.join(", ")
                ));
            }
        }
    }
    warnings
}

fn seconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.05..=600.0).contains(&value) { Ok(value) } else { Err("not in 0.05 to 600".to_owned()) }
}
