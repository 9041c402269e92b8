//! Which sockets of a worker have something: level-triggered epoll.
//!
//! Unlike the relay of TCP pairs, which has an io_uring backend: what a datagram costs is the network stack's work in
//! `recvmmsg` and `sendmmsg`, and one wait for many of them is not worth a second kind of readiness.
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;

use super::binding::Site;

/// An epoll instance, and the way to wake it.
pub(crate) struct Ready {
    epoll: OwnedFd,
    wake: OwnedFd,
}

/// What is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Stop,
    Site(Site),
    Relay(usize),
}

/// Events per system call; more come with the next.
const BATCH: usize = 64;
const STOP: u64 = Site::COUNT as u64;
const RELAYS: u64 = STOP + 1;

impl Ready {
    /// # Errors
    /// `epoll_create1(2)`, `eventfd(2)`.
    pub(crate) fn new() -> io::Result<Self> {
        let ready = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            wake: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        };
        ready.watch(&ready.wake, STOP)?;
        Ok(ready)
    }

    pub(crate) const fn site(site: Site) -> u64 {
        site.0 as u64
    }

    pub(crate) const fn relay(id: usize) -> u64 {
        RELAYS + id as u64
    }

    /// # Errors
    /// `epoll_ctl(2)`.
    pub(crate) fn watch(&self, socket: impl AsFd, token: u64) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token);
        Ok(epoll::add(&self.epoll, socket, data, epoll::EventFlags::IN)?)
    }

    /// Ends the wait, for good.
    pub(crate) fn stop(&self) {
        // It can only fail when it was told 2^64 times.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Waits for something, at most `patience`.
    ///
    /// # Errors
    /// `epoll_wait(2)`.
    pub(crate) fn wait(
        &self,
        patience: Option<Duration>,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        let timeout = patience.and_then(|patience| Timespec::try_from(patience).ok());
        let mut batch = [const { std::mem::MaybeUninit::uninit() }; BATCH];
        events.clear();
        match epoll::wait(&self.epoll, &mut batch, timeout.as_ref()) {
            Ok((found, _)) => events.extend(found.iter().map(|event| Event::of(event.data.u64()))),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

impl Event {
    fn of(token: u64) -> Self {
        match token {
            STOP => Self::Stop,
            site if site < STOP => Self::Site(Site(site as u8)),
            relay => Self::Relay((relay - RELAYS) as usize),
        }
    }
}
