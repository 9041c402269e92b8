//! Messages and their answers: sends on schedule or in a closed loop, counts answers, optionally is
//! the echo too.
//!
//! One thread, non-blocking sockets, one epoll set. Without sleeping between the turns, the wake-up
//! of the generator is not part of the latency.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::iter::Peekable;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};

use super::drive::Clock;
use super::ledger::{Closed, Ledger};
use super::nanos;
use super::schedule::{Arrivals, Schedule};
use super::sizes::Sizes;

/// What is sent.
#[derive(Clone, Debug)]
pub(crate) struct Messages {
    pub(crate) pacing: Pacing,
    pub(crate) sizes: Sizes,
    /// Of the times and the sizes: all peers of a round get the same ones.
    pub(crate) seed: u64,
}

/// When it is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pacing {
    /// On schedule, whatever has been answered: messages per second over all connections.
    Open { rate: f64, arrivals: Arrivals },
    /// The next message of a connection when its last one is answered.
    Closed,
}

/// Most messages without an answer before the run is given up: 4 Mi of them are 64 MiB of books.
const OUTSTANDING_MAX: usize = 1 << 22;

/// Sockets looked at per turn; more wait for the next turn.
const EVENTS_MAX: usize = 256;

/// One read. Holds hundreds of small messages, stays in the L2 cache.
const SCRATCH_BYTES: usize = 64 * 1024;

/// Longest sleep, so that a blocked socket is retried and the end is seen in time.
const SLEEP_MAX: Duration = Duration::from_millis(1);

/// Connections that carry messages, near ends and, if the echo is here too, far ends.
pub(crate) struct Exchange {
    /// Near ends first, then far ends; the index is the epoll token.
    sockets: Vec<TcpStream>,
    near: usize,
    /// Bytes each socket has not accepted yet. Every byte is alike, so a count is enough.
    backlog: Vec<usize>,
    /// Sockets with a backlog.
    stuck: BTreeSet<usize>,
    /// `None`: closed loop.
    schedule: Option<Peekable<Schedule>>,
    /// Connections of a closed loop that may send.
    answered: Vec<usize>,
    sizes: Sizes,
    rng: SmallRng,
    /// Nothing is sent from here on.
    end_ns: u64,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    scratch: Vec<u8>,
    ledger: Ledger,
}

impl Exchange {
    /// Over the `near` ends; the `far` ends echo here, or elsewhere if `far` is empty.
    ///
    /// # Errors
    /// No connections, or no epoll set.
    pub(crate) fn new(
        near: Vec<TcpStream>,
        far: Vec<TcpStream>,
        messages: Messages,
    ) -> Result<Exchange> {
        ensure!(!near.is_empty(), "messages need at least one connection");
        let (connections, mut sockets) = (near.len(), near);
        sockets.extend(far);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (token, socket) in sockets.iter().enumerate() {
            socket.set_nonblocking(true)?;
            let data = epoll::EventData::new_u64(token as u64);
            epoll::add(&epoll, socket, data, epoll::EventFlags::IN)?;
        }
        let (schedule, answered) = match messages.pacing {
            Pacing::Open { rate, arrivals } => {
                let schedule = Schedule::new(arrivals, rate, connections, messages.seed);
                (Some(schedule.peekable()), Vec::new())
            }
            Pacing::Closed => (None, (0..connections).collect()),
        };
        Ok(Exchange {
            backlog: vec![0; sockets.len()],
            stuck: BTreeSet::new(),
            sockets,
            near: connections,
            schedule,
            answered,
            sizes: messages.sizes,
            rng: SmallRng::seed_from_u64(messages.seed),
            end_ns: u64::MAX,
            epoll,
            events: Vec::with_capacity(EVENTS_MAX),
            scratch: vec![0; SCRATCH_BYTES],
            ledger: Ledger::new(connections),
        })
    }

    /// No message is due from `end_ns` on.
    pub(crate) fn end_at(&mut self, end_ns: u64) {
        self.end_ns = end_ns;
    }

    /// The warm-up is over: messages due from now on are counted.
    pub(crate) fn count_from(&mut self, now_ns: u64) {
        self.ledger.count_from(now_ns);
    }

