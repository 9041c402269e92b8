//! Network namespaces without a name: held open by a file, gone with the processes that hold them.
//!
//! A socket belongs for ever to the namespace in which it was created, a process to that of the
//! thread that started it, and a TUN device to that of the thread that opened it. So everything here
//! happens in threads that have entered the namespace and end there; the caller's never moves.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use super::LabError;
use crate::rtnetlink::{link_up, request};

/// Settings of each namespace; they vanish with it.
///
/// A primary address that goes does not take the others along; buffers as large as the larger
/// presets' delay times rate.
const SYSCTLS: [(&str, &str); 4] = [
    ("net/ipv4/conf/all/promote_secondaries", "1"),
    ("net/ipv4/conf/default/promote_secondaries", "1"),
    ("net/ipv4/tcp_rmem", "4096 131072 67108864"),
    ("net/ipv4/tcp_wmem", "4096 131072 67108864"),
];

/// Settings that a kernel without IPv6, or a user namespace, may refuse: what needs IPv6 then fails
/// where it is asked for.
///
/// IPv6 addresses are good at once and only those we set exist; an unprivileged `ping` works.
const OPTIONAL_SYSCTLS: [(&str, &str); 6] = [
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
];

/// Interface index of `lo` in every namespace.
const LOOPBACK: u32 = 1;

/// A network namespace of our own.
#[derive(Debug)]
pub(super) struct Namespace {
    file: File,
}

impl Namespace {
    /// A new namespace with loopback up, and what `furnish` made inside it.
    ///
    /// # Errors
    /// Not permitted (root or CAP_SYS_ADMIN is needed), or `furnish` fails.
    pub(super) fn create<T: Send>(
        furnish: impl FnOnce() -> Result<T, LabError> + Send,
    ) -> Result<(Namespace, T), LabError> {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(LabError::act("making a namespace"))?;
            let file = current().map_err(LabError::act("opening the new namespace"))?;
            request(&link_up(LOOPBACK)).map_err(LabError::act("bringing loopback up"))?;
            SYSCTLS.iter().try_for_each(|(name, value)| set(name, value))?;
            for (name, value) in OPTIONAL_SYSCTLS {
                let _ = set(name, value);
            }
            Ok((Namespace { file }, furnish()?))
        })
    }

    /// Runs `act` in a thread inside the namespace and waits for it. A panic goes on here.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub(super) fn enter<T: Send>(&self, act: impl FnOnce() -> T + Send) -> io::Result<T> {
        in_thread(|| self.join().map(|()| act()))
    }

    /// Moves the calling thread into the namespace, for good.
    ///
    /// # Errors
    /// Not permitted.
    pub(super) fn join(&self) -> io::Result<()> {
        Ok(setns(&self.file, CloneFlags::CLONE_NEWNET)?)
    }

    /// Device and inode number, which tell namespaces apart while they are held.
    pub(super) fn id(&self) -> io::Result<(u64, u64)> {
        self.file.metadata().map(|data| (data.dev(), data.ino()))
    }

    /// The same namespace, held once more.
    ///
    /// # Errors
    /// Out of file descriptors.
    pub(super) fn try_clone(&self) -> io::Result<Namespace> {
        self.file.try_clone().map(|file| Namespace { file })
    }
}

/// Sets a sysctl of the calling thread's namespace.
///
/// # Errors
/// No such setting, or not permitted.
pub(super) fn set(name: &str, value: &str) -> Result<(), LabError> {
    let act = LabError::act(&format!("setting {name}"));
    fs::write(Path::new("/proc/sys").join(name), value).map_err(act)
}

/// The calling thread's namespace.
fn current() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

fn in_thread<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(act).join().unwrap_or_else(|panic| resume_unwind(panic)))
}
