//! The bench as its users run it: exit codes, JSON that keeps its schema, and no process left.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};
use switchback_bench::lab;
use tempfile::NamedTempFile;

const SCHEMA: &str = include_str!("../schema/compare-1.json");
const SHORTPATH_SCHEMA: &str = include_str!("../schema/shortpath-1.json");
const CONTROL_SCHEMA: &str = include_str!("../schema/control-1.json");

fn bench(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchback-bench"));
    command.args(args).env_remove("SWITCHBACK_BIN").output().unwrap()
}

fn document(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}; stderr: {stderr}"))
}

/// The part of JSON Schema that the schema file uses.
fn conforms(value: &Value, schema: &Value, at: &str) {
    if let Some(allowed) = schema["enum"].as_array() {
        assert!(allowed.contains(value), "{at}: {value} is not one of {allowed:?}");
    }
    let wanted: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
        _ => return,
    };
    let actual = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    assert!(wanted.contains(&actual), "{at}: {actual}, not {wanted:?}");
    for item in value.as_array().into_iter().flatten() {
        conforms(item, &schema["items"], &format!("{at}[]"));
    }
    let Some(fields) = value.as_object() else { return };
    for (name, field) in fields {
        let known = schema["properties"].get(name);
        conforms(field, known.unwrap_or_else(|| panic!("{at}.{name} is not in the schema")), name);
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        assert!(fields.contains_key(name), "{at}.{name} is missing");
    }
}

fn metric<'a>(report: &'a Value, scenario: &str, peer: &str, metric: &str) -> Option<&'a Value> {
    let named = |list: &'a Value, key: &str, name: &str| {
        list.as_array()?.iter().find(|item| item[key] == name)
    };
    let scenario = named(&report["scenarios"], "name", scenario)?;
    let result = named(&scenario["results"], "peer", peer)?;
    named(&result["metrics"], "metric", metric)
}

/// A short run of `compare` with `args` on top.
fn compare(args: &[&str]) -> Output {
    bench(&[&["compare", "--rounds", "1", "--seconds", "0.1"], args].concat())
}

/// A scenario file of our own.
fn scenario(text: &str) -> NamedTempFile {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    std::fs::write(&file, text).unwrap();
    file
}

const FEW_IDLE: &str = r#"
name = "few-idle"
title = "A few sessions at rest"
claim = "They take next to nothing."

[workload]
kind = "idle"
sessions = 20

[[goal]]
metric = "rss_per_session"
peers = ["tokio-copy"]
at-most = 1000000.0

[[goal]]
metric = "rss_per_session"
peers = ["tokio-copy"]
relative-to = "haproxy-splice"
at-most = 1.0
"#;

#[test]
fn a_run_states_every_figure_in_the_shape_of_the_schema() {
    let idle = scenario(FEW_IDLE);
    let scenarios = format!("rr64-1,bulk8,{}", idle.path().display());
    let chosen = ["--quick", "--peers", "direct,tokio-copy", "--scenario", &scenarios];
    let output = compare(&[&chosen[..], &["--json", "-"]].concat());
    let report = document(&output);
    conforms(&report, &serde_json::from_str(SCHEMA).unwrap(), "report");
    assert_eq!(report["failures"], json!([]));
    assert_eq!(output.status.code(), Some(0));
    for (scenario, name) in [
        ("rr64-1", "added_p50"),
        ("rr64-1", "rtt_p99"),
        ("rr64-1", "cpu_per_message"),
        ("bulk8", "cpu_per_gib"),
        ("bulk8", "throughput"),
        ("few-idle", "rss_per_session"),
    ] {
        let found = metric(&report, scenario, "tokio-copy", name);
        let values = found.and_then(|m| m["values"].as_array()).map(Vec::len);
        assert_eq!(values, Some(1), "{scenario} {name}");
    }
    let ratios = &metric(&report, "bulk8", "tokio-copy", "throughput").unwrap()["ratios"];
    assert_eq!(ratios[0]["to"], "direct");
    assert!(metric(&report, "bulk8", "direct", "cpu_per_gib").is_none(), "no process, no CPU");
    let goals = report["scenarios"][2]["goals"].as_array().unwrap();
    let outcomes: Vec<&Value> = goals.iter().map(|goal| &goal["outcome"]).collect();
    assert_eq!(outcomes, ["met", "not-judged"]);
}

