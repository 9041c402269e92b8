//! Watching, pausing and messages, through the real binary.
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use data_encoding::BASE64;
use serde_json::Value;

use crate::support::{Bed, EchoTarget, Io, Output, Process, eventually};

const WITHIN: Duration = Duration::from_secs(10);

/// The only session that is no watch.
fn used(bed: &Bed) -> Value {
    eventually("the session", WITHIN, || {
        bed.sessions().into_iter().find(|session| session["watches"].is_null())
    })
}

fn id_of(session: &Value) -> String {
    session["id"].as_str().expect("an id").to_owned()
}

fn exchange(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
    expect(stream, text);
}

fn expect(stream: &mut TcpStream, text: &str) {
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(String::from_utf8_lossy(&back), text);
}

/// `connect` of a user of that name, with these options, and an application's connection.
fn user(bed: &Bed, name: &str, options: &[&str]) -> (Process, TcpStream, String) {
    let login = bed.new_user(name, &["*"]);
    let mut words = vec!["connect", "shell", "--listen", "127.0.0.1:0", "--json"];
    words.extend(options);
    let mut process = Process::start(&mut bed.command_as(&login, &words));
    let ready = process.first_json();
    let stream = TcpStream::connect(ready["listen"].as_str().unwrap()).unwrap();
    stream.set_read_timeout(Some(WITHIN)).unwrap();
    (process, stream, login)
}

/// Waits for a JSON line with these values.
fn line(process: &Process, what: &[(&str, &str)]) -> Value {
    let mut number = 0;
    loop {
        let value = process.json(number);
        if what.iter().all(|(key, wanted)| value[*key] == *wanted) {
            return value;
        }
        number += 1;
    }
}

#[test]
fn an_admin_watches_controls_and_records_and_the_recording_replays_the_same_bytes() {
    let target = EchoTarget::start();
    let bed = Bed::start(Io::Epoll, &[target.resource("shell")]);
    let (connect, mut app, _) = user(&bed, "ada", &["--allow-shadowing"]);
    exchange(&mut app, "before anybody watched\n");
    let id = id_of(&used(&bed));
    let (cast, pcap) = (bed.home().join("a.cast"), bed.home().join("a.pcap"));
    let (cast, pcap) = (cast.to_str().unwrap(), pcap.to_str().unwrap());
    let pipe = bed.home().join("keys");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // Standard input is a pipe that is open for reading and writing, so that it does not end.
    let mut keys = std::fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let words = ["shadow", &id, "--control", "--record", cast, "--json"];
    let mut watch = Process::start(&mut typing(&bed.command(&words), &pipe));
    watch.first_json();
    let consent = line(&connect, &[("type", "consent_asked")]);
    assert_eq!((&consent["by"], &consent["control"]), (&"admin".into(), &true.into()));
    line(&connect, &[("type", "watched")]);
    let shown = used(&bed);
    assert_eq!(shown["state"], "shadowed");
    assert_eq!(shown["watchers"][0]["user"], "admin");
    let second = Process::start(&mut bed.command(&[
        "shadow",
        &id,
        "--no-consent-prompt",
        "--record",
        pcap,
        "--json",
    ]));
    line(&second, &[("type", "opened")]);
    exchange(&mut app, "while watched €\n");
    keys.write_all(b"typed by the watcher\n").unwrap();
    // The service answers the user, as if the user had typed it.
    expect(&mut app, "typed by the watcher\n");
    let sent = "before anybody watched\nwhile watched €\ntyped by the watcher\n";
    eventually("the watcher to see all", WITHIN, || {
        let seen = seen(&watch, "to_client");
        (seen == sent.as_bytes() && seen == self::seen(&watch, "to_target")).then_some(())
    });
    drop(app);
    bed.run(&["kill", &id]).ok();
    line(&watch, &[("type", "session_ended")]);
    line(&second, &[("type", "session_ended")]);
    for file in [cast, pcap] {
        let replayed = eventually("the recording", WITHIN, || {
            let output = Output::of(&mut bed.command(&["replay", file, "--max-idle", "0s"]));
            (output.stdout == sent).then_some(output)
        });
        assert_eq!(replayed.code, 0);
    }
    let records = eventually("the record", WITHIN, || {
        let records = bed.run(&["audit"]).ok().stdout;
        records.contains("shadow_ended").then_some(records)
    });
    assert!(records.contains("shadow_began") && records.contains("shadow_consent_given"));
    let told = records + &bed.server().stderr();
    assert!(!told.contains("typed by"), "without a byte of it");
}

