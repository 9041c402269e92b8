//! What an end finds out about its network: a port at its router, and what `netcheck` tells of it.
use std::collections::BTreeSet;
use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
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
        assert_eq!(report["mtu_v4"], 1400, "{report}");
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

#[test]
fn quic_packets_arrive_with_the_code_point_that_their_sender_is_given() {
    const MARKED: [(&str, &str); 1] = [("SWITCHBACK_DSCP", "ef")];
    let Some(scene) = Scene::with_ends("pair", &MARKED) else { return };
    let session = scene.connect();
    let mut stream = session.dial();
    scene.expect_transport("UDP (Shortpath)");
    let busy = thread::spawn(move || echo(&mut stream, 100, 400));
    for (host, sender) in [("agent", [203, 0, 113, 2]), ("client", [198, 51, 100, 2])] {
        let points = scene.lab.host(host).enter(|| code_points_of_quic(sender));
        let points = points.expect("a host").expect("a packet socket");
        assert_eq!(points, BTreeSet::from([46]), "from {sender:?}");
    }
    busy.join().expect("the echo ends well");
}

/// Code points of the QUIC packets with a short header that come in from this address within a second.
fn code_points_of_quic(sender: [u8; 4]) -> std::io::Result<BTreeSet<u8>> {
    const ETH_P_IP: u16 = 0x0800;
    let protocol = socket2::Protocol::from(i32::from(ETH_P_IP.to_be()));
    let mut socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let (mut points, mut packet) = (BTreeSet::new(), [0; 2048]);
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        let Ok(length) = socket.read(&mut packet) else { continue };
        let ip = &packet[..length];
        let is_udp = length > 28 && ip[0] == 0x45 && ip[9] == 17 && ip[12..16] == sender;
        if is_udp && ip[28] >> 6 == 1 {
            points.insert(ip[1] >> 2);
        }
    }
    Ok(points)
}
