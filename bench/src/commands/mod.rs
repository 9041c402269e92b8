//! One file per subcommand.

pub(crate) mod compare;
pub(crate) mod control;
pub(crate) mod echo;
pub(crate) mod lab;
pub(crate) mod load;
pub(crate) mod quinn_tunnel;
pub(crate) mod shortpath;
pub(crate) mod tokio_copy;
pub(crate) mod tokio_uring;

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// Whether everything that was asked for was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Exit code 0.
    Complete,
    /// Exit code 1: figures are printed, but something has none.
    Incomplete,
}

/// Warning of every command that measures, when it was built without optimisation.
pub(crate) const DEBUG_BUILD: &str =
    "this bench is a debug build: its generator is slow; use cargo run --release";

/// The experiment that is `wanted`, by its name; `Err`: which there are.
pub(crate) fn one_of(
    names: impl Iterator<Item = &'static str> + Clone,
    wanted: &str,
) -> Result<&'static str, String> {
    let found = names.clone().find(|name| *name == wanted);
    found.ok_or_else(|| {
        let names: Vec<_> = names.collect();
        format!("no such experiment; there are {}", names.join(", "))
    })
}

/// Writes `value` as one indented JSON document to `path`, or to stdout for `-`.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    write_text(path, &text)
}

/// Writes `text` to `path`, or to stdout for `-`.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    if path == Path::new("-") {
        return std::io::stdout().write_all(text.as_bytes()).context("writing to stdout");
    }
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
