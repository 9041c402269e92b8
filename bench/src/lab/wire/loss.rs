//! Which packets are lost: independently, or in bursts (Gilbert's model of a two-state channel).

use rand::Rng;

use super::settings::Chance;

/// The channel's memory: whether it is within a burst of losses.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Loss {
    bursting: bool,
}

impl Loss {
    /// Whether this packet is lost. `rate` is the share of all packets lost in the long run, `burst`
    /// the mean number lost in a row; without it losses are independent.
    pub(super) fn takes(&mut self, rate: Chance, burst: Option<u32>, rng: &mut impl Rng) -> bool {
        let Some(burst) = burst.filter(|_| rate != Chance::NEVER && rate != Chance::ALWAYS) else {
            self.bursting = false;
            return rate.happens(rng);
        };
        // In the stationary state enter * good = leave * bad, and bad is the loss rate.
        let leave = 1.0 / f64::from(burst.max(1));
        let enter = leave * rate.share() / (1.0 - rate.share());
        let change = if self.bursting { leave } else { enter.min(1.0) };
        if rng.random::<f64>() < change {
            self.bursting = !self.bursting;
        }
        self.bursting
    }
}

/// Most loss that bursts of this mean length can give: even the shortest gap is one packet.
pub(super) fn most_with(burst: u32) -> f64 {
    f64::from(burst) / (f64::from(burst) + 1.0)
}
