//! The session itself: what the application and the owner of legs may ask of it.
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::channel::Channel;
use super::close::CloseReason;
use super::frame::ID_MAX;
use super::leg::Leg;
use super::limits::{LEGS_MAX, SessionConfig};
use super::moves::Course;
use super::network::second_looks;
use super::path::PathFigures;
use super::redundancy::Budget;
use super::rescue::RescueBudget;
use super::words::{ChannelError, ChannelId, LegId, LegKind, MoveCause, Role};
use crate::tokens::Tokens;

/// What the owner must learn. Bounded: at most four per channel (the application is told once for each time it waited, and
/// once of failure), and a few per attached leg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer opened a channel; [`Session::release`] it when done.
    Incoming(ChannelId),
    /// The peer opened a channel for datagrams; [`Session::release`] it when done.
    IncomingDatagrams(ChannelId),
    /// A read that waited may go on.
    Readable(ChannelId),
    /// A write that waited may go on.
    Writable(ChannelId),
    /// Writing has failed, by RESET of the peer or the session's end: for those who wait for something else.
    Failed {
        /// Which channel.
        channel: ChannelId,
        /// How.
        error: ChannelError,
        /// Nothing is left to read either.
        cut: bool,
    },
    /// A leg owes an answer and is silent, and the owner should make another. It stays in use until one is ready. Not told
    /// of a UDP leg while another is well.
    LegSuspect(LegId),
    /// What carries the session is in doubt, as a leg owes word for longer than its round trips explain or the last sound one
    /// is gone: whoever keeps paths should look at them now. Told again, ever more rarely, while nothing takes its place.
    Doubt,
    /// Another leg carries the session, or (`Recovered`) the one that does held bytes up and answers again.
    Moved {
        /// The kind of the one before; `None`: this is the first.
        from: Option<LegKind>,
        /// The kind of this one.
        to: LegKind,
        /// Why.
        cause: MoveCause,
        /// How long bytes that were on their way came to nothing.
        stall: Duration,
    },
    /// A leg is detached.
    LegLost {
        /// Which.
        leg: LegId,
        /// What ended it.
        error: String,
    },
    /// No leg carries the session; it is lost unless one does within the resume window.
    Down,
    /// A leg carries the session again.
    Resumed,
    /// The session is over; nothing follows.
    Closed(CloseReason),
}

/// What a read yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// The next bytes.
    Bytes(Bytes),
    /// The peer's direction has ended and every byte of it was read.
    End,
    /// Nothing yet: [`Event::Readable`] will come.
    Wait,
}

#[derive(Debug)]
pub(super) enum Stage {
    Open,
    /// Queued frames leave first, until the deadline.
    Closing(u16, Instant),
    /// `Some` code: legs still get to say so.
    Closed(CloseReason, Option<u16>),
}

/// One end of a session. See the module for the calling contract.
#[derive(Debug)]
pub struct Session {
    pub(super) role: Role,
    pub(super) id: Bytes,
    pub(super) instance: u64,
    /// Instance of the other end; 0 until its first HELLO.
    pub(super) peer_instance: u64,
    pub(super) config: SessionConfig,
    pub(super) stage: Stage,
    pub(super) legs: BTreeMap<LegId, Leg>,
    next_leg: u64,
    pub(super) legs_lost: u32,
    pub(super) course: Course,
    pub(super) looks: Tokens,
    pub(super) budget: Budget,
    pub(super) rescued: RescueBudget,
    /// Copies sent; copies of the peer's that came before their originals; ours that did; and what that saved.
    pub(super) dup_sent: u64,
    pub(super) dup_bytes: u64,
    pub(super) won_here: u64,
    pub(super) dup_won: u64,
    pub(super) saved: Duration,
    pub(super) black_holes: u64,
    /// When a leg that is gone last left no doubt that the peer lives.
    alive_at: Instant,
    /// Since when no leg carries the session.
    pub(super) down_since: Option<Instant>,
    /// When the owner is told of doubt again, if it lasts, and after which pause.
    pub(super) doubt: Option<(Instant, Duration)>,
    /// A HELLO has come on some leg, ever.
    pub(super) begun: bool,
    pub(super) channels: BTreeMap<ChannelId, Channel>,
    /// Next id of our opening, and of the peer's.
    pub(super) opened: u32,
    pub(super) seen: u32,
    pub(super) own_held: usize,
    pub(super) peers_held: usize,
    pub(super) control: VecDeque<ChannelId>,
    pub(super) interactive: VecDeque<ChannelId>,
    pub(super) bulk: VecDeque<ChannelId>,
    pub(super) interactive_run: u32,
    /// Channels with datagrams to send.
    pub(super) flows: VecDeque<ChannelId>,
    pub(super) datagrams_dropped: u64,
    /// Forgotten channels the peer still asks about.
    pub(super) over: BTreeSet<ChannelId>,
    /// When delayed acknowledgements fall due, in order.
    pub(super) delayed: VecDeque<(Instant, ChannelId)>,
    pub(super) events: VecDeque<Event>,
    /// Sum of what unacknowledged bytes cost.
    pub(super) replay: usize,
    pub(super) starved: BTreeSet<ChannelId>,
    /// Sum of windows beyond the implied ones.
    pub(super) windows: u64,
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
}

