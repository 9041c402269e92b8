//! Where a run takes place: network namespaces of our own, with a known congestion control.
//!
//! The relay's own sockets take the namespace's default congestion control, and under BBR loopback
//! is 2 to 4 times slower and erratic. In a namespace of our own the default can be set without
//! touching the machine. Namespaces have no name: only this process and its children hold them, so
//! that nothing is left behind even after SIGKILL.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use clap::ValueEnum;
use nix::sched::{CloneFlags, unshare};

use super::veth::{self, Veth};
use switchback_bench::rtnetlink::{link_up, request};

/// Which network to use, as asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum NetworkMode {
    /// Private if the system permits it, else the host's with a warning
    #[default]
    Auto,
    /// Loopback of a private network namespace, or an error (needs root or CAP_SYS_ADMIN)
    Private,
    /// Client, relay and server in a namespace each, joined by veth pairs (needs root)
    Veth,
    /// The namespace the bench was started in, as it is
    Host,
}

/// The network a run takes place in.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Network {
    /// Loopback of the namespace the bench was started in.
    #[default]
    Host,
    /// Loopback of a namespace of our own.
    Private,
    /// Three namespaces; they last as long as the process.
    Veth(&'static Veth),
}

/// A party of the run. On loopback all are in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Near ends.
    Client,
    /// The peer's processes.
    Relay,
    /// Far ends.
    Server,
}

/// Reno: built into every kernel and, unlike cubic, always permitted in every namespace.
pub(crate) const CONGESTION: &str = "reno";

/// Settings of each of our namespaces; they vanish with it.
///
/// Reused TIME_WAIT sockets, few of them, and a wide port range keep tens of thousands of short
/// flows per second from running out of ports.
const SYSCTLS: [(&str, &str); 4] = [
    ("net/ipv4/tcp_congestion_control", CONGESTION),
    ("net/ipv4/tcp_tw_reuse", "1"),
    ("net/ipv4/tcp_max_tw_buckets", "2000"),
    ("net/ipv4/ip_local_port_range", "1100 65000"),
];

/// Interface index of `lo` in every namespace.
const LOOPBACK: u32 = 1;

/// Moves the calling process into a network of its own, as far as `mode` asks for and allows.
///
/// Must run before any thread is started: only threads started afterwards follow. With
/// [`NetworkMode::Veth`] they are in the client's namespace. Undone by the end of the process.
///
/// # Errors
/// With [`NetworkMode::Private`] and [`NetworkMode::Veth`], that it is not possible; otherwise only
/// if the half-made namespace is unusable.
pub(crate) fn enter(mode: NetworkMode) -> Result<Network> {
    match mode {
        NetworkMode::Host => Ok(Network::Host),
        NetworkMode::Auto if unshare(CloneFlags::CLONE_NEWNET).is_err() => Ok(Network::Host),
        NetworkMode::Auto => prepare().map(|()| Network::Private).context(TRY_HOST),
        NetworkMode::Private => {
            new_namespace().map(|()| Network::Private).context("no private network; needs root")
        }
        NetworkMode::Veth => {
            let veth = Veth::build().context("no veth network; needs root")?;
            // Once per process, and needed until its end.
            Ok(Network::Veth(Box::leak(Box::new(veth))))
        }
    }
}

const TRY_HOST: &str = "preparing the private namespace; try --network host";

/// Moves the calling thread into a new namespace with loopback up and our settings.
///
/// # Errors
/// Not permitted, or a setting is refused.
pub(super) fn new_namespace() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
    prepare()
}

fn prepare() -> Result<()> {
    request(&link_up(LOOPBACK)).context("bringing loopback up")?;
    SYSCTLS.iter().try_for_each(|(name, value)| set(name, value))
}

/// Sets a sysctl of the calling thread's namespace.
///
/// # Errors
/// No such setting, or not permitted.
pub(super) fn set(name: &str, value: &str) -> Result<()> {
    fs::write(format!("/proc/sys/{name}"), value).with_context(|| format!("setting {name}"))
}

impl Network {
    /// Where the run takes place, in words.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Network::Host => "loopback of the host's network namespace",
            Network::Private => "loopback of a private network namespace",
            Network::Veth(_) => "veth: client - relay - server, two hops",
        }
    }

    /// The address a party listens on; all parties reach it.
    pub(crate) fn ip(self, place: Place) -> IpAddr {
        IpAddr::V4(match (self, place) {
            (Network::Host | Network::Private, _) => Ipv4Addr::LOCALHOST,
            (Network::Veth(_), Place::Client) => veth::CLIENT,
            (Network::Veth(_), Place::Relay) => veth::RELAY,
            (Network::Veth(_), Place::Server) => veth::SERVER,
        })
    }

    /// Runs `act` in a party's namespace: what it opens or starts belongs there.
    ///
    /// # Errors
    /// `act` fails, or its namespace cannot be entered or left.
    pub(crate) fn at<T>(self, place: Place, act: impl FnOnce() -> Result<T>) -> Result<T> {
        match self {
            Network::Host | Network::Private => act(),
            Network::Veth(veth) => veth.at(place, act),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_namespace_has_our_congestion_control_and_leaves_the_others_alone() {
        let read = || fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let outside = read();
        let inside = std::thread::spawn(move || {
            enter(NetworkMode::Private).map(|network| (network, read()))
        });
        match inside.join().unwrap() {
            Ok((network, range)) => {
                assert!(matches!(network, Network::Private));
                assert_eq!(range, "1100\t65000\n");
            }
            Err(error) => eprintln!("skipped: {error:#}"),
        }
        assert_eq!(read(), outside);
    }
}
