//! The seam between a worker and what tells it that sockets are ready.
//!
//! Edge-triggered in both backends: an event says that something became possible; the worker remembers it until a call
//! says `EAGAIN`. Whatever a backend reports, the worker does the same with it.
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::relay::Readiness as Ready;

/// A source of readiness. Used by the thread that made it.
pub(crate) trait Readiness {
    /// Watches a socket, or an eventfd, in both directions.
    fn register(&mut self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()>;

    /// Stops watching. Call before closing the descriptor.
    fn deregister(&mut self, fd: BorrowedFd<'_>, token: u64);

    /// Appends what became ready; sleeps for at most `timeout` (`None`: until something does).
    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()>;
}

/// Something became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) token: u64,
    pub(crate) ready: Ready,
    /// The socket has an error to report (`SO_ERROR`).
    pub(crate) failed: bool,
    /// The backend cannot watch the socket any longer; no event will follow.
    pub(crate) lost: bool,
}

impl Event {
    /// The event behind `poll(2)` bits, which `epoll(7)` shares.
    pub(crate) fn of_poll(token: u64, bits: u32) -> Self {
        let has = |wanted: i16| bits & u32::from(wanted.unsigned_abs()) != 0;
        let failed = has(libc::POLLERR);
        let hangup = has(libc::POLLHUP | libc::POLLRDHUP);
        Self {
            token,
            ready: Ready {
                readable: has(libc::POLLIN) || hangup || failed,
                writable: has(libc::POLLOUT) || has(libc::POLLHUP) || failed,
                hangup: hangup || failed,
            },
            failed,
            lost: has(libc::POLLNVAL),
        }
    }
}

/// Token of the worker's wake-up eventfd. Legs have slot and generation, and never this many slots.
pub(crate) const WAKE: u64 = u64::MAX - 1;
/// Token of a worker's first listener; the others follow. Generations of legs are below.
pub(crate) const LISTENER: u64 = 1 << 63;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bits: i16) -> Event {
        Event::of_poll(7, u32::from(bits.unsigned_abs()))
    }

    #[test]
    fn a_peers_fin_is_something_to_read_and_a_hangup() {
        let event = of(libc::POLLIN | libc::POLLRDHUP);
        assert_eq!(event.ready, Ready { readable: true, writable: false, hangup: true });
        assert!(!event.failed && !event.lost);
    }

    #[test]
    fn an_error_wakes_both_directions() {
        let event = of(libc::POLLERR | libc::POLLHUP);
        assert_eq!(event.ready, Ready { readable: true, writable: true, hangup: true });
        assert!(event.failed);
        assert!(of(libc::POLLNVAL).lost);
    }
}
