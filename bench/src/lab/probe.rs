//! What a NAT does, seen from its two sides: the lab's test of itself.
//!
//! Like a STUN client of RFC 5780, but with both ends in one hand: what the server's sockets see and
//! what reaches the client is observed, no protocol needed.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use super::nat::{Filtering, Mapping};
use super::{HostHandle, Lab};

/// The server's ports.
const PORTS: [u16; 2] = [3478, 3479];

/// How long a packet that is to arrive may take: links, and a machine that is busy with others.
const PATIENCE: Duration = Duration::from_secs(2);

/// What was observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behaviour {
    /// When the same inside endpoint is seen as another one.
    pub mapping: Mapping,
    /// Who may answer.
    pub filtering: Filtering,
    /// Which outside ports are seen.
    pub ports: Ports,
    /// Inside hosts reach each other by their outside endpoints.
    pub hairpin: bool,
}

/// Which outside ports are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// The inside ones.
    Kept,
    /// Each one more than the last.
    Sequential,
    /// No order.
    Scattered,
}

/// The server's four sockets: two addresses, two ports each.
struct Server {
    sockets: [UdpSocket; 4],
}

/// Observes what stands between `client` and `server`, which needs two IPv4 addresses. A packet that
/// has not arrived after `silence` counts as refused: more than the links' round trip.
///
/// # Errors
/// Sockets cannot be made, or even what was asked for does not arrive.
pub fn behaviour(
    lab: &Lab,
    client: &str,
    server: &str,
    silence: Duration,
) -> io::Result<Behaviour> {
    let (client, server) = (lab.host(client), Server::open(lab.host(server))?);
    let (mapping, ports) = server.mapping(client)?;
    Ok(Behaviour {
        mapping,
        filtering: server.filtering(client, mapping, silence)?,
        ports,
        hairpin: server.hairpin(client, silence)?,
    })
}

/// The endpoint that `server` (address, port) sees when `client` sends from `socket`: its mapping.
///
/// # Errors
/// The packet does not arrive within 2 s.
pub fn mapped_address(socket: &UdpSocket, server: &UdpSocket) -> io::Result<SocketAddr> {
    let marker = rand::random::<u64>().to_ne_bytes();
    socket.send_to(&marker, server.local_addr()?)?;
    receive(server, &marker, PATIENCE)?.ok_or_else(|| io::Error::from(io::ErrorKind::TimedOut))
}

/// A UDP socket of `host`, at `address`.
///
/// # Errors
/// As [`UdpSocket::bind`].
pub fn socket(host: HostHandle<'_>, address: impl Into<SocketAddr>) -> io::Result<UdpSocket> {
    let address = address.into();
    host.enter(|| UdpSocket::bind(address))?
}

/// One-way delays of `count` packets from one socket to another, `apart` from each other, sorted.
/// What is lost is missing.
///
/// # Errors
/// A socket fails.
pub fn delays(
    from: &UdpSocket,
    to: &UdpSocket,
    count: u32,
    apart: Duration,
) -> io::Result<Vec<Duration>> {
    let target = to.local_addr()?;
    to.set_read_timeout(Some(PATIENCE))?;
    let start = Instant::now();
    let mut delays = thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut delays = Vec::new();
            let mut stamp = [0; 8];
            while delays.len() < count as usize && to.recv(&mut stamp).is_ok() {
                let sent = Duration::from_nanos(u64::from_ne_bytes(stamp));
                delays.push(start.elapsed().saturating_sub(sent));
            }
            delays
        });
        for _ in 0..count {
            let now = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            from.send_to(&now.to_ne_bytes(), target)?;
            thread::sleep(apart);
        }
        receiver.join().map_err(|_| io::Error::other("the receiver panicked"))
    })?;
    delays.sort();
    Ok(delays)
}

impl Server {
    fn open(host: HostHandle<'_>) -> io::Result<Server> {
        let mut v4 = host.addresses().into_iter().filter(IpAddr::is_ipv4);
        let missing = || io::Error::other("the server needs two IPv4 addresses");
        let (a, b) = (v4.next().ok_or_else(missing)?, v4.next().ok_or_else(missing)?);
        let open = |ip, port| socket(host, (ip, port));
        let [first, second] = PORTS;
        Ok(Server {
            sockets: [open(a, first)?, open(a, second)?, open(b, first)?, open(b, second)?],
        })
    }

