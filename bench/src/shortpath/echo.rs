//! An echo at a constant rate through a tunnel: sends on schedule whatever comes back, compares every
//! byte, and keeps when each message came back.

use std::io::{ErrorKind, Read, Write};
use std::iter::Peekable;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::trace::{Message, Trace};
use crate::load::drive::Clock;
use crate::load::schedule::{Arrivals, Schedule};

/// Bytes of a message: a keystroke, a mouse's move, a sensor's value.
pub(crate) const MESSAGE_BYTES: usize = 64;

/// Longest wait for the socket, so that an order to end is seen soon.
const WAIT_MAX: Duration = Duration::from_millis(5);

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(4);

/// A running echo. Dropping it ends it.
pub(crate) struct Echo {
    clock: Clock,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    trace: Mutex<Trace>,
    /// Nothing more is sent.
    quiet: AtomicBool,
    over: AtomicBool,
}

impl Echo {
    /// Sends `rate` messages per second through `stream` from now on, evenly.
    ///
    /// # Errors
    /// The socket cannot be set up.
    pub(crate) fn start(stream: TcpStream, clock: Clock, rate: f64) -> Result<Echo> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let shared = Arc::new(Shared::default());
        let mut sender = Sender {
            stream,
            clock,
            begun_ns: clock.now_ns(),
            schedule: Schedule::new(Arrivals::Even, rate, 1, 0).peekable(),
            unsent: Vec::new(),
            received: Vec::new(),
            sent: 0,
            answered: 0,
            shared: Arc::clone(&shared),
        };
        let run = move || {
            if let Err(error) = sender.run() {
                sender.shared.trace().broken = Some(format!("{error:#}"));
            }
        };
        let thread = thread::Builder::new().name("echo".into()).spawn(run)?;
        Ok(Echo { clock, shared, thread: Some(thread) })
    }

    /// On the clock of its trace.
    pub(crate) fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    /// What `find` finds in the trace, looking again and again for at most `within`. Ends early if
    /// the echo breaks.
    pub(crate) fn until<T>(
        &self,
        within: Duration,
        mut find: impl FnMut(&Trace) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + within;
        loop {
            let trace = self.shared.trace();
            let found = find(&trace);
            let broken = trace.broken.is_some();
            drop(trace);
            if found.is_some() || broken || Instant::now() >= deadline {
                return found;
            }
            thread::sleep(LOOK);
        }
    }

    /// Stops sending, waits at most `linger` for what is on its way, and gives the whole trace.
    pub(crate) fn finish(mut self, linger: Duration) -> Trace {
        self.shared.quiet.store(true, Ordering::Relaxed);
        let all_back = |trace: &Trace| {
            let open = trace.messages.iter().any(|message| message.back_ns.is_none());
            (!open).then_some(())
        };
        let _ = self.until(linger, all_back);
        self.end();
        std::mem::take(&mut *self.shared.trace())
    }

    fn end(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic shows on standard error and leaves the trace as it was.
            let _ = thread.join();
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn trace(&self) -> MutexGuard<'_, Trace> {
        self.trace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Sender {
    stream: TcpStream,
    clock: Clock,
    begun_ns: u64,
    schedule: Peekable<Schedule>,
    unsent: Vec<u8>,
    /// The beginning of the next answer.
    received: Vec<u8>,
    sent: usize,
    answered: usize,
    shared: Arc<Shared>,
}

impl Sender {
    fn run(&mut self) -> Result<()> {
        while !self.shared.over.load(Ordering::Relaxed) {
            self.send_due();
            self.flush()?;
            self.receive()?;
            self.wait()?;
        }
        Ok(())
    }

    fn send_due(&mut self) {
        let quiet = self.shared.quiet.load(Ordering::Relaxed);
        let elapsed = self.clock.now_ns().saturating_sub(self.begun_ns);
        while let Some(due) = self.schedule.next_if(|due| due.at_ns <= elapsed && !quiet) {
            self.unsent.extend_from_slice(&content(self.sent));
            self.sent += 1;
            let due_ns = self.begun_ns + due.at_ns;
            self.shared.trace().messages.push(Message { due_ns, back_ns: None });
        }
    }

    fn flush(&mut self) -> Result<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(written) => drop(self.unsent.drain(..written)),
                Err(error) if passes(&error) => return Ok(()),
                Err(error) => return Err(error).context("sending"),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<()> {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("the connection was closed after {} answers", self.answered),
                Ok(read) => self.take(&buffer[..read])?,
                Err(error) if passes(&error) => return Ok(()),
                Err(error) => return Err(error).context("receiving"),
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        let now_ns = self.clock.now_ns();
        self.received.extend_from_slice(bytes);
        let whole = self.received.len() / MESSAGE_BYTES * MESSAGE_BYTES;
        let mut trace = self.shared.trace();
        for message in self.received[..whole].chunks(MESSAGE_BYTES) {
            let known = trace.messages.get_mut(self.answered);
            let expected = known.filter(|_| message == content(self.answered));
            let expected = expected.with_context(|| {
                format!(
                    "answer {} is not what was sent: bytes lost, doubled or changed",
                    self.answered
                )
            })?;
            expected.back_ns = Some(now_ns);
            self.answered += 1;
        }
        drop(trace);
        self.received.drain(..whole);
        Ok(())
    }

    /// Until something comes, the next message is due, or [`WAIT_MAX`].
    fn wait(&mut self) -> Result<()> {
        let elapsed = self.clock.now_ns().saturating_sub(self.begun_ns);
        let due = self.schedule.peek().map_or(u64::MAX, |due| due.at_ns);
        let pause = Duration::from_nanos(due.saturating_sub(elapsed)).min(WAIT_MAX);
        // A due message keeps being due while nothing more is to be sent.
        let pause = if self.shared.quiet.load(Ordering::Relaxed) { WAIT_MAX } else { pause };
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(pause.subsec_nanos()) };
        match poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("waiting for answers"),
        }
    }
}

