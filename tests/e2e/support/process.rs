//! One `switchback` process, ended when dropped.
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::eventually;

/// A command of the binary under test, with an environment of its own.
pub(crate) fn switchback(home: &Path) -> Command {
    switchback_at(Path::new(env!("CARGO_BIN_EXE_switchback")), home)
}

/// As [`switchback`], by another path.
pub(crate) fn switchback_at(program: &Path, home: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", home)
        .env("XDG_CONFIG_HOME", home.join("config"))
        .env("XDG_STATE_HOME", home.join("state"))
        // As root, an agent's would be under /var/lib, and that of all tests.
        .env("SWITCHBACK_STATE", home.join("agent"))
        .env("RUST_LOG", "debug");
    command
}

/// What a finished command left.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    pub(crate) fn of(command: &mut Command) -> Self {
        let output = command.stdin(Stdio::null()).output().expect("the binary starts");
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The symbolic code of the refusal that a `--json` command printed on stderr.
    pub(crate) fn refusal(&self) -> String {
        self.stderr
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find_map(|value| value["error"]["code"].as_str().map(str::to_owned))
            .unwrap_or_else(|| panic!("no refusal in {self:?}"))
    }

    /// The JSON lines on stderr, as they are.
    pub(crate) fn stderr_json(&self) -> Vec<Value> {
        let lines = self.stderr.lines();
        lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

/// A running process whose output is kept.
pub(crate) struct Process {
    child: Child,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::of(pipe(command).spawn())
    }

    /// As [`Self::start`], started by somebody else.
    pub(crate) fn start_with(
        mut command: Command,
        spawn: impl FnOnce(Command) -> io::Result<Child>,
    ) -> Self {
        pipe(&mut command);
        Self::of(spawn(command))
    }

    fn of(started: io::Result<Child>) -> Self {
        let mut child = started.expect("the binary starts");
        let stdout = collect(child.stdout.take().expect("piped"));
        let stderr = collect(child.stderr.take().expect("piped"));
        Self { child, stdout, stderr }
    }

    /// The first JSON line on stdout.
    pub(crate) fn first_json(&mut self) -> Value {
        eventually("a JSON line on stdout", Duration::from_secs(20), || {
            let text = self.stdout.lock().unwrap().clone();
            if let Some(value) = text.lines().find_map(|line| serde_json::from_str(line).ok()) {
                return Some(value);
            }
            if let Some(status) = self.child.try_wait().expect("wait works") {
                panic!("ended with {status} before it was ready: {}", self.stderr());
            }
            None
        })
    }

    /// The JSON line with this number on stdout, from 0: a process that takes over prints on the same one.
    pub(crate) fn json(&self, number: usize) -> Value {
        eventually("another JSON line on stdout", Duration::from_secs(20), || {
            let text = self.stdout.lock().unwrap().clone();
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).nth(number)
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All of standard output so far.
    pub(crate) fn stdout(&self) -> String {
        self.stdout.lock().unwrap().clone()
    }

    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args(["-s", name, &self.pid().to_string()])
            .status()
            .expect("kill runs");
        assert!(status.success());
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    /// Waits for its own end.
    pub(crate) fn wait(&mut self, limit: Duration) -> i32 {
        eventually("the process to end", limit, || self.child.try_wait().expect("wait works"))
            .code()
            .unwrap_or(-1)
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("wait works").is_some()
    }

    pub(crate) fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    pub(crate) fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.pid())).map_or(0, Iterator::count)
    }

    /// Resident memory in bytes.
    pub(crate) fn resident(&self) -> u64 {
        resident_of(self.pid())
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Resident memory of a process in bytes.
pub(crate) fn resident_of(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or("VmRSS: 0 kB");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
        if thread::panicking() {
            let stderr = self.stderr();
            let tail: Vec<_> = stderr.lines().rev().take(40).collect();
            eprintln!("--- last lines of pid {}:", self.pid());
            tail.into_iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

fn pipe(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped())
}

fn collect(mut stream: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let sink = Arc::clone(&text);
    thread::spawn(move || {
        let mut lines = BufReader::new(&mut stream);
        let mut line = String::new();
        while lines.read_line(&mut line).is_ok_and(|count| count > 0) {
            sink.lock().unwrap().push_str(&line);
            line.clear();
        }
    });
    text
}
