//! The relay most people would write: a tokio loop with 64 KiB buffers, as its own process.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::child::Process;
use super::socket::{Dialer, accept};
use super::{Dialling, Flow, Peer};
use crate::measure::placement::Placement;

/// Name in reports; ratios refer to it.
pub(crate) const TOKIO_COPY: &str = "tokio-copy";

/// Time for our own small subcommand to be ready.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// The line the subcommand prints when it listens.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Ready {
    pub(crate) local_addr: SocketAddr,
}

/// `switchback-bench tokio-copy`, relaying to a listener of ours.
#[derive(Debug)]
pub(crate) struct TokioCopy {
    dialer: Dialer,
    placement: Placement,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    process: Process,
    relay: SocketAddr,
    target: TcpListener,
}

impl TokioCopy {
    /// Not started yet.
    pub(crate) fn new(dialer: Dialer, placement: Placement) -> TokioCopy {
        TokioCopy { dialer, placement, running: None }
    }
}

impl Peer for TokioCopy {
    fn name(&self) -> &str {
        TOKIO_COPY
    }

    fn version(&self) -> &str {
        "copy_bidirectional, 64 KiB buffers, one thread"
    }

    fn start(&mut self) -> Result<()> {
        let target = self.dialer.listen()?;
        let mut command = Command::new(std::env::current_exe().context("finding this program")?);
        command.args(["tokio-copy", "--until-stdin-closes", "--target"]);
        command.arg(target.local_addr()?.to_string());
        let mut process = Process::start(TOKIO_COPY, command, self.placement)?;
        let line = process.first_line(READY_WITHIN)?;
        let ready: Ready = serde_json::from_str(&line).context("its first line")?;
        self.running = Some(Running { process, relay: ready.local_addr, target });
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), |running| running.process.stop())
    }

    fn open(&mut self, count: usize) -> Result<Vec<Flow>> {
        let running = self.running.as_ref().context("tokio-copy is not running")?;
        let open_one = |_| {
            let near = self.dialer.connect(running.relay)?;
            let far = accept(&running.target)?;
            Ok(Flow { near, far })
        };
        // One at a time, so that each accepted end belongs to the connection just made.
        (0..count).map(open_one).collect()
    }

    fn dial(&mut self, _count: usize) -> Result<Dialling> {
        let running = self.running.as_ref().context("tokio-copy is not running")?;
        Ok(Dialling::Proxied { relay: running.relay, far: running.target.try_clone()? })
    }

    fn pids(&self) -> Vec<Pid> {
        self.running.iter().map(|running| running.process.pid()).collect()
    }
}
