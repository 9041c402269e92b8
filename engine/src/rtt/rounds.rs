//! Which pair is sampled when.
//!
//! Pure. A pair that moves bytes enters; it is sampled [`FIRST_AFTER`] later, then once a [`PERIOD`], and leaves once a
//! period passed without a byte moved or outstanding. Samples are taken in batches too small to be felt, and each batch is
//! paid for by a pause in proportion to the time it took, so that sampling never takes more than its share. With more pairs
//! than the share allows for, the period stretches for all of them alike.
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Pairs to be sampled, earliest first.
#[derive(Debug)]
pub(crate) struct Rounds {
    /// Pairs that have just entered. Both queues are in the order of their due times, because each has one delay.
    fresh: VecDeque<Visit>,
    /// Pairs that go round.
    again: VecDeque<Visit>,
    last_ticket: u32,
    pause_factor: u32,
    not_before: Option<Instant>,
}

/// A pair's spot in the rounds. Lives with the pair.
#[derive(Debug, Default)]
pub(crate) struct Spot {
    /// Of its visit that is due next; 0 if none is.
    ticket: u32,
    /// Bytes moved since the last visit.
    moved: bool,
}

/// A pair to be sampled. May be stale: [`Spot::expects`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Visit {
    due: Instant,
    /// The pair's slot.
    pub(crate) key: u32,
    ticket: u32,
}

/// What one batch may still do.
#[derive(Debug)]
pub(crate) struct Batch {
    now: Instant,
    pairs: usize,
    visits: usize,
}

impl Spot {
    /// Bytes moved. `true` if the pair is to [`Rounds::enter`].
    pub(crate) fn note_moved(&mut self) -> bool {
        self.moved = true;
        self.ticket == 0
    }

    /// The visit is meant for this pair, not for a former tenant of its slot.
    pub(crate) fn expects(&self, visit: &Visit) -> bool {
        self.ticket == visit.ticket
    }
}

impl Rounds {
    /// Rounds of one of `workers` workers.
    pub(crate) fn among(workers: usize) -> Self {
        let workers = u32::try_from(workers).unwrap_or(u32::MAX).max(1);
        Self {
            fresh: VecDeque::new(),
            again: VecDeque::new(),
            last_ticket: 0,
            pause_factor: PAUSE_FACTOR_MIN.max(workers.saturating_mul(PAUSE_FACTOR_TOTAL)),
            not_before: None,
        }
    }

    /// A pair that is not in the rounds begins to move bytes.
    pub(crate) fn enter(&mut self, now: Instant, key: usize, spot: &mut Spot) {
        if let Ok(key) = u32::try_from(key) {
            let ticket = self.ticket();
            spot.ticket = ticket;
            self.fresh.push_back(Visit { due: now + FIRST_AFTER, key, ticket });
        }
    }

    /// When the next batch is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        let due = self.front()?.due;
        Some(self.not_before.map_or(due, |not_before| not_before.max(due)))
    }

    /// A batch that begins now; `None` if none is due.
    pub(crate) fn batch(&self, now: Instant) -> Option<Batch> {
        (self.due()? <= now).then_some(Batch { now, pairs: BATCH_PAIRS, visits: BATCH_VISITS })
    }

    /// The next visit of the batch.
    pub(crate) fn next(&mut self, batch: &mut Batch) -> Option<Visit> {
        if batch.pairs == 0 || batch.visits == 0 || self.front()?.due > batch.now {
            return None;
        }
        batch.visits -= 1;
        if self.fresh_is_first() { self.fresh.pop_front() } else { self.again.pop_front() }
    }

    /// The visited pair was sampled; `outstanding` says whether a leg still has bytes to deliver. `false` if it left.
    pub(crate) fn sampled(
        &mut self,
        batch: &mut Batch,
        visit: Visit,
        spot: &mut Spot,
        outstanding: bool,
    ) -> bool {
        batch.pairs -= 1;
        let stays = std::mem::take(&mut spot.moved) || outstanding;
        spot.ticket = if stays { self.ticket() } else { 0 };
        if stays {
            let due = batch.now + PERIOD;
            self.again.push_back(Visit { due, ticket: spot.ticket, ..visit });
        }
        stays
    }

    /// The batch is over and took `cost` of the worker's CPU time.
    pub(crate) fn finish(&mut self, batch: &Batch, cost: Duration) {
        self.not_before = Some(batch.now + cost.saturating_mul(self.pause_factor).max(GAP_MIN));
        for queue in [&mut self.fresh, &mut self.again] {
            if queue.is_empty() && queue.capacity() > KEPT_MAX {
                *queue = VecDeque::new();
            }
        }
    }

    fn front(&self) -> Option<&Visit> {
        if self.fresh_is_first() { self.fresh.front() } else { self.again.front() }
    }

    fn fresh_is_first(&self) -> bool {
        match (self.fresh.front(), self.again.front()) {
            (Some(fresh), Some(again)) => fresh.due < again.due,
            (fresh, _) => fresh.is_some(),
        }
    }

    /// Never 0. Comes round after four billion visits, when no visit of that age is left.
    fn ticket(&mut self) -> u32 {
        self.last_ticket = self.last_ticket.checked_add(1).unwrap_or(1);
        self.last_ticket
    }
}

