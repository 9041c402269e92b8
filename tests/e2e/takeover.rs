//! One server takes another's place: nobody's bytes notice, and what goes wrong leaves the old one serving.
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::support::{
    Bed, BusyPairs, BusySessions, Bytes, EchoTarget, IOS, Io, Output, Pair, Process, eventually,
    switchback_at,
};

/// Pairs of bare legs, and real sessions with an agent and a client.
const PAIRS: usize = 480;
const SESSIONS: usize = 20;

#[test]
fn five_hundred_busy_sessions_go_on_through_a_takeover_while_new_ones_are_opened() {
    for io in IOS {
        let echo = EchoTarget::start();
        let mut bed = Bed::start(io, &[echo.resource("echo")]);
        let idle = bed.server().open_files();
        let pairs = BusyPairs::start(&bed, PAIRS);
        let sessions = BusySessions::start(&bed, SESSIONS);
        eventually("work before", Duration::from_secs(20), || {
            (pairs.rounds() > 2 && sessions.opened() > 2).then_some(())
        });
        // Acknowledged a moment before: not lost.
        let ada = bed.new_user("ada", &["echo"]);

        let mut old = bed.take_over(&[]);

        assert_eq!(bed.run_as(&ada, &["whoami"]).ok().json()["user"], "ada");
        let (rounds, opened) = (pairs.rounds(), sessions.opened());
        eventually("work after", Duration::from_secs(20), || {
            (pairs.rounds() > rounds + 2 && sessions.opened() > opened + 2).then_some(())
        });
        assert!(!old.has_ended(), "it still relays its pairs");
        eventually("it to say so", Duration::from_secs(5), || {
            old.stderr().contains("draining").then_some(())
        });
        assert_known_as_they_are(&bed, &sessions.ids());
        pairs.finish();
        sessions.finish();
        assert_eq!(old.wait(Duration::from_secs(20)), 0);
        assert!(old.stderr().contains("every pair has ended by itself"));
        eventually("descriptors to be few again", Duration::from_secs(20), || {
            (bed.server().open_files() <= idle + 16).then_some(())
        });
    }
}

/// The new process knows each session from its ends; none had to replace its leg, and only the gateway's figures are missing.
fn assert_known_as_they_are(bed: &Bed, ids: &[String]) {
    eventually("the sessions to be known", Duration::from_secs(20), || {
        let known = bed.sessions();
        let is_known = |id: &String| {
            known.iter().any(|session| {
                session["id"] == id.as_str()
                    && session["state"] == "active"
                    && session["transport"] == "TCP (Reverse-Connect)"
                    && !session["rtt"]["end_to_end"].is_null()
            })
        };
        ids.iter().all(is_known).then_some(())
    });
    for session in
        bed.sessions().iter().filter(|session| ids.iter().any(|id| session["id"] == id.as_str()))
    {
        assert_eq!(session["resumes"], 0, "{session}");
        assert!(session["rtt"]["client_leg"].is_null(), "{session}");
    }
}

#[test]
fn a_session_carried_by_the_old_process_is_killed_through_the_new_one() {
    let echo = EchoTarget::start();
    let mut bed = Bed::start(Io::Uring, &[echo.resource("echo")]);
    let (mut connect, local) = bed.forward("echo");
    let mut stream = TcpStream::connect(local).unwrap();
    exchange(&mut stream, &mut Bytes::seeded(1));
    let mut old = bed.take_over(&[]);
    let id = eventually("the session to be known", Duration::from_secs(10), || {
        Some(bed.sessions().first()?["id"].as_str()?.to_owned())
    });
    bed.run(&["kill", &id]).ok();
    assert_eq!(connect.wait(Duration::from_secs(10)), 77, "{}", connect.stderr());
    assert_eq!(old.wait(Duration::from_secs(10)), 0, "its only pair has ended");
}

#[test]
fn after_the_drains_time_sessions_resume_through_the_new_process_without_a_byte_lost() {
    for io in IOS {
        let echo = EchoTarget::start();
        let mut bed = Bed::start(io, &[echo.resource("echo")]);
        // Without pairs the first ends at once, and the second drains as it was told.
        assert_eq!(bed.take_over(&["--drain-timeout", "1s"]).wait(Duration::from_secs(10)), 0);
        let (_connect, local) = bed.forward("echo");
        let mut stream = TcpStream::connect(local).unwrap();
        let mut bytes = Bytes::seeded(2);
        exchange(&mut stream, &mut bytes);
        let mut old = bed.take_over(&[]);
        let mut rounds = 0;
        while !old.has_ended() {
            exchange(&mut stream, &mut bytes);
            rounds += 1;
        }
        assert!(rounds > 1, "it was carried meanwhile");
        assert!(old.stderr().contains("the drain's time is over"));
        eventually("the session to be resumed", Duration::from_secs(10), || {
            exchange(&mut stream, &mut bytes);
            (bed.sessions().first()?["resumes"].as_u64()? >= 1).then_some(())
        });
    }
}

