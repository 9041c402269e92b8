//! A worker's loop.
//!
//! One turn: wait, note events, read the inbox, serve flows, accept a few connections, fire timers. Events and messages
//! only record what is to be done; the flows are served afterwards, each within a budget, so no event can starve another.
//! An idle worker sleeps until an event, a message or the next deadline; it has no ticking timer. With `--busy-poll` it
//! looks for events a while before it sleeps (see [`super::spin`]).
use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;

use super::accept::Door;
use super::crew::Crew;
use super::inbox::{Inbox, Message};
use super::placement::Busyness;
use super::queue::ReadyQueue;
use super::readiness::{Event, LISTENER, Readiness, WAKE};
use super::slots::{Joined, Legs};
use super::spin::BusyPoll;
use crate::gateway::Pairing;
use crate::ring::PipePool;
use crate::rtt::Rounds;
use crate::stats::{Shared, WorkerStats};
use crate::{Cause, GatewayEvent, PairId};

/// Everything one worker thread owns.
pub(crate) struct Worker {
    pub(crate) readiness: Box<dyn Readiness>,
    pub(crate) inbox: Inbox,
    pub(crate) shared: Arc<Shared>,
    pub(crate) stats: Arc<WorkerStats>,
    pub(crate) events: Arc<dyn Fn(GatewayEvent) + Send + Sync>,
    /// Its number in the crew.
    pub(crate) index: usize,
    pub(crate) crew: Arc<Crew>,
    pub(crate) door: Door,
    pub(crate) busyness: Busyness,
    pub(crate) room: Pairing<usize>,
    pub(crate) legs: Legs,
    pub(crate) pairs: Slab<Joined>,
    pub(crate) active: HashMap<PairId, usize>,
    pub(crate) queue: ReadyQueue,
    pub(crate) busy_poll: BusyPoll,
    pub(crate) sampling: Rounds,
    pub(crate) pipes: PipePool,
    pub(crate) scratch: Box<[u8]>,
    /// No legs are taken in any more.
    pub(crate) draining: bool,
    pub(crate) stopping: bool,
}

impl Worker {
    /// Watches its inbox and its listeners.
    ///
    /// # Errors
    /// `epoll_ctl(2)`, `io_uring_enter(2)`.
    pub(crate) fn watching(mut self) -> io::Result<Self> {
        self.readiness.register(self.inbox.wake.as_fd(), WAKE)?;
        self.open_door()?;
        Ok(self)
    }

    /// Runs until told to stop.
    pub(crate) fn run(mut self) {
        let mut events = Vec::new();
        while !self.stopping {
            let timeout = self.timeout();
            if let Err(error) = self.wait(timeout, &mut events) {
                return self.fail(&error);
            }
            let begun = self.turn_begins();
            if let Err(error) = events.drain(..).try_for_each(|event| self.note(event)) {
                return self.fail(&error);
            }
            self.read_inbox();
            self.serve();
            self.accept_some();
            self.fire_timers();
            self.turn_ends(begun);
        }
        self.end_everything(Cause::Shutdown);
    }

    /// How long the next wait may last.
    fn timeout(&self) -> Option<Duration> {
        if !self.queue.is_empty() || !self.inbox.messages.is_empty() {
            return Some(Duration::ZERO);
        }
        let next = [self.room.next_deadline(), self.sampling.due()].into_iter().flatten().min();
        let timers = next.map(|next| next.saturating_duration_since(Instant::now()));
        [timers, self.door.timeout()].into_iter().flatten().min()
    }

    /// Waits as the readiness source does, but while flows are active it spins first.
    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        if !self.busy_poll.may_spin(timeout) {
            return self.readiness.wait(timeout, events);
        }
        let begun = Instant::now();
        let Some(until) = self.busy_poll.spin_until(begun, timeout) else {
            return self.readiness.wait(timeout, events);
        };
        let mut now = begun;
        while events.is_empty() && now < until {
            std::hint::spin_loop();
            self.readiness.wait(Some(Duration::ZERO), events)?;
            now = Instant::now();
        }
        let spun = now - begun;
        self.stats.spun(spun);
        if events.is_empty() {
            self.readiness.wait(timeout.map(|timeout| timeout.saturating_sub(spun)), events)?;
        }
        Ok(())
    }

    /// # Errors
    /// The inbox or a listener cannot be watched any longer; a worker that is deaf to them must not go on.
    fn note(&mut self, event: Event) -> io::Result<()> {
        if event.lost && event.token >= LISTENER {
            return Err(io::Error::other("the inbox or a listener is no longer watched"));
        }
        if event.token == WAKE {
            self.inbox.acknowledge();
        } else if event.token >= LISTENER {
            self.door.note(event.token);
        } else if let Some(slot) = self.legs.slot_of(event.token) {
            self.note_leg(slot, event);
        }
        Ok(())
    }

    /// Takes in some legs and pairs, and every other message before, between and right after them.
    fn read_inbox(&mut self) {
        let mut arrivals = 0;
        while arrivals < ARRIVALS_PER_TURN
            && let Ok(message) = self.inbox.messages.try_recv()
        {
            arrivals += usize::from(matches!(message, Message::Leg(_) | Message::Pair(_)));
            match message {
                Message::Leg(leg) => self.arrive(leg),
                Message::Pair(pair) => self.settle(*pair),
                Message::End { pair, cause } => self.end_on_request(pair, cause),
                Message::StopAccepting(ack) => self.stop_accepting(ack),
                Message::Stop => self.stopping = true,
            }
        }
    }

    fn fire_timers(&mut self) {
        if self.room.next_deadline().is_none() && self.sampling.due().is_none() {
            return;
        }
        let now = Instant::now();
        self.expire(now);
        self.sample_due(now);
    }

    /// One worker alone need not know how busy it is.
    fn turn_begins(&self) -> Option<u64> {
        (!self.crew.alone()).then(|| self.crew.now_us())
    }

    fn turn_ends(&mut self, begun_us: Option<u64>) {
        if let Some(begun_us) = begun_us
            && let Some(busy) = self.busyness.spent(begun_us, self.crew.now_us())
        {
            self.crew.publish_busy(self.index, busy);
        }
    }

    /// The readiness source failed: nothing can be relayed here any more.
    fn fail(mut self, error: &io::Error) {
        tracing::error!(worker = self.index, %error, "relay worker failed; its pairs are lost");
        self.end_everything(Cause::Internal);
        self.crew.publish_failure(self.index);
    }
}

/// Each takes 5 to 10 us: all of them delay flows as long as one turn's accepts, and a full inbox is read in 128 turns.
const ARRIVALS_PER_TURN: usize = 32;
