//! The lab's test of itself: every NAT as its two sides see it, and the delay of a wire.

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use switchback_bench::lab::nat::{Filtering, Mapping, NAMED, NatSettings, PortAssignment};
use switchback_bench::lab::probe::{self, Behaviour, Ports};
use switchback_bench::lab::referee::{self, Verdict};
use switchback_bench::lab::{Lab, unavailable};

use super::show::table;

/// Labs at once: most of the time is waiting for what must not arrive.
const LABS: usize = 4;

/// A packet on perfect links that has not arrived by then was refused. The machine may be busy.
const SILENCE: Duration = Duration::from_millis(150);

/// Packets of a measurement of delay, and how far apart.
const DELAY_PACKETS: u32 = 500;
const DELAY_APART: Duration = Duration::from_millis(2);

/// Checks everything and prints tables; the exit code is 1 if a NAT is not what it should be.
pub(super) fn run() -> Result<ExitCode> {
    if let Some(why) = unavailable() {
        bail!("no lab can run here: {why}");
    }
    let start = Instant::now();
    let lab = Lab::start(&"pair".parse()?, 1)?;
    let up = start.elapsed();
    drop(lab);
    let down = start.elapsed() - up;
    println!("pair: up after {:.0?}, down after {:.0?}\n", up, down);
    let wrong = check_nats()?;
    check_delays()?;
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How many NATs are not what they should be.
fn check_nats() -> Result<usize> {
    let all = kinds();
    let results: Vec<Mutex<Option<Result<Seen>>>> = all.iter().map(|_| Mutex::default()).collect();
    thread::scope(|scope| {
        for first in 0..LABS {
            let mine = all.iter().zip(&results).skip(first).step_by(LABS);
            scope.spawn(move || {
                for (kind, result) in mine {
                    let seen = observe(kind);
                    *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
                }
            });
        }
    });
    let header = ["NAT", "MAPPING", "FILTERING", "PORTS", "HAIRPIN", "COTURN SAYS", "RIGHT"];
    let mut shown = table(&header);
    let mut wrong = 0;
    for (kind, result) in all.iter().zip(results) {
        let result = result.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Seen { behaviour, coturn } = result.context("not checked")??;
        let agreed = coturn.is_none_or(|says| says.agrees_with(kind));
        let right = behaviour == expected(kind) && agreed;
        wrong += usize::from(!right);
        shown.add_row([
            kind.to_string(),
            format!("{:?}", behaviour.mapping),
            format!("{:?}", behaviour.filtering),
            format!("{:?}", behaviour.ports),
            yes(behaviour.hairpin).to_lowercase(),
            coturn.map_or("-".into(), |says| says.to_string()),
            yes(right),
        ]);
    }
    println!("{shown}\n");
    Ok(wrong)
}

fn yes(so: bool) -> String {
    if so { "yes" } else { "NO" }.to_owned()
}

/// The named ones, and every combination of RFC 4787's behaviours.
fn kinds() -> Vec<NatSettings> {
    use {Filtering as F, Mapping as M, PortAssignment as P};
    let mut kinds: Vec<NatSettings> =
        NAMED.iter().filter_map(|(name, ..)| name.parse().ok()).collect();
    for mapping in [M::EndpointIndependent, M::AddressDependent, M::AddressAndPortDependent] {
        for filter in [F::EndpointIndependent, F::AddressDependent, F::AddressAndPortDependent] {
            for ports in [P::Keep, P::Random, P::Sequential] {
                let kind = NatSettings::new(mapping, filter, ports);
                if !kinds.contains(&kind) {
                    kinds.push(kind);
                }
            }
        }
    }
    kinds
}

/// What the probe should see of a NAT. Without translation a host's outside endpoint is its own.
fn expected(kind: &NatSettings) -> Behaviour {
    let routed = kind.mapping == Mapping::None;
    let ports = match kind.ports {
        PortAssignment::Sequential if !routed => Ports::Sequential,
        PortAssignment::Random if !routed => Ports::Scattered,
        _ => Ports::Kept,
    };
    let hairpin = kind.hairpin || routed;
    Behaviour { mapping: kind.mapping, filtering: kind.filtering, ports, hairpin }
}

struct Seen {
    behaviour: Behaviour,
    coturn: Option<Verdict>,
}

fn observe(kind: &NatSettings) -> Result<Seen> {
    let lab = Lab::start(&format!("pair:client-nat={kind}").parse()?, 1)?;
    let behaviour = probe::behaviour(&lab, "client", "server", SILENCE)
        .with_context(|| format!("probing {kind}"))?;
    // A client that is not behind a NAT is told so, and nothing more.
    let asked = kind.mapping != Mapping::None;
    let coturn = if asked { referee::coturn(&lab, "client", "server")? } else { None };
    Ok(Seen { behaviour, coturn })
}

fn check_delays() -> Result<()> {
    let lab = Lab::start(&"pair".parse()?, 1)?;
    let client = probe::socket(lab.host("client"), (Ipv4Addr::UNSPECIFIED, 0))?;
    let server = probe::socket(lab.host("server"), ([192, 0, 2, 1], 9))?;
    let mut shown = table(&["DELAY SET", "PACKETS", "MEDIAN ms", "P99 ms", "MAX ms"]);
    for delay in ["0ms", "5ms", "20ms", "100ms"] {
        lab.link("client").set(&format!("delay={delay}"))?;
        let seen = probe::delays(&client, &server, DELAY_PACKETS, DELAY_APART)?;
        let at = |share: f64| {
            let index = (seen.len() as f64 * share) as usize;
            let delay = seen.get(index).or(seen.last());
            delay.map_or("-".into(), |delay| format!("{:.3}", delay.as_secs_f64() * 1000.0))
        };
        shown.add_row([delay.into(), seen.len().to_string(), at(0.5), at(0.99), at(1.0)]);
    }
    println!("{shown}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_the_rfc_is_checked_once() {
        assert_eq!(kinds().len(), 27 + 3, "none, firewall and the hairpinning cgn are extra");
    }
}