#[test]
fn a_draining_process_that_is_told_to_end_cuts_its_pairs() {
    for io in IOS {
        let mut bed = Bed::without_agent(io, None);
        let mut pair = Pair::open(&bed);
        let mut old = bed.take_over(&[]);
        pair.round();
        old.signal("TERM");
        pair.cut();
        assert_eq!(old.wait(Duration::from_secs(10)), 0);
    }
}

#[test]
fn a_process_that_is_told_to_end_in_the_middle_of_a_takeover_cuts_its_pairs() {
    let mut bed = Bed::without_agent(Io::Uring, None);
    let drained_by_a_takeover_that_failed = Pair::open(&bed);
    drop(Caller::yielded_to(&bed));
    let mut pairs = [drained_by_a_takeover_that_failed, Pair::open(&bed)];
    let _under_way = Caller::yielded_to(&bed);
    pairs.iter_mut().for_each(Pair::round);
    bed.server().signal("TERM");
    pairs.into_iter().for_each(Pair::cut);
    assert_eq!(bed.stopped_server(), 0);
}

#[test]
fn sigusr2_starts_the_program_that_lies_at_its_path_now_and_tells_systemd() {
    let home = tempfile::tempdir().unwrap();
    let program = home.path().join("switchback");
    symlink(env!("CARGO_BIN_EXE_switchback"), &program).unwrap();
    let notified = UnixDatagram::bind(home.path().join("notify")).unwrap();
    notified.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut command = switchback_at(&program, home.path());
    command.args(["serve", "--listen", "127.0.0.1:0", "--workers", "1", "--json", "--data"]);
    command.arg(home.path().join("data")).env("NOTIFY_SOCKET", home.path().join("notify"));
    let mut old = Process::start(&mut command);
    let first = old.first_json();
    assert_eq!(heard(&notified), "READY=1");

    let upgraded = home.path().join("upgraded");
    let real = env!("CARGO_BIN_EXE_switchback");
    fs::remove_file(&program).unwrap();
    fs::write(&program, format!("#!/bin/sh\ntouch {}\nexec {real} \"$@\"\n", upgraded.display()))
        .unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    old.signal("USR2");

    let second = old.json(1);
    let pid = started_pid(&old);
    let _new = Other(pid);
    assert!(upgraded.exists(), "the file that lies there now was run");
    assert_eq!(second["address"], first["address"], "port 0 is the port that the first was given");
    assert_eq!(second["first_start"], false);
    let mut told = [heard(&notified), heard(&notified)];
    told.sort();
    assert_eq!(told, [format!("MAINPID={pid}"), "READY=1".to_owned()]);
    assert_eq!(old.wait(Duration::from_secs(10)), 0);
    let login = first["login"].as_str().unwrap();
    let mut whoami = switchback_at(Path::new(real), home.path());
    whoami.args(["whoami", "--json"]).env("SWITCHBACK_LOGIN", login);
    assert_eq!(Output::of(&mut whoami).ok().json()["user"], "admin");
}

