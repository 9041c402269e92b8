//! What happens to paths while applications run: every byte arrives once, in order, and the session goes on.
use std::fs;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::scene::{Scene, bulk, echo};
use crate::support::{Bytes, eventually, sha256};

const PAIR: &str = "pair:client-link=delay=10ms,agent-link=delay=10ms";
const DIRECT: &str = "UDP (Shortpath)";
const RELAY: &str = "UDP (Relay)";
const TCP: &str = "TCP (Reverse-Connect)";
const MIB: usize = 1 << 20;

/// What a person takes for dead, and what a session that waits for one transport's own timers exceeds. What is usual is 100
/// times less; the bench measures that.
const SILENCE_MAX: Duration = Duration::from_secs(8);

/// Runs an echo of 100/s and a transfer both ways, lets something happen to the network in their midst, and expects every
/// byte at its place.
fn while_busy(topology: &str, happen: impl FnOnce(&Scene)) {
    if let Some(scene) = Scene::start(topology) {
        busy_in(&scene, 600, || happen(&scene));
    }
}

/// The same, with so many messages of the echo.
fn busy_in(scene: &Scene, messages: u32, happen: impl FnOnce()) {
    let session = scene.connect();
    let mut interactive = session.dial();
    let through = session.dial();
    echo(&mut interactive, 100, 20);
    scene.expect_transport(DIRECT);
    let busy = thread::spawn(move || bulk(through, 16 * MIB));
    let measured = thread::spawn(move || echo(&mut interactive, 100, messages));
    thread::sleep(Duration::from_secs(1));
    happen();
    let longest = measured.join().expect("the echo ends well");
    busy.join().expect("the transfer ends well");
    println!("longest silence of the echo: {longest:?}");
    assert!(longest < SILENCE_MAX, "the echo was silent for {longest:?}");
}

#[test]
fn udp_that_is_dropped_in_mid_session_loses_no_byte_and_comes_back() {
    while_busy(PAIR, |scene| {
        scene.lab.nat("client-nat").block("udp=drop").unwrap();
        scene.expect_transport(TCP);
        scene.lab.nat("client-nat").block("udp=allow").unwrap();
        scene.expect_transport(DIRECT);
    });
}

#[test]
fn without_standby_udp_stands_alone_and_tcp_is_dialled_when_it_dies() {
    let Some(scene) = Scene::with_resource(PAIR, ";standby=cold") else { return };
    let alone = || {
        eventually("UDP to stand alone", Duration::from_secs(30), || {
            let sessions = scene.ask(&["sessions"]).ok().json();
            let paths = sessions[0]["paths"].as_array()?;
            let is_udp = |path: &Value| path["transport"] == DIRECT;
            (!paths.is_empty() && paths.iter().all(is_udp)).then_some(())
        });
    };
    // An idle session is in no hurry to come back.
    busy_in(&scene, 3_000, || {
        alone();
        scene.lab.nat("client-nat").block("udp=drop").unwrap();
        scene.expect_transport(TCP);
        scene.lab.nat("client-nat").block("udp=allow").unwrap();
        scene.expect_transport(DIRECT);
        alone();
    });
}

#[test]
fn udp_that_is_rejected_in_mid_session_loses_no_byte() {
    while_busy(PAIR, |scene| {
        scene.lab.nat("client-nat").block("udp=reject").unwrap();
        scene.expect_transport(TCP);
    });
}

#[test]
fn a_blackhole_in_one_direction_loses_no_byte() {
    while_busy(PAIR, |scene| scene.lab.nat("agent-nat").block("udp=drop-in").unwrap());
}

#[test]
fn a_nat_that_forgets_its_mappings_loses_no_byte() {
    while_busy(PAIR, |scene| {
        scene.lab.nat("client-nat").rebind(None).unwrap();
        thread::sleep(Duration::from_secs(2));
        scene.lab.nat("agent-nat").rebind(None).unwrap();
    });
}

#[test]
fn a_nat_with_a_mapping_timeout_of_two_seconds_loses_no_byte() {
    while_busy(
        "pair:client-nat=port-restricted,timeout=2s,agent-nat=port-restricted,timeout=2s",
        |_| thread::sleep(Duration::from_secs(5)),
    );
}

#[test]
fn a_nat_that_ends_mappings_at_an_age_however_busy_loses_no_byte() {
    while_busy(
        "pair:client-nat=port-restricted,lifetime=3s,agent-nat=port-restricted,lifetime=4s",
        |_| thread::sleep(Duration::from_secs(5)),
    );
}

