//! What a session knows of one leg: whether it has begun, whether it answers, how far away the peer is, and what is to
//! leave on it besides the session's own queues.
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::channel::AckDue;
use super::frame::Frame;
use super::health::Health;
use super::limits::SessionConfig;
use super::meter::{Meter, Progress};
use super::path::Path;
use super::rtt::Rtt;
use super::select::{Candidate, Standing};
use super::words::{ChannelId, LegId, LegKind};

/// Counted bytes a leg is given before the peer is known to have its HELLO, which the streams of UDP's channels may overtake,
/// and a later leg before the peer's HELLO says how far it is: a first flight.
pub(super) const EARLY_SEND: u64 = 64 * 1024;
/// What an overtaken HELLO may leave waiting, in bytes and frames: more than any peer sends.
const EARLY_HOLD: u64 = 256 * 1024;
const EARLY_FRAMES: usize = 2048;
/// What comes within this after another leg broke may have been on its way by then, and says nothing of the peer's life.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// What a PING or the handshake took says for this long what the leg costs now; as often is it asked for at most.
const LATELY: Duration = Duration::from_millis(500);
/// Copies waiting to leave on one leg. One more is not made: the original is on its way, and is re-sent at worst.
const COPIES_MAX: usize = 1024;

/// Channels whose state waits to go back on one leg: more than are held. Beyond, the oldest are told of elsewhere only.
const ECHO_MAX: usize = 1024;

/// What another leg carries too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Copy {
    Bytes(ChannelId, Range<u64>),
    /// Whether it is open, how far it has come, how it ends.
    State(ChannelId),
}

#[derive(Debug)]
pub(super) struct Leg {
    pub(super) kind: LegKind,
    attached_at: Instant,
    pub(super) hello_sent: bool,
    /// The peer's HELLO has come: frames may be sent again from where it says.
    pub(super) ready: bool,
    /// The ends have met on some leg, so this one may carry before the peer's HELLO.
    pub(super) acquainted: bool,
    /// The peer has our HELLO: it answered what came after it.
    met: bool,
    /// The peer gave it up, unless it is heard of again.
    pub(super) forsaken: bool,
    /// Our own owner wants to do without it, whatever is heard of it.
    pub(super) left: bool,
    /// The owner was told of its silence.
    pub(super) alarmed: bool,
    pub(super) close_sent: bool,
    /// A CLOSE that has overtaken bytes: its code, and how many must come first.
    pub(super) closing: Option<(u16, u64)>,
    /// Latest PING to answer; older ones are moot, so a flood of them costs nothing.
    pub(super) pong: Option<u64>,
    pub(super) ping_wanted: bool,
    /// Round trips of the path, without queues of our own making: what legs are compared by.
    pub(super) rtt: Rtt,
    /// Round trips of what is carried, queues included: what silence is judged by.
    trip: Rtt,
    pub(super) meter: Meter,
    pub(super) path: Path,
    pub(super) health: Health,
    /// Counted bytes that have come, and how many of them the peer knows of.
    pub(super) arrived: u64,
    told: u64,
    pub(super) seen_due: AckDue,
    seen_at: Option<Instant>,
    /// Channels whose state goes back on this leg, as it brought their bytes, whatever leg is selected.
    echo: BTreeSet<ChannelId>,
    pub(super) copies: VecDeque<Copy>,
    /// Copies to leave as datagrams once due, and those that are.
    pub(super) spaced: VecDeque<(Instant, ChannelId, Range<u64>)>,
    pub(super) ripe: VecDeque<(ChannelId, Range<u64>)>,
    /// Longest frame a datagram of this leg holds; 0: it has none.
    pub(super) datagram_max: usize,
    early: Vec<Frame>,
    early_bytes: u64,
    /// When this leg is tried for bulk next, and how often it was in vain.
    pub(super) trial_at: Option<Instant>,
    pub(super) trials: u32,
    ping: Option<(u64, Instant)>,
    pings: u64,
    /// What is known of the path is of another network, until this PING or a later one is answered.
    anew: Option<u64>,
    pinged_at: Instant,
    pinged_loaded: bool,
    ponged_at: Option<Instant>,
    /// When the last PING that was answered left, and what its answer took; the longest time of all where the leg was loaded,
    /// as that says nothing.
    answered: Option<(Instant, Duration)>,
    /// Frames of channels have passed since the last PING, here or on another leg.
    moved: bool,
    beside: bool,
    heard_at: Instant,
    /// When another leg of the session broke last.
    deserted_at: Option<Instant>,
    pub(super) bytes_received: u64,
}

