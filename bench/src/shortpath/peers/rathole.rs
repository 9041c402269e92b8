//! rathole over plain TCP: its server, which applications dial, and its client beside the service.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::Pid;

use super::super::ground::Host;
use super::super::running::Running;
use super::{Site, Tunnel, wait_until_usable};
use crate::peers::program::find;

/// The tunnel's processes.
pub(super) struct Rathole<'a> {
    site: Site<'a>,
    server: Running,
    agent: Running,
}

/// Where its client reports, and where applications dial.
const CONTROL: u16 = 2333;
const ENTRY: u16 = 7000;

/// Both ends show it; it protects nothing here.
const TOKEN: &str = "bench";

impl<'a> Rathole<'a> {
    pub(super) fn start(site: Site<'a>) -> Result<Rathole<'a>> {
        let server = server(&site)?;
        let control = site.server(CONTROL);
        let config = format!(
            "[client]\nremote_addr = \"{control}\"\ndefault_token = \"{TOKEN}\"\n\
             [client.services.bench]\nlocal_addr = \"{}\"\n",
            site.service
        );
        let config = site.write("client.toml", &config)?;
        let mut command = rathole()?;
        command.arg("--client").arg(config);
        let agent = Running::start(site.ground, Host::Agent, "rathole --client", command)?;
        Ok(Rathole { site, server, agent })
    }
}

impl Tunnel for Rathole<'_> {
    fn client(&mut self) -> Result<()> {
        wait_until_usable(self.site.ground, self.entry())
    }

    fn entry(&self) -> SocketAddr {
        self.site.server(ENTRY)
    }

    fn kill_server(&mut self) {
        self.server.kill();
    }

    fn restart_server(&mut self) -> Result<()> {
        self.server = server(&self.site)?;
        Ok(())
    }

    fn ends(&self) -> Vec<Pid> {
        vec![self.agent.pid()]
    }

    fn servers(&self) -> Vec<Pid> {
        vec![self.server.pid()]
    }
}

/// Starts the server and waits until it listens: a client that comes too early waits a second.
fn server(site: &Site<'_>) -> Result<Running> {
    let (control, entry) = (site.server(CONTROL), site.server(ENTRY));
    let config = format!(
        "[server]\nbind_addr = \"{control}\"\ndefault_token = \"{TOKEN}\"\n\
         [server.services.bench]\nbind_addr = \"{entry}\"\n"
    );
    let config = site.write("server.toml", &config)?;
    let mut command = rathole()?;
    command.arg("--server").arg(config);
    let server = Running::start(site.ground, Host::Server, "rathole --server", command)?;
    site.wait_for(control)?;
    Ok(server)
}

fn rathole() -> Result<Command> {
    let mut command = Command::new(find("rathole").context("rathole is gone")?);
    command.env("RUST_LOG", "error");
    Ok(command)
}
