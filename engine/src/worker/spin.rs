//! Spin or sleep?
//!
//! Pure. Waking a sleeping worker takes tens of microseconds. A worker that may spin asks its readiness source again and
//! again for a while after bytes moved, and sleeps once nothing has moved for that long: an idle gateway costs nothing.
use std::time::{Duration, Instant};

/// The decision of one worker.
#[derive(Debug, Default)]
pub(crate) struct BusyPoll {
    window: Option<Duration>,
    moved: bool,
    until: Option<Instant>,
}

impl BusyPoll {
    /// Spins for `window` after the last byte; `None` never spins.
    pub(crate) fn new(window: Option<Duration>) -> Self {
        Self { window, moved: false, until: None }
    }

    /// A flow moved bytes in this turn.
    pub(crate) fn moved(&mut self) {
        self.moved = true;
    }

    /// Whether [`Self::spin_until`] can say anything but `None` to a worker that could rest for `timeout`.
    pub(crate) fn may_spin(&self, timeout: Option<Duration>) -> bool {
        self.window.is_some()
            && timeout != Some(Duration::ZERO)
            && (self.moved || self.until.is_some())
    }

    /// Until when to spin, for a worker that at `now` could rest for `timeout` (`None`: for ever). `None`: sleep.
    pub(crate) fn spin_until(
        &mut self,
        now: Instant,
        timeout: Option<Duration>,
    ) -> Option<Instant> {
        if std::mem::take(&mut self.moved) {
            self.until = self.window.map(|window| now + window);
        }
        self.until = self.until.filter(|&until| until > now);
        let until = self.until?;
        let due = timeout.map_or(until, |timeout| now + timeout);
        Some(until.min(due)).filter(|&until| until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_micros(100);
    const FOR_EVER: Option<Duration> = None;

    #[test]
    fn an_idle_worker_sleeps() {
        let mut poll = BusyPoll::new(Some(WINDOW));
        assert!(!poll.may_spin(FOR_EVER));
        assert_eq!(poll.spin_until(Instant::now(), FOR_EVER), None);
    }

    #[test]
    fn bytes_are_followed_by_one_window_of_spinning_and_then_sleep() {
        let (mut poll, now) = (BusyPoll::new(Some(WINDOW)), Instant::now());
        poll.moved();
        assert!(poll.may_spin(FOR_EVER));
        assert_eq!(poll.spin_until(now, FOR_EVER), Some(now + WINDOW));
        let later = now + WINDOW / 2;
        assert_eq!(poll.spin_until(later, FOR_EVER), Some(now + WINDOW), "an event moved nothing");
        assert_eq!(poll.spin_until(now + WINDOW, FOR_EVER), None);
        assert!(!poll.may_spin(FOR_EVER), "no clock is read any more");
    }

    #[test]
    fn more_bytes_begin_another_window() {
        let (mut poll, now) = (BusyPoll::new(Some(WINDOW)), Instant::now());
        poll.moved();
        poll.spin_until(now, FOR_EVER);
        poll.moved();
        let later = now + WINDOW * 5;
        assert_eq!(poll.spin_until(later, FOR_EVER), Some(later + WINDOW));
    }

    #[test]
    fn a_deadline_ends_the_spinning_and_work_at_hand_forbids_it() {
        let (mut poll, now) = (BusyPoll::new(Some(WINDOW)), Instant::now());
        poll.moved();
        assert!(!poll.may_spin(Some(Duration::ZERO)));
        assert_eq!(poll.spin_until(now, Some(WINDOW / 4)), Some(now + WINDOW / 4));
    }

    #[test]
    fn without_a_window_it_never_spins() {
        let mut poll = BusyPoll::new(None);
        poll.moved();
        assert!(!poll.may_spin(FOR_EVER));
        assert_eq!(poll.spin_until(Instant::now(), FOR_EVER), None);
    }
}
