//! Two sessions in virtual time, joined by links that delay, lose, throttle, stop and die; and the applications at both
//! ends, which know every byte they must see.
//!
//! A TCP link keeps all frames in order, a UDP link those of one channel, and those about the leg. A lost packet delays what
//! its stream carries by a round trip and more; a lost datagram is gone. What falls into a hole is sent again when it heals.
use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::frame::Frame;
use super::{
    ChannelError, ChannelId, CloseReason, Event, LegId, LegKind, MoveCause, PathFigures,
    ReadOutcome, Role, Session, SessionConfig,
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
    pub(super) doubts: Vec<Instant>,
    pub(super) closed: Option<CloseReason>,
    pub(super) moves: Vec<(LegKind, MoveCause, Duration)>,
    /// Stalls that ended without a move.
    pub(super) recovered: Vec<(LegKind, Duration)>,
    /// Datagrams that have come.
    pub(super) datagrams: BTreeMap<ChannelId, Vec<Bytes>>,
}

#[derive(Default)]
struct Direction {
    /// By arrival, then by sending.
    queue: BTreeMap<(Instant, u64), Bytes>,
    /// When the last frame of each stream arrives; all of TCP is one.
    ordered: BTreeMap<u32, Instant>,
    /// What a hole has swallowed and a transport would send again.
    stuck: VecDeque<(u32, Bytes)>,
    hole: bool,
    free_at: Option<Instant>,
    packets: u64,
    lost: u64,
    noted: u64,
}

/// How a link treats what it carries, in both directions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    pub(super) delay: Duration,
    pub(super) jitter: Duration,
    /// Packets lost of a hundred, each way.
    pub(super) loss: f64,
    /// Datagrams doubled of a hundred.
    pub(super) doubles: f64,
    /// Bytes a second.
    pub(super) rate: Option<u64>,
    /// Longer frames vanish like what falls into a hole: packets of full size do not pass.
    pub(super) swallows: Option<usize>,
}

impl Weather {
    pub(super) fn fair(delay: Duration) -> Self {
        Self { delay, jitter: Duration::ZERO, loss: 0.0, doubles: 0.0, rate: None, swallows: None }
    }
}

/// What a transport buffers before it takes no more, as a time at the link's rate.
const BUFFER: Duration = Duration::from_millis(100);
/// How often a transport tells of its path.
const NOTE: Duration = Duration::from_millis(100);

pub(super) struct Link {
    legs: [Option<LegId>; 2],
    ways: [Direction; 2],
    kind: LegKind,
    pub(super) weather: Weather,
    note_at: Instant,
    /// When the agent attaches its end.
    late: Option<Instant>,
}

pub(super) struct Pair {
    pub(super) now: Instant,
    pub(super) ends: [End; 2],
    pub(super) links: Vec<Link>,
    /// DATA payload bytes handed to links.
    pub(super) carried: u64,
    random: StdRng,
    sequence: u64,
}

pub(super) const CLIENT: usize = 0;
pub(super) const AGENT: usize = 1;

fn instance(role: Role) -> NonZeroU64 {
    NonZeroU64::new(if role == Role::Client { 1 } else { 2 }).unwrap()
}

impl Pair {
    pub(super) fn new(config: &SessionConfig) -> Self {
        Self::seeded(config, 1)
    }

    pub(super) fn seeded(config: &SessionConfig, seed: u64) -> Self {
        let now = Instant::now();
        let end = |role| End {
            session: Session::new(now, role, "session", instance(role), config.clone()),
            streams: BTreeMap::new(),
            suspects: Vec::new(),
            lost: Vec::new(),
            downs: 0,
            resumes: 0,
            doubts: Vec::new(),
            closed: None,
            moves: Vec::new(),
            recovered: Vec::new(),
            datagrams: BTreeMap::new(),
        };
        Self {
            now,
            ends: [end(Role::Client), end(Role::Agent)],
            links: Vec::new(),
            carried: 0,
            random: StdRng::seed_from_u64(seed),
            sequence: 0,
        }
    }

