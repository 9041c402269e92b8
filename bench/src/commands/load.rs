//! `load`: a load generator against any echo, sink or source, directly or through a session.

mod live;
mod report;
mod through;

use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{Args, ValueEnum};
use serde::Serialize;

use self::live::Live;
use self::report::{LoadReport, SCHEMA, Throughput, describe, warnings};
use self::through::Through;
use super::{Verdict, write_json, write_text};
use crate::load::drive::{self, Load, Outcome, Window};
use crate::load::exchange::{Exchange, Messages, Pacing};
use crate::load::schedule::Arrivals;
use crate::load::sizes::{self, Sizes};
use crate::load::streams::{Streams, Way};
use crate::measure::Meter;
use crate::measure::placement::raise_open_files;
use crate::peers::socket::Dialer;
use crate::report::hgrm;

/// Examples at the end of `--help`.
pub(crate) const EXAMPLES: &str = "\
Messages are sent on schedule, whatever has been answered (open loop), and latency counts from the
moment a message should have been sent: a stall is charged for every message that was due meanwhile
(no coordinated omission). --rate max is a closed loop instead: each connection sends its next
message when the last one is answered.

Examples:
  An echo, and 2,000 messages/s to it over 50 connections:
    switchback-bench echo --listen 127.0.0.1:7000
    switchback-bench load --target 127.0.0.1:7000 --rate 2000 --connections 50
  The same through a session. On the agent's side the echo is a resource like any other
  (switchback agent --resource echo=tcp:127.0.0.1:7000 ...); here, signed in:
    switchback-bench load --through echo --rate 2000 --duration 1m --hgrm latency.hgrm
  How many messages per second it can do:
    switchback-bench load --target 127.0.0.1:7000 --rate max --connections 100 --sizes 64-1400
  How many bytes, to a service that discards them, and from one that generates them:
    switchback-bench echo --as discard --listen 127.0.0.1:7009
    switchback-bench load --target 127.0.0.1:7009 --mode up --connections 8
    switchback-bench echo --as generate --listen 127.0.0.1:7019
    switchback-bench load --target 127.0.0.1:7019 --mode down --json -

Exit codes: 0 measured, 1 something failed or messages never came back, 2 wrong usage, 130 ended by
a signal.";

/// Flags of `load`.
#[derive(Args, Debug)]
pub(crate) struct LoadArgs {
    /// Where to connect to: an echo, or what --mode says
    #[arg(long, value_name = "HOST:PORT", required_unless_present = "through")]
    target: Option<String>,
    /// Open a session to this resource (as `switchback connect` would) and connect through it
    #[arg(long, value_name = "NAME", conflicts_with = "target")]
    through: Option<String>,
    /// The switchback program for --through; else the one beside this program, or in PATH
    #[arg(long, value_name = "PATH", env = "SWITCHBACK_BIN", requires = "through")]
    binary: Option<PathBuf>,
    /// What is sent, and what the other end must be
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Messages per second, all connections together, or `max` [default: 1000]
    #[arg(long, value_name = "N|max", value_parser = rate)]
    rate: Option<Rate>,
    /// Connections, used in turn
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    connections: u32,
    /// Bytes per message [default: 64]
    #[arg(long, value_name = "BYTES", value_parser = sizes::size)]
    size: Option<u32>,
    /// Bytes per message, drawn evenly from a range
    #[arg(long, value_name = "LO-HI", value_parser = Sizes::parse_range, conflicts_with = "size")]
    sizes: Option<Sizes>,
    /// Bytes per message, drawn from a file with a line `BYTES WEIGHT` for each size
    #[arg(long, value_name = "FILE", conflicts_with_all = ["size", "sizes"])]
    sizes_file: Option<PathBuf>,
    /// Measured time, after the warm-up
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// The same load before, not counted
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = warmup)]
    warmup: Duration,
    /// How messages are spread over time [default: poisson]
    #[arg(long, value_enum)]
    arrivals: Option<Arrivals>,
    /// Seed of times and sizes: the same seed is the same load [default: 1]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Sleep between messages instead of spinning: kinder to the machine, adds wake-up latency
    #[arg(long)]
    sleep: bool,
    /// Write the latencies as an HdrHistogram percentile file, in microseconds
    #[arg(long, value_name = "FILE")]
    hgrm: Option<PathBuf>,
    /// Write the figures as JSON; `-` prints it instead of the text
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// Messages; the other end sends back what it gets
    #[default]
    Echo,
    /// Bytes as fast as they go; the other end discards them, and ends when we do, which ends the
    /// measured time: what was sent after the warm-up counts once all of it has been read
    Up,
    /// Nothing; the other end sends bytes as fast as they go
    Down,
}

