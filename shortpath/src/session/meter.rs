//! What a leg was given, and what the peer says has come of it: how much is outstanding, for how long, and how fast the
//! leg moves bytes while it is kept busy.
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Outstanding bytes, more than interactive use makes, from which on a leg is busy with bulk: its round trips show its own queue, and its rate can be told.
pub(super) const LOADED: u64 = 16 * 1024;
/// A leg stays busy that is loaded again within this. A fast link brings all it was given before the application, which wants
/// the same processor, has its next turn; what is written at its own pace, as frames of video are, pauses for longer.
const BREATH: Duration = Duration::from_millis(10);
/// Least time over which a rate is taken: several round trips of most paths.
const RATE_OVER: Duration = Duration::from_millis(250);
/// Bytes handed over within this time share a mark.
const MARK_EVERY: Duration = Duration::from_millis(1);
/// Marks kept: a quarter of a second at one a millisecond. Beyond, later bytes count as old as the last mark, which only
/// lengthens the patience with a leg that deep in queue.
const MARKS: usize = 256;

/// Word from the peer that bytes have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// New ones.
    pub(super) bytes: u64,
    /// From handing over the newest of them to this word.
    pub(super) trip: Option<Duration>,
    /// The leg was loaded, so `trip` includes its queue.
    pub(super) loaded: bool,
}

#[derive(Debug, Default)]
pub(super) struct Meter {
    sent: u64,
    seen: u64,
    /// Up to which byte was handed over when.
    marks: VecDeque<(u64, Instant)>,
    progress_at: Option<Instant>,
    busy_since: Option<Instant>,
    /// Since when a busy leg is not loaded.
    drained_at: Option<Instant>,
    /// When it last had brought all it was given, but for little.
    emptied_at: Option<Instant>,
    /// Where the present rate window began.
    window: Option<(Instant, u64)>,
    rate: Option<(u64, Instant)>,
}

impl Meter {
    /// Counted bytes leave on the leg.
    pub(super) fn carries(&mut self, now: Instant, bytes: u64) {
        self.sent += bytes;
        let full = self.marks.len() >= MARKS;
        match self.marks.back_mut() {
            Some((upto, at)) if full || now.saturating_duration_since(*at) < MARK_EVERY => {
                *upto = self.sent;
            }
            _ => self.marks.push_back((self.sent, now)),
        }
        if self.is_loaded() {
            let rested = !self.is_busy(now);
            self.drained_at = None;
            if rested {
                self.busy_since = Some(now);
                self.window = Some((now, self.seen));
            }
        }
    }

    /// It has been loaded without a pause that counts, until now.
    fn is_busy(&self, now: Instant) -> bool {
        let rests = |at: Instant| now.saturating_duration_since(at) > BREATH;
        self.busy_since.is_some() && !self.drained_at.is_some_and(rests)
    }

    /// The peer has `total` counted bytes of this leg. `Err`: more than were sent.
    pub(super) fn seen(&mut self, now: Instant, total: u64) -> Result<Option<Progress>, ()> {
        if total > self.sent {
            return Err(());
        }
        if total <= self.seen {
            return Ok(None);
        }
        let loaded = self.is_loaded();
        let bytes = total - self.seen;
        self.seen = total;
        let mut trip = None;
        while let Some((_, at)) = self.marks.front().filter(|(upto, _)| *upto <= total) {
            trip = Some(now.saturating_duration_since(*at));
            self.marks.pop_front();
        }
        self.progress_at = Some(now);
        self.measure(now);
        Ok(Some(Progress { bytes, trip, loaded }))
    }

    /// Counted bytes handed over in all.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    pub(super) fn outstanding(&self) -> u64 {
        self.sent - self.seen
    }

    pub(super) fn is_loaded(&self) -> bool {
        self.outstanding() >= LOADED
    }

    /// Since when the oldest outstanding byte is on its way.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.marks.front().map(|(_, at)| *at)
    }

    /// Since when bytes are outstanding and none has come.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        let oldest = self.oldest()?;
        Some(self.progress_at.map_or(oldest, |at| at.max(oldest)))
    }

    /// When word is overdue: the oldest bytes are older than `timeout`, and nothing at all has come for `pause`.
    pub(super) fn overdue_at(&self, timeout: Duration, pause: Duration) -> Option<Instant> {
        let due = self.oldest()? + timeout;
        let pause = if self.is_loaded() { timeout } else { pause };
        Some(self.progress_at.map_or(due, |at| due.max(at + pause)))
    }

    /// When the peer last said that bytes have come.
    pub(super) fn progress_at(&self) -> Option<Instant> {
        self.progress_at
    }

    /// Since when the leg has been busy without a pause that counts.
    pub(super) fn busy_since(&self, now: Instant) -> Option<Instant> {
        self.busy_since.filter(|_| self.is_busy(now))
    }

    /// [`Self::busy_since`] of a leg that is loaded now.
    pub(super) fn loaded_since(&self) -> Option<Instant> {
        self.busy_since.filter(|_| self.drained_at.is_none())
    }

    /// Bytes a second achieved when last busy, and when that was.
    pub(super) fn rate(&self) -> Option<(u64, Instant)> {
        self.rate
    }

    /// Counted bytes that have come in all, as far as known.
    pub(super) fn brought(&self) -> u64 {
        self.seen
    }

    /// The rate is what came since then, when `brought` bytes had: what was before was another situation.
    pub(super) fn takes_rate(&mut self, now: Instant, since: Instant, brought: u64) {
        let bytes = self.seen.saturating_sub(brought);
        self.rate = Some((rate(bytes, now.saturating_duration_since(since)), now));
        self.window = self.window.map(|_| (now, self.seen));
    }

    /// The leg has bulk to itself again, as when it achieved `rate`: what it did in between was its share.
    pub(super) fn resumes(&mut self, now: Instant, rate: u64) {
        self.rate = Some((rate, now));
        self.window = self.window.map(|_| (now, self.seen));
    }

    /// It has been without a load since then: what it achieved is what it was given.
    pub(super) fn was_empty_since(&self, since: Instant) -> bool {
        !self.is_loaded() || self.emptied_at.is_some_and(|at| at > since)
    }

    fn measure(&mut self, now: Instant) {
        if !self.is_busy(now) {
            self.busy_since = None;
            self.window = None;
        }
        let Some((began, at)) = self.window else { return };
        let elapsed = now.saturating_duration_since(began);
        if elapsed >= RATE_OVER {
            let rate = rate(self.seen - at, elapsed);
            // Half of the new: the first windows of a leg are its slow start.
            let smoothed = self.rate.map_or(rate, |(before, _)| u64::midpoint(before, rate));
            self.rate = Some((smoothed, now));
            self.window = Some((now, self.seen));
        }
        if !self.is_loaded() {
            self.emptied_at = Some(now);
            if self.busy_since.is_some() {
                self.drained_at.get_or_insert(now);
            }
        }
    }
}

