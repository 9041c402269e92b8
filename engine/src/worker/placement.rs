//! On which worker a pair is relayed.
//!
//! Pure. A worker's load is the share of time that its turns took of late. A pair stays where its legs met unless another
//! worker is clearly less loaded: a move costs both threads a few microseconds, and a pair never moves again.

/// How loaded a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// Time spent in turns, thousandths. `u32::MAX` if the worker has ended.
    pub(crate) busy: u32,
    /// Pairs that it relays.
    pub(crate) pairs: usize,
}

/// The worker that shall relay a pair whose legs met on worker `here`.
pub(crate) fn place(here: usize, loads: &[Load]) -> usize {
    let Some(now) = loads.get(here) else { return here };
    let better = |other: &Load| {
        let less_busy = other.busy.saturating_add(BUSY_MARGIN) <= now.busy;
        let as_busy = other.busy.saturating_sub(now.busy) < BUSY_MARGIN / 2;
        let fewer = other.pairs + other.pairs / 4 + PAIRS_MARGIN <= now.pairs;
        less_busy || as_busy && fewer
    };
    let others = loads.iter().enumerate().filter(|(_, load)| better(load));
    others.min_by_key(|(_, load)| (load.busy, load.pairs)).map_or(here, |(index, _)| index)
}

/// The least loaded worker.
pub(crate) fn least(loads: &[Load]) -> usize {
    let least = loads.iter().enumerate().min_by_key(|(_, load)| (load.busy, load.pairs));
    least.map_or(0, |(index, _)| index)
}

/// Less than a fifth of a core is within what one pair's bursts do to the average.
const BUSY_MARGIN: u32 = 200;
/// Dealing out by hash leaves a worker with twice the square root of its pairs more than another now and then.
const PAIRS_MARGIN: usize = 32;

/// The share of time spent busy, forgotten exponentially: an interval `t` ago counts `exp(-t / 100 ms)`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Busyness {
    share: f64,
    at_us: u64,
    /// Busy since `at_us`, not in `share` yet.
    pending_us: u64,
}

impl Busyness {
    /// Busy from `begun_us` to `ended_us`, on any clock that runs forward. Returns what to publish, now and then.
    pub(crate) fn spent(&mut self, begun_us: u64, ended_us: u64) -> Option<u64> {
        self.pending_us += ended_us.saturating_sub(begun_us);
        let elapsed = ended_us.saturating_sub(self.at_us);
        if elapsed < FOLD_US {
            return None;
        }
        let busy = self.pending_us.min(elapsed);
        self.share = self.share * decay(elapsed) + 1.0 - decay(busy);
        (self.at_us, self.pending_us) = (ended_us, 0);
        let thousandths = (self.share.clamp(0.0, 1.0) * 1000.0) as u64;
        Some(ended_us << SHARE_BITS | thousandths)
    }
}

/// The published share, as of `now_us`: an idle worker publishes nothing.
pub(crate) fn busy_now(published: u64, now_us: u64) -> u32 {
    let (at_us, share) = (published >> SHARE_BITS, published & ((1 << SHARE_BITS) - 1));
    (share as f64 * decay(now_us.saturating_sub(at_us))) as u32
}

/// Long enough to see past one turn, short enough that a burst of new pairs is spread by what the first ones do.
const MEMORY_US: f64 = 100_000.0;
/// Turns are added up for this long before the average is touched.
const FOLD_US: u64 = 1000;
/// Room for 0 to 1000; the rest holds microseconds for 500 years.
const SHARE_BITS: u32 = 10;

fn decay(us: u64) -> f64 {
    (-(us as f64) / MEMORY_US).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(busy: u32, pairs: usize) -> Load {
        Load { busy, pairs }
    }

    #[test]
    fn a_clearly_loaded_worker_gives_new_pairs_to_the_least_loaded_one() {
        assert_eq!(place(0, &[load(900, 5), load(300, 5), load(100, 5)]), 2);
        assert_eq!(place(2, &[load(0, 9), load(0, 3), load(1000, 1)]), 1);
    }

    #[test]
    fn small_differences_move_nothing() {
        assert_eq!(place(0, &[load(500, 5), load(400, 5)]), 0);
        assert_eq!(place(1, &[load(0, 90), load(0, 110)]), 1);
        assert_eq!(place(0, &[load(700, 50)]), 0);
    }

    #[test]
    fn many_more_pairs_decide_between_equally_busy_workers() {
        assert_eq!(place(0, &[load(100, 200), load(120, 100)]), 1);
        assert_eq!(place(0, &[load(100, 200), load(300, 100)]), 0, "not to a busier one");
    }

    #[test]
    fn a_worker_that_has_ended_is_given_nothing() {
        assert_eq!(place(0, &[load(1000, 900), load(u32::MAX, 0)]), 0);
        assert_eq!(least(&[load(u32::MAX, 0), load(1000, 900)]), 1);
    }

    #[test]
    fn steady_work_shows_its_share_and_idleness_forgets_it() {
        let (mut busyness, mut published) = (Busyness::default(), 0);
        for turn in 0..10_000u64 {
            let begun = turn * 100; // 30 us of every 100
            published = busyness.spent(begun, begun + 30).unwrap_or(published);
        }
        let now = 1_000_000;
        assert!((270..330).contains(&busy_now(published, now)), "{}", busy_now(published, now));
        assert!((90..130).contains(&busy_now(published, now + 100_000)));
        assert_eq!(busy_now(published, now + 2_000_000), 0);
    }

    #[test]
    fn one_long_turn_is_not_more_than_all_the_time() {
        let mut busyness = Busyness::default();
        let published = busyness.spent(5_000_000, 9_000_000).unwrap();
        assert_eq!(busy_now(published, 9_000_000), 1000);
    }
}
