//! What an end finds out about its network: a port at its router, and what `netcheck` tells of it.
use switchback_bench::lab::packet::Protocol;

use super::scene::{Scene, echo};

#[test]
fn a_port_at_one_router_makes_the_hardest_pair_of_nats_direct() {
    for (client, agent) in [
        ("symmetric,portmap=pcp", "symmetric"),
        ("symmetric,portmap=nat-pmp", "symmetric"),
        ("symmetric", "symmetric,portmap=pcp"),
    ] {
        let topology = format!(
            "pair:client-nat={client},agent-nat={agent},client-link=delay=5ms,agent-link=delay=5ms"
        );
        let Some(scene) = Scene::start(&topology) else { return };
        let session = scene.connect();
        let mut stream = session.dial();
        echo(&mut stream, 100, 20);
        scene.expect_transport("UDP (Shortpath)");
        echo(&mut stream, 100, 20);
    }
}

#[test]
fn netcheck_tells_nat_mtu_port_and_round_trips() {
    for (portmap, protocol) in [(",portmap=pcp", "pcp"), (",portmap=nat-pmp", "nat_pmp"), ("", "")]
    {
        let topology =
            format!("pair:client-nat=symmetric{portmap},client-link=delay=5ms,mtu=1400/silent");
        let Some(scene) = Scene::start(&topology) else { return };
        let report = scene.ask(&["netcheck"]).ok().json();
        assert_eq!(report["nat_v4"]["mapping"], "address_and_port_dependent", "{report}");
        // The gateway's padded answer can be longer than the request by a FINGERPRINT, and must pass, too.
        let mtu = report["mtu_v4"].as_u64().expect("packets pass");
        assert!((1392..=1400).contains(&mtu), "{report}");
        assert_eq!(report["broker_is_genuine"], true);
        assert_eq!(report["captive_portal"], false);
        for time in ["tcp_us", "udp_us"] {
            assert!(report["addresses"][0][time].as_u64() >= Some(10_000), "{report}");
        }
        let mapping = &report["port_mapping"];
        if protocol.is_empty() {
            assert_eq!(mapping["failure"], "silent", "{mapping}");
        } else {
            assert_eq!(mapping["protocol"], protocol, "{mapping}");
            let external = mapping["external"].as_str().expect("an address");
            assert!(external.starts_with("203.0.113.2:"), "{mapping}");
            assert_eq!(mapping["router"], "192.168.1.1");
        }
    }
}

#[test]
fn udp_leaves_only_from_the_ports_that_both_ends_are_given() {
    const PORTS: [(&str, &str); 1] = [("SWITCHBACK_UDP_PORTS", "50000-50009")];
    let Some(scene) = Scene::with_ends("pair", &PORTS) else { return };
    let session = scene.connect();
    let mut stream = session.dial();
    scene.expect_transport("UDP (Shortpath)");
    echo(&mut stream, 100, 300);
    for nat in ["client-nat", "agent-nat"] {
        let mappings = scene.lab.nat(nat).mappings();
        let udp = mappings.iter().filter(|it| it.protocol == Protocol::Udp);
        let ports: Vec<_> = udp.map(|it| it.inside.port()).collect();
        assert!(!ports.is_empty(), "{nat}");
        assert!(ports.iter().all(|port| (50_000..=50_009).contains(port)), "{nat}: {ports:?}");
    }
}

#[test]
fn networks_that_policy_excludes_get_no_udp() {
    const NETWORKS: [(&str, &str); 1] = [("SWITCHBACK_UDP_NETWORKS", "10.0.0.0/8")];
    let Some(scene) = Scene::with_ends("routed", &NETWORKS) else { return };
    let session = scene.connect();
    let mut stream = session.dial();
    echo(&mut stream, 100, 300);
    let label = scene.transport_within("UDP (Shortpath)", std::time::Duration::from_secs(3));
    assert_ne!(label.as_deref(), Some("UDP (Shortpath)"));
    echo(&mut stream, 100, 20);
}
