//! Finds the highest rate that is kept up with: doubling until one is not, then halving the interval. Pure.

/// A search under way. Rates are per second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Search {
    next: f64,
    kept: Option<f64>,
    failed: Option<f64>,
    most: f64,
}

/// It ends when the highest rate kept and the lowest that was not are this close: what repeats from round to round.
const CLOSE: f64 = 1.15;
/// A rate as low as this that is not kept ends it, too.
const LEAST: f64 = 1.0;

impl Search {
    /// Begins at `first`; above `most` is not looked.
    pub(crate) const fn new(first: f64, most: f64) -> Search {
        Search { next: first, kept: None, failed: None, most }
    }

    /// The rate to try; `None` once it is over.
    pub(crate) fn next(&self) -> Option<f64> {
        let over = match (self.kept, self.failed) {
            (Some(kept), Some(failed)) => failed / kept <= CLOSE,
            (Some(kept), None) => kept >= self.most,
            (None, Some(failed)) => failed <= LEAST,
            (None, None) => false,
        };
        (!over).then_some(self.next)
    }

    /// What became of the rate that was to be tried.
    pub(crate) fn tried(&mut self, kept: bool) {
        if kept {
            self.kept = Some(self.next);
        } else {
            self.failed = Some(self.next);
        }
        self.next = match (self.kept, self.failed) {
            // The middle in ratio.
            (Some(kept), Some(failed)) => (kept * failed).sqrt(),
            (Some(kept), None) => (2.0 * kept).min(self.most),
            (None, failed) => failed.unwrap_or(self.next) / 2.0,
        };
    }

    /// The highest rate that was kept up with, if any was.
    pub(crate) const fn found(&self) -> Option<f64> {
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found where all up to `capacity` is kept, and in how many steps.
    fn search(capacity: f64) -> (Option<f64>, usize) {
        let mut search = Search::new(200.0, 20_000.0);
        let mut steps = 0;
        while let Some(rate) = search.next() {
            search.tried(rate <= capacity);
            steps += 1;
        }
        (search.found(), steps)
    }

    #[test]
    fn it_finds_the_highest_rate_from_below_in_a_dozen_steps() {
        for capacity in [3.0, 150.0, 200.0, 201.0, 1234.0, 9999.0, 19_000.0] {
            let (found, steps) = search(capacity);
            let found = found.unwrap();
            assert!(found <= capacity && capacity / found <= CLOSE, "{capacity}: {found}");
            assert!(steps <= 12, "{capacity}: {steps}");
        }
    }

    #[test]
    fn it_ends_where_nothing_and_where_everything_is_kept() {
        assert_eq!(search(0.0).0, None);
        assert_eq!(search(1e9).0, Some(20_000.0));
    }
}
