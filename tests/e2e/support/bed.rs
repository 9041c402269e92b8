//! A whole installation on loopback: broker with gateway, agent, signed-in administrator.
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::{Output, Process, eventually, switchback};

/// Where the gateway's readiness comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Io {
    Uring,
    Epoll,
}

pub(crate) const IOS: [Io; 2] = [Io::Uring, Io::Epoll];

impl Io {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        }
    }
}

pub(crate) struct Bed {
    home: TempDir,
    io: Io,
    public: Option<String>,
    server: Option<Process>,
    agent: Option<Process>,
    resources: Vec<String>,
    pub(crate) addr: SocketAddr,
    pub(crate) join: String,
    pub(crate) login: String,
}

impl Bed {
    /// A broker with its gateway, an agent offering `resources` (`NAME=tcp:HOST:PORT`), and the first user.
    pub(crate) fn start(io: Io, resources: &[String]) -> Self {
        Self::start_behind(io, resources, None)
    }

    /// As [`Self::start`], with join and login strings that name another address, e.g. a proxy's.
    pub(crate) fn start_behind(io: Io, resources: &[String], public: Option<String>) -> Self {
        let mut bed = Self::without_agent(io, public);
        bed.offer(resources);
        bed
    }

    /// Starts the agent with these resources.
    pub(crate) fn offer(&mut self, resources: &[String]) {
        self.resources = resources.to_vec();
        self.start_agent();
    }

    pub(crate) fn without_agent(io: Io, public: Option<String>) -> Self {
        let home = TempDir::new().expect("a temporary directory");
        let mut server = start_server(home.path(), io, "127.0.0.1:0", public.as_deref());
        let ready = server.first_json();
        let text = |key: &str| {
            ready[key].as_str().unwrap_or_else(|| panic!("{key} in {ready}")).to_owned()
        };
        assert_eq!(text("io"), io.as_str());
        Self {
            addr: text("address").parse().expect("an address"),
            join: text("join"),
            login: text("login"),
            home,
            io,
            public,
            server: Some(server),
            agent: None,
            resources: Vec::new(),
        }
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.home().join("data")
    }

    pub(crate) fn server(&self) -> &Process {
        self.server.as_ref().expect("the server runs")
    }

    pub(crate) fn agent(&self) -> &Process {
        self.agent.as_ref().expect("the agent runs")
    }

    pub(crate) fn start_agent(&mut self) {
        let mut command = switchback(self.home());
        command.args(["agent", "--name", "box", "--join", &self.join]);
        for resource in &self.resources {
            command.args(["--resource", resource]);
        }
        self.agent = Some(Process::start(&mut command));
        let names: Vec<_> =
            self.resources.iter().map(|spec| spec.split('=').next().unwrap().to_owned()).collect();
        eventually("the agent's resources to be online", Duration::from_secs(20), || {
            let feed = self.run(&["resources"]).json();
            let online = |name: &String| {
                feed.as_array()?.iter().find(|line| line["name"] == name.as_str())?["online"]
                    .as_bool()
            };
            names.iter().all(|name| online(name) == Some(true)).then_some(())
        });
    }

    /// The agent, which was told to end or does so by itself; its exit status and what it said.
    pub(crate) fn ended_agent(&mut self) -> (i32, String) {
        let mut agent = self.agent.take().expect("the agent runs");
        (agent.wait(Duration::from_secs(10)), agent.stderr())
    }

    pub(crate) fn kill_agent(&mut self) {
        self.agent.take().expect("the agent runs").kill();
    }

    pub(crate) fn kill_server(&mut self) {
        self.server.take().expect("the server runs").kill();
    }

    /// Waits for the server, which was told to end; its exit status.
    pub(crate) fn stopped_server(&mut self) -> i32 {
        self.server.take().expect("the server runs").wait(Duration::from_secs(10))
    }

    /// Starts the server again on the same port and data directory.
    pub(crate) fn restart_server(&mut self) {
        self.restart_server_with(&[]);
    }

