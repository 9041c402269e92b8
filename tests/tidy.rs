//! The architecture as a test: dependency direction, where `unsafe` may live, pure modules, and a clean text.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file that git would commit.
fn rust_files() -> Vec<PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &mut found);
    assert!(found.len() > 20, "the walk must see the source tree");
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_string_lossy().into_owned()
}

/// The file without comments and without its test module: what runs in production.
fn production_code(text: &str) -> String {
    text.split("#[cfg(test)]\nmod tests")
        .next()
        .unwrap_or_default()
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn crates_depend_only_downwards() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo metadata runs");
    let metadata: Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let allowed: &[(&str, &[&str])] = &[
        ("switchback-engine", &[]),
        ("switchback-shortpath", &[]),
        // Its simulated agents and clients speak with the messages themselves; what it measures runs as a process.
        ("switchback-bench", &["switchback-control"]),
        ("switchback-control", &["switchback-engine", "switchback-shortpath"]),
    ];
    for (krate, may_use) in allowed {
        let package = metadata["packages"]
            .as_array()
            .unwrap()
            .iter()
            .find(|package| package["name"] == *krate)
            .unwrap_or_else(|| panic!("{krate} is a member of the workspace"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let name = dependency["name"].as_str().unwrap();
            assert!(
                !name.starts_with("switchback") || may_use.contains(&name),
                "{krate} must not depend on {name}"
            );
        }
    }
}

#[test]
fn unsafe_lives_in_the_ring_only_and_every_block_says_why() {
    for path in rust_files() {
        let name = relative(&path);
        if name == "tests/tidy.rs" {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let blocks = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .filter(|line| {
                line.contains("unsafe {")
                    || line.contains("unsafe fn")
                    || line.contains("unsafe impl")
            })
            .count();
        if name.starts_with("engine/src/ring/") {
            let reasons = text.matches("// SAFETY:").count() + text.matches("# Safety").count();
            assert!(reasons >= blocks, "{name}: {blocks} unsafe, {reasons} reasons");
        } else {
            assert_eq!(blocks, 0, "{name}: unsafe belongs in engine/src/ring/");
        }
    }
}

/// Modules that decide and never act: no clock, no socket, no thread, no async runtime.
const PURE: &[&str] = &[
    "engine/src/datagram/allocation.rs",
    "engine/src/datagram/binding.rs",
    "engine/src/datagram/counts.rs",
    "engine/src/datagram/credentials.rs",
    "engine/src/datagram/forward.rs",
    "engine/src/datagram/nonce.rs",
    "engine/src/datagram/peers.rs",
    "engine/src/datagram/requests.rs",
    "engine/src/datagram/server.rs",
    "engine/src/datagram/shared.rs",
    "engine/src/datagram/throttle.rs",
    "engine/src/datagram/trial.rs",
    "engine/src/datagram/wire.rs",
    "engine/src/gateway/hello.rs",
    "engine/src/gateway/pairing.rs",
    "engine/src/gateway/sources.rs",
    "engine/src/relay/flow.rs",
    "engine/src/relay/pair.rs",
    "engine/src/rtt/",
    "engine/src/worker/placement.rs",
    "engine/src/tuning/text.rs",
    "engine/src/tuning/units.rs",
    "shortpath/src/path/",
    "shortpath/src/underlay/alarm.rs",
    "shortpath/src/underlay/demux.rs",
    "shortpath/src/underlay/early.rs",
    "shortpath/src/underlay/paths.rs",
    "shortpath/src/underlay/spread.rs",
    "shortpath/src/session/",
    "shortpath/src/tokens.rs",
    "control/src/agent/proxy_v2.rs",
    "control/src/claims.rs",
    "control/src/oidc/cache.rs",
    "control/src/oidc/document.rs",
    "control/src/oidc/endpoint.rs",
    "control/src/oidc/flow.rs",
    "control/src/oidc/verify.rs",
    "control/src/ticket.rs",
    "control/src/wire.rs",
    "control/src/wire/",
    "control/src/path_reason.rs",
    "control/src/policy/",
    "control/src/broker/candidates.rs",
    "control/src/broker/locations.rs",
    "control/src/broker/udp.rs",
    "control/src/api/mod.rs",
    "control/src/broker/orchestrator",
    "bench/src/lab/named.rs",
    "bench/src/lab/network.rs",
    "bench/src/lab/plan.rs",
    "bench/src/lab/topology.rs",
    "bench/src/compare/digest.rs",
    "bench/src/compare/goals.rs",
    "bench/src/compare/scenario.rs",
    "bench/src/compare/timings.rs",
    "bench/src/compare/warnings.rs",
    "bench/src/lab/nat",
    "bench/src/lab/packet",
    "bench/src/lab/presets.rs",
    "bench/src/lab/wire",
    "bench/src/control/rules.rs",
    "bench/src/control/search.rs",
    "bench/src/control/tally.rs",
    "bench/src/shortpath/goals.rs",
    "bench/src/shortpath/trace.rs",
    "control/src/broker/takeover/messages.rs",
];

/// The file is a module, or in one, that is declared for tests only.
fn is_test_module(path: &Path) -> bool {
    path.ancestors().any(|module| {
        let stem = module.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let declared = fs::read_to_string(module.with_file_name("mod.rs")).unwrap_or_default();
        declared.contains(&format!("#[cfg(test)]\nmod {stem};"))
    })
}

#[test]
fn pure_modules_never_read_a_clock_or_touch_a_socket() {
    const ACTS: &[&str] = &[
        "Instant::now",
        "SystemTime::now",
        "std::net::Tcp",
        "std::net::Udp",
        "tokio::",
        "std::thread",
        "rustix::",
    ];
    let files = rust_files();
    for pure in PURE {
        let matching: Vec<_> =
            files.iter().filter(|path| relative(path).starts_with(pure)).collect();
        assert!(!matching.is_empty(), "{pure} is listed as pure but does not exist");
        for path in matching.into_iter().filter(|path| !is_test_module(path)) {
            let code = production_code(&fs::read_to_string(path).unwrap());
            for act in ACTS {
                assert!(!code.contains(act), "{}: pure code must not use {act}", relative(path));
            }
        }
    }
}

#[test]
fn nothing_is_left_to_do_in_the_text() {
    let markers = [
        "TO".to_owned() + "DO",
        "FIX".to_owned() + "ME",
        "XX".to_owned() + "X",
        "todo".to_owned() + "!(",
    ];
    for path in rust_files() {
        let text = fs::read_to_string(&path).unwrap();
        for marker in &markers {
            assert!(!text.contains(marker.as_str()), "{}: {marker}", relative(&path));
        }
    }
}

#[test]
fn every_crate_denies_what_the_workspace_denies() {
    for manifest in [
        "Cargo.toml",
        "engine/Cargo.toml",
        "shortpath/Cargo.toml",
        "control/Cargo.toml",
        "bench/Cargo.toml",
    ] {
        let text = fs::read_to_string(root().join(manifest)).unwrap();
        assert!(
            text.contains("[lints]\nworkspace = true"),
            "{manifest} must inherit the workspace's lints"
        );
    }
}
