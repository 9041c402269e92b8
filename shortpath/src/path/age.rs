//! Whether a NAT ends mappings at a certain age, however busy they are.
use std::time::Duration;

/// Learns from the ages at which mappings in use ended. One end is a restart of the NAT; two in a row at one age are its way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AgeLimit {
    last: Option<Span>,
    limit: Option<Duration>,
}

/// A mapping lived at least `least`, and ended before `most`.
#[derive(Clone, Copy, Debug)]
struct Span {
    least: Duration,
    most: Duration,
}

/// Clocks of NATs tick in seconds.
const TICK: Duration = Duration::from_secs(1);

impl AgeLimit {
    /// A mapping was found to have ended at that age, having been seen alive that pause before.
    pub(super) fn note(&mut self, age: Duration, pause: Duration) {
        let now = Span { least: age.saturating_sub(pause), most: age };
        let alike = |last: &Span| {
            now.least <= last.most.saturating_add(TICK)
                && last.least <= now.most.saturating_add(TICK)
        };
        // What was lived through is no limit, so the longer of the two is the better knowledge.
        self.limit = self.last.filter(alike).map(|last| last.least.max(now.least));
        self.last = Some(now);
    }

    /// The age that mappings reach and do not outlive.
    pub(super) fn limit(&self) -> Option<Duration> {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn two_ends_at_one_age_are_a_limit_and_one_is_an_accident() {
        let mut ages = AgeLimit::default();
        ages.note(s(600), s(15));
        assert_eq!(ages.limit(), None);
        ages.note(s(610), s(15));
        assert_eq!(ages.limit(), Some(s(595)));
        ages.note(s(100), s(15));
        assert_eq!(ages.limit(), None, "the NAT was restarted, or is another one");
        ages.note(s(600), s(15));
        assert_eq!(ages.limit(), None);
    }
}
