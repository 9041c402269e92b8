//! What people see while it runs.
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{Bed, EchoTarget, IOS, Io, Output, eventually, program};

#[test]
fn sessions_show_state_transport_bytes_channels_and_rtt_of_both_legs_and_end_to_end() {
    for io in IOS {
        let echo = EchoTarget::start();
        let bed = Bed::start(io, &[echo.resource("echo")]);
        let (_connect, local) = bed.forward("echo");
        let mut streams: Vec<_> = (0..3).map(|_| TcpStream::connect(local).unwrap()).collect();
        let measured = eventually("every figure", Duration::from_secs(20), || {
            for stream in &mut streams {
                stream.write_all(b"0123456789").unwrap();
                stream.read_exact(&mut [0; 10]).unwrap();
            }
            let session = bed.sessions().into_iter().next()?;
            let all = ["client_leg", "agent_leg", "end_to_end"]
                .iter()
                .all(|leg| !session["rtt"][leg].is_null());
            (all && session["channels"] == 3 && session["client_to_target"].as_u64() > Some(0))
                .then_some(session)
        });
        assert_eq!(measured["user"], "admin");
        assert_eq!(measured["resource"], "echo");
        assert_eq!(measured["agent"], "box");
        assert_eq!(measured["state"], "active");
        assert_eq!(measured["transport"], "TCP (Reverse-Connect)");
        for leg in ["client_leg", "agent_leg", "end_to_end"] {
            let rtt = &measured["rtt"][leg];
            let figure =
                |name: &str| rtt[name].as_u64().unwrap_or_else(|| panic!("{name} in {rtt}"));
            assert!(
                figure("min_us") <= figure("p50_us") && figure("p50_us") <= figure("p99_us"),
                "{leg}: {rtt}"
            );
            assert!(figure("smoothed_us") < 1_000_000);
        }
        let id = measured["id"].as_str().unwrap();
        let human = Output::of(&mut bed.command(&["session", id])).ok().stdout;
        for leg in ["client", "agent"] {
            let delivered = &measured["legs"][leg]["sending"]["delivery_bits_per_second"];
            assert!(delivered.as_u64() > Some(0), "{leg}: {measured}");
        }
        assert!(measured["slow"]["who"].is_string(), "{measured}");
        for word in ["TCP (Reverse-Connect)", "admin", "P99", "who is slow", "delivery rate", id] {
            assert!(human.contains(word), "{word} in {human}");
        }
        // The same at /metrics.
        assert!(bed.metric("switchback_gateway_rtt_seconds_count", "side=\"client\"") >= 1.0);
        assert!(bed.metric("switchback_gateway_samples_total", "") >= 2.0);
        assert!(bed.metric("switchback_gateway_sampling_seconds_total", "") > 0.0);
        assert!(bed.metric("switchback_sessions", "state=\"active\"") >= 1.0);
    }
}

#[test]
fn warm_legs_wait_at_the_gateway_before_any_session_asks() {
    let echo = EchoTarget::start();
    let bed = Bed::start(Io::Uring, &[echo.resource("echo")]);
    eventually("warm legs", Duration::from_secs(10), || {
        (bed.metric("switchback_gateway_legs_waiting", "") >= 1.0).then_some(())
    });
    let (_connect, local) = bed.forward("echo");
    TcpStream::connect(local).unwrap().write_all(b"x").unwrap();
    // The one that was used is replaced.
    eventually("warm legs again", Duration::from_secs(10), || {
        (bed.metric("switchback_gateway_legs_waiting", "") >= 4.0).then_some(())
    });
}

#[test]
fn a_stock_stun_client_learns_its_address() {
    let Some(stun) = program("turnutils_stunclient") else { return };
    let bed = Bed::without_agent(Io::Uring, None);
    let port = bed.addr.port().to_string();
    let output = Output::of(Command::new(stun).args(["-p", &port, "127.0.0.1"]));
    assert!(output.stdout.contains("UDP reflexive addr: 127.0.0.1:"), "{output:?}");
}

#[test]
fn stdio_carries_bytes_only_and_ends_with_the_service() {
    let echo = EchoTarget::start();
    let bed = Bed::start(Io::Uring, &[echo.resource("echo")]);
    let mut child = bed
        .command(&["connect", "echo", "--stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writing = std::thread::spawn(move || stdin.write_all(&[b'a'; 1 << 20]));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == vec![b'a'; 1 << 20]);
}

#[test]
fn login_is_stored_for_the_user_alone() {
    use std::os::unix::fs::PermissionsExt;
    let bed = Bed::without_agent(Io::Epoll, None);
    let bare = |args: &[&str]| {
        let mut command = crate::support::switchback(bed.home());
        command.args(args).arg("--json");
        command
    };
    assert_eq!(Output::of(&mut bare(&["whoami"])).refusal(), "NOT_LOGGED_IN");
    Output::of(&mut bare(&["login", &bed.login])).ok();
    assert_eq!(Output::of(&mut bare(&["whoami"])).ok().json()["user"], "admin");
    let file = bed.home().join("config/switchback/login");
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    // The environment overrides what is stored.
    let ada = bed.new_user("ada", &[]);
    assert_eq!(
        Output::of(bare(&["whoami"]).env("SWITCHBACK_LOGIN", ada)).ok().json()["user"],
        "ada"
    );
    Output::of(&mut bare(&["logout"])).ok();
    assert_eq!(Output::of(&mut bare(&["whoami"])).refusal(), "NOT_LOGGED_IN");
}