/// Messages per second.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rate {
    PerSecond(u32),
    Max,
}

/// Messages per second when nothing else is said.
const RATE: Rate = Rate::PerSecond(1000);

/// Bytes per message when nothing else is said: a keystroke or a mouse event with its framing.
const SIZE: u32 = 64;

/// Seed when nothing else is said.
const SEED: u64 = 1;

/// Largest distribution that is read.
const SIZES_FILE_BYTES_MAX: u64 = 4 << 20;

/// Loads the target and reports.
///
/// # Errors
/// The target cannot be reached, or a connection breaks.
pub(crate) fn run(args: &LoadArgs) -> Result<Verdict> {
    if let Err(wrong) = check(args) {
        wrong.exit();
    }
    raise_open_files();
    let messages = messages(args)?;
    let through = match &args.through {
        Some(resource) => Some(Through::open(resource, args.binary.as_deref())?),
        None => None,
    };
    let target = match (&through, &args.target) {
        (Some(through), _) => through.listen().to_string(),
        (None, target) => target.clone().unwrap_or_default(),
    };
    let near = connect_all(&target, args.connections)?;
    let loaded = drive(args, near, messages.clone());
    let outcome = match (loaded, &through) {
        (Err(error), Some(through)) => return Err(error).with_context(|| through.log_tail()),
        (loaded, _) => loaded?,
    };
    let session = through.map(Through::close).transpose()?;
    if let (Some(path), Some(closed)) = (&args.hgrm, &outcome.messages) {
        write_text(path, &hgrm::render(&closed.histogram))?;
    }
    let report = report(args, &messages, &target, session, outcome);
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    if args.json.as_deref() != Some(Path::new("-")) {
        print!("{}", describe(&report));
    }
    let unanswered = report.latency.as_ref().map_or(0, |latency| latency.counts.unanswered);
    Ok(if unanswered == 0 { Verdict::Complete } else { Verdict::Incomplete })
}

/// What clap cannot say: messages have a rate and sizes, bulk has none.
fn check(args: &LoadArgs) -> Result<(), clap::Error> {
    let sized = args.size.is_some() || args.sizes.is_some() || args.sizes_file.is_some();
    let messages = [
        ("--rate", args.rate.is_some()),
        ("--size, --sizes and --sizes-file", sized),
        ("--hgrm", args.hgrm.is_some()),
        ("--arrivals", args.arrivals.is_some()),
        ("--seed", args.seed.is_some()),
        ("--sleep", args.sleep),
    ];
    match messages.iter().find(|(_, given)| *given && args.mode != Mode::Echo) {
        Some((flag, _)) => {
            let text = format!("{flag}: only --mode echo sends messages\n");
            Err(clap::Error::raw(ErrorKind::ArgumentConflict, text))
        }
        None if args.arrivals.is_some() && args.rate == Some(Rate::Max) => {
            let text = "--arrivals: with --rate max a message is sent when the last is answered\n";
            Err(clap::Error::raw(ErrorKind::ArgumentConflict, text))
        }
        None => Ok(()),
    }
}

fn messages(args: &LoadArgs) -> Result<Messages> {
    let sizes = match (&args.sizes, &args.sizes_file) {
        (Some(sizes), _) => sizes.clone(),
        (None, Some(path)) => read_sizes(path)?,
        (None, None) => Sizes::One(args.size.unwrap_or(SIZE)),
    };
    let pacing = match args.rate.unwrap_or(RATE) {
        Rate::Max => Pacing::Closed,
        Rate::PerSecond(rate) => {
            Pacing::Open { rate: rate.into(), arrivals: args.arrivals.unwrap_or_default() }
        }
    };
    Ok(Messages { pacing, sizes, seed: args.seed.unwrap_or(SEED) })
}

fn read_sizes(path: &Path) -> Result<Sizes> {
    let at = || path.display().to_string();
    let bytes = std::fs::metadata(path).with_context(at)?.len();
    anyhow::ensure!(
        bytes <= SIZES_FILE_BYTES_MAX,
        "{} is larger than {SIZES_FILE_BYTES_MAX} bytes",
        at()
    );
    let text = std::fs::read_to_string(path).with_context(at)?;
    Sizes::parse_weighted(&text).map_err(|why| anyhow::anyhow!("{}: {why}", at()))
}

