//! Readiness from epoll, for kernels and containers without io_uring.
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::readiness::{Event, Readiness};

/// An epoll instance.
pub(crate) struct Epoll {
    epoll: OwnedFd,
    batch: Vec<epoll::Event>,
}

impl Epoll {
    /// # Errors
    /// `epoll_create1(2)`.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            batch: Vec::with_capacity(BATCH),
        })
    }
}

impl Readiness for Epoll {
    fn register(&mut self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), flags)?)
    }

    fn deregister(&mut self, fd: BorrowedFd<'_>, _token: u64) {
        // Closing would do as well; an error here means it is gone already.
        let _ = epoll::delete(&self.epoll, fd);
    }

    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        self.batch.clear();
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut self.batch),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // The kernel's struct is packed: fields are copied out, never borrowed.
        events.extend(
            self.batch
                .iter()
                .map(|&epoll::Event { flags, data }| Event::of_poll(data.u64(), flags.bits())),
        );
        Ok(())
    }
}

/// Events per system call; more come with the next turn.
const BATCH: usize = 256;
