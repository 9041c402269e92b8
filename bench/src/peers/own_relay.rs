//! The relays most people would write, as our own subcommands: tokio and tokio-uring.

use std::process::Command;

use anyhow::{Context, Result};

use super::Skip;
use super::child::Process;
use super::proxied::{Program, Site};

/// Name in reports and of the subcommand; ratios refer to it.
pub(crate) const TOKIO_COPY: &str = "tokio-copy";

/// Name in reports and of the subcommand.
pub(crate) const TOKIO_URING: &str = "tokio-uring";

/// A relay that this program runs as another process.
#[derive(Debug)]
pub(crate) struct OwnRelay {
    subcommand: &'static str,
    version: &'static str,
}

impl OwnRelay {
    pub(crate) const TOKIO_COPY: OwnRelay = OwnRelay {
        subcommand: TOKIO_COPY,
        version: "tokio 1: copy_bidirectional, 64 KiB buffers, one thread",
    };

    pub(crate) const TOKIO_URING: OwnRelay = OwnRelay {
        subcommand: TOKIO_URING,
        version: "tokio-uring 0.5: 64 KiB buffers, one thread",
    };
}

impl Program for OwnRelay {
    fn available(&self) -> Result<(), Skip> {
        Ok(())
    }

    fn version(&self) -> Result<String> {
        Ok(self.version.to_owned())
    }

    fn start(&self, site: &Site<'_>) -> Result<Vec<Process>> {
        let mut command = Command::new(std::env::current_exe().context("finding this program")?);
        command.args([self.subcommand, "--until-stdin-closes"]);
        command.args(["--listen", &site.relay.to_string()]);
        command.args(["--target", &site.target.to_string()]);
        Ok(vec![site.start(command)?])
    }
}
