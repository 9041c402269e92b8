//! Bad input gets a clear refusal with a symbolic code, is counted, and touches nobody else.
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use switchback_control::Code;
use switchback_engine::Refusal;
use switchback_engine::hello::{self, Parsed};

use crate::support::{Bed, EchoTarget, HangingTarget, IOS, Io, eventually};

/// Reads to the end and gives the refusal that a fatal TLS alert carried.
fn refusal(stream: &mut TcpStream) -> Option<Refusal> {
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got);
    match got[..] {
        [0x15, 3, 3, 0, 2, 2, description] => Refusal::from_alert(description),
        _ => panic!("not an alert of ours: {got:02x?}"),
    }
}

fn refused_after(bed: &Bed, bytes: &[u8], end: bool) -> Option<Refusal> {
    let mut stream = bed.dial();
    let _ = stream.write_all(bytes);
    if end {
        stream.shutdown(Shutdown::Write).unwrap();
    }
    refusal(&mut stream)
}

/// A pair of hellos with fresh tickets: client's, agent's.
fn hellos(bed: &Bed) -> (Vec<u8>, Vec<u8>) {
    let pairs = bed.run(&["pairs", "--count", "1"]).ok().json();
    let decode =
        |value: &Value| data_encoding::BASE64.decode(value.as_str().unwrap().as_bytes()).unwrap();
    (decode(&pairs[0]["client_hello"]), decode(&pairs[0]["agent_hello"]))
}

fn counted(bed: &Bed, code: &str) -> f64 {
    bed.metric("switchback_gateway_refusals_total", &format!("code=\"{code}\""))
}

#[test]
fn garbage_truncated_oversized_and_dripping_hellos_are_refused_and_counted() {
    for io in IOS {
        let echo = EchoTarget::start();
        let bed = Bed::start(io, &[echo.resource("echo")]);
        let files = bed.server().open_files();
        let (hello, _) = hellos(&bed);

        assert_eq!(refused_after(&bed, b"\x00\x01\x02 garbage", false), Some(Refusal::HelloNotTls));
        assert_eq!(
            refused_after(&bed, b"GET / HTTP/1.1\r\n\r\n", false),
            Some(Refusal::HelloNotTls)
        );
        // A handshake record whose body is no ClientHello.
        let mut nonsense = vec![0x16, 3, 1, 0, 64];
        nonsense.extend([0xff; 64]);
        assert_eq!(refused_after(&bed, &nonsense, false), Some(Refusal::HelloMalformed));
        assert_eq!(
            refused_after(&bed, &hello[..hello.len() / 2], true),
            Some(Refusal::HelloTruncated)
        );
        // A ClientHello that says it is 64 KiB long, in full records.
        let mut endless = Vec::new();
        for part in 0..4 {
            endless.extend([0x16, 3, 1, 0x40, 0]);
            let mut body = vec![0; 0x4000];
            if part == 0 {
                body[..4].copy_from_slice(&[1, 0, 0xff, 0xff]);
            }
            endless.extend(body);
        }
        assert_eq!(refused_after(&bed, &endless, false), Some(Refusal::HelloTooLarge));

        // One byte a second never gets there: the deadline is for the whole hello, not for each byte.
        let mut dripping = bed.dial();
        let mut drip = dripping.try_clone().unwrap();
        let drop = thread::spawn(move || {
            for byte in &hello[..hello.len().min(60)] {
                if drip.write_all(&[*byte]).is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(200));
            }
        });
        assert_eq!(refusal(&mut dripping), Some(Refusal::HelloTimeout));
        drop.join().unwrap();

        for code in [
            "HELLO_NOT_TLS",
            "HELLO_MALFORMED",
            "HELLO_TRUNCATED",
            "HELLO_TOO_LARGE",
            "HELLO_TIMEOUT",
        ] {
            assert!(counted(&bed, code) >= 1.0, "{code} is counted");
        }
        eventually("descriptors to be freed", Duration::from_secs(20), || {
            (bed.server().open_files() <= files + 8).then_some(())
        });
        // Nobody else noticed.
        let (_connect, local) = bed.forward("echo");
        let mut stream = TcpStream::connect(local).unwrap();
        stream.write_all(b"fine").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
    }
}

