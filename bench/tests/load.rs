//! `load` and `echo` as their users run them.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

fn load(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchback-bench"));
    command.arg("load").args(args).env_remove("SWITCHBACK_BIN").output().unwrap()
}

fn document(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}; stderr: {stderr}"))
}

/// Kills the service when the test ends, however it ends.
struct Service {
    child: Child,
    addr: String,
}

impl Service {
    fn start(kind: &str) -> Service {
        let mut command = Command::new(env!("CARGO_BIN_EXE_switchback-bench"));
        let mut child =
            command.args(["echo", "--as", kind]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        let addr = ready["local_addr"].as_str().unwrap().to_owned();
        Service { child, addr }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Short, and kind to the machine.
const SHORT: [&str; 7] = ["--duration", "200ms", "--warmup", "0s", "--sleep", "--json", "-"];

#[test]
fn messages_to_an_echo_are_counted_and_their_latencies_written() {
    let echo = Service::start("echo");
    let hgrm = tempfile::NamedTempFile::new().unwrap();
    let path = hgrm.path().to_str().unwrap();
    let args = ["--target", &echo.addr, "--rate", "2000", "--connections", "5", "--hgrm", path];
    let output = load(&[&args[..], &SHORT, &["--sizes", "64-1400"]].concat());
    let report = document(&output);
    assert_eq!(report["schema"], "switchback-bench/load/2");
    let latency = &report["latency"];
    assert_eq!(latency["answered"], latency["sent"]);
    let sent = latency["sent"].as_u64().unwrap();
    assert!((200..800).contains(&sent), "2,000/s for 200 ms are about 400: {sent}");
    assert_eq!(report["sizes"], "64 to 1400 B");
    assert_eq!(output.status.code(), Some(0));
    let hgrm = std::fs::read_to_string(path).unwrap();
    let total = hgrm.lines().find(|line| line.contains("Total count")).unwrap();
    assert!(total.contains(&format!("{sent}]")), "{total}");
}

#[test]
fn a_closed_loop_has_no_rate_and_sizes_come_from_a_file() {
    let echo = Service::start("echo");
    let mut sizes = tempfile::NamedTempFile::new().unwrap();
    writeln!(sizes, "# two sizes\n64 9\n1400 1").unwrap();
    let file = sizes.path().to_str().unwrap();
    let args = ["--target", &echo.addr, "--rate", "max", "--connections", "3"];
    let report = document(&load(&[&args[..], &SHORT, &["--sizes-file", file]].concat()));
    assert_eq!((&report["rate"], &report["arrivals"]), (&Value::Null, &Value::Null));
    assert_eq!(report["latency"]["unanswered"], 0);
    assert!(report["messages_per_second"].as_f64().unwrap() > 10.0);
}

#[test]
fn bytes_go_up_to_a_sink_and_come_down_from_a_source() {
    for (kind, mode) in [("discard", "up"), ("generate", "down")] {
        let service = Service::start(kind);
        let args = ["--target", &service.addr, "--mode", mode, "--connections", "2"];
        let short = SHORT.iter().copied().filter(|flag| *flag != "--sleep");
        let output = load(&args.into_iter().chain(short).collect::<Vec<_>>());
        let report = document(&output);
        assert_eq!((&report["seed"], &report["spin"]), (&Value::Null, &Value::Null));
        assert!(report["throughput"]["bytes"].as_u64().unwrap() > 1 << 20, "{report}");
        assert_eq!((&report["latency"], output.status.code()), (&Value::Null, Some(0)));
    }
}

#[test]
fn a_session_is_opened_loaded_through_and_told() {
    let echo = Service::start("echo");
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("switchback");
    let status = format!(
        r#"{{"resource":"desk","session":"k3m9","agent":"branch","listen":"{}","transport":null,"rtt":null}}"#,
        echo.addr
    );
    // Stands in for ours: checks its arguments, says where, and waits to be ended.
    let script = format!(
        "#!/bin/sh\n[ \"$*\" = \"connect desk --listen 127.0.0.1:0 --json\" ] || exit 2\n\
         echo '{status}'\nexec sleep 60\n"
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    let binary = program.to_str().unwrap();
    let output = load(&[&["--through", "desk", "--binary", binary][..], &SHORT].concat());
    let report = document(&output);
    assert_eq!(report["session"]["session"], "k3m9");
    assert_eq!(report["latency"]["unanswered"], 0);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn what_cannot_be_reached_is_an_error_with_its_name() {
    for (args, named) in [
        (["--target", "127.0.0.1:1"], "127.0.0.1:1"),
        (["--binary=/bin/false", "--through=desk"], "switchback connect"),
    ] {
        let output = load(&args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.contains(named), "{stderr}");
    }
}

#[test]
fn wrong_usage_is_told_from_failure() {
    let target = ["--target", "127.0.0.1:1"];
    for wrong in [
        &["--rate", "5"][..],
        &["--target", "127.0.0.1:1", "--through", "x"],
        &[&target[..], &["--rate", "0"]].concat(),
        &[&target[..], &["--sizes", "9-1"]].concat(),
        &[&target[..], &["--size", "1", "--sizes", "1-9"]].concat(),
        &[&target[..], &["--mode", "up", "--rate", "5"]].concat(),
        &[&target[..], &["--duration", "0s"]].concat(),
        &[&target[..], &["--mode", "down", "--sleep"]].concat(),
        &[&target[..], &["--mode", "up", "--seed", "5"]].concat(),
        &[&target[..], &["--mode", "up", "--arrivals", "even"]].concat(),
        &[&target[..], &["--rate", "max", "--arrivals", "even"]].concat(),
    ] {
        assert_eq!(load(wrong).status.code(), Some(2), "{wrong:?}");
    }
}
