//! Measures the path MTU to a STUN server: the edge of [`MtuProbe`].
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use super::sockets::open_in_range;
use super::{UnderlayConfig, probing};
use crate::path::{LocalId, MtuProbe};
use crate::time::now;

/// The largest IP packet, bytes, that reaches the STUN server and is answered: at most 1500, rounded down to four. `None`
/// if nothing was answered. Asks from one of `ports`, if given. Takes 3 s at most.
///
/// # Errors
/// When no socket can be opened.
pub async fn probe_path_mtu(
    server: SocketAddr,
    ports: Option<RangeInclusive<u16>>,
) -> io::Result<Option<u16>> {
    // quinn-udp has set IP_PMTUDISC_PROBE: never fragment, and never mind what the kernel has learnt (ip(7)).
    let config = UnderlayConfig { ports, ..UnderlayConfig::default() };
    let socket = open_in_range(LocalId(u16::MAX), server.is_ipv6(), None, &config)?;
    socket.io.writable().await?;
    let mut probe = MtuProbe::new(now(), server, rand::random());
    probing::run(&socket, &mut probe, |_| {}).await;
    Ok(probe.mtu())
}
