//! What operators rely on: the API's own document, backups, kills, dashboards and units that fit the program.
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::{
    Bed, EchoTarget, Io, Output, Process, eventually, optional_program, program, switchback,
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The bearer token in a login or join string.
fn token_of(invite: &str) -> String {
    let body = invite.split_once('_').unwrap().1;
    let json = data_encoding::BASE64URL_NOPAD.decode(body.as_bytes()).unwrap();
    serde_json::from_slice::<Value>(&json).unwrap()["t"].as_str().unwrap().to_owned()
}

/// schemathesis, from the virtual environment that scripts/test makes beside the build.
fn schemathesis() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_BIN_EXE_switchback")).ancestors().nth(2).unwrap();
    let path = target.join("schemathesis/bin/st");
    if !path.is_file() {
        let ci = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(!ci, "scripts/test makes {}", path.display());
        println!("SKIPPED: no {} (scripts/test makes it)", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn the_api_keeps_to_its_document_whatever_it_is_sent() {
    let Some(program) = schemathesis() else { return };
    let echo = EchoTarget::start();
    let bed = Bed::start(Io::Epoll, &[echo.resource("echo")]);
    let (_connect, local) = bed.forward("echo");
    let mut stream = TcpStream::connect(local).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    let document = bed.home().join("openapi.json");
    fs::write(&document, Output::of(&mut bed.command(&["api"])).ok().stdout).unwrap();
    let user = bed.new_user("ada", &["echo"]);
    let checks = "not_a_server_error,status_code_conformance,content_type_conformance,\
                  response_headers_conformance,response_schema_conformance,allow_header_conformance";
    for login in [&user, &bed.login] {
        let mut fuzz = Command::new(&program);
        fuzz.current_dir(bed.home())
            .arg("run")
            .arg(&document)
            .args(["--url", &format!("https://{}", bed.addr)])
            .args(["--tls-verify", "false", "--request-timeout", "10"])
            .args(["--phases", "examples,coverage,fuzzing", "--max-examples", "8"])
            // A busy machine may be late for a handshake; what the broker answers is what is judged.
            .args(["--seed", "20", "--request-retries", "2", "--no-color", "--checks", checks])
            // A last administrator's token cannot be revoked, but others' can.
            .args(["-H", &format!("Authorization: Bearer {}", token_of(login))]);
        let output = Output::of(&mut fuzz);
        assert_eq!(output.code, 0, "{}\n{}", output.stdout, output.stderr);
    }
    assert!(bed.run(&["whoami"]).ok().json()["admin"] == true, "it still serves");
}

#[test]
fn a_backup_under_load_restores_to_a_broker_that_agents_and_users_know() {
    let echo = EchoTarget::start();
    let mut bed = Bed::start(Io::Uring, &[echo.resource("echo")]);
    let (_connect, local) = bed.forward("echo");
    let mut stream = TcpStream::connect(local).unwrap();
    let mut round = move || {
        stream.write_all(b"0123456789").unwrap();
        stream.read_exact(&mut [0; 10]).unwrap();
    };
    round();
    let users: Vec<String> = (0..5).map(|n| bed.new_user(&format!("u{n}"), &["echo"])).collect();
    let file = bed.home().join("backup");
    let path = file.to_str().unwrap();
    let data = bed.data();
    let saving = |bed: &Bed| bed.run(&["backup", path, "--data", data.to_str().unwrap()]);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| (0..5).for_each(|n| drop(bed.new_user(&format!("v{n}"), &[]))));
        let saved = saving(&bed).ok().json();
        assert!(saved["users"].as_u64() >= Some(6), "{saved}");
        load.join().unwrap();
    });
    assert_eq!(saving(&bed).refusal(), "USAGE_INVALID", "no backup is overwritten");
    bed.kill_server();
    fs::remove_dir_all(&data).unwrap();
    bed.run(&["restore", path, "--data", data.to_str().unwrap()]).ok();
    let again = bed.run(&["restore", path, "--data", data.to_str().unwrap()]);
    assert_eq!(again.refusal(), "USAGE_INVALID", "nor a data directory");
    bed.restart_server();
    round();
    for user in &users {
        assert_eq!(bed.run_as(user, &["whoami"]).ok().json()["admin"], false);
    }
    eventually("the agent to be back", Duration::from_secs(10), || {
        (bed.run(&["resources"]).json()[0]["online"] == true).then_some(())
    });
    eventually("the session to be known again", Duration::from_secs(10), || {
        (bed.sessions().len() == 1).then_some(())
    });
}

#[test]
fn what_was_acknowledged_survives_kill_9_in_the_middle_of_writes() {
    let mut bed = Bed::without_agent(Io::Epoll, None);
    let home = bed.home().to_owned();
    let login = bed.login.clone();
    let mut writers = Vec::new();
    for writer in 0..3 {
        let (home, login) = (home.clone(), login.clone());
        writers.push(std::thread::spawn(move || {
            let mut issued = Vec::new();
            for number in 0.. {
                let name = format!("w{writer}n{number}");
                let mut command = switchback(&home);
                command.env("SWITCHBACK_LOGIN", &login).args(["token", "user", &name, "--json"]);
                let output = Output::of(&mut command);
                if output.code != 0 {
                    return issued;
                }
                issued.push(output.json()["invite"].as_str().unwrap().to_owned());
            }
            issued
        }));
    }
    std::thread::sleep(Duration::from_millis(1500));
    bed.kill_server();
    let issued: Vec<String> = writers.into_iter().flat_map(|it| it.join().unwrap()).collect();
    assert!(!issued.is_empty(), "something was written before the kill");
    bed.restart_server();
    for login in issued {
        bed.run_as(&login, &["whoami"]).ok();
    }
}

