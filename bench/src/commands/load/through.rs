//! A session to load through: `switchback connect` as a child, on a free local port.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::measure::netns::Network;
use crate::measure::placement::Placement;
use crate::peers::child::{Process, end_with_signals};

/// `connect` itself gives up after 20 s.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// An open session.
pub(super) struct Through {
    process: Process,
    status: Status,
}

/// The first line of `switchback connect --json`.
#[derive(Deserialize)]
struct Status {
    listen: SocketAddr,
    #[serde(flatten)]
    session: Session,
}

/// What the session was when it began.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(super) struct Session {
    resource: String,
    session: String,
    agent: String,
    transport: Option<String>,
    rtt: Option<Rtt>,
}

/// Round-trip times of the session itself, in microseconds.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
struct Rtt {
    smoothed_us: u64,
}

impl Through {
    /// Opens a session to `resource`, as whoever is signed in.
    ///
    /// # Errors
    /// There is no program, or it cannot open the session: the error carries its own words.
    pub(super) fn open(resource: &str, binary: Option<&Path>) -> Result<Through> {
        end_with_signals()?;
        let mut command = Command::new(find(binary)?);
        command.args(["connect", resource, "--listen", "127.0.0.1:0", "--json"]);
        let mut process = Process::start(
            "switchback connect",
            command,
            Placement::default(),
            Network::default(),
        )?;
        let line = process.first_line(READY_WITHIN)?;
        let status = serde_json::from_str(&line)
            .with_context(|| format!("the first line of switchback connect: {}", line.trim()))?;
        Ok(Through { process, status })
    }

    /// Where its local port is.
    pub(super) fn listen(&self) -> SocketAddr {
        self.status.listen
    }

    /// What it said last, for an error message.
    pub(super) fn log_tail(&self) -> String {
        format!("loading through {}{}", self.status.session.resource, self.process.log_tail())
    }

    /// Ends the session.
    ///
    /// # Errors
    /// It had ended by itself, or had to be killed.
    pub(super) fn close(self) -> Result<Session> {
        self.process.stop()?;
        Ok(self.status.session)
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = self.transport.as_deref().unwrap_or("no transport yet");
        write!(
            f,
            "through session {} to {} at agent {}, {transport}",
            self.session, self.resource, self.agent
        )?;
        match &self.rtt {
            Some(rtt) => write!(f, ", RTT {} us", rtt.smoothed_us),
            None => Ok(()),
        }
    }
}

/// `binary`, or the program beside this one, or one in PATH.
fn find(binary: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = binary {
        if !path.is_file() {
            bail!("no switchback at {}", path.display());
        }
        return Ok(path.to_owned());
    }
    let beside = std::env::current_exe()?.with_file_name("switchback");
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::iter::once(beside)
        .chain(std::env::split_paths(&in_path).map(|dir| dir.join("switchback")));
    candidates.into_iter().find(|path| path.is_file()).context(
        "no switchback beside this program or in PATH: build it (cargo build --release) or name it \
         (--binary PATH)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_connect_is_understood() {
        let line = r#"{"resource":"echo","session":"k3m9","agent":"branch","listen":"127.0.0.1:7001",
            "transport":"TCP (Reverse-Connect)",
            "rtt":{"smoothed_us":1200,"min_us":1,"p50_us":1,"p99_us":1}}"#;
        let status: Status = serde_json::from_str(line).unwrap();
        assert_eq!(status.listen.port(), 7001);
        assert_eq!(
            status.session.to_string(),
            "through session k3m9 to echo at agent branch, TCP (Reverse-Connect), RTT 1200 us"
        );
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = find(Some(Path::new("/nonexistent/switchback"))).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/switchback"));
    }
}
