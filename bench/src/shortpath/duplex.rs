//! A stream of bytes through a tunnel and back, in writes of one size at a steady pace, both ways at once. Every byte is
//! compared with the one that was sent at its place, so whatever is lost, doubled, reordered or changed, on the way there
//! or back, shows at the first such byte.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Longest wait for the socket, so that an order to end is seen soon.
const WAIT_MAX: Duration = Duration::from_millis(5);

/// How often the end is looked for.
const LOOK: Duration = Duration::from_millis(10);

/// What became of the stream so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Bytes given to the tunnel.
    pub(crate) sent: u64,
    /// Bytes that came back as they were sent.
    pub(crate) back: u64,
    /// The longest time in which nothing came back although something was on its way.
    pub(crate) silence: Duration,
    /// The first byte that is not the one sent at its place, in words.
    pub(crate) wrong: Option<String>,
    /// Why the connection ended.
    pub(crate) ended: Option<String>,
}

impl Tally {
    fn is_whole(&self) -> bool {
        self.sent == self.back
    }

    fn is_over(&self) -> bool {
        self.wrong.is_some() || self.ended.is_some()
    }
}

/// A running stream. Dropping it ends it.
pub(crate) struct Duplex {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    tally: Mutex<Tally>,
    /// Nothing more is sent.
    quiet: AtomicBool,
    over: AtomicBool,
}

impl Duplex {
    /// Writes `chunk` bytes `every` so often; a write that the tunnel does not take yet delays those behind it.
    ///
    /// # Errors
    /// The socket cannot be set up.
    pub(crate) fn start(stream: TcpStream, chunk: usize, every: Duration) -> Result<Duplex> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let shared = Arc::new(Shared::default());
        let now = Instant::now();
        let mut pump = Pump {
            stream,
            chunk,
            every,
            next: now,
            heard: now,
            unsent: 0,
            tally: Tally::default(),
            shared: Arc::clone(&shared),
        };
        let run = move || {
            if let Err(error) = pump.run() {
                pump.tally.ended = Some(format!("{error:#}"));
            }
            *pump.shared.tally() = pump.tally.clone();
        };
        let thread = thread::Builder::new().name("duplex".into()).spawn(run)?;
        Ok(Duplex { shared, thread: Some(thread) })
    }

    /// Bytes that have come back so far.
    pub(crate) fn back(&self) -> u64 {
        self.shared.tally().back
    }

    /// Bytes that the tunnel has taken so far.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.tally().sent
    }

    /// A byte was wrong, or the connection has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.shared.tally().is_over()
    }

    /// Stops sending, waits at most `within` for what is on its way, and says what became of everything.
    pub(crate) fn finish(mut self, within: Duration) -> Tally {
        self.shared.quiet.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + within;
        // What is half written still leaves.
        thread::sleep(LOOK);
        while Instant::now() < deadline {
            let tally = self.shared.tally();
            if tally.is_over() || tally.is_whole() {
                break;
            }
            drop(tally);
            thread::sleep(LOOK);
        }
        self.end();
        self.shared.tally().clone()
    }

    fn end(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic shows on standard error.
            let _ = thread.join();
        }
    }
}

impl Drop for Duplex {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Pump {
    stream: TcpStream,
    chunk: usize,
    every: Duration,
    next: Instant,
    /// When something came last, or was first waited for.
    heard: Instant,
    /// Bytes due that the socket has not taken.
    unsent: usize,
    tally: Tally,
    shared: Arc<Shared>,
}

impl Pump {
    fn run(&mut self) -> Result<()> {
        while !self.shared.over.load(Ordering::Relaxed) && !self.tally.is_over() {
            self.write()?;
            self.read()?;
            *self.shared.tally() = self.tally.clone();
            self.wait()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let now = Instant::now();
        let quiet = self.shared.quiet.load(Ordering::Relaxed);
        if self.unsent == 0 && self.next <= now && !quiet {
            self.unsent = self.chunk;
            self.next = (self.next + self.every).max(now);
        }
        while self.unsent > 0 {
            match self.stream.write(&content(self.tally.sent, self.unsent)) {
                Ok(written) => {
                    if self.tally.is_whole() {
                        self.heard = now;
                    }
                    self.unsent -= written;
                    self.tally.sent += written as u64;
                }
                Err(error) if passes(&error) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let mut buffer = [0; 64 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => anyhow::bail!("closed after {} bytes", self.tally.back),
                Ok(read) => self.compare(&buffer[..read]),
                Err(error) if passes(&error) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn compare(&mut self, bytes: &[u8]) {
        let now = Instant::now();
        self.tally.silence = self.tally.silence.max(now - self.heard);
        self.heard = now;
        let expected = content(self.tally.back, bytes.len());
        let same = bytes.iter().zip(&expected).take_while(|(byte, wanted)| byte == wanted).count();
        self.tally.back += same as u64;
        if same < bytes.len() || self.tally.back > self.tally.sent {
            let why = format!("byte {} is not the one sent there", self.tally.back);
            self.tally.wrong.get_or_insert(why);
        }
    }

    fn wait(&self) -> Result<()> {
        let due = self.next.saturating_duration_since(Instant::now());
        let pause = if self.shared.quiet.load(Ordering::Relaxed) { WAIT_MAX } else { due };
        let pause = if self.unsent > 0 { WAIT_MAX } else { pause.min(WAIT_MAX) };
        let flags = if self.unsent > 0 { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(pause.subsec_nanos()) };
        match poll(&mut [PollFd::new(&self.stream, flags)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What is sent from `place` on: a byte depends on its whole place, so a shift is seen within a few bytes.
fn content(place: u64, count: usize) -> Vec<u8> {
    let byte = |at: u64| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    (place..place + count as u64).map(byte).collect()
}

fn passes(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    /// A stream against a service that gives back what `change` makes of each read.
    fn against(change: impl Fn(&mut Vec<u8>) + Send + 'static) -> Tally {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 9_000];
            while let Ok(read @ 1..) = far.read(&mut buffer) {
                let mut bytes = buffer[..read].to_vec();
                change(&mut bytes);
                if far.write_all(&bytes).is_err() {
                    break;
                }
            }
        });
        let stream = Duplex::start(near, 1_000, Duration::from_millis(1)).unwrap();
        thread::sleep(Duration::from_millis(50));
        stream.finish(Duration::from_secs(2))
    }

    #[test]
    fn what_comes_back_as_it_was_sent_is_whole() {
        let tally = against(|_| ());
        assert!(tally.back > 0 && tally.is_whole() && !tally.is_over(), "{tally:?}");
    }

    #[test]
    fn a_byte_lost_doubled_swapped_or_changed_is_found() {
        let changes: [fn(&mut Vec<u8>); 4] = [
            |bytes| bytes.truncate(bytes.len() - 1),
            |bytes| bytes.insert(500, bytes[500]),
            |bytes| bytes.swap(500, 501),
            |bytes| bytes[500] ^= 4,
        ];
        for change in changes {
            let tally = against(change);
            assert!(tally.wrong.is_some(), "{tally:?}");
        }
    }

    #[test]
    fn what_never_comes_back_is_missed() {
        let tally = against(Vec::clear);
        assert!(tally.sent > 0 && tally.back == 0 && tally.wrong.is_none(), "{tally:?}");
    }
}
