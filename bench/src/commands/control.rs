//! `control`: the broker under load, each claim judged.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::shortpath::{find_binary, progress_bar, publish};
use super::{DEBUG_BUILD, Verdict, one_of};
use crate::control::SCHEMA;
use crate::control::experiments::{ALL, Experiment, help};
use crate::control::runner::{Plan, Setup};
use crate::measure::host::Host;
use crate::measure::placement::{Placement, raise_open_files};
use crate::peers::child::{end_with_signals, output_of};
use crate::report::PeerVersion;
use crate::shortpath::report::ClaimsReport;

/// The end of `--help`.
pub(crate) fn after_help() -> String {
    format!("Experiments and what they claim:\n{}\n{EXAMPLES}", help())
}

const EXAMPLES: &str = "\
Examples:
  All of them, in under a minute; orders of magnitude:
    switchback-bench control --quick
  Everything, with data, a page and plots in one directory (10 minutes):
    switchback-bench control --out report
  One claim, at a size of one's own:
    switchback-bench control agents --agents 5000

The broker has one CPU and the simulated agents and clients another. 10,000 agents take as many open files on either
side, and 600 MiB in all.

Exit code: 0 all measured, 1 something failed, 2 wrong usage, 130 ended by a signal.";

/// Files that are open besides links: the program's own, the broker's pipes, readers and clients.
const FILES_BESIDE: u64 = 512;
/// Part of the limit that the broker keeps for itself, at least.
const RESERVE_PART: u64 = 20;

/// One call of the program.
const VERSION_WITHIN: Duration = Duration::from_secs(20);

/// Flags of `control`.
#[derive(Args, Debug)]
pub(crate) struct ControlArgs {
    /// What to measure; see below [default: all]
    #[arg(value_parser = experiment, value_name = "EXPERIMENT")]
    experiments: Vec<&'static str>,
    /// Numbers of agents to connect, for `agents` [default: 100,1000,10000; quick: 100,1000]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=15_000))]
    agents: Vec<u16>,
    /// Rounds [default: each experiment's own, 1 or 2; quick: 1]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Fewer cases, shorter measurements: all experiments in under a minute
    #[arg(long)]
    quick: bool,
    /// Of all chance: when requests come
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The switchback binary [default: the one beside this program]
    #[arg(long, env = "SWITCHBACK_BIN")]
    binary: Option<PathBuf>,
    /// Write the report as JSON (schema/control-1.json); `-` prints it instead of the tables
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write report.json, report.html and the plots as SVG files
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Measures and reports.
///
/// # Errors
/// Nothing could be measured at all: no broker, too few open files, no place to write.
pub(crate) fn run(args: &ControlArgs) -> Result<Verdict> {
    if let Some(dir) = &args.out {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let binary = find_binary(args.binary.as_ref())?;
    ensure!(
        binary.is_file(),
        "no broker at {}: cargo build --release builds it, --binary PATH names another",
        binary.display()
    );
    end_with_signals()?;
    let placement = Placement::choose();
    let agents = args.agents.iter().map(|agents| usize::from(*agents)).collect();
    let setup = Setup { binary: binary.clone(), quick: args.quick, agents, placement };
    let rounds = args.rounds.map(usize::from);
    let plan = Plan { setup, rounds, seed: args.seed };
    let chosen: Vec<&Experiment> = ALL
        .iter()
        .filter(|one| args.experiments.is_empty() || args.experiments.contains(&one.name))
        .collect();
    if chosen.iter().any(|one| one.name == ALL[0].name) {
        enough_files(args)?;
    }
    let warnings = warnings(placement);
    warnings.iter().for_each(|warning| eprintln!("{warning}"));
    let version = output_of(version_of(&binary), VERSION_WITHIN)?.trim().to_owned();
    let host = Host::read();
    let progress = progress_bar(chosen.iter().map(|one| plan.measurements(one)).sum());
    let (begun, mut failures) = (Instant::now(), Vec::new());
    let experiments =
        chosen.iter().map(|one| plan.run(one, begun, &progress, &mut failures)).collect();
    progress.finish_and_clear();
    let report = ClaimsReport {
        schema: SCHEMA,
        compared: "variant",
        bench_version: env!("CARGO_PKG_VERSION"),
        command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        host,
        quick: args.quick,
        seed: args.seed,
        peers: vec![PeerVersion { name: "switchback".to_owned(), version, ours: true }],
        skipped: Vec::new(),
        experiments,
        failures,
        warnings,
    };
    publish(args.json.as_deref(), args.out.as_deref(), &report)?;
    Ok(if report.failures.is_empty() { Verdict::Complete } else { Verdict::Incomplete })
}

/// Whether either side may hold as many links as there will be agents.
fn enough_files(args: &ControlArgs) -> Result<()> {
    let most = args.agents.iter().copied().max().unwrap_or(if args.quick { 1_000 } else { 10_000 });
    let wanted = files_for(most.into());
    // The broker inherits the limit.
    let Some(limit) = raise_open_files() else { return Ok(()) };
    ensure!(
        limit >= wanted,
        "{most} agents take {wanted} open files, the limit is {limit}: run `ulimit -Hn {wanted}` as root first \
         (systemd: LimitNOFILE={wanted}), or pass a smaller --agents"
    );
    Ok(())
}

/// Open files that so many links need, what the broker keeps for itself included.
fn files_for(links: u64) -> u64 {
    let files = links + FILES_BESIDE;
    files + files / (RESERVE_PART - 1) + 1
}

fn warnings(placement: Placement) -> Vec<String> {
    let alone = "this process may use one CPU only: broker and simulated ends share it".to_owned();
    let shared = placement.generator_cpu.is_none().then_some(alone);
    cfg!(debug_assertions).then(|| DEBUG_BUILD.to_owned()).into_iter().chain(shared).collect()
}

fn version_of(binary: &std::path::Path) -> Command {
    let mut command = Command::new(binary);
    command.arg("--version");
    command
}

fn experiment(wanted: &str) -> Result<&'static str, String> {
    one_of(ALL.iter().map(|experiment| experiment.name), wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_links_fit_into_what_is_asked_for_with_the_brokers_reserve() {
        let files = files_for(10_000);
        assert!(files - files / RESERVE_PART >= 10_000 + FILES_BESIDE, "{files}");
        assert!(files < 12_000, "{files}");
    }
}
