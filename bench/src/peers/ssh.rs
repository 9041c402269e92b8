//! OpenSSH's reverse forwarding: `ssh -R` to a private sshd, which listens for the client.
//!
//! Both are the relay, on its CPU: sshd (with the process it forks per connection) and ssh. Every
//! flow is a channel of their one encrypted connection.

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::geteuid;

use super::Skip;
use super::child::{Process, output_of};
use super::program::{find, required, version};
use super::proxied::{Program, Site};

/// sshd and ssh with keys of their own.
#[derive(Debug)]
pub(crate) struct Ssh;

/// sshd started by root insists on this directory (its privilege separation).
pub(crate) const SEPARATION: &str = "/run/sshd";

/// Making one Ed25519 key on a busy machine.
const KEY_WITHIN: std::time::Duration = std::time::Duration::from_secs(10);

/// Of the client: asks nobody, uses no other key, and says when it cannot forward.
pub(crate) const OPTIONS: [&str; 6] = [
    "BatchMode=yes",
    "IdentitiesOnly=yes",
    "IdentityAgent=none",
    "StrictHostKeyChecking=yes",
    "ExitOnForwardFailure=yes",
    "LogLevel=ERROR",
];

impl Program for Ssh {
    fn available(&self) -> Result<(), Skip> {
        for name in ["sshd", "ssh", "ssh-keygen"] {
            required(name)?;
        }
        if find("id").is_none() {
            return Err(Skip {
                reason: "the name of this user is not known".to_owned(),
                remedy: "install coreutils".to_owned(),
            });
        }
        Ok(())
    }

    fn version(&self) -> Result<String> {
        Ok(format!("{}; sshd and ssh -R, one connection", version("ssh", "-V")?))
    }

    fn start(&self, site: &Site<'_>) -> Result<Vec<Process>> {
        if geteuid().is_root() {
            fs::create_dir_all(SEPARATION).with_context(|| format!("making {SEPARATION}"))?;
        }
        make_key(&site.files.join("host"))?;
        make_key(&site.files.join("user"))?;
        let server = site.free_address()?;
        let config = site.write("sshd_config", &server_config(site.files, server))?;
        let mut command = Command::new(find("sshd").context("sshd is gone")?);
        command.args(["-D", "-e", "-f"]).arg(config);
        let mut sshd = site.start(command)?;
        site.wait_for(server, &mut sshd)?;
        let ssh = site.start(client_command(site, server)?)?;
        Ok(vec![sshd, ssh])
    }
}

/// Only this key may log in, and only forward. StrictModes would judge the temporary directory.
pub(crate) fn server_config(files: &Path, listen: SocketAddr) -> String {
    let files = files.display();
    format!(
        "ListenAddress {listen}\nHostKey {files}/host\nAuthorizedKeysFile {files}/user.pub\n\
         PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\n\
         PermitRootLogin prohibit-password\nAllowTcpForwarding remote\n\
         GatewayPorts clientspecified\nLogLevel ERROR\n"
    )
}

fn client_command(site: &Site<'_>, server: SocketAddr) -> Result<Command> {
    let host_key = fs::read_to_string(site.files.join("host.pub")).context("reading a key")?;
    let (ip, port) = (server.ip(), server.port());
    let known = site.write("known_hosts", &format!("[{ip}]:{port} {host_key}"))?;
    let mut id = Command::new(find("id").context("id is gone")?);
    id.arg("-un");
    let user = output_of(id, KEY_WITHIN)?;
    let mut command = Command::new(find("ssh").context("ssh is gone")?);
    command.args(["-N", "-F", "none", "-l", user.trim(), "-p", &port.to_string(), "-i"]);
    command.arg(site.files.join("user"));
    let mut known_hosts = std::ffi::OsString::from("UserKnownHostsFile=");
    known_hosts.push(known);
    command.arg("-o").arg(known_hosts);
    for option in OPTIONS {
        command.args(["-o", option]);
    }
    let mut forward = String::new();
    write!(forward, "{}:{}", site.relay, site.target)?;
    command.args(["-R", &forward]).arg(ip.to_string());
    Ok(command)
}

pub(crate) fn make_key(path: &Path) -> Result<()> {
    let mut command = Command::new(find("ssh-keygen").context("ssh-keygen is gone")?);
    command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path);
    output_of(command, KEY_WITHIN).map(drop)
}
