//! The gateway's listening sockets.
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::StartError;
use crate::Tuning;
use crate::port::once_free;
use crate::ring::{self, defer_accept};

/// Binds `count` (at least 1) non-blocking TCP listeners to one address: one for each relay worker, so that the kernel
/// deals connections out (`SO_REUSEPORT`). Of port 0 the first makes a number, which the others take.
///
/// A port that anyone else listens on is refused, even with `SO_REUSEPORT`: the first socket is bound without it. `EADDRINUSE`
/// is retried for 2 seconds, in which the kernel tears down what a killed process had. Blocks that long.
///
/// # Errors
/// `bind(2)` and `listen(2)`: port in use, no permission for a port below 1024, no such address.
pub fn bind_listeners(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    once_free(|| bind_group(address, count.max(1)))
}

/// Sets a listener up for a worker. Accepted connections inherit its options as a leg needs them, so an accepted leg costs
/// no system call for them. Done at the gateway's start, because a listener may come from another process.
///
/// # Errors
/// `setsockopt(2)`: not a TCP socket, or an option of `tuning` that the kernel refuses.
pub(crate) fn prepare_listener(listener: &TcpListener, tuning: &Tuning) -> Result<(), StartError> {
    ring::prepare_listener(listener, tuning)?;
    Ok(defer_accept(listener, DEFER)?)
}

/// Connections that wait for accept: a burst of reconnecting agents. Capped by `net.core.somaxconn` (4096 by default).
const BACKLOG: i32 = 4096;
/// A connection that has said nothing for this long is reported all the same. The least there is: one SYN-ACK timeout.
const DEFER: Duration = Duration::from_secs(1);

fn bind_group(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    let first = socket(address)?;
    first.bind(&address.into())?;
    let mut sockets = vec![first];
    if count > 1 {
        let bound = sockets[0].local_addr()?;
        sockets[0].set_reuse_port(true)?;
        for _ in 1..count {
            let next = socket(address)?;
            next.set_reuse_port(true)?;
            next.bind(&bound)?;
            sockets.push(next);
        }
    }
    let listen = |socket: Socket| {
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    sockets.into_iter().map(listen).collect()
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::SockRef;
    use std::net::TcpStream;

    fn bind(count: usize) -> Vec<TcpListener> {
        bind_listeners("127.0.0.1:0".parse().unwrap(), count).unwrap()
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_refused() {
        for (theirs, ours) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
            let listeners = bind(theirs);
            let taken = listeners[0].local_addr().unwrap();
            let error = bind_group(taken, ours).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{theirs} and {ours}");
        }
    }

    #[test]
    fn all_listeners_share_one_port_and_connections_are_dealt_out() {
        let listeners = bind(2);
        let address = listeners[0].local_addr().unwrap();
        assert_eq!(listeners[1].local_addr().unwrap(), address);
        let peers: Vec<_> = (0..64).map(|_| TcpStream::connect(address).unwrap()).collect();
        for listener in &listeners {
            assert!(listener.accept().is_ok(), "of {} connections each gets some", peers.len());
        }
    }

    #[test]
    fn accepted_connections_inherit_what_a_leg_needs() {
        let listener = bind(1).remove(0);
        let tuning = Tuning::base();
        prepare_listener(&listener, &tuning).unwrap();
        let _peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.set_nonblocking(false).unwrap(); // silent: reported after a second
        let (stream, _) = listener.accept().unwrap();
        let options = |socket: SockRef<'_>| {
            let keepalive = (socket.keepalive().unwrap(), socket.tcp_keepalive_time().unwrap());
            let interval = socket.tcp_keepalive_interval().unwrap();
            let retries = socket.tcp_keepalive_retries().unwrap();
            let timeout = socket.tcp_user_timeout().unwrap();
            let lowat = socket.tcp_notsent_lowat().unwrap();
            (socket.tcp_nodelay().unwrap(), keepalive, interval, retries, timeout, lowat)
        };
        let inherited = options(SockRef::from(&stream));
        let fresh = TcpStream::connect(bind(1)[0].local_addr().unwrap()).unwrap();
        assert_ne!(inherited, options(SockRef::from(&fresh)), "these are not the defaults");
        fresh.set_nodelay(true).unwrap();
        tuning.apply_to_connection(&fresh).unwrap();
        assert_eq!(inherited, options(SockRef::from(&fresh)));
    }
}
