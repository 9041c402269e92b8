//! The generator's own sockets: TCP_NODELAY and the same congestion control for every peer.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use super::Flow;
use crate::measure::netns::{Network, Place};

/// Longest wait for a connection or a greeting, on loopback or not.
pub(crate) const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Connections waiting to be accepted: more than any burst the bench makes.
pub(super) const BACKLOG: i32 = 4096;

/// Makes sockets with the congestion control of the run, each where it belongs in its network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dialer {
    congestion: Option<&'static str>,
    network: Network,
}

impl Dialer {
    /// Sockets with this congestion control, whatever the system's default is.
    pub(crate) fn with_congestion(congestion: &'static str) -> Dialer {
        Dialer { congestion: Some(congestion), network: Network::default() }
    }

    /// Sockets with the system's default congestion control.
    pub(crate) fn system_default() -> Dialer {
        Dialer { congestion: None, network: Network::default() }
    }

    /// The same sockets in `network`.
    pub(crate) fn on(self, network: Network) -> Dialer {
        Dialer { network, ..self }
    }

    /// Connects to `addr` from the client's side, within [`CONNECT_WITHIN`].
    ///
    /// # Errors
    /// Refused, out of time, or the congestion control is not available.
    pub(crate) fn connect(&self, addr: SocketAddr) -> Result<TcpStream> {
        self.connect_from(Place::Client, addr)
    }

    /// Connects to `addr` from the server's side: an agent's leg.
    ///
    /// # Errors
    /// As [`Dialer::connect`].
    pub(crate) fn connect_far(&self, addr: SocketAddr) -> Result<TcpStream> {
        self.connect_from(Place::Server, addr)
    }

    /// Listens on a free port at the server's side; accepted sockets inherit the congestion
    /// control.
    ///
    /// # Errors
    /// No port, or the congestion control is not available.
    pub(crate) fn listen(&self) -> Result<TcpListener> {
        let addr = SocketAddr::from((self.network.ip(Place::Server), 0));
        let socket = self.network.at(Place::Server, || self.socket(addr))?;
        socket.bind(&addr.into()).with_context(|| format!("binding a port of {}", addr.ip()))?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    }

    /// A flow through nothing but the kernel.
    ///
    /// # Errors
    /// As [`Dialer::connect`] and [`Dialer::listen`].
    pub(crate) fn direct_flow(&self) -> Result<Flow> {
        let listener = self.listen()?;
        let near = self.connect(listener.local_addr()?)?;
        let far = accept(&listener)?;
        Ok(Flow { near, far })
    }

    /// Begins to connect to `addr` from the client's side: the socket is non-blocking, and what is
    /// written is sent once it is connected.
    ///
    /// # Errors
    /// No free port, or the congestion control is not available.
    pub(crate) fn begin(&self, addr: SocketAddr) -> Result<TcpStream> {
        self.begin_from(Place::Client, addr)
    }

    /// Begins to connect to `addr` from the server's side: an agent's leg.
    ///
    /// # Errors
    /// As [`Dialer::begin`].
    pub(crate) fn begin_far(&self, addr: SocketAddr) -> Result<TcpStream> {
        self.begin_from(Place::Server, addr)
    }

    fn begin_from(&self, place: Place, addr: SocketAddr) -> Result<TcpStream> {
        let socket = self.network.at(place, || self.socket(addr))?;
        socket.set_nonblocking(true)?;
        match socket.connect(&addr.into()) {
            Err(error) if !is_under_way(&error) => {
                Err(error).with_context(|| format!("connecting to {addr}"))
            }
            _ => Ok(socket.into()),
        }
    }

    fn connect_from(&self, place: Place, addr: SocketAddr) -> Result<TcpStream> {
        let socket = self.network.at(place, || self.socket(addr))?;
        let connected = socket.connect_timeout(&addr.into(), CONNECT_WITHIN);
        connected.with_context(|| format!("connecting to {addr}"))?;
        Ok(socket.into())
    }

    fn socket(&self, addr: SocketAddr) -> Result<Socket> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        if let Some(name) = self.congestion {
            socket
                .set_tcp_congestion(name.as_bytes())
                .with_context(|| format!("setting congestion control {name}"))?;
        }
        Ok(socket)
    }
}

fn is_under_way(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error())
}

/// Accepts one connection, with TCP_NODELAY, within [`CONNECT_WITHIN`].
///
/// # Errors
/// Nobody came in time.
pub(crate) fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let mut ready = [rustix::event::PollFd::new(listener, rustix::event::PollFlags::IN)];
    let timeout = rustix::event::Timespec { tv_sec: CONNECT_WITHIN.as_secs() as i64, tv_nsec: 0 };
    if rustix::event::poll(&mut ready, Some(&timeout)).map_err(io::Error::from)? == 0 {
        anyhow::bail!("no connection arrived within {CONNECT_WITHIN:?}");
    }
    let (stream, _) = listener.accept().context("accepting a flow")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_have_nodelay_and_the_wanted_congestion_control() {
        let flow = Dialer::with_congestion("reno").direct_flow().unwrap();
        for end in [&flow.near, &flow.far] {
            assert!(end.nodelay().unwrap());
            let name = socket2::SockRef::from(end).tcp_congestion().unwrap();
            assert!(name.starts_with(b"reno"), "{}", String::from_utf8_lossy(&name));
        }
    }

    #[test]
    fn an_unknown_congestion_control_is_an_error() {
        let error = Dialer::with_congestion("no-such-thing").listen().unwrap_err();
        assert!(format!("{error:#}").contains("no-such-thing"));
    }
}