#[test]
fn timed_messages_come_with_their_percentiles() {
    let chosen = ["--peers", "direct", "--scenario", "rr64-1", "--json", "-"];
    let report = document(&compare(&chosen));
    let timed = &report["scenarios"][0]["results"][0]["distributions"][0];
    assert_eq!(timed["label"], "round-trip");
    let points = timed["points"].as_array().unwrap();
    let us = |percentile: f64| {
        points.iter().find(|point| point["percentile"] == percentile).unwrap()["us"]
            .as_f64()
            .unwrap()
    };
    let p50 = metric(&report, "rr64-1", "direct", "rtt_p50").unwrap();
    assert!((us(50.0) / p50["median"].as_f64().unwrap() - 1.0).abs() < 0.01);
    assert!(us(0.0) <= us(50.0) && us(99.99) <= us(100.0));
}

#[test]
fn a_gateway_that_does_not_start_is_a_failure_beside_the_others_figures() {
    let chosen = ["--peers", "direct,switchback-epoll", "--binary", "/bin/false"];
    let output = compare(&[&chosen[..], &["--scenario", "bulk8", "--json", "-"]].concat());
    let report = document(&output);
    conforms(&report, &serde_json::from_str(SCHEMA).unwrap(), "report");
    assert_eq!(report["failures"][0]["peer"], "switchback-epoll");
    assert_eq!(report["failures"][0]["during"], "start");
    assert!(metric(&report, "bulk8", "direct", "throughput").is_some());
    let goals = report["scenarios"][0]["goals"].as_array().unwrap();
    assert!(!goals.is_empty() && goals.iter().all(|goal| goal["outcome"] == "not-judged"));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_directory_gets_the_report_in_every_form() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("deep/report");
    let idle = scenario(FEW_IDLE);
    let scenarios = format!("rr64-1,{}", idle.path().display());
    let chosen = ["--peers", "direct,tokio-copy", "--scenario", &scenarios, "--out"];
    let output = compare(&[&chosen[..], &[out.to_str().unwrap()]].concat());
    assert_eq!(output.status.code(), Some(0));
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    let report: Value = serde_json::from_str(&read("report.json")).unwrap();
    conforms(&report, &serde_json::from_str(SCHEMA).unwrap(), "report");
    let markdown = read("report.md");
    for part in ["\n## few-idle: A few", "\n| tokio-copy | ", "generator reno", "met: tokio-copy"] {
        assert!(markdown.contains(part), "{part:?} in {markdown}");
    }
    assert!(read("report.html").starts_with("<!DOCTYPE html>"));
    assert!(read("rr64-1.tokio-copy.round-trip.hgrm").contains("1/(1-Percentile)"));
    let tables = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in ["RSS/session KiB", "not judged: tokio-copy", "fewer than 4 rounds"] {
        assert!(tables.contains(part), "{part:?} in {tables}");
    }
    assert!(tables.lines().filter(|line| line.contains('│')).all(|l| l.chars().count() <= 110));
}

