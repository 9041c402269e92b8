//! NAT x NAT: direct wherever theory allows, the relay or TCP elsewhere, and every session usable from its first second.
use std::time::Duration;

use super::scene::{Scene, echo};

const DIRECT: &str = "UDP (Shortpath)";
const RELAY: &str = "UDP (Relay)";
const TCP: &str = "TCP (Reverse-Connect)";

const NATS: [&str; 6] = [
    "none",
    "full-cone",
    "address-restricted",
    "port-restricted",
    "symmetric-sequential",
    "symmetric",
];

/// What two NATs permit (RFC 4787 behaviours): a random port per destination can only be met by a filter that does not look
/// at ports; a sequential one can be predicted when the other end stays where it is.
fn permits_direct(client: &str, agent: &str) -> bool {
    let meets = |one: &str, other: &str| match one {
        "symmetric" => matches!(other, "none" | "full-cone" | "address-restricted"),
        "symmetric-sequential" => !matches!(other, "symmetric" | "symmetric-sequential"),
        _ => true,
    };
    meets(client, agent) && meets(agent, client)
}

#[test]
fn every_pair_of_nats_is_direct_where_theory_allows_and_usable_everywhere() {
    let mut wrong = Vec::new();
    for client in NATS {
        for agent in NATS {
            let topology = format!(
                "pair:client-nat={client},agent-nat={agent},client-link=delay=5ms,agent-link=delay=5ms"
            );
            let Some(scene) = Scene::start(&topology) else { return };
            let session = scene.connect();
            let mut stream = session.dial();
            echo(&mut stream, 100, 20);
            // The relay and TCP lead over the same gateway here: which of the two is better is a matter of microseconds.
            let expected: &[&str] =
                if permits_direct(client, agent) { &[DIRECT] } else { &[RELAY, TCP] };
            let label = scene.transport_within(expected[0], Duration::from_secs(15));
            echo(&mut stream, 100, 20);
            println!("{client} x {agent}: {label:?}");
            if !label.as_deref().is_some_and(|label| expected.contains(&label)) {
                wrong.push(format!("{client} x {agent}: {label:?} instead of {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn where_udp_is_blocked_the_session_runs_on_tcp() {
    for policy in ["udp=drop", "udp=reject"] {
        let Some(scene) = Scene::start("pair") else { return };
        scene.lab.nat("client-nat").block(policy).unwrap();
        let session = scene.connect();
        let mut stream = session.dial();
        echo(&mut stream, 100, 300);
        assert_eq!(scene.transport_within(TCP, Duration::from_secs(5)).as_deref(), Some(TCP));
    }
}

#[test]
fn a_resource_without_udp_stays_on_tcp() {
    let Some(scene) = Scene::with_resource("pair", ";udp=off") else { return };
    let session = scene.connect();
    let mut stream = session.dial();
    echo(&mut stream, 100, 300);
    assert_eq!(scene.transport_within(TCP, Duration::from_secs(5)).as_deref(), Some(TCP));
}
