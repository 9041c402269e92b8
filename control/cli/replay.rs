//! `replay`: play what `shadow --record` kept.
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use switchback_control::shadow::frame::Direction;
use switchback_control::shadow::{Moment, cast, pcap};
use switchback_control::{Code, Fault};
use tokio::time::sleep;

use crate::args::Global;
use crate::output::human;
use crate::output::table::{Column, Table};
use crate::stop::Stop;
use crate::{output, shadow};

/// Play a recorded session.
///
/// Writes what the service sent to standard output, byte for byte and in its own time. Reads the asciicast and pcap files of
/// `switchback shadow --record`; asciinema plays the first as well, Wireshark and tcpdump read the second.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback replay incident.cast
  switchback replay incident.cast --speed 4 --max-idle 1s
  switchback replay incident.pcap --list
  switchback replay incident.pcap --channel 3 --max-idle 0s >bytes")]
pub(crate) struct ReplayArgs {
    /// A recording
    file: PathBuf,
    /// How many times faster than it was, 0.01 to 1000
    #[arg(long, value_name = "TIMES", default_value_t = 1.0, value_parser = speed)]
    speed: f64,
    /// Longest pause; 0s plays without any [default: as it was]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    max_idle: Option<Duration>,
    /// Channel to play [default: the first]
    #[arg(long, value_name = "N")]
    channel: Option<u64>,
    /// Only say what is in it
    #[arg(long)]
    list: bool,
}

/// Longer pauses are a damaged file's.
const PAUSE_MAX: Duration = Duration::from_secs(24 * 3600);

fn speed(text: &str) -> Result<f64, String> {
    let speed: f64 = text.parse().map_err(|_| "no number".to_owned())?;
    if (0.01..=1000.0).contains(&speed) { Ok(speed) } else { Err("must be 0.01 to 1000".into()) }
}

/// Runs `replay`.
pub(crate) async fn run(args: ReplayArgs, global: &Global) -> Result<(), Fault> {
    let moments = read(&args.file)?;
    if args.list || global.json {
        return list(&moments, global);
    }
    let mut stop = Stop::listen()?;
    let channel = args.channel.or_else(|| moments.first().map(|moment| moment.channel));
    let shown = moments.into_iter().filter(|moment| {
        Some(moment.channel) == channel && moment.direction == Direction::ToClient
    });
    let mut before = None;
    for moment in shown {
        let pause = pause(before.replace(moment.at_us), moment.at_us, args.speed, args.max_idle);
        if !pause.is_zero() {
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.wait() => return Ok(()),
            }
        }
        if shadow::paint(&moment.bytes.into())? {
            break;
        }
    }
    Ok(())
}

fn pause(before: Option<u64>, at_us: u64, speed: f64, max: Option<Duration>) -> Duration {
    let pause = Duration::from_micros(at_us.saturating_sub(before.unwrap_or(at_us)));
    pause.min(PAUSE_MAX).div_f64(speed).min(max.unwrap_or(Duration::MAX))
}

fn read(path: &PathBuf) -> Result<Vec<Moment>, Fault> {
    let wrong = |why: String| Code::UsageInvalid.because(format!("{}: {why}", path.display()));
    let file = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let moments = if pcap::is_pcap(&file) {
        pcap::read(&file)
    } else {
        match String::from_utf8(file) {
            Ok(text) => cast::read(&text),
            Err(_) => Err("this is neither an asciicast nor a pcap file".into()),
        }
    };
    moments.map_err(wrong)
}

/// A channel of a recording.
#[derive(Debug, Default, Serialize)]
struct Channel {
    channel: u64,
    to_target: u64,
    to_client: u64,
    duration_ms: u64,
    #[serde(skip)]
    first_us: u64,
}

fn list(moments: &[Moment], global: &Global) -> Result<(), Fault> {
    let mut channels: BTreeMap<u64, Channel> = BTreeMap::new();
    for Moment { at_us, channel, direction, bytes } in moments {
        let fresh = || Channel { channel: *channel, first_us: *at_us, ..Channel::default() };
        let of = channels.entry(*channel).or_insert_with(fresh);
        let count = match direction {
            Direction::ToTarget => &mut of.to_target,
            Direction::ToClient => &mut of.to_client,
        };
        *count += bytes.len() as u64;
        of.duration_ms = at_us.saturating_sub(of.first_us) / 1000;
    }
    let channels: Vec<_> = channels.into_values().collect();
    if global.json {
        return output::json(&channels);
    }
    let mut table = Table::new(&[
        Column::Figure("CHANNEL"),
        Column::Figure("TO-TARGET"),
        Column::Figure("TO-CLIENT"),
        Column::Figure("LASTED"),
    ]);
    for Channel { channel, to_target, to_client, duration_ms, .. } in channels {
        let (up, down) = (human::bytes(to_target), human::bytes(to_client));
        table.row([channel.to_string(), up, down, human::age(duration_ms)]);
    }
    table.print("nothing passed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_as_long_as_they_were_unless_asked_otherwise() {
        let second = 1_000_000;
        assert_eq!(pause(None, second, 1.0, None), Duration::ZERO);
        assert_eq!(pause(Some(0), second, 1.0, None), Duration::from_secs(1));
        assert_eq!(pause(Some(0), second, 2.0, None), Duration::from_millis(500));
        let max = Some(Duration::from_millis(10));
        assert_eq!(pause(Some(0), second, 1.0, max), Duration::from_millis(10));
        assert!(speed("0").is_err() && speed("inf").is_err() && speed("2").is_ok());
    }
}
