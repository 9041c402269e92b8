//! `load`: an open-loop load generator against any echo.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;

use super::{DEBUG_BUILD, Verdict, write_json};
use crate::load::ledger::LatencyFigures;
use crate::load::request_response::{RequestResponse, run as run_load};
use crate::load::schedule::Arrivals;
use crate::measure::placement::raise_open_files;
use crate::measure::{Meter, Usage};
use crate::peers::socket::Dialer;
use crate::report::grid::number;

/// Examples at the end of `--help`.
pub(crate) const EXAMPLES: &str = "\
Latency counts from the moment a message should have been sent, so a stall of the target is charged
for every message that was due meanwhile (no coordinated omission).

Examples:
  An echo, and 2,000 messages/s to it:
    switchback-bench echo --listen 127.0.0.1:7000
    switchback-bench load --target 127.0.0.1:7000 --rate 2000
  Through a session (agent: --resource echo=tcp:127.0.0.1:7000):
    switchback connect echo --listen 127.0.0.1:7001
    switchback-bench load --target 127.0.0.1:7001 --rate 2000 --connections 50 --json load.json";

/// Names the shape of the JSON document.
const SCHEMA: &str = "switchback-bench/load/1";

/// Flags of `load`.
#[derive(Args, Debug)]
pub(crate) struct LoadArgs {
    /// An echo: HOST:PORT
    #[arg(long, value_name = "HOST:PORT")]
    target: String,
    /// Messages per second, all connections together
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Connections, used in turn
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    connections: u32,
    /// Bytes per message
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    message_bytes: u32,
    /// Measured seconds, after the warm-up
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Seconds of the same load before, not counted
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=600))]
    warmup: u32,
    /// How messages are spread over time
    #[arg(long, value_enum, default_value_t)]
    arrivals: Arrivals,
    /// Seed of the Poisson schedule
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Sleep between messages instead of spinning: kinder to the machine, adds wake-up latency
    #[arg(long)]
    sleep: bool,
    /// Write the figures as JSON; `-` prints it instead of the text
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct LoadReport<'a> {
    schema: &'static str,
    bench_version: &'static str,
    target: &'a str,
    rate: u32,
    connections: u32,
    message_bytes: u32,
    window_s: u32,
    warmup_s: u32,
    arrivals: Arrivals,
    seed: u64,
    spin: bool,
    latency: LatencyFigures,
    usage: Usage,
    warnings: Vec<String>,
}

/// Above this share of late sends the generator, not the target, shapes the percentiles.
const LATE_SHARE: f64 = 0.01;

/// Loads the target and reports.
///
/// # Errors
/// The target cannot be reached, or a connection breaks.
pub(crate) fn run(args: &LoadArgs) -> Result<Verdict> {
    raise_open_files();
    let near = connect_all(&args.target, args.connections)?;
    let load = RequestResponse {
        rate: f64::from(args.rate),
        message_bytes: args.message_bytes as usize,
        arrivals: args.arrivals,
        seed: args.seed,
        warmup: Duration::from_secs(args.warmup.into()),
        window: Duration::from_secs(args.seconds.into()),
        spin: !args.sleep,
    };
    let outcome = run_load(&near, &[], &load, &Meter::of_generator())?;
    let report = LoadReport {
        schema: SCHEMA,
        bench_version: env!("CARGO_PKG_VERSION"),
        target: &args.target,
        rate: args.rate,
        connections: args.connections,
        message_bytes: args.message_bytes,
        window_s: args.seconds,
        warmup_s: args.warmup,
        arrivals: args.arrivals,
        seed: args.seed,
        spin: load.spin,
        warnings: warnings(&outcome.figures),
        latency: outcome.figures,
        usage: outcome.usage,
    };
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    if args.json.as_deref() != Some(Path::new("-")) {
        print!("{}", describe(&report));
    }
    let complete = report.latency.counts.unanswered == 0;
    Ok(if complete { Verdict::Complete } else { Verdict::Incomplete })
}

fn connect_all(target: &str, count: u32) -> Result<Vec<TcpStream>> {
    let resolved: Option<SocketAddr> =
        target.to_socket_addrs().with_context(|| format!("resolving {target}"))?.next();
    let addr = resolved.with_context(|| format!("{target} has no address"))?;
    let dialer = Dialer::system_default();
    let sockets: Vec<TcpStream> =
        (0..count).map(|_| dialer.connect(addr)).collect::<Result<_>>()?;
    ensure!(!sockets.is_empty(), "no connections");
    Ok(sockets)
}

fn warnings(figures: &LatencyFigures) -> Vec<String> {
    let late = figures.late_share();
    let unanswered = figures.counts.unanswered;
    let possible = [
        (cfg!(debug_assertions), DEBUG_BUILD.to_owned()),
        (
            late > LATE_SHARE,
            format!(
                "{:.1} % of messages were sent over 100 us late: the generator is saturated or was \
                 not given CPU, and the percentiles include that",
                late * 100.0
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

fn describe(report: &LoadReport<'_>) -> String {
    let latency = &report.latency;
    let mut text = format!(
        "{}: {} messages of {} B at {}/s over {} connection(s), {} answered\n",
        report.target,
        latency.counts.sent,
        report.message_bytes,
        report.rate,
        report.connections,
        latency.counts.answered
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
        text += &format!("  {name:<13}{:>10} us\n", number(value));
    }
    text += &format!(
        "  noise: steal {:.1} %, other work {:.1} % of the machine\n",
        report.usage.steal_share * 100.0,
        report.usage.foreign_share * 100.0
    );
    for warning in &report.warnings {
        text += &format!("warning: {warning}\n");
    }
    text
}
