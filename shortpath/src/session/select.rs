//! Which leg carries the next frame. Pure: a picture of the legs in, a choice out.
use super::words::LegId;

/// What choosing needs to know of a leg.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) leg: LegId,
    pub(super) ready: bool,
    pub(super) suspect: bool,
}

/// The newest healthy leg, else the newest that has begun. Before the first HELLO of a session (`fresh`) there is nothing
/// to re-send, so a leg may be used before the peer's HELLO: that saves a round trip at session start.
pub(super) fn select(candidates: impl Iterator<Item = Candidate>, fresh: bool) -> Option<LegId> {
    candidates
        .filter(|candidate| candidate.ready || fresh)
        .max_by_key(|candidate| (candidate.ready && !candidate.suspect, candidate.leg))
        .map(|candidate| candidate.leg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(legs: &[(u64, bool, bool)], fresh: bool) -> Option<u64> {
        let candidates =
            legs.iter().map(|&(id, ready, suspect)| Candidate { leg: LegId(id), ready, suspect });
        select(candidates, fresh).map(|leg| leg.0)
    }

    #[test]
    fn the_newest_healthy_leg_is_chosen() {
        assert_eq!(choose(&[], true), None);
        assert_eq!(choose(&[(1, true, false), (2, true, false)], false), Some(2));
        assert_eq!(choose(&[(1, true, false), (2, true, true)], false), Some(1));
        assert_eq!(choose(&[(1, true, true), (2, true, true)], false), Some(2));
    }

    #[test]
    fn a_leg_without_hello_carries_only_a_fresh_session() {
        assert_eq!(choose(&[(1, true, true), (2, false, false)], false), Some(1));
        assert_eq!(choose(&[(1, false, false)], false), None);
        assert_eq!(choose(&[(1, false, false)], true), Some(1));
    }
}
