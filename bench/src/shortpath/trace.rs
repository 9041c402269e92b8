//! What became of an echo's messages: latency, silence, and when it began to run at another RTT.
//!
//! Pure: times are nanoseconds since the echo's start. An answer is the whole message, in order and
//! with its content compared, so the n-th answer belongs to the n-th message.

use hdrhistogram::Histogram;

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// When it was meant to be sent; latency counts from here.
    pub(crate) due_ns: u64,
    /// When its last byte was back.
    pub(crate) back_ns: Option<u64>,
}

impl Message {
    fn rtt_ns(&self) -> Option<u64> {
        self.back_ns.map(|back| back.saturating_sub(self.due_ns))
    }
}

/// All messages so far, in the order they were sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trace {
    pub(crate) messages: Vec<Message>,
    /// Why it ended before it was told to.
    pub(crate) broken: Option<String>,
}

/// Consecutive answers that must agree before a path counts as taken: at 5 % loss a slow one among
/// them is rare, and five quick ones in a row are no accident of a slower path.
const AGREEING: usize = 5;

impl Trace {
    /// The longest time without an answer between `from_ns` and `until_ns`, both ends included: an
    /// echo that never comes back is silent until `until_ns`. `None` for an empty interval.
    pub(crate) fn longest_silence(&self, from_ns: u64, until_ns: u64) -> Option<u64> {
        // Silence starts at the last answer before, if there is one.
        let backs = || self.messages.iter().filter_map(|message| message.back_ns);
        let mut last = backs().take_while(|back| *back <= from_ns).last().unwrap_or(from_ns);
        let mut longest = 0;
        for back in backs().filter(|back| (from_ns..=until_ns).contains(back)) {
            longest = longest.max(back.saturating_sub(last));
            last = back;
        }
        (from_ns < until_ns).then(|| longest.max(until_ns.saturating_sub(last)))
    }

    /// When the first answer came to a message that was due at `from_ns` or later.
    pub(crate) fn answered_after(&self, from_ns: u64) -> Option<u64> {
        self.due_from(from_ns).find_map(|message| message.back_ns)
    }

    /// When the first of [`AGREEING`] answers in a row came that took at most `rtt_ns`, among the
    /// messages due at `from_ns` or later.
    pub(crate) fn runs_within(&self, rtt_ns: u64, from_ns: u64) -> Option<u64> {
        let due: Vec<_> = self.due_from(from_ns).collect();
        let is_quick = |message: &&Message| message.rtt_ns().is_some_and(|rtt| rtt <= rtt_ns);
        let run = due.windows(AGREEING).find(|run| run.iter().all(is_quick))?;
        run[0].back_ns
    }

    /// Round trips of the messages due in this interval, in nanoseconds.
    pub(crate) fn round_trips(&self, from_ns: u64, until_ns: u64) -> Vec<u64> {
        let due = self.due_from(from_ns).filter(|message| message.due_ns < until_ns);
        due.filter_map(Message::rtt_ns).collect()
    }

    /// Messages due in this interval that have no answer.
    pub(crate) fn unanswered(&self, from_ns: u64, until_ns: u64) -> usize {
        let due = self.due_from(from_ns).filter(|message| message.due_ns < until_ns);
        due.filter(|message| message.back_ns.is_none()).count()
    }

    /// What a move at `at_ns` added to the latency around it: the 99th percentile of what echoes due
    /// within `around_ns` of it took above `slower_ns`, the slower path's round trip (the old path's
    /// median if `None`), less the same of the steady state from `steady_ns` on, which is the noise.
    /// Nanoseconds; `None` without answers on all three.
    pub(crate) fn added_by_move(
        &self,
        at_ns: u64,
        around_ns: u64,
        steady_ns: u64,
        slower_ns: Option<u64>,
    ) -> Option<u64> {
        let (from, until) = (at_ns.saturating_sub(around_ns), at_ns.saturating_add(around_ns));
        // An echo that came back on the new path was due before the move was seen.
        let old = slower_ns
            .or_else(|| {
                let before = at_ns.saturating_sub(around_ns / 2);
                quantile(&self.round_trips(from, before), 0.5)
            })
            .or_else(|| quantile(&self.round_trips(0, at_ns), 0.5))?;
        let during = quantile(&self.round_trips(from, until), 0.99)?.saturating_sub(old);
        let steady = self.round_trips(steady_ns, u64::MAX);
        let noise = quantile(&steady, 0.99)?.saturating_sub(quantile(&steady, 0.5)?);
        Some(during.saturating_sub(noise))
    }

