//! Records the commit for `switchback --version`: `unknown` where there is no repository, as in a source archive.
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let commit = own_repository().then(|| git(&["rev-parse", "--short=12", "HEAD"])).flatten();
    println!("cargo::rustc-env=SWITCHBACK_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    println!("cargo::rerun-if-changed=control/cli/build.rs");
    for path in head_files() {
        println!("cargo::rerun-if-changed={}", path.display());
    }
}

/// Whether the repository found is ours: a source archive may lie unpacked inside another one.
fn own_repository() -> bool {
    let top =
        git(&["rev-parse", "--show-toplevel"]).and_then(|top| Path::new(&top).canonicalize().ok());
    let here =
        std::env::var_os("CARGO_MANIFEST_DIR").and_then(|dir| Path::new(&dir).canonicalize().ok());
    top.is_some() && top == here
}

/// The files that change when HEAD moves: HEAD itself (checkout), its reflog (commit), and the packed refs.
///
/// Only existing ones: cargo takes a missing path for a changed one and would build anew each time.
fn head_files() -> Vec<PathBuf> {
    let Some(directory) = git(&["rev-parse", "--absolute-git-dir"]) else { return Vec::new() };
    let branch = git(&["symbolic-ref", "-q", "HEAD"])
        .and_then(|name| git(&["rev-parse", "--git-path", &name]))
        .map(PathBuf::from);
    let directory = Path::new(&directory);
    let own = [directory.join("HEAD"), directory.join("logs").join("HEAD")];
    own.into_iter().chain(branch).filter(|path| path.exists()).collect()
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|o| o.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}