/// Tells its number from the first byte on, and differs in every byte from its neighbours.
fn content(number: usize) -> [u8; MESSAGE_BYTES] {
    let mut bytes = [0; MESSAGE_BYTES];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = (number.wrapping_mul(31) ^ (number >> 8).wrapping_mul(17)).wrapping_add(index * 7)
            as u8;
    }
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    bytes
}

fn passes(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    /// An echo against `serve` on loopback.
    fn against(serve: impl FnOnce(TcpStream) + Send + 'static) -> Echo {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        thread::spawn(move || serve(far));
        Echo::start(near, Clock::start(), 500.0).unwrap()
    }

    const SECOND: Duration = Duration::from_secs(10);

    #[test]
    fn every_message_comes_back_and_is_timed() {
        let echo = against(|mut far| {
            let mut back = far.try_clone().unwrap();
            let _ = std::io::copy(&mut far, &mut back);
        });
        let enough = |trace: &Trace| (trace.messages.len() >= 50).then_some(());
        echo.until(SECOND, enough).unwrap();
        let trace = echo.finish(SECOND);
        assert_eq!((trace.unanswered(0, u64::MAX), trace.broken), (0, None));
    }

    #[test]
    fn a_changed_byte_and_a_closed_connection_break_it() {
        let broken = |echo: &Echo| {
            let _ = echo.until(SECOND, |trace| trace.broken.is_some().then_some(()));
        };
        let echo = against(|mut far| {
            let mut message = [0; 3 * MESSAGE_BYTES];
            far.read_exact(&mut message).unwrap();
            message[2 * MESSAGE_BYTES + 40] ^= 1;
            far.write_all(&message).unwrap();
            let _ = far.read_exact(&mut [0; 100_000]);
        });
        broken(&echo);
        let trace = echo.finish(Duration::ZERO);
        assert!(trace.broken.unwrap().contains("answer 2 is not"));
        let echo = against(drop);
        broken(&echo);
        assert!(echo.finish(Duration::ZERO).broken.is_some());
    }
}
