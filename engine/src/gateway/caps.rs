//! Limits are cut to what the descriptor limit can carry.
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Limits;

/// Raises the soft descriptor limit to the hard one and returns it.
pub(crate) fn raise_descriptor_limit() -> u64 {
    let now = getrlimit(Resource::Nofile);
    let hard = now.maximum.unwrap_or(DESCRIPTORS_ENOUGH).min(DESCRIPTORS_ENOUGH);
    if now.current.is_some_and(|soft| soft < hard) {
        let raised = Rlimit { current: Some(hard), maximum: now.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the soft descriptor limit stays as it is");
        }
    }
    getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS_ENOUGH)
}

/// Pure: `limits`, cut so that everything open at once fits into `descriptors`.
pub(crate) fn fit(limits: Limits, descriptors: u64, pipes: usize) -> Limits {
    let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
    let reserve = RESERVE.min(descriptors / 2);
    let ours = (descriptors - reserve).saturating_sub(2 * pipes).max(descriptors / 8);
    let hellos_max = limits.hellos_max.min(ours / 8).max(1);
    let waiting_legs_max = limits.waiting_legs_max.min(ours / 4).max(1);
    // A pair holds two descriptors. What the other limits leave unused is for pairs.
    let pairs_max =
        limits.pairs_max.min(ours.saturating_sub(hellos_max + waiting_legs_max) / 2).max(1);
    Limits { hellos_max, waiting_legs_max, pairs_max, ..limits }
}

/// For listeners, the broker's own connections and its files.
const RESERVE: usize = 512;
/// The kernel's own ceiling by default (`fs.nr_open`), should the limit be infinite.
const DESCRIPTORS_ENOUGH: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_at_once_fits() {
        for descriptors in [64u64, 256, 1024, 4096, 20_000, 1 << 20, u64::MAX] {
            let fitted = fit(Limits::default(), descriptors, 128);
            let used = fitted.hellos_max + fitted.waiting_legs_max + 2 * fitted.pairs_max;
            assert!(used as u64 <= descriptors, "{descriptors}: {fitted:?}");
            assert!(fitted.pairs_max > 0 && fitted.hellos_max > 0 && fitted.waiting_legs_max > 0);
        }
    }

    #[test]
    fn enough_descriptors_change_nothing() {
        let fitted = fit(Limits::default(), 1 << 20, 128);
        assert_eq!(fitted.pairs_max, Limits::default().pairs_max);
        assert_eq!(fitted.waiting_legs_max, Limits::default().waiting_legs_max);
        assert_eq!(fitted.hellos_max, Limits::default().hellos_max);
    }
}
