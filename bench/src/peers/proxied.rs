//! Every rival that one connects to and that connects to a target: configured, started, probed.
//!
//! A [`Program`] knows how to write its configuration and its command line. The rest is the same
//! for all, so that none is treated better: ports, readiness, flows, processes and their end.

use std::cell::OnceCell;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;
use tempfile::TempDir;

use super::catalogue::Setup;
use super::child::{Process, scratch_dir};
use super::socket::accept;
use super::{Dialling, Flow, Peer, Skip};
use crate::measure::netns::Place;
use crate::measure::tree::with_descendants;

/// How a rival is found, described and started.
pub(crate) trait Program {
    /// Whether it can be started on this machine.
    ///
    /// # Errors
    /// Why not, and how to get it.
    fn available(&self) -> Result<(), Skip>;

    /// What exactly is measured, as the program itself tells.
    ///
    /// # Errors
    /// It cannot be run.
    fn version(&self) -> Result<String>;

    /// Starts it, to relay what arrives at `site.relay` to `site.target`. It need not be ready yet.
    /// Processes are ended in reverse order.
    ///
    /// # Errors
    /// It cannot be configured or started.
    fn start(&self, site: &Site<'_>) -> Result<Vec<Process>>;
}

/// Where one start of a rival takes place.
#[derive(Debug)]
pub(crate) struct Site<'a> {
    name: &'static str,
    setup: &'a Setup,
    /// Where to listen.
    pub(crate) relay: SocketAddr,
    /// Where to connect to.
    pub(crate) target: SocketAddr,
    /// A private directory, deleted when the rival has ended.
    pub(crate) files: &'a Path,
}

impl Site<'_> {
    /// Writes one of its files and returns the path.
    ///
    /// # Errors
    /// No space, mostly.
    pub(crate) fn write(&self, file: &str, text: &str) -> Result<PathBuf> {
        let path = self.files.join(file);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// Starts one of its processes.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub(crate) fn start(&self, command: Command) -> Result<Process> {
        Process::start(self.name, command, self.setup.placement, self.setup.network)
    }

    /// An address of the relay that nobody listens on, for what its processes say to each other.
    ///
    /// # Errors
    /// No port is free.
    pub(crate) fn free_address(&self) -> Result<SocketAddr> {
        free_address(self.setup)
    }

    /// Waits until someone listens on `addr`, which is one of [`Site::free_address`].
    ///
    /// # Errors
    /// `process` has ended, or nobody listens in time.
    pub(crate) fn wait_for(&self, addr: SocketAddr, process: &mut Process) -> Result<()> {
        until_ready(|| {
            process.check()?;
            Ok(self.setup.dialer.connect(addr).ok().map(drop))
        })
        .with_context(|| process.log_tail())
    }
}

/// A rival behind the common door.
pub(crate) struct Proxied {
    name: &'static str,
    program: Box<dyn Program>,
    setup: Setup,
    version: OnceCell<String>,
    running: Option<Running>,
}

struct Running {
    processes: Vec<Process>,
    relay: SocketAddr,
    target: TcpListener,
    /// Configuration and keys; deleted with this.
    _files: TempDir,
}

/// Time from start until the first connection comes through. On a busy machine programs load slowly.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// How often a starting rival is asked whether it listens.
const POLL: Duration = Duration::from_millis(5);

impl Proxied {
    /// Not started yet.
    pub(crate) fn new(name: &'static str, program: Box<dyn Program>, setup: Setup) -> Proxied {
        Proxied { name, program, setup, version: OnceCell::new(), running: None }
    }

    fn running(&self) -> Result<&Running> {
        self.running.as_ref().with_context(|| format!("{} is not running", self.name))
    }

    /// One connection through it, which is closed again.
    fn probe(&self, running: &mut Running) -> Result<()> {
        let near = until_ready(|| {
            running.processes.iter_mut().try_for_each(Process::check)?;
            Ok(self.setup.dialer.connect(running.relay).ok())
        })?;
        accept(&running.target).context("of its first connection")?;
        drop(near);
        Ok(())
    }
}

impl Peer for Proxied {
    fn name(&self) -> &str {
        self.name
    }

    fn version(&self) -> &str {
        self.version.get_or_init(|| {
            self.program.version().unwrap_or_else(|error| format!("unknown: {error:#}"))
        })
    }

    fn available(&self) -> Result<(), Skip> {
        self.program.available()
    }

    fn start(&mut self) -> Result<()> {
        let files = scratch_dir()?;
        let target = self.setup.dialer.listen()?;
        let relay = free_address(&self.setup)?;
        let site = Site {
            name: self.name,
            setup: &self.setup,
            relay,
            target: target.local_addr()?,
            files: files.path(),
        };
        let processes = self.program.start(&site)?;
        let mut running = Running { processes, relay, target, _files: files };
        self.probe(&mut running).with_context(|| running.log_tails())?;
        self.running = Some(running);
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        let Some(running) = self.running.take() else { return Ok(()) };
        running.processes.into_iter().rev().try_for_each(Process::stop)
    }

    fn open(&mut self, count: usize) -> Result<Vec<Flow>> {
        let running = self.running()?;
        let open_one = |_| {
            let near = self.setup.dialer.connect(running.relay)?;
            let far = accept(&running.target).with_context(|| running.log_tails())?;
            Ok(Flow { near, far })
        };
        // One at a time, so that each accepted end belongs to the connection just made.
        (0..count).map(open_one).collect()
    }

    fn dial(&mut self, _count: usize) -> Result<Dialling> {
        let running = self.running()?;
        Ok(Dialling::Proxied { relay: running.relay, far: running.target.try_clone()? })
    }

    fn pids(&self) -> Vec<Pid> {
        let started = self.running.iter().flat_map(|running| &running.processes);
        let roots: Vec<Pid> = started.map(Process::pid).collect();
        if roots.is_empty() { roots } else { with_descendants(&roots) }
    }
}

impl Running {
    fn log_tails(&self) -> String {
        self.processes.iter().map(Process::log_tail).collect()
    }
}

/// Asks every [`POLL`] until there is an answer.
fn until_ready<T>(mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        ensure!(Instant::now() < deadline, "not ready within {READY_WITHIN:?}");
        std::thread::sleep(POLL);
    }
}

/// Free until the rival binds it a moment later; in a private namespace nobody else asks for ports.
fn free_address(setup: &Setup) -> Result<SocketAddr> {
    let ip: IpAddr = setup.network.ip(Place::Relay);
    setup.network.at(Place::Relay, || {
        let listener = TcpListener::bind((ip, 0)).context("finding a free port")?;
        Ok(listener.local_addr()?)
    })
}
