//! Policies decide, may change under a live session, and those in README are right.
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use switchback_control::Code;

use crate::support::{Bed, EchoTarget, Io, Output, eventually, switchback};

/// Policy files are looked at every second.
const SOON: Duration = Duration::from_secs(15);

/// A broker that decides by the policies of this directory, which begins with the built-in ones.
fn with_policies(bed: &mut Bed) -> PathBuf {
    let dir = bed.home().join("policy");
    fs::create_dir(&dir).unwrap();
    let base = Output::of(&mut bed.command(&["policy", "show"])).ok().stdout;
    fs::write(dir.join("10-base.cedar"), base).unwrap();
    bed.kill_server();
    bed.restart_server_with(&["--policy", dir.to_str().unwrap()]);
    dir
}

fn status(bed: &Bed, what: &str, wanted: impl Fn(&Value) -> bool) {
    eventually(what, SOON, || {
        let status = Output::of(bed.command(&["policy", "status"]).arg("--json")).json();
        wanted(&status).then_some(())
    });
}

/// Sends a byte and takes it back; false once the session is over.
fn echoes(stream: &mut TcpStream) -> bool {
    stream.write_all(b"x").is_ok() && matches!(stream.read(&mut [0]), Ok(1))
}

#[test]
fn a_broken_policy_changes_nothing_and_a_new_one_ends_the_live_session_that_it_forbids() {
    let echo = EchoTarget::start();
    let mut bed = Bed::start(Io::Epoll, &[echo.resource("echo")]);
    let dir = with_policies(&mut bed);
    let ada = bed.new_user("ada", &["echo"]);
    let (_connect, local) = bed.forward_as(&ada, "echo");
    let mut stream = TcpStream::connect(local).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    assert!(echoes(&mut stream));

    let file = dir.join("20-closed.cedar");
    fs::write(&file, "forbid (principal, action ==").unwrap();
    status(&bed, "the mistake to be told", |it| it["wrong"].as_array().is_some());
    assert!(echoes(&mut stream), "the last good ones hold");
    let (_another, local) = bed.forward_as(&ada, "echo");
    assert!(echoes(&mut TcpStream::connect(local).unwrap()), "for new sessions too");

    let closed = r#"@id("closed") forbid (principal, action == Action::"connect", resource)
        when { principal.name == "ada" };"#;
    fs::write(&file, closed).unwrap();
    eventually("the session to end", SOON, || (!echoes(&mut stream)).then_some(()));
    let refused =
        Output::of(bed.command_as(&ada, &["connect", "echo", "--stdio"]).arg("--json")).refusal();
    assert_eq!(refused, Code::PolicyDenied.as_str());
    let why = ["policy", "explain", "--user", "ada", "--resource", "echo"];
    let why = bed.run(&why).ok().json();
    assert_eq!(why["decision"]["deciding"], serde_json::json!(["closed"]), "{why}");
    eventually("the record of the refusal", SOON, || {
        // Of the session that ended and of the refused one.
        let records = bed.run(&["audit"]).ok().stdout;
        let records = records.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let by_it = |it: &Value| {
            it["user"] == "ada" && it["code"] == "POLICY_DENIED" && it["policies"][0] == "closed"
        };
        (records.filter(by_it).count() >= 2).then_some(())
    });

    fs::remove_file(&file).unwrap();
    status(&bed, "the old policies", |it| it["policies"] == 4);
    let (_again, local) = bed.forward_as(&ada, "echo");
    assert!(echoes(&mut TcpStream::connect(local).unwrap()));
}

/// The first block of this language after these words in README.
fn in_readme(words: &str, language: &str) -> String {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let (_, after) = readme.split_once(words).unwrap_or_else(|| panic!("{words} in README"));
    let (_, block) = after.split_once(&format!("```{language}\n")).expect("a block");
    block.split_once("```").expect("its end").0.to_owned()
}

#[test]
fn the_policy_in_readme_passes_its_own_cases() {
    let home = tempfile::TempDir::new().unwrap();
    let dir = home.path().join("policy");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("20-prod.cedar"), in_readme("`policy/20-prod.cedar`", "cedar")).unwrap();
    let cases = home.path().join("cases.toml");
    let table = in_readme("`cases.toml`", "toml");
    fs::write(&cases, &table).unwrap();
    let test = |cases: &std::path::Path| {
        let mut command = switchback(home.path());
        command.args(["policy", "test"]).arg(&dir).arg("--cases").arg(cases);
        Output::of(&mut command)
    };
    test(&cases).ok();
    fs::write(&cases, table.replacen("allow", "deny", 1)).unwrap();
    assert_eq!(test(&cases).code, 1, "a wrong expectation is told");
}