fn connect_all(target: &str, count: u32) -> Result<Vec<TcpStream>> {
    let resolved = target.to_socket_addrs().with_context(|| format!("resolving {target}"))?;
    let dialer = Dialer::system_default();
    let mut failed = anyhow::anyhow!("{target} has no address");
    for addr in resolved {
        match dialer.connect(addr) {
            Ok(first) => {
                let more = (1..count).map(|_| dialer.connect(addr));
                return std::iter::once(Ok(first)).chain(more).collect();
            }
            Err(error) => failed = error,
        }
    }
    Err(failed.context(format!(
        "{target} cannot be reached: is `switchback-bench echo --listen {target}` running?"
    )))
}

fn drive(args: &LoadArgs, near: Vec<TcpStream>, messages: Messages) -> Result<Outcome> {
    let (mut exchange, mut streams) = (None, None);
    match args.mode {
        Mode::Echo => exchange = Some(Exchange::new(near, Vec::new(), messages)?),
        Mode::Up => streams = Some(Streams::to_service(near, Way::Up)?),
        Mode::Down => streams = Some(Streams::to_service(near, Way::Down)?),
    }
    let window = Window { warmup: args.warmup, measured: args.duration };
    let load = Load { exchange, streams, window, spin: !args.sleep };
    let mut live = Live::start(window);
    drive::run(load, &Meter::of_generator(), &mut live)
}

fn report<'a>(
    args: &'a LoadArgs,
    messages: &Messages,
    target: &'a str,
    session: Option<through::Session>,
    outcome: Outcome,
) -> LoadReport<'a> {
    let is_echo = args.mode == Mode::Echo;
    let throughput = (!is_echo).then(|| Throughput::of(args.mode, &outcome));
    let latency = outcome.messages.map(|closed| closed.figures);
    let per_second = outcome.window_answered as f64 / outcome.usage.wall_s;
    LoadReport {
        schema: SCHEMA,
        bench_version: env!("CARGO_PKG_VERSION"),
        target,
        session,
        mode: args.mode,
        connections: args.connections,
        rate: match messages.pacing {
            Pacing::Open { rate, .. } if is_echo => Some(rate),
            _ => None,
        },
        arrivals: match messages.pacing {
            Pacing::Open { arrivals, .. } if is_echo => Some(arrivals),
            _ => None,
        },
        sizes: is_echo.then(|| messages.sizes.to_string()),
        seed: is_echo.then_some(messages.seed),
        window_s: args.duration.as_secs_f64(),
        warmup_s: args.warmup.as_secs_f64(),
        spin: is_echo.then_some(!args.sleep),
        messages_per_second: is_echo.then_some(per_second),
        warnings: warnings(latency.as_ref(), &outcome.usage, outcome.busy_share),
        latency,
        throughput,
        generator_busy_share: outcome.busy_share,
        usage: outcome.usage,
    }
}

fn rate(text: &str) -> Result<Rate, String> {
    if text == "max" {
        return Ok(Rate::Max);
    }
    match text.parse() {
        Ok(rate @ 1..=1_000_000) => Ok(Rate::PerSecond(rate)),
        _ => Err("neither 1 to 1000000 nor max".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    within(text, Duration::from_millis(50), Duration::from_secs(86_400))
}

fn warmup(text: &str) -> Result<Duration, String> {
    within(text, Duration::ZERO, Duration::from_secs(600))
}

fn within(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (least..=most).contains(&time) {
        return Ok(time);
    }
    let (least, most) = (humantime::format_duration(least), humantime::format_duration(most));
    Err(format!("not in {least} to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_times_are_numbers_within_bounds_or_max() {
        assert_eq!(rate("max"), Ok(Rate::Max));
        assert_eq!(rate("2000"), Ok(Rate::PerSecond(2000)));
        assert!(rate("0").is_err() && rate("1000001").is_err() && rate("fast").is_err());
        assert_eq!(duration("1m"), Ok(Duration::from_secs(60)));
        assert!(duration("0s").is_err() && duration("2days").is_err() && duration("5").is_err());
        assert_eq!(warmup("0s"), Ok(Duration::ZERO));
    }
}
