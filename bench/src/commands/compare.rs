//! `compare`: our gateway beside a direct connection and the relays its users would pick instead.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use super::{Verdict, write_text};
use crate::compare::digest::digest;
use crate::compare::rounds::{measurements, run_scenario, start_all};
use crate::compare::scenario::Scenario;
use crate::compare::timings::Timing;
use crate::compare::{catalogue, warnings};
use crate::load::sample::{Conditions, WARMUP};
use crate::measure::host::Host;
use crate::measure::netns::{self, CONGESTION, Network, NetworkMode};
use crate::measure::placement::{Placement, raise_open_files};
use crate::peers::catalogue::{PeerKind, Setup, build, names};
use crate::peers::child::end_with_signals;
use crate::peers::socket::Dialer;
use crate::peers::{Peer, Skip};
use crate::report::publish::{Targets, publish};
use crate::report::{
    COMPARE_SCHEMA, CompareReport, Failure, PeerVersion, ScenarioReport, Settings, Skipped,
};

/// Examples at the end of `--help`.
pub(crate) const EXAMPLES: &str = "\
Examples:
  What there is: scenarios with their claims, peers with what is missing:
    switchback-bench compare --list
  A first look in a few minutes; the gateway is the `switchback` beside this program:
    cargo build --release && cargo run --release -p switchback-bench -- compare --quick
  Everything, with tables, data, plots and percentile files in one directory:
    switchback-bench compare --out report
  One claim, beside HAProxy only:
    switchback-bench compare --scenario bulk8 --peers direct,haproxy-splice,switchback-uring
  A scenario of your own (see bench/README.md):
    switchback-bench compare --scenario ./mine.toml

Exit code: 0 all measured, 1 something failed, 2 wrong usage, 130 ended by a signal.";

/// Flags of `compare`.
#[derive(Args, Debug)]
pub(crate) struct CompareArgs {
    /// Who is measured; ratios refer to direct and to switchback-uring [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<PeerKind>,
    /// What is measured: names from --list, or TOML files of your own [default: all]
    #[arg(long, value_delimiter = ',', value_parser = scenario, value_name = "NAME|FILE")]
    scenario: Vec<Scenario>,
    /// Interleaved rounds; at least 4 to establish a difference [default: 5, quick: 3]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=50))]
    rounds: Option<u16>,
    /// Measured seconds per measurement, after a warm-up of 0.3 s [default: 2, quick: 0.5]
    #[arg(long, value_parser = seconds)]
    seconds: Option<f64>,
    /// Fewer, shorter rounds and fewer idle sessions: orders of magnitude, establishes nothing
    #[arg(long)]
    quick: bool,
    /// Where to run: a private network namespace has a known congestion control
    #[arg(long, value_enum, default_value_t)]
    network: NetworkMode,
    /// The switchback binary [default: the one beside this program]
    #[arg(long, env = "SWITCHBACK_BIN")]
    binary: Option<PathBuf>,
    #[command(flatten)]
    targets: Targets,
    /// Show the scenarios with their claims and the peers with versions, and measure nothing
    #[arg(long)]
    list: bool,
}

/// Measures and reports.
///
/// # Errors
/// Nothing could be measured at all: no binary, no namespace, no place to write.
pub(crate) fn run(args: &CompareArgs) -> Result<Verdict> {
    if args.list {
        return list(args);
    }
    let files = raise_open_files().unwrap_or(u64::MAX);
    let plan = catalogue::plan(&args.scenario, files, args.quick)?;
    args.targets.prepare()?;
    let binary = find_binary(args)?;
    let network = netns::enter(args.network)?;
    end_with_signals()?;
    let settings = settings(args, network);
    let host = Host::read();
    let mut warnings = warnings::of_builds(&binary);
    warnings.extend(warnings::beforehand(&settings, &host));
    let setup = Setup::new(network, settings.placement, binary);
    let mut field = Field::new(&chosen(args), &setup);
    field.announce(&warnings);
    // From here on: the relays' spawner takes its own affinity.
    settings.placement.pin_generator().context("pinning the generator")?;
    start_all(&mut field.peers, &mut field.failures);
    let peers = field.peers.iter().map(|peer| version_of(peer.as_ref())).collect();
    let (scenarios, timings) = measure(&plan, &settings, setup.dialer, &mut field);
    field.stop_all();
    warnings.extend(warnings::afterwards(&scenarios));
    let report = CompareReport {
        schema: COMPARE_SCHEMA,
        bench_version: env!("CARGO_PKG_VERSION"),
        command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        host,
        settings,
        peers,
        skipped: field.skipped,
        scenarios,
        failures: field.failures,
        warnings,
    };
    publish(&args.targets, &report, &timings)?;
    let complete = report.failures.is_empty();
    Ok(if complete { Verdict::Complete } else { Verdict::Incomplete })
}

/// Who takes part, and who fell out.
struct Field {
    /// Everybody who was asked for, in the order of tables.
    asked: Vec<String>,
    peers: Vec<Box<dyn Peer>>,
    skipped: Vec<Skipped>,
    failures: Vec<Failure>,
}

