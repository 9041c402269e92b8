//! socat: a process per connection, a 64 KiB buffer each.

use std::process::Command;

use anyhow::{Context, Result};

use super::Skip;
use super::child::Process;
use super::program::{find, required, version};
use super::proxied::{Program, Site};
use super::socket::BACKLOG;

/// `socat TCP-LISTEN,fork TCP`.
#[derive(Debug)]
pub(crate) struct Socat;

/// Bytes moved at once; its default of 8 KiB would be too easy a rival.
const BUFFER_BYTES: &str = "65536";

/// Seconds that one direction outlives the other; its default of 0.5 would cut tails off.
const HALF_CLOSED_S: &str = "3600";

/// Most processes; more connections wait. Beyond it the machine is measured, not socat.
const PROCESSES_MAX: usize = 1000;

impl Program for Socat {
    fn available(&self) -> Result<(), Skip> {
        required("socat").map(drop)
    }

    fn version(&self) -> Result<String> {
        let version = version("socat", "-V")?;
        let version = version.split(" on ").next().unwrap_or(&version);
        Ok(format!("{version}; a process per connection, 64 KiB buffers"))
    }

    fn start(&self, site: &Site<'_>) -> Result<Vec<Process>> {
        let mut command = Command::new(find("socat").context("socat is gone")?);
        let (port, ip) = (site.relay.port(), site.relay.ip());
        command.args(["-b", BUFFER_BYTES, "-t", HALF_CLOSED_S]).args([
            format!(
                "TCP-LISTEN:{port},bind={ip},fork,max-children={PROCESSES_MAX},reuseaddr,\
                 backlog={BACKLOG},nodelay"
            ),
            format!("TCP:{},nodelay", site.target),
        ]);
        Ok(vec![site.start(command)?])
    }
}