fn rate(bytes: u64, over: Duration) -> u64 {
    let micros = over.as_micros().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000 / micros).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn word_of_bytes_never_sent_is_refused_and_old_word_changes_nothing() {
        let (mut meter, now) = (Meter::default(), Instant::now());
        meter.carries(now, 100);
        assert_eq!(meter.seen(now, 101), Err(()));
        assert!(meter.seen(now, 60).unwrap().is_some());
        assert_eq!(meter.seen(now, 60), Ok(None));
        assert_eq!(meter.outstanding(), 40);
    }

    #[test]
    fn a_leg_is_silent_since_its_last_word_or_its_oldest_byte() {
        let (mut meter, start) = (Meter::default(), Instant::now());
        assert_eq!(meter.silent_since(), None);
        meter.carries(start, 10);
        meter.carries(start + ms(20), 10);
        assert_eq!(meter.silent_since(), Some(start));
        let progress = meter.seen(start + ms(40), 10).unwrap().unwrap();
        assert_eq!(progress.trip, Some(ms(40)));
        assert_eq!(meter.silent_since(), Some(start + ms(40)));
        assert_eq!(meter.overdue_at(ms(50), ms(10)), Some(start + ms(70)));
        assert_eq!(meter.overdue_at(ms(50), ms(35)), Some(start + ms(75)));
        meter.seen(start + ms(60), 20).unwrap();
        assert_eq!(meter.overdue_at(ms(50), ms(10)), None);
    }

    #[test]
    fn the_rate_is_that_of_busy_time_only() {
        let (mut meter, start) = (Meter::default(), Instant::now());
        meter.carries(start, 100);
        meter.seen(start + ms(900), 100).unwrap();
        assert_eq!(meter.rate(), None);
        for step in 0..20_u64 {
            let now = start + ms(1_000 + 50 * step);
            meter.carries(now, 100_000);
            meter.seen(now, (100 + 100_000 * step).saturating_sub(100_000).max(100)).unwrap();
        }
        let rate = meter.rate().unwrap().0;
        assert!((1_500_000..2_500_000).contains(&rate), "{rate}");
    }

    /// Whether a leg that is given `bytes` each `every`, and brings them within a millisecond, is busy after a second; and
    /// what its rate is.
    fn bursts(bytes: u64, every: Duration) -> (bool, Option<u64>) {
        let (mut meter, start) = (Meter::default(), Instant::now());
        let (mut now, mut sent) = (start, 0);
        while now < start + ms(1_100) {
            sent += bytes;
            meter.carries(now, bytes);
            meter.seen(now + ms(1), sent).unwrap();
            now += every;
        }
        let since = meter.busy_since(now);
        (since.is_some_and(|since| since == start), meter.rate().map(|(rate, _)| rate))
    }

    #[test]
    fn a_leg_that_brings_all_it_has_before_it_is_given_more_is_busy() {
        let (busy, rate) = bursts(1_000_000, ms(5));
        assert!(busy);
        assert!((190_000_000..=210_000_000).contains(&rate.unwrap()), "{rate:?}");
    }

    #[test]
    fn frames_of_video_keep_no_leg_busy() {
        assert_eq!(bursts(100_000, ms(33)), (false, None));
    }

    #[test]
    fn a_leg_at_rest_is_not_busy() {
        let (mut meter, start) = (Meter::default(), Instant::now());
        meter.carries(start, LOADED);
        assert_eq!(meter.loaded_since(), Some(start));
        meter.seen(start + ms(1), LOADED).unwrap();
        assert_eq!((meter.loaded_since(), meter.busy_since(start + ms(2))), (None, Some(start)));
        assert_eq!(meter.busy_since(start + ms(20)), None);
    }

    #[test]
    fn marks_are_bounded() {
        let (mut meter, start) = (Meter::default(), Instant::now());
        (0..10_000).for_each(|i| meter.carries(start + ms(2 * i), 1));
        assert_eq!(meter.marks.len(), MARKS);
        meter.seen(start + ms(30_000), 10_000).unwrap();
        assert_eq!(meter.oldest(), None);
    }
}
