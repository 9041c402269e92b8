//! A worker's loop.
//!
//! One turn: wait, note events, read the inbox, serve flows, fire timers. Events and messages only record what is to be done;
//! the flows are served afterwards, each within a budget, so no event can starve another. An idle worker sleeps until an
//! event, a message or the next deadline; it has no ticking timer.
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;

use super::inbox::{FarewellSender, Inbox, Message};
use super::queue::ReadyQueue;
use super::readiness::{Event, Readiness, WAKE};
use super::slots::{Joined, Legs};
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
    pub(crate) farewells: FarewellSender,
    pub(crate) room: Pairing<usize>,
    pub(crate) legs: Legs,
    pub(crate) pairs: Slab<Joined>,
    pub(crate) active: HashMap<PairId, usize>,
    pub(crate) queue: ReadyQueue,
    pub(crate) sampling: Rounds,
    pub(crate) pipes: PipePool,
    pub(crate) scratch: Box<[u8]>,
    pub(crate) stopping: bool,
}

impl Worker {
    /// Runs until told to stop.
    pub(crate) fn run(mut self) {
        let mut events = Vec::new();
        if let Err(error) = self.readiness.register(self.inbox.wake.clone().as_fd(), WAKE) {
            return self.fail(&error);
        }
        while !self.stopping {
            let timeout = self.timeout();
            if let Err(error) = self.readiness.wait(timeout, &mut events) {
                return self.fail(&error);
            }
            events.drain(..).for_each(|event| self.note(event));
            self.read_inbox();
            self.serve();
            self.fire_timers();
        }
        self.end_everything(Cause::Shutdown);
    }

    /// How long the next wait may last.
    fn timeout(&self) -> Option<Duration> {
        if !self.queue.is_empty() {
            return Some(Duration::ZERO);
        }
        let next = [self.room.next_deadline(), self.sampling.due()].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn note(&mut self, event: Event) {
        if event.token == WAKE {
            self.inbox.acknowledge();
        } else if let Some(slot) = self.legs.slot_of(event.token) {
            self.note_leg(slot, event);
        }
    }

    fn read_inbox(&mut self) {
        while let Ok(message) = self.inbox.messages.try_recv() {
            match message {
                Message::Leg(leg) => self.arrive(leg),
                Message::End { pair, cause } => self.end_on_request(pair, cause),
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

    /// The readiness source failed: nothing can be relayed any more.
    fn fail(mut self, error: &std::io::Error) {
        tracing::error!(%error, "relay worker lost its readiness source");
        self.end_everything(Cause::Internal);
    }
}
