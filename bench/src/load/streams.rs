//! Bulk: each lane is filled at one end and emptied at the other as fast as it goes, or as slowly
//! as its reader is told to.
//!
//! The source is `sendfile` from a memory file and the sink discards in the kernel (`MSG_TRUNC`,
//! tcp(7)), so that the generator costs little and the relay is the bottleneck. Afterwards the
//! sending ends are shut, the tails drained, and every lane's bytes compared.

use std::io::{Seek, SeekFrom, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fs::{MemfdFlags, memfd_create, sendfile};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::{DRAIN, nanos};
use crate::peers::Flow;

/// Which way bytes go, seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

/// Size of the memory file: larger than the caches, so that the relay does not read from L2.
const SOURCE_BYTES: u64 = 32 << 20;

/// One `sendfile`. Large enough to amortise the call, small enough to turn to the sink, and to
/// interactive messages, often.
const SEND_BYTES: usize = 256 << 10;

/// One `recv`. Nothing is copied; this only bounds one call.
const RECV_BYTES: usize = 1 << 20;

/// Readers that are slow read this often: smooth enough that no window closes for long.
const SLOW_READS_PER_SECOND: u64 = 20;

/// Ends looked at per wait; more wait for the next.
const EVENTS_MAX: usize = 256;

/// All bulk of a run.
pub(crate) struct Streams {
    /// The index is the epoll token.
    ends: Vec<End>,
    lanes: Vec<Lane>,
    /// Ends that were ready when last looked, and are yet to be served.
    ready: Vec<(usize, epoll::EventFlags)>,
    epoll: OwnedFd,
    source: OwnedFd,
    scratch: Vec<u8>,
    /// When a byte last moved on a lane that is not slow.
    moved_ns: u64,
    has_slow: bool,
}

/// A socket, with the lane it fills and the lane it empties.
struct End {
    socket: TcpStream,
    fills: Option<usize>,
    empties: Option<usize>,
    interest: epoll::EventFlags,
}

/// One direction of a flow. An end that is `None` is somewhere else.
struct Lane {
    from: Option<usize>,
    to: Option<usize>,
    offset: u64,
    sent: u64,
    received: u64,
    state: State,
    slow: Option<Slow>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Sending,
    Draining,
    Ended,
}

/// A reader that takes `bytes` every `gap_ns`.
#[derive(Clone, Copy)]
struct Slow {
    bytes: usize,
    gap_ns: u64,
    next_ns: u64,
}

impl Streams {
    /// Over flows of which both ends are here, towards the far ends or both ways.
    ///
    /// # Errors
    /// No flows, or no epoll set or source.
    pub(crate) fn between(flows: Vec<Flow>, both_ways: bool) -> Result<Streams> {
        let mut streams = Streams::empty()?;
        for Flow { near, far } in flows {
            let (near, far) = (streams.end(near)?, streams.end(far)?);
            streams.lane(Some(near), Some(far));
            if both_ways {
                streams.lane(Some(far), Some(near));
            }
        }
        streams.watched()
    }

    /// Over flows whose far ends take only this much, while their near ends push.
    ///
    /// # Errors
    /// As [`Streams::between`].
    pub(crate) fn slowly(flows: Vec<Flow>, kib_per_second: u64) -> Result<Streams> {
        let mut streams = Streams::between(flows, false)?;
        let bytes = (kib_per_second * 1024 / SLOW_READS_PER_SECOND).max(1);
        let gap_ns = nanos(Duration::from_secs(1)) / SLOW_READS_PER_SECOND;
        for lane in &mut streams.lanes {
            lane.slow = Some(Slow { bytes: bytes as usize, gap_ns, next_ns: 0 });
        }
        streams.has_slow = true;
        streams.watched()
    }

    /// Over connections to a service elsewhere, which takes bytes or gives them.
    ///
    /// # Errors
    /// As [`Streams::between`].
    pub(crate) fn to_service(near: Vec<TcpStream>, way: Way) -> Result<Streams> {
        let mut streams = Streams::empty()?;
        for socket in near {
            let near = streams.end(socket)?;
            if way == Way::Up {
                streams.lane(Some(near), None);
            }
            streams.lane(None, Some(near));
        }
        streams.watched()
    }

    /// One bounded step: sends or receives once on one ready end. Waits for one for at most `wait`;
    /// `None` does not wait. Tells whether there was anything to do.
    ///
    /// # Errors
    /// A flow that fails or ends early, or nothing moved for [`DRAIN`].
    pub(crate) fn step(&mut self, now_ns: u64, wait: Option<Duration>) -> Result<bool> {
        let slow = self.has_slow && self.read_slowly(now_ns)?;
        if self.ready.is_empty() {
            self.look(wait)?;
        }
        let Some((token, flags)) = self.ready.pop() else {
            let stalled = !self.has_slow && now_ns > self.moved_ns + nanos(DRAIN);
            ensure!(!stalled, "no byte moved for {DRAIN:?}: the flows are stalled");
            return Ok(slow);
        };
        self.moved_ns = now_ns;
        self.serve(token, flags)?;
        Ok(true)
    }

    /// Bytes so far: what arrived here, or, on lanes that leave us, what was sent.
    pub(crate) fn bytes(&self) -> u64 {
        let of = |lane: &Lane| if lane.to.is_some() { lane.received } else { lane.sent };
        self.lanes.iter().map(of).sum()
    }

    /// Shuts the sending ends, receives the tails, compares the counts, and returns
    /// [`Streams::bytes`]. A service that only gives bytes is left without waiting for its end.
    ///
    /// # Errors
    /// A tail or an end that does not arrive within [`DRAIN`], or counts that differ.
    pub(crate) fn drain(&mut self) -> Result<u64> {
        if self.lanes.iter().all(|lane| lane.from.is_none()) {
            return Ok(self.bytes());
        }
        for index in 0..self.lanes.len() {
            self.lanes[index].slow = None;
            self.shut(index)?;
        }
        let deadline = Instant::now() + DRAIN;
        while self.lanes.iter().any(|lane| lane.state != State::Ended) {
            ensure!(Instant::now() < deadline, "tails or their end did not arrive in {DRAIN:?}");
            self.look(Some(DRAIN))?;
            while let Some((token, flags)) = self.ready.pop() {
                self.serve(token, flags)?;
            }
        }
        for (index, lane) in self.lanes.iter().enumerate() {
            let (sent, received) = (lane.sent, lane.received);
            let whole = lane.from.is_none() || lane.to.is_none() || sent == received;
            ensure!(whole, "lane {index}: {sent} bytes sent, {received} received");
        }
        Ok(self.bytes())
    }

    fn empty() -> Result<Streams> {
        Ok(Streams {
            ends: Vec::new(),
            lanes: Vec::new(),
            ready: Vec::with_capacity(EVENTS_MAX),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            source: source_file()?,
            scratch: vec![0; RECV_BYTES],
            moved_ns: 0,
            has_slow: false,
        })
    }

    fn end(&mut self, socket: TcpStream) -> Result<usize> {
        socket.set_nonblocking(true)?;
        let interest = epoll::EventFlags::empty();
        let data = epoll::EventData::new_u64(self.ends.len() as u64);
        epoll::add(&self.epoll, &socket, data, interest)?;
        self.ends.push(End { socket, fills: None, empties: None, interest });
        Ok(self.ends.len() - 1)
    }

    fn lane(&mut self, from: Option<usize>, to: Option<usize>) {
        let lane = self.lanes.len();
        if let Some(from) = from {
            self.ends[from].fills = Some(lane);
        }
        if let Some(to) = to {
            self.ends[to].empties = Some(lane);
        }
        let state = State::Sending;
        self.lanes.push(Lane { from, to, offset: 0, sent: 0, received: 0, state, slow: None });
    }

    fn watched(mut self) -> Result<Streams> {
        ensure!(!self.lanes.is_empty(), "bulk needs at least one flow");
        for token in 0..self.ends.len() {
            self.rearm(token)?;
        }
        Ok(self)
    }

    /// Makes epoll look for what the end's lanes want.
    fn rearm(&mut self, token: usize) -> Result<()> {
        let end = &self.ends[token];
        let lane = |index: Option<usize>| index.map(|index| &self.lanes[index]);
        let mut wanted = epoll::EventFlags::empty();
        if lane(end.fills).is_some_and(|lane| lane.state == State::Sending) {
            wanted |= epoll::EventFlags::OUT;
        }
        if lane(end.empties).is_some_and(|lane| lane.state != State::Ended && lane.slow.is_none()) {
            wanted |= epoll::EventFlags::IN;
        }
        if wanted != end.interest {
            let data = epoll::EventData::new_u64(token as u64);
            epoll::modify(&self.epoll, &end.socket, data, wanted)?;
            self.ends[token].interest = wanted;
        }
        Ok(())
    }

    fn look(&mut self, wait: Option<Duration>) -> Result<()> {
        let wait = wait.unwrap_or_default();
        let timeout =
            Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_MAX);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)) {
            Ok(0) if !wait.is_zero() => bail!("no byte moved for {wait:?}: the flows are stalled"),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for the flows"),
        }
        self.ready.extend(events.iter().rev().map(|event| {
            let (data, flags) = (event.data, event.flags);
            (data.u64() as usize, flags)
        }));
        Ok(())
    }

    /// Sends once, receives once, as far as the end is ready for it.
    fn serve(&mut self, token: usize, flags: epoll::EventFlags) -> Result<()> {
        let failed = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
        let (fills, empties) = (self.ends[token].fills, self.ends[token].empties);
        if let Some(lane) = fills
            && (failed || flags.contains(epoll::EventFlags::OUT))
            && self.lanes[lane].state == State::Sending
        {
            self.send(token, lane)?;
        }
        if let Some(lane) = empties
            && (failed || flags.contains(epoll::EventFlags::IN))
            && self.lanes[lane].state != State::Ended
            && self.lanes[lane].slow.is_none()
        {
            self.receive(token, lane, RECV_BYTES)?;
        }
        Ok(())
    }

    fn send(&mut self, token: usize, lane: usize) -> Result<()> {
        let (socket, lane) = (&self.ends[token].socket, &mut self.lanes[lane]);
        let count = SEND_BYTES.min((SOURCE_BYTES - lane.offset) as usize);
        match sendfile(socket, &self.source, Some(&mut lane.offset), count) {
            Ok(sent) => lane.sent += sent as u64,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error).context("sending bulk"),
        }
        lane.offset %= SOURCE_BYTES;
        Ok(())
    }

    fn receive(&mut self, token: usize, index: usize, bytes_max: usize) -> Result<()> {
        let (socket, lane) = (&self.ends[token].socket, &mut self.lanes[index]);
        match recv(socket, &mut self.scratch[..bytes_max], RecvFlags::TRUNC) {
            Ok((_, 0)) if lane.state == State::Sending => {
                bail!("the flow was ended from the other side while the run was on")
            }
            Ok((_, 0)) => {
                lane.state = State::Ended;
                self.rearm(token)?;
            }
            Ok((_, bytes)) => lane.received += bytes as u64,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error).context("receiving bulk"),
        }
        Ok(())
    }

    /// Serves the slow readers whose time has come. Tells whether there were any.
    fn read_slowly(&mut self, now_ns: u64) -> Result<bool> {
        let mut any = false;
        for index in 0..self.lanes.len() {
            let lane = &mut self.lanes[index];
            let (Some(slow), Some(to)) = (&mut lane.slow, lane.to) else { continue };
            if slow.next_ns <= now_ns {
                slow.next_ns = now_ns + slow.gap_ns;
                let bytes = slow.bytes.min(RECV_BYTES);
                self.receive(to, index, bytes)?;
                any = true;
            }
        }
        Ok(any)
    }

    /// No more is sent on a lane; its tail may still come.
    fn shut(&mut self, index: usize) -> Result<()> {
        let Lane { from, to, .. } = self.lanes[index];
        if let Some(from) = from {
            let shut = self.ends[from].socket.shutdown(Shutdown::Write);
            shut.context("shutting a sending end")?;
        }
        self.lanes[index].state = if to.is_some() { State::Draining } else { State::Ended };
        from.into_iter().chain(to).try_for_each(|token| self.rearm(token))
    }
}

