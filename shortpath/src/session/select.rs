//! Which leg carries the next frame. Pure: a picture of the legs in, a choice out.
use std::cmp::Ordering;
use std::time::Duration;

use super::words::{LegId, LegKind};

/// How far a leg is trusted, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// The peer's HELLO has not come.
    Unready,
    /// It let the session down and is watched.
    Quarantined,
    /// It owes word of what it carries, or the peer gave it up.
    Doubtful,
    /// It was left for a better one lately.
    Demoted,
    Well,
}

/// What choosing needs to know of a leg.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) leg: LegId,
    pub(super) kind: LegKind,
    pub(super) standing: Standing,
    /// What a round trip costs, nineteen times of twenty; `None` before the first sample.
    pub(super) cost: Option<Duration>,
}

/// A leg must be better by this much, or by a tenth, to take over from one that is well: moving is free, but moving to and
/// fro would make every round trip as bad as the worse of two. Estimates of two legs that are as good as each other may
/// differ by less in either direction, and nothing moves.
pub(super) const STICKINESS: Duration = Duration::from_millis(5);

/// The most trusted leg; of several the one selected, until another is clearly better or is as good and of a kind preferred.
/// A `fresh` session has nothing to re-send, so it may use a leg before the peer's HELLO: that saves a round trip.
pub(super) fn select(
    current: Option<LegId>,
    candidates: &[Candidate],
    fresh: bool,
) -> Option<LegId> {
    let usable = |candidate: &&Candidate| fresh || candidate.standing != Standing::Unready;
    let best = candidates.iter().filter(usable).map(|candidate| candidate.standing).max()?;
    let trusted = || candidates.iter().filter(|candidate| candidate.standing == best);
    let challenger = trusted().min_by_key(|candidate| candidate.cost.unwrap_or(Duration::MAX))?;
    let Some(current) = trusted().find(|candidate| Some(candidate.leg) == current) else {
        // None is known: the newest, whose owner wanted it last.
        let Some(least) = challenger.cost else { return trusted().map(|one| one.leg).max() };
        let tied =
            trusted().filter(|one| one.cost.is_some_and(|cost| cost <= least + margin(least) / 2));
        return tied.max_by_key(|one| (one.kind.rank(), one.leg)).map(|one| one.leg);
    };
    // Of the present one nothing is known yet: one that leads from end to end and was measured need not wait for that.
    let Some(cost) = current.cost else {
        let shorter = |one: &&Candidate| {
            let rank = one.kind.rank();
            rank >= LegKind::UdpManaged.rank() && rank > current.kind.rank() && one.cost.is_some()
        };
        let known = trusted().filter(shorter);
        let best = known.max_by_key(|one| (one.kind.rank(), one.leg));
        return Some(best.unwrap_or(current).leg);
    };
    let beats = |one: &&Candidate| {
        one.cost.is_some_and(|other| match one.kind.rank().cmp(&current.kind.rank()) {
            Ordering::Greater => other <= cost + tie(cost),
            Ordering::Equal => other + margin(cost) < cost,
            Ordering::Less => other + margin(cost) + tie(cost) < cost,
        })
    };
    // Preference among those that beat the present one follows the same rule: the cheapest, unless a preferred one ties.
    let least = trusted().filter(beats).filter_map(|one| one.cost).min();
    let winner = least.and_then(|least| {
        trusted()
            .filter(beats)
            .filter(|one| one.cost.is_some_and(|cost| cost <= least + margin(least) / 2))
            .max_by_key(|one| (one.kind.rank(), one.leg))
    });
    Some(winner.map_or(current.leg, |one| one.leg))
}

fn margin(cost: Duration) -> Duration {
    STICKINESS.max(cost / 10)
}

