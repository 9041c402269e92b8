//! Measures the path MTU to a STUN server: the edge of [`MtuProbe`].
use std::io;
use std::net::SocketAddr;

use super::probing;
use super::sockets::Bound;
use crate::path::{LocalId, MtuProbe};
use crate::time::now;

/// The largest IP packet, bytes, that reaches the STUN server and is answered: at most 1500, rounded down to four. `None`
/// if nothing was answered. Takes 3 s at most.
///
/// # Errors
/// When no socket can be opened.
pub async fn probe_path_mtu(server: SocketAddr) -> io::Result<Option<u16>> {
    // quinn-udp has set IP_PMTUDISC_PROBE: never fragment, and never mind what the kernel has learnt (ip(7)).
    let socket = Bound::open(LocalId(u16::MAX), server.is_ipv6(), 0, None)?;
    socket.io.writable().await?;
    let mut probe = MtuProbe::new(now(), server, rand::random());
    probing::run(&socket, &mut probe, |_| {}).await;
    Ok(probe.mtu())
}
