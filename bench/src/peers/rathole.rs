//! rathole over plain TCP: its server accepts, its client connects to the target. Both are the
//! relay: two processes, both on the relay's CPU, and every byte crosses both.

use std::process::Command;

use anyhow::{Context, Result};

use super::Skip;
use super::child::Process;
use super::program::{find, required, version};
use super::proxied::{Program, Site};

/// Server and client.
#[derive(Debug)]
pub(crate) struct Rathole;

/// Both ends show it; it protects nothing here.
const TOKEN: &str = "bench";

impl Program for Rathole {
    fn available(&self) -> Result<(), Skip> {
        required("rathole").map(drop)
    }

    fn version(&self) -> Result<String> {
        Ok(format!("{}; plain TCP, server and client", version("rathole", "--help")?))
    }

    fn start(&self, site: &Site<'_>) -> Result<Vec<Process>> {
        let control = site.free_address()?;
        let server = site.write(
            "server.toml",
            &format!(
                "[server]\nbind_addr = \"{control}\"\ndefault_token = \"{TOKEN}\"\n\
                 [server.services.bench]\nbind_addr = \"{}\"\n",
                site.relay
            ),
        )?;
        let client = site.write(
            "client.toml",
            &format!(
                "[client]\nremote_addr = \"{control}\"\ndefault_token = \"{TOKEN}\"\n\
                 [client.services.bench]\nlocal_addr = \"{}\"\n",
                site.target
            ),
        )?;
        let rathole = find("rathole").context("rathole is gone")?;
        let command = |role: &str, config| {
            let mut command = Command::new(&rathole);
            command.arg(role).arg(config).env("RUST_LOG", "error");
            command
        };
        let mut server = site.start(command("--server", server))?;
        // A client that comes too early waits a second before it tries again.
        site.wait_for(control, &mut server)?;
        let client = site.start(command("--client", client))?;
        Ok(vec![server, client])
    }
}