/// What a leg of a preferred kind may cost more than one that costs `cost`, and still be preferred: one from end to end lacks
/// what happens at a gateway, and on a relay a lost packet holds up nothing but its own channel. It is left by as much more,
/// so that estimates of equal legs may differ by a whole margin and nothing moves.
pub(super) fn tie(cost: Duration) -> Duration {
    margin(cost) / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use LegKind::{TcpReverse as Tcp, UdpDirect as Direct, UdpRelay as Relay};
    use Standing::{Demoted, Doubtful, Quarantined, Unready, Well};

    type Row = (u64, LegKind, Standing, Option<u64>);

    fn choose(current: u64, legs: &[Row], fresh: bool) -> Option<u64> {
        let candidates: Vec<_> = legs
            .iter()
            .map(|&(id, kind, standing, cost)| Candidate {
                leg: LegId(id),
                kind,
                standing,
                cost: cost.map(Duration::from_millis),
            })
            .collect();
        let current = (current > 0).then_some(LegId(current));
        select(current, &candidates, fresh).map(|leg| leg.0)
    }

    #[test]
    fn the_choice_table() {
        #[rustfmt::skip]
        let table: &[(&str, u64, &[Row], Option<u64>)] = &[
            ("nothing to choose from", 0, &[], None),
            ("the only one", 0, &[(1, Tcp, Well, None)], Some(1)),
            ("the newest of unknown ones", 0, &[(1, Tcp, Well, None), (2, Tcp, Well, None)], Some(2)),
            ("a selected one stays while nothing is known", 1, &[(1, Tcp, Well, None), (2, Tcp, Well, None)], Some(1)),
            ("a clearly better one takes over", 1, &[(1, Tcp, Well, Some(60)), (2, Relay, Well, Some(40))], Some(2)),
            ("not for 5 ms or a tenth", 2, &[(1, Tcp, Well, Some(35)), (2, Relay, Well, Some(40))], Some(2)),
            ("a tenth of a long one is more", 2, &[(1, Tcp, Well, Some(181)), (2, Relay, Well, Some(200))], Some(2)),
            ("beyond, also TCP", 2, &[(1, Tcp, Well, Some(32)), (2, Relay, Well, Some(40))], Some(1)),
            ("a tie goes to direct", 1, &[(1, Tcp, Well, Some(40)), (2, Direct, Well, Some(42))], Some(2)),
            ("and stays there, for a margin more", 2, &[(1, Tcp, Well, Some(40)), (2, Direct, Well, Some(47))], Some(2)),
            ("but no further", 2, &[(1, Tcp, Well, Some(40)), (2, Direct, Well, Some(48))], Some(1)),
            ("a relay is preferred to TCP when they tie", 1, &[(1, Tcp, Well, Some(40)), (2, Relay, Well, Some(42))], Some(2)),
            ("and not beyond", 1, &[(1, Tcp, Well, Some(40)), (2, Relay, Well, Some(43))], Some(1)),
            ("direct is no dogma", 2, &[(1, Relay, Well, Some(40)), (2, Direct, Well, Some(80))], Some(1)),
            ("the best of two better ones", 1, &[(1, Tcp, Well, Some(90)), (2, Relay, Well, Some(50)), (3, Direct, Well, Some(30))], Some(3)),
            ("an unknown one yields to a direct one that is known", 1, &[(1, Tcp, Well, None), (2, Direct, Well, Some(40))], Some(2)),
            ("but to no other", 1, &[(1, Tcp, Well, None), (2, Relay, Well, Some(40))], Some(1)),
            ("an unknown one waits for its first sample", 1, &[(1, Tcp, Well, Some(90)), (2, Direct, Well, None)], Some(1)),
            ("trust before speed", 0, &[(1, Tcp, Well, Some(90)), (2, Direct, Quarantined, Some(10))], Some(1)),
            ("a demoted one before a doubtful one", 2, &[(1, Tcp, Demoted, Some(90)), (2, Direct, Doubtful, Some(10))], Some(1)),
            ("a quarantined one before none", 0, &[(2, Direct, Quarantined, None), (3, Direct, Unready, None)], Some(2)),
            ("no leg before its HELLO", 0, &[(1, Tcp, Unready, None)], None),
        ];
        for (case, current, legs, expected) in table {
            assert_eq!(choose(*current, legs, false), *expected, "{case}");
        }
    }

    #[test]
    fn a_fresh_session_uses_a_leg_before_its_hello_but_prefers_one_that_has_begun() {
        assert_eq!(choose(0, &[(1, Tcp, Unready, None)], true), Some(1));
        assert_eq!(choose(2, &[(1, Tcp, Well, None), (2, Direct, Unready, None)], true), Some(1));
        assert_eq!(
            choose(1, &[(1, Tcp, Unready, None), (2, Direct, Unready, Some(50))], true),
            Some(2)
        );
    }

    /// Whether `from` is left for `to`, with these costs in milliseconds.
    fn leaves(from: (LegKind, u64), to: (LegKind, u64)) -> bool {
        let legs = [(1, from.0, Well, Some(from.1)), (2, to.0, Well, Some(to.1))];
        choose(1, &legs, false) == Some(2)
    }

    #[test]
    fn estimates_that_shift_by_less_than_a_margin_move_nothing_back() {
        let kinds = LegKind::ALL;
        for (a, b) in kinds.into_iter().flat_map(|a| kinds.map(|b| (a, b))) {
            for (here, there) in (1..120).flat_map(|here| (1..120).map(move |there| (here, there)))
            {
                if !leaves((a, here), (b, there)) {
                    continue;
                }
                for shift in 0..=4 {
                    let back = leaves((b, there + shift), (a, here));
                    assert!(!back, "{a:?} {here} and {b:?} {there} + {shift}");
                }
            }
        }
    }

    #[test]
    fn no_two_costs_make_it_flap() {
        for a in 1..200 {
            for b in 1..200 {
                let legs = [(1, Tcp, Well, Some(a)), (2, Direct, Well, Some(b))];
                let once = choose(1, &legs, false).unwrap();
                assert_eq!(choose(once, &legs, false), Some(once), "{a} {b}");
            }
        }
    }
}