impl Session {
    /// A session without legs; the resume window runs from `now`. Bytes of `id` beyond [`ID_MAX`] are not compared.
    /// `instance` is random: an end that was started anew under the same id is known by another one.
    #[must_use]
    pub fn new(
        now: Instant,
        role: Role,
        id: &str,
        instance: NonZeroU64,
        config: SessionConfig,
    ) -> Self {
        let id = Bytes::copy_from_slice(&id.as_bytes()[..id.len().min(ID_MAX)]);
        let peer = if role == Role::Client { Role::Agent } else { Role::Client };
        Self {
            role,
            id,
            instance: instance.get(),
            peer_instance: 0,
            config,
            stage: Stage::Open,
            legs: BTreeMap::new(),
            next_leg: 0,
            legs_lost: 0,
            course: Course::default(),
            looks: second_looks(now),
            budget: Budget::new(),
            rescued: RescueBudget::new(),
            dup_sent: 0,
            dup_bytes: 0,
            won_here: 0,
            dup_won: 0,
            saved: Duration::ZERO,
            black_holes: 0,
            alive_at: now,
            down_since: Some(now),
            doubt: None,
            begun: false,
            channels: BTreeMap::new(),
            opened: role.first_channel(),
            seen: peer.first_channel(),
            own_held: 0,
            peers_held: 0,
            control: VecDeque::new(),
            interactive: VecDeque::new(),
            bulk: VecDeque::new(),
            interactive_run: 0,
            flows: VecDeque::new(),
            datagrams_dropped: 0,
            over: BTreeSet::new(),
            delayed: VecDeque::new(),
            events: VecDeque::new(),
            replay: 0,
            starved: BTreeSet::new(),
            windows: 0,
            bytes_sent: 0,
            bytes_received: 0,
        }
    }

    /// Adds a leg. One too many pushes out the oldest suspect one, else the oldest that is not in use.
    pub fn attach(&mut self, now: Instant, kind: LegKind) -> LegId {
        if self.legs.len() >= LEGS_MAX {
            let selected = self.selected();
            let others = self.legs.iter().filter(|(id, _)| Some(**id) != selected);
            let worst = others.max_by_key(|(id, leg)| (leg.is_doubtful(), std::cmp::Reverse(**id)));
            if let Some(leg) = worst.map(|(id, _)| *id) {
                self.give_up(now, leg, "more legs than a session may have");
            }
        }
        self.next_leg += 1;
        let leg = LegId(self.next_leg);
        let mut new = Leg::new(now, kind);
        new.acquainted = self.begun;
        self.legs.insert(leg, new);
        self.choose(now);
        leg
    }

