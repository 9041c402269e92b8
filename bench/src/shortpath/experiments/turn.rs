//! What relaying a UDP packet costs at the highest rate of a stock client that is carried almost
//! without loss.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Case, Experiment};
use crate::measure::cpu::of_process;
use crate::peers::child::ending_with_us;
use crate::peers::program::find;
use crate::shortpath::goals::{Goal, Metric, Sample, Statistic};
use crate::shortpath::ground::{Ground, Host};
use crate::shortpath::peers::{PeerKind, turn_program};
use crate::shortpath::running::Running;
use crate::shortpath::scene::Trial;

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "turn",
    title: "Relayed packets",
    claim: "Our relay moves 1.5 times coturn's packets per second of a core, each losing below 1 %.",
    who: "switchback-turn, coturn: relays, not tunnels",
    rounds: 5,
    cases,
};

/// Of the relay's CPU time at the highest rate it carries.
const PER_CORE: Metric = Metric { name: "packets_per_core", unit: "kpps" };
const CPU: Metric = Metric { name: "cpu_per_million", unit: "s" };
/// What the clients send there, all together.
const OFFERED: Metric = Metric { name: "offered", unit: "kpps" };
const LOST: Metric = Metric { name: "lost", unit: "%" };

/// The server has two addresses: the relay's, and the one of the peer it relays to.
const RELAY: &str = "192.0.2.1";
const PEER: &str = "192.0.2.2";
const RELAY_PORT: &str = "3478";
const PEER_PORT: &str = "3480";
const SECRET: &str = "bench";

/// Milliseconds between two messages of a client, the highest rate first.
const INTERVALS_MS: [u32; 7] = [1, 2, 3, 4, 6, 10, 20];
/// A relay carries a rate if it loses less than this, in percent. More than that is overload, where
/// what is cheap is what is dropped.
const LOST_MOST: f64 = 1.0;
/// The stock client now and then loses a burst by itself.
const TRIES: usize = 2;

/// What a measurement sends.
#[derive(Clone, Copy)]
struct Load {
    clients: u32,
    bytes: u32,
    /// How long, in milliseconds.
    lasting_ms: u32,
}

fn cases(quick: bool) -> Vec<Case> {
    // Clients begin one by one, 0.1 s each.
    let (clients, lasting_ms) = if quick { (10, 1000) } else { (50, 4000) };
    let sizes: &[u32] = if quick { &[200] } else { &[200, 1200] };
    let case = |bytes: &u32| {
        let load = Load { clients, bytes: *bytes, lasting_ms };
        let goal = Goal::at_least("switchback-turn", PER_CORE, Statistic::P50, 1.5);
        Case {
            name: format!("{bytes} bytes, {clients} clients, ChannelData"),
            peers: vec![PeerKind::SwitchbackTurn, PeerKind::Coturn],
            goals: vec![
                goal.times("coturn", 0.0),
                Goal::at_least("switchback-turn", OFFERED, Statistic::P50, 1.0)
                    .times("coturn", 0.0),
            ],
            measure: Box::new(move |trial| measure(trial, load)),
        }
    };
    sizes.iter().map(case).collect()
}

fn measure(trial: Trial<'_>, load: Load) -> Result<Sample> {
    let ground = Ground::lab("pair", trial.seed)?;
    let mut peer = program("turnutils_peer")?;
    peer.args(["-L", PEER, "-p", PEER_PORT]);
    let _peer = Running::start(&ground, Host::Server, "turnutils_peer", peer)?;
    let relay = match trial.peer {
        PeerKind::SwitchbackTurn => {
            let mut command = Command::new(turn_program(&trial.setup.binary));
            command.args([&format!("{RELAY}:{RELAY_PORT}"), SECRET, "192.0.2.0/24"]);
            command
        }
        _ => coturn()?,
    };
    let relay = Running::start(&ground, Host::Server, trial.peer.name(), relay)?;
    std::thread::sleep(UP);
    for interval_ms in INTERVALS_MS {
        for _ in 0..TRIES {
            let before = of_process(relay.pid())?;
            let counts = offer(&ground, load, interval_ms)?;
            let used = (of_process(relay.pid())? - before).as_secs_f64();
            ensure!(
                counts.received > 0.0,
                "nothing came back through {}{}",
                trial.peer.name(),
                relay.log_tail()
            );
            if counts.lost() < LOST_MOST {
                // Each message passes the relay twice: to the peer, and back.
                let relayed = counts.sent + counts.received;
                return Ok(Sample::default()
                    .with(PER_CORE, relayed / used / 1e3)
                    .with(CPU, used / relayed * 1e6)
                    .with(OFFERED, f64::from(load.clients) / f64::from(interval_ms))
                    .with(LOST, counts.lost()));
            }
        }
    }
    bail!("{} loses {LOST_MOST} % even of the lowest rate", trial.peer.name())
}