#[test]
fn what_there_is_can_be_listed() {
    let output = bench(&["compare", "--list", "--peers", "direct,tokio-copy"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in
        ["bulk8-both-ways", "slow-reader", "Streams take no throughput", "copy_bidirectional"]
    {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[test]
fn wrong_usage_says_what_there_is() {
    let unknown_key = scenario(&FEW_IDLE.replace("claim", "clam"));
    let unknown_peer = scenario(&FEW_IDLE.replace("haproxy-splice", "haproxy-spice"));
    let path = |file: &NamedTempFile| file.path().to_str().unwrap().to_owned();
    for (wrong, hint) in [
        (["--rounds", "0"], "1..=50"),
        (["--seconds", "NaN"], "0.05 to 600"),
        (["--peers", "nobody"], "tokio-copy"),
        (["--scenario", "bulk9"], "bulk8-both-ways"),
        (["--scenario", path(&unknown_key).as_str()], "`clam`, expected one of"),
        (["--scenario", path(&unknown_peer).as_str()], "haproxy-splice256"),
        (["--scenario", "./nonexistent.toml"], "./nonexistent.toml"),
    ] {
        let output = bench(&[&["compare"], &wrong[..]].concat());
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {stderr}");
        assert!(stderr.contains(hint), "{wrong:?}: {hint:?} in {stderr}");
    }
}

#[test]
fn a_missing_gateway_is_said_before_anything_is_measured() {
    let output = bench(&["compare", "--binary", "/nonexistent/switchback"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("--binary") && stderr.contains("cargo build --release"), "{stderr}");
}

/// The program beside the bench, or the one named; `None`, and said, if it was not built.
fn ours() -> Option<PathBuf> {
    let beside = PathBuf::from(env!("CARGO_BIN_EXE_switchback-bench")).with_file_name("switchback");
    let binary = std::env::var_os("SWITCHBACK_BIN").map_or(beside, PathBuf::from);
    if !binary.is_file() {
        eprintln!("SKIPPED: no gateway at {}", binary.display());
        return None;
    }
    Some(binary)
}

/// `first-byte` of ours over TCP alone, with this binary.
fn first_byte(binary: &str) -> Output {
    let chosen = ["shortpath", "first-byte", "--quick", "--peers", "switchback-tcp"];
    bench(&[&chosen[..], &["--binary", binary, "--json", "-"]].concat())
}

#[test]
fn a_session_is_measured_in_a_lab_and_judged_in_the_shape_of_the_schema() {
    if lab::skip(lab::unavailable()) {
        return;
    }
    let Some(binary) = ours() else { return };
    let report = document(&first_byte(binary.to_str().unwrap()));
    conforms(&report, &serde_json::from_str(SHORTPATH_SCHEMA).unwrap(), "report");
    assert_eq!(report["failures"], json!([]));
    let case = &report["experiments"][0]["cases"][0];
    let figures = case["results"][0]["figures"].as_array().unwrap();
    let connection = figures.iter().find(|figure| figure["metric"] == "connection").unwrap();
    // The relayed round trip of this case is 60 ms, and nothing is quicker than the wire.
    assert!(connection["min"].as_f64().unwrap() >= 60.0, "{connection}");
    assert!(case["goals"].as_array().unwrap().iter().any(|goal| goal["metric"] == "session"));
}

#[test]
fn a_tunnel_that_does_not_start_is_a_failure_and_its_goals_are_missed() {
    if lab::skip(lab::unavailable()) {
        return;
    }
    let output = first_byte("/bin/false");
    let report = document(&output);
    conforms(&report, &serde_json::from_str(SHORTPATH_SCHEMA).unwrap(), "report");
    assert_eq!(report["failures"][0]["peer"], "switchback-tcp");
    let goals = report["experiments"][0]["cases"][0]["goals"].as_array().unwrap();
    assert!(!goals.is_empty() && goals.iter().all(|goal| goal["outcome"] == "missed"));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn an_unknown_experiment_is_refused_with_what_there_is() {
    let output = bench(&["shortpath", "firstbyte"]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("first-byte, direct, failover"), "{stderr}");
}

#[test]
fn agents_connect_rest_and_come_back_in_the_shape_of_the_schema() {
    let Some(binary) = ours() else { return };
    let chosen = ["control", "agents", "--quick", "--agents", "50", "--json", "-", "--binary"];
    let output = bench(&[&chosen[..], &[binary.to_str().unwrap()]].concat());
    let report = document(&output);
    conforms(&report, &serde_json::from_str(CONTROL_SCHEMA).unwrap(), "report");
    assert_eq!(report["failures"], json!([]));
    assert_eq!(output.status.code(), Some(0));
    let case = &report["experiments"][0]["cases"][0];
    assert_eq!(case["name"], "50 agents");
    let figures = case["results"][0]["figures"].as_array().unwrap();
    let value = |name: &str| {
        let figure = figures.iter().find(|figure| figure["metric"] == name);
        figure.unwrap_or_else(|| panic!("no {name}"))["p50"].as_f64().unwrap()
    };
    for name in ["links_per_second_while_connecting", "all_back_after_restart", "resident_memory"] {
        assert!(value(name) > 0.0, "{name}");
    }
}

#[test]
fn a_broker_that_does_not_start_is_an_error_and_nothing_is_measured() {
    for (binary, why) in [("/bin/false", "/bin/false"), ("/nonexistent/switchback", "--binary")] {
        let output = bench(&["control", "sessions", "--quick", "--binary", binary]);
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.contains(why), "{stderr}");
    }
    let unknown = bench(&["control", "agent"]);
    assert_eq!(unknown.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(stderr.contains("agents, sessions, feed, policy"), "{stderr}");
}
