//! Open-loop request and response: sends on schedule, counts answers, optionally is the echo too.
//!
//! One thread, non-blocking sockets, one epoll set. With `spin` it never sleeps, so that the wake-up
//! of the generator is not part of the latency.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::iter::Peekable;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};

use super::DRAIN;
use super::ledger::{LatencyFigures, Ledger};
use super::schedule::{Arrivals, Due, Schedule};
use crate::measure::{Meter, Reading, Usage};

/// What to send, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct RequestResponse {
    /// Messages per second over all connections.
    pub(crate) rate: f64,
    pub(crate) message_bytes: usize,
    pub(crate) arrivals: Arrivals,
    pub(crate) seed: u64,
    /// Cut from the figures.
    pub(crate) warmup: Duration,
    /// Measured time after the warm-up.
    pub(crate) window: Duration,
    /// Busy-wait instead of sleeping until the next event.
    pub(crate) spin: bool,
}

/// What came out.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) figures: LatencyFigures,
    /// CPU and noise over the measured window and its drain.
    pub(crate) usage: Usage,
}

/// Most messages without an answer before the run is given up: 4 Mi of them are 32 MiB of books.
const OUTSTANDING_MAX: usize = 1 << 22;

/// Sockets looked at per turn; more wait for the next turn.
const EVENTS_MAX: usize = 256;

/// One read. Holds hundreds of small messages, stays in the L2 cache.
const SCRATCH_BYTES: usize = 64 * 1024;

/// Longest sleep without `spin`, so that a blocked socket is retried and the end is seen in time.
const SLEEP_MAX: Duration = Duration::from_millis(1);

/// Runs `load` over the `near` ends; the `far` ends echo here, or elsewhere if `far` is empty.
///
/// # Errors
/// A connection that closes or fails, more answer bytes than were sent, or a target so far behind
/// that the books would not fit. Missing answers are no error: they are in the figures.
pub(crate) fn run(
    near: &[TcpStream],
    far: &[TcpStream],
    load: &RequestResponse,
    meter: &Meter,
) -> Result<Outcome> {
    let mut run = Run::new(near, far, load)?;
    let mut begun: Option<Reading> = None;
    let warmup_ns = nanos(load.warmup);
    loop {
        let now_ns = run.now_ns();
        if begun.is_none() && now_ns >= warmup_ns {
            begun = Some(meter.begin()?);
        }
        if run.is_over(now_ns) {
            break;
        }
        run.turn(now_ns)?;
        if !load.spin {
            run.sleep()?;
        }
    }
    let now_ns = run.now_ns();
    let usage = meter.used_since(&begun.context("the run ended inside its warm-up")?)?;
    Ok(Outcome { figures: run.ledger.close(now_ns), usage })
}

struct Run<'a> {
    /// Near ends first, then far ends; the index is the epoll token.
    sockets: Vec<&'a TcpStream>,
    near: usize,
    /// Bytes each socket has not accepted yet. Every byte is alike, so a count is enough.
    backlog: Vec<usize>,
    /// Sockets with a backlog.
    stuck: BTreeSet<usize>,
    schedule: Peekable<Schedule>,
    message_bytes: usize,
    end_ns: u64,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    scratch: Vec<u8>,
    ledger: Ledger,
    start: Instant,
}

