//! Gateways on other machines: sessions choose among them, leave them, and outlive them.
use std::thread;
use std::time::Duration;

use serde_json::Value;
use switchback_control::Code;

use crate::support::{Bed, EchoTarget, Io, Process, eventually, switchback};
use crate::survival::Stream;

const SOON: Duration = Duration::from_secs(15);

/// A `switchback gateway` of this name that the broker knows.
fn gateway(bed: &Bed, name: &str) -> Process {
    let join = bed.run(&["token", "gateway", name]).ok().json();
    let join = join["invite"].as_str().expect("a join string");
    let mut command = switchback(bed.home());
    command.args([
        "gateway",
        "--json",
        "--listen",
        "127.0.0.1:0",
        "--io",
        "epoll",
        "--workers",
        "1",
    ]);
    command.args(["--name", name, "--join", join, "--region", "here", "--state"]);
    command.arg(bed.home().join(name));
    let mut process = Process::start(&mut command);
    assert_eq!(process.first_json()["gateway"], name);
    is_in(bed, name, "up");
    process
}

/// Waits until a gateway is in this state.
fn is_in(bed: &Bed, name: &str, state: &str) {
    eventually(&format!("gateway {name} to be {state}"), SOON, || {
        let gateways = bed.run(&["gateways"]).json();
        let found = gateways.as_array()?.iter().find(|it| it["name"] == name)?;
        (found["state"] == state).then_some(())
    });
}

fn set(bed: &Bed, what: &str, name: &str) {
    bed.run(&["gateways", what, name]).ok();
}

/// The only session, as soon as `wanted` is true of it.
fn session(bed: &Bed, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually(what, SOON, || {
        let sessions = bed.sessions();
        let active = sessions.into_iter().find(|session| session["state"] == "active");
        active.filter(|session| wanted(session))
    })
}

#[test]
fn sessions_move_off_a_gateway_that_drains_and_outlive_one_that_is_killed() {
    let echo = EchoTarget::start();
    let bed = Bed::start(Io::Epoll, &[echo.resource("echo")]);
    let mut gateways: Vec<_> =
        ["a", "b"].into_iter().map(|name| (name, gateway(&bed, name))).collect();
    set(&bed, "drain", "local");
    let (_connect, local) = bed.forward("echo");
    let stream = Stream::start(local, Duration::from_secs(7));
    let first = session(&bed, "the session", |_| true)["gateway"].clone();
    let other = if first == "a" { "b" } else { "a" };
    assert!(first == "a" || first == "b", "not through one that drains: {first}");
    let first = first.as_str().unwrap();

    thread::sleep(Duration::from_millis(500));
    set(&bed, "drain", first);
    let moved = session(&bed, "the session to move", |session| session["gateway"] == other);
    assert_eq!(moved["resumes"], 0, "it moved, and lost nothing: {moved}");
    is_in(&bed, first, "drained");

    set(&bed, "undrain", first);
    let at = gateways.iter().position(|(name, _)| *name == other).unwrap();
    gateways.remove(at).1.kill();
    session(&bed, "the session to go on", |session| session["gateway"] == first);
    is_in(&bed, other, "lost");
    let silence = stream.longest_silence();
    println!("longest silence {silence:?}");
    assert!(silence < Duration::from_secs(10), "{silence:?}");
    assert_eq!(echo.accepted(), 1, "the target saw one connection");
}

