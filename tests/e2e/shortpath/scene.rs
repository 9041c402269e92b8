//! A whole installation in a lab: the server on the internet, the agent and the client behind their NATs.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use switchback_bench::lab::{self, Lab, Topology};
use tempfile::TempDir;

use crate::support::{Bytes, EchoTarget, Output, Process, Sshd, eventually, switchback};

/// Where the server listens: the gateway's own port, as users will have it.
const SERVER: &str = "192.0.2.1:443";

pub(super) struct Scene {
    server: Mutex<Option<Process>>,
    _agent: Process,
    login: String,
    home: TempDir,
    sshd: Option<Sshd>,
    /// Environment of both ends.
    ends: &'static [(&'static str, &'static str)],
    pub(super) lab: Lab,
}

impl Scene {
    /// A server, an agent with the resource `echo`, and a signed-in user, in this topology; `None` after saying why
    /// there can be no lab here.
    pub(super) fn start(topology: &str) -> Option<Self> {
        Self::with_resource(topology, "")
    }

    /// As [`Self::start`], in a topology without a name.
    pub(super) fn on(topology: &Topology) -> Option<Self> {
        Self::build(topology, "", &[], &[], false)
    }

    /// As [`Self::start`], with options on the resource (`;udp=off`).
    pub(super) fn with_resource(topology: &str, options: &str) -> Option<Self> {
        Self::build(&named(topology), options, &[], &[], false)
    }

    /// As [`Self::start`], with an SSH server beside the agent as resource `ssh`; `None` also where OpenSSH is missing.
    pub(super) fn with_sshd(topology: &str) -> Option<Self> {
        Self::build(&named(topology), "", &[], &[], true).filter(|scene| scene.sshd.is_some())
    }

    /// As [`Self::start`], with these environment variables for agent and client.
    pub(super) fn with_ends(
        topology: &str,
        ends: &'static [(&'static str, &'static str)],
    ) -> Option<Self> {
        Self::build(&named(topology), "", ends, &[], false)
    }

    /// As [`Self::start`], with these alternate STUN addresses at the gateway.
    pub(super) fn with_alternates(topology: &str, alternates: &[&str]) -> Option<Self> {
        Self::build(&named(topology), "", &[], alternates, false)
    }

    fn build(
        topology: &Topology,
        options: &str,
        ends: &'static [(&'static str, &'static str)],
        alternates: &[&str],
        with_sshd: bool,
    ) -> Option<Self> {
        if lab::skip(lab::unavailable()) {
            return None;
        }
        let lab = Lab::start(topology, 1).expect("a lab starts");
        let home = TempDir::new().expect("a temporary directory");
        let mut server = serve(&lab, &home, alternates);
        let ready = server.first_json();
        let text = |key: &str| ready[key].as_str().expect("a text").to_owned();
        let target = lab.host("agent").enter(EchoTarget::start).expect("the agent's host");
        // A host of its own: its loopback has nobody else.
        let address = "127.0.0.1:22".parse().expect("an address");
        let sshd = with_sshd
            .then(|| Sshd::start_with(home.path(), address, |it| lab.host("agent").spawn(it)))
            .flatten();
        let agent = run(&lab, "agent", &home, |command| {
            command.args(["agent", "--name", "box", "--join", &text("join"), "--resource"]);
            command.arg(target.resource_with("echo", options));
            if let Some(sshd) = &sshd {
                command.args(["--resource", &sshd.resource]);
            }
            command.envs(ends.iter().copied());
        });
        let login = text("login");
        let scene =
            Self { server: Mutex::new(Some(server)), _agent: agent, login, home, sshd, ends, lab };
        eventually("the resource to be online", Duration::from_secs(20), || {
            let feed = scene.ask(&["resources"]).json();
            let resources = feed.as_array()?;
            let all = !resources.is_empty() && resources.iter().all(|line| line["online"] == true);
            all.then_some(())
        });
        Some(scene)
    }

    /// A command of the user at the client's host, with `--json`.
    pub(super) fn ask(&self, args: &[&str]) -> Output {
        let mut command = switchback(self.home.path());
        command.env("SWITCHBACK_LOGIN", &self.login).args(args).arg("--json");
        let host = self.lab.host("client");
        // The thread that starts a program gives it its namespace.
        host.enter(|| Output::of(&mut command)).expect("the client's host")
    }