    fn mapping(&self, client: HostHandle<'_>) -> io::Result<(Mapping, Ports)> {
        let socket = any_port(client)?;
        let seen = self.sockets.iter().map(|server| mapped_address(&socket, server));
        let seen = seen.collect::<io::Result<Vec<_>>>()?;
        let untranslated = client.addresses().contains(&seen[0].ip());
        let mapping = match (seen[0] == seen[1], seen[2] == seen[3], seen[0] == seen[2]) {
            _ if untranslated => Mapping::None,
            (true, true, true) => Mapping::EndpointIndependent,
            (true, true, false) => Mapping::AddressDependent,
            _ => Mapping::AddressAndPortDependent,
        };
        Ok((mapping, self.ports(client)?))
    }

    fn ports(&self, client: HostHandle<'_>) -> io::Result<Ports> {
        let mut seen = Vec::new();
        let mut kept = true;
        for _ in 0..4 {
            let socket = any_port(client)?;
            let port = mapped_address(&socket, &self.sockets[0])?.port();
            kept &= port == socket.local_addr()?.port();
            seen.push(port);
        }
        let ascending = seen.windows(2).all(|pair| pair[1] == pair[0].wrapping_add(1));
        Ok(match (kept, ascending) {
            (true, _) => Ports::Kept,
            (false, true) => Ports::Sequential,
            (false, false) => Ports::Scattered,
        })
    }

    /// From the most to the least permissive; the first that arrives tells.
    fn filtering(
        &self,
        client: HostHandle<'_>,
        mapping: Mapping,
        silence: Duration,
    ) -> io::Result<Filtering> {
        let [asked, same_address, _, other_address] = &self.sockets;
        if mapping == Mapping::None {
            let fresh = any_port(client)?;
            let own = client.addresses().into_iter().find(IpAddr::is_ipv4);
            let own = own.ok_or_else(|| io::Error::other("the client needs an IPv4 address"))?;
            let at = SocketAddr::new(own, fresh.local_addr()?.port());
            if reaches(other_address, at, &fresh, silence)? {
                return Ok(Filtering::Open);
            }
        }
        let socket = any_port(client)?;
        let at = mapped_address(&socket, asked)?;
        if reaches(other_address, at, &socket, silence)? {
            return Ok(Filtering::EndpointIndependent);
        }
        if reaches(same_address, at, &socket, silence)? {
            return Ok(Filtering::AddressDependent);
        }
        if reaches(asked, at, &socket, PATIENCE)? {
            return Ok(Filtering::AddressAndPortDependent);
        }
        Err(io::Error::other("not even the answer of the one asked arrives"))
    }

    /// Both ends have sent to each other's outside endpoint, so no filter is in the way.
    fn hairpin(&self, client: HostHandle<'_>, silence: Duration) -> io::Result<bool> {
        let (one, other) = (any_port(client)?, any_port(client)?);
        let one_at = mapped_address(&one, &self.sockets[0])?;
        let other_at = mapped_address(&other, &self.sockets[0])?;
        // Where the mapping depends on the destination, the endpoint to answer to is another one,
        // which only the first packet reveals.
        let _ = reaches(&other, one_at, &one, silence)?;
        let marker = rand::random::<u64>().to_ne_bytes();
        one.send_to(&marker, other_at)?;
        receive(&other, &marker, silence).map(|from| from.is_some())
    }
}

fn any_port(host: HostHandle<'_>) -> io::Result<UdpSocket> {
    socket(host, (Ipv4Addr::UNSPECIFIED, 0))
}

/// Whether a packet from `from` to `at` reaches `to` within `silence`.
fn reaches(
    from: &UdpSocket,
    at: SocketAddr,
    to: &UdpSocket,
    silence: Duration,
) -> io::Result<bool> {
    let marker = rand::random::<u64>().to_ne_bytes();
    from.send_to(&marker, at)?;
    receive(to, &marker, silence).map(|from| from.is_some())
}

/// Where the packet `marker` came from; `None` when it has not come within `patience`.
fn receive(
    socket: &UdpSocket,
    marker: &[u8],
    patience: Duration,
) -> io::Result<Option<SocketAddr>> {
    let deadline = Instant::now() + patience;
    let mut buffer = [0; 64];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv_from(&mut buffer) {
            Ok((bytes, from)) if buffer[..bytes] == *marker => return Ok(Some(from)),
            Ok(_) => {}
            Err(error) if timed_out(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
