//! What the workers know of each other, and others of them: inboxes, homes of pairs, loads.
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use super::homes::Homes;
use super::inbox::{InboxSender, Message, MovedPair, NewLeg};
use super::placement::{Load, busy_now, least, place};
use crate::stats::WorkerLoad;
use crate::{Cause, PairId};

/// All workers, by index.
#[derive(Debug)]
pub(crate) struct Crew {
    inboxes: Vec<InboxSender>,
    loads: Vec<PublishedLoad>,
    pub(crate) homes: Homes,
    epoch: Instant,
}

/// A worker's load, as it last said.
#[derive(Debug, Default)]
struct PublishedLoad {
    busy: AtomicU64,
    pairs: AtomicUsize,
}

impl Crew {
    pub(crate) fn new(inboxes: Vec<InboxSender>) -> Self {
        Self {
            loads: inboxes.iter().map(|_| PublishedLoad::default()).collect(),
            homes: Homes::new(inboxes.len()),
            inboxes,
            epoch: Instant::now(),
        }
    }

    /// Hands an admitted leg to a worker: the one where its mate waits, else the least loaded. It comes back if that worker
    /// has ended or is drowning in work.
    pub(crate) fn submit(&self, leg: NewLeg) -> Result<(), NewLeg> {
        let worker = self.homes.of(leg.admitted.pair).unwrap_or_else(|| least(&self.loads()));
        self.send_leg(worker, leg)
    }

    /// Hands an admitted leg to one worker.
    pub(crate) fn send_leg(&self, worker: usize, leg: NewLeg) -> Result<(), NewLeg> {
        let Some(inbox) = self.inboxes.get(worker) else { return Err(leg) };
        if inbox.messages.len() >= INBOX_MAX {
            return Err(leg);
        }
        inbox.send(Message::Leg(leg)).map_err(|unsent| match unsent {
            Message::Leg(leg) => leg,
            _ => unreachable!("the message that was sent comes back"),
        })
    }

    /// Hands two legs that have met to the worker that shall relay them; that is their home from now on. They come back
    /// if it has ended.
    pub(crate) fn move_pair(
        &self,
        worker: usize,
        pair: Box<MovedPair>,
    ) -> Result<(), Box<MovedPair>> {
        let Some(inbox) = self.inboxes.get(worker) else { return Err(pair) };
        let id = pair.pair;
        self.homes.relocate(id, worker, || inbox.send(Message::Pair(pair))).map_err(|unsent| {
            match unsent {
                Message::Pair(pair) => pair,
                _ => unreachable!("the message that was sent comes back"),
            }
        })
    }

    /// Asks for the end of a pair, or of the leg that waits for it.
    pub(crate) fn end_pair(&self, pair: PairId, cause: Cause) {
        if let Some(worker) = self.homes.of(pair) {
            self.tell(worker, Message::End { pair, cause });
        }
    }

    /// Sends a message that a worker which has ended need not get.
    pub(crate) fn tell(&self, worker: usize, message: Message) {
        if let Some(inbox) = self.inboxes.get(worker) {
            let _ = inbox.send(message);
        }
    }

    /// The worker that shall relay a pair whose legs met on worker `here`.
    pub(crate) fn place(&self, here: usize) -> usize {
        if self.alone() { here } else { place(here, &self.loads()) }
    }

    /// There is one worker: it need not tell anybody its load.
    pub(crate) fn alone(&self) -> bool {
        self.inboxes.len() == 1
    }

    /// Microseconds since the start.
    pub(crate) fn now_us(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub(crate) fn publish_busy(&self, worker: usize, busy: u64) {
        self.loads[worker].busy.store(busy, Relaxed);
    }

    pub(crate) fn publish_pairs(&self, worker: usize, pairs: usize) {
        self.loads[worker].pairs.store(pairs, Relaxed);
    }

    /// The worker takes no more pairs.
    pub(crate) fn publish_end(&self, worker: usize) {
        self.loads[worker].pairs.store(ENDED, Relaxed);
    }

    /// The worker has failed, and its pairs with it. The process stays whatever happens: links to the broker and sessions
    /// on direct paths do not need the workers.
    pub(crate) fn publish_failure(&self, worker: usize) {
        self.publish_end(worker);
        if self.loads().iter().all(|load| *load == ENDED_LOAD) {
            tracing::error!(
                "no relay worker is left: nothing is accepted or relayed any more; restart the broker"
            );
        }
    }

    /// Every worker's load, for people.
    pub(crate) fn report(&self) -> Vec<WorkerLoad> {
        let measured = |load: &Load| !self.alone() && *load != ENDED_LOAD;
        let in_words = |load: Load| WorkerLoad {
            busy: measured(&load).then(|| f64::from(load.busy) / 1000.0),
            pairs: load.pairs,
        };
        self.loads().into_iter().map(in_words).collect()
    }

    fn loads(&self) -> Vec<Load> {
        let now_us = self.now_us();
        let load = |published: &PublishedLoad| match published.pairs.load(Relaxed) {
            ENDED => ENDED_LOAD,
            pairs => Load { busy: busy_now(published.busy.load(Relaxed), now_us), pairs },
        };
        self.loads.iter().map(load).collect()
    }
}

/// Legs waiting to be looked at by one worker, before more are turned away. A worker takes some every turn, so this is
/// only reached when it is stuck.
const INBOX_MAX: usize = 4096;
const ENDED: usize = usize::MAX;
const ENDED_LOAD: Load = Load { busy: u32::MAX, pairs: 0 };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::workers::inbox;

    #[test]
    fn a_worker_that_has_ended_is_never_chosen() {
        let (senders, _inboxes): (Vec<_>, Vec<_>) = (0..2).map(|_| inbox().unwrap()).unzip();
        let crew = Crew::new(senders);
        crew.publish_pairs(1, 5000);
        assert_eq!((least(&crew.loads()), crew.place(1)), (0, 0));
        crew.publish_failure(0);
        assert_eq!((least(&crew.loads()), crew.place(1)), (1, 1));
    }
}
