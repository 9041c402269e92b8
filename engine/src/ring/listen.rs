//! Listening sockets: deferred accept, and the non-blocking accept.
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::{SocketFlags, acceptfrom_with};

/// Has the kernel report a connection when its first bytes are there, or after about `patience` without any
/// (`TCP_DEFER_ACCEPT`, tcp(7)).
///
/// # Errors
/// `setsockopt(2)`: not a TCP socket.
pub(crate) fn defer_accept(listener: impl AsFd, patience: Duration) -> io::Result<()> {
    let seconds = libc::c_int::try_from(patience.as_secs()).unwrap_or(libc::c_int::MAX);
    let length = libc::socklen_t::try_from(size_of_val(&seconds)).unwrap_or(0);
    // SAFETY: `seconds` is readable for `length` bytes and outlives the call; the descriptor is borrowed, so it is open.
    let result = unsafe {
        libc::setsockopt(
            listener.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The next connection, non-blocking, and where it comes from. One system call.
///
/// # Errors
/// `accept4(2)`; `WouldBlock` if nobody waits.
pub(crate) fn accept(listener: impl AsFd) -> io::Result<(OwnedFd, SocketAddr)> {
    let (socket, peer) = acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    // A peer that is gone already may have no address any more.
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
    Ok((socket, peer.ok_or(io::ErrorKind::ConnectionAborted)?))
}
