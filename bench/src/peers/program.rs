//! Other people's programs: where they are, which version, and what to do if they are not there.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::Skip;

/// What installs every rival.
pub(crate) const INSTALLER: &str = "scripts/bench-peers installs it";

/// Where system programs are on machines whose users' PATH does not say so.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The absolute path of `name`: in PATH, in the system's directories, in `~/.cargo/bin`, or in
/// `peers/bin` of the target directory this program was built in (scripts/bench-peers).
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let cargo = std::env::home_dir().map(|home| home.join(".cargo/bin"));
    let this_program = std::env::current_exe().unwrap_or_default();
    let built = this_program.ancestors().skip(1).map(|directory| directory.join("peers/bin"));
    std::env::split_paths(&in_path)
        .chain(SYSTEM_DIRECTORIES.map(PathBuf::from))
        .chain(cargo)
        .chain(built)
        .map(|directory| directory.join(name))
        .find(|path| path.is_absolute() && path.is_file())
}

/// As [`find`], or that it is not installed.
///
/// # Errors
/// It is nowhere.
pub(crate) fn required(name: &str) -> Result<PathBuf, Skip> {
    find(name).ok_or_else(|| Skip {
        reason: format!("{name} is not installed"),
        remedy: INSTALLER.to_owned(),
    })
}

/// Everything that `program` says when run with `flag`, on stdout and stderr.
///
/// # Errors
/// It cannot be run.
pub(crate) fn answer(program: &Path, flag: &str) -> Result<String> {
    let mut command = Command::new(program);
    command.arg(flag).env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().with_context(|| format!("running {}", program.display()))?;
    let text = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

/// The line with a version in what `name` says when run with `flag`, without what follows ` - `.
///
/// # Errors
/// It is not installed or cannot be run.
pub(crate) fn version(name: &str, flag: &str) -> Result<String> {
    let program = find(name).with_context(|| format!("{name} is not installed"))?;
    let text = answer(&program, flag)?;
    let line = text.lines().find(|line| has_version(line)).unwrap_or(name).trim();
    Ok(line.split(" - ").next().unwrap_or(line).to_owned())
}

/// A word of it has a number with a point, as versions do.
fn has_version(line: &str) -> bool {
    let is_version = |word: &str| word.contains('.') && word.contains(|c: char| c.is_ascii_digit());
    line.split_whitespace().any(is_version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_told_from_other_text() {
        assert!(has_version("nginx version: nginx/1.22.1") && has_version("rathole 0.5.0"));
        assert!(!has_version("see www.dest-unreach.org") && !has_version("Commit Date: 2024"));
    }

    #[test]
    fn a_program_is_found_by_name_and_a_missing_one_has_a_remedy() {
        assert!(find("sh").unwrap().is_absolute());
        let skip = required("no-such-program").unwrap_err();
        assert_eq!(skip.reason, "no-such-program is not installed");
        assert_eq!(skip.remedy, INSTALLER);
    }
}