impl Leg {
    pub(super) fn new(now: Instant, kind: LegKind) -> Self {
        Self {
            kind,
            attached_at: now,
            hello_sent: false,
            ready: false,
            acquainted: false,
            met: false,
            forsaken: false,
            left: false,
            alarmed: false,
            close_sent: false,
            closing: None,
            pong: None,
            ping_wanted: true,
            rtt: Rtt::default(),
            trip: Rtt::default(),
            meter: Meter::default(),
            path: Path::default(),
            health: Health::default(),
            arrived: 0,
            told: 0,
            seen_due: AckDue::No,
            seen_at: None,
            echo: BTreeSet::new(),
            copies: VecDeque::new(),
            spaced: VecDeque::new(),
            ripe: VecDeque::new(),
            datagram_max: 0,
            early: Vec::new(),
            early_bytes: 0,
            trial_at: None,
            trials: 0,
            ping: None,
            pings: 0,
            anew: None,
            pinged_at: now,
            pinged_loaded: false,
            ponged_at: None,
            answered: None,
            moved: false,
            beside: false,
            heard_at: now,
            deserted_at: None,
            bytes_received: 0,
        }
    }

    /// A frame leaves on this leg.
    pub(super) fn carries(&mut self, now: Instant, frame: &Frame) {
        if frame.is_counted() {
            self.meter.carries(now, frame.wire_len() as u64);
            self.moved = true;
        }
    }

    /// Frames of channels pass on another leg: it is worth knowing how this one would do.
    pub(super) fn stands_by(&mut self) {
        self.beside = true;
    }

