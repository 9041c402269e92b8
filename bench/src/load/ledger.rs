//! The books of an open-loop run: what was due when, what has been answered, and how late.
//!
//! Pure: times come in as nanoseconds since the start of the run. Latency is counted from the
//! *intended* send time, so a generator or target that stalls is charged for every message that
//! was due meanwhile. Messages are answered by as many bytes, in order on each connection.

use std::collections::VecDeque;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest latency told apart: an hour is beyond any run.
const LATENCY_MAX_NS: u64 = 3_600_000_000_000;

/// Three significant digits: 0.1 % error, far below the noise of any network.
const SIGNIFICANT_DIGITS: u8 = 3;

/// A send later than this after its intended time counts as late.
///
/// 100 us is about twice the round trip through one relay on loopback: beyond it the generator
/// rather than the peer shapes the figures.
pub(crate) const LATE_SEND_NS: u64 = 100_000;

/// Books of one run over some connections.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// Messages due from here on are counted.
    counted_from_ns: u64,
    /// The messages not yet answered, oldest first, one queue per connection.
    outstanding: Vec<VecDeque<Open>>,
    /// How many are in `outstanding`, over all connections.
    open: usize,
    /// Bytes of the oldest outstanding answer that have come already.
    partial: Vec<usize>,
    latency: Histogram<u64>,
    send_lag: Histogram<u64>,
    counts: Counts,
}

/// A message without an answer.
#[derive(Clone, Copy, Debug)]
struct Open {
    due_ns: u64,
    bytes: u32,
}

/// Message counts after the warm-up cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    /// Sent, or due and never accepted by the socket, but not answered when the run ended. They are
    /// in the latency figures with the age they had reached.
    pub(crate) unanswered: u64,
    /// Sends more than 100 us after their intended time.
    pub(crate) late_sends: u64,
}

/// The figures of one run. Times are microseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct LatencyFigures {
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p99_9_us: f64,
    pub(crate) max_us: f64,
    pub(crate) mean_us: f64,
    /// How long after its intended time the generator got a message out, 99th percentile.
    pub(crate) send_lag_p99_us: f64,
    #[serde(flatten)]
    pub(crate) counts: Counts,
}

/// The books when they are closed.
#[derive(Debug)]
pub(crate) struct Closed {
    pub(crate) figures: LatencyFigures,
    /// Latencies in nanoseconds.
    pub(crate) histogram: Histogram<u64>,
}

/// A look into open books.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Glimpse {
    pub(crate) counts: Counts,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// An empty histogram of nanoseconds, up to an hour.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, SIGNIFICANT_DIGITS)
        .expect("constant bounds are valid")
}

/// More bytes came back than were ever sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooManyBytes;

impl Ledger {
    /// Counts nothing until [`Ledger::count_from`].
    pub(crate) fn new(connections: usize) -> Ledger {
        Ledger {
            counted_from_ns: u64::MAX,
            outstanding: vec![VecDeque::new(); connections],
            open: 0,
            partial: vec![0; connections],
            latency: histogram(),
            send_lag: histogram(),
            counts: Counts::default(),
        }
    }

    /// The warm-up is over: messages due from `at_ns` on are counted.
    pub(crate) fn count_from(&mut self, at_ns: u64) {
        self.counted_from_ns = at_ns;
    }

    /// A message of `bytes` (> 0), intended for `due_ns`, is handed to the socket (or queued behind
    /// it) at `now_ns`.
    pub(crate) fn sent(&mut self, connection: usize, bytes: u32, due_ns: u64, now_ns: u64) {
        self.outstanding[connection].push_back(Open { due_ns, bytes });
        self.open += 1;
        if due_ns < self.counted_from_ns {
            return;
        }
        let lag_ns = now_ns.saturating_sub(due_ns);
        self.send_lag.saturating_record(lag_ns);
        self.counts.sent += 1;
        self.counts.late_sends += u64::from(lag_ns > LATE_SEND_NS);
    }

    /// `bytes` of answer arrived on `connection` at `now_ns`. Returns how many messages they
    /// complete.
    pub(crate) fn received(
        &mut self,
        connection: usize,
        bytes: usize,
        now_ns: u64,
    ) -> Result<usize, TooManyBytes> {
        self.partial[connection] += bytes;
        let mut completed = 0;
        while let Some(open) = self.outstanding[connection].front().copied() {
            if self.partial[connection] < open.bytes as usize {
                return Ok(completed);
            }
            self.partial[connection] -= open.bytes as usize;
            self.outstanding[connection].pop_front();
            self.open -= 1;
            completed += 1;
            if open.due_ns >= self.counted_from_ns {
                self.counts.answered += 1;
                self.latency.saturating_record(now_ns.saturating_sub(open.due_ns));
            }
        }
        if self.partial[connection] == 0 { Ok(completed) } else { Err(TooManyBytes) }
    }