#[test]
fn with_two_gateways_standing_by_a_session_goes_on_where_it_already_is_when_one_is_killed() {
    let echo = EchoTarget::start();
    let resource = format!("{};standby=two-gateways", echo.resource("echo"));
    let bed = Bed::start(Io::Epoll, &[resource]);
    let mut gateways: Vec<_> =
        ["a", "b"].into_iter().map(|name| (name, gateway(&bed, name))).collect();
    set(&bed, "drain", "local");
    let (connect, local) = bed.forward("echo");
    let stream = Stream::start(local, Duration::from_secs(9));
    let has_paths =
        |session: &Value, count| session["paths"].as_array().map(Vec::len) == Some(count);
    let before = session(&bed, "a second gateway to stand by", |session| has_paths(session, 2));
    let first = before["gateway"].as_str().unwrap();
    let at = gateways.iter().position(|(name, _)| *name == first).expect("one of the two");
    gateways.remove(at).1.kill();
    let other = gateways[0].0;
    let after = session(&bed, "the session to be at the other", |session| {
        session["gateway"] == other && has_paths(session, 1)
    });
    assert_eq!((&after["id"], &after["resumes"]), (&before["id"], &1.into()), "one leg lost");
    let log = connect.stderr();
    assert!(log.contains("on through its second gateway"), "{log}");
    assert!(!log.contains("session paused"), "never without a leg: {log}");
    is_in(&bed, first, "lost");
    // The broker's own is the next to stand by.
    set(&bed, "undrain", "local");
    session(&bed, "a second gateway again", |session| has_paths(session, 2));
    let silence = stream.longest_silence();
    println!("longest silence {silence:?}");
    assert!(silence < Duration::from_secs(5), "{silence:?}");
    assert_eq!(echo.accepted(), 1, "the target saw one connection");
}

#[test]
fn a_gateway_relays_on_without_a_broker_and_tells_the_next_one_what_it_holds() {
    let echo = EchoTarget::start();
    let mut bed = Bed::start(Io::Epoll, &[echo.resource("echo")]);
    let _gateway = gateway(&bed, "a");
    set(&bed, "drain", "local");
    let (_connect, local) = bed.forward("echo");
    let stream = Stream::start(local, Duration::from_secs(5));
    let before = session(&bed, "the session", |session| session["gateway"] == "a");
    bed.kill_server();
    thread::sleep(Duration::from_secs(1));
    bed.restart_server();
    let known = |session: &Value| session["gateway"] == "a" && session["id"] == before["id"];
    let after = session(&bed, "the session to be known again", known);
    assert_eq!(after["resumes"], 0, "its leg never broke: {after}");
    // Its figures come over the link.
    session(&bed, "the gateway's figures", |session| !session["rtt"]["client_leg"].is_null());
    assert!(stream.longest_silence() < Duration::from_secs(1));
}

#[test]
fn estimate_shows_each_gateway_and_the_choice_and_refusals_have_codes() {
    let echo = EchoTarget::start();
    let bed = Bed::start(Io::Epoll, &[echo.resource_with("echo", "")]);
    let mut gateway = gateway(&bed, "a");
    let estimate = eventually("the agent's figures", SOON, || {
        let estimate = bed.run(&["estimate", "echo", "--probe"]).ok().json();
        let ways = estimate["resources"][0]["ways"].as_array()?.clone();
        ways.iter().all(|way| way["sum_us"].is_u64()).then_some(estimate)
    });
    let names: Vec<_> = estimate["gateways"].as_array().unwrap().iter().collect();
    assert_eq!(names.len(), 2);
    assert!(names.iter().all(|it| it["udp_us"].is_u64() && it["tcp_us"].is_u64()), "{estimate}");
    let ways = estimate["resources"][0]["ways"].as_array().unwrap();
    assert_eq!(ways.iter().filter(|way| way["chosen"] == true).count(), 1);
    for way in ways {
        let us = |key: &str| way[key].as_u64().unwrap();
        assert_eq!(us("sum_us"), us("client_us") + us("agent_us"));
    }
    assert_eq!(estimate["resources"][0]["direct"], true, "loopback is direct: {estimate}");
    assert!(estimate["resources"][0]["probe"]["direct_us"].is_u64());

    let unknown = bed.run(&["gateways", "drain", "nowhere"]);
    assert_eq!(unknown.refusal(), Code::GatewayUnknown.as_str());
    let user = bed.new_user("ann", &["echo"]);
    let refused = bed.run_as(&user, &["gateways", "drain", "a"]);
    assert_eq!(refused.refusal(), Code::AdminOnly.as_str());
    let nobody = bed.run(&["estimate", "nothing"]);
    assert_eq!(nobody.refusal(), Code::AgentOffline.as_str());

    // Told to stop, it leaves in peace.
    gateway.signal("TERM");
    assert_eq!(gateway.wait(SOON), 0);
    is_in(&bed, "a", "lost");
}
