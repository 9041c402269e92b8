//! One TCP connection by name or address, under a deadline, with the options every connection of ours has.
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use socket2::{SockRef, TcpKeepalive};
use switchback_engine::Tuning;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::{Instant, sleep_until, timeout};

/// Idle time before the kernel probes: NAT and firewall entries live 30 s or longer.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(20);
/// Between probes of a silent peer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Unacknowledged data or probes for this long end a connection: four probes, or five retransmissions at 300 ms RTT.
const USER_TIMEOUT: Duration = Duration::from_secs(20);
/// Two writing rounds of the session layer: one leaves while the next is made.
const UNSENT_BYTES: u32 = 128 * 1024;
/// A name's next address is tried after this long, RFC 8305 section 8 "Connection Attempt Delay".
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Addresses of one name tried at most: more only adds load to a service that is down.
const ADDRESSES_MAX: usize = 8;

/// Largest segment, both ways: with its headers the same packet as QUIC's smallest, 1200 bytes of UDP (RFC 9000 section 14).
/// TCP is what sessions fall back to, so it must pass wherever UDP does: of a path that swallows larger packets without a
/// word (RFC 2923 section 2.1) Linux learns only after many timeouts, unless an administrator has set tcp_mtu_probing.
const SEGMENT: u32 = 1188;

/// Dials `HOST:PORT`, racing the name's addresses (RFC 8305) in the resolver's order.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] once `within` is over; the resolver's error; else the last address's error.
pub async fn connect(host_port: &str, within: Duration) -> io::Result<TcpStream> {
    connect_tuned(host_port, within, &Tuning::default()).await
}

/// Like [`connect`], with options of one's own, set before the connection is made.
///
/// # Errors
/// As [`connect`]; also what the kernel refuses of `tuning`.
pub async fn connect_tuned(
    host_port: &str,
    within: Duration,
    tuning: &Tuning,
) -> io::Result<TcpStream> {
    timeout(within, async {
        let addresses: Vec<_> = lookup_host(host_port).await?.take(ADDRESSES_MAX).collect();
        race(&addresses, tuning).await
    })
    .await
    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Sets TCP_NODELAY and keepalive: small writes leave at once, a peer that vanished while idle is noticed.
///
/// # Errors
/// Those of setsockopt(2).
pub fn tune(stream: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive)
}

/// Sets TCP_USER_TIMEOUT (RFC 5482; Linux only) for connections whose peer always reads: legs and links.
///
/// Not for an application's socket: Linux also ends a connection whose peer keeps its window shut for this long, and
/// an application may pause as long as it likes.
///
/// # Errors
/// Those of setsockopt(2).
pub fn give_up_on_silence(stream: &TcpStream) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    SockRef::from(stream).set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    #[cfg(not(target_os = "linux"))]
    let _ = (stream, USER_TIMEOUT);
    Ok(())
}

/// Keeps the kernel's queue of unsent bytes short (TCP_NOTSENT_LOWAT, Linux 3.12): what waits, waits in the session layer,
/// where small frames overtake bulk. Bytes in flight are not limited.
///
/// # Errors
/// Those of setsockopt(2).
pub fn queue_little(stream: &TcpStream) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES)?;
    #[cfg(not(target_os = "linux"))]
    let _ = (stream, UNSENT_BYTES);
    Ok(())
}

async fn race(addresses: &[SocketAddr], tuning: &Tuning) -> io::Result<TcpStream> {
    let mut waiting = addresses.iter();
    let mut running = FuturesUnordered::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut next_at = Instant::now();
    loop {
        if running.is_empty() && waiting.len() == 0 {
            return Err(last);
        }
        tokio::select! {
            Some(result) = running.next() => match result {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    last = error;
                    next_at = Instant::now();
                }
            },
            () = sleep_until(next_at), if waiting.len() > 0 => {
                running.extend(waiting.next().map(|address| dial(*address, tuning)));
                next_at = Instant::now() + ATTEMPT_DELAY;
            }
        }
    }
}

async fn dial(address: SocketAddr, tuning: &Tuning) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    tune(&socket)?;
    if !address.ip().is_loopback() {
        SockRef::from(&socket).set_tcp_mss(SEGMENT)?;
    }
    tuning.apply_to_connection(&socket).map_err(io::Error::other)?;
    socket.connect(address).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_second_address_is_reached_when_the_first_refuses() {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap();
        let tuning: Tuning = "keepalive=5s/2s/4,dscp=ef".parse().unwrap();
        let stream = race(&[gone, here], &tuning).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), here);
        assert!(stream.nodelay().unwrap());
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(5));
        assert_eq!(socket.tos_v4().unwrap(), 46 << 2);
    }

    #[tokio::test]
    async fn a_refusal_is_told_from_a_missing_name() {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = connect(&gone.to_string(), Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(
            race(&[], &Tuning::default()).await.unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