    /// The figures so far; costs some ten microseconds.
    pub(crate) fn glimpse(&self) -> Glimpse {
        let at = |quantile| self.latency.value_at_quantile(quantile) as f64 / 1e3;
        Glimpse { counts: self.counts, p50_us: at(0.5), p99_us: at(0.99) }
    }

    /// Messages sent and not answered yet, warm-up included.
    pub(crate) fn outstanding(&self) -> usize {
        self.open
    }

    /// Closes the books at `now_ns`; what is still open is charged with its age.
    pub(crate) fn close(mut self, now_ns: u64) -> Closed {
        let counted_from_ns = self.counted_from_ns;
        for open in self.outstanding.iter().flatten().filter(|o| o.due_ns >= counted_from_ns) {
            self.counts.unanswered += 1;
            self.latency.saturating_record(now_ns.saturating_sub(open.due_ns));
        }
        let us = |ns: u64| ns as f64 / 1e3;
        let at = |quantile| us(self.latency.value_at_quantile(quantile));
        let figures = LatencyFigures {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p99_9_us: at(0.999),
            max_us: us(self.latency.max()),
            mean_us: self.latency.mean() / 1e3,
            send_lag_p99_us: us(self.send_lag.value_at_quantile(0.99)),
            counts: self.counts,
        };
        Closed { figures, histogram: self.latency }
    }
}

impl LatencyFigures {
    /// Share of sends that were late, 0 to 1.
    pub(crate) fn late_share(&self) -> f64 {
        if self.counts.sent == 0 {
            return 0.0;
        }
        self.counts.late_sends as f64 / self.counts.sent as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn ledger(connections: usize) -> Ledger {
        let mut ledger = Ledger::new(connections);
        ledger.count_from(0);
        ledger
    }

    #[test]
    fn a_stalled_echo_is_charged_for_every_message_due_meanwhile() {
        // One message per ms; the echo answers at once but stalls from 100 ms to 200 ms.
        let mut ledger = ledger(1);
        for due_ns in (0..300).map(|i| i * MS) {
            let stalled = (100 * MS..200 * MS).contains(&due_ns);
            ledger.sent(0, 64, due_ns, due_ns);
            if !stalled {
                let answered = ledger.outstanding();
                ledger.received(0, 64 * answered, due_ns + MS / 10).unwrap();
            }
        }
        let figures = ledger.close(300 * MS).figures;
        assert_eq!(figures.counts.answered, 300);
        // 100 of 300 messages waited 0..100 ms: a closed loop would have shown one slow answer.
        assert!(figures.p90_us > 60_000.0, "p90 {} us", figures.p90_us);
        assert!(figures.max_us > 99_000.0 && figures.p50_us < 200.0);
    }

    #[test]
    fn a_late_send_is_charged_from_its_intended_time() {
        let mut ledger = ledger(1);
        ledger.sent(0, 10, 0, 5 * MS);
        ledger.received(0, 10, 6 * MS).unwrap();
        let figures = ledger.close(10 * MS).figures;
        assert!((figures.p50_us - 6_000.0).abs() < 10.0);
        assert_eq!(figures.counts.late_sends, 1);
        assert!((figures.late_share() - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn what_never_comes_back_is_counted_with_its_age() {
        let mut ledger = ledger(2);
        ledger.sent(0, 10, 0, 0);
        ledger.sent(1, 10, 0, 0);
        ledger.received(0, 10, MS).unwrap();
        ledger.received(1, 9, MS).unwrap();
        let closed = ledger.close(50 * MS);
        let counts = closed.figures.counts;
        assert_eq!((counts.answered, counts.unanswered), (1, 1));
        assert!(closed.figures.max_us >= 50_000.0);
        assert_eq!(closed.histogram.len(), 2);
    }

    #[test]
    fn warm_up_is_answered_for_but_not_counted() {
        let mut ledger = Ledger::new(1);
        ledger.sent(0, 1, 9 * MS, 9 * MS);
        ledger.count_from(10 * MS);
        ledger.sent(0, 1, 10 * MS, 10 * MS);
        ledger.received(0, 1, 40 * MS).unwrap();
        ledger.received(0, 1, 11 * MS).unwrap();
        let figures = ledger.close(50 * MS).figures;
        assert_eq!((figures.counts.sent, figures.counts.answered), (1, 1));
        assert!(figures.max_us < 1_100.0);
    }

    #[test]
    fn messages_of_different_sizes_are_told_apart() {
        let mut ledger = ledger(1);
        for bytes in [10, 1_000, 1] {
            ledger.sent(0, bytes, 0, 0);
        }
        assert_eq!(ledger.received(0, 500, 1), Ok(1));
        assert_eq!(ledger.received(0, 509, 2), Ok(0));
        assert_eq!(ledger.received(0, 2, 3), Ok(2));
        assert_eq!((ledger.outstanding(), ledger.glimpse().counts.answered), (0, 3));
    }

    #[test]
    fn bytes_nobody_asked_for_are_an_error() {
        let mut ledger = ledger(1);
        ledger.sent(0, 4, 0, 0);
        assert_eq!(ledger.received(0, 8, 1), Err(TooManyBytes));
    }
}