/// A command whose standard input is this pipe.
fn typing(command: &Command, pipe: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("exec \"$@\" < {}", pipe.display())).arg("sh").env_clear();
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        shell.env(name, value.unwrap_or_default());
    }
    shell
}

/// All bytes of a direction that `--json` showed.
fn seen(process: &Process, direction: &str) -> Vec<u8> {
    let text = process.stdout();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of = lines.filter(|line| line["type"] == "data" && line["direction"] == direction);
    of.flat_map(|line| BASE64.decode(line["bytes"].as_str().unwrap().as_bytes()).unwrap()).collect()
}

#[test]
fn who_may_not_watch_is_told_what_an_unknown_session_is_told_and_nobody_agrees_without_a_terminal()
{
    let target = EchoTarget::start();
    let bed = Bed::start(Io::Epoll, &[target.resource("shell")]);
    let (_connect, mut app, _) = user(&bed, "ada", &[]);
    exchange(&mut app, "hello\n");
    let id = id_of(&used(&bed));
    let eve = bed.new_user("eve", &["*"]);
    let theirs = bed.run_as(&eve, &["shadow", &id, "--no-consent-prompt"]);
    let unknown = bed.run_as(&eve, &["shadow", "k3m9x2q7w4ht", "--no-consent-prompt"]);
    assert_eq!(theirs.refusal(), "SESSION_UNKNOWN");
    assert_eq!((theirs.code, theirs.stderr_json()), (unknown.code, unknown.stderr_json()));
    for verb in ["pause", "resume", "kill"] {
        assert_eq!(bed.run_as(&eve, &[verb, &id]).refusal(), "SESSION_UNKNOWN", "{verb}");
    }
    assert_eq!(bed.run_as(&eve, &["message", &id, "x"]).refusal(), "SESSION_UNKNOWN");
    assert_eq!(bed.run(&["shadow", &id]).refusal(), "CONSENT_REFUSED");
    exchange(&mut app, "nothing happened\n");
}

#[test]
fn a_paused_session_is_silent_and_loses_nothing_and_a_message_arrives() {
    let target = EchoTarget::start();
    let bed = Bed::start(Io::Epoll, &[target.resource("shell")]);
    let (connect, mut app, login) = user(&bed, "ada", &[]);
    exchange(&mut app, "hello\n");
    let id = id_of(&used(&bed));
    bed.run(&["message", &id, "back in\u{7} five"]).ok();
    let message = line(&connect, &[("type", "message")]);
    assert_eq!((&message["from"], &message["text"]), (&"admin".into(), &"back in five".into()));
    bed.run(&["pause", &id]).ok();
    line(&connect, &[("type", "held")]);
    let shown = used(&bed);
    assert_eq!((&shown["state"], &shown["paused_by"]), (&"paused".into(), &"admin".into()));
    app.write_all(b"waits\n").unwrap();
    app.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    assert!(app.read(&mut [0; 8]).is_err(), "silence");
    assert_eq!(bed.run_as(&login, &["resume", &id]).refusal(), "ADMIN_ONLY");
    bed.run(&["resume", &id]).ok();
    app.set_read_timeout(Some(WITHIN)).unwrap();
    expect(&mut app, "waits\n");
}

#[test]
fn a_resource_with_a_shadow_target_connects_watchers_there_under_the_same_rights() {
    let (target, screen) = (EchoTarget::start(), EchoTarget::start());
    let place = screen.resource_with("x", "").split_once('=').unwrap().1.to_owned();
    let bed = Bed::start(
        Io::Epoll,
        &[target.resource_with("shell", &format!(";udp=off;shadow={place}"))],
    );
    let (_connect, mut app, _) = user(&bed, "ada", &["--allow-shadowing"]);
    exchange(&mut app, "hello\n");
    let id = id_of(&used(&bed));
    let viewing = bed.run(&["shadow", &id, "--listen", "127.0.0.1:0"]);
    assert_eq!(viewing.refusal(), "SHADOW_NEEDS_CONTROL");
    let words = ["shadow", &id, "--control", "--listen", "127.0.0.1:0", "--json"];
    let mut watch = Process::start(&mut bed.command(&words));
    let listen = watch.first_json()["listen"].as_str().unwrap().to_owned();
    let mut viewer = TcpStream::connect(listen).unwrap();
    viewer.set_read_timeout(Some(WITHIN)).unwrap();
    exchange(&mut viewer, "to the screen\n");
    assert_eq!((target.accepted(), screen.accepted()), (1, 1));
    bed.run(&["kill", &id]).ok();
    // It ends with the session that it watches.
    assert!(!matches!(viewer.read(&mut [0; 8]), Ok(1..)));
}