#[test]
fn a_path_that_swallows_large_packets_loses_no_byte_and_is_counted() {
    while_busy("pair:client-link=delay=10ms,rate=20mbit,agent-link=delay=10ms", |scene| {
        let link = scene.lab.link("client");
        link.set("mtu=1280/silent").unwrap();
        thread::sleep(Duration::from_secs(3));
        // The broker's certificate does not pass either.
        link.set("mtu=off").unwrap();
        eventually("the black hole to be counted", Duration::from_secs(20), || {
            let loss = &scene.ask(&["sessions"]).ok().json()[0]["loss"];
            let found = ["client", "agent"].map(|end| loss[end]["black_holes"].as_u64());
            (found.into_iter().flatten().sum::<u64>() > 0).then_some(())
        });
    });
}

#[test]
fn a_client_that_roams_loses_no_byte() {
    while_busy(PAIR, |scene| {
        let client = scene.lab.host("client");
        client.readdress("192.168.1.2/24", "192.168.1.77/24").unwrap();
        scene.expect_transport(DIRECT);
    });
}

#[test]
fn a_session_without_any_network_resumes_on_another_one() {
    let Some(scene) = Scene::start(PAIR) else { return };
    let session = scene.connect();
    let mut interactive = session.dial();
    let through = session.dial();
    echo(&mut interactive, 100, 20);
    let busy = thread::spawn(move || bulk(through, 16 * MIB));
    let measured = thread::spawn(move || echo(&mut interactive, 100, 1_000));
    let link = scene.lab.link("client");
    link.set("blackhole").unwrap();
    thread::sleep(Duration::from_secs(3));
    scene.lab.host("client").readdress("192.168.1.2/24", "192.168.1.77/24").unwrap();
    thread::sleep(Duration::from_secs(2));
    link.set("blackhole=off").unwrap();
    scene.expect_transport(DIRECT);
    let silence = measured.join().expect("the echo ends well");
    busy.join().expect("the transfer ends well");
    assert!(silence >= Duration::from_secs(5) && silence < Duration::from_secs(5) + SILENCE_MAX);
}

#[test]
fn a_gateway_that_is_killed_is_not_missed_by_a_direct_session() {
    while_busy(PAIR, |scene| {
        scene.kill_server();
        thread::sleep(Duration::from_secs(2));
        scene.restart_server();
        scene.expect_transport(DIRECT);
    });
}

#[test]
fn scp_and_an_echo_survive_drop_rebinding_roaming_and_restart_with_equal_hashes() {
    const SIZE: usize = 64 * MIB;
    // 40 Mbit/s: slow enough that everything falls into the transfer.
    const RATE: u32 = 40_000;
    let Some(scene) = Scene::with_sshd(PAIR) else { return };
    let session = scene.connect();
    let mut stream = session.dial();
    let (here, there) = (scene.home().join("here"), scene.home().join("there"));
    let mut content = vec![0; SIZE];
    Bytes::seeded(4).fill(&mut content);
    fs::write(&here, &content).unwrap();
    echo(&mut stream, 100, 20);
    let mut copy = scene.scp(RATE, &here, &there);
    let measured = thread::spawn(move || echo(&mut stream, 100, 1_200));
    scene.expect_all(2, DIRECT);
    let nat = scene.lab.nat("client-nat");
    nat.block("udp=drop").unwrap();
    scene.expect_all(2, TCP);
    nat.block("udp=allow").unwrap();
    nat.rebind(None).unwrap();
    scene.expect_all(2, DIRECT);
    scene.lab.host("client").readdress("192.168.1.2/24", "192.168.1.77/24").unwrap();
    thread::sleep(Duration::from_secs(1));
    scene.kill_server();
    thread::sleep(Duration::from_secs(1));
    scene.restart_server();
    assert!(!copy.has_ended(), "all of it fell into the copy: {}", copy.stderr());
    assert_eq!(copy.wait(Duration::from_secs(120)), 0, "{}", copy.stderr());
    assert_eq!(sha256(&here), sha256(&there));
    measured.join().expect("the echo ends well");
}

#[test]
fn a_relayed_session_survives_its_gateway() {
    let Some(scene) = Scene::start("pair:client-nat=symmetric,agent-nat=symmetric") else { return };
    let session = scene.connect();
    let mut stream = session.dial();
    echo(&mut stream, 100, 20);
    scene.expect_transport(RELAY);
    let measured = thread::spawn(move || echo(&mut stream, 100, 500));
    scene.kill_server();
    thread::sleep(Duration::from_secs(1));
    scene.restart_server();
    measured.join().expect("the echo ends well");
}
