//! `ping`: round trips through a session, and the way each took.
use std::collections::VecDeque;
use std::time::Duration;

use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;
use switchback_control::client::{
    Client, ClientOptions, ClientSession, EchoSender, PROBE_BYTES_MAX, PROBE_BYTES_MIN, echo,
};
use switchback_control::{Code, Fault, is_direct};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use crate::args::Global;
use crate::output::human;
use crate::stop::Stop;
use crate::udp_args::UdpArgs;
use crate::{account, output};

/// Round trips to the agent of a resource, and the way each took.
///
/// Opens a session of its own; probes go through it like an application's bytes, over whatever carries it just then, and
/// the agent sends them back without asking the service. The first go over TCP; once the direct path is found the label
/// changes. A probe is never lost: one that the network drops comes late. Exits with PING_UNANSWERED if nothing came
/// back, and with DIRECT_UNAVAILABLE if --until-direct never saw a direct path.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback ping ssh
  switchback ping ssh --until-direct -c 20        how long until the path is direct?
  switchback ping ssh --interval 20ms --size 200 -c 500 --json | jq .rtt_us")]
pub(crate) struct PingArgs {
    /// Resource, from `switchback resources`
    name: String,
    /// Stop after this many probes [default: until Ctrl-C]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Between two probes, 1ms to 1h
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = interval_of)]
    interval: Duration,
    /// Bytes of a probe, 8 to 16384
    #[arg(short, long, value_name = "BYTES", default_value_t = 64, value_parser = size)]
    size: usize,
    /// Stop at the first reply that went and came by a direct path
    #[arg(long)]
    until_direct: bool,
    /// How long to wait for the last replies
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    udp: UdpArgs,
}

fn interval_of(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let allowed = Duration::from_millis(1)..=Duration::from_secs(3600);
    if allowed.contains(&interval) { Ok(interval) } else { Err("must be 1ms to 1h".into()) }
}

fn size(text: &str) -> Result<usize, String> {
    let size = text.parse().map_err(|_| "no number of bytes".to_owned())?;
    let allowed = PROBE_BYTES_MIN..=PROBE_BYTES_MAX;
    let wrong = || format!("must be {PROBE_BYTES_MIN} to {PROBE_BYTES_MAX}");
    if allowed.contains(&size) { Ok(size) } else { Err(wrong()) }
}

/// A reply, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Reply<'a> {
    seq: u64,
    bytes: usize,
    rtt_us: u64,
    transport: &'a str,
}

/// Runs `ping`.
pub(crate) async fn run(args: PingArgs, global: &Global) -> Result<(), Fault> {
    let invite = account::invite(global)?;
    let mut stop = Stop::listen()?;
    let (udp, session) = (args.udp.options(), args.udp.session());
    let options = ClientOptions { udp, session, ..ClientOptions::default() };
    let opening =
        async { Client::connect_with(invite, options).await?.open_echo(&args.name).await };
    let session = tokio::select! {
        session = opening => session?,
        () = stop.wait() => return Ok(()),
    };
    let outcome = probe(&session, &args, global, &mut stop).await;
    // The other end learns of a lost farewell by itself.
    let _ = timeout(Duration::from_secs(2), session.close()).await;
    outcome
}

async fn probe(
    session: &ClientSession,
    args: &PingArgs,
    global: &Global,
    stop: &mut Stop,
) -> Result<(), Fault> {
    let (sender, replies) = echo(session, args.size)?;
    if !global.json {
        let (name, agent, id) = (&args.name, session.agent(), session.id());
        output::line(&format!("PING {name} at agent {agent}: {} bytes, session {id}", args.size))?;
    }
    let mut tally = Tally::default();
    let ended = exchange(session, args, global, (sender, replies), &mut tally, stop).await;
    if global.json {
        output::json(&tally.summary())?;
    } else {
        output::line(&tally.in_words(&args.name))?;
    }
    ended?;
    tally.verdict(args.until_direct)
}

