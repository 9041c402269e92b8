//! Whole sessions: set up, used, ended, many at once and over and over; or set up and held.
//!
//! One thread, non-blocking sockets, one epoll set. A session through a proxy is one connection that
//! comes out of it as another; through our gateway it is two dialled legs, each with its hello. The
//! near end speaks first and ends first, and the session is over when its own end of stream comes
//! back.

mod end;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use self::end::{End, Progress};
use super::drive::Clock;
use super::{DRAIN, ledger, nanos};
use crate::peers::socket::Dialer;
use crate::peers::{Dialling, Pair};

/// What each session carries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    /// Bytes from the near to the far end, at least 1.
    pub(crate) bytes: u64,
    /// The far end sends them back.
    pub(crate) echo: bool,
    /// Sessions at once.
    pub(crate) concurrency: usize,
    /// Once its bytes have come back a session is not ended, but kept (needs `echo`).
    pub(crate) hold: bool,
}

/// How many sessions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    /// No session begins after this time.
    pub(crate) time: Duration,
    /// Nor more than this many.
    pub(crate) sessions: u64,
}

/// What came of them.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Sessions that ran to their end (or, held, to their echo).
    pub(crate) sessions: u64,
    /// From the connect to the first echoed byte; without echo to the end of the session.
    pub(crate) latency_ns: Histogram<u64>,
    /// Both ends of the sessions that are held.
    pub(crate) held: Vec<TcpStream>,
    /// Why holding more sessions failed.
    pub(crate) stopped: Option<anyhow::Error>,
}

/// Runs sessions until `limit`, or until the pairs run out, and waits for the last to end.
///
/// # Errors
/// A session is refused, fails, stalls for [`DRAIN`], or loses bytes. With `hold`, that is no error
/// once a session is held.
pub(crate) fn run(dialling: Dialling, dialer: &Dialer, task: Task, limit: Limit) -> Result<Tally> {
    let mut run = Run::new(dialling, dialer, task, limit)?;
    let ran = run.run_out();
    let mut tally =
        Tally { sessions: run.done, latency_ns: run.latency_ns, held: Vec::new(), stopped: None };
    match ran {
        Err(error) if !task.hold || tally.sessions == 0 => return Err(error),
        Err(error) => tally.stopped = Some(error),
        Ok(()) if !task.hold => {
            let (sent, arrived) = (tally.sessions * task.bytes, run.arrived);
            ensure!(sent == arrived, "{sent} bytes sent, {arrived} arrived");
        }
        Ok(()) => {}
    }
    tally.held.extend(run.ends.into_iter().flatten().map(|end| end.socket));
    Ok(tally)
}

/// Sockets looked at per wait; more wait for the next.
const EVENTS_MAX: usize = 256;

/// One read: a short flow's bytes in a few calls.
const SCRATCH_BYTES: usize = 64 << 10;

/// The token of the listener.
const LISTENER: u64 = u64::MAX;

struct Run<'a> {
    dialer: &'a Dialer,
    route: Route,
    task: Task,
    limit: Limit,
    clock: Clock,
    epoll: OwnedFd,
    /// The index is the epoll token; free places are reused.
    ends: Vec<Option<End>>,
    free: Vec<usize>,
    /// Near ends under way, and far ends that are not closed.
    near_open: usize,
    far_open: usize,
    begun: u64,
    done: u64,
    /// Bytes that arrived at far ends.
    arrived: u64,
    latency_ns: Histogram<u64>,
    scratch: Vec<u8>,
}

enum Route {
    Proxied { relay: SocketAddr, far: TcpListener },
    Legs { gateway: SocketAddr, pairs: std::vec::IntoIter<Pair> },
}

impl<'a> Run<'a> {
    fn new(dialling: Dialling, dialer: &'a Dialer, task: Task, limit: Limit) -> Result<Run<'a>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let route = match dialling {
            Dialling::Proxied { relay, far } => {
                far.set_nonblocking(true)?;
                let token = epoll::EventData::new_u64(LISTENER);
                epoll::add(&epoll, &far, token, epoll::EventFlags::IN)?;
                Route::Proxied { relay, far }
            }
            Dialling::Legs { gateway, pairs } => Route::Legs { gateway, pairs: pairs.into_iter() },
        };
        Ok(Run {
            dialer,
            route,
            task,
            limit,
            clock: Clock::start(),
            epoll,
            ends: Vec::new(),
            free: Vec::new(),
            near_open: 0,
            far_open: 0,
            begun: 0,
            done: 0,
            arrived: 0,
            latency_ns: ledger::histogram(),
            scratch: vec![0; SCRATCH_BYTES],
        })
    }

