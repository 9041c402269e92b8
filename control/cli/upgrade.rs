//! SIGUSR2: start this program anew, as it lies on the disk now, to take this process's place.
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use switchback_control::{Code, Fault};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The flag that makes a new process take over.
const FLAG: &str = "--takeover";

/// Listens for the signal from its creation on.
pub(crate) struct Upgrade {
    signal: Signal,
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Upgrade {
    /// Takes over the signal, and notes where the program lies: later, the file may have been replaced.
    pub(crate) fn listen() -> Result<Self, Fault> {
        let signal = signal(SignalKind::user_defined2())
            .map_err(|error| Code::Internal.because(format!("cannot catch signals: {error}")))?;
        let mut words = std::env::args_os();
        let program = program(words.next().as_deref())
            .map_err(|error| Code::Internal.because(format!("cannot find myself: {error}")))?;
        Ok(Self { signal, program, arguments: arguments(words) })
    }

    /// Waits for the signal. Safe to drop and call again.
    pub(crate) async fn wait(&mut self) {
        self.signal.recv().await;
    }

    /// Starts the program with the arguments of this process, its environment and its output. Failures are logged.
    pub(crate) fn start(&self) {
        let program = self.program.display().to_string();
        let child = Command::new(&self.program).args(&self.arguments).stdin(Stdio::null()).spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) => {
                return tracing::error!(program, %error, "no new process, serving on");
            }
        };
        let pid = child.id();
        tracing::info!(program, pid, "started a new process to take over");
        // Reaps it if it fails. If it takes over it outlives us, and this thread ends with the process.
        std::thread::spawn(move || match child.wait() {
            Ok(status) => tracing::warn!(pid, %status, "the new process has ended"),
            Err(error) => tracing::warn!(pid, %error, "the new process cannot be watched"),
        });
    }
}

fn arguments(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    words.filter(|word| word != FLAG).chain([FLAG.into()]).collect()
}

/// The path that was typed or found in PATH, if it leads to this very program: a link to the present version leads to
/// another one after an upgrade. Else the program's own path.
fn program(typed: Option<&OsStr>) -> std::io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let candidates: Vec<PathBuf> = match typed.map(Path::new) {
        Some(path) if path.components().count() > 1 => vec![std::path::absolute(path)?],
        Some(name) => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).map(|dir| dir.join(name)).collect()
        }
        None => Vec::new(),
    };
    let is_this = |path: &PathBuf| same_file(path, &own);
    Ok(candidates.into_iter().find(is_this).unwrap_or(own))
}

fn same_file(one: &Path, other: &Path) -> bool {
    let (Ok(one), Ok(other)) = (one.metadata(), other.metadata()) else { return false };
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_process_gets_the_same_arguments_and_the_flag_once() {
        let words = ["serve", "--takeover", "--listen", "127.0.0.1:1"].map(OsString::from);
        let expected = ["serve", "--listen", "127.0.0.1:1", "--takeover"].map(OsString::from);
        assert_eq!(arguments(words.into_iter()), expected);
        assert_eq!(arguments(expected.clone().into_iter()), expected);
    }

    #[test]
    fn a_link_to_this_program_is_kept_and_a_stranger_of_its_name_is_not() {
        let own = std::env::current_exe().unwrap();
        let temp = tempfile::tempdir().unwrap();
        let link = temp.path().join("current");
        std::os::unix::fs::symlink(&own, &link).unwrap();
        assert_eq!(program(Some(link.as_os_str())).unwrap(), link);
        let stranger = temp.path().join("stranger");
        std::fs::write(&stranger, "").unwrap();
        for typed in [Some(stranger.as_os_str()), Some(OsStr::new("no-such-name")), None] {
            assert_eq!(program(typed).unwrap(), own);
        }
    }
}
