//! Whether a NAT ends mappings at a certain age, however busy they are.
use std::time::Duration;

use super::shift::AgeLimit;

/// Learns from the ages at which mappings in use ended. One end is a restart of the NAT; two in a row at one age are its way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ages {
    last: Option<AgeLimit>,
    limit: Option<AgeLimit>,
}

/// Clocks of NATs tick in seconds.
const TICK: Duration = Duration::from_secs(1);

impl Ages {
    /// A mapping was found to have ended at that age, having been seen alive that pause before.
    pub(super) fn note(&mut self, age: Duration, pause: Duration) {
        let now = AgeLimit { least: age.saturating_sub(pause), most: age };
        let alike = |last: &AgeLimit| {
            now.least <= last.most.saturating_add(TICK)
                && last.least <= now.most.saturating_add(TICK)
        };
        // What was lived through is no limit, so the longer of the two is the better knowledge.
        self.limit = self.last.filter(alike).map(|last| AgeLimit {
            least: last.least.max(now.least),
            most: last.most.min(now.most).max(last.least).max(now.least),
        });
        self.last = Some(now);
    }

    /// A mapping of that age is alive: if that is well beyond the limit, it is none.
    pub(super) fn note_alive(&mut self, age: Duration) {
        if self.limit.is_some_and(|limit| age > limit.most * 5 / 4 + TICK) {
            *self = Self::default();
        }
    }

    /// An end at this age is no surprise.
    pub(super) fn explains(&self, age: Duration) -> bool {
        self.limit.is_some_and(|limit| age + TICK >= limit.least)
    }

    /// The age that mappings reach and do not outlive.
    pub(super) fn limit(&self) -> Option<AgeLimit> {
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
        let mut ages = Ages::default();
        ages.note(s(600), s(15));
        assert_eq!(ages.limit(), None);
        ages.note(s(610), s(15));
        assert_eq!(ages.limit(), Some(AgeLimit { least: s(595), most: s(600) }));
        assert!(ages.explains(s(594)) && !ages.explains(s(500)));
        ages.note(s(100), s(15));
        assert_eq!(ages.limit(), None, "the NAT was restarted, or is another one");
        ages.note(s(600), s(15));
        assert_eq!(ages.limit(), None);
    }

    #[test]
    fn a_limit_that_is_outlived_is_none() {
        let mut ages = Ages::default();
        (0..2).for_each(|_| ages.note(s(600), s(15)));
        ages.note_alive(s(700));
        assert!(ages.limit().is_some());
        ages.note_alive(s(760));
        assert_eq!(ages.limit(), None);
    }
}
