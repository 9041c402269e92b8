//! Our gateway, as a process: `switchback serve`, flows admitted with hellos from `switchback pairs`.

mod join;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use rustix::process::Pid;
use serde::Deserialize;
use tempfile::TempDir;

use self::join::join;
pub(crate) use self::join::{Pair, refusal};
use super::child::{Process, output_of};
use super::socket::Dialer;
use super::{Dialling, Flow, Peer};
use crate::measure::placement::Placement;

/// First start makes keys, certificate and database on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// One call of a short command.
const COMMAND_WITHIN: Duration = Duration::from_secs(20);

/// Most pairs one `switchback pairs` call makes.
const PAIRS_PER_CALL: usize = 1000;

/// The gateway's readiness backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Io {
    Uring,
    Epoll,
}

impl Io {
    /// The value of `--io`.
    fn flag(self) -> &'static str {
        match self {
            Io::Uring => "uring",
            Io::Epoll => "epoll",
        }
    }
}

/// What `switchback serve --json` prints when it is ready. Holds a login secret: no Debug.
#[derive(Deserialize)]
struct Ready {
    #[serde(alias = "address")]
    local_addr: SocketAddr,
    io: String,
    login: String,
}

/// One gateway with one worker.
pub(crate) struct Switchback {
    name: String,
    io: Io,
    binary: PathBuf,
    dialer: Dialer,
    placement: Placement,
    version: String,
    running: Option<Running>,
}

struct Running {
    process: Process,
    ready: Ready,
    /// Keys and database; deleted with this.
    _data: TempDir,
}

impl Switchback {
    /// Not started yet.
    pub(crate) fn new(io: Io, binary: &Path, dialer: Dialer, placement: Placement) -> Switchback {
        Switchback {
            name: format!("switchback-{}", io.flag()),
            io,
            binary: binary.to_owned(),
            dialer,
            placement,
            version: String::new(),
            running: None,
        }
    }

    fn pairs(&self, count: usize) -> Result<Vec<Pair>> {
        let running = self.running.as_ref().context("the gateway is not running")?;
        let mut command = Command::new(&self.binary);
        command.args(["pairs", "--count", &count.to_string(), "--login", &running.ready.login]);
        let json = output_of(command, COMMAND_WITHIN).context("switchback pairs")?;
        let pairs: Vec<Pair> = serde_json::from_str(&json).context("the answer of pairs")?;
        ensure!(pairs.len() == count, "asked for {count} pairs, got {}", pairs.len());
        Ok(pairs)
    }
}

impl Peer for Switchback {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn start(&mut self) -> Result<()> {
        let mut version = Command::new(&self.binary);
        version.arg("--version");
        self.version = output_of(version, COMMAND_WITHIN)?.trim().to_owned();
        let data = tempfile::tempdir().context("creating a data directory")?;
        let mut command = Command::new(&self.binary);
        command.args(["serve", "--listen", "127.0.0.1:0", "--workers", "1", "--json"]);
        command.args(["--io", self.io.flag(), "--data"]).arg(data.path());
        let mut process = Process::start(&self.name, command, self.placement)?;
        let line = process.first_line(READY_WITHIN)?;
        let Ok(ready) = serde_json::from_str::<Ready>(&line) else {
            // The line holds a login secret: it must not be shown.
            bail!("the first line of {} is not the expected JSON", self.name);
        };
        let (wanted, got) = (self.io.flag(), &ready.io);
        ensure!(got.ends_with(wanted), "asked for --io {wanted}, the gateway runs on {got}");
        self.running = Some(Running { process, ready, _data: data });
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), |running| running.process.stop())
    }

    fn open(&mut self, count: usize) -> Result<Vec<Flow>> {
        let mut flows = Vec::with_capacity(count);
        while flows.len() < count {
            let pairs = self.pairs((count - flows.len()).min(PAIRS_PER_CALL))?;
            let running = self.running.as_mut().context("the gateway is not running")?;
            for pair in &pairs {
                let joined = join(&self.dialer, running.ready.local_addr, pair);
                flows.push(joined.with_context(|| running.process.log_tail())?);
            }
        }
        Ok(flows)
    }

    fn dial(&mut self, count: usize) -> Result<Dialling> {
        let mut pairs = Vec::with_capacity(count);
        while pairs.len() < count {
            pairs.extend(self.pairs((count - pairs.len()).min(PAIRS_PER_CALL))?);
        }
        let running = self.running.as_ref().context("the gateway is not running")?;
        Ok(Dialling::Legs { gateway: running.ready.local_addr, pairs })
    }

    fn pids(&self) -> Vec<Pid> {
        self.running.iter().map(|running| running.process.pid()).collect()
    }
}
