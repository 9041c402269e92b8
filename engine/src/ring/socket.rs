//! Socket options of legs, and the four non-blocking moves.
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::pipe::{SpliceFlags, splice};
use socket2::SockRef;

use super::{Pipe, clear_option};
use crate::{StartError, Tuning, TuningOption};

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

/// Gives a listener what every connection it accepts inherits: small writes leave at once, dead peers are noticed, little
/// waits in the send buffer, and what else `tuning` says. Linux clones the listener's options into each accepted socket, so a
/// leg costs no system call for them. What an earlier process had set on a listener that was taken over goes.
///
/// # Errors
/// `setsockopt(2)`.
pub(crate) fn prepare_listener(listener: impl AsFd, tuning: &Tuning) -> Result<(), StartError> {
    SockRef::from(&listener.as_fd()).set_tcp_nodelay(true)?;
    for option in TuningOption::ALL.into_iter().filter(|option| tuning.value_of(*option).is_none())
    {
        clear_option(listener.as_fd(), option)?;
    }
    Ok(tuning.apply_to_listener(listener)?)
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