impl<'a> Run<'a> {
    fn new(near: &'a [TcpStream], far: &'a [TcpStream], load: &RequestResponse) -> Result<Run<'a>> {
        let sockets: Vec<&TcpStream> = near.iter().chain(far).collect();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (token, socket) in sockets.iter().enumerate() {
            socket.set_nonblocking(true)?;
            let data = epoll::EventData::new_u64(token as u64);
            epoll::add(&epoll, socket, data, epoll::EventFlags::IN)?;
        }
        let end = load.warmup + load.window;
        Ok(Run {
            backlog: vec![0; sockets.len()],
            stuck: BTreeSet::new(),
            sockets,
            near: near.len(),
            schedule: Schedule::new(load.arrivals, load.rate, near.len(), load.seed).peekable(),
            message_bytes: load.message_bytes,
            end_ns: nanos(end),
            epoll,
            events: Vec::with_capacity(EVENTS_MAX),
            scratch: vec![0; SCRATCH_BYTES],
            ledger: Ledger::new(near.len(), load.message_bytes, nanos(load.warmup)),
            start: Instant::now(),
        })
    }

    fn now_ns(&self) -> u64 {
        nanos(self.start.elapsed())
    }

    fn is_over(&self, now_ns: u64) -> bool {
        let answered = self.ledger.outstanding() == 0;
        now_ns >= self.end_ns && (answered || now_ns >= self.end_ns + nanos(DRAIN))
    }

    /// Sends what is due, retries what was stuck, takes what has arrived.
    fn turn(&mut self, now_ns: u64) -> Result<()> {
        let end_ns = self.end_ns;
        while let Some(due) = self.schedule.next_if(|due| due.at_ns <= now_ns && due.at_ns < end_ns)
        {
            self.send_due(due)?;
        }
        for token in std::mem::take(&mut self.stuck) {
            self.flush(token)?;
        }
        let mut events = std::mem::take(&mut self.events);
        epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&Timespec::default()))?;
        for event in events.drain(..) {
            let data = event.data;
            self.take(data.u64() as usize)?;
        }
        self.events = events;
        Ok(())
    }

    fn send_due(&mut self, due: Due) -> Result<()> {
        if self.ledger.outstanding() >= OUTSTANDING_MAX {
            bail!("the target is {OUTSTANDING_MAX} messages behind: lower the rate");
        }
        self.ledger.sent(due.connection, due.at_ns, self.now_ns());
        self.backlog[due.connection] += self.message_bytes;
        self.flush(due.connection)
    }

    /// Writes as much backlog of `token` as its socket takes.
    fn flush(&mut self, token: usize) -> Result<()> {
        while self.backlog[token] > 0 {
            let piece = self.backlog[token].min(self.scratch.len());
            match self.sockets[token].write(&self.scratch[..piece]) {
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
    fn take(&mut self, token: usize) -> Result<()> {
        let bytes = match self.sockets[token].read(&mut self.scratch) {
            Ok(0) => bail!("the connection was closed while the run was on"),
            Ok(bytes) => bytes,
            Err(error) if is_transient(&error) => return Ok(()),
            Err(error) => return Err(error).context("receiving a message"),
        };
        if token < self.near {
            let booked = self.ledger.received(token, bytes, self.now_ns());
            return booked.map_err(|_| anyhow::anyhow!("more bytes came back than were sent"));
        }
        self.backlog[token] += bytes;
        self.flush(token)
    }

    /// Sleeps until something arrives, the next message is due, or a millisecond has passed.
    fn sleep(&mut self) -> Result<()> {
        let now_ns = self.now_ns();
        let due_ns = self.schedule.peek().map_or(u64::MAX, |due| due.at_ns.saturating_sub(now_ns));
        let pause_ns = due_ns.min(nanos(SLEEP_MAX));
        let timeout = Timespec { tv_sec: 0, tv_nsec: pause_ns as i64 };
        match poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("waiting for answers"),
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::Flow;
    use crate::peers::socket::Dialer;

    fn load() -> RequestResponse {
        RequestResponse {
            rate: 2_000.0,
            message_bytes: 64,
            arrivals: Arrivals::Poisson,
            seed: 1,
            warmup: Duration::from_millis(20),
            window: Duration::from_millis(200),
            spin: false,
        }
    }

    fn flows(count: usize) -> (Vec<TcpStream>, Vec<TcpStream>) {
        let dialer = Dialer::system_default();
        (0..count)
            .map(|_| dialer.direct_flow().unwrap())
            .map(|Flow { near, far }| (near, far))
            .unzip()
    }

    #[test]
    fn every_message_over_many_connections_is_answered() {
        let (near, far) = flows(8);
        let outcome = run(&near, &far, &load(), &Meter::of_generator()).unwrap();
        assert!(outcome.figures.counts.sent > 300);
        assert_eq!(outcome.figures.counts.answered, outcome.figures.counts.sent);
        assert_eq!(outcome.figures.counts.unanswered, 0);
    }

    #[test]
    fn messages_larger_than_the_socket_buffers_are_sent_whole() {
        let (near, far) = flows(2);
        let load = RequestResponse { rate: 20.0, message_bytes: 16 << 20, ..load() };
        let outcome = run(&near, &far, &load, &Meter::of_generator()).unwrap();
        assert!(outcome.figures.counts.sent > 0);
        assert_eq!(outcome.figures.counts.unanswered, 0);
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
        let load = RequestResponse { warmup: Duration::ZERO, ..load() };
        let outcome = run(&near, &[], &load, &Meter::of_generator()).unwrap();
        drop(near);
        echo.join().unwrap();
        // 100 of 200 ms stalled: about half of the messages waited, the first of them 100 ms.
        assert!(outcome.figures.max_us >= 99_000.0, "{:?}", outcome.figures);
        assert!(outcome.figures.p90_us > 20_000.0, "{:?}", outcome.figures);
    }

    #[test]
    fn a_closed_connection_is_an_error() {
        let (near, far) = flows(1);
        drop(far);
        assert!(run(&near, &[], &load(), &Meter::of_generator()).is_err());
    }
}