/// Both relays listen within this.
const UP: Duration = Duration::from_millis(500);

/// One relay thread, as ours has one worker.
fn coturn() -> Result<Command> {
    let mut command = program("turnserver")?;
    command.args(["-n", "--use-auth-secret", "--static-auth-secret", SECRET, "--realm", "bench"]);
    command.args(["--no-tls", "--no-dtls", "--no-cli", "--no-tcp", "-m", "1"]);
    command.args(["-L", RELAY, "-E", RELAY, "-p", RELAY_PORT, "--log-file", "stdout"]);
    command.args(["--pidfile", "/dev/null", "--user-quota", "0", "--total-quota", "0"]);
    Ok(command)
}

/// Sends messages at a rate, and counts what comes back.
fn offer(ground: &Ground, load: Load, interval_ms: u32) -> Result<Counts> {
    let Load { clients, bytes, lasting_ms } = load;
    let mut command = program("turnutils_uclient")?;
    let messages = lasting_ms / interval_ms;
    for (flag, number) in [("-z", interval_ms), ("-m", clients), ("-n", messages), ("-l", bytes)] {
        command.args([flag, &number.to_string()]);
    }
    command.args(["-c", "-e", PEER, "-r", PEER_PORT]);
    command.args(["-W", SECRET, "-u", "bench", "-p", RELAY_PORT, RELAY]);
    let mut command = ending_with_us(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = ground.spawn(Host::Server, command)?.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Counts::read(&text).with_context(|| {
        let tail: Vec<&str> = text.lines().rev().take(3).collect();
        format!("turnutils_uclient ended with {}: {}", output.status, tail.join(" / "))
    })
}

fn program(name: &str) -> Result<Command> {
    match find(name) {
        Some(path) => Ok(Command::new(path)),
        None => bail!("{name} is gone"),
    }
}

/// Messages of all clients.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Counts {
    sent: f64,
    received: f64,
}

impl Counts {
    /// In percent.
    fn lost(self) -> f64 {
        100.0 * (1.0 - self.received / self.sent)
    }

    /// From the last line with totals that `turnutils_uclient` prints.
    fn read(text: &str) -> Option<Counts> {
        let line = text.lines().rev().find(|line| line.contains("tot_send_msgs="))?;
        let number = |key: &str| {
            let digits = line.split_once(key)?.1;
            digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        let lost = text.lines().rev().find(|line| line.contains("Total lost packets"));
        let sent = number("tot_send_msgs=")?;
        let lost = lost.and_then(|line| {
            line.split_once("Total lost packets ")?.1.split_whitespace().next()?.parse::<f64>().ok()
        });
        // The line of totals is printed while the last messages are under way.
        Some(Counts { sent, received: lost.map_or(number("tot_recv_msgs=")?, |lost| sent - lost) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_read_from_what_the_stock_client_prints() {
        let text = "1: : start_mclient: msz=2, tot_send_msgs=90, tot_recv_msgs=80, tot_send_bytes ~ 0\n\
                    2: : start_mclient: msz=2, tot_send_msgs=400, tot_recv_msgs=396, tot_send_bytes ~ 9\n\
                    3: : Total transmit time is 2\n\
                    3: : Total lost packets 2 (0.5%), total send dropped 0 (0.000000%)\n";
        assert_eq!(Counts::read(text), Some(Counts { sent: 400.0, received: 398.0 }));
        assert_eq!(Counts::read("0: : unknown allocate response\n"), None);
    }
}
