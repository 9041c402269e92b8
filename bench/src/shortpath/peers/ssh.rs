//! OpenSSH's reverse forwarding: a private sshd at the server, which applications dial, and `ssh -R`
//! beside the service.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, geteuid};

use super::super::ground::Host;
use super::super::running::Running;
use super::{Site, Tunnel, wait_until_usable};
use crate::measure::tree::with_descendants;
use crate::peers::child::output_of;
use crate::peers::program::find;
use crate::peers::ssh::{OPTIONS, SEPARATION, make_key, server_config};

/// The tunnel's processes.
pub(super) struct Ssh<'a> {
    site: Site<'a>,
    server: Running,
    agent: Running,
}

/// Where sshd listens, and where applications dial.
const SSHD: u16 = 2222;
const ENTRY: u16 = 7000;

impl<'a> Ssh<'a> {
    pub(super) fn start(site: Site<'a>) -> Result<Ssh<'a>> {
        if geteuid().is_root() {
            fs::create_dir_all(SEPARATION).with_context(|| format!("making {SEPARATION}"))?;
        }
        make_key(&site.files.join("host"))?;
        make_key(&site.files.join("user"))?;
        let server = server(&site)?;
        let agent = Running::start(site.ground, Host::Agent, "ssh -R", client_command(&site)?)?;
        Ok(Ssh { site, server, agent })
    }
}

impl Tunnel for Ssh<'_> {
    fn client(&mut self) -> Result<()> {
        wait_until_usable(self.site.ground, self.entry())
    }

    fn entry(&self) -> SocketAddr {
        self.site.server(ENTRY)
    }

    /// With the processes of its connections: a host that goes down takes all of them.
    fn kill_server(&mut self) {
        for pid in self.servers() {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
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
        with_descendants(&[self.server.pid()])
    }
}

fn server(site: &Site<'_>) -> Result<Running> {
    let config = site.write("sshd_config", &server_config(site.files, site.server(SSHD)))?;
    let mut command = Command::new(find("sshd").context("sshd is gone")?);
    command.args(["-D", "-e", "-f"]).arg(config);
    let server = Running::start(site.ground, Host::Server, "sshd", command)?;
    site.wait_for(site.server(SSHD))?;
    Ok(server)
}

fn client_command(site: &Site<'_>) -> Result<Command> {
    let host_key = fs::read_to_string(site.files.join("host.pub")).context("reading a key")?;
    let ip = site.ground.server();
    let known = site.write("known_hosts", &format!("[{ip}]:{SSHD} {host_key}"))?;
    let mut id = Command::new(find("id").context("id is gone")?);
    id.arg("-un");
    let user = output_of(id, Duration::from_secs(10))?;
    let mut command = Command::new(find("ssh").context("ssh is gone")?);
    command.args(["-N", "-F", "none", "-l", user.trim(), "-p", &SSHD.to_string(), "-i"]);
    command.arg(site.files.join("user"));
    let mut known_hosts = OsString::from("UserKnownHostsFile=");
    known_hosts.push(known);
    command.arg("-o").arg(known_hosts);
    for option in OPTIONS {
        command.args(["-o", option]);
    }
    let forward = format!("{}:{}", site.server(ENTRY), site.service);
    command.args(["-R", &forward]).arg(ip.to_string());
    Ok(command)
}
