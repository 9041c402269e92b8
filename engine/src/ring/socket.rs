//! Socket options of legs, and the four non-blocking moves.
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::pipe::{SpliceFlags, splice};
use socket2::{SockRef, TcpKeepalive};

use super::Pipe;

/// What came of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    /// This many bytes, more than 0.
    Bytes(usize),
    /// The peer has ended its direction.
    End,
    /// Nothing now.
    WouldBlock,
    /// The connection, or the call, failed.
    Failed(Errno),
}

/// Receives into `buffer`.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Move {
    outcome(|| {
        rustix::net::recv(&socket, &mut *buffer, RecvFlags::DONTWAIT).map(|(_, bytes)| bytes)
    })
}

/// Sends from `bytes`, which is not empty.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8]) -> Move {
    outcome(|| rustix::net::send(&socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL))
}

/// Moves up to `bytes` from a socket into an empty pipe. `WouldBlock` means the socket is empty, because the pipe is not full.
pub(crate) fn splice_in(socket: impl AsFd, pipe: &Pipe, bytes: usize) -> Move {
    outcome(|| splice(&socket, None, &pipe.writer, None, bytes, SPLICE_FLAGS))
}

/// Moves up to `bytes` out of a pipe that holds them. `WouldBlock` means the socket is full.
pub(crate) fn splice_out(pipe: &Pipe, socket: impl AsFd, bytes: usize) -> Move {
    outcome(|| splice(&pipe.reader, None, &socket, None, bytes, SPLICE_FLAGS))
}

/// Prepares a leg, or the listener that legs inherit from: small writes leave at once, dead peers are noticed, and little
/// waits in the send buffer.
///
/// # Errors
/// `setsockopt(2)`; the peer may already have reset the connection.
pub(crate) fn prepare_leg(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)
}

/// Closes with RST, so that nobody takes the end for a finished stream.
pub(crate) fn close_abruptly(socket: OwnedFd) {
    // A socket that refuses the option is closed all the same; there is nothing better to do.
    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
}

/// The descriptor of a tokio-uring stream, which offers only the raw number.
pub(crate) fn borrow_uring(stream: &tokio_uring::net::TcpStream) -> BorrowedFd<'_> {
    // SAFETY: the stream owns its descriptor and closes it only when dropped (its `close` is not reachable from a shared
    // borrow), and the returned borrow keeps the stream alive.
    unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) }
}

const SPLICE_FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

/// NAT entries for TCP live at least 2 h by RFC 5382, in practice often 5 min; and a vanished peer should be noticed within a
/// minute: 30 s + 3 x 10 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

/// Unacknowledged data for this long means a dead peer; half of the default resume window of a session (60 s). Linux also
/// applies it to a window that stays shut: a peer that reads nothing for 30 s is given up.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes that may wait unsent in the kernel before we stop writing. Without it the send buffer grows to megabytes and an
/// interactive byte waits behind all of them; at 128 KiB bulk is as fast as without.
const NOTSENT_LOWAT: u32 = 128 * 1024;

fn outcome(mut call: impl FnMut() -> rustix::io::Result<usize>) -> Move {
    loop {
        return match call() {
            Ok(0) => Move::End,
            Ok(bytes) => Move::Bytes(bytes),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => Move::WouldBlock,
            Err(error) => Move::Failed(error),
        };
    }
}