    fn run_out(&mut self) -> Result<()> {
        loop {
            while self.near_open < self.task.concurrency && self.may_begin() {
                if !self.begin()? {
                    self.limit.sessions = self.begun;
                }
            }
            let waits_for_far = self.far_open > 0 && !self.task.hold;
            if self.near_open == 0 && !waits_for_far {
                return Ok(());
            }
            self.turn()?;
        }
    }

    fn may_begin(&self) -> bool {
        self.begun < self.limit.sessions && self.clock.now_ns() < nanos(self.limit.time)
    }

    /// Dials one more session; `false` if there is no pair left.
    fn begin(&mut self) -> Result<bool> {
        let begun_ns = self.clock.now_ns();
        let (near, hello) = match &mut self.route {
            Route::Proxied { relay, .. } => (self.dialer.begin(*relay)?, Vec::new()),
            Route::Legs { gateway, pairs } => {
                let Some(pair) = pairs.next() else { return Ok(false) };
                let gateway = *gateway;
                let agent = self.dialer.begin_far(gateway).context("dialling as the agent")?;
                let expected = pair.client_hello.clone();
                self.far_open += 1;
                self.add(End::agent(agent, pair.agent_hello, expected, self.task.echo))?;
                (self.dialer.begin(gateway).context("dialling as the client")?, pair.client_hello)
            }
        };
        self.begun += 1;
        self.near_open += 1;
        self.add(End::near(near, hello, &self.task, begun_ns))?;
        Ok(true)
    }

    fn turn(&mut self) -> Result<()> {
        let timeout = Timespec { tv_sec: DRAIN.as_secs() as i64, tv_nsec: 0 };
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_MAX);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)) {
            Ok(0) => bail!(
                "nothing moved for {DRAIN:?}: {} sessions have not ended, {} have",
                self.near_open,
                self.done
            ),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for the sessions"),
        }
        for event in &events {
            let data = event.data;
            match data.u64() {
                LISTENER => self.accept()?,
                token => self.serve(token as usize)?,
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        let Route::Proxied { far, .. } = &self.route else { return Ok(()) };
        match far.accept() {
            Ok((socket, _)) => {
                socket.set_nodelay(true)?;
                socket.set_nonblocking(true)?;
                self.far_open += 1;
                self.add(End::accepted(socket, self.task.echo))
            }
            Err(error) if end::is_transient(&error) => Ok(()),
            Err(error) => Err(error).context("accepting a session"),
        }
    }

    /// Takes an end in, watches it, and lets it do what it can at once.
    fn add(&mut self, end: End) -> Result<()> {
        let token = self.free.pop().unwrap_or_else(|| {
            self.ends.push(None);
            self.ends.len() - 1
        });
        let data = epoll::EventData::new_u64(token as u64);
        epoll::add(&self.epoll, &end.socket, data, epoll::EventFlags::IN)?;
        let is_near = end.is_near();
        self.ends[token] = Some(end);
        if is_near || matches!(self.route, Route::Legs { .. }) { self.serve(token) } else { Ok(()) }
    }

    /// Moves what can be moved at one end. An event of an end that has gone meanwhile finds none,
    /// or another one with nothing to do: both are harmless.
    fn serve(&mut self, token: usize) -> Result<()> {
        let Some(end) = self.ends.get_mut(token).and_then(Option::as_mut) else { return Ok(()) };
        let progress = end.advance(&mut self.scratch)?;
        let wants = end.interest();
        if wants != end.watched {
            let data = epoll::EventData::new_u64(token as u64);
            epoll::modify(&self.epoll, &end.socket, data, wants)?;
            end.watched = wants;
        }
        let age_ns = self.clock.now_ns() - end.begun_ns;
        if end.is_near() && progress.answered && self.task.echo {
            self.latency_ns.saturating_record(age_ns);
        }
        if end.is_near() && progress.complete && self.task.hold {
            self.near_open -= 1;
            self.done += 1;
        }
        if progress.ended {
            self.ended(token, &progress, age_ns)?;
        }
        Ok(())
    }

    fn ended(&mut self, token: usize, progress: &Progress, age_ns: u64) -> Result<()> {
        let Some(end) = self.ends[token].take() else { return Ok(()) };
        self.free.push(token);
        ensure!(!self.task.hold, "a session ended that was to be held{}", end.refusal());
        if !end.is_near() {
            self.far_open -= 1;
            self.arrived += end.received;
            return Ok(());
        }
        self.near_open -= 1;
        ensure!(
            progress.whole,
            "a session ended after {} of {} bytes had come back{}",
            end.received,
            if self.task.echo { self.task.bytes } else { 0 },
            end.refusal()
        );
        self.done += 1;
        if !self.task.echo {
            self.latency_ns.saturating_record(age_ns);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