    /// Sends what is due, retries what was stuck, takes what has arrived. Tells whether there was
    /// anything to do.
    ///
    /// # Errors
    /// A connection that closes or fails, more answer bytes than were sent, or a target so far
    /// behind that the books would not fit.
    pub(crate) fn turn(&mut self, clock: Clock) -> Result<bool> {
        let mut busy = self.send_due(clock)?;
        for token in std::mem::take(&mut self.stuck) {
            self.flush(token)?;
        }
        let mut events = std::mem::take(&mut self.events);
        epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&Timespec::default()))?;
        busy |= !events.is_empty();
        for event in events.drain(..) {
            let data = event.data;
            self.take(data.u64() as usize, clock)?;
        }
        self.events = events;
        Ok(busy)
    }

    /// Sleeps until something arrives, the next message is due, or a millisecond has passed.
    ///
    /// # Errors
    /// The epoll set cannot be waited for.
    pub(crate) fn sleep(&mut self, clock: Clock) -> Result<()> {
        let now_ns = clock.now_ns();
        let next = self.schedule.as_mut().and_then(Peekable::peek);
        let due_ns = next.map_or(u64::MAX, |due| due.at_ns.saturating_sub(now_ns));
        let pause_ns = due_ns.min(nanos(SLEEP_MAX));
        let timeout = Timespec { tv_sec: 0, tv_nsec: pause_ns as i64 };
        match poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("waiting for answers"),
        }
    }

    /// The books.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Ends it; messages without an answer are charged with their age.
    pub(crate) fn close(self, now_ns: u64) -> Closed {
        self.ledger.close(now_ns)
    }

    fn send_due(&mut self, clock: Clock) -> Result<bool> {
        let now_ns = clock.now_ns();
        let limit_ns = self.end_ns;
        let mut busy = false;
        while let Some(due) = self
            .schedule
            .as_mut()
            .and_then(|s| s.next_if(|due| due.at_ns <= now_ns && due.at_ns < limit_ns))
        {
            busy = true;
            self.send(due.connection, due.at_ns, clock.now_ns())?;
        }
        for connection in std::mem::take(&mut self.answered) {
            let now_ns = clock.now_ns();
            if now_ns < self.end_ns {
                busy = true;
                self.send(connection, now_ns, now_ns)?;
            }
        }
        Ok(busy)
    }

    fn send(&mut self, connection: usize, due_ns: u64, now_ns: u64) -> Result<()> {
        if self.ledger.outstanding() >= OUTSTANDING_MAX {
            bail!("the target is {OUTSTANDING_MAX} messages behind: lower the rate");
        }
        let bytes = self.sizes.draw(&mut self.rng);
        self.ledger.sent(connection, bytes, due_ns, now_ns);
        self.backlog[connection] += bytes as usize;
        self.flush(connection)
    }

    /// Writes as much backlog of `token` as its socket takes.
    fn flush(&mut self, token: usize) -> Result<()> {
        while self.backlog[token] > 0 {
            let piece = self.backlog[token].min(self.scratch.len());
            match (&self.sockets[token]).write(&self.scratch[..piece]) {
                Ok(written) => self.backlog[token] -= written,
                Err(error) if is_transient(&error) => break,
                Err(error) => return Err(error).context("sending a message"),
            }
        }
        if self.backlog[token] > 0 {
            self.stuck.insert(token);
        }
        Ok(())
    }

    /// Reads once from `token`: an answer is booked, a request is echoed.
    fn take(&mut self, token: usize, clock: Clock) -> Result<()> {
        let bytes = match (&self.sockets[token]).read(&mut self.scratch) {
            Ok(0) => bail!("the connection was closed while the run was on"),
            Ok(bytes) => bytes,
            Err(error) if is_transient(&error) => return Ok(()),
            Err(error) => return Err(error).context("receiving a message"),
        };
        if token >= self.near {
            self.backlog[token] += bytes;
            return self.flush(token);
        }
        let booked = self.ledger.received(token, bytes, clock.now_ns());
        let completed = booked.map_err(|_| {
            anyhow::anyhow!("more bytes came back than were sent: the target is no echo")
        })?;
        if self.schedule.is_none() && completed > 0 {
            self.answered.push(token);
        }
        Ok(())
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::drive::{Load, Outcome, Unwatched, Window, run};
    use crate::measure::Meter;
    use crate::peers::Flow;
    use crate::peers::socket::Dialer;

    fn open(rate: f64) -> Messages {
        let pacing = Pacing::Open { rate, arrivals: Arrivals::Poisson };
        Messages { pacing, sizes: Sizes::One(64), seed: 1 }
    }

    fn window(warmup_ms: u64, measured_ms: u64) -> Window {
        Window {
            warmup: Duration::from_millis(warmup_ms),
            measured: Duration::from_millis(measured_ms),
        }
    }

    fn flows(count: usize) -> (Vec<TcpStream>, Vec<TcpStream>) {
        let dialer = Dialer::system_default();
        (0..count)
            .map(|_| dialer.direct_flow().unwrap())
            .map(|Flow { near, far }| (near, far))
            .unzip()
    }

    fn drive(exchange: Exchange, window: Window) -> Result<Outcome> {
        let load = Load { exchange: Some(exchange), streams: None, window, spin: false };
        run(load, &Meter::of_generator(), &mut Unwatched)
    }

    #[test]
    fn every_message_over_many_connections_is_answered() {
        let (near, far) = flows(8);
        let exchange = Exchange::new(near, far, open(2_000.0)).unwrap();
        let closed = drive(exchange, window(20, 200)).unwrap().messages.unwrap();
        let counts = closed.figures.counts;
        assert!(counts.sent > 300, "{counts:?}");
        assert_eq!((counts.answered, counts.unanswered), (counts.sent, 0));
        assert_eq!(closed.histogram.len(), counts.sent);
    }

    #[test]
    fn a_closed_loop_has_one_message_per_connection_under_way() {
        let (near, far) = flows(4);
        let messages = Messages { pacing: Pacing::Closed, ..open(1.0) };
        let mut exchange = Exchange::new(near, far, messages).unwrap();
        let clock = Clock::start();
        exchange.count_from(0);
        for _ in 0..200 {
            exchange.turn(clock).unwrap();
            assert!(exchange.ledger().outstanding() <= 4);
        }
        assert!(exchange.ledger().glimpse().counts.answered > 50);
    }

    #[test]
    fn messages_larger_than_the_socket_buffers_are_sent_whole() {
        let (near, far) = flows(2);
        let messages = Messages { sizes: Sizes::One(16 << 20), ..open(20.0) };
        let exchange = Exchange::new(near, far, messages).unwrap();
        let counts = drive(exchange, window(0, 200)).unwrap().messages.unwrap().figures.counts;
        assert!(counts.sent > 0);
        assert_eq!(counts.unanswered, 0);
    }

    #[test]
    fn an_echo_that_stalls_shows_in_the_percentiles() {
        let (near, far) = flows(1);
        let echo = std::thread::spawn(move || {
            let mut socket = &far[0];
            let mut buffer = [0; 4096];
            let mut stall = Some(Duration::from_millis(100));
            loop {
                let bytes = socket.read(&mut buffer).unwrap();
                if bytes == 0 {
                    return;
                }
                std::thread::sleep(stall.take().unwrap_or_default());
                socket.write_all(&buffer[..bytes]).unwrap();
            }
        });
        let exchange = Exchange::new(near, Vec::new(), open(2_000.0)).unwrap();
        let figures = drive(exchange, window(0, 200)).unwrap().messages.unwrap().figures;
        echo.join().unwrap();
        // 100 of 200 ms stalled: about half of the messages waited, the first of them 100 ms.
        assert!(figures.max_us >= 90_000.0, "{figures:?}");
        assert!(figures.p90_us > 20_000.0, "{figures:?}");
    }

    #[test]
    fn a_closed_connection_is_an_error() {
        let (near, far) = flows(1);
        drop(far);
        let exchange = Exchange::new(near, Vec::new(), open(2_000.0)).unwrap();
        assert!(drive(exchange, window(0, 100)).is_err());
    }
}
