//! The broker under test: `switchback serve` on loopback, a process that is looked at from outside.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use switchback_control::api::client::ApiClient;
use switchback_control::api::{NewToken, TokenKind};
use switchback_control::invite::{Invite, InviteKind};
use tempfile::TempDir;

use super::runner::Setup;
use crate::measure::Meter;
use crate::measure::memory::{peak_kib, resident_kib};
use crate::measure::netns::Network;
use crate::measure::placement::Placement;
use crate::peers::child::{Process, scratch_dir};

/// First start makes keys, certificate and database on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// What `serve --json` prints when it is ready. Holds a login secret: no Debug.
#[derive(Deserialize)]
struct Ready {
    address: SocketAddr,
    /// At the first start only.
    login: Option<String>,
}

/// A broker, its files, and its first administrator.
pub(crate) struct Broker {
    binary: PathBuf,
    placement: Placement,
    policy: Option<PathBuf>,
    /// Keys and database; deleted with this.
    data: TempDir,
    /// `None` between a stop and the next start.
    process: Option<Process>,
    address: SocketAddr,
    admin: Invite,
}

impl Broker {
    /// Starts one with an empty database; its policies are those of `policy`, or the built-in ones.
    ///
    /// # Errors
    /// It does not become ready.
    pub(crate) async fn start(setup: &Setup, policy: Option<&Path>) -> Result<Broker> {
        let (binary, placement) = (setup.binary.clone(), setup.placement);
        let (data, policy) = (scratch_dir()?, policy.map(Path::to_owned));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let command = serve(&binary, address, data.path(), policy.as_deref());
        let (process, Ready { address, login }) = begin(command, placement).await?;
        let login = login.context("a new broker told no login string")?;
        let admin = Invite::parse(&login, InviteKind::Login)?;
        let process = Some(process);
        Ok(Broker { binary, placement, policy, data, process, address, admin })
    }

    /// Ends it in order, as a service manager does.
    ///
    /// # Errors
    /// It had ended, or does not end.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        let process = self.process.take().context("the broker does not run")?;
        tokio::task::spawn_blocking(move || process.stop()).await?
    }

    /// Starts it anew with its files, on its address. Returns once it is ready.
    ///
    /// # Errors
    /// It does not become ready.
    pub(crate) async fn again(&mut self) -> Result<()> {
        let policy = self.policy.as_deref();
        let command = serve(&self.binary, self.address, self.data.path(), policy);
        let (process, _) = begin(command, self.placement).await?;
        self.process = Some(process);
        Ok(())
    }

    /// Its process.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn pid(&self) -> Result<Pid> {
        self.process.as_ref().map(Process::pid).context("the broker does not run")
    }

    /// Of its CPU time, and of this thread's.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn meter(&self) -> Result<Meter> {
        Ok(Meter::new(vec![self.pid()?]))
    }

    /// Resident memory now, in KiB.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn resident_kib(&self) -> Result<f64> {
        Ok(resident_kib(&[self.pid()?])? as f64)
    }

    /// Most resident memory so far, in KiB.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn peak_kib(&self) -> Result<f64> {
        Ok(peak_kib(self.pid()?)? as f64)
    }

    /// Has it read its policies anew.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn hang_up(&self) -> Result<()> {
        Ok(kill_process(self.pid()?, Signal::HUP)?)
    }

    /// What went wrong, with the end of its log.
    pub(crate) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let log = self.process.as_ref().map_or_else(String::new, Process::log_tail);
        if log.is_empty() { error } else { error.context(format!("the broker{log}")) }
    }

    /// Join strings, each for any number of agents.
    ///
    /// # Errors
    /// The broker refuses.
    pub(crate) async fn joins(&self, count: usize) -> Result<Vec<Invite>> {
        let names = (0..count).map(|_| "*".to_owned());
        self.issue(TokenKind::Agent, InviteKind::Join, names).await
    }

    /// Users who may connect to everything.
    ///
    /// # Errors
    /// The broker refuses.
    pub(crate) async fn users(&self, count: usize) -> Result<Vec<Invite>> {
        let names = (0..count).map(|number| format!("user-{number}"));
        self.issue(TokenKind::User, InviteKind::Login, names).await
    }

    async fn issue(
        &self,
        kind: TokenKind,
        invite: InviteKind,
        names: impl Iterator<Item = String>,
    ) -> Result<Vec<Invite>> {
        let api = ApiClient::new(self.admin.clone());
        let all = vec!["*".to_owned()];
        let grants = if matches!(kind, TokenKind::User) { all } else { Vec::new() };
        let mut issued = Vec::new();
        for name in names {
            // A fleet joins with few strings.
            let uses = matches!(kind, TokenKind::Agent).then_some(0);
            let grants = grants.clone();
            let wanted = NewToken { grants, uses, ..NewToken::new(kind, name) };
            let token = api.issue(&wanted).await?;
            issued.push(Invite::parse(token.invite.reveal(), invite)?);
        }
        Ok(issued)
    }
}

fn serve(binary: &Path, listen: SocketAddr, data: &Path, policy: Option<&Path>) -> Command {
    let mut command = Command::new(binary);
    command.args(["serve", "--workers", "1", "--json", "--listen", &listen.to_string()]);
    command.arg("--data").arg(data);
    if let Some(policy) = policy {
        command.arg("--policy").arg(policy);
    }
    command
}

/// Starts it from this thread, which it ends with, and waits for it in another.
async fn begin(command: Command, placement: Placement) -> Result<(Process, Ready)> {
    let mut process = Process::start("switchback serve", command, placement, Network::Host)?;
    let waiting = tokio::task::spawn_blocking(move || {
        let line = process.first_line(READY_WITHIN);
        (process, line)
    });
    let (process, line) = waiting.await.map_err(|error| anyhow!(error))?;
    let Ok(ready) = serde_json::from_str(&line?) else {
        // The line holds a login secret: it must not be shown.
        bail!("the first line of switchback serve is not the expected JSON");
    };
    Ok((process, ready))
}