    /// A new link, attached at both ends at once.
    pub(super) fn link(&mut self, delay: Duration) -> usize {
        self.skewed_link(delay, Duration::ZERO)
    }

    /// A new link whose agent attaches `skew` later than the client; frames wait for it. So the two ends may attach
    /// their legs in different orders.
    pub(super) fn skewed_link(&mut self, delay: Duration, skew: Duration) -> usize {
        self.link_of(LegKind::TcpReverse, Weather::fair(delay), skew)
    }

    pub(super) fn link_of(&mut self, kind: LegKind, weather: Weather, skew: Duration) -> usize {
        let client = self.ends[CLIENT].session.attach(self.now, kind);
        self.equip(CLIENT, client, kind, weather);
        let late = Some(self.now + skew);
        self.links.push(Link {
            legs: [Some(client), None],
            ways: Default::default(),
            kind,
            weather,
            note_at: self.now + NOTE,
            late,
        });
        self.attach_late();
        self.settle();
        self.links.len() - 1
    }

    /// A UDP transport comes with datagrams and a first estimate of its path.
    fn equip(&mut self, end: usize, leg: LegId, kind: LegKind, weather: Weather) {
        if kind.is_udp() {
            let session = &mut self.ends[end].session;
            session.set_datagram_max(leg, 1_200);
            let rtt = weather.delay * 2;
            session.note_path(self.now, leg, PathFigures { rtt, sent: 4, lost: 0, black_holes: 0 });
        }
    }

    /// One end learns that the link is dead; frames on their way to it are gone.
    pub(super) fn cut(&mut self, link: usize, end: usize) {
        if let Some(leg) = self.links[link].legs[end].take() {
            self.ends[end].session.detach(self.now, leg, "cut");
            for way in &mut self.links[link].ways {
                way.hole = true;
                way.stuck.clear();
            }
            self.links[link].ways[1 - end].queue.clear();
        }
        self.settle();
    }

    /// Frames from `end` vanish, unnoticed, until the hole heals.
    pub(super) fn blackhole(&mut self, link: usize, end: usize) {
        let tcp = !self.links[link].kind.is_udp();
        let way = &mut self.links[link].ways[end];
        way.hole = true;
        for bytes in std::mem::take(&mut way.queue).into_values() {
            let stream = if tcp { 0 } else { channel_of(&bytes) };
            if tcp || !is_loose(&bytes) {
                way.stuck.push_back((stream, bytes));
            }
        }
    }

    /// The transports find out `after` the network does.
    pub(super) fn heal(&mut self, link: usize, after: Duration) {
        if self.links[link].legs.contains(&None) {
            return;
        }
        for end in [CLIENT, AGENT] {
            self.links[link].ways[end].hole = false;
            self.links[link].ways[end].free_at = None;
            let stuck = std::mem::take(&mut self.links[link].ways[end].stuck);
            for (stream, bytes) in stuck {
                self.carry(link, end, stream, bytes, after);
            }
        }
    }

    /// The transports find that as many packets more than they have sent since are lost.
    pub(super) fn finds_lost(&mut self, link: usize, packets: u64) {
        for way in &mut self.links[link].ways {
            way.lost += packets;
            way.packets += 1;
        }
    }

    /// Links neither end has lost.
    pub(super) fn set_rate(&mut self, link: usize, rate: u64) {
        self.links[link].weather.rate = Some(rate);
    }

    pub(super) fn set_delay(&mut self, link: usize, delay: Duration) {
        self.links[link].weather.delay = delay;
    }

