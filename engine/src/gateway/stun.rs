//! The gateway's STUN responder: tells peers their reflexive address.
use std::io;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::stun_reply::{Reply, reply};

/// A thread that answers STUN binding requests on one UDP socket. Dropping it shuts it down.
///
/// Replies leave from the socket they came to. On a wildcard address of a host with several, the kernel's route chooses
/// the source address; bind each address separately if that matters.
#[derive(Debug)]
pub struct StunResponder {
    wake: Arc<OwnedFd>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

/// What a [`StunResponder`] has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StunCounters {
    /// Binding requests answered with the reflexive address.
    pub answered: u64,
    /// Binding requests answered with error 420 (unknown comprehension-required attribute).
    pub unknown_attributes: u64,
    /// Datagrams dropped without an answer: anything that is no valid binding request.
    pub dropped: u64,
    /// Replies that the socket did not take.
    pub send_errors: u64,
}

impl StunResponder {
    /// Starts answering on `socket`, which is bound.
    ///
    /// # Errors
    /// No thread or descriptor to be had.
    pub fn start(socket: UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let counters = Arc::new(Counters::default());
        let thread = {
            let (wake, counters) = (wake.clone(), counters.clone());
            std::thread::Builder::new()
                .name("stun".into())
                .spawn(move || serve(&socket, &wake, &counters))?
        };
        Ok(Self { wake, counters, thread: Some(thread) })
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> StunCounters {
        StunCounters {
            answered: self.counters.answered.load(Relaxed),
            unknown_attributes: self.counters.unknown_attributes.load(Relaxed),
            dropped: self.counters.dropped.load(Relaxed),
            send_errors: self.counters.send_errors.load(Relaxed),
        }
    }

    /// Stops at once and closes the socket.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        if thread.join().is_err() {
            tracing::error!("the STUN responder panicked");
        }
    }
}

impl Drop for StunResponder {
    fn drop(&mut self) {
        self.stop();
    }
}

#[derive(Debug, Default)]
struct Counters {
    answered: AtomicU64,
    unknown_attributes: AtomicU64,
    dropped: AtomicU64,
    send_errors: AtomicU64,
}

/// Requests with long USERNAME and SOFTWARE attributes fit; longer datagrams are cut and then fail to parse.
const REQUEST_MAX: usize = 1500;
/// Datagrams per wake-up before the stop signal is looked at again.
const BURST: usize = 64;

fn serve(socket: &UdpSocket, wake: &OwnedFd, counters: &Counters) {
    loop {
        let mut watched = [PollFd::new(socket, PollFlags::IN), PollFd::new(wake, PollFlags::IN)];
        match poll(&mut watched, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return tracing::error!(%error, "the STUN responder ended"),
        }
        if !watched[1].revents().is_empty() {
            return;
        }
        let mut datagram = [0; REQUEST_MAX];
        for _ in 0..BURST {
            // Errors here are ICMP answers to earlier replies, or an empty socket.
            let Ok((bytes, source)) = socket.recv_from(&mut datagram) else { break };
            answer(socket, reply(&datagram[..bytes], source), source, counters);
        }
    }
}

fn answer(socket: &UdpSocket, reply: Reply, source: std::net::SocketAddr, counters: &Counters) {
    let (bytes, counter) = match reply {
        Reply::Success(bytes) => (bytes, &counters.answered),
        Reply::UnknownAttributes(bytes) => (bytes, &counters.unknown_attributes),
        Reply::Silence => {
            counters.dropped.fetch_add(1, Relaxed);
            return;
        }
    };
    let sent = socket.send_to(&bytes, source).is_ok();
    if sent { counter } else { &counters.send_errors }.fetch_add(1, Relaxed);
}
