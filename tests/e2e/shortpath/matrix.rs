//! NAT x NAT: direct wherever theory allows, the relay elsewhere, and every session usable from its first second.
use std::time::Duration;

use super::scene::{Scene, echo};
use crate::support::eventually;

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
            let expected = if permits_direct(client, agent) { DIRECT } else { RELAY };
            wrong.extend(cell(&topology, expected));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The relay and TCP lead over the same gateway: the relay carries as soon as it is known to be as good, and on a machine whose
/// load decides which of the two looks better it stands by.
const RELAY_PATIENCE: Duration = Duration::from_secs(8);

/// One cell: a session that is used from its first second and while it moves. `None` if it came to this label.
fn cell(topology: &str, expected: &str) -> Option<String> {
    let scene = Scene::start(topology)?;
    let session = scene.connect();
    let mut stream = session.dial();
    echo(&mut stream, 100, 20);
    let patience = if expected == RELAY { RELAY_PATIENCE } else { Duration::from_secs(25) };
    let label = scene.transport_within(expected, patience);
    let stands_by = expected == RELAY && label.as_deref() == Some(TCP) && scene.has_path(RELAY);
    echo(&mut stream, 100, 20);
    println!("{topology}: {label:?}");
    (label.as_deref() != Some(expected) && !stands_by)
        .then(|| format!("{topology}: {label:?} instead of {expected}\n{}", scene.explained()))
}

#[test]
fn other_networks_have_their_expected_path_too() {
    let cells = [
        ("double-nat", DIRECT),
        ("double-nat:client-cgn=symmetric", RELAY),
        ("double-nat:client-nat=symmetric,agent-nat=full-cone", DIRECT),
        // Hosts of one network meet there, whatever the NAT does and whether or not it hairpins.
        ("same-lan", DIRECT),
        ("same-lan:lan-nat=symmetric", DIRECT),
        // What IPv4's NATs forbid, IPv6 allows: a stateful firewall opens from both sides.
        ("ipv6:client-nat=symmetric,agent-nat=symmetric", DIRECT),
        ("kernel", DIRECT),
        ("kernel:client-nat=masquerade-random", RELAY),
        ("kernel:client-nat=masquerade-random,agent-nat=masquerade-random", RELAY),
        ("kernel:client-nat=firewall,agent-nat=firewall", DIRECT),
    ];
    let cell = |(topology, expected)| cell(topology, expected);
    let wrong: Vec<_> = cells.into_iter().filter_map(cell).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn in_a_network_that_routes_the_agents_fixed_port_stands_by() {
    // Clients have no such port, and ignore the word.
    const PORT: [(&str, &str); 1] = [("SWITCHBACK_MANAGED_PORT", "3390")];
    let Some(scene) = Scene::with_ends("routed", &PORT) else { return };
    let session = scene.connect();
    let mut stream = session.dial();
    echo(&mut stream, 100, 20);
    scene.expect_transport(DIRECT);
    eventually("the managed leg to be there", Duration::from_secs(20), || {
        scene.explained().contains("UDP (Shortpath, managed)").then_some(())
    });
    echo(&mut stream, 100, 20);
}

#[test]
fn a_gateway_with_four_stun_addresses_serves_as_well() {
    let alternates = ["192.0.2.1:3479", "192.0.2.2:443", "192.0.2.2:3479"];
    let topology = "pair:client-nat=symmetric-sequential,agent-nat=port-restricted";
    let Some(scene) = Scene::with_alternates(topology, &alternates) else { return };
    let session = scene.connect();
    let mut stream = session.dial();
    scene.expect_transport(DIRECT);
    echo(&mut stream, 100, 20);
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
