//! QUIC alone (`switchback-bench quinn-tunnel`): an end at the agent and one at the client, with nothing between them. Only
//! where the client reaches the agent's address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::Pid;

use super::super::ground::Host;
use super::super::running::Running;
use super::{READY_WITHIN, Site, Tunnel};
use crate::commands::quinn_tunnel::Ready;

/// The tunnel's processes.
pub(super) struct Quinn<'a> {
    site: Site<'a>,
    agent: Running,
    certificate: String,
    client: Option<Running>,
}

/// Where the agent's end listens.
const PORT: u16 = 4433;
const ENTRY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7002);

impl<'a> Quinn<'a> {
    pub(super) fn start(site: Site<'a>) -> Result<Quinn<'a>> {
        let (listen, target) = (agent_address(&site).to_string(), site.service.to_string());
        let args = ["agent", "--listen", &listen, "--target", &target];
        let (agent, ready) = start(&site, Host::Agent, &args)?;
        let certificate = ready.certificate.context("the agent's end told no certificate")?;
        Ok(Quinn { site, agent, certificate, client: None })
    }
}

impl Tunnel for Quinn<'_> {
    fn client(&mut self) -> Result<()> {
        self.client = None;
        let (listen, agent) = (ENTRY.to_string(), agent_address(&self.site).to_string());
        let args = ["client", "--listen", &listen, "--agent", &agent, "--certificate"];
        let args = [args.as_slice(), &[&self.certificate]].concat();
        self.client = Some(start(&self.site, Host::Client, &args)?.0);
        Ok(())
    }

    fn entry(&self) -> SocketAddr {
        ENTRY
    }

    fn kill_server(&mut self) {}

    fn restart_server(&mut self) -> Result<()> {
        anyhow::bail!("quinn has no server")
    }

    fn ends(&self) -> Vec<Pid> {
        self.client.iter().chain([&self.agent]).map(Running::pid).collect()
    }

    fn servers(&self) -> Vec<Pid> {
        Vec::new()
    }
}

fn agent_address(site: &Site<'_>) -> SocketAddr {
    SocketAddr::new(site.ground.agent(), PORT)
}

/// Starts an end, and gives what it said.
fn start(site: &Site<'_>, host: Host, args: &[&str]) -> Result<(Running, Ready)> {
    let mut command = Command::new(std::env::current_exe().context("finding this program")?);
    command.arg("quinn-tunnel").args(args);
    let running = Running::start(site.ground, host, "quinn-tunnel", command)?;
    let line = running.first_line(READY_WITHIN)?;
    let ready = serde_json::from_str(&line).context("quinn-tunnel said something else")?;
    Ok((running, ready))
}
