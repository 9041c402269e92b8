//! The process's UDP sockets: one per family for everything, and the fixed ones of a managed listener.
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use quinn::udp::UdpSocketState;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::{UnderlayConfig, marking};
use crate::path::LocalId;

/// A UDP socket with what the kernel can do for it: GSO, GRO, ECN, no fragmentation (Linux 4.18, 5.0).
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) id: LocalId,
    pub(super) io: UdpSocket,
    pub(super) state: UdpSocketState,
    pub(super) port: u16,
    pub(super) ipv6: bool,
    /// The listener of a managed network.
    pub(super) managed: bool,
    /// Code point of what [`Self::transmit`] sends, unless it is told another.
    pub(super) dscp: Option<u8>,
}

/// Kernel buffers asked for. 4 MiB hold 10 ms of 3 Gbit/s while the receiving task waits for its turn; the kernel grants
/// what `net.core.rmem_max` allows.
const BUFFER: usize = 4 * 1024 * 1024;

impl Bound {
    /// Binds the wildcard address of a family. `port` 0 lets the kernel choose.
    pub(super) fn open(id: LocalId, ipv6: bool, port: u16, dscp: Option<u8>) -> io::Result<Self> {
        let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        if ipv6 {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        // Smaller buffers lose packets under load, which is no reason not to start.
        let _ = socket.set_recv_buffer_size(BUFFER);
        let _ = socket.set_send_buffer_size(BUFFER);
        let any: SocketAddr = if ipv6 {
            (Ipv6Addr::UNSPECIFIED, port).into()
        } else {
            (Ipv4Addr::UNSPECIFIED, port).into()
        };
        socket.bind(&any.into())?;
        let io = UdpSocket::from_std(socket.into())?;
        let state = UdpSocketState::new((&io).into())?;
        if let Some(dscp) = dscp {
            mark(&io, ipv6, dscp);
        }
        let port = io.local_addr()?.port();
        Ok(Self { id, io, state, port, ipv6, managed: false, dscp })
    }

    /// Sends one datagram if the kernel takes it now: everything sent this way is repeated by its protocol.
    pub(super) fn send(&self, datagram: &[u8], to: SocketAddr) {
        let sent = self.io.try_send_to(datagram, to);
        if let Err(error) = sent {
            tracing::trace!(%to, %error, "a datagram was not sent");
        }
    }

    /// [`UdpSocketState::send`] when the socket is writable; `dscp`: the session's own code point. What cannot be sent
    /// marked is sent unmarked.
    pub(super) fn transmit(
        &self,
        transmit: &quinn::udp::Transmit<'_>,
        dscp: Option<u8>,
    ) -> io::Result<()> {
        self.io.try_io(Interest::WRITABLE, || {
            match dscp.or(self.dscp).map(|dscp| marking::send(&self.io, transmit, dscp)) {
                Some(Ok(())) => Ok(()),
                Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
                Some(Err(_)) | None => self.state.send((&self.io).into(), transmit),
            }
        })
    }
}

/// Marks packets with a DSCP (RFC 2474); the two ECN bits below stay free.
fn mark(socket: &UdpSocket, ipv6: bool, dscp: u8) {
    let (socket, class) = (SockRef::from(socket), u32::from(dscp & 0x3F) << 2);
    let marked = if ipv6 { socket.set_tclass_v6(class) } else { socket.set_tos_v4(class) };
    if let Err(error) = marked {
        tracing::warn!(%error, dscp, "packets cannot be marked");
    }
}

/// All sockets, numbered by their place.
///
/// # Errors
/// When no family can be bound, or the managed port is taken.
pub(super) fn open_all(config: &UnderlayConfig) -> io::Result<Vec<Bound>> {
    let mut sockets = Vec::new();
    let mut first_error = None;
    let mut port = None;
    for ipv6 in families(config) {
        match open_in_range(next_id(&sockets), ipv6, port, config) {
            Ok(socket) => {
                port = Some(socket.port);
                sockets.push(socket);
            }
            Err(error) => drop(first_error.get_or_insert(error)),
        }
    }
    if sockets.is_empty() {
        return Err(first_error.unwrap_or_else(|| io::ErrorKind::Unsupported.into()));
    }
    let Some(port) = config.managed_port else { return Ok(sockets) };
    let mut bound = 0;
    for ipv6 in families(config) {
        match Bound::open(next_id(&sockets), ipv6, port, config.dscp) {
            Ok(socket) => {
                sockets.push(Bound { managed: true, ..socket });
                bound += 1;
            }
            Err(error) if ipv6 && bound > 0 => tracing::info!(%error, "no managed port on IPv6"),
            Err(error) => return Err(error),
        }
    }
    Ok(sockets)
}

fn families(config: &UnderlayConfig) -> impl Iterator<Item = bool> + use<> {
    let ipv6 = config.ipv6;
    [false, true].into_iter().filter(move |family| ipv6 || !family)
}

fn next_id(sockets: &[Bound]) -> LocalId {
    LocalId(u16::try_from(sockets.len()).unwrap_or(u16::MAX))
}

/// A port in the configured range, from a random place on; the other family's port is tried first, so that one firewall
/// rule serves both.
pub(super) fn open_in_range(
    id: LocalId,
    ipv6: bool,
    preferred: Option<u16>,
    config: &UnderlayConfig,
) -> io::Result<Bound> {
    let open = |port| Bound::open(id, ipv6, port, config.dscp);
    if let Some(socket) = preferred.and_then(|port| open(port).ok()) {
        return Ok(socket);
    }
    let Some(range) = &config.ports else { return open(0) };
    let mut result = Err(io::Error::new(io::ErrorKind::InvalidInput, "the port range is empty"));
    for port in rotated(range.clone()) {
        result = open(port);
        if result.is_ok() {
            break;
        }
    }
    result
}

/// A socket of one family on one of `ports`, or on any, as sessions have it: for tests of the network.
///
/// # Errors
/// When none can be bound.
pub fn open_udp(ipv6: bool, ports: Option<RangeInclusive<u16>>) -> io::Result<UdpSocket> {
    let config = UnderlayConfig { ports, ..UnderlayConfig::default() };
    open_in_range(LocalId(u16::MAX), ipv6, None, &config).map(|socket| socket.io)
}

fn rotated(range: RangeInclusive<u16>) -> impl Iterator<Item = u16> {
    let count = range.len();
    let skip = if count == 0 { 0 } else { rand::random_range(0..count) };
    range.clone().skip(skip).chain(range.take(skip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ports_stay_in_their_range() {
        let taken = Bound::open(LocalId(0), false, 0, None).unwrap();
        let range = taken.port..=taken.port.saturating_add(20);
        let config = UnderlayConfig { ports: Some(range.clone()), ..UnderlayConfig::default() };
        for socket in open_all(&config).unwrap() {
            assert!(range.contains(&socket.port) && (socket.ipv6 || socket.port != taken.port));
        }
        let only = UnderlayConfig {
            ports: Some(taken.port..=taken.port),
            ipv6: false,
            ..UnderlayConfig::default()
        };
        assert!(open_all(&only).is_err(), "a taken range is an error, not another port");
    }

    #[tokio::test]
    async fn a_taken_managed_port_is_an_error() {
        let taken = Bound::open(LocalId(0), false, 0, None).unwrap();
        let config = UnderlayConfig {
            managed_port: Some(taken.port),
            ipv6: false,
            ..UnderlayConfig::default()
        };
        assert_eq!(open_all(&config).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn every_port_of_a_range_is_tried_once() {
        let mut ports: Vec<_> = rotated(10..=20).collect();
        ports.sort_unstable();
        assert_eq!(ports, (10..=20).collect::<Vec<_>>());
    }
}
