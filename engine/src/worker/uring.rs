//! Readiness from io_uring: multishot polls on one ring per worker.
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::readiness::{Event, Readiness};
use crate::ring::{PollRing, Polled};

/// A ring of polls.
pub(crate) struct Uring {
    ring: PollRing,
    polled: Vec<Polled>,
}

impl Uring {
    /// With `busy_poll`, waiting also polls the network devices that sockets are fed from, where kernel and device can.
    ///
    /// # Errors
    /// `io_uring_setup(2)`.
    pub(crate) fn new(busy_poll: Option<Duration>) -> io::Result<Self> {
        let ring = PollRing::new()?;
        if let Some(window) = busy_poll {
            ring.busy_poll_devices(window);
        }
        Ok(Self { ring, polled: Vec::new() })
    }
}

impl Readiness for Uring {
    fn register(&mut self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.ring.add(fd, token, EVENTS)
    }

    fn deregister(&mut self, fd: BorrowedFd<'_>, _token: u64) {
        if let Err(error) = self.ring.remove(fd) {
            tracing::error!(%error, "poll removal failed; the socket stays half open until the worker ends");
        }
    }

    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        self.polled.clear();
        self.ring.wait(timeout, EVENTS, &mut self.polled)?;
        events.extend(self.polled.iter().map(|polled| Event::of_poll(polled.token, polled.events)));
        Ok(())
    }
}

/// Both directions and the peer's FIN; errors and hang-ups are always reported.
const EVENTS: u32 = (libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP) as u32;