async fn exchange(
    session: &ClientSession,
    args: &PingArgs,
    global: &Global,
    (mut sender, mut replies): (EchoSender, mpsc::Receiver<Result<u64, Fault>>),
    tally: &mut Tally,
    stop: &mut Stop,
) -> Result<(), Fault> {
    let mut clock = interval(args.interval);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_by = None;
    loop {
        let all_sent = args.count.is_some_and(|count| tally.sent >= count);
        if all_sent && tally.received == tally.sent {
            return Ok(());
        }
        let give_up = *last_by.get_or_insert_with(|| Instant::now() + args.timeout);
        if !all_sent {
            last_by = None;
        }
        tokio::select! {
            biased;
            () = stop.wait() => return Ok(()),
            reply = replies.recv() => {
                let Some(number) = reply.transpose()? else { return Ok(()) };
                if tally.take(session, args, global, number)? && args.until_direct {
                    return Ok(());
                }
            }
            _ = clock.tick(), if !all_sent => {
                let number = tally.leaves(session.stats().transport);
                sender.send(number, args.size).await?;
            }
            () = sleep_until(give_up), if all_sent => return Ok(()),
        }
    }
}

/// What came back so far.
struct Tally {
    sent: u64,
    first_at: Option<Instant>,
    /// Those that are not back, in the order they left and come back: when, and the label of what carried the session then.
    /// As many as the session's window lets out.
    under_way: VecDeque<(u64, Instant, Option<String>)>,
    received: u64,
    round_trips: Histogram<u64>,
    direct: u64,
    first_direct_ms: Option<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        // Up to ten minutes, three digits; longer round trips count as that.
        let round_trips = Histogram::new_with_bounds(1, 600_000_000, 3);
        let round_trips = round_trips.expect("the bounds are in order");
        Self {
            sent: 0,
            first_at: None,
            under_way: VecDeque::new(),
            received: 0,
            round_trips,
            direct: 0,
            first_direct_ms: None,
        }
    }
}

/// The end of `--json`.
#[derive(Debug, Serialize)]
struct Summary {
    sent: u64,
    received: u64,
    direct: u64,
    first_direct_ms: Option<u64>,
    min_us: Option<u64>,
    p50_us: Option<u64>,
    p99_us: Option<u64>,
    max_us: Option<u64>,
}

impl Tally {
    /// A probe leaves now; its number.
    fn leaves(&mut self, by: Option<String>) -> u64 {
        let now = Instant::now();
        self.sent += 1;
        self.first_at.get_or_insert(now);
        self.under_way.push_back((self.sent, now, by));
        self.sent
    }

    /// A probe is back: when it left, and by what. `None` if it is none that is awaited.
    fn back(&mut self, seq: u64) -> Option<(Instant, Option<String>)> {
        while self.under_way.front().is_some_and(|(number, ..)| *number < seq) {
            self.under_way.pop_front();
        }
        self.under_way.front().filter(|(number, ..)| *number == seq)?;
        self.under_way.pop_front().map(|(_, sent, by)| (sent, by))
    }

    /// Counts and prints a reply; whether it went and came by a direct path, as far as the session's choice when it left
    /// and when it was back tells. One that left before a move is told by the path it left on.
    fn take(
        &mut self,
        session: &ClientSession,
        args: &PingArgs,
        global: &Global,
        seq: u64,
    ) -> Result<bool, Fault> {
        let Some((sent, left_by)) = self.back(seq) else { return Ok(false) };
        let rtt = sent.elapsed();
        let known = [left_by, session.stats().transport];
        let direct = known.iter().all(|by| by.as_deref().is_some_and(is_direct));
        let label = known.iter().flatten().find(|by| direct || !is_direct(by));
        let label = label.map_or("no transport", String::as_str);
        let rtt_us = self.count(rtt, direct);
        if global.json {
            output::json(&Reply { seq, bytes: args.size, rtt_us, transport: label })?;
        } else if global.quiet == 0 {
            let time = human::micros(rtt_us);
            output::line(&format!("{} bytes: seq={seq} time={time} via {label}", args.size))?;
        }
        Ok(direct)
    }