#[test]
fn tickets_admit_one_leg_of_one_side_of_one_gateway_once() {
    for io in IOS {
        let bed = Bed::without_agent(io, None);
        let (client, agent) = hellos(&bed);

        // Two legs meet, and the client's hello is what the agent's end reads first.
        let (mut near, mut far) = (bed.dial(), bed.dial());
        far.write_all(&agent).unwrap();
        near.write_all(&client).unwrap();
        let mut forwarded = vec![0; client.len()];
        far.read_exact(&mut forwarded).unwrap();
        assert_eq!(forwarded, client);
        far.write_all(b"pong").unwrap();
        near.read_exact(&mut [0; 4]).unwrap();

        assert_eq!(refused_after(&bed, &client, false), Some(Refusal::TicketReplayed));
        // The side stands in the server name and in the ticket; they must agree.
        let swapped = with_server_name(&hellos(&bed).0, |name| name.replace(".client.", ".agent."));
        assert_eq!(refused_after(&bed, &swapped, false), Some(Refusal::TicketWrongSide));
        // Another gateway's ticket.
        let other = Bed::without_agent(io, None);
        assert_eq!(refused_after(&bed, &hellos(&other).0, false), Some(Refusal::TicketInvalid));
        // A damaged one: flip one character of the label.
        let damaged = with_server_name(&hellos(&bed).0, |name| {
            let flipped = if name.starts_with('a') { "b" } else { "a" };
            format!("{flipped}{}", &name[1..])
        });
        assert_eq!(refused_after(&bed, &damaged, false), Some(Refusal::TicketInvalid));
        // A leg whose mate never comes.
        assert_eq!(refused_after(&bed, &hellos(&bed).0, false), Some(Refusal::LegUnpaired));
        for code in ["TICKET_REPLAYED", "TICKET_WRONG_SIDE", "TICKET_INVALID", "LEG_UNPAIRED"] {
            assert!(counted(&bed, code) >= 1.0, "{code} is counted");
        }
    }
}

/// The same hello for another server name.
fn with_server_name(hello: &[u8], change: impl Fn(&str) -> String) -> Vec<u8> {
    let Ok(Parsed::Complete(parsed)) = hello::parse(hello) else { panic!("a whole hello") };
    hello::encode(&change(&parsed.server_name.expect("a name")), [5; 96])
}

#[test]
fn an_expired_ticket_is_refused() {
    let bed = Bed::without_agent(Io::Uring, None);
    let (hello, _) = hellos(&bed);
    // Tickets live 60 s; this is the one test that waits for time itself.
    thread::sleep(Duration::from_secs(62));
    assert_eq!(refused_after(&bed, &hello, false), Some(Refusal::TicketExpired));
}

#[test]
fn unfinished_hellos_from_one_address_are_limited() {
    for io in IOS {
        let bed = Bed::without_agent(io, None);
        let open: Vec<_> = (0..200).map(|_| bed.dial()).collect();
        eventually("the limit to be counted", Duration::from_secs(30), || {
            // The metrics request is a connection from the same address: it gets in again once the hellos time out.
            let output = bed.run(&["metrics"]);
            (output.code == 0 && counted(&bed, "HELLO_LIMIT") >= 1.0).then_some(())
        });
        drop(open);
    }
}

