//! The machine's own addresses, and the moment they change.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::UnderlayConfig;
use super::sockets::Bound;
use crate::path::{Candidate, CandidateKind, LocalId};

/// Addresses offered: three interfaces with both families, and room for containers' bridges.
const ADDRESSES_MAX: usize = 16;

/// Our candidates on our sockets, and the socket of each.
pub(super) fn host_candidates(
    config: &UnderlayConfig,
    sockets: &[Bound],
) -> Vec<(Candidate, LocalId)> {
    let addresses = addresses(config);
    let of_socket = |socket: &Bound| {
        let kind = if socket.managed { CandidateKind::Managed } else { CandidateKind::Host };
        let (id, port, ipv6) = (socket.id, socket.port, socket.ipv6);
        let fitting = addresses.iter().filter(move |ip| ip.is_ipv6() == ipv6);
        fitting
            .map(move |ip| (Candidate::new(kind, SocketAddr::new(*ip, port)), id))
            .collect::<Vec<_>>()
    };
    sockets.iter().flat_map(of_socket).collect()
}

fn addresses(config: &UnderlayConfig) -> Vec<IpAddr> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_else(|error| {
        tracing::warn!(%error, "the machine's addresses cannot be read");
        Vec::new()
    });
    let mut addresses: Vec<_> = interfaces
        .iter()
        .filter(|interface| !interface.is_link_local())
        .filter(|interface| config.loopback || !interface.is_loopback())
        .map(if_addrs::Interface::ip)
        .filter(|ip| config.networks.allows(*ip))
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(ADDRESSES_MAX);
    addresses
}

/// The address that packets to `remote` leave from; `None` without a route. Connecting a UDP socket sends nothing: it asks for
/// a route.
#[must_use]
pub fn source_to(remote: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(remote).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Between two looks where the kernel does not tell of changes.
const LOOK: Duration = Duration::from_secs(3);
/// A change comes as a burst of messages: wait until they are all there.
const SETTLE: Duration = Duration::from_millis(20);

/// Tells when addresses or routes change.
pub(super) struct Changes {
    #[cfg(target_os = "linux")]
    watch: Option<netlink::Watch>,
    /// When a burst that has begun is over, or the time to look comes. Kept here, as whoever waits may be called away.
    due: Option<Instant>,
}

impl Changes {
    pub(super) fn new() -> Self {
        #[cfg(target_os = "linux")]
        match netlink::Watch::new() {
            Ok(watch) => Self { watch: Some(watch), due: None },
            Err(error) => {
                tracing::info!(%error, "no news of network changes; looking every 3 s");
                Self { watch: None, due: None }
            }
        }
        #[cfg(not(target_os = "linux"))]
        Self { due: None }
    }

    /// Waits for a change, or for the time to look; true when something surely changed. Dropped early, it forgets nothing.
    pub(super) async fn next(&mut self) -> bool {
        #[cfg(target_os = "linux")]
        while let Some(watch) = &self.watch {
            tokio::select! {
                message = watch.next() => match message {
                    Ok(()) => drop(self.due.get_or_insert_with(|| Instant::now() + SETTLE)),
                    Err(_) => self.watch = None,
                },
                () = until(self.due) => {
                    self.due = None;
                    return true;
                }
            }
        }
        let due = *self.due.get_or_insert_with(|| Instant::now() + LOOK);
        sleep_until(due).await;
        self.due = None;
        false
    }
}

#[cfg(target_os = "linux")]
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(target_os = "linux")]
mod netlink {
    use std::io;

    use rustix::net::netlink::SocketAddrNetlink;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    use tokio::net::UnixDatagram;

    /// RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR (rtnetlink(7)). Not IPv6 routes: the kernel
    /// announces those of every neighbour.
    const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100;

    /// Protocol 0.
    const NETLINK_ROUTE: Option<rustix::net::Protocol> = None;

    /// A datagram socket is a datagram socket to tokio, whatever its family.
    pub(super) struct Watch(UnixDatagram);

    impl Watch {
        pub(super) fn new() -> io::Result<Self> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(
                AddressFamily::NETLINK,
                SocketType::DGRAM,
                flags,
                NETLINK_ROUTE,
            )?;
            rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
            Ok(Self(UnixDatagram::from_std(socket.into())?))
        }

        /// Waits for a message and throws it away: what it says is read anew.
        pub(super) async fn next(&self) -> io::Result<()> {
            match self.0.recv(&mut [0; 4096]).await {
                // Messages were lost: something changed all the same.
                Err(error) if error.raw_os_error() == Some(NO_BUFFERS) => Ok(()),
                read => read.map(|_| ()),
            }
        }
    }

    const NO_BUFFERS: i32 = rustix::io::Errno::NOBUFS.raw_os_error();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::underlay::sockets::open_all;

    #[cfg(target_os = "linux")]
    #[tokio::test(start_paused = true)]
    async fn a_change_is_told_once_even_if_whoever_waits_is_called_away() {
        let mut changes = Changes::new();
        // As after a message of the kernel's.
        changes.due = Some(Instant::now() + SETTLE);
        for _ in 0..3 {
            let called_away = tokio::time::timeout(SETTLE / 10, changes.next()).await;
            assert!(called_away.is_err());
        }
        assert_eq!(tokio::time::timeout(SETTLE, changes.next()).await, Ok(true));
        assert_eq!(changes.due, None);
    }

    #[tokio::test(start_paused = true)]
    async fn without_word_from_the_kernel_the_time_to_look_comes_even_if_others_come_first() {
        let mut changes = Changes::new();
        #[cfg(target_os = "linux")]
        {
            changes.watch = None;
        }
        let begun = Instant::now();
        while tokio::time::timeout(LOOK / 7, changes.next()).await.is_err() {}
        assert_eq!(begun.elapsed(), LOOK);
    }

    #[tokio::test]
    async fn loopback_is_offered_only_when_asked_for() {
        let mut config = UnderlayConfig::default();
        let sockets = open_all(&config).unwrap();
        let loopback = |config: &UnderlayConfig| {
            let mut found = host_candidates(config, &sockets).into_iter();
            found.any(|(candidate, _)| candidate.address.ip().is_loopback())
        };
        assert!(!loopback(&config));
        config.loopback = true;
        assert!(loopback(&config));
        config.networks.deny = vec!["127.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()];
        assert!(!loopback(&config));
    }
}
