//! `shortpath`: whole sessions in a lab, beside other tunnels, each goal of the product judged.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use switchback_bench::lab;

use super::{DEBUG_BUILD, Verdict, one_of, write_json, write_text};
use crate::measure::host::Host;
use crate::peers::Skip;
use crate::peers::child::end_with_signals;
use crate::report::{PeerVersion, Skipped};
use crate::shortpath::experiments::{ALL, Experiment, help};
use crate::shortpath::peers::PeerKind;
use crate::shortpath::report::{ClaimsReport, SCHEMA};
use crate::shortpath::runner::Plan;
use crate::shortpath::scene::Setup;
use crate::shortpath::{page, text};

/// The end of `--help`.
pub(crate) fn after_help() -> String {
    format!("Experiments, what they claim, and who takes part:\n{}\n{EXAMPLES}", help())
}

const EXAMPLES: &str = "\
Examples:
  All of them, in under 3 minutes; orders of magnitude:
    switchback-bench shortpath --quick
  Everything, with data, a page and plots in one directory (hours; one experiment: minutes):
    switchback-bench shortpath --out report
  One claim, ours only, often; one of its cases:
    switchback-bench shortpath failover --peers switchback --rounds 100
    switchback-bench shortpath tails --case '5 % loss' --peers switchback,iroh

Needs root (or unshare -Urn where /dev/net/tun is open to all). Rivals are installed by
scripts/bench-peers; what is missing is skipped, with the reason.

Exit code: 0 all measured, 1 something failed, 2 wrong usage, 130 ended by a signal.";