    /// Anything has arrived.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard_at = now;
        self.forsaken = false;
        self.alarmed = false;
    }

    /// Another leg broke: does the peer still live?
    pub(super) fn deserted(&mut self, now: Instant) {
        self.deserted_at = Some(now);
        self.wants_ping();
    }

    /// A counted frame has arrived; the peer is to hear of it by `at`.
    pub(super) fn arrives(&mut self, bytes: u64, at: Instant) {
        self.arrived += bytes;
        self.moved = true;
        if self.seen_due == AckDue::No {
            self.seen_due = AckDue::Delayed;
            self.seen_at = Some(at);
        }
    }

    /// The channel's state is to go back on this leg.
    pub(super) fn echoes(&mut self, id: ChannelId) {
        self.echo.insert(id);
        if self.echo.len() > ECHO_MAX {
            self.echo.pop_first();
        }
    }

    pub(super) fn take_echo(&mut self) -> BTreeSet<ChannelId> {
        std::mem::take(&mut self.echo)
    }

    /// When word of what has come is due.
    pub(super) fn seen_at(&self) -> Option<Instant> {
        self.seen_at.filter(|_| self.seen_due == AckDue::Delayed)
    }

    /// Word for the peer of what has come, if it does not know.
    pub(super) fn take_seen(&mut self) -> Option<u64> {
        self.seen_due = AckDue::No;
        (std::mem::replace(&mut self.told, self.arrived) != self.arrived).then_some(self.arrived)
    }

    /// The peer's word of what has come. `Err`: more than was sent.
    pub(super) fn peer_saw(&mut self, now: Instant, total: u64) -> Result<Option<Progress>, ()> {
        let progress = self.meter.seen(now, total)?;
        self.met = true;
        if let Some(progress) = progress {
            // What a leg carried as it fell tells how long it was gone.
            if let Some(trip) = progress.trip.filter(|_| !self.health.is_quarantined()) {
                self.trip.sample(now, trip);
            }
            self.health.suspicion = None;
        }
        Ok(progress)
    }

    /// Keeps a frame that overtook the peer's HELLO. False when there are more than a correct peer sends.
    pub(super) fn keep_early(&mut self, frame: Frame) -> bool {
        self.early_bytes += frame.wire_len() as u64;
        self.early.push(frame);
        self.early_bytes <= EARLY_HOLD && self.early.len() <= EARLY_FRAMES
    }

    pub(super) fn take_early(&mut self) -> Vec<Frame> {
        self.early_bytes = 0;
        std::mem::take(&mut self.early)
    }

    /// The leg may be chosen before the peer's HELLO: the ends know each other, and the transport's handshake has just shown
    /// that it carries both ways. That saves a round trip; the peer takes what comes behind our HELLO, and keeps what
    /// overtakes it.
    pub(super) fn is_eager(&self) -> bool {
        self.acquainted && !self.ready
    }

    /// Frames of channels may leave.
    pub(super) fn may_carry(&self) -> bool {
        let free = self.met || !(self.kind.is_udp() || self.is_eager());
        free || self.meter.sent() < EARLY_SEND
    }

    /// One more copy may wait.
    pub(super) fn has_room(&self) -> bool {
        self.copies.len().max(self.spaced.len() + self.ripe.len()) < COPIES_MAX
    }

    pub(super) fn push_copy(&mut self, copy: Copy) {
        if self.has_room() {
            self.copies.push_back(copy);
        }
    }

    /// A copy is to leave as a datagram at `at`.
    pub(super) fn space(&mut self, at: Instant, id: ChannelId, range: Range<u64>) {
        let place = self.spaced.partition_point(|(other, ..)| *other <= at);
        self.spaced.insert(place, (at, id, range));
    }

    /// The PING to send now, if one is due.
    pub(super) fn take_ping(&mut self, now: Instant, config: &SessionConfig) -> Option<u64> {
        let due = self.ping_wanted || self.ping_at(config).is_some_and(|at| at <= now);
        if !due || self.ping.is_some() {
            return None;
        }
        self.ping_wanted = false;
        self.pings += 1;
        self.ping = Some((self.pings, now));
        self.pinged_at = now;
        self.pinged_loaded = self.meter.is_loaded();
        self.moved = false;
        self.beside = false;
        Some(self.pings)
    }

    /// A PONG. It surely travelled both ways on this leg. True when it answers the PING under way.
    pub(super) fn pong(&mut self, now: Instant, opaque: u64) -> bool {
        let Some((_, sent)) = self.ping.take_if(|(pending, _)| *pending == opaque) else {
            return false;
        };
        self.met = true;
        self.ponged_at = Some(now);
        self.health.pong(now);
        if self.health.is_first_pong() {
            self.rtt = Rtt::default();
            self.trip = Rtt::default();
            return true;
        }
        let rtt = now.saturating_duration_since(sent);
        let anew = self.anew.take_if(|first| *first <= opaque).is_some();
        self.ping_wanted |= self.anew.is_some();
        let loaded = self.pinged_loaded || self.meter.is_loaded();
        self.answered = Some((sent, if loaded { Duration::MAX } else { rtt }));
        // A transport's own estimate is free of what its stream waited for.
        let told = self.path.is_told() && self.rtt.smoothed().is_some() && !anew;
        if !(told || loaded) {
            if anew {
                self.rtt = Rtt::default();
            }
            self.rtt.sample(now, rtt);
        }
        self.trip.sample(now, rtt);
        true
    }

    /// The transport's own estimate of the path's round trip.
    pub(super) fn path_rtt(&mut self, now: Instant, rtt: Duration) {
        // A transport's average holds what came before a change for long.
        if !self.meter.is_loaded() && self.anew.is_none() {
            self.rtt.follow(now, rtt);
            if self.trip.smoothed().is_none() {
                self.trip.sample(now, rtt);
            }
        }
    }

    /// The network has changed: nothing that spoke against this leg need hold any more.
    pub(super) fn look_anew(&mut self, now: Instant, selected: bool) {
        if self.health.was_left() && !selected {
            self.anew = Some(self.pings + 1);
        }
        self.health.look_anew(now);
        (self.trial_at, self.trials) = (None, 0);
        self.wants_ping();
    }

    /// When the next PING is due; `None` while one is unanswered.
    pub(super) fn ping_at(&self, config: &SessionConfig) -> Option<Instant> {
        let every = if self.health.is_quarantined() {
            self.rtt.smoothed().unwrap_or_default().max(config.ping_quarantined)
        } else if self.moved {
            config.ping_active
        } else if self.beside {
            config.ping_standby
        } else {
            config.ping_idle
        };
        (self.ping.is_none() && self.hello_sent).then(|| self.pinged_at + every)
    }

    pub(super) fn wants_ping(&mut self) {
        self.ping_wanted = self.ping.is_none();
    }

    /// After this long, word of what was sent is overdue.
    pub(super) fn timeout(&self, config: &SessionConfig) -> Duration {
        self.trip.timeout() + config.ack_delay
    }

    /// When this leg becomes suspect unless word comes.
    pub(super) fn suspect_at(&self, config: &SessionConfig) -> Option<Instant> {
        let carries = self.ready || self.is_eager();
        if self.health.suspicion.is_some() || self.health.is_quarantined() || !carries {
            return None;
        }
        let timeout = self.timeout(config);
        // A flow's next word is expected sooner than a lone message's: half a round trip without any is a pause.
        self.meter.overdue_at(timeout, timeout / 2 + config.ack_delay)
    }

    /// When the owner is told that this leg is silent, unless it is heard of. The peer's HELLO is a round trip away once the
    /// transport's handshake is done; as nothing is known of how long that takes, it is given `unmet`.
    pub(super) fn alarm_at(&self, least: Duration, unmet: Duration) -> Option<Instant> {
        if self.alarmed {
            return None;
        }
        if !self.ready {
            return Some(self.attached_at + unmet);
        }
        let patience = self.rtt.smoothed().map_or(Duration::ZERO, |smoothed| smoothed * 4);
        Some(self.silent_since()? + patience.max(least))
    }

    /// When this leg is given up unless heard of, and why.
    pub(super) fn dead_at(&self, config: &SessionConfig) -> Option<(Instant, &'static str)> {
        if !self.ready {
            return Some((
                self.attached_at + config.hello_within,
                "the peer sent no HELLO in time",
            ));
        }
        let deserted = self.deserted_at.is_some_and(|at| self.heard_at <= at + LAST_WORDS);
        let patience = if deserted { config.deserted_after } else { config.silent_after };
        Some((self.silent_since()? + patience, "the leg fell silent"))
    }

    /// The leg has shown since `since` that it carries both ways.
    pub(super) fn answered_since(&self, since: Instant) -> bool {
        let words = [self.meter.progress_at(), self.ponged_at, Some(self.attached_at)];
        self.ready && words.into_iter().flatten().any(|at| at > since)
    }

    /// Suspect, given up by the peer, or in quarantine.
    pub(super) fn is_doubtful(&self) -> bool {
        self.forsaken || self.health.suspicion.is_some() || self.health.is_quarantined()
    }

    /// It has begun, and nothing speaks against it.
    pub(super) fn is_well(&self) -> bool {
        self.ready && !self.is_doubtful() && !self.alarmed
    }

    /// Nothing is on its way on it, but for PINGs.
    pub(super) fn is_quiet(&self) -> bool {
        self.meter.outstanding() == 0 && self.copies.is_empty() && self.closing.is_none()
    }

    pub(super) fn candidate(&self, now: Instant, leg: LegId, selected: bool) -> Candidate {
        let doubtful = self.forsaken || self.left || (self.health.suspicion.is_some() && !selected);
        let standing = if !(self.ready || self.is_eager()) {
            Standing::Unready
        } else if self.health.is_quarantined() {
            Standing::Quarantined
        } else if doubtful {
            Standing::Doubtful
        } else if self.health.is_demoted(now) {
            Standing::Demoted
        } else {
            Standing::Well
        };
        let cost = self.rtt.p95().map(|p95| p95 + self.path.loss_costs(p95));
        Candidate { leg, kind: self.kind, standing, cost }
    }

    /// The handshake has just measured it.
    pub(super) fn is_new(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.attached_at) <= LATELY
    }

    /// What a PING took that left after `since`, and not long ago.
    pub(super) fn took_since(&self, now: Instant, since: Instant) -> Option<Duration> {
        let (sent, rtt) = self.answered.filter(|(sent, _)| *sent >= since)?;
        (now.saturating_duration_since(sent) <= rtt.saturating_add(LATELY)).then_some(rtt)
    }

    /// Since when the leg owes an answer and nothing has come.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        let ping = self.ping.map(|(_, sent)| sent);
        let since = self.meter.oldest().into_iter().chain(ping).min()?;
        Some(since.max(self.heard_at))
    }
}

#[cfg(test)]
impl Leg {
    /// Panics when more is held than the limits say.
    pub(super) fn check_bounds(&self) {
        assert!(self.early_bytes <= EARLY_HOLD && self.early.len() <= EARLY_FRAMES);
        assert!(self.copies.len() <= COPIES_MAX);
        assert!(self.spaced.len() + self.ripe.len() <= COPIES_MAX);
        assert!(self.echo.len() <= ECHO_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_leave_when_they_are_due_whatever_was_asked_for_first() {
        let now = Instant::now();
        let mut leg = Leg::new(now, LegKind::UdpDirect);
        let id = ChannelId::new(1).unwrap();
        for (due, at) in [(30, 0), (10, 1), (20, 2), (10, 3)] {
            leg.space(now + Duration::from_millis(due), id, at..at + 1);
        }
        let order: Vec<_> = leg.spaced.iter().map(|(_, _, range)| range.start).collect();
        assert_eq!(order, [1, 3, 2, 0]);
    }
}