#[test]
fn events_are_followed_over_a_restart_of_the_broker() {
    let mut bed = Bed::without_agent(Io::Epoll, None);
    let mut follower =
        Process::start(&mut bed.command(&["events", "--follow", "--since", "1h", "--json"]));
    assert_eq!(follower.first_json()["kind"], "broker_started");
    bed.kill_server();
    bed.restart_server();
    let later = eventually("the new broker's events", Duration::from_secs(20), || {
        let next = (1..9).map(|number| follower.json(number));
        next.into_iter().find(|event| event["kind"] == "broker_started")
    });
    assert!(later["id"].as_u64() > follower.first_json()["id"].as_u64());
    assert!(bed.run(&["events"]).ok().json().is_object(), "one event is one line");
}

#[test]
fn top_prints_one_picture_for_scripts_and_gives_the_terminal_back() {
    let echo = EchoTarget::start();
    let bed = Bed::start(Io::Uring, &[echo.resource("echo")]);
    let (_connect, local) = bed.forward("echo");
    let mut stream = TcpStream::connect(local).unwrap();
    stream.write_all(b"x").unwrap();
    let picture = Output::of(&mut bed.command(&["top", "--once"])).ok().stdout;
    for word in ["1 sessions", "echo", "box", "active", "RTT"] {
        assert!(picture.contains(word), "{word} in {picture}");
    }
    let Some(script) = program("script") else { return };
    // A terminal made by `script` has no size if its own input is none.
    let command = format!("stty rows 30 cols 120; {} top", env!("CARGO_BIN_EXE_switchback"));
    let shown = bed.command(&[]);
    let mut pty = Command::new(script);
    pty.args(["-qec", &command, "/dev/null"]).env("TERM", "xterm");
    for (name, value) in shown.get_envs() {
        if let Some(value) = value {
            pty.env(name, value);
        }
    }
    let mut child = pty
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    child.stdin.as_mut().unwrap().write_all(b"tq").unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let (entered, left) = (text.find("\x1b[?1049h"), text.rfind("\x1b[?1049l"));
    assert!(entered.is_some() && entered < left, "the screen is given back: {text:?}");
}

#[test]
fn every_metric_of_dashboard_and_alerts_is_on_the_page() {
    let bed = Bed::without_agent(Io::Epoll, None);
    let page = bed.run(&["metrics"]).ok().stdout;
    let families: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    for file in ["grafana.json", "alerts.yml"] {
        let text = fs::read_to_string(format!("{ROOT}/scripts/ops/{file}")).unwrap();
        let mut named = 0;
        for piece in text.split("switchback_").skip(1) {
            let end = piece.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap();
            let name = format!("switchback_{}", &piece[..end]);
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|it| name.strip_suffix(it));
            let there = families.contains(&*name) || family.is_some_and(|it| families.contains(it));
            assert!(there, "{file} names {name}");
            named += 1;
        }
        assert!(named >= 10, "{file}");
    }
    let dashboard = fs::read_to_string(format!("{ROOT}/scripts/ops/grafana.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 10);
}

#[test]
fn alert_rules_are_rules() {
    let path = format!("{ROOT}/scripts/ops/alerts.yml");
    let text = fs::read_to_string(&path).unwrap();
    let count = |word: &str| text.lines().filter(|line| line.trim().starts_with(word)).count();
    let alerts = count("- alert:");
    assert!(alerts >= 8);
    for part in ["expr:", "labels:", "annotations:", "summary:"] {
        assert_eq!(count(part), alerts, "{part}");
    }
    // Debian has it in a package of 100 MB with a server that starts by itself.
    let Some(promtool) = optional_program("promtool") else { return };
    Output::of(Command::new(promtool).args(["check", "rules", &path])).ok();
}

#[test]
fn units_are_sound_and_their_sandbox_is_tight() {
    let Some(analyze) = program("systemd-analyze") else { return };
    let home = tempfile::TempDir::new().unwrap();
    for unit in ["switchback.service", "switchback-agent.service", "switchback-gateway.service"] {
        let text = fs::read_to_string(format!("{ROOT}/scripts/ops/{unit}")).unwrap();
        let binary = env!("CARGO_BIN_EXE_switchback");
        let path = home.path().join(unit);
        fs::write(&path, text.replace("/usr/bin/switchback", binary)).unwrap();
        let verified = Output::of(Command::new(&analyze).arg("verify").arg(&path)).ok();
        assert!(!verified.stderr.contains(unit), "{verified:?}");
        // Tenths: what systemd calls "OK", with room for its next opinion.
        let judge = ["security", "--offline=true", "--threshold=25", "--no-pager"];
        Output::of(Command::new(&analyze).args(judge).arg(&path)).ok();
    }
}
