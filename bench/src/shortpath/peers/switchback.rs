//! Ours as processes: `serve` at the server, `agent`, and `connect` at the client.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Pid;
use serde_json::Value;

use super::super::ground::Host;
use super::super::running::Running;
use super::{IDLE, READY_WITHIN, Site, Tunnel};

/// Fixed, so that an application may dial before `connect` has said where it listens.
const ENTRY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7001);

/// The gateway's port, for TCP and UDP.
const PORT: u16 = 443;

/// The client's log lines when its link is up, when it asks for a session, and when one waits for its first use.
const SIGNED_IN: &str = "signed in";
const ASKED: &str = "session asked for";
const READY: &str = "a session is ready";

/// Standard error is read by another thread than standard output.
const LOGGED_WITHIN: Duration = Duration::from_millis(200);

/// Between questions to the broker: each is a process.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// What may carry sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carriers {
    All,
    /// A direct UDP path, by the resource's policy.
    Udp,
    /// Neither end has UDP.
    Tcp,
}

/// One gateway with one agent and one client.
pub(super) struct Switchback<'a> {
    site: Site<'a>,
    udp: bool,
    login: String,
    server: Running,
    agent: Running,
    client: Option<Running>,
}

impl<'a> Switchback<'a> {
    /// Starts all but the client, and waits until the resource is online.
    pub(super) fn start(site: Site<'a>, carriers: Carriers) -> Result<Switchback<'a>> {
        let udp = carriers != Carriers::Tcp;
        let server = serve(&site)?;
        let Ok(ready) = serde_json::from_str::<Value>(&server.first_line(READY_WITHIN)?) else {
            // The line holds secrets: it must not be shown.
            bail!("the first line of serve is not the expected JSON");
        };
        let text = |key: &str| ready[key].as_str().map(str::to_owned).context("serve's strings");
        let (join, login) = (text("join")?, text("login")?);
        let mut command = command(&site, udp);
        command.args(["agent", "--json", "--name", "box", "--state"]).arg(site.files.join("agent"));
        command.env("SWITCHBACK_JOIN", join);
        let policy = if carriers == Carriers::Udp { ";udp=require" } else { "" };
        command.args(["--resource", &format!("echo=tcp:{}{policy}", site.service)]);
        let agent = Running::start(site.ground, Host::Agent, "switchback agent", command)?;
        let tunnel = Switchback { site, udp, login, server, agent, client: None };
        tunnel.wait_until_online()?;
        Ok(tunnel)
    }

    fn wait_until_online(&self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let feed = self.ask(&["resources"]).unwrap_or(Value::Null);
            if feed.as_array().is_some_and(|feed| feed.iter().any(|line| line["online"] == true)) {
                return Ok(());
            }
            let tail = self.agent.log_tail();
            ensure!(Instant::now() < deadline, "the resource did not come online{tail}");
            thread::sleep(ASK_AGAIN);
        }
    }

    fn connect(&mut self, more: &[&str]) -> Result<&Running> {
        self.client = None;
        let mut command = command(&self.site, self.udp);
        command.args(["connect", "echo", "--json", "--listen", &ENTRY.to_string()]).args(more);
        command.env("SWITCHBACK_LOGIN", &self.login);
        command.env("RUST_LOG", "switchback_control::client=debug");
        let client = Running::start(self.site.ground, Host::Client, "switchback connect", command)?;
        Ok(self.client.insert(client))
    }

    /// When the client logged this.
    fn logged(&self, words: &str) -> Option<Instant> {
        let client = self.client.as_ref()?;
        // It says where it listens once the session is there: it was signed in before.
        client.first_line(READY_WITHIN).ok()?;
        client.logged(words, LOGGED_WITHIN)
    }

    /// What a command says as JSON. Asked at the server's host, so as not to load the client's link.
    fn ask(&self, words: &[&str]) -> Result<Value> {
        let mut command = command(&self.site, self.udp);
        command.args(words).arg("--json").env("SWITCHBACK_LOGIN", &self.login);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let child = self.site.ground.spawn(Host::Server, command)?;
        Ok(serde_json::from_slice(&child.wait_with_output()?.stdout)?)
    }
}

impl Tunnel for Switchback<'_> {
    fn client(&mut self) -> Result<()> {
        self.connect(&[]).map(drop)
    }

    fn client_on_demand(&mut self) -> Result<()> {
        let idle = format!("{}ms", IDLE.as_millis());
        let client = self.connect(&["--on-demand", &idle])?;
        client.first_line(READY_WITHIN)?;
        client.logged(READY, READY_WITHIN).context("no session became ready")?;
        Ok(())
    }

    fn entry(&self) -> SocketAddr {
        ENTRY
    }

    fn asked(&self) -> Option<Instant> {
        self.logged(ASKED)
    }

    fn signed_in(&self) -> Option<Instant> {
        self.logged(SIGNED_IN)
    }

    fn transport(&self) -> Option<String> {
        let sessions = self.ask(&["sessions"]).ok()?;
        sessions[0]["transport"].as_str().map(str::to_owned)
    }

    fn session(&self) -> Value {
        let sessions = self.ask(&["sessions"]).unwrap_or(Value::Null);
        let detailed = sessions[0]["id"].as_str().and_then(|id| self.ask(&["session", id]).ok());
        detailed.unwrap_or(Value::Null)
    }

    fn kill_server(&mut self) {
        self.server.kill();
    }

    fn restart_server(&mut self) -> Result<()> {
        self.server = serve(&self.site)?;
        self.server.first_line(READY_WITHIN).map(drop)
    }

    fn ends(&self) -> Vec<Pid> {
        self.client.iter().chain([&self.agent]).map(Running::pid).collect()
    }

    fn servers(&self) -> Vec<Pid> {
        vec![self.server.pid()]
    }
}

fn serve(site: &Site<'_>) -> Result<Running> {
    let mut command = command(site, true);
    command.args(["serve", "--json", "--listen", &site.server(PORT).to_string(), "--data"]);
    command.arg(site.files.join("serve"));
    Running::start(site.ground, Host::Server, "switchback serve", command)
}

/// With a home of its own, so that nobody's stored login is used or overwritten.
fn command(site: &Site<'_>, udp: bool) -> Command {
    let mut command = Command::new(site.binary);
    command.env("HOME", site.files).env_remove("XDG_CONFIG_HOME");
    if !udp {
        command.env("SWITCHBACK_NO_UDP", "true");
    }
    command
}
