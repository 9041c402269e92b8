//! Agents and gateways join once and then hold their own keys: through restarts, rotations and revocations.
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use switchback_control::Code;

use crate::support::{Bed, EchoTarget, Io, Output, Process, eventually, switchback};
use crate::survival::Stream;

const SOON: Duration = Duration::from_secs(15);

/// The enrolment of this kind and name that is good.
fn enrolment(bed: &Bed, kind: &str, name: &str) -> Value {
    let tokens = bed.run(&["token", "list"]).ok().json();
    let is_it = |it: &&Value| {
        it["enrolment"].is_object()
            && (&it["kind"], &it["name"]) == (&kind.into(), &name.into())
            && it["revoked_ms"].is_null()
    };
    tokens.as_array().unwrap().iter().find(is_it).expect("it has enrolled").clone()
}

fn id(enrolment: &Value) -> &str {
    enrolment["id"].as_str().unwrap()
}

/// The agent's command without a join string.
fn restart_without_string(bed: &Bed, resource: &str) -> Process {
    let mut command = switchback(bed.home());
    command.args(["agent", "--json", "--resource", resource]);
    let mut agent = Process::start(&mut command);
    assert_eq!(agent.first_json()["agent"], "box", "it knows its name");
    agent
}

fn is_online(bed: &Bed) {
    eventually("the resource to be online", SOON, || {
        (bed.run(&["resources"]).json()[0]["online"] == true).then_some(())
    });
}

#[test]
fn an_agent_joins_once_and_restarts_without_a_string() {
    let echo = EchoTarget::start();
    let mut bed = Bed::start(Io::Epoll, &[echo.resource("echo")]);
    let before = enrolment(&bed, "agent", "box");
    bed.kill_agent();
    let agent = restart_without_string(&bed, &echo.resource("echo"));
    is_online(&bed);
    assert_eq!(id(&enrolment(&bed, "agent", "box")), id(&before));

    // The string is used up, for every other state.
    let second = |name: &str| {
        let mut command = switchback(bed.home());
        command.args(["agent", "--name", name, "--join", &bed.join, "--resource", "a=tcp:h:1"]);
        command.arg("--json").arg("--state").arg(bed.home().join(name));
        Output::of(&mut command)
    };
    let refused = second("other");
    assert_eq!(refused.refusal(), Code::JoinUsed.as_str());
    assert_eq!(refused.code, 77);
    let mut elsewhere = switchback(bed.home());
    elsewhere.args(["agent", "--json", "--name", "other", "--resource", "a=tcp:h:1"]);
    assert_eq!(Output::of(&mut elsewhere).refusal(), Code::ConfigInvalid.as_str());

    // A broker that was killed knows its ends again.
    bed.kill_server();
    bed.restart_server();
    is_online(&bed);
    drop(agent);
}

#[test]
fn a_live_session_does_not_notice_that_its_agent_changes_its_key() {
    let echo = EchoTarget::start();
    let bed = Bed::start(Io::Epoll, &[echo.resource_with("echo", ";udp=off")]);
    let (_connect, local) = bed.forward("echo");
    let stream = Stream::start(local, Duration::from_secs(4));
    let before = enrolment(&bed, "agent", "box");
    let file = bed.home().join("agent/enrolment.json");
    let old = fs::read_to_string(&file).unwrap();
    bed.run(&["token", "rotate", id(&before)]).ok();
    eventually("the new key", SOON, || {
        let now = enrolment(&bed, "agent", "box");
        let key_ms = |of: &Value| of["enrolment"]["key_ms"].as_u64();
        (key_ms(&now) > key_ms(&before) && now["enrolment"]["rotating"] == false).then_some(())
    });
    assert_eq!(bed.sessions()[0]["resumes"], 0);
    let silence = stream.longest_silence();
    assert!(silence < Duration::from_secs(2), "{silence:?}");
    eventually("the new key in the state", SOON, || {
        (fs::read_to_string(&file).unwrap() != old).then_some(())
    });
}

#[test]
fn a_revoked_enrolment_ends_its_link_within_seconds_and_another_string_mends_it() {
    let echo = EchoTarget::start();
    let mut bed = Bed::start(Io::Epoll, &[echo.resource("echo")]);
    let (mut connect, _local) = bed.forward("echo");
    let begun = Instant::now();
    bed.run(&["token", "revoke", id(&enrolment(&bed, "agent", "box"))]).ok();
    let (code, said) = bed.ended_agent();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(code, 77, "{said}");
    assert!(said.contains("TOKEN_REVOKED"), "{said}");
    assert_ne!(connect.wait(SOON), 0, "its sessions end with it");
    assert!(connect.stderr().contains("TOKEN_REVOKED"), "{}", connect.stderr());
    let join = bed.run(&["token", "agent", "box"]).ok().json();
    assert_eq!(join["uses"], 1);
    bed.join = join["invite"].as_str().unwrap().to_owned();
    bed.start_agent();
}

#[test]
fn a_gateway_joins_once_and_its_revocation_ends_it() {
    let bed = Bed::without_agent(Io::Epoll, None);
    let join = bed.run(&["token", "gateway", "eu-1"]).ok().json();
    let start = |join: Option<&str>| {
        let mut command = switchback(bed.home());
        command.args(["gateway", "--json", "--listen", "127.0.0.1:0", "--io", "epoll"]);
        command.args(["--workers", "1", "--state"]).arg(bed.home().join("eu-1"));
        command.args(join.iter().flat_map(|join| ["--name", "eu-1", "--join", join]));
        let mut process = Process::start(&mut command);
        assert_eq!(process.first_json()["gateway"], "eu-1");
        process
    };
    let up = || {
        eventually("the gateway to be up", SOON, || {
            let gateways = bed.run(&["gateways"]).json();
            let all = gateways.as_array()?.iter();
            let found = all.filter(|it| it["name"] == "eu-1" && it["state"] == "up").count();
            (found == 1).then_some(())
        });
    };
    let first = start(join["invite"].as_str());
    up();
    drop(first);
    // A gateway that is gone is seen by its link's end.
    thread::sleep(Duration::from_millis(500));
    let mut again = start(None);
    up();
    let end = enrolment(&bed, "gateway", "eu-1");
    bed.run(&["token", "rotate", id(&end)]).ok();
    eventually("the gateway's new key", SOON, || {
        let now = enrolment(&bed, "gateway", "eu-1");
        (now["enrolment"]["key_ms"] != end["enrolment"]["key_ms"]).then_some(())
    });
    bed.run(&["token", "revoke", id(&end)]).ok();
    assert_eq!(again.wait(SOON), 77, "{}", again.stderr());
    assert!(again.stderr().contains("TOKEN_REVOKED"), "{}", again.stderr());
}
