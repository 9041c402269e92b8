//! What clients tell about their sessions' moves from transport to transport, and their stalls, summed up for the metrics.
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use hdrhistogram::Histogram;
use switchback_shortpath::{LegKind, MoveCause};

use crate::wire::PathMove;

/// Causes that are told apart; a client with a new one is counted under `other`.
const CAUSES_MAX: usize = 16;
const CAUSE_CHARS_MAX: usize = 32;
const OTHER: &str = "other";
/// Longest stall and time to a direct path that are told apart, in microseconds: ten minutes.
const LONGEST_US: u64 = 600_000_000;

/// Sums of moves.
#[derive(Debug, Default)]
pub(crate) struct Moves(Mutex<Sums>);

/// What is summed up.
#[derive(Clone, Debug)]
pub(crate) struct Sums {
    /// Moves by transport label and cause.
    pub(crate) moves: BTreeMap<(&'static str, String), u64>,
    /// How long applications waited, in microseconds, by the label of the transport that ended it. Not planned moves, for
    /// which nobody waited.
    pub(crate) stalls: BTreeMap<&'static str, Histogram<u64>>,
    /// From the start of a session to its first move to a direct path, in microseconds.
    pub(crate) time_to_direct: Histogram<u64>,
}

impl Default for Sums {
    fn default() -> Self {
        Self { moves: BTreeMap::new(), stalls: BTreeMap::new(), time_to_direct: histogram() }
    }
}

impl Moves {
    /// Counts a move, or a stall without one; `first_direct`: the session had no direct path before.
    pub(crate) fn add(&self, moved: &PathMove, first_direct: bool) {
        let Some(label) = label(&moved.to) else { return };
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if moved.cause != MoveCause::Recovered.as_str() {
            let cause = sums.cause(&moved.cause);
            *sums.moves.entry((label, cause)).or_default() += 1;
        }
        let stalls = sums.stalls.entry(label).or_insert_with(histogram);
        if moved.stall_us > 0 {
            stalls.saturating_record(moved.stall_us);
        }
        if first_direct {
            sums.time_to_direct.saturating_record(moved.at_ms.saturating_mul(1000));
        }
    }

    /// What was summed up so far.
    pub(crate) fn sums(&self) -> Sums {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Sums {
    /// A cause as a metric label: bounded in number and form, whatever clients say.
    fn cause(&self, told: &str) -> String {
        let fits = (1..=CAUSE_CHARS_MAX).contains(&told.len())
            && told.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        let known = |cause: &str| self.moves.keys().any(|(_, known)| known == cause);
        let mut causes: Vec<&String> = self.moves.keys().map(|(_, cause)| cause).collect();
        causes.sort_unstable();
        causes.dedup();
        if fits && (known(told) || causes.len() < CAUSES_MAX) { told.into() } else { OTHER.into() }
    }
}

/// The label itself, if a transport has it.
pub(crate) fn label(told: &str) -> Option<&'static str> {
    KINDS.iter().map(|kind| kind.label()).find(|label| *label == told)
}

/// Every transport.
pub(crate) const KINDS: [LegKind; 4] =
    [LegKind::TcpReverse, LegKind::UdpDirect, LegKind::UdpManaged, LegKind::UdpRelay];

/// Two significant digits, so that one takes some KiB.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, 2).expect("the bounds are in order")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(to: &str, cause: &str) -> PathMove {
        let (to, cause) = (to.into(), cause.into());
        PathMove { at_ms: 120, from: None, to, cause, stall_us: 1500, rtt_us: None }
    }

    #[test]
    fn moves_are_counted_by_transport_and_cause() {
        let moves = Moves::default();
        let direct = LegKind::UdpDirect.label();
        moves.add(&moved(direct, "better"), true);
        moves.add(&moved(direct, "better"), false);
        moves.add(&moved("UDP (Quantum)", "better"), true);
        let sums = moves.sums();
        assert_eq!(sums.moves, BTreeMap::from([((direct, "better".to_owned()), 2)]));
        assert_eq!((sums.time_to_direct.len(), sums.stalls[direct].len()), (1, 2));
        assert!(crate::is_direct(direct) && !crate::is_direct(LegKind::UdpRelay.label()));
    }

    #[test]
    fn stalls_are_counted_with_and_without_a_move_and_planned_moves_are_none() {
        let (moves, relay) = (Moves::default(), LegKind::UdpRelay.label());
        let planned = PathMove { stall_us: 0, ..moved(relay, "better") };
        moves.add(&planned, false);
        assert_eq!(moves.sums().stalls[relay].len(), 0);
        moves.add(&PathMove { stall_us: 80_000, ..moved(relay, "silent") }, false);
        let waited = PathMove { from: Some(relay.into()), stall_us: 10_000_000, ..planned };
        moves.add(&PathMove { cause: "recovered".into(), ..waited }, false);
        let sums = moves.sums();
        assert_eq!((sums.stalls[relay].len(), sums.moves.len()), (2, 2));
        assert!(sums.stalls[relay].max() >= 9_900_000);
    }

    #[test]
    fn a_client_that_invents_causes_makes_no_endless_series() {
        let moves = Moves::default();
        let letter = |n: u8| char::from(b'a' + n).to_string();
        (0..26).for_each(|n| moves.add(&moved(LegKind::UdpRelay.label(), &letter(n)), false));
        moves.add(&moved(LegKind::UdpRelay.label(), "No \"label\""), false);
        let sums = moves.sums();
        assert_eq!(sums.moves.len(), CAUSES_MAX + 1);
        assert_eq!(sums.moves[&(LegKind::UdpRelay.label(), OTHER.to_owned())], 11);
    }
}
