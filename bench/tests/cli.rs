//! The bench as its users run it: exit codes, JSON that keeps its schema, and no process left.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

const SCHEMA: &str = include_str!("../schema/gateway-1.json");

fn bench(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchback-bench"));
    command.args(args).env_remove("SWITCHBACK_BIN").output().unwrap()
}

fn json(output: &Output) -> Value {
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

#[test]
fn a_run_states_every_figure_in_the_shape_of_the_schema() {
    let short = ["--rounds", "2", "--seconds", "0.05", "--idle-sessions", "20", "--json", "-"];
    let output = bench(&[&["gateway", "--peers", "direct,tokio-copy"], &short[..]].concat());
    let report = json(&output);
    conforms(&report, &serde_json::from_str(SCHEMA).unwrap(), "report");
    assert_eq!(report["failures"], serde_json::json!([]));
    assert_eq!(output.status.code(), Some(0));
    for (scenario, name) in [
        ("latency1", "added_p50"),
        ("latency1", "added_p99"),
        ("latency50", "rtt_p99"),
        ("latency50", "cpu_per_message"),
        ("bulk1", "cpu_per_gib"),
        ("bulk8", "throughput"),
        ("idle", "rss_per_session"),
    ] {
        let found = metric(&report, scenario, "tokio-copy", name);
        let values = found.and_then(|m| m["values"].as_array()).map(Vec::len);
        let rounds = if scenario == "idle" { 1 } else { 2 };
        assert_eq!(values, Some(rounds), "{scenario} {name}");
    }
    let ratios = &metric(&report, "bulk8", "tokio-copy", "throughput").unwrap()["ratios"];
    assert_eq!(ratios[0]["to"], "direct");
    assert!(metric(&report, "bulk8", "direct", "cpu_per_gib").is_none(), "no process, no CPU");
}

#[test]
fn a_gateway_that_does_not_start_is_a_failure_beside_the_others_figures() {
    let output = bench(&[
        "gateway",
        "--peers",
        "direct,switchback-epoll",
        "--binary",
        "/bin/false",
        "--only",
        "bulk1",
        "--rounds",
        "1",
        "--seconds",
        "0.05",
        "--json",
        "-",
    ]);
    let report = json(&output);
    conforms(&report, &serde_json::from_str(SCHEMA).unwrap(), "report");
    assert_eq!(report["failures"][0]["peer"], "switchback-epoll");
    assert_eq!(report["failures"][0]["during"], "start");
    assert!(metric(&report, "bulk1", "direct", "throughput").is_some());
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn the_markdown_report_has_a_table_per_scenario_and_the_method() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let output = bench(&[
        "gateway",
        "--peers",
        "direct,tokio-copy",
        "--only",
        "bulk1,idle",
        "--rounds",
        "1",
        "--seconds",
        "0.05",
        "--idle-sessions",
        "5",
        "--markdown",
        path,
    ]);
    assert_eq!(output.status.code(), Some(0));
    let markdown = std::fs::read_to_string(path).unwrap();
    for part in ["\n## Bulk, 1 flow\n", "\n| tokio-copy | ", "congestion control: generator reno"] {
        assert!(markdown.contains(part), "{part:?} in {markdown}");
    }
    let tables = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(tables.contains("RSS/session KiB") && tables.contains("Warnings"), "{tables}");
}

#[test]
fn wrong_usage_and_a_missing_gateway_are_told_apart() {
    for wrong in
        [&["gateway", "--rounds", "0"][..], &["gateway", "--seconds", "NaN"], &["nonsense"]]
    {
        assert_eq!(bench(wrong).status.code(), Some(2), "{wrong:?}");
    }
    let output = bench(&["gateway", "--binary", "/nonexistent/switchback"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("--binary") && stderr.contains("cargo build --release"), "{stderr}");
}

/// Kills the echo when the test ends, however it ends.
struct Echo(Child);

impl Drop for Echo {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn load_measures_an_echo() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchback-bench"));
    let mut echo = Echo(command.arg("echo").stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(echo.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    let target = ready["local_addr"].as_str().unwrap();
    let output = bench(&[
        "load",
        "--target",
        target,
        "--rate",
        "500",
        "--connections",
        "5",
        "--seconds",
        "1",
        "--warmup",
        "0",
        "--sleep",
        "--json",
        "-",
    ]);
    let report = json(&output);
    assert_eq!(report["schema"], "switchback-bench/load/1");
    let latency = &report["latency"];
    assert_eq!(latency["answered"], latency["sent"]);
    assert!(latency["sent"].as_u64().unwrap() > 300 && latency["p50_us"].as_f64().unwrap() > 0.0);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_target_that_refuses_is_an_error() {
    let output = bench(&["load", "--target", "127.0.0.1:1", "--seconds", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("127.0.0.1:1"));
}
