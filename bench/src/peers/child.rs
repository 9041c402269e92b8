//! A peer's process: started, watched, and ended by us, whatever happens to us.
//!
//! A peer is a process group: what it forks ends with it. Dropping a [`Process`] kills its group.
//! Signals end the bench without dropping anything, so every group is also in a list that
//! [`end_with_signals`] kills. And should the bench be killed outright, the kernel sends the peer a
//! SIGTERM (PR_SET_PDEATHSIG, prctl(2)). Only what we started is ended.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid,
};

use super::program;
use crate::measure::netns::Network;
use crate::measure::placement::Placement;

/// Time from SIGTERM until SIGKILL: a peer may drain, but not for long.
const GRACE: Duration = Duration::from_secs(5);

/// How often an ending process is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Log bytes shown when a peer fails.
const LOG_TAIL_BYTES: usize = 2048;

/// Longest line and largest output taken from a peer: a thousand hellos are about 1 MiB.
const OUTPUT_BYTES_MAX: u64 = 16 << 20;

/// Leaders of the process groups to kill when a signal ends the bench.
static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Directories to remove when a signal ends the bench. Bounded by the starts of peers.
static SCRATCH: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

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
    /// Starts `command` on the relay's CPU and in its namespace; its stderr goes to an unlinked log
    /// file. It ends at the latest with the calling thread.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(
        name: &str,
        command: Command,
        placement: Placement,
        network: Network,
    ) -> Result<Process> {
        let log = tempfile::tempfile().context("creating a log file")?;
        let cannot_start = cannot_start(&command);
        let mut command = ending_with_us(command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log.try_clone()?);
        command.process_group(0);
        let mut running = running();
        let mut child =
            placement.spawn_relay(network, &mut command).with_context(|| cannot_start)?;
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

    /// Fails if it has ended.
    ///
    /// # Errors
    /// That it has, with the end of its log.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.try_reap()? {
            Some(status) => bail!("{} ended: {status}{}", self.name, self.log_tail()),
            None => Ok(()),
        }
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
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if running.contains(&self.pid) && waitid(WaitId::Pid(self.pid), look)?.is_some() {
            // While it is not collected, its number is still the group's and nobody else's.
            kill_group(self.pid);
        }
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
            kill_group(self.pid);
            // Fails only if it was collected already.
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
    command.process_group(0);
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
        running().iter().copied().for_each(kill_group);
        scratch().iter().for_each(|dir| drop(std::fs::remove_dir_all(dir)));
        // 128 + SIGINT, as shells report it.
        std::process::exit(130);
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch)?;
    Ok(())
}

/// A directory for a peer's files: gone when dropped, and when a signal ends the bench, because it may hold keys.
///
/// # Errors
/// It cannot be made.
pub(crate) fn scratch_dir() -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir().context("creating a directory for a peer's files")?;
    scratch().push(dir.path().to_owned());
    Ok(dir)
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

/// SIGKILL to a process we started and everything in its group. Fails only if all have ended.
fn kill_group(leader: Pid) {
    let _ = kill_process_group(leader, Signal::KILL);
}

/// `command`, to be sent SIGTERM by the kernel when the calling thread ends, if setpriv(1) of
/// util-linux is there to ask for that.
pub(crate) fn ending_with_us(command: Command) -> Command {
    static SETPRIV: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
        let path = program::find("setpriv")?;
        // Others than util-linux's have no such option.
        let mut try_it = Command::new(&path);
        try_it.args(["--pdeathsig", "TERM", "true"]).stderr(Stdio::null());
        try_it.status().is_ok_and(|status| status.success()).then_some(path)
    });
    let Some(setpriv) = SETPRIV.as_deref() else { return command };
    let mut bound = Command::new(setpriv);
    bound.args(["--pdeathsig", "TERM", "--"]).arg(command.get_program()).args(command.get_args());
    bound.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    bound
}

/// Names the program only: arguments may hold secrets.
fn cannot_start(command: &Command) -> String {
    format!("starting {}", command.get_program().display())
}

fn scratch() -> MutexGuard<'static, Vec<PathBuf>> {
    SCRATCH.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn start(name: &str, command: Command) -> Result<Process> {
        Process::start(name, command, Placement::default(), Network::Host)
    }

    fn exists(pid: Pid) -> bool {
        rustix::process::test_kill_process(pid).is_ok()
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let command = shell("echo ready; exec sleep 60");
        let mut process = start("sleeper", command).unwrap();
        assert_eq!(process.first_line(GRACE).unwrap(), "ready\n");
        let pid = process.pid();
        assert!(exists(pid));
        drop(process);
        assert!(!exists(pid));
    }

    #[test]
    fn what_a_process_forked_ends_with_it() {
        for ended_by in [drop, |process: Process| process.stop().unwrap()] {
            let command = shell("sleep 60 & echo $!; exec sleep 60");
            let mut process = start("forking", command).unwrap();
            let line = process.first_line(GRACE).unwrap();
            let forked = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
            assert!(exists(forked));
            ended_by(process);
            // Orphaned, it is collected by init in its own time; until then it is a zombie.
            let stat =
                || std::fs::read_to_string(format!("/proc/{}/stat", forked.as_raw_nonzero()));
            let deadline = Instant::now() + GRACE;
            while stat().is_ok_and(|stat| !stat.contains(") Z ")) {
                assert!(Instant::now() < deadline, "still running: {:?}", stat());
                std::thread::sleep(POLL);
            }
        }
    }

    #[test]
    fn a_process_ends_with_the_thread_that_started_it() {
        if program::find("setpriv").is_none() {
            return eprintln!("skipped: setpriv is not installed");
        }
        let start = || {
            let mut process = start("orphan", shell("echo ready; exec sleep 60")).unwrap();
            process.first_line(GRACE).unwrap();
            process
        };
        let mut process = std::thread::spawn(start).join().unwrap();
        let deadline = Instant::now() + GRACE;
        while process.check().is_ok() {
            assert!(Instant::now() < deadline, "it outlives its starter");
            std::thread::sleep(POLL);
        }
    }

    #[test]
    fn a_process_that_ends_at_once_is_an_error_with_its_log() {
        let command = shell("echo the reason >&2; exit 3");
        let mut process = start("failing", command).unwrap();
        let error = process.first_line(GRACE).unwrap_err().to_string();
        assert!(error.contains("the reason"), "{error}");
    }

    #[test]
    fn stop_ends_what_heeds_a_signal() {
        let command = shell("echo ready; exec sleep 60");
        let mut process = start("sleeper", command).unwrap();
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
