//! Our gateway, as a process: `switchback serve`, flows admitted with hellos from `switchback pairs`.

mod join;

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Pid;
use serde::Deserialize;
use tempfile::TempDir;

use self::join::join;
pub(crate) use self::join::{Pair, refusal};
use super::catalogue::Setup;
use super::child::{Process, output_of, scratch_dir};
use super::{Dialling, Flow, Peer, Skip};
use crate::measure::netns::Place;
use crate::measure::tree::with_descendants;

/// First start makes keys, certificate and database on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// One call of a short command.
const COMMAND_WITHIN: Duration = Duration::from_secs(20);

/// Most pairs one `switchback pairs` call makes.
const PAIRS_PER_CALL: usize = 1000;

/// The gateway's readiness backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    name: &'static str,
    io: Io,
    /// `--busy-poll`, microseconds.
    busy_poll: Option<u32>,
    setup: Setup,
    version: OnceCell<String>,
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
    pub(crate) fn new(
        name: &'static str,
        io: Io,
        busy_poll: Option<u32>,
        setup: Setup,
    ) -> Switchback {
        Switchback { name, io, busy_poll, setup, version: OnceCell::new(), running: None }
    }

    fn ask_version(&self) -> Result<String> {
        let mut command = Command::new(&self.setup.binary);
        command.arg("--version");
        let version = output_of(command, COMMAND_WITHIN)?;
        let busy_poll =
            self.busy_poll.map_or_else(String::new, |us| format!(", busy poll {us} us"));
        Ok(format!("{}; {}, one worker{busy_poll}", version.trim(), self.io.flag()))
    }

    fn serve(&self, data: &Path) -> Command {
        let listen = SocketAddr::from((self.setup.network.ip(Place::Relay), 0));
        let mut command = Command::new(&self.setup.binary);
        command.args(["serve", "--listen", &listen.to_string(), "--workers", "1", "--json"]);
        command.args(["--io", self.io.flag()]).arg("--data").arg(data);
        if let Some(us) = self.busy_poll {
            command.args(["--busy-poll", &us.to_string()]);
        }
        command
    }

    fn pairs(&self, count: usize) -> Result<Vec<Pair>> {
        let running = self.running.as_ref().context("the gateway is not running")?;
        let mut command = Command::new(&self.setup.binary);
        command.args(["pairs", "--count", &count.to_string(), "--login", &running.ready.login]);
        let json = output_of(command, COMMAND_WITHIN).context("switchback pairs")?;
        let pairs: Vec<Pair> = serde_json::from_str(&json).context("the answer of pairs")?;
        ensure!(pairs.len() == count, "asked for {count} pairs, got {}", pairs.len());
        Ok(pairs)
    }
}

impl Peer for Switchback {
    fn name(&self) -> &str {
        self.name
    }

    fn version(&self) -> &str {
        self.version.get_or_init(|| {
            self.ask_version().unwrap_or_else(|error| format!("unknown: {error:#}"))
        })
    }

    fn available(&self) -> Result<(), Skip> {
        let binary = &self.setup.binary;
        if binary.is_file() {
            return Ok(());
        }
        Err(Skip {
            reason: format!("no gateway at {}", binary.display()),
            remedy: "cargo build --release builds it, --binary PATH names another".to_owned(),
        })
    }

    fn start(&mut self) -> Result<()> {
        let data = scratch_dir()?;
        let Setup { placement, network, .. } = self.setup;
        let command = self.serve(data.path());
        let mut process = Process::start(self.name, command, placement, network)?;
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
                let joined = join(&self.setup.dialer, running.ready.local_addr, pair);
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
        let roots = self.running.iter().map(|running| running.process.pid());
        roots.flat_map(|root| with_descendants(&[root])).collect()
    }
}
