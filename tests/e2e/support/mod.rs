//! Starts, stops and observes real `switchback` processes.
mod bed;
mod busy;
mod process;
mod proxy;
mod sshd;
mod targets;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

pub(crate) use bed::{Bed, IOS, Io};
pub(crate) use busy::{BusyPairs, BusySessions, Pair};
pub(crate) use process::{Output, Process, resident_of, switchback, switchback_at};
pub(crate) use proxy::FreezingProxy;
pub(crate) use sshd::Sshd;
pub(crate) use targets::{EchoTarget, HangingTarget, SinkTarget};

/// Waits until `probe` gives a value, and says what it waited for when it does not.
pub(crate) fn eventually<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The hash of a file's content.
pub(crate) fn sha256(path: &Path) -> String {
    let mut file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher).unwrap();
    format!("{:x}", hasher.finalize())
}

/// The path of a program, or `None` after printing that the test is skipped. In CI as root, where scripts/test installs
/// them all, a missing one fails the test.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let found = find(name);
    if found.is_none() {
        let ci = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(!(ci && rustix::process::geteuid().is_root()), "`{name}` is not installed");
        println!("SKIPPED: `{name}` is not installed (scripts/test installs it when run as root)");
    }
    found
}

/// The path of a program that scripts/test does not install, for a check that is welcome and not needed.
pub(crate) fn optional_program(name: &str) -> Option<PathBuf> {
    let found = find(name);
    if found.is_none() {
        println!("SKIPPED: `{name}` is not installed, which is optional");
    }
    found
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}

/// A deterministic, incompressible byte stream: the same seed gives the same bytes.
pub(crate) struct Bytes(u64);

impl Bytes {
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            // xorshift64: cheap and plenty random to catch lost, doubled or reordered bytes.
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let word = self.0.to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}