    fn due_from(&self, from_ns: u64) -> impl Iterator<Item = &Message> {
        self.messages.iter().filter(move |message| message.due_ns >= from_ns)
    }
}

/// The value that a share of `values` does not exceed; `None` without values.
pub(crate) fn quantile(values: &[u64], share: f64) -> Option<u64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1).min(sorted.len().saturating_sub(1))).copied()
}

/// Latencies in nanoseconds as reports carry them, to three digits.
pub(crate) fn histogram(values: &[u64]) -> Histogram<u64> {
    // Three digits are in the range of the library; growing, it takes any value.
    let mut histogram = Histogram::new(3).unwrap_or_else(|_| unreachable!("three digits"));
    for value in values {
        // Saturating, it would not grow.
        let _ = histogram.record(*value);
    }
    histogram
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Every 5 ms, with these round trips in milliseconds; 0 is never answered.
    fn trace(rtts: &[u64]) -> Trace {
        let message = |(number, rtt): (u64, &u64)| {
            let due_ns = number * 5 * MS;
            Message { due_ns, back_ns: (*rtt > 0).then(|| due_ns + rtt * MS) }
        };
        Trace { messages: (0..).zip(rtts).map(message).collect(), broken: None }
    }

    #[test]
    fn a_histogram_holds_round_trips_to_three_digits() {
        let median = histogram(&[41 * MS, 42 * MS, 97 * MS]).value_at_quantile(0.5);
        assert!(median.abs_diff(42 * MS) < MS / 20, "{median}");
    }

    #[test]
    fn silence_is_the_longest_gap_between_answers_not_the_longest_round_trip() {
        let steady = trace(&[20; 100]);
        assert_eq!(steady.longest_silence(100 * MS, 400 * MS), Some(5 * MS));
        // The path dies at 100 ms; what was sent meanwhile comes back in a bunch at 300 ms.
        let rtts: Vec<u64> =
            (0..100).map(|n| if n < 16 { 20 } else { (300 - n * 5).max(20) }).take(55).collect();
        let stalled = trace(&rtts);
        let silence = stalled.longest_silence(100 * MS, 320 * MS).unwrap();
        assert_eq!(silence, 300 * MS - 95 * MS);
    }

    #[test]
    fn an_echo_that_never_comes_back_is_silent_until_the_end() {
        let dead = trace(&[20, 20, 20, 0, 0, 0]);
        assert_eq!(dead.longest_silence(30 * MS, 1000 * MS), Some(970 * MS));
        assert_eq!(dead.unanswered(0, u64::MAX), 3);
        assert_eq!(trace(&[]).longest_silence(10 * MS, 30 * MS), Some(20 * MS));
        assert_eq!(dead.longest_silence(30 * MS, 30 * MS), None);
    }

    #[test]
    fn a_path_is_taken_when_several_answers_in_a_row_say_so() {
        let mut rtts = vec![60; 20];
        rtts[3] = 30;
        rtts.extend([30; 10]);
        assert_eq!(trace(&rtts).runs_within(45 * MS, 0), Some(20 * 5 * MS + 30 * MS));
        assert_eq!(trace(&rtts[..20]).runs_within(45 * MS, 0), None, "one quick one is chance");
        assert_eq!(trace(&rtts).answered_after(100 * MS), Some(130 * MS));
    }

    #[test]
    fn a_smooth_move_adds_nothing_and_a_stalling_one_its_stall() {
        let mut rtts = vec![60; 60];
        rtts.extend([30; 100]);
        let moved = trace(&rtts).runs_within(45 * MS, 0).unwrap();
        assert_eq!(trace(&rtts).added_by_move(moved, 100 * MS, 400 * MS, None), Some(0));
        rtts[58] = 75;
        assert_eq!(trace(&rtts).added_by_move(moved, 100 * MS, 400 * MS, None), Some(15 * MS));
        let slower = Some(70 * MS);
        assert_eq!(trace(&rtts).added_by_move(moved, 100 * MS, 400 * MS, slower), Some(5 * MS));
        assert_eq!(trace(&[]).added_by_move(moved, 100 * MS, 0, None), None);
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        assert_eq!(quantile(&[3, 1, 2, 4], 0.5), Some(2));
        assert_eq!(quantile(&[3, 1, 2, 4], 0.99), Some(4));
        assert_eq!(quantile(&[7], 0.0), Some(7));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