    /// `switchback connect echo`, and the address it listens on in the client's host.
    pub(super) fn connect(&self) -> Session<'_> {
        let mut process = run(&self.lab, "client", &self.home, |command| {
            command.env("SWITCHBACK_LOGIN", &self.login);
            command.args(["connect", "echo", "--listen", "127.0.0.1:0", "--json"]);
            command.envs(self.ends.iter().copied());
        });
        let ready = process.first_json();
        let listen = ready["listen"].as_str().expect("an address").parse().expect("an address");
        Session { scene: self, process, listen }
    }

    /// A running `scp` in the client's host, to the resource `ssh`, of this many kbit/s at most.
    pub(super) fn scp(&self, rate: u32, from: &Path, to: &Path) -> Process {
        let sshd = self.sshd.as_ref().expect("an SSH server");
        let mut command = sshd.command("scp", self.home.path(), &self.login);
        command.args(["-l", &rate.to_string()]).arg(from).arg(format!("box:{}", to.display()));
        Process::start_with(command, |command| self.lab.host("client").spawn(command))
    }

    pub(super) fn home(&self) -> &Path {
        self.home.path()
    }

    /// Waits until this label carries every session.
    pub(super) fn expect_all(&self, count: usize, label: &str) {
        eventually(label, Duration::from_secs(20), || {
            let sessions = self.ask(&["sessions"]).ok().json();
            let sessions = sessions.as_array()?;
            let there = sessions.iter().filter(|session| session["transport"] == label).count();
            (there == count && sessions.len() == count).then_some(())
        });
    }

    pub(super) fn kill_server(&self) {
        self.server.lock().unwrap().take().expect("the server runs").kill();
    }

    pub(super) fn restart_server(&self) {
        let mut server = serve(&self.lab, &self.home, &[]);
        server.first_json();
        *self.server.lock().unwrap() = Some(server);
    }

    /// The transport of the only session, as the broker knows it: this label as soon as it is, else the last one.
    pub(super) fn transport_within(&self, label: &str, limit: Duration) -> Option<String> {
        let started = Instant::now();
        loop {
            let sessions = self.ask(&["sessions"]).ok().json();
            let transport = sessions[0]["transport"].as_str().map(str::to_owned);
            if transport.as_deref() == Some(label) || started.elapsed() > limit {
                return transport;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Whether the only session has a path of this label, carrying or standing by.
    pub(super) fn has_path(&self, label: &str) -> bool {
        let sessions = self.ask(&["sessions"]).ok().json();
        let paths = sessions[0]["paths"].as_array();
        paths.is_some_and(|paths| paths.iter().any(|path| path["transport"] == label))
    }

    /// What `explain` says of the only session.
    pub(super) fn explained(&self) -> String {
        let sessions = self.ask(&["sessions"]).ok().json();
        let id = sessions[0]["id"].as_str().unwrap_or_default();
        self.ask(&["explain", id]).stdout
    }

    /// As [`Self::transport_within`], for what must come.
    pub(super) fn expect_transport(&self, label: &str) {
        assert_eq!(self.transport_within(label, Duration::from_secs(20)).as_deref(), Some(label));
    }
}

fn named(topology: &str) -> Topology {
    topology.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn serve(lab: &Lab, home: &TempDir, alternates: &[&str]) -> Process {
    let data = home.path().join("data");
    run(lab, "server", home, |command| {
        command.args(["serve", "--listen", SERVER, "--json", "--data"]).arg(data);
        for alternate in alternates {
            command.args(["--stun-alternate", alternate]);
        }
    })
}

fn run(
    lab: &Lab,
    host: &str,
    home: &TempDir,
    say: impl FnOnce(&mut std::process::Command),
) -> Process {
    let mut command = switchback(home.path());
    say(&mut command);
    Process::start_with(command, |command| lab.host(host).spawn(command))
}

/// A running `connect`.
pub(super) struct Session<'a> {
    scene: &'a Scene,
    process: Process,
    listen: SocketAddr,
}

impl Session<'_> {
    /// What it tells, line by line, from 0.
    pub(super) fn told(&self, number: usize) -> Value {
        self.process.json(number)
    }

    /// An application's connection, made in the client's host.
    pub(super) fn dial(&self) -> TcpStream {
        let dialled = self.scene.lab.host("client").enter(|| TcpStream::connect(self.listen));
        let stream = dialled.expect("the client's host").expect("connect listens");
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }
}

/// Sends `count` messages of 64 bytes at `rate` per second through an echo, checks every byte that comes back, and gives the
/// longest silence between two of them.
pub(super) fn echo(stream: &mut TcpStream, rate: u32, count: u32) -> Duration {
    const SIZE: usize = 64;
    let mut writer = stream.try_clone().expect("a clone");
    let sender = thread::spawn(move || {
        let started = Instant::now();
        let mut bytes = Bytes::seeded(u64::from(rate));
        for number in 0..count {
            let due = started + Duration::from_secs(1) * number / rate;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let mut message = [0; SIZE];
            bytes.fill(&mut message);
            writer.write_all(&message).expect("the session takes bytes");
        }
    });
    let mut expected = Bytes::seeded(u64::from(rate));
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    for number in 0..count {
        let (mut sent, mut back) = ([0; SIZE], [0; SIZE]);
        expected.fill(&mut sent);
        stream.read_exact(&mut back).unwrap_or_else(|error| panic!("echo {number}: {error}"));
        assert_eq!(sent, back, "echo {number}");
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    sender.join().expect("the sender ends well");
    longest
}

/// Moves this many bytes through an echo at once, and compares them all.
pub(super) fn bulk(mut stream: TcpStream, bytes: usize) {
    const PIECE: usize = 64 * 1024;
    let mut writer = stream.try_clone().expect("a clone");
    let sender = thread::spawn(move || {
        let (mut content, mut piece) = (Bytes::seeded(9), vec![0; PIECE]);
        for _ in 0..bytes / PIECE {
            content.fill(&mut piece);
            writer.write_all(&piece).expect("the session takes bytes");
        }
        writer.shutdown(std::net::Shutdown::Write).expect("the end goes out");
    });
    let (mut content, mut sent, mut back) = (Bytes::seeded(9), vec![0; PIECE], vec![0; PIECE]);
    for number in 0..bytes / PIECE {
        content.fill(&mut sent);
        stream.read_exact(&mut back).unwrap_or_else(|error| panic!("piece {number}: {error}"));
        assert!(sent == back, "piece {number} came back changed");
    }
    assert_eq!(stream.read(&mut back).expect("an end"), 0, "nothing follows the last byte");
    sender.join().expect("the sender ends well");
}
