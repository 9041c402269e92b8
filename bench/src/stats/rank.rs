//! The exact rank-sum test (Mann and Whitney, 1947), with tied values sharing their mean rank.
//!
//! For the few rounds of a bench run the distribution is counted exactly: of all ways to deal the
//! pooled ranks into two groups, how many are at least as lopsided as the one that was observed?

/// Groups above this size are cut to it, which bounds the table of counts (about 2 MB of work).
const GROUP_MAX: usize = 50;

/// Two-sided probability that two samples of one distribution are separated as far as these.
///
/// 1.0 when either group is empty. Only the first 50 values of each group are looked at.
pub(crate) fn rank_test(a: &[f64], b: &[f64]) -> f64 {
    let a = &a[..a.len().min(GROUP_MAX)];
    let b = &b[..b.len().min(GROUP_MAX)];
    if a.is_empty() || b.is_empty() {
        return 1.0;
    }
    let ranks = doubled_ranks(a, b);
    let observed: usize = ranks[..a.len()].iter().sum();
    let counts = ways_to_reach_sums(&ranks, a.len());
    let expected = a.len() * (a.len() + b.len() + 1);
    let distance = observed.abs_diff(expected);
    let (mut extreme, mut total) = (0.0, 0.0);
    for (sum, ways) in counts.iter().enumerate() {
        total += ways;
        if sum.abs_diff(expected) >= distance {
            extreme += ways;
        }
    }
    extreme / total
}

/// Ranks of `a` then `b` in the pooled order, doubled so that the mean rank of a tie is whole.
fn doubled_ranks(a: &[f64], b: &[f64]) -> Vec<usize> {
    let pooled: Vec<f64> = a.iter().chain(b).copied().collect();
    let doubled_rank = |value: &f64| {
        let below = pooled.iter().filter(|v| v.total_cmp(value).is_lt()).count();
        let equal = pooled.iter().filter(|v| v.total_cmp(value).is_eq()).count();
        2 * below + equal + 1
    };
    pooled.iter().map(doubled_rank).collect()
}

/// In how many ways `chosen` of the `ranks` add up to each sum (index = sum).
fn ways_to_reach_sums(ranks: &[usize], chosen: usize) -> Vec<f64> {
    let top: usize = ranks.iter().sum();
    let mut ways = vec![vec![0.0; top + 1]; chosen + 1];
    ways[0][0] = 1.0;
    for (seen, rank) in ranks.iter().enumerate() {
        for taken in (1..=chosen.min(seen + 1)).rev() {
            for sum in (*rank..=top).rev() {
                ways[taken][sum] += ways[taken - 1][sum - rank];
            }
        }
    }
    ways.swap_remove(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn fully_separated_groups_have_the_textbook_probability() {
        // 2 of the C(10,5) = 252 deals, 2 of C(8,4) = 70, 2 of C(6,3) = 20.
        let (low, high) = ([1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0]);
        assert!(close(rank_test(&low, &high), 2.0 / 252.0));
        assert!(close(rank_test(&low[..4], &high[..4]), 2.0 / 70.0));
        assert!(close(rank_test(&low[..3], &high[..3]), 0.1));
    }

    #[test]
    fn the_test_is_symmetric() {
        let (a, b) = ([1.0, 4.0, 2.5], [3.0, 2.0, 9.0, 7.0]);
        assert!(close(rank_test(&a, &b), rank_test(&b, &a)));
    }

    #[test]
    fn equal_groups_are_certain_chance() {
        assert!(close(rank_test(&[1.0, 1.0, 1.0], &[1.0, 1.0, 1.0]), 1.0));
        assert!(close(rank_test(&[], &[1.0]), 1.0));
    }
}