/// What people watch; a faster rhythm would show the estimator's noise.
const PERIOD: Duration = Duration::from_secs(1);
/// Soon enough to be there when somebody looks, late enough that the first bytes have been acknowledged on most paths and
/// that connections that only come and go cost nothing.
const FIRST_AFTER: Duration = Duration::from_millis(100);
/// 32 pairs are 64 legs of 0.4 to 0.7 us: less than one bulk flow's turn.
const BATCH_PAIRS: usize = 32;
/// Visits of pairs that have ended cost a look at a slot. With the gap below this keeps up with 100,000 ends a second.
const BATCH_VISITS: usize = 1024;
/// Waking an idle worker costs more than a sample, so it is done at most 125 times a second. A full batch at 0.6 us a leg is
/// 0.5 % of this.
const GAP_MIN: Duration = Duration::from_millis(8);
/// One worker samples for at most 1/200 of its time, 0.5 %,
const PAUSE_FACTOR_MIN: u32 = 200;
/// and all together for at most 1/111 of one core's, 0.9 %.
const PAUSE_FACTOR_TOTAL: u32 = 111;
/// Entries an empty queue keeps memory for: 6 KiB.
const KEPT_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    const LEG_COST: Duration = Duration::from_nanos(700);

    /// A worker in virtual time whose pairs move bytes all the time, unless they are `quiet`.
    struct Lab {
        rounds: Rounds,
        spots: Vec<Spot>,
        /// When each pair was sampled.
        samples: Vec<Vec<Instant>>,
        start: Instant,
        now: Instant,
        spent: Duration,
        batches: usize,
    }

    impl Lab {
        fn new(workers: usize, pairs: usize) -> Self {
            let now = Instant::now();
            let mut lab = Self {
                rounds: Rounds::among(workers),
                spots: (0..pairs).map(|_| Spot::default()).collect(),
                samples: vec![Vec::new(); pairs],
                start: now,
                now,
                spent: Duration::ZERO,
                batches: 0,
            };
            (0..pairs).for_each(|key| lab.move_bytes(key));
            lab
        }

        fn move_bytes(&mut self, key: usize) {
            if self.spots[key].note_moved() {
                self.rounds.enter(self.now, key, &mut self.spots[key]);
            }
        }

        /// Runs batches as they fall due until `end`.
        fn run(&mut self, end: Duration, mut moves: impl FnMut(usize) -> bool) {
            let end = self.start + end;
            while let Some(due) = self.rounds.due().filter(|&due| due < end) {
                self.now = self.now.max(due);
                self.batch(&mut moves);
            }
            self.now = end;
        }

        fn batch(&mut self, moves: &mut impl FnMut(usize) -> bool) {
            let mut batch = self.rounds.batch(self.now).expect("it is due");
            let mut cost = Duration::from_nanos(500);
            while let Some(visit) = self.rounds.next(&mut batch) {
                let key = visit.key as usize;
                cost += Duration::from_nanos(20);
                let Some(spot) = self.spots.get_mut(key).filter(|spot| spot.expects(&visit)) else {
                    continue;
                };
                cost += 2 * LEG_COST;
                self.samples[key].push(self.now);
                spot.moved |= moves(key);
                self.rounds.sampled(&mut batch, visit, spot, false);
            }
            self.rounds.finish(&batch, cost);
            assert!(cost < Duration::from_micros(80), "a batch is not felt: {cost:?}");
            self.spent += cost;
            self.batches += 1;
        }

        fn share(&self) -> f64 {
            self.spent.as_secs_f64() / (self.now - self.start).as_secs_f64()
        }
    }

    #[test]
    fn ten_thousand_active_pairs_stay_within_the_share_and_all_are_sampled_in_turn() {
        for workers in [1usize, 2, 8] {
            let pairs = 10_000 / workers;
            let mut lab = Lab::new(workers, pairs);
            lab.run(Duration::from_secs(60), |_| true);
            assert!(lab.share() <= 0.005, "{workers} workers: {}", lab.share());
            assert!(lab.share() * workers as f64 <= 0.0095, "{workers} workers: {}", lab.share());
            let counts: Vec<usize> = lab.samples.iter().map(Vec::len).collect();
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(
                *least >= 15,
                "{workers} workers: a pair was sampled {least} times in a minute"
            );
            assert!(most - least <= 1, "nobody twice in a round: {least} to {most}");
            let sooner =
                |times: &Vec<Instant>| times.windows(2).any(|two| two[1] - two[0] < PERIOD);
            assert!(!lab.samples.iter().any(sooner), "a sample a second at most");
        }
    }

    #[test]
    fn a_few_pairs_are_sampled_soon_and_then_once_a_second() {
        let mut lab = Lab::new(2, 100);
        lab.run(Duration::from_millis(10_200), |_| true);
        for times in &lab.samples {
            assert!(times[0] - lab.start <= Duration::from_millis(150), "{:?}", times[0]);
            assert!(times.len() >= 10, "{} samples in ten seconds", times.len());
        }
        assert!(lab.share() < 0.001, "{}", lab.share());
    }

    #[test]
    fn a_pair_that_falls_silent_is_sampled_once_more_and_leaves() {
        let mut lab = Lab::new(1, 2);
        lab.run(Duration::from_secs(30), |key| key == 1);
        assert_eq!(lab.samples[0].len(), 2, "its first second, and the one in which nothing moved");
        assert!(lab.samples[1].len() > 20);
        lab.move_bytes(0);
        lab.run(Duration::from_secs(40), |key| key == 1);
        assert_eq!(lab.samples[0].len(), 4, "it is back when it moves");
        lab.run(Duration::from_secs(50), |_| false);
        assert_eq!(lab.rounds.due(), None, "an idle worker has no timer");
    }

    #[test]
    fn a_stalled_pair_stays_while_bytes_are_outstanding() {
        let mut lab = Lab::new(1, 1);
        for _ in 0..3 {
            lab.now = lab.rounds.due().unwrap();
            let mut batch = lab.rounds.batch(lab.now).unwrap();
            let visit = lab.rounds.next(&mut batch).unwrap();
            assert!(lab.rounds.sampled(&mut batch, visit, &mut lab.spots[0], true));
            lab.rounds.finish(&batch, LEG_COST);
        }
    }

    #[test]
    fn a_slots_new_tenant_is_not_sampled_on_the_former_ones_visit() {
        let mut lab = Lab::new(1, 1);
        lab.spots[0] = Spot::default(); // the pair ended; another has its slot
        lab.now += FIRST_AFTER / 2;
        lab.move_bytes(0);
        lab.run(Duration::from_secs(5), |_| true);
        assert_eq!(lab.samples[0].len(), 5, "at 0.15, 1.15, ... and not also at 0.1");
    }

    #[test]
    fn newcomers_do_not_starve_those_that_go_round() {
        let mut lab = Lab::new(1, 1000);
        lab.run(Duration::from_secs(2), |_| true);
        let before: Vec<usize> = lab.samples[..1000].iter().map(Vec::len).collect();
        // 10,000 new pairs a second, each alive for longer than its first sample takes: far more than the share allows for.
        for step in 1..=400u64 {
            for _ in 0..100 {
                lab.spots.push(Spot::default());
                lab.samples.push(Vec::new());
                lab.move_bytes(lab.spots.len() - 1);
            }
            lab.run(Duration::from_millis(2000 + step * 10), |key| key < 1000);
        }
        assert!(lab.share() <= 0.005, "{}", lab.share());
        assert!(lab.samples[..1000].iter().zip(before).all(|(times, before)| times.len() > before));
    }
}