/// Flags of `shortpath`.
#[derive(Args, Debug)]
pub(crate) struct ShortpathArgs {
    /// What to measure; see below [default: all]
    #[arg(value_parser = experiment, value_name = "EXPERIMENT")]
    experiments: Vec<&'static str>,
    /// Who is measured [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<PeerKind>,
    /// Only the cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
    /// Interleaved rounds [default: each experiment's own, 1 to 20; quick: 1]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Fewer cases, shorter measurements: all experiments in under 3 minutes
    #[arg(long)]
    quick: bool,
    /// Of all chance in the lab: losses, ports
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The switchback binary [default: the one beside this program]
    #[arg(long, env = "SWITCHBACK_BIN")]
    binary: Option<PathBuf>,
    /// Write the report as JSON (schema/shortpath-1.json); `-` prints it instead of the tables
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write report.json, report.html and the plots as SVG files
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Measures and reports.
///
/// # Errors
/// Nothing could be measured at all: no lab, no place to write.
pub(crate) fn run(args: &ShortpathArgs) -> Result<Verdict> {
    if let Some(why) = lab::unavailable() {
        anyhow::bail!("no lab can run here: {why}");
    }
    if let Some(dir) = &args.out {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    end_with_signals()?;
    let binary = find_binary(args.binary.as_ref())?;
    let (peers, skipped) = field(args, &binary);
    ensure!(!peers.is_empty(), "nobody to measure: {}", in_words(&skipped));
    let version = |peer: &PeerKind| PeerVersion {
        name: peer.name().to_owned(),
        version: peer.version(&binary),
        ours: peer.is_ours(),
    };
    let versions = peers.iter().map(version).collect();
    let warnings: Vec<String> =
        cfg!(debug_assertions).then(|| DEBUG_BUILD.to_owned()).into_iter().collect();
    for line in skipped.iter().map(one_in_words).chain(warnings.clone()) {
        eprintln!("{line}");
    }
    let setup = Setup { binary: binary.clone(), quick: args.quick };
    let rounds = args.rounds.map(usize::from);
    let plan = Plan { setup, peers, case: args.case.clone(), rounds, seed: args.seed };
    ensure!(total(args, &plan) > 0, "{}", no_case(args));
    let host = Host::read();
    let mut failures = Vec::new();
    let experiments = measure(args, &plan, &mut failures);
    let report = ClaimsReport {
        schema: SCHEMA,
        compared: "peer",
        bench_version: env!("CARGO_PKG_VERSION"),
        command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        host,
        quick: args.quick,
        seed: args.seed,
        peers: versions,
        skipped,
        experiments,
        failures,
        warnings,
    };
    publish(args.json.as_deref(), args.out.as_deref(), &report)?;
    Ok(if report.failures.is_empty() { Verdict::Complete } else { Verdict::Incomplete })
}

fn measure(
    args: &ShortpathArgs,
    plan: &Plan,
    failures: &mut Vec<crate::report::Failure>,
) -> Vec<crate::shortpath::report::ExperimentReport> {
    let progress = progress_bar(total(args, plan));
    let begun = Instant::now();
    let run = |experiment| plan.run(experiment, begun, &progress, failures);
    let reports = chosen(args).filter_map(run).collect();
    progress.finish_and_clear();
    reports
}

/// The experiments that are asked for.
fn chosen(args: &ShortpathArgs) -> impl Iterator<Item = &'static Experiment> {
    let wanted = &args.experiments;
    let asked = |experiment: &&Experiment| wanted.is_empty() || wanted.contains(&experiment.name);
    ALL.iter().filter(asked)
}

/// Measurements in all.
fn total(args: &ShortpathArgs, plan: &Plan) -> u64 {
    chosen(args).map(|experiment| plan.measurements(experiment)).sum()
}

/// Why there is nothing to measure.
fn no_case(args: &ShortpathArgs) -> String {
    let cases = chosen(args).flat_map(|experiment| (experiment.cases)(args.quick));
    let names: Vec<_> = cases.map(|case| case.name).collect();
    format!("no such case, or none of these peers takes part; there are: {}", names.join("; "))
}

/// One line that says how far the measurements are.
pub(super) fn progress_bar(total: u64) -> ProgressBar {
    let progress = ProgressBar::new(total);
    progress.set_style(
        ProgressStyle::with_template("{elapsed_precise} {bar:20} {pos}/{len} ETA {eta} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    progress
}

/// Who takes part, and who is not on this machine.
fn field(args: &ShortpathArgs, binary: &Path) -> (Vec<PeerKind>, Vec<Skipped>) {
    let (mut peers, mut skipped) = (Vec::new(), Vec::new());
    for kind in PeerKind::value_variants() {
        if !args.peers.is_empty() && !args.peers.contains(kind) {
            continue;
        }
        match kind.available(binary) {
            Ok(()) => peers.push(*kind),
            Err(Skip { reason, remedy }) => {
                skipped.push(Skipped { peer: kind.name().to_owned(), reason, remedy });
            }
        }
    }
    (peers, skipped)
}

fn one_in_words(skipped: &Skipped) -> String {
    let Skipped { peer, reason, remedy } = skipped;
    format!("skipped: {peer}: {reason} ({remedy})")
}

fn in_words(skipped: &[Skipped]) -> String {
    skipped.iter().map(one_in_words).collect::<Vec<_>>().join("; ")
}

/// Ours: the one named, or the one beside this program.
pub(super) fn find_binary(named: Option<&PathBuf>) -> Result<PathBuf> {
    let beside = || std::env::current_exe().map(|path| path.with_file_name("switchback"));
    let path = named.cloned().map_or_else(beside, Ok)?;
    // A program runs in another directory than the caller's; a link beside `examples` stays one.
    std::path::absolute(&path).with_context(|| path.display().to_string())
}

/// Prints tables, unless data is printed, and writes what was asked for.
pub(super) fn publish(
    json: Option<&Path>,
    out: Option<&Path>,
    report: &ClaimsReport,
) -> Result<()> {
    if json != Some(Path::new("-")) {
        write_text(Path::new("-"), &text::terminal(report))?;
    }
    if let Some(path) = json {
        write_json(path, report)?;
    }
    let Some(dir) = out else { return Ok(()) };
    write_json(&dir.join("report.json"), report)?;
    write_text(&dir.join("report.html"), &page::render(report))?;
    for (name, svg) in page::plots(report) {
        write_text(&dir.join(name), &svg)?;
    }
    Ok(())
}

fn experiment(wanted: &str) -> Result<&'static str, String> {
    one_of(ALL.iter().map(|experiment| experiment.name), wanted)
}
