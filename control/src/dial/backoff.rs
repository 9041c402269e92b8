//! When to try again: exponential backoff with full jitter. Pure: the dice are the caller's.
use std::time::Duration;

/// A growing bound on the pause before the next attempt.
///
/// The n-th pause is drawn evenly from zero to `min(cap, first * 2^n)`. Full jitter spreads a thousand endpoints that
/// lost the same gateway over the whole interval, where equal or no jitter keeps them marching in step.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    bound: Duration,
}

impl Backoff {
    /// A backoff whose first pause is at most `first` and whose later ones are at most `cap`.
    #[must_use]
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, bound: first.min(cap) }
    }

    /// The pause before the next attempt; `dice` is a random number in `0.0..1.0`.
    pub fn pause(&mut self, dice: f64) -> Duration {
        let pause = self.bound.mul_f64(dice.clamp(0.0, 1.0));
        self.bound = self.bound.saturating_mul(2).min(self.cap);
        pause
    }

    /// The last attempt succeeded: start small again.
    pub fn reset(&mut self) {
        self.bound = self.first.min(self.cap);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn the_bound_doubles_up_to_the_cap_and_a_success_resets_it() {
        let mut backoff = Backoff::new(MS(200), MS(1000));
        let longest: Vec<_> = (0..5).map(|_| backoff.pause(1.0)).collect();
        assert_eq!(longest, [MS(200), MS(400), MS(800), MS(1000), MS(1000)]);
        backoff.reset();
        assert_eq!(backoff.pause(1.0), MS(200));
    }

    #[test]
    fn the_dice_choose_anywhere_below_the_bound() {
        let mut backoff = Backoff::new(MS(200), MS(200));
        assert_eq!(backoff.pause(0.0), Duration::ZERO);
        assert_eq!(backoff.pause(0.25), MS(50));
        assert_eq!(backoff.pause(f64::INFINITY), MS(200));
    }

    #[test]
    fn a_thousand_failures_overflow_nothing() {
        let mut backoff = Backoff::new(MS(200), Duration::MAX);
        for _ in 0..1000 {
            backoff.pause(0.5);
        }
    }
}
