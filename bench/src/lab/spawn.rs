//! Programs inside a host, which end when the lab does, however it ends.
//!
//! They are started by one thread that lives as long as the lab: the kernel kills them when it ends
//! (PR_SET_PDEATHSIG, set by util-linux's `setpriv`, which counts the thread, not the process), so
//! also when this process is killed outright. What they start in turn, and what setpriv was missing
//! for, is found and killed when the lab is dropped: whatever inhabits its namespaces.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

use super::namespace::Namespace;

/// Where system programs are on machines whose users' PATH does not say so.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Starts programs. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Spawner {
    orders: Option<Mutex<Sender<Order>>>,
    thread: Option<JoinHandle<()>>,
}

struct Order {
    namespace: Namespace,
    command: Command,
    reply: Sender<io::Result<Child>>,
}

impl Spawner {
    pub(super) fn start() -> io::Result<Spawner> {
        let (sender, orders) = channel();
        let thread = thread::Builder::new().name("lab-spawn".into()).spawn(|| serve(orders))?;
        Ok(Spawner { orders: Some(Mutex::new(sender)), thread: Some(thread) })
    }

    /// Starts `command` in the namespace.
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub(super) fn spawn(&self, namespace: &Namespace, command: Command) -> io::Result<Child> {
        let (reply, answer) = channel();
        let order = Order { namespace: namespace.try_clone()?, command, reply };
        let ended = || io::Error::other("the lab has ended");
        let orders = self.orders.as_ref().ok_or_else(ended)?;
        let sent = orders.lock().unwrap_or_else(PoisonError::into_inner).send(order);
        sent.map_err(|_| ended())?;
        answer.recv().map_err(|_| ended())?
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(orders: Receiver<Order>) {
    for Order { namespace, mut command, reply } in orders {
        let child = namespace.join().and_then(|()| command.spawn());
        // Nobody waits any more: then nobody holds the child either, and it ends with this thread.
        let _ = reply.send(child);
    }
}

/// A program to run inside a host: as [`Command`], but it ends with the lab.
#[derive(Debug)]
pub struct HostCommand<'a> {
    spawner: &'a Spawner,
    namespace: &'a Namespace,
    program: PathBuf,
    command: Command,
}

impl<'a> HostCommand<'a> {
    pub(super) fn new(
        spawner: &'a Spawner,
        namespace: &'a Namespace,
        program: &OsStr,
    ) -> HostCommand<'a> {
        let program = PathBuf::from(program);
        let command = ending_with_parent(&program);
        HostCommand { spawner, namespace, program, command }
    }

    /// Adds an argument.
    pub fn arg(&mut self, argument: impl AsRef<OsStr>) -> &mut Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub fn args(&mut self, arguments: impl IntoIterator<Item: AsRef<OsStr>>) -> &mut Self {
        self.command.args(arguments);
        self
    }

    /// Sets an environment variable.
    pub fn env(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.command.env(name, value);
        self
    }

    /// Removes an environment variable.
    pub fn env_remove(&mut self, name: impl AsRef<OsStr>) -> &mut Self {
        self.command.env_remove(name);
        self
    }

    /// Sets the working directory.
    pub fn current_dir(&mut self, directory: impl AsRef<Path>) -> &mut Self {
        self.command.current_dir(directory);
        self
    }

    /// Sets standard input.
    pub fn stdin(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.command.stdin(stdio);
        self
    }

    /// Sets standard output.
    pub fn stdout(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.command.stdout(stdio);
        self
    }

    /// Sets standard error.
    pub fn stderr(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.command.stderr(stdio);
        self
    }

    /// Starts it, once.
    ///
    /// # Errors
    /// No such program, or as [`Command::spawn`].
    pub fn spawn(&mut self) -> io::Result<Child> {
        // What setpriv is asked to run does not fail here, so this is found out before.
        if find(&self.program).is_none() {
            let what = format!("no program {}", self.program.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, what));
        }
        let command = std::mem::replace(&mut self.command, ending_with_parent(&self.program));
        self.spawner.spawn(self.namespace, command)
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// As [`HostCommand::spawn`].
    pub fn status(&mut self) -> io::Result<ExitStatus> {
        self.spawn()?.wait()
    }

    /// Runs it to its end and takes what it writes; its standard input is empty.
    ///
    /// # Errors
    /// As [`HostCommand::spawn`].
    pub fn output(&mut self) -> io::Result<Output> {
        self.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.spawn()?.wait_with_output()
    }
}

/// The absolute path of a program: in PATH or in the system's directories.
pub(super) fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.exists().then(|| program.to_owned());
    }
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&in_path)
        .chain(SYSTEM_DIRECTORIES.map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

fn ending_with_parent(program: &Path) -> Command {
    static SETPRIV: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
        let path = find(Path::new("setpriv"))?;
        // Others than util-linux's have no such option.
        let mut try_it = Command::new(&path);
        try_it.args(["--pdeathsig", "KILL", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
        try_it.status().is_ok_and(|status| status.success()).then_some(path)
    });
    let program = find(program).unwrap_or_else(|| program.to_owned());
    let Some(setpriv) = SETPRIV.as_deref() else { return Command::new(program) };
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Kills every other process that is in one of these namespaces.
pub(super) fn kill_inhabitants(namespaces: &[(u64, u64)]) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        let Some(pid) = number.and_then(Pid::from_raw).filter(|pid| *pid != getpid()) else {
            continue;
        };
        // Opened before it is looked at: a number may be given to another process meanwhile.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let Ok(namespace) = fs::metadata(entry.path().join("ns/net")) else { continue };
        if namespaces.contains(&(namespace.dev(), namespace.ino())) {
            // It may have ended.
            let _ = pidfd_send_signal(&process, Signal::KILL);
        }
    }
}