    /// The same, with these arguments more.
    pub(crate) fn restart_server_with(&mut self, args: &[&str]) {
        let listen = self.addr.to_string();
        let public = self.public.as_deref();
        let mut command = server_command(self.home.path(), self.io, &listen, public);
        let mut server = Process::start(command.args(args));
        let ready = server.first_json();
        assert!(ready["login"].is_null(), "only the first start prints a login string");
        self.server = Some(server);
    }

    /// Starts `serve --takeover` with the arguments of the server and these, which becomes the bed's server. The old process
    /// is the caller's.
    pub(crate) fn take_over(&mut self, args: &[&str]) -> Process {
        let mut command = self.takeover(args);
        let mut server = Process::start(&mut command);
        let ready = server.first_json();
        assert!(ready["login"].is_null(), "only the first start prints a login string");
        assert_eq!(ready["address"], self.addr.to_string());
        self.server.replace(server).expect("the server runs")
    }

    /// `serve --takeover`, not yet run.
    pub(crate) fn takeover(&self, args: &[&str]) -> Command {
        let listen = self.addr.to_string();
        let mut command =
            server_command(self.home.path(), self.io, &listen, self.public.as_deref());
        command.arg("--takeover").args(args);
        command
    }

    /// A command of the administrator, not yet run.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.command_as(&self.login, args)
    }

    pub(crate) fn command_as(&self, login: &str, args: &[&str]) -> Command {
        let mut command = switchback(self.home());
        command.env("SWITCHBACK_LOGIN", login).args(args);
        command
    }

    /// Runs a command of the administrator with `--json`.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.run_as(&self.login, args)
    }

    pub(crate) fn run_as(&self, login: &str, args: &[&str]) -> Output {
        Output::of(self.command_as(login, args).arg("--json"))
    }

    /// A new user's login string.
    pub(crate) fn new_user(&self, name: &str, grants: &[&str]) -> String {
        let mut args = vec!["token", "user", name];
        for grant in grants {
            args.extend(["--grant", grant]);
        }
        self.run(&args).ok().json()["invite"].as_str().expect("a login string").to_owned()
    }

    /// `connect NAME --listen 127.0.0.1:0`: the process and the address it listens on.
    pub(crate) fn forward(&self, resource: &str) -> (Process, SocketAddr) {
        self.forward_as(&self.login, resource)
    }

    pub(crate) fn forward_as(&self, login: &str, resource: &str) -> (Process, SocketAddr) {
        let mut command =
            self.command_as(login, &["connect", resource, "--listen", "127.0.0.1:0", "--json"]);
        let mut process = Process::start(&mut command);
        let ready = process.first_json();
        let addr = ready["listen"].as_str().unwrap_or_else(|| panic!("listen in {ready}"));
        (process, addr.parse().expect("an address"))
    }

    pub(crate) fn sessions(&self) -> Vec<Value> {
        self.run(&["sessions"]).ok().json().as_array().expect("a list").clone()
    }

    /// The value of a metric with these labels (`name{a="b"}` or `name`), summed over what else it is labelled with.
    pub(crate) fn metric(&self, name: &str, label: &str) -> f64 {
        let text = self.run(&["metrics"]).ok().stdout;
        text.lines()
            .filter(|line| !line.starts_with('#') && line.contains(label))
            .filter(|line| line.split(['{', ' ']).next() == Some(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// A bare TCP connection to the gateway's port.
    pub(crate) fn dial(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).expect("the port accepts");
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }
}

fn start_server(home: &Path, io: Io, listen: &str, public: Option<&str>) -> Process {
    Process::start(&mut server_command(home, io, listen, public))
}

fn server_command(home: &Path, io: Io, listen: &str, public: Option<&str>) -> Command {
    let mut command = switchback(home);
    command
        .args(["serve", "--listen", listen, "--io", io.as_str(), "--json", "--data"])
        .arg(home.join("data"));
    if let Some(public) = public {
        command.args(["--public", public]);
    }
    command
}
