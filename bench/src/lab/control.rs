//! Changing a lab from another process: a Unix socket that every host and the outside reach.
//!
//! Its name is abstract (unix(7)), so nothing is left in the file system whatever happens. Such names
//! belong to a network namespace, so there is a listener of the same name in each. A request and its
//! reply are a line of JSON each. Only the lab's own user, and root, are heard.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::process::getuid;
use serde::{Deserialize, Serialize};

use super::{Lab, LabError, Status};

/// The environment variable with the socket's name.
pub const VARIABLE: &str = "SWITCHBACK_LAB";

/// Longest request or reply: the status of the largest topology with thousands of mappings.
const LINE_BYTES_MAX: u64 = 16 << 20;

/// A requester that says nothing does not keep others waiting for longer.
const PATIENCE: Duration = Duration::from_secs(1);

/// What can be asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Changes a link or router by its name; see [`apply`].
    Set {
        /// The link or router.
        name: String,
        /// What to change, as in `loss=5%` or `udp=drop`.
        settings: String,
    },
    /// Exchanges a host's address.
    Readdress {
        /// The host.
        host: String,
        /// As in `192.168.1.2/24`.
        old: String,
        /// As in `192.168.1.3/24`.
        new: String,
    },
    /// Settings and counters.
    Status,
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// It is changed.
    Done,
    /// Settings and counters.
    Status(Box<Status>),
    /// It is not, and why.
    Refused(String),
}

/// The listeners of a lab.
#[derive(Debug)]
pub struct Control {
    name: String,
    listeners: Vec<UnixListener>,
    end: OwnedFd,
}

impl Control {
    /// Listens, in the calling thread's namespace and in every host.
    ///
    /// # Errors
    /// No socket.
    pub fn open(lab: &Lab) -> Result<Control, LabError> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let nth = LABS.fetch_add(1, Ordering::Relaxed);
        let name = format!("switchback-lab-{}-{nth}", std::process::id());
        let failed = LabError::act("the control socket");
        let mut listeners = vec![listen(&name).map_err(&failed)?];
        for host in &lab.topology().hosts {
            let listener = lab.find_host(&host.name)?.enter(|| listen(&name));
            listeners.push(listener.map_err(&failed)?.map_err(&failed)?);
        }
        let end = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
        Ok(Control { name, listeners, end })
    }

    /// What [`VARIABLE`] must hold for [`ask`] to find this lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Answers requests until [`Control::end`].
    ///
    /// # Errors
    /// Waiting for them fails.
    pub fn serve(&self, lab: &Lab) -> io::Result<()> {
        loop {
            let fds = self.listeners.iter().map(AsFd::as_fd).chain([self.end.as_fd()]);
            let mut polled: Vec<_> =
                fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
            match poll(&mut polled, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            if polled.last().is_some_and(|end| !end.revents().is_empty()) {
                return Ok(());
            }
            let called = self.listeners.iter().zip(&polled);
            for (listener, _) in called.filter(|(_, polled)| !polled.revents().is_empty()) {
                // One who does not speak properly gets no answer; the lab goes on.
                let _ = listener.accept().and_then(|(stream, _)| answer(&stream, lab));
            }
        }
    }

    /// Makes [`Control::serve`] return.
    pub fn end(&self) {
        // It cannot be full: this is all that is ever written.
        let _ = rustix::io::write(&self.end, &1_u64.to_ne_bytes());
    }
}

/// Asks the lab whose control socket has this name.
///
/// # Errors
/// There is no such lab, or it does not answer.
pub fn ask(name: &str, request: &Request) -> Result<Reply, LabError> {
    let failed = |error: io::Error| LabError {
        what: format!("lab {name}"),
        why: format!("{error} (is it running, in this or its hosts' network?)"),
    };
    let exchange = || {
        let stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?;
        write_line(&stream, request)?;
        read_line(&stream)
    };
    exchange().map_err(failed)
}

/// Changes a link (as [`super::LinkHandle::set`]) or a router: `rebind` or `rebind=ADDRESS`, `udp=`,
/// `tcp=` and `blackhole=` (as [`super::NatHandle::block`]), anything else as
/// [`super::NatHandle::set`]. Link and router names do not overlap in the named topologies; a link
/// goes first.
///
/// # Errors
/// No such link or router, or settings it does not have.
pub fn apply(lab: &Lab, name: &str, settings: &str) -> Result<(), LabError> {
    if let Ok(link) = lab.find_link(name) {
        return link.set(settings);
    }
    let nat = lab.find_nat(name).map_err(|_| unknown(lab, name))?;
    let key_of = |item: &str| item.split('=').next().unwrap_or_default().trim().to_owned();
    let is_policy = |item: &str| ["udp", "tcp", "blackhole"].contains(&key_of(item).as_str());
    let (rebinds, rest): (Vec<_>, Vec<_>) =
        settings.split(',').partition(|item| key_of(item) == "rebind");
    let (policy, behaviour): (Vec<_>, Vec<_>) = rest.into_iter().partition(|item| is_policy(item));
    let address = |item: &str| match item.split_once('=') {
        Some((_, address)) => address.parse::<Ipv4Addr>().map(Some),
        None => Ok(None),
    };
    let rebinds: Result<Vec<_>, _> = rebinds.into_iter().map(address).collect();
    let rebinds = rebinds.map_err(LabError::act("rebind"))?;
    if !policy.is_empty() {
        nat.block(&policy.join(","))?;
    }
    if !behaviour.is_empty() {
        nat.set(&behaviour.join(","))?;
    }
    rebinds.into_iter().try_for_each(|address| nat.rebind(address))
}

fn unknown(lab: &Lab, name: &str) -> LabError {
    let topology = lab.topology();
    let links = topology.links.iter().map(|link| link.name.as_str());
    let routers = topology.routers.iter().map(|router| router.name.as_str());
    let (links, routers): (Vec<_>, Vec<_>) = (links.collect(), routers.collect());
    let (links, routers) = (links.join(", "), routers.join(", "));
    LabError::topology(&format!("{name:?} is none of the links {links} or the routers {routers}"))
}

fn listen(name: &str) -> io::Result<UnixListener> {
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    // Whoever calls may be gone before it is accepted.
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn answer(stream: &UnixStream, lab: &Lab) -> io::Result<()> {
    let caller = socket_peercred(stream)?.uid;
    if caller != getuid() && !caller.is_root() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let done = match read_line(stream)? {
        Request::Set { name, settings } => apply(lab, &name, &settings).map(|()| Reply::Done),
        Request::Readdress { host, old, new } => {
            lab.find_host(&host).and_then(|host| host.readdress(&old, &new)).map(|()| Reply::Done)
        }
        Request::Status => Ok(Reply::Status(Box::new(lab.status()))),
    };
    write_line(stream, &done.unwrap_or_else(|error| Reply::Refused(error.to_string())))
}

fn write_line(mut stream: &UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn read_line<T: for<'de> Deserialize<'de>>(stream: &UnixStream) -> io::Result<T> {
    let mut line = String::new();
    BufReader::new(stream).take(LINE_BYTES_MAX).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}
