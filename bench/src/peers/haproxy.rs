//! HAProxy as a TCP proxy, made to splice: with `splice-auto` version 2.6 was not seen to splice.

use std::process::Command;

use anyhow::{Context, Result};

use super::Skip;
use super::child::Process;
use super::program::{find, required, version};
use super::proxied::{Program, Site};
use crate::measure::placement::raise_open_files;

/// One thread, forced splicing.
#[derive(Debug)]
pub(crate) struct Haproxy {
    /// `tune.pipesize`; `None` is the kernel's default, 64 KiB.
    pub(crate) pipe_bytes: Option<u32>,
}

/// Most pipes, two files each: 64 flows streaming both ways hold 128.
const PIPES_MAX: u64 = 256;

/// Files beside connections and pipes.
const FILES_SPARE: u64 = 100;

/// Most connections, two files each, where the open-file limit allows. More than any scenario opens.
const CONNECTIONS_MAX: u64 = 20_000;

impl Haproxy {
    /// Idle flows must outlive every scenario, hence an hour.
    fn config(&self, site: &Site<'_>, files_max: u64) -> String {
        let files = files_max.saturating_sub(FILES_SPARE + 2 * PIPES_MAX);
        let connections = CONNECTIONS_MAX.min(files / 2);
        let pipe_size =
            self.pipe_bytes.map_or_else(String::new, |bytes| format!("  tune.pipesize {bytes}\n"));
        format!(
            "global\n  nbthread 1\n  maxconn {connections}\n  maxpipes {PIPES_MAX}\n{pipe_size}\
             defaults\n  mode tcp\n  option splice-request\n  option splice-response\n  \
             timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n  backlog 4096\n\
             listen relay\n  bind {}\n  server target {}\n",
            site.relay, site.target
        )
    }
}

impl Program for Haproxy {
    fn available(&self) -> Result<(), Skip> {
        required("haproxy").map(drop)
    }

    fn version(&self) -> Result<String> {
        let pipes = self.pipe_bytes.unwrap_or(64 << 10) >> 10;
        Ok(format!("{}; forced splice, {pipes} KiB pipes, one thread", version("haproxy", "-v")?))
    }

    fn start(&self, site: &Site<'_>) -> Result<Vec<Process>> {
        let files_max = raise_open_files().unwrap_or(u64::MAX);
        let config = site.write("haproxy.cfg", &self.config(site, files_max))?;
        let mut command = Command::new(find("haproxy").context("haproxy is gone")?);
        // In the foreground, as one process.
        command.args(["-db", "-f"]).arg(config);
        Ok(vec![site.start(command)?])
    }
}
