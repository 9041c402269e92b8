//! The gateway's listening socket.
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

/// Binds a non-blocking TCP listener with `SO_REUSEADDR`.
///
/// The port of an io_uring process that was killed stays bound until the kernel has torn down its ring, so
/// `EADDRINUSE` is retried for 2 seconds. Blocks that long.
///
/// # Errors
/// `bind(2)` and `listen(2)`: port in use, no permission for a port below 1024, no such address.
pub fn bind_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let give_up = Instant::now() + RETRY_FOR;
    loop {
        match bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < give_up => {
                std::thread::sleep(RETRY_EVERY);
            }
            result => return result,
        }
    }
}

/// Tear-down of a killed ring took well under a second here; 2 s are noticed by nobody who meant another port.
const RETRY_FOR: Duration = Duration::from_secs(2);
const RETRY_EVERY: Duration = Duration::from_millis(50);
/// Connections that wait for accept: a burst of reconnecting agents. Capped by `net.core.somaxconn` (4096 by default).
const BACKLOG: i32 = 4096;

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
