//! Every NAT against every NAT: direct where theory allows, usable everywhere.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use super::{Case, Experiment};
use crate::shortpath::goals::{Goal, Metric, Sample, Statistic};
use crate::shortpath::peers::{PeerKind, Tunnel};
use crate::shortpath::scene::{Distances, LINGER, Trial, answered, in_lab, ms};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "matrix",
    title: "NAT x NAT",
    claim: "Direct wherever theory allows, else relayed, and usable from the first second everywhere.",
    who: "switchback, iroh; the others have no direct path",
    rounds: 1,
    cases,
};

const NATS: [&str; 6] = [
    "none",
    "full-cone",
    "address-restricted",
    "port-restricted",
    "symmetric-sequential",
    "symmetric",
];

/// Of a quick run: the common case, the hardest that works, one that cannot, one without UDP.
const QUICK: [[&str; 2]; 3] = [
    ["port-restricted", "port-restricted"],
    ["port-restricted", "symmetric-sequential"],
    ["symmetric", "symmetric"],
];

const DISTANCES: Distances = Distances { path: 20 };
const RATE: f64 = 100.0;

/// The first echo came within a second after the client's end was there: 1 or 0.
const USABLE: Metric = Metric::share("usable");
/// The echo ran at the direct round trip: 1 or 0.
const DIRECT: Metric = Metric::share("direct");
/// The relay over UDP carried it, or stood by: 1 or 0; absent for those who do not tell.
const RELAYED: Metric = Metric::share("relayed");
const TIME_TO_DIRECT: Metric = Metric::ms("time_to_direct");

/// The direct path is given up after this.
const PATIENCE: Duration = Duration::from_secs(8);
/// Where theory permits none; long enough to be surprised.
const PATIENCE_WITHOUT_HOPE: Duration = Duration::from_secs(3);

/// In the transport label of whoever tells.
const RELAY: &str = "Relay";
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// From the application's dial until its first echo.
const USABLE_WITHIN_NS: u64 = 1_000_000_000;

/// What two NATs permit (RFC 4787 behaviours): a random port per destination can only be met by a
/// filter that does not look at ports; a sequential one can be predicted when the other end stays
/// where it is.
fn permits_direct(client: &str, agent: &str) -> bool {
    let meets = |one: &str, other: &str| match one {
        "symmetric" => matches!(other, "none" | "full-cone" | "address-restricted"),
        "symmetric-sequential" => !matches!(other, "symmetric" | "symmetric-sequential"),
        _ => true,
    };
    meets(client, agent) && meets(agent, client)
}

fn cases(quick: bool) -> Vec<Case> {
    let pairs: Vec<[&'static str; 2]> = match quick {
        true => QUICK.to_vec(),
        false => NATS.iter().flat_map(|one| NATS.map(|other| [*one, other])).collect(),
    };
    let mut cases: Vec<Case> = pairs.into_iter().map(|pair| case(pair, None)).collect();
    let blocked: &[&str] = if quick { &["udp=drop"] } else { &["udp=drop", "udp=reject"] };
    cases.extend(blocked.iter().map(|policy| case(["port-restricted"; 2], Some(policy))));
    cases
}

fn case([client, agent]: [&'static str; 2], policy: Option<&'static str>) -> Case {
    let hope = policy.is_none() && permits_direct(client, agent);
    let mut goals = vec![Goal::at_least("switchback", USABLE, Statistic::Min, 1.0)];
    if hope {
        goals.push(Goal::at_least("switchback", DIRECT, Statistic::Min, 1.0));
    } else if policy.is_none() {
        goals.push(Goal::at_least("switchback", RELAYED, Statistic::Min, 1.0));
    }
    let name = match policy {
        Some(policy) => format!("{client} x {agent}, client {policy}"),
        None => format!("{client} x {agent}"),
    };
    let measure = move |trial: Trial<'_>| measure(trial, [client, agent], policy, hope);
    let peers = vec![PeerKind::Switchback, PeerKind::Iroh];
    Case { name, peers, goals, measure: Box::new(measure) }
}

fn measure(
    trial: Trial<'_>,
    [client, agent]: [&str; 2],
    policy: Option<&str>,
    hope: bool,
) -> Result<Sample> {
    let topology = DISTANCES.topology(&format!("client-nat={client},agent-nat={agent}"));
    in_lab(trial, &topology, |scene, tunnel| {
        if let Some(policy) = policy {
            scene.ground.shaped()?.nat("client-nat").block(policy)?;
        }
        let (echo, begun) = scene.begin_timed(tunnel, RATE)?;
        let patience = if hope { PATIENCE } else { PATIENCE_WITHOUT_HOPE };
        let direct_ns = DISTANCES.direct_ns();
        let direct = echo.until(patience, |trace| trace.runs_within(direct_ns, 0));
        let transport = if hope || policy.is_some() {
            tunnel.transport()
        } else {
            settled(tunnel, PATIENCE.saturating_sub(PATIENCE_WITHOUT_HOPE))
        };
        let session = tunnel.session();
        let trace = echo.finish(LINGER);
        let first = trace.answered_after(0);
        let usable = first.is_some_and(|first| first.saturating_sub(begun) <= USABLE_WITHIN_NS);
        let mut sample = Sample::default()
            .with(USABLE, f64::from(u8::from(usable)))
            .with(DIRECT, f64::from(u8::from(direct.is_some())))
            .with_some(TIME_TO_DIRECT, direct.map(|at| ms(at.saturating_sub(begun))))
            .told("expected", if hope { "direct" } else { "relayed" })
            .told("answered", format!("{} of {}", answered(&trace), trace.messages.len()));
        if let Some(transport) = transport {
            let relayed = transport.contains(RELAY) || stands_by(&session);
            let relayed = f64::from(u8::from(relayed));
            sample = sample.with(RELAYED, relayed).told("transport", transport);
        }
        Ok(sample)
    })
}

/// What carries the session once it is on the relay, or when patience ends: TCP and the relay have the same round trip here, so
/// a session takes its time to find that the relay is no worse.
fn settled(tunnel: &dyn Tunnel, patience: Duration) -> Option<String> {
    let deadline = Instant::now() + patience;
    loop {
        let transport = tunnel.transport()?;
        if transport.contains(RELAY) || Instant::now() >= deadline {
            return Some(transport);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Whether the relay is one of the session's paths: which of two equal ones carries is decided by what else the machine does.
fn stands_by(session: &Value) -> bool {
    let paths = session["paths"].as_array();
    let named = |path: &Value| path["transport"].as_str().is_some_and(|name| name.contains(RELAY));
    paths.is_some_and(|paths| paths.iter().any(named))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn theory_is_symmetric_and_knows_its_corners() {
        for one in NATS {
            assert!(
                NATS.iter().all(|other| permits_direct(one, other) == permits_direct(other, one))
            );
            assert!(permits_direct(one, "none"), "{one}");
        }
        assert!(!permits_direct("symmetric", "port-restricted"));
        assert!(permits_direct("symmetric-sequential", "port-restricted"), "by prediction");
        assert_eq!(cases(false).len(), 38);
    }
}