    fn count(&mut self, rtt: Duration, direct: bool) -> u64 {
        let rtt_us = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
        self.received += 1;
        self.round_trips.saturating_record(rtt_us);
        if direct {
            self.direct += 1;
            let since = self.first_at.map(|sent| sent.elapsed()).unwrap_or_default();
            let since = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
            self.first_direct_ms.get_or_insert(since);
        }
        rtt_us
    }

    fn summary(&self) -> Summary {
        let figure = |value: u64| (self.received > 0).then_some(value);
        let round_trips = &self.round_trips;
        Summary {
            sent: self.sent,
            received: self.received,
            direct: self.direct,
            first_direct_ms: self.first_direct_ms,
            min_us: figure(round_trips.min()),
            p50_us: figure(round_trips.value_at_quantile(0.5)),
            p99_us: figure(round_trips.value_at_quantile(0.99)),
            max_us: figure(round_trips.max()),
        }
    }

    fn in_words(&self, name: &str) -> String {
        let Summary { sent, received, direct, first_direct_ms, min_us, p50_us, p99_us, max_us } =
            self.summary();
        let figure = |us: Option<u64>| us.map_or_else(|| human::UNKNOWN.into(), human::micros);
        let first = first_direct_ms.map(|ms| format!(", the first after {ms} ms"));
        format!(
            "--- {name} ---\n{sent} sent, {received} back, {direct} by a direct path{}\nmin {}  p50 {}  p99 {}  max {}",
            first.unwrap_or_default(),
            figure(min_us),
            figure(p50_us),
            figure(p99_us),
            figure(max_us)
        )
    }

    /// Whether `ping` got what it was asked for.
    fn verdict(&self, until_direct: bool) -> Result<(), Fault> {
        if self.received == 0 && self.sent > 0 {
            return Err(Code::PingUnanswered.because(format!("{} sent, none back", self.sent)));
        }
        if until_direct && self.direct == 0 {
            return Err(Code::DirectUnavailable.because("no reply came by a direct path"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Cli;

    fn parse(words: &[&str]) -> bool {
        Cli::try_parse_from(["switchback", "ping", "ssh"].iter().chain(words)).is_ok()
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(parse(&["-c", "3", "--interval", "20ms", "--size", "8", "--until-direct"]));
        for words in [["-c", "0"], ["--size", "7"], ["--size", "16385"], ["--interval", "0s"]] {
            assert!(!parse(&words), "{words:?}");
        }
    }

    #[test]
    fn what_is_back_is_forgotten_however_long_it_runs() {
        let mut tally = Tally::default();
        for _ in 0..10_000 {
            let seq = tally.leaves(Some("TCP (Reverse-Connect)".into()));
            let ahead = tally.leaves(None);
            assert!(tally.back(seq).is_some_and(|(_, by)| by.is_some()));
            assert!(tally.back(seq).is_none(), "once");
            assert!(tally.back(ahead).is_some());
        }
        assert_eq!((tally.sent, tally.under_way.len()), (20_000, 0));
        assert!(tally.back(20_001).is_none());
    }

    #[test]
    fn nothing_back_is_a_failure_and_so_is_no_direct_path_if_one_was_waited_for() {
        let mut tally = Tally::default();
        assert!(tally.verdict(true).is_err());
        tally.leaves(None);
        assert_eq!(tally.verdict(false).unwrap_err().code, Code::PingUnanswered);
        tally.count(Duration::from_millis(3), false);
        assert_eq!(tally.verdict(false), Ok(()));
        assert_eq!(tally.verdict(true).unwrap_err().code, Code::DirectUnavailable);
        tally.count(Duration::from_millis(3), true);
        assert_eq!(tally.verdict(true), Ok(()));
        let text = tally.in_words("ssh");
        assert!(text.contains("1 sent, 2 back, 1 by a direct path, the first after"), "{text}");
        assert!(text.contains("p50 3.00 ms"), "{text}");
    }
}
