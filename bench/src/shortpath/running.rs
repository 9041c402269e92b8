//! A program of a tunnel, with everything it says and when it said it.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::process::Pid;

use super::ground::{Ground, Host};
use crate::peers::child::ending_with_us;

/// Lines kept per stream; the oldest go.
const LINES_MAX: usize = 1000;

/// Longest line: `serve` prints its strings in one of some hundred bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// Lines of its log shown when a program fails.
const SHOWN: usize = 8;

/// A running program. Dropping it kills it.
pub(crate) struct Running {
    name: String,
    child: Child,
    said: Arc<Heard>,
    logged: Arc<Heard>,
}

#[derive(Default)]
struct Heard {
    lines: Mutex<Lines>,
    more: Condvar,
}

#[derive(Default)]
struct Lines {
    lines: VecDeque<(Instant, String)>,
    over: bool,
}

impl Running {
    /// Starts `command` at a host.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(
        ground: &Ground,
        host: Host,
        name: &str,
        command: Command,
    ) -> Result<Running> {
        let mut command = without_our_settings(command);
        // Held open: some programs serve until their input ends.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = ground.spawn(host, command)?;
        let said = Heard::listen(child.stdout.take());
        let logged = Heard::listen(child.stderr.take());
        Ok(Running { name: name.to_owned(), child, said, logged })
    }

    /// Its first line on standard output. It may hold secrets: not for error messages.
    ///
    /// # Errors
    /// It ended, or said nothing for `within`; the error carries the end of its log.
    pub(crate) fn first_line(&self, within: Duration) -> Result<String> {
        match self.said.find(|_| true, within) {
            Some((_, line)) => Ok(line),
            None => bail!("{} did not become ready{}", self.name, self.log_tail()),
        }
    }

    /// When it logged a line that holds `words`, waiting for that if need be.
    pub(crate) fn logged(&self, words: &str, within: Duration) -> Option<Instant> {
        self.logged.find(|line| line.contains(words), within).map(|(at, _)| at)
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// SIGKILL, and waits for its end.
    pub(crate) fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The last lines of its log, for an error message.
    pub(crate) fn log_tail(&self) -> String {
        let lines = &self.logged.lock().lines;
        let tail: Vec<&str> =
            lines.iter().rev().take(SHOWN).map(|(_, line)| line.as_str()).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        if tail.is_empty() {
            String::new()
        } else {
            format!("; its log ends:\n{}", tail.join("\n"))
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Heard {
    /// Takes lines from a stream until it ends.
    fn listen(stream: Option<impl Read + Send + 'static>) -> Arc<Heard> {
        let heard = Arc::new(Heard::default());
        let listener = Arc::clone(&heard);
        std::thread::spawn(move || {
            let mut reader = stream.map(BufReader::new);
            while let Some(line) = reader.as_mut().and_then(next_line) {
                listener.add(line);
            }
            listener.lock().over = true;
            listener.more.notify_all();
        });
        heard
    }

    fn add(&self, line: String) {
        let mut heard = self.lock();
        if heard.lines.len() >= LINES_MAX {
            heard.lines.pop_front();
        }
        heard.lines.push_back((Instant::now(), line));
        drop(heard);
        self.more.notify_all();
    }

    /// The first line that is `wanted`, waiting until there is one, the stream ends or time is up.
    fn find(&self, wanted: impl Fn(&str) -> bool, within: Duration) -> Option<(Instant, String)> {
        let deadline = Instant::now() + within;
        let mut heard = self.lock();
        loop {
            if let Some(found) = heard.lines.iter().find(|(_, line)| wanted(line)) {
                return Some(found.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if heard.over || left.is_zero() {
                return None;
            }
            let waited = self.more.wait_timeout(heard, left);
            heard = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `command`, ending with this thread, without what the caller's environment says to our programs.
fn without_our_settings(command: Command) -> Command {
    let explicit: Vec<_> = command.get_envs().map(|(name, _)| name.to_owned()).collect();
    let mut command = ending_with_us(command);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SWITCHBACK_") && !explicit.contains(&name) {
            command.env_remove(name);
        }
    }
    command
}

fn next_line(reader: &mut BufReader<impl Read>) -> Option<String> {
    let mut line = Vec::new();
    match reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(String::from_utf8_lossy(&line).trim_end().to_owned()),
    }
}
