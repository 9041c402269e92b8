//! A worker's loop.
//!
//! One turn: wait, note events, read the inbox, serve flows, accept a few connections, fire timers. Events and messages only record what is to be done;
//! the flows are served afterwards, each within a budget, so no event can starve another. An idle worker sleeps until an
//! event, a message or the next deadline; it has no ticking timer.
use std::collections::HashMap;
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
use super::sampling::Sampling;
use super::slots::{Joined, Legs};
use crate::gateway::Pairing;
use crate::ring::PipePool;
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
    pub(crate) sampling: Sampling,
    pub(crate) pipes: PipePool,
    pub(crate) scratch: Box<[u8]>,
    /// No legs are taken in any more.
    pub(crate) draining: bool,
    pub(crate) stopping: bool,
}

impl Worker {
    /// Runs until told to stop.
    pub(crate) fn run(mut self) {
        let mut events = Vec::new();
        let wake = self.inbox.wake.clone();
        let watched = self.readiness.register(wake.as_fd(), WAKE);
        if let Err(error) = watched.and_then(|()| self.open_door()) {
            return self.fail(&error);
        }
        while !self.stopping {
            let timeout = self.timeout();
            if let Err(error) = self.readiness.wait(timeout, &mut events) {
                return self.fail(&error);
            }
            let begun = self.turn_begins();
            events.drain(..).for_each(|event| self.note(event));
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
        if !self.queue.is_empty() {
            return Some(Duration::ZERO);
        }
        let next = [self.room.next_deadline(), self.sampling.due()].into_iter().flatten().min();
        let timers = next.map(|next| next.saturating_duration_since(Instant::now()));
        [timers, self.door.timeout()].into_iter().flatten().min()
    }

    fn note(&mut self, event: Event) {
        if event.token == WAKE {
            self.inbox.acknowledge();
        } else if event.token >= LISTENER {
            self.door.note(event.token);
        } else if let Some(slot) = self.legs.slot_of(event.token) {
            self.note_leg(slot, event);
        }
    }

    fn read_inbox(&mut self) {
        while let Ok(message) = self.inbox.messages.try_recv() {
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

    /// The readiness source failed: nothing can be relayed any more.
    fn fail(mut self, error: &std::io::Error) {
        tracing::error!(%error, "relay worker lost its readiness source");
        self.end_everything(Cause::Internal);
    }
}