    pub(super) fn live_links(&self) -> usize {
        self.links.iter().filter(|link| link.legs.iter().all(Option::is_some)).count()
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
        let mut rounds = 0;
        while let Some(at) = self.next_due().filter(|at| *at <= until) {
            rounds = if at > self.now { 0 } else { rounds + 1 };
            assert!(rounds < 10_000, "a deadline that does not pass");
            self.now = self.now.max(at);
            self.attach_late();
            self.deliver();
            self.note_paths();
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
        for at in 0..self.links.len() {
            let link = &mut self.links[at];
            if link.late.take_if(|late| *late <= self.now).is_some() {
                let leg = self.ends[AGENT].session.attach(self.now, link.kind);
                link.legs[AGENT] = Some(leg);
                let (kind, weather) = (link.kind, link.weather);
                self.equip(AGENT, leg, kind, weather);
            }
        }
    }

    fn transmit(&mut self, link: usize, end: usize) {
        let Some(leg) = self.links[link].legs[end] else { return };
        let tcp = !self.links[link].kind.is_udp();
        let mut frames = Vec::new();
        let mut rounds = 0;
        while self.has_room(link, end) && self.ends[end].session.has_transmit(leg) {
            self.ends[end].session.poll_transmit(self.now, leg, 20_000, &mut frames);
            rounds += 1;
            assert!(rounds < 10_000, "output without end: {:?}", frames.first());
            let promised = self.ends[end].session.has_transmit(leg);
            assert!(!frames.is_empty() || !promised, "promised output does not come");
            for frame in frames.drain(..) {
                assert!(!frame.is_loose(), "an unreliable frame on a stream");
                if let Frame::Data { bytes, .. } = &frame {
                    self.carried += bytes.len() as u64;
                }
                let bytes = encode(&frame);
                let stream = if tcp { 0 } else { channel_of(&bytes) };
                if self.is_swallowed(link, end, stream, bytes.len()) {
                    self.links[link].ways[end].stuck.push_back((stream, bytes));
                } else {
                    self.carry(link, end, stream, bytes, Duration::ZERO);
                }
            }
        }
        while self.ends[end].session.has_datagram(leg) {
            let Some(frame) = self.ends[end].session.poll_datagram(self.now, leg) else { continue };
            assert!(!tcp && frame.is_loose() && frame.wire_len() <= 1_200);
            self.throw(link, end, &encode(&frame));
        }
    }

    /// A frame does not pass: a hole, a frame too long, or one before it in its stream that is stuck.
    fn is_swallowed(&self, link: usize, end: usize, stream: u32, len: usize) -> bool {
        let (weather, way) = (&self.links[link].weather, &self.links[link].ways[end]);
        way.hole
            || weather.swallows.is_some_and(|most| {
                len > most || way.stuck.iter().any(|(stuck, _)| *stuck == stream)
            })
    }

    fn has_room(&self, link: usize, end: usize) -> bool {
        self.links[link].ways[end].free_at.is_none_or(|free| free <= self.now + BUFFER)
    }

    /// A reliable frame: each loss costs its stream a round trip and the time until the next packet reveals it, or a
    /// retransmission timeout, which is longer with TCP.
    fn carry(&mut self, link: usize, end: usize, stream: u32, bytes: Bytes, after: Duration) {
        let weather = self.links[link].weather;
        let mut at = self.leaves_at(link, end, bytes.len()) + after + self.trip(link);
        self.links[link].ways[end].packets += 1;
        while self.random.random_bool(weather.loss / 100.0) {
            self.links[link].ways[end].lost += 1;
            let tail = if self.links[link].kind.is_udp() { ms(35) } else { ms(200) };
            let revealed = if self.random.random_bool(0.2) { tail } else { ms(20) };
            at += weather.delay * 2 + revealed;
        }
        let way = &mut self.links[link].ways[end];
        let before = way.ordered.insert(stream, at);
        let at = before.map_or(at, |before| before.max(at));
        way.ordered.insert(stream, at);
        self.sequence += 1;
        way.queue.insert((at, self.sequence), bytes);
    }

    /// A datagram: it comes, twice perhaps, or not.
    fn throw(&mut self, link: usize, end: usize, bytes: &Bytes) {
        let weather = self.links[link].weather;
        self.links[link].ways[end].packets += 1;
        if self.links[link].ways[end].hole || self.random.random_bool(weather.loss / 100.0) {
            self.links[link].ways[end].lost += 1;
            return;
        }
        let times = if self.random.random_bool(weather.doubles / 100.0) { 2 } else { 1 };
        for _ in 0..times {
            let at = self.leaves_at(link, end, bytes.len()) + self.trip(link);
            self.sequence += 1;
            self.links[link].ways[end].queue.insert((at, self.sequence), bytes.clone());
        }
    }

    fn leaves_at(&mut self, link: usize, end: usize, len: usize) -> Instant {
        let Some(rate) = self.links[link].weather.rate else { return self.now };
        let way = &mut self.links[link].ways[end];
        let begins = way.free_at.map_or(self.now, |free| free.max(self.now));
        let ends = begins + Duration::from_micros(len as u64 * 1_000_000 / rate);
        way.free_at = Some(ends);
        ends
    }

    fn trip(&mut self, link: usize) -> Duration {
        let weather = self.links[link].weather;
        weather.delay + weather.jitter.mul_f64(self.random.random::<f64>())
    }

    /// Transports tell of paths that are in use.
    fn note_paths(&mut self) {
        for link in &mut self.links {
            if !link.kind.is_udp() || link.note_at > self.now {
                continue;
            }
            link.note_at = self.now + NOTE;
            let rtt = link.weather.delay * 2 + link.weather.jitter;
            for end in [CLIENT, AGENT] {
                let way = &mut link.ways[end];
                if let Some(leg) = link.legs[end]
                    && std::mem::replace(&mut way.noted, way.packets) != way.packets
                    && !way.hole
                {
                    let (sent, lost) = (way.packets, way.lost);
                    let figures = PathFigures { rtt, sent, lost, black_holes: 0 };
                    self.ends[end].session.note_path(self.now, leg, figures);
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
                while let Some(entry) = self.links[link].ways[from].queue.first_entry()
                    && entry.key().0 <= self.now
                {
                    let bytes = entry.remove();
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
                Event::Doubt => side.doubts.push(self.now),
                Event::LegSuspect(leg) => side.suspects.push(leg),
                Event::LegLost { leg, error } => {
                    side.lost.push((leg, error));
                    for link in &mut self.links {
                        if link.legs[end] == Some(leg) {
                            link.legs[end] = None;
                            for way in &mut link.ways {
                                way.hole = true;
                                way.stuck.clear();
                            }
                        }
                    }
                }
                Event::Down => side.downs += 1,
                Event::Resumed => side.resumes += 1,
                Event::Closed(reason) => side.closed = Some(reason),
                Event::Moved { from, to, cause: MoveCause::Recovered, stall } => {
                    assert_eq!(from, Some(to), "a stall is no move");
                    side.recovered.push((to, stall));
                }
                Event::Moved { to, cause, stall, .. } => side.moves.push((to, cause, stall)),
                Event::IncomingDatagrams(id) => {
                    assert!(side.datagrams.insert(id, Vec::new()).is_none(), "opened twice");
                }
                Event::Readable(_) | Event::Writable(_) | Event::Failed { .. } => {}
            }
        }
    }

    fn next_due(&mut self) -> Option<Instant> {
        let joined = self.links.iter().filter(|link| link.late.is_none());
        let frames = joined.flat_map(|link| &link.ways).filter_map(|way| way.queue.keys().next());
        let late = self.links.iter().filter_map(|link| link.late);
        let full = self.links.iter().flat_map(|link| &link.ways).filter_map(|way| way.free_at);
        let room = full.map(|free| free - BUFFER).filter(|at| *at > self.now);
        let used = |way: &Direction| way.noted != way.packets && !way.hole;
        let notes =
            self.links.iter().filter(|link| link.kind.is_udp() && link.ways.iter().any(used));
        let notes = notes.map(|link| link.note_at);
        let frames = frames.map(|(at, _)| *at).chain(late).chain(room).chain(notes).min();
        let [client, agent] = &mut self.ends;
        let timers =
            client.session.poll_timeout().into_iter().chain(agent.session.poll_timeout()).min();
        frames.into_iter().chain(timers).min()
    }
}

pub(super) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The channel in a frame's header.
fn channel_of(bytes: &Bytes) -> u32 {
    u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]])
}

/// A DATA or DATAGRAM frame with the loose flag.
fn is_loose(bytes: &Bytes) -> bool {
    matches!(bytes[0], 3 | 11) && bytes[1] & 2 != 0
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
