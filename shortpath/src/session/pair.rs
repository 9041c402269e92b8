//! Two sessions in virtual time, joined by links that delay, lose and die; and the applications at both ends, which know
//! every byte they must see.
use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::frame::Frame;
use super::{
    ChannelError, ChannelId, CloseReason, Event, LegId, LegKind, ReadOutcome, Role, Session,
    SessionConfig,
};

/// One application's view of one channel.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) written: u64,
    pub(super) read: u64,
    pub(super) finished: bool,
    pub(super) ended: bool,
    pub(super) error: Option<ChannelError>,
    pub(super) released: bool,
}

pub(super) struct End {
    pub(super) session: Session,
    pub(super) streams: BTreeMap<ChannelId, Stream>,
    pub(super) suspects: Vec<LegId>,
    pub(super) lost: Vec<(LegId, String)>,
    pub(super) downs: usize,
    pub(super) resumes: usize,
    pub(super) closed: Option<CloseReason>,
}

#[derive(Default)]
struct Direction {
    queue: VecDeque<(Instant, Bytes)>,
    hole: bool,
}

pub(super) struct Link {
    legs: [Option<LegId>; 2],
    ways: [Direction; 2],
    delay: Duration,
    /// When the agent attaches its end.
    late: Option<Instant>,
}

pub(super) struct Pair {
    pub(super) now: Instant,
    pub(super) ends: [End; 2],
    pub(super) links: Vec<Link>,
    /// DATA payload bytes handed to links.
    pub(super) carried: u64,
}

pub(super) const CLIENT: usize = 0;
pub(super) const AGENT: usize = 1;

fn instance(role: Role) -> NonZeroU64 {
    NonZeroU64::new(if role == Role::Client { 1 } else { 2 }).unwrap()
}

impl Pair {
    pub(super) fn new(config: &SessionConfig) -> Self {
        let now = Instant::now();
        let end = |role| End {
            session: Session::new(now, role, "session", instance(role), config.clone()),
            streams: BTreeMap::new(),
            suspects: Vec::new(),
            lost: Vec::new(),
            downs: 0,
            resumes: 0,
            closed: None,
        };
        Self { now, ends: [end(Role::Client), end(Role::Agent)], links: Vec::new(), carried: 0 }
    }

    /// A new link, attached at both ends at once.
    pub(super) fn link(&mut self, delay: Duration) -> usize {
        self.skewed_link(delay, Duration::ZERO)
    }

    /// A new link whose agent attaches `skew` later than the client; frames wait for it. So the two ends may attach
    /// their legs in different orders.
    pub(super) fn skewed_link(&mut self, delay: Duration, skew: Duration) -> usize {
        let client = self.ends[CLIENT].session.attach(self.now, LegKind::TcpReverse);
        let late = Some(self.now + skew);
        self.links.push(Link { legs: [Some(client), None], ways: Default::default(), delay, late });
        self.attach_late();
        self.settle();
        self.links.len() - 1
    }

    /// One end learns that the link is dead; frames on their way to it are gone.
    pub(super) fn cut(&mut self, link: usize, end: usize) {
        if let Some(leg) = self.links[link].legs[end].take() {
            self.ends[end].session.detach(self.now, leg, "cut");
            self.links[link].ways.iter_mut().for_each(|way| way.hole = true);
            self.links[link].ways[1 - end].queue.clear();
        }
        self.settle();
    }

    /// Frames from `end` vanish, unnoticed.
    pub(super) fn blackhole(&mut self, link: usize, end: usize) {
        self.links[link].ways[end].hole = true;
        self.links[link].ways[end].queue.clear();
    }

    pub(super) fn leg(&self, link: usize, end: usize) -> Option<LegId> {
        self.links[link].legs[end]
    }

    pub(super) fn open(&mut self, end: usize) -> Option<ChannelId> {
        let id = self.ends[end].session.open().ok()?;
        self.ends[end].streams.insert(id, Stream::default());
        self.settle();
        Some(id)
    }

    /// Writes up to `count` bytes of the stream's known content.
    pub(super) fn write(&mut self, end: usize, id: ChannelId, count: u64) -> u64 {
        let Some(stream) = self.ends[end].streams.get_mut(&id) else { return 0 };
        if stream.finished || stream.error.is_some() || stream.released {
            return 0;
        }
        let mut bytes = content(end, id, stream.written, count);
        let before = bytes.len();
        match self.ends[end].session.write(id, &mut bytes) {
            Ok(()) => stream.written += (before - bytes.len()) as u64,
            Err(error) => stream.error = Some(error),
        }
        self.settle();
        (before - bytes.len()) as u64
    }

    pub(super) fn finish(&mut self, end: usize, id: ChannelId) {
        if let Some(stream) = self.ends[end].streams.get_mut(&id) {
            stream.finished = true;
            self.ends[end].session.finish(id);
        }
        self.settle();
    }

    pub(super) fn reset(&mut self, end: usize, id: ChannelId, code: u16) {
        if self.ends[end].streams.contains_key(&id) {
            self.ends[end].session.reset(id, code);
        }
        self.settle();
    }

    pub(super) fn release(&mut self, end: usize, id: ChannelId) {
        if let Some(stream) = self.ends[end].streams.get_mut(&id) {
            stream.released = true;
            self.ends[end].session.release(id);
        }
        self.settle();
    }

