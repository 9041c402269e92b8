//! The moves of one session, kept for `explain`. Pure.
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::wire::{PathMove, REPORT_MOVES_MAX};

/// The last moves of a session.
#[derive(Debug)]
pub(crate) struct Journal {
    started: Instant,
    moves: VecDeque<PathMove>,
}

impl Journal {
    /// Of a session that starts now.
    pub(crate) const fn new(now: Instant) -> Self {
        Self { started: now, moves: VecDeque::new() }
    }

    /// Writes down a move, and answers it as it is told.
    pub(crate) fn moved(
        &mut self,
        now: Instant,
        (from, to): (Option<&str>, &str),
        cause: &str,
        stall: Duration,
        rtt_us: Option<u32>,
    ) -> PathMove {
        let moved = PathMove {
            at_ms: saturated(now.saturating_duration_since(self.started).as_millis()),
            from: from.map(str::to_owned),
            to: to.to_owned(),
            cause: cause.to_owned(),
            stall_us: saturated(stall.as_micros()),
            rtt_us,
        };
        if self.moves.len() >= REPORT_MOVES_MAX {
            self.moves.pop_front();
        }
        self.moves.push_back(moved.clone());
        moved
    }

    /// The moves kept, oldest first.
    pub(crate) fn moves(&self) -> Vec<PathMove> {
        self.moves.iter().cloned().collect()
    }
}

fn saturated(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_moves_are_kept_with_their_times() {
        let start = Instant::now();
        let mut journal = Journal::new(start);
        for second in 0..40 {
            let (now, stall) = (start + Duration::from_secs(second), Duration::from_millis(3));
            journal.moved(now, (Some("TCP (Reverse-Connect)"), "UDP (Relay)"), "better", stall, None);
        }
        let moves = journal.moves();
        assert_eq!(moves.len(), REPORT_MOVES_MAX);
        let last = moves.last().unwrap();
        assert_eq!((last.at_ms, last.stall_us, &*last.cause), (39_000, 3000, "better"));
    }
}
