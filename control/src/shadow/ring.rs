//! The last bytes of a channel, and the memory that all of them share. Pure.
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::feed::FRAME_COST;

/// Memory for the backlogs of all sessions of an agent.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Per channel and direction.
    backlog: usize,
    total: usize,
    used: AtomicUsize,
}

impl Budget {
    /// `backlog` bytes per channel and direction, `total` in all.
    pub(crate) fn new(backlog: usize, total: usize) -> Arc<Self> {
        Arc::new(Self { backlog, total, used: AtomicUsize::new(0) })
    }

    /// Nothing is kept.
    pub(super) const fn is_off(&self) -> bool {
        self.backlog == 0
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        let room = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.total);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The last bytes of one direction.
#[derive(Debug, Default)]
pub(super) struct Ring {
    max: usize,
    pub(super) pieces: VecDeque<(u64, Bytes)>,
    cost: usize,
    /// Bytes that are not kept any more.
    pub(super) skipped: u64,
}

impl Ring {
    pub(super) fn new(budget: &Budget) -> Self {
        Self { max: budget.backlog, ..Self::default() }
    }

    pub(super) fn push(&mut self, at_us: u64, mut bytes: Bytes, budget: &Budget) {
        if bytes.len() > self.max {
            let surplus = bytes.len() - self.max;
            self.skipped += surplus as u64;
            bytes = bytes.slice(surplus..);
        }
        if bytes.is_empty() {
            return;
        }
        let needed = bytes.len() + FRAME_COST;
        // What describes the pieces counts as well, so that a backlog of single bytes is no larger than another.
        while self.cost + needed > self.max + FRAME_COST && self.drop_oldest(budget) {}
        while !budget.take(needed) {
            if !self.drop_oldest(budget) {
                self.skipped += bytes.len() as u64;
                return;
            }
        }
        self.cost += needed;
        self.pieces.push_back((at_us, bytes));
    }

    fn drop_oldest(&mut self, budget: &Budget) -> bool {
        let Some((_, bytes)) = self.pieces.pop_front() else { return false };
        self.skipped += bytes.len() as u64;
        self.cost -= bytes.len() + FRAME_COST;
        budget.give_back(bytes.len() + FRAME_COST);
        true
    }

    pub(super) fn drop_all(mut self, budget: &Budget) {
        while self.drop_oldest(budget) {}
    }
}
