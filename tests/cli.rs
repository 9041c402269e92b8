//! The command line as people and scripts meet it: exit statuses, where words go, and what errors look like.
use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The binary, with no trace of the environment that runs the tests.
fn switchback(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchback"));
    let home = std::env::temp_dir().join("switchback-test-home-that-is-not-there");
    command.args(words).env_clear().env("HOME", home).stdin(Stdio::null());
    command
}

fn run(words: &[&str]) -> Output {
    switchback(words).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Standard error as an error object; standard output must be empty.
fn error_object(output: &Output) -> Value {
    assert!(output.stdout.is_empty(), "{output:?}");
    let value: Value = serde_json::from_slice(&output.stderr).unwrap();
    value["error"].clone()
}

#[test]
fn version_and_help_go_to_standard_output_and_succeed() {
    let version = run(&["--version"]);
    assert!(version.status.success());
    let words: Vec<_> = text(&version.stdout).split_whitespace().collect();
    assert_eq!(words[..2], ["switchback", env!("CARGO_PKG_VERSION")]);
    assert!(words[2].starts_with('(') && words[2].ends_with(')'), "{words:?}");
    let help = run(&["--help"]);
    assert!(help.status.success());
    assert!(text(&help.stdout).contains("Quick start:"));
    assert!(help.stderr.is_empty());
}

#[test]
fn no_command_shows_the_help_and_fails_as_wrong_usage() {
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(64));
    assert!(output.stdout.is_empty());
    assert!(text(&output.stderr).contains("Quick start:"));
}

#[test]
fn a_wrong_word_is_refused_in_both_forms() {
    let output = run(&["conect"]);
    assert_eq!(output.status.code(), Some(64));
    let said = text(&output.stderr);
    assert!(said.starts_with("error: USAGE_INVALID: "), "{said}");
    assert!(said.trim_end().ends_with("→ See --help."), "{said}");
    let output = run(&["--json", "conect"]);
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(error_object(&output)["code"], "USAGE_INVALID");
}

