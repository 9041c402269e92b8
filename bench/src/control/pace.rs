//! Says when the next request is to leave, to some 50 microseconds: the runtime's own timer counts in milliseconds, which is as
//! long as what is timed here.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::mpsc;

use crate::load::schedule::Schedule;

/// A request to send, and when it was meant to leave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    pub(crate) connection: usize,
    pub(crate) due: Instant,
}

/// Everything of `schedule` in the next `seconds`, each at its time, from a thread that does nothing else. A reader that is
/// late finds what waits; nothing is left out.
///
/// # Errors
/// There is no thread to be had.
pub(crate) fn pace(schedule: Schedule, seconds: f64) -> Result<mpsc::UnboundedReceiver<Turn>> {
    let (sender, turns) = mpsc::unbounded_channel();
    let start = Instant::now();
    let until_ns = (seconds * 1e9) as u64;
    let run = move || {
        for next in schedule.take_while(|next| next.at_ns < until_ns) {
            let due = start + Duration::from_nanos(next.at_ns);
            let left = due.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                thread::sleep(left);
            }
            if sender.send(Turn { connection: next.connection, due }).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("pace".to_owned()).spawn(run).context("a thread")?;
    Ok(turns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::schedule::Arrivals;

    #[tokio::test]
    async fn every_turn_comes_in_order_and_never_early() {
        let schedule = Schedule::new(Arrivals::Even, 1000.0, 2, 1);
        let mut turns = pace(schedule, 0.02).unwrap();
        let mut seen = Vec::new();
        while let Some(turn) = turns.recv().await {
            assert!(Instant::now() >= turn.due);
            seen.push(turn.connection);
        }
        assert_eq!(seen, [0, 1].repeat(10));
    }
}