    /// Takes what the transport of a UDP leg knows of its path: at once when the leg is attached, as that saves the round
    /// trip of a first PING, and about every 100 ms while it is in use.
    pub fn note_path(&mut self, now: Instant, leg: LegId, figures: PathFigures) {
        let Some(leg) = self.legs.get_mut(&leg) else { return };
        self.black_holes += leg.path.note(now, figures, leg.health.is_quarantined());
        leg.path_rtt(now, figures.rtt);
        if !self.is_closed() {
            self.choose(now);
        }
    }

    /// Removes a leg that broke; what it carried unacknowledged goes to another. Unknown legs are ignored.
    pub fn detach(&mut self, now: Instant, leg: LegId, error: &str) {
        self.remove(now, leg, error, true);
    }

    /// The same for a leg that nothing came by any more. That one says that its network is gone; one that breaks may say that
    /// the peer is.
    pub fn give_up(&mut self, now: Instant, leg: LegId, error: &str) {
        self.remove(now, leg, error, false);
    }

    fn remove(&mut self, now: Instant, leg: LegId, error: &str, broke: bool) {
        let Some(gone) = self.legs.remove(&leg).filter(|_| !self.is_closed()) else { return };
        // Whoever leaves one does not lose it.
        self.legs_lost += u32::from(!gone.left);
        self.events.push_back(Event::LegLost { leg, error: error.to_owned() });
        self.course.leaves(leg, MoveCause::Lost, None);
        if self.selected() == Some(leg) {
            self.course.stalls(gone.meter.silent_since().unwrap_or(now));
        }
        if let Some((code, _)) = gone.closing {
            return self.end(CloseReason::ByPeer(code), None);
        }
        self.alive_at = self.alive_at.max(gone.silent_since().unwrap_or(now));
        if broke && gone.ready {
            self.legs.values_mut().for_each(|leg| leg.deserted(now));
        }
        self.choose(now);
        self.reclaim(leg);
        if self.down_since.is_none() && !self.legs.values().any(|leg| leg.ready) {
            let least = now.checked_sub(self.config.resume_window / 2);
            self.down_since = Some(least.map_or(now, |least| self.alive_at.max(least)));
            self.events.push_back(Event::Down);
        }
        if self.begun && self.is_troubled() {
            self.raise_doubt(now);
        }
    }

    /// Legs of the same kind that were there before `leg` carry nothing new once it can; what is on its way on them still
    /// counts. For a move that is planned: nothing is sent twice, and nothing waits.
    pub fn supersede(&mut self, now: Instant, leg: LegId) {
        let Some(kind) = self.legs.get(&leg).map(|leg| leg.kind) else { return };
        for (_, older) in self.legs.range_mut(..leg).filter(|(_, it)| it.kind == kind) {
            older.left = true;
        }
        self.choose(now);
    }

    /// Removes a leg that the session does without, in silence: another that is well carries it, and nothing is on its way
    /// on this one. False otherwise. The peer sees a leg break.
    pub fn let_go(&mut self, now: Instant, leg: LegId) -> bool {
        let well = |id: &LegId| *id != leg && self.legs.get(id).is_some_and(Leg::is_well);
        let spare = self.selected().as_ref().is_some_and(well);
        if !spare || self.is_closed() || !self.legs.get(&leg).is_some_and(Leg::is_quiet) {
            return false;
        }
        self.course.leaves(leg, MoveCause::Lost, None);
        self.legs.remove(&leg);
        self.choose(now);
        self.reclaim(leg);
        true
    }

    /// Ends the session once queued frames have left (and, with several legs, have come), at the latest after
    /// [`SessionConfig::close_within`].
    pub fn close(&mut self, now: Instant, code: u16) {
        if !matches!(self.stage, Stage::Open) {
            return;
        }
        self.stage = Stage::Closing(code, now + self.config.close_within);
        self.wake_all();
        if self.legs.is_empty() {
            self.end(CloseReason::ByUs(code), None);
        } else if !self.has_queued()
            && self.is_brought()
            && self.legs.values().all(|leg| leg.hello_sent)
        {
            self.end(CloseReason::ByUs(code), Some(code));
        }
    }

    /// The next event. Call until `None` after every mutation.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The session is over.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.stage, Stage::Closed(..))
    }
}