#[test]
fn what_a_user_may_not_use_is_refused_without_telling_whether_it_exists() {
    let echo = EchoTarget::start();
    let bed = Bed::start(Io::Uring, &[echo.resource("echo"), echo.resource("secret")]);
    let user = bed.new_user("ada", &["echo"]);
    let feed = bed.run_as(&user, &["resources"]).ok().json();
    assert_eq!(feed.as_array().unwrap().len(), 1);
    assert_eq!(feed[0]["name"], "echo");
    for hidden in ["secret", "no-such-thing"] {
        let output = bed.run_as(&user, &["connect", hidden, "--stdio"]);
        assert_eq!(output.refusal(), "RESOURCE_UNKNOWN");
        assert_eq!(output.code, i32::from(Code::ResourceUnknown.exit() as u8));
    }
    assert!(bed.metric("switchback_faults_total", "code=\"RESOURCE_NOT_GRANTED\"") >= 1.0);
    assert_eq!(bed.run_as(&user, &["token", "list"]).refusal(), "ADMIN_ONLY");
    assert_eq!(bed.run_as(&user, &["metrics"]).refusal(), "ADMIN_ONLY");

    // Another user's session can be neither seen nor ended.
    let (_connect, _) = bed.forward("echo");
    let id = bed.sessions()[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(bed.run_as(&user, &["sessions"]).ok().json().as_array().unwrap().len(), 0);
    assert_eq!(bed.run_as(&user, &["session", &id]).refusal(), "SESSION_UNKNOWN");
    assert_eq!(bed.run_as(&user, &["kill", &id]).refusal(), "SESSION_UNKNOWN");
    assert_eq!(bed.sessions().len(), 1);
}

#[test]
fn a_revoked_token_ends_its_sessions_and_opens_no_more() {
    let echo = EchoTarget::start();
    let bed = Bed::start(Io::Uring, &[echo.resource("echo")]);
    let user = bed.new_user("ada", &["*"]);
    let (mut connect, local) = bed.forward_as(&user, "echo");
    let mut stream = TcpStream::connect(local).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    let tokens = bed.run(&["token", "list"]).ok().json();
    let token = tokens.as_array().unwrap().iter().find(|token| token["name"] == "ada").unwrap();
    bed.run(&["token", "revoke", token["id"].as_str().unwrap()]).ok();
    assert_ne!(connect.wait(Duration::from_secs(10)), 0);
    assert!(connect.stderr().contains("TOKEN_REVOKED"), "{}", connect.stderr());
    assert!(bed.sessions().is_empty());
    assert_eq!(bed.run_as(&user, &["resources"]).refusal(), "TOKEN_REVOKED");
    assert_eq!(bed.run_as("sblogin1_damaged", &["resources"]).refusal(), "INVITE_INVALID");
}

#[test]
fn a_killed_session_ends_at_once_and_says_why() {
    let echo = EchoTarget::start();
    let bed = Bed::start(Io::Uring, &[echo.resource("echo")]);
    let (mut connect, local) = bed.forward("echo");
    let mut stream = TcpStream::connect(local).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    let id = bed.sessions()[0]["id"].as_str().unwrap().to_owned();
    bed.run(&["kill", &id]).ok();
    assert_ne!(connect.wait(Duration::from_secs(10)), 0);
    assert!(connect.stderr().contains("SESSION_KILLED"), "{}", connect.stderr());
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    assert!(bed.sessions().is_empty());
    assert_eq!(bed.run(&["session", &id]).refusal(), "SESSION_UNKNOWN");
}

#[test]
fn a_target_that_refuses_or_resets_reaches_the_application_as_a_reset() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let resetting = TcpListener::bind("127.0.0.1:0").unwrap();
    let resetting_addr = resetting.local_addr().unwrap();
    thread::spawn(move || {
        for stream in resetting.incoming().map_while(Result::ok) {
            let socket = socket2::SockRef::from(&stream);
            socket.set_linger(Some(Duration::ZERO)).unwrap();
        }
    });
    let bed = Bed::start(
        Io::Uring,
        &[
            format!("nobody=tcp:{nobody};udp=off"),
            format!("resetting=tcp:{resetting_addr};udp=off"),
        ],
    );
    for resource in ["nobody", "resetting"] {
        let (connect, local) = bed.forward(resource);
        let mut stream = TcpStream::connect(local).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let error = stream.read(&mut [0]).expect_err("a reset, not an end");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{resource}");
        let code = if resource == "nobody" { "TARGET_REFUSED" } else { "TARGET_RESET" };
        eventually("the reason on stderr", Duration::from_secs(5), || {
            connect.stderr().contains(code).then_some(())
        });
        // The session itself lives on.
        assert_eq!(bed.run(&["sessions"]).ok().json()[0]["state"], "active");
        connect.kill();
        eventually("the session to be gone", Duration::from_secs(90), || {
            bed.sessions().is_empty().then_some(())
        });
    }
    // With --stdio the code is the command's own.
    let output = bed.run(&["connect", "nobody", "--stdio"]);
    assert_eq!(output.refusal(), "TARGET_REFUSED");
}

#[test]
fn a_target_that_hangs_is_told_as_such_and_holds_up_nobody_else() {
    let (hanging, echo) = (HangingTarget::start(), EchoTarget::start());
    let bed = Bed::start(Io::Uring, &[hanging.resource("hanging"), echo.resource("echo")]);
    let ask = |local| {
        let mut stream = TcpStream::connect(local).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0])
    };
    let (_echo, other) = bed.forward("echo");
    let (connect, local) = bed.forward("hanging");
    let waiting = thread::spawn(move || ask(local));
    ask(other).expect("another session goes on");
    // The agent gives a target 5 s.
    assert!(!waiting.is_finished());
    // More than a session's limit come and go meanwhile.
    for _ in 0..1_200 {
        let refused = TcpStream::connect(local).err();
        // One beyond the limit is reset at once, which may be before it is told that it is there.
        assert!(refused.is_none_or(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    }
    ask(other).expect("another session goes on still");
    let error = waiting.join().unwrap().expect_err("a reset, not an end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    eventually("the reason on stderr", Duration::from_secs(5), || {
        connect.stderr().contains("TARGET_TIMEOUT").then_some(())
    });
    // With --stdio the code is the command's own.
    assert_eq!(bed.run(&["connect", "hanging", "--stdio"]).refusal(), "TARGET_TIMEOUT");
    // The session outlived its target's trouble.
    hanging.recover();
    eventually("the target to answer in the same session", Duration::from_secs(30), || {
        ask(local).ok()
    });
}

#[test]
fn an_agent_that_never_dials_is_reported_and_harms_nobody() {
    let echo = EchoTarget::start();
    let bed = Bed::start(Io::Uring, &[echo.resource("echo")]);
    bed.agent().signal("STOP");
    let output = bed.run(&["connect", "echo", "--stdio", "--start-timeout", "3s"]);
    assert!(
        ["LEG_UNPAIRED", "LEG_FAILED", "AGENT_OFFLINE"].contains(&output.refusal().as_str()),
        "{output:?}"
    );
    bed.agent().signal("CONT");
    let (_connect, local) = bed.forward("echo");
    let mut stream = TcpStream::connect(local).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}
