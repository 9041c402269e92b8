//! What users are shown of the path: each reply's route, each change, and why it is not better.
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::scene::{Scene, bulk, echo};
use crate::support::eventually;

const PAIR: &str = "pair:client-link=delay=10ms,agent-link=delay=10ms";
/// The client's provider lets a tenth of what its link carries be UDP.
const POLICED: &str =
    "pair:client-link=delay=10ms,rate=40mbit,udp-rate=4mbit,agent-link=delay=10ms";
const DIRECT: &str = "UDP (Shortpath)";
const TCP: &str = "TCP (Reverse-Connect)";

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[test]
fn ping_tells_the_route_of_each_reply_and_stops_at_the_first_direct_one() {
    let Some(scene) = Scene::start(PAIR) else { return };
    let args = ["ping", "echo", "--until-direct", "-c", "500", "-i", "20ms", "--size", "200"];
    let mut replies = lines(&scene.ask(&args).ok().stdout);
    let summary = replies.pop().expect("a summary");
    let (last, before) = replies.split_last().expect("a reply");
    assert_eq!(last["transport"], DIRECT, "{last}");
    assert!(before.iter().all(|reply| reply["transport"] != DIRECT), "{before:?}");
    for (reply, seq) in replies.iter().zip(1..) {
        assert!(reply["seq"] == seq && reply["bytes"] == 200, "{reply}");
        assert!(reply["rtt_us"].as_u64().is_some_and(|us| us >= 20_000), "{reply}");
    }
    assert_eq!((&summary["direct"], &summary["received"]), (&1.into(), &replies.len().into()));
    assert!(summary["first_direct_ms"].is_u64(), "{summary}");
    let counted = scene.ask(&["ping", "echo", "-c", "3", "-i", "20ms"]).ok();
    assert_eq!(lines(&counted.stdout).len(), 3 + 1);
}

#[test]
fn connect_tells_each_change_with_its_cause_and_round_trip() {
    let Some(scene) = Scene::start(PAIR) else { return };
    let session = scene.connect();
    let mut stream = session.dial();
    echo(&mut stream, 100, 20);
    scene.expect_transport(DIRECT);
    scene.lab.nat("client-nat").block("udp=drop").unwrap();
    echo(&mut stream, 100, 200);
    scene.expect_transport(TCP);
    let mut told = (1..).map(|number| session.told(number));
    let moved = told.find(|moved| moved["to"] == TCP).expect("it is told");
    assert!(moved["cause"] == "silent" || moved["cause"] == "lost", "{moved}");
    assert!(moved["stall_us"].as_u64().is_some_and(|us| us > 0), "{moved}");
    assert!(moved["rtt_us"].as_u64().is_some_and(|us| us >= 35_000), "{moved}");
}

/// Waits until both ends' reasons are among these.
fn explained(topology: &str, blocked: bool, client: &[&str], agent: &[&str]) {
    let Some(scene) = Scene::start(topology) else { return };
    if blocked {
        scene.lab.nat("client-nat").block("udp=drop").unwrap();
    }
    let session = scene.connect();
    let mut stream = session.dial();
    echo(&mut stream, 100, 20);
    let id = session.told(0)["session"].as_str().expect("an id").to_owned();
    eventually("the reasons", Duration::from_secs(40), || {
        let explained = scene.ask(&["explain", &id]).ok().json();
        let has = |end: &str, wanted: &[&str]| {
            let reasons = explained[end]["paths"]["reasons"].as_array();
            reasons.is_some_and(|all| wanted.iter().all(|it| all.iter().any(|one| one == it)))
        };
        (has("client", client) && has("agent", agent)).then_some(())
    });
}

#[test]
fn bulk_leaves_a_direct_path_that_polices_udp_for_tcp_and_explain_says_why() {
    let Some(scene) = Scene::start(POLICED) else { return };
    let session = scene.connect();
    let mut stream = session.dial();
    echo(&mut stream, 100, 20);
    scene.expect_transport(DIRECT);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let transfers = (0..20).take_while(|_| !over.load(Relaxed));
            transfers.for_each(|_| bulk(session.dial(), 2 << 20));
        });
        let mut told = (1..).map(|number| session.told(number));
        let moved = told.find(|moved| moved["to"] == TCP).expect("it is told");
        assert!(moved["cause"] == "throttled" || moved["cause"] == "better", "{moved}");
        eventually("the reason", Duration::from_secs(20), || {
            let explained: Value = serde_json::from_str(&scene.explained()).ok()?;
            let reasons = explained["client"]["paths"]["reasons"].as_array()?;
            let why = ["throttled", "slower", "quarantined"];
            reasons.iter().any(|one| why.iter().any(|it| one == it)).then_some(())
        });
        over.store(true, Relaxed);
    });
}

#[test]
fn a_client_whose_udp_is_blocked_is_told_so_by_explain() {
    let client = ["udp_egress_blocked", "relay_unreachable", "peer_silent"];
    explained(PAIR, true, &client, &["peer_silent"]);
}

#[test]
fn hard_nats_at_both_ends_are_told_by_explain() {
    let both = ["hard_nat", "hard_nat_both_sides"];
    explained("pair:client-nat=symmetric,agent-nat=symmetric", false, &both, &both);
}