    /// Reads all there is, comparing every byte with what the other end wrote.
    pub(super) fn read(&mut self, end: usize, id: ChannelId) {
        let (writer, reader) = (1 - end, end);
        while let Some(stream) = self.ends[reader].streams.get_mut(&id) {
            if stream.error.is_some() || stream.released {
                break;
            }
            match self.ends[reader].session.read(id) {
                Ok(ReadOutcome::Bytes(bytes)) => {
                    assert!(!stream.ended, "bytes after the end");
                    let expected = content(writer, id, stream.read, bytes.len() as u64);
                    assert_eq!(bytes, expected, "{id:?} at {}", stream.read);
                    stream.read += bytes.len() as u64;
                }
                Ok(ReadOutcome::End) => {
                    stream.ended = true;
                    let read = stream.read;
                    let other = &self.ends[writer].streams[&id];
                    assert!(other.finished, "an end nobody made");
                    assert_eq!(read, other.written, "{id:?} ended early or late");
                    break;
                }
                Ok(ReadOutcome::Wait) => break,
                Err(error) => stream.error = Some(error),
            }
        }
        self.settle();
    }

    pub(super) fn read_all(&mut self) {
        for end in [CLIENT, AGENT] {
            let ids: Vec<_> = self.ends[end].streams.keys().copied().collect();
            ids.into_iter().for_each(|id| self.read(end, id));
        }
    }

    /// Lets time pass, with everything that falls due in it.
    pub(super) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(at) = self.next_due().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.attach_late();
            self.deliver();
            for end in &mut self.ends {
                end.session.handle_timeout(self.now);
            }
            self.settle();
        }
        self.now = until;
    }

    /// The drain of the calling contract, for both ends, until nothing moves.
    pub(super) fn settle(&mut self) {
        for end in [CLIENT, AGENT] {
            self.take_events(end);
            for link in 0..self.links.len() {
                self.transmit(link, end);
            }
            self.take_events(end);
            self.ends[end].session.check_bounds();
        }
    }

    fn attach_late(&mut self) {
        for link in &mut self.links {
            if link.late.take_if(|at| *at <= self.now).is_some() {
                let leg = self.ends[AGENT].session.attach(self.now, LegKind::TcpReverse);
                link.legs[AGENT] = Some(leg);
            }
        }
    }

    fn transmit(&mut self, link: usize, end: usize) {
        let Some(leg) = self.links[link].legs[end] else { return };
        let mut frames = Vec::new();
        while self.ends[end].session.has_transmit(leg) {
            self.ends[end].session.poll_transmit(self.now, leg, 20_000, &mut frames);
            let promised = self.ends[end].session.has_transmit(leg);
            assert!(!frames.is_empty() || !promised, "promised output does not come");
            let at = self.now + self.links[link].delay;
            for frame in frames.drain(..) {
                if let Frame::Data { bytes, .. } = &frame {
                    self.carried += bytes.len() as u64;
                }
                if !self.links[link].ways[end].hole {
                    self.links[link].ways[end].queue.push_back((at, encode(&frame)));
                }
            }
        }
    }

    fn deliver(&mut self) {
        for link in 0..self.links.len() {
            if self.links[link].late.is_some() {
                continue;
            }
            for from in [CLIENT, AGENT] {
                while self.links[link].ways[from]
                    .queue
                    .front()
                    .is_some_and(|(at, _)| *at <= self.now)
                {
                    let Some((_, bytes)) = self.links[link].ways[from].queue.pop_front() else {
                        break;
                    };
                    let Some(leg) = self.links[link].legs[1 - from] else { continue };
                    let frame = Frame::decode(&mut BytesMut::from(&bytes[..])).unwrap().unwrap();
                    self.ends[1 - from].session.handle_frame(self.now, leg, frame);
                    self.settle();
                }
            }
        }
    }

    fn take_events(&mut self, end: usize) {
        while let Some(event) = self.ends[end].session.poll_event() {
            let side = &mut self.ends[end];
            assert_eq!(side.closed, None, "an event after the last");
            match event {
                Event::Incoming(id) => {
                    assert!(side.streams.insert(id, Stream::default()).is_none(), "opened twice");
                }
                Event::LegSuspect(leg) => side.suspects.push(leg),
                Event::LegLost { leg, error } => {
                    side.lost.push((leg, error));
                    for link in &mut self.links {
                        if link.legs[end] == Some(leg) {
                            link.legs[end] = None;
                            link.ways.iter_mut().for_each(|way| way.hole = true);
                        }
                    }
                }
                Event::Down => side.downs += 1,
                Event::Resumed => side.resumes += 1,
                Event::Closed(reason) => side.closed = Some(reason),
                Event::Readable(_) | Event::Writable(_) | Event::Failed { .. } => {}
            }
        }
    }

    fn next_due(&mut self) -> Option<Instant> {
        let joined = self.links.iter().filter(|link| link.late.is_none());
        let frames = joined.flat_map(|link| &link.ways).filter_map(|way| way.queue.front());
        let late = self.links.iter().filter_map(|link| link.late);
        let frames = frames.map(|(at, _)| *at).chain(late).min();
        let [client, agent] = &mut self.ends;
        let timers =
            client.session.poll_timeout().into_iter().chain(agent.session.poll_timeout()).min();
        frames.into_iter().chain(timers).min()
    }
}

pub(super) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn encode(frame: &Frame) -> Bytes {
    let mut bytes = BytesMut::new();
    if let Some(payload) = frame.encode_head(&mut bytes) {
        bytes.extend_from_slice(payload);
    }
    assert_eq!(bytes.len(), frame.wire_len());
    bytes.freeze()
}

/// What `end` writes on `id` from `offset` on: every position has its own value, so a shift never goes unseen.
fn content(end: usize, id: ChannelId, offset: u64, count: u64) -> Bytes {
    let salt = u64::from(id.get()) * 2 + end as u64;
    let byte = |at: u64| ((at + salt * 7_919).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    (offset..offset + count).map(byte).collect()
}
