//! A peer's process: started, watched, and ended by us, whatever happens to us.
//!
//! Dropping a [`Process`] kills it. Signals end the bench without dropping anything, so every
//! process is also in a list that [`end_with_signals`] kills. Only what is in the list is ended.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::measure::placement::Placement;

/// Time from SIGTERM until SIGKILL: a peer may drain, but not for long.
const GRACE: Duration = Duration::from_secs(5);

/// How often an ending process is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Log bytes shown when a peer fails.
const LOG_TAIL_BYTES: usize = 2048;

/// Longest line and largest output taken from a peer: a thousand hellos are about 1 MiB.
const OUTPUT_BYTES_MAX: u64 = 16 << 20;

/// Processes to kill when a signal ends the bench.
static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// A running peer.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    pid: Pid,
    /// Held open: our own subcommands end when it closes, even if we are killed outright.
    _stdin: Option<ChildStdin>,
    first_line: Receiver<String>,
    log: File,
}

impl Process {
    /// Starts `command` on the relay's CPU; its stderr goes to an unlinked log file.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(name: &str, mut command: Command, placement: Placement) -> Result<Process> {
        let log = tempfile::tempfile().context("creating a log file")?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log.try_clone()?);
        let mut running = running();
        let mut child =
            placement.spawn_relay(&mut command).with_context(|| cannot_start(&command))?;
        let pid = pid_of(&child);
        running.push(pid);
        drop(running);
        let (sender, first_line) = sync_channel(1);
        let stdout = child.stdout.take();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stdout.into_iter().next()?);
            let mut line = String::new();
            reader.by_ref().take(OUTPUT_BYTES_MAX).read_line(&mut line).ok()?;
            sender.send(line).ok()?;
            std::io::copy(&mut reader, &mut std::io::sink()).ok()
        });
        let stdin = child.stdin.take();
        Ok(Process { name: name.to_owned(), child, pid, _stdin: stdin, first_line, log })
    }

    /// The first line on its stdout: that it is ready, and where.
    ///
    /// # Errors
    /// It ended, or said nothing for `within`; the error carries the end of its log.
    pub(crate) fn first_line(&mut self, within: Duration) -> Result<String> {
        match self.first_line.recv_timeout(within) {
            Ok(line) if !line.is_empty() => Ok(line),
            Ok(_) => bail!("{} ended at once{}", self.name, self.log_tail()),
            Err(_) => bail!("{} was not ready within {within:?}{}", self.name, self.log_tail()),
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Asks it to end, and kills it if it has not after [`GRACE`].
    ///
    /// # Errors
    /// It had ended before, or had to be killed: then its figures deserve distrust.
    pub(crate) fn stop(mut self) -> Result<()> {
        if let Some(status) = self.try_reap()? {
            bail!("{} had ended by itself: {status}{}", self.name, self.log_tail());
        }
        kill_process(self.pid, Signal::TERM)?;
        let deadline = Instant::now() + GRACE;
        while self.try_reap()?.is_none() {
            ensure!(Instant::now() < deadline, "{} ignored SIGTERM for {GRACE:?}", self.name);
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// The last lines of its log, for an error message.
    pub(crate) fn log_tail(&self) -> String {
        let end = self.log.metadata().map_or(0, |metadata| metadata.len());
        let mut text = vec![0; LOG_TAIL_BYTES];
        // At an offset: the child shares the file's position.
        match self.log.read_at(&mut text, end.saturating_sub(LOG_TAIL_BYTES as u64)) {
            Ok(0) | Err(_) => String::new(),
            Ok(bytes) => {
                let tail = String::from_utf8_lossy(&text[..bytes]);
                format!("; its log ends:\n{}", tail.trim_end())
            }
        }
    }

    /// Collects it if it has ended, and takes it off the list before its number can be reused.
    fn try_reap(&mut self) -> Result<Option<std::process::ExitStatus>> {
        let mut running = running();
        let status = self.child.try_wait()?;
        if status.is_some() {
            running.retain(|pid| *pid != self.pid);
        }
        Ok(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut running = running();
        if running.contains(&self.pid) {
            // Either fails only if it has ended already.
            let _ = self.child.kill();
            let _ = self.child.wait();
            running.retain(|pid| *pid != self.pid);
        }
    }
}

/// Runs `command` to its end and returns its stdout.
///
/// # Errors
/// It fails, or takes longer than `within` (then it is killed); the error carries its stderr.
pub(crate) fn output_of(mut command: Command, within: Duration) -> Result<String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running_now = running();
    let mut child = command.spawn().with_context(|| cannot_start(&command))?;
    let pid = pid_of(&child);
    running_now.push(pid);
    drop(running_now);
    let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let deadline = Instant::now() + within;
    let status = loop {
        let mut running = running();
        if Instant::now() >= deadline {
            let _ = child.kill();
        }
        let ended =
            if Instant::now() >= deadline { Some(child.wait()?) } else { child.try_wait()? };
        if let Some(status) = ended {
            running.retain(|other| *other != pid);
            break status;
        }
        drop(running);
        std::thread::sleep(POLL);
    };
    let (stdout, stderr) = (stdout.recv()?, stderr.recv()?);
    ensure!(
        status.success(),
        "{:?} failed, {status}: {}",
        command.get_program(),
        stderr.trim_end()
    );
    Ok(stdout)
}

/// Starts the thread that, on SIGINT, SIGTERM or SIGHUP, kills our processes and exits with 130.
///
/// # Errors
/// The thread or its signal handlers cannot be set up.
pub(crate) fn end_with_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let watch = move || {
        runtime.block_on(any_signal());
        for pid in running().iter() {
            let _ = kill_process(*pid, Signal::KILL);
        }
        // 128 + SIGINT, as shells report it.
        std::process::exit(130);
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch)?;
    Ok(())
}

async fn any_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = kinds.map(signal) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}

/// Names the program only: arguments may hold secrets.
fn cannot_start(command: &Command) -> String {
    format!("starting {}", command.get_program().display())
}

fn running() -> MutexGuard<'static, Vec<Pid>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Reads a stream to its end in the background.
fn collect(stream: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = sync_channel(1);
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(stream) = stream {
            // What could be read is kept; the exit status tells whether it is whole.
            let _ = stream.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
        }
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn exists(pid: Pid) -> bool {
        rustix::process::test_kill_process(pid).is_ok()
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let command = shell("echo ready; exec sleep 60");
        let mut process = Process::start("sleeper", command, Placement::default()).unwrap();
        assert_eq!(process.first_line(GRACE).unwrap(), "ready\n");
        let pid = process.pid();
        assert!(exists(pid));
        drop(process);
        assert!(!exists(pid));
    }

    #[test]
    fn a_process_that_ends_at_once_is_an_error_with_its_log() {
        let command = shell("echo the reason >&2; exit 3");
        let mut process = Process::start("failing", command, Placement::default()).unwrap();
        let error = process.first_line(GRACE).unwrap_err().to_string();
        assert!(error.contains("the reason"), "{error}");
    }

    #[test]
    fn stop_ends_what_heeds_a_signal() {
        let command = shell("echo ready; exec sleep 60");
        let mut process = Process::start("sleeper", command, Placement::default()).unwrap();
        process.first_line(GRACE).unwrap();
        process.stop().unwrap();
    }

    #[test]
    fn output_is_returned_and_failure_and_delay_are_errors() {
        assert_eq!(output_of(shell("echo out"), GRACE).unwrap(), "out\n");
        let error = output_of(shell("echo why >&2; exit 1"), GRACE).unwrap_err().to_string();
        assert!(error.contains("why"), "{error}");
        assert!(output_of(shell("exec sleep 60"), Duration::from_millis(50)).is_err());
    }
}
