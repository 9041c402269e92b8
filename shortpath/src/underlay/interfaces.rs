//! The machine's own addresses, and the moment they change.
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

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

/// Between two looks where the kernel does not tell of changes.
const LOOK: Duration = Duration::from_secs(3);
/// A change comes as a burst of messages: wait until they are all there.
const SETTLE: Duration = Duration::from_millis(20);

/// Tells when addresses or routes change.
pub(super) struct Changes(#[cfg(target_os = "linux")] Option<netlink::Watch>);

impl Changes {
    pub(super) fn new() -> Self {
        #[cfg(target_os = "linux")]
        match netlink::Watch::new() {
            Ok(watch) => Self(Some(watch)),
            Err(error) => {
                tracing::info!(%error, "no news of network changes; looking every 3 s");
                Self(None)
            }
        }
        #[cfg(not(target_os = "linux"))]
        Self()
    }

    /// Waits for a change, or for the time to look; true when something surely changed.
    pub(super) async fn next(&mut self) -> bool {
        #[cfg(target_os = "linux")]
        if let Some(watch) = &self.0 {
            if watch.next().await.is_ok() {
                tokio::time::sleep(SETTLE).await;
                return true;
            }
            self.0 = None;
        }
        tokio::time::sleep(LOOK).await;
        false
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