impl Field {
    /// Builds the peers and sets aside those that are not on this machine.
    fn new(kinds: &[PeerKind], setup: &Setup) -> Field {
        let mut field = Field {
            asked: Vec::new(),
            peers: Vec::new(),
            skipped: Vec::new(),
            failures: Vec::new(),
        };
        for peer in kinds.iter().map(|kind| build(*kind, setup)) {
            let name = peer.name().to_owned();
            field.asked.push(name.clone());
            match peer.available() {
                Ok(()) => field.peers.push(peer),
                Err(Skip { reason, remedy }) => {
                    field.skipped.push(Skipped { peer: name, reason, remedy })
                }
            }
        }
        field
    }

    /// Says at once what would be a pity to learn after half an hour.
    fn announce(&self, warnings: &[String]) {
        for Skipped { peer, reason, remedy } in &self.skipped {
            eprintln!("skipped: {peer}: {reason} ({remedy})");
        }
        for warning in warnings {
            eprintln!("warning: {warning}");
        }
    }

    fn stop_all(&mut self) {
        for peer in &mut self.peers {
            if let Err(error) = peer.stop() {
                self.failures.push(Failure {
                    peer: peer.name().to_owned(),
                    during: "stop".to_owned(),
                    reason: format!("{error:#}"),
                });
            }
        }
    }
}

fn measure(
    plan: &[Scenario],
    settings: &Settings,
    dialer: Dialer,
    field: &mut Field,
) -> (Vec<ScenarioReport>, Vec<Timing>) {
    let count = field.peers.len();
    let total = plan.iter().map(|scenario| measurements(scenario, settings.rounds, count)).sum();
    let progress = ProgressBar::new(total);
    progress.set_style(
        ProgressStyle::with_template("{elapsed_precise} {bar:30} {pos}/{len} ETA {eta} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let window = Duration::from_secs_f64(settings.window_s);
    let conditions = Conditions { window, round: 0, dialer };
    let (mut reports, mut timings) = (Vec::new(), Vec::new());
    for scenario in plan {
        if progress.is_hidden() {
            eprintln!("measuring {}", scenario.name);
        }
        let samples = run_scenario(
            scenario,
            settings.rounds,
            conditions,
            &mut field.peers,
            &progress,
            &mut field.failures,
        );
        let digest = digest(scenario, &samples, &field.asked);
        reports.push(digest.report);
        timings.extend(digest.timings);
    }
    progress.finish_and_clear();
    (reports, timings)
}

fn settings(args: &CompareArgs, network: Network) -> Settings {
    Settings {
        rounds: usize::from(args.rounds.unwrap_or(if args.quick { 3 } else { 5 })),
        window_s: args.seconds.unwrap_or(if args.quick { 0.5 } else { 2.0 }),
        warmup_s: WARMUP.as_secs_f64(),
        network: network.description(),
        congestion_generator: CONGESTION,
        placement: Placement::choose(),
    }
}

/// The peers that were asked for, in the order of tables.
fn chosen(args: &CompareArgs) -> Vec<PeerKind> {
    let is_wanted = |kind: &PeerKind| args.peers.is_empty() || args.peers.contains(kind);
    PeerKind::value_variants().iter().copied().filter(is_wanted).collect()
}

fn version_of(peer: &dyn Peer) -> PeerVersion {
    let name = peer.name().to_owned();
    PeerVersion { ours: is_ours(&name), name, version: peer.version().to_owned() }
}

/// A mode of our gateway.
fn is_ours(peer: &str) -> bool {
    peer.starts_with("switchback-")
}

/// The gateway's binary; it must exist if one of its modes is asked for.
///
/// Rivals that are missing are skipped, but a long run without ours is a mistake.
fn find_binary(args: &CompareArgs) -> Result<PathBuf> {
    let path = gateway_path(args)?;
    let needed = chosen(args).iter().any(|kind| is_ours(kind.name()));
    ensure!(
        !needed || path.is_file(),
        "no gateway at {}: build it (cargo build --release), name it (--binary PATH), or leave it \
         out (--peers direct,tokio-copy)",
        path.display()
    );
    Ok(path.canonicalize().unwrap_or(path))
}

fn gateway_path(args: &CompareArgs) -> Result<PathBuf> {
    let beside = || std::env::current_exe().map(|path| path.with_file_name("switchback"));
    Ok(args.binary.clone().map_or_else(beside, Ok)?)
}

/// Scenarios with their claims; peers with versions, or why they would be skipped.
fn list(args: &CompareArgs) -> Result<Verdict> {
    let plan = catalogue::plan(&args.scenario, u64::MAX, false)?;
    let mut text = "Scenarios:\n".to_owned();
    for Scenario { name, title, claim, .. } in &plan {
        text += &format!("  {name:<16} {title}\n{:19}{claim}\n", "");
    }
    text += "\nPeers:\n";
    let setup = Setup::new(Network::Host, Placement::default(), gateway_path(args)?);
    for peer in chosen(args).iter().map(|kind| build(*kind, &setup)) {
        let state = match peer.available() {
            Ok(()) => peer.version().to_owned(),
            Err(Skip { reason, remedy }) => format!("skipped: {reason} ({remedy})"),
        };
        text += &format!("  {:<22} {state}\n", peer.name());
    }
    write_text(Path::new("-"), &text)?;
    Ok(Verdict::Complete)
}

fn scenario(wanted: &str) -> Result<Scenario, String> {
    catalogue::find(wanted, &names()).map_err(|error| format!("{error:#}"))
}

fn seconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.05..=600.0).contains(&value) { Ok(value) } else { Err("not in 0.05 to 600".to_owned()) }
}