#[test]
fn a_command_without_a_login_says_what_to_do() {
    let output = run(&["resources"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(text(&output.stderr).starts_with("error: NOT_LOGGED_IN: "));
    assert!(text(&output.stderr).contains("switchback login"));
    assert!(output.stdout.is_empty());
}

#[test]
fn a_damaged_login_string_is_refused_from_every_door_and_never_repeated() {
    let damaged = "sblogin1_c2VjcmV0LXdvcmRz";
    let by_flag = run(&["--json", "sessions", "--login", damaged]);
    let by_environment =
        switchback(&["--json", "sessions"]).env("SWITCHBACK_LOGIN", damaged).output().unwrap();
    let by_word = run(&["--json", "login", damaged]);
    for output in [by_flag, by_environment, by_word] {
        assert_eq!(output.status.code(), Some(64));
        assert!(!text(&output.stderr).contains("c2VjcmV0"));
        assert_eq!(error_object(&output)["code"], "INVITE_INVALID");
    }
}

#[test]
fn a_login_string_may_come_on_standard_input() {
    let mut child = switchback(&["--json", "login", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"sbjoin1_abc\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let error = error_object(&output);
    assert_eq!(error["code"], "INVITE_INVALID");
    assert!(error["message"].as_str().unwrap().contains("join string"));
}

#[test]
fn a_resource_written_wrongly_is_refused_with_the_reason() {
    let output = run(&["--json", "agent", "--join", "sbjoin1_x", "--resource", "ssh=tcp:::1:22"]);
    assert_eq!(output.status.code(), Some(64));
    let error = error_object(&output);
    assert_eq!(error["code"], "USAGE_INVALID");
    assert!(error["message"].as_str().unwrap().contains("in brackets"));
}

#[test]
fn commands_about_paths_teach_and_refuse() {
    for (command, taught) in [
        ("ping", "--until-direct"),
        ("netcheck", "--every"),
        ("explain", "reasons"),
        ("agent", "relay-only"),
        ("serve", "--turn-ports"),
        ("connect", "--udp-ports"),
    ] {
        let help = run(&[command, "--help"]);
        assert!(help.status.success() && text(&help.stdout).contains(taught), "{command}");
    }
    for words in [vec!["ping", "ssh"], vec!["netcheck"], vec!["explain", "k3m9x2q7w4ht"]] {
        let words: Vec<_> = ["--json"].into_iter().chain(words).collect();
        assert_eq!(error_object(&run(&words))["code"], "NOT_LOGGED_IN", "{words:?}");
    }
    for (words, wanted) in [
        (vec!["ping", "ssh", "--size", "7"], "8 to 16384"),
        (vec!["netcheck", "--every", "1s"], "at least 5s"),
        (vec!["connect", "x", "--listen", "127.0.0.1:0", "--udp-ports", "9-5"], "comes after"),
        (vec!["connect", "x", "--stdio", "--no-udp", "--udp-ports", "5-9"], "cannot be used with"),
        (vec!["agent", "--resource", "x=udp:h:1;udp=on"], "expected prefer, require"),
        (vec!["serve", "--turn-server", "turn.example:3478"], "--turn-secret"),
        (vec!["serve", "--no-turn", "--turn-ports", "5-9"], "cannot be used with"),
    ] {
        let words: Vec<_> = ["--json"].into_iter().chain(words).collect();
        let error = error_object(&run(&words));
        assert_eq!(error["code"], "USAGE_INVALID", "{words:?}");
        assert!(error["message"].as_str().unwrap().contains(wanted), "{words:?}: {error}");
    }
}

#[test]
fn a_configuration_file_is_refused_by_file_line_and_key() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "# comment\nlistn = \"127.0.0.1:0\"").unwrap();
    let path = file.path().to_str().unwrap();
    let output = run(&["--json", "serve", "--config", path]);
    assert_eq!(output.status.code(), Some(64));
    let error = error_object(&output);
    assert_eq!(error["code"], "CONFIG_INVALID");
    let message = error["message"].as_str().unwrap();
    assert!(message.starts_with(&format!("{path}:2: `listn`: ")), "{message}");
}

#[test]
fn every_code_is_explained_with_its_remedy_and_exit_status() {
    let output = run(&["errors", "--json"]);
    assert!(output.status.success());
    let codes: Value = serde_json::from_slice(&output.stdout).unwrap();
    for code in codes.as_array().unwrap() {
        assert!((64..=77).contains(&code["exit"].as_u64().unwrap()), "{code}");
        assert!(!code["remedy"].as_str().unwrap().is_empty());
    }
    let one = run(&["errors", "ticket_expired"]);
    assert!(text(&one.stdout).starts_with("TICKET_EXPIRED\n"));
    assert_eq!(run(&["errors", "NO_SUCH_CODE"]).status.code(), Some(64));
}

#[test]
fn a_reader_that_leaves_early_causes_no_panic_and_no_error() {
    let mut child =
        switchback(&["errors"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn output_that_is_no_terminal_has_no_colour() {
    for words in [&["errors"][..], &["--help"], &["conect"]] {
        let output = switchback(words).env("TERM", "xterm-256color").output().unwrap();
        assert!(!output.stdout.contains(&0x1b) && !output.stderr.contains(&0x1b), "{words:?}");
    }
}

#[test]
fn a_broker_that_is_not_there_is_unreachable() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let login = login_string(&format!("https://{gone}"));
    let output = run(&["--json", "sessions", "--login", &login]);
    assert_eq!(output.status.code(), Some(69));
    assert_eq!(error_object(&output)["code"], "BROKER_UNREACHABLE");
}

/// A well-formed login string for a broker that has never existed.
fn login_string(url: &str) -> String {
    use switchback_control::invite::{Invite, InviteKind};
    use switchback_control::secret::Secret;
    // Base64url of 32 zero bytes.
    let pin = "A".repeat(43);
    let invite = Invite { kind: InviteKind::Login, url: url.into(), pin, token: Secret::new("t") };
    invite.to_text().reveal().to_owned()
}

#[test]
fn the_demo_survives_its_restart_and_every_hash_holds() {
    let output = run(&["demo", "--seconds", "3", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["ok"], true);
    assert!(summary["checks"]["right"].as_u64().unwrap() > 0, "{summary}");
    assert_eq!(summary["checks"]["wrong"], 0);
    assert_eq!(summary["checks"]["broken"], 0);
    assert!(summary["restart"]["pause_ms"].is_u64(), "{summary}");
    assert!(summary["session"]["resumes"].as_u64().unwrap() > 0, "{summary}");
    // Which of its legs carries the session when the demo ends is the path choice's affair.
    let transport = summary["session"]["transport"].as_str().unwrap();
    assert!(["TCP (Reverse-Connect)", "UDP (Shortpath)"].contains(&transport), "{summary}");
}
