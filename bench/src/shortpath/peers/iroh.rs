//! A TCP tunnel over iroh: its relay at the server, an endpoint at the agent and one at the client.
//! The client's connection to the agent begins when the first application dials.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::Pid;

use super::super::ground::Host;
use super::super::running::Running;
use super::{READY_WITHIN, Site, Tunnel};
use crate::peers::program::find;

/// The tunnel's processes.
pub(super) struct Iroh<'a> {
    site: Site<'a>,
    url: String,
    id: String,
    relay: Running,
    agent: Running,
    client: Option<Running>,
}

const ENTRY: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7001);

impl<'a> Iroh<'a> {
    /// Relay and agent; the agent is known to the relay when this returns.
    pub(super) fn start(site: Site<'a>) -> Result<Iroh<'a>> {
        let (relay, url) = relay(&site)?;
        let service = site.service.to_string();
        let (agent, id) = start(&site, Host::Agent, &["agent", &url, &service])?;
        Ok(Iroh { site, url, id, relay, agent, client: None })
    }
}

impl Tunnel for Iroh<'_> {
    fn client(&mut self) -> Result<()> {
        self.client = None;
        let args = ["client", &self.url, &self.id, &ENTRY.to_string()];
        self.client = Some(start(&self.site, Host::Client, &args)?.0);
        Ok(())
    }

    fn entry(&self) -> SocketAddr {
        ENTRY
    }

    fn kill_server(&mut self) {
        self.relay.kill();
    }

    fn restart_server(&mut self) -> Result<()> {
        self.relay = relay(&self.site)?.0;
        Ok(())
    }

    fn ends(&self) -> Vec<Pid> {
        self.client.iter().chain([&self.agent]).map(Running::pid).collect()
    }

    fn servers(&self) -> Vec<Pid> {
        vec![self.relay.pid()]
    }
}

fn relay(site: &Site<'_>) -> Result<(Running, String)> {
    start(site, Host::Server, &["relay", &site.ground.server().to_string()])
}

/// Starts a part, and gives what it said: its name and where or who it is.
fn start(site: &Site<'_>, host: Host, args: &[&str]) -> Result<(Running, String)> {
    let mut command = Command::new(find("iroh-tunnel").context("iroh-tunnel is gone")?);
    command.args(args);
    let running = Running::start(site.ground, host, "iroh-tunnel", command)?;
    let line = running.first_line(READY_WITHIN)?;
    let told = line.split_whitespace().nth(1).context("iroh-tunnel said something else")?;
    Ok((running, told.to_owned()))
}