#[test]
fn a_new_process_that_cannot_serve_changes_nothing() {
    let echo = EchoTarget::start();
    let bed = Bed::start(Io::Epoll, &[echo.resource("echo")]);
    let (_connect, local) = bed.forward("echo");
    let mut stream = TcpStream::connect(local).unwrap();
    let mut bytes = Bytes::seeded(3);
    exchange(&mut stream, &mut bytes);
    let refused = |args: &[&str]| Output::of(&mut bed.takeover(args)).refusal();

    assert_eq!(refused(&["--tls-cert", "none", "--tls-key", "none"]), "CERTIFICATE_UNUSABLE");
    assert_eq!(refused(&["--public", "no host"]), "CONFIG_INVALID");
    let elsewhere = |option: &str, value: &str| {
        let mut command = bed.command(&["serve", "--takeover", "--json", option, value]);
        if option == "--listen" {
            command.arg("--data").arg(bed.data());
        }
        Output::of(&mut command).refusal()
    };
    assert_eq!(elsewhere("--listen", "127.0.0.1:1"), "TAKEOVER_MISMATCH");
    let nobody = bed.home().join("nobody");
    assert_eq!(elsewhere("--data", nobody.to_str().unwrap()), "TAKEOVER_NONE");

    let rude = Caller::call(&bed);
    rude.say(&json!({"type": "hello", "protocol": 99, "version": "9", "listen": bed.addr}));
    assert_eq!(rude.hear()["code"], "PROTOCOL_VERSION");
    let mute = Caller::call(&bed);
    assert_eq!(refused(&[]), "TAKEOVER_BUSY");
    drop(mute);

    exchange(&mut stream, &mut bytes);
    // The gateway's own figures come with its next report.
    let session = eventually("the same gateway's figures", Duration::from_secs(10), || {
        let session = bed.sessions().into_iter().next()?;
        (!session["rtt"]["client_leg"].is_null()).then_some(session)
    });
    assert_eq!((session["resumes"].as_u64(), session["state"].as_str()), (Some(0), Some("active")));
}

#[test]
fn a_new_process_that_fails_at_the_last_moment_makes_the_old_one_serve_again() {
    for io in IOS {
        let echo = EchoTarget::start();
        let mut bed = Bed::start(io, &[echo.resource("echo")]);
        let (_connect, local) = bed.forward("echo");
        let mut stream = TcpStream::connect(local).unwrap();
        let mut bytes = Bytes::seeded(4);
        exchange(&mut stream, &mut bytes);

        drop(Caller::yielded_to(&bed));

        assert_eq!(bed.run(&["whoami"]).ok().json()["user"], "admin");
        exchange(&mut stream, &mut bytes);
        let sessions = BusySessions::start(&bed, 1);
        // And another try succeeds.
        let mut old = bed.take_over(&[]);
        exchange(&mut stream, &mut bytes);
        sessions.finish();
        assert!(!old.has_ended(), "it carries a session from before the failure");
        old.signal("TERM");
        assert_eq!(old.wait(Duration::from_secs(10)), 0, "told to end at once");
        exchange(&mut stream, &mut bytes);
    }
}

/// A caller at the takeover socket that is no `switchback`. Descriptors that are sent to it are lost.
struct Caller(Socket);

impl Caller {
    fn call(bed: &Bed) -> Self {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        socket.connect(&SockAddr::unix(bed.data().join("takeover.sock")).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(socket)
    }

    /// One that may serve now.
    fn yielded_to(bed: &Bed) -> Self {
        let caller = Self::call(bed);
        caller.say(&json!({"type": "hello", "protocol": 1, "version": "9", "listen": bed.addr}));
        assert_eq!(caller.hear()["type"], "offer");
        caller.say(&json!({"type": "ready"}));
        assert_eq!(caller.hear()["type"], "go");
        caller
    }

    fn say(&self, message: &Value) {
        self.0.send(message.to_string().as_bytes()).unwrap();
    }

    fn hear(&self) -> Value {
        let mut text = [0; 4096];
        let count = (&self.0).read(&mut text).expect("an answer");
        serde_json::from_slice(&text[..count]).expect("JSON")
    }
}

/// A process that is not our child, ended when dropped.
struct Other(i32);

impl Drop for Other {
    fn drop(&mut self) {
        let pid = self.0.to_string();
        let _ = Command::new("kill").args(["-s", "TERM", &pid]).status();
        let gone = || {
            // Whoever inherited it may leave it a zombie.
            let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            (status.is_empty() || status.contains(") Z ")).then_some(())
        };
        eventually("the new process to end", Duration::from_secs(10), gone);
    }
}

/// The process that the log says was started.
fn started_pid(process: &Process) -> i32 {
    let log = process.stderr();
    let line = log.lines().find(|line| line.contains("started a new process")).expect("it is told");
    let digits = line.split("pid=").nth(1).expect("its id");
    digits.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

fn heard(socket: &UnixDatagram) -> String {
    let mut text = [0; 256];
    let count = socket.recv(&mut text).expect("a notification");
    String::from_utf8_lossy(&text[..count]).into_owned()
}

/// Some bytes there and back.
fn exchange(stream: &mut TcpStream, bytes: &mut Bytes) {
    let (mut sent, mut got) = ([0; 1024], [0; 1024]);
    bytes.fill(&mut sent);
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(&sent).expect("the connection lives");
    stream.read_exact(&mut got).expect("the connection lives");
    assert!(sent == got, "bytes changed on the way");
}
