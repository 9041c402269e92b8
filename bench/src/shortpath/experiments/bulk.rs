//! One stream as fast as it goes, what it costs, and whether it takes the faster path.

use std::io::Write;
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Case, Experiment};
use crate::load::GIB;
use crate::measure::cpu::of_processes;
use crate::shortpath::goals::{Goal, Metric, Sample, Statistic};
use crate::shortpath::ground::Ground;
use crate::shortpath::peers::{PeerKind, Tunnel, dial};
use crate::shortpath::scene::{Trial, within};
use crate::shortpath::service::{Duty, Service};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "bulk",
    title: "Bulk",
    claim: "TCP - shortpath - TCP costs 0.8 of an iroh tunnel's CPU and carries 1.2 of its rate; \
            bulk takes the faster path.",
    who: "all tunnels; the CPU of both ends and of the server counts",
    rounds: 5,
    cases,
};

const THROUGHPUT: Metric = Metric { name: "throughput", unit: "Gbit/s" };
/// From the first byte on, until throughput is measured: what growing and comparing cost.
const AT_FIRST: Metric = Metric { name: "throughput_at_first", unit: "Gbit/s" };
/// CPU of both ends and of the server, whether bytes pass it or not.
const CPU: Metric = Metric { name: "cpu_per_gib", unit: "s/GiB" };

const TCP_CPU_S: f64 = 2.0;
/// A path that is faster by more than a tenth is taken, so the choice carries at least this share of
/// what the best path alone does.
const CHOSEN: f64 = 0.9;

/// How the product's labels of a path past the server begin.
const DIRECT: &str = "UDP (Shortpath";

/// Windows grow, a direct path is found, and ours has compared its paths: TCP and then the relay with the best so far, each
/// after a second of bulk, in 2.4 s at most.
const WARMUP: Duration = Duration::from_secs(8);
const DIRECT_WITHIN: Duration = Duration::from_secs(8);
const TAIL_WITHIN: Duration = Duration::from_secs(20);

/// A home whose provider lets UDP have a tenth of what TCP gets.
const POLICED: &str = "pair:client-link=delay=5ms,rate=200mbit,queue=1MB,udp-rate=20mbit,\
                       agent-link=delay=5ms,server-link=delay=2ms";

fn cases(quick: bool) -> Vec<Case> {
    let measured = Duration::from_secs(if quick { 1 } else { 4 });
    let chosen =
        |other| Goal::at_least("switchback", THROUGHPUT, Statistic::P50, CHOSEN).times(other, 0.0);
    let beats_iroh = |peer| {
        [
            Goal::at_most(peer, CPU, Statistic::P50, 0.8).times("iroh", 0.0),
            Goal::at_least(peer, THROUGHPUT, Statistic::P50, 1.2).times("iroh", 0.0),
        ]
    };
    let unshaped = Case {
        name: "one stream, upload, unshaped veth".to_owned(),
        peers: vec![
            PeerKind::Switchback,
            PeerKind::SwitchbackUdp,
            PeerKind::SwitchbackTcp,
            PeerKind::Iroh,
            PeerKind::Quinn,
            PeerKind::Rathole,
            PeerKind::Ssh,
        ],
        goals: [beats_iroh("switchback"), beats_iroh("switchback-udp")]
            .into_iter()
            .flatten()
            .chain([Goal::at_most("switchback-tcp", CPU, Statistic::P50, TCP_CPU_S)])
            .chain([chosen("switchback-udp"), chosen("switchback-tcp")])
            .collect(),
        measure: Box::new(move |trial| measure(trial, &Ground::veth()?, measured)),
    };
    let policed = Case {
        name: "one stream, upload, 200 Mbit/s of which UDP gets 20".to_owned(),
        peers: vec![
            PeerKind::Switchback,
            PeerKind::SwitchbackUdp,
            PeerKind::SwitchbackTcp,
            PeerKind::Iroh,
        ],
        goals: vec![chosen("switchback-tcp")],
        measure: Box::new(move |trial| {
            measure(trial, &Ground::lab(POLICED, trial.seed)?, measured)
        }),
    };
    vec![unshaped, policed]
}

fn measure(trial: Trial<'_>, ground: &Ground, measured: Duration) -> Result<Sample> {
    within(trial, ground, Duty::Discard, |scene, tunnel| {
        tunnel.client()?;
        wait_for_udp(trial.peer, tunnel);
        let mut stream = dial(scene.ground, tunnel.entry())?;
        let kept = stream.try_clone()?;
        let sender = thread::spawn(move || -> u64 {
            let buffer = vec![0x5a; 256 << 10];
            let mut sent = 0;
            // Ends when the other half shuts it down.
            while let Ok(written) = stream.write(&buffer) {
                sent += written as u64;
            }
            sent
        });
        thread::sleep(WARMUP);
        let carrying = [tunnel.ends(), tunnel.servers()].concat();
        let (begun, before) = (Instant::now(), of_processes(&carrying)?);
        let bytes_before = scene.service.bytes();
        thread::sleep(measured);
        let bytes = scene.service.bytes() - bytes_before;
        let (took, used) = (begun.elapsed(), of_processes(&carrying)? - before);
        let transport = tunnel.transport();
        // The rest of what was written is still to arrive.
        kept.shutdown(Shutdown::Write).context("ending the stream")?;
        let sent = sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?;
        all_arrive(scene.service, sent)?;
        ensure!(bytes > 0, "no byte arrived in {took:?}");
        let gbits = |bytes: u64, took: Duration| bytes as f64 * 8.0 / 1e9 / took.as_secs_f64();
        let sample = Sample::default()
            .with(THROUGHPUT, gbits(bytes, took))
            .with(AT_FIRST, gbits(bytes_before, WARMUP))
            .with(CPU, used.as_secs_f64() / (bytes as f64 / GIB));
        Ok(match transport {
            Some(transport) => sample.told("transport", transport),
            None => sample,
        })
    })
}

/// Ours says when it is on UDP; iroh does not tell, and has its warm-up for it.
fn wait_for_udp(peer: PeerKind, tunnel: &dyn Tunnel) {
    let deadline = Instant::now() + DIRECT_WITHIN;
    let on_udp = || tunnel.transport().is_some_and(|label| label.starts_with(DIRECT));
    let waits = matches!(peer, PeerKind::Switchback | PeerKind::SwitchbackUdp);
    while waits && !on_udp() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(100));
    }
}

fn all_arrive(service: &Service, sent: u64) -> Result<()> {
    let deadline = Instant::now() + TAIL_WITHIN;
    // A byte more may have come from trying whether the tunnel works.
    while service.bytes() < sent {
        let arrived = service.bytes();
        ensure!(Instant::now() < deadline, "{arrived} of {sent} bytes arrived in {TAIL_WITHIN:?}");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