/// An unlinked memory file of [`SOURCE_BYTES`] with no two equal pages.
fn source_file() -> Result<OwnedFd> {
    let memory = memfd_create("bulk-source", MemfdFlags::CLOEXEC).context("creating the source")?;
    let mut file = std::fs::File::from(memory);
    let block: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    for _ in 0..SOURCE_BYTES / block.len() as u64 {
        file.write_all(&block)?;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::drive::{Load, Outcome, Unwatched, Window, run};
    use crate::measure::Meter;
    use crate::peers::socket::Dialer;

    fn drive(streams: Streams) -> Result<Outcome> {
        let (warmup, measured) = (Duration::from_millis(10), Duration::from_millis(50));
        let window = Window { warmup, measured };
        let load = Load { exchange: None, streams: Some(streams), window, spin: false };
        run(load, &Meter::of_generator(), &mut Unwatched)
    }

    fn flows(count: usize) -> Vec<Flow> {
        (0..count).map(|_| Dialer::system_default().direct_flow().unwrap()).collect()
    }

    #[test]
    fn every_byte_sent_arrives_one_way_and_both_ways() {
        for both_ways in [false, true] {
            let outcome = drive(Streams::between(flows(3), both_ways).unwrap()).unwrap();
            assert!(outcome.window_bytes > 0 && outcome.total_bytes > outcome.window_bytes);
        }
    }

    #[test]
    fn a_flow_that_ends_early_is_an_error() {
        let mut two = flows(2);
        let other = two.pop().unwrap();
        other.near.shutdown(Shutdown::Write).unwrap();
        let near = two.pop().unwrap().near;
        let streams = Streams::between(vec![Flow { near, far: other.far }], false).unwrap();
        assert!(drive(streams).is_err());
    }

    #[test]
    fn a_slow_reader_takes_no_more_than_its_share_until_the_end() {
        let mut streams = Streams::slowly(flows(1), 1000).unwrap();
        let second = nanos(Duration::from_secs(1));
        // In virtual time: 100 turns of 10 ms are one second.
        for turn in 0..100 {
            streams.step(turn * second / 100, None).unwrap();
        }
        // The first of 20 reads comes before anything was sent.
        assert_eq!(streams.bytes(), 1000 * 1024 / 20 * 19);
        let total = streams.drain().unwrap();
        assert!(total > 1000 * 1024, "the source kept its socket full: {total}");
    }

    #[test]
    fn a_service_may_take_bytes_or_give_them() {
        let Flow { near, far } = flows(1).remove(0);
        let sink = std::thread::spawn(move || std::io::copy(&mut &far, &mut std::io::sink()));
        let taken = drive(Streams::to_service(vec![near], Way::Up).unwrap()).unwrap();
        assert_eq!(sink.join().unwrap().unwrap(), taken.total_bytes);

        let Flow { near, far } = flows(1).remove(0);
        // Ends with an error when nobody listens any more.
        std::thread::spawn(move || std::io::copy(&mut std::io::repeat(1), &mut &far));
        let given = drive(Streams::to_service(vec![near], Way::Down).unwrap()).unwrap();
        assert!(given.window_bytes > 0);
    }
}
