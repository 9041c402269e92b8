//! Which gateway a session goes through. Pure: the broker decides by it, and `estimate` shows the same.
//!
//! The smallest sum of the client's and the agent's round trip wins, in groups of 10 ms, as less than that is within what a
//! network does by itself; within a group the least loaded. A gateway whose round trips are not known comes after all
//! that are, but can be used: what an end has not measured yet must not keep it from starting.
use std::cmp::Ordering;

use crate::wire::GatewayRtt;

/// Round trips that differ by less are equal, microseconds.
const GROUP_US: u32 = 10_000;

/// What an end knows of its way to a gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// It was not tried yet.
    #[default]
    Unknown,
    /// Round trip, microseconds.
    Rtt(u32),
    /// No TCP connection came about: legs cannot get there.
    Unreachable,
}

impl Way {
    /// Of what an end measured: legs are TCP, so a gateway that answers STUN alone is out of reach.
    #[must_use]
    pub fn of(measured: Option<&GatewayRtt>) -> Self {
        match measured {
            None => Self::Unknown,
            Some(GatewayRtt { tcp_us: None, .. }) => Self::Unreachable,
            // Both are the path's; the smaller one waited for less else.
            Some(GatewayRtt { tcp_us: Some(tcp), udp_us, .. }) => {
                Self::Rtt(udp_us.map_or(*tcp, |udp| udp.min(*tcp)))
            }
        }
    }
}

/// A gateway as a choice sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice<'a> {
    /// Its name; of gateways that are equal in all else the first wins.
    pub name: &'a str,
    /// The client's way to it.
    pub client: Way,
    /// The agent's.
    pub agent: Way,
    /// Pairs it holds.
    pub pairs: usize,
    /// Pairs it may hold.
    pub capacity: usize,
}

/// How good a way through a gateway is; the least is the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Both round trips are known: the sum, in groups.
    Known(u32),
    /// One of them is.
    Half(u32),
    Unknown,
    Unreachable,
}

impl Choice<'_> {
    /// Client's and agent's round trip, microseconds, if both are known.
    #[must_use]
    pub fn sum_us(&self) -> Option<u32> {
        match (self.client, self.agent) {
            (Way::Rtt(client), Way::Rtt(agent)) => Some(client.saturating_add(agent)),
            _ => None,
        }
    }

    fn rank(&self) -> Rank {
        match (self.client, self.agent) {
            (Way::Unreachable, _) | (_, Way::Unreachable) => Rank::Unreachable,
            (Way::Rtt(client), Way::Rtt(agent)) => {
                Rank::Known(client.saturating_add(agent) / GROUP_US)
            }
            (Way::Rtt(known), Way::Unknown) | (Way::Unknown, Way::Rtt(known)) => {
                Rank::Half(known / GROUP_US)
            }
            (Way::Unknown, Way::Unknown) => Rank::Unknown,
        }
    }

    /// Compares how full they are, without division.
    fn load(&self, other: &Self) -> Ordering {
        let product = |pairs: usize, capacity: usize| (pairs as u128) * (capacity.max(1) as u128);
        product(self.pairs, other.capacity).cmp(&product(other.pairs, self.capacity))
    }

    fn is_full(&self) -> bool {
        self.pairs >= self.capacity
    }
}

/// The best of several; `None` if there are none. One that is full is taken if all are: it says so itself.
pub fn nearest<'a>(choices: impl IntoIterator<Item = Choice<'a>>) -> Option<Choice<'a>> {
    choices.into_iter().min_by(|one, other| {
        let full = one.is_full().cmp(&other.is_full());
        let rank = full.then(one.rank().cmp(&other.rank()));
        rank.then_with(|| one.load(other)).then_with(|| one.name.cmp(other.name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(name: &str, client_ms: u32, agent_ms: u32, pairs: usize) -> Choice<'_> {
        let (client, agent) = (Way::Rtt(client_ms * 1000), Way::Rtt(agent_ms * 1000));
        Choice { name, client, agent, pairs, capacity: 100 }
    }

    fn chosen(choices: &[Choice<'_>]) -> String {
        nearest(choices.iter().cloned()).unwrap().name.to_owned()
    }

    #[test]
    fn the_smallest_sum_wins_not_the_nearest_to_either_end() {
        assert_eq!(chosen(&[at("a", 5, 90, 0), at("b", 40, 30, 99), at("c", 80, 5, 0)]), "b");
    }

    #[test]
    fn within_ten_milliseconds_the_least_loaded_wins() {
        assert_eq!(chosen(&[at("a", 10, 11, 50), at("b", 14, 14, 10)]), "b");
        let small = Choice { capacity: 10, ..at("b", 14, 14, 9) };
        assert_eq!(
            chosen(&[at("a", 10, 11, 50), small]),
            "a",
            "half full is less than nine tenths"
        );
        assert_eq!(chosen(&[at("b", 10, 11, 5), at("a", 10, 11, 5)]), "a", "and equals by name");
    }

    #[test]
    fn what_is_not_known_comes_last_but_can_be_used() {
        let unknown = Choice { client: Way::Unknown, agent: Way::Unknown, ..at("u", 0, 0, 0) };
        let half = Choice { client: Way::Unknown, ..at("h", 0, 1, 0) };
        assert_eq!(chosen(&[unknown.clone(), half.clone(), at("k", 300, 300, 90)]), "k");
        assert_eq!(chosen(&[unknown.clone(), half]), "h");
        assert_eq!(chosen(&[unknown]), "u");
    }

    #[test]
    fn a_gateway_that_one_end_cannot_reach_or_that_is_full_is_the_last_resort() {
        let gone = Choice { agent: Way::Unreachable, ..at("g", 1, 0, 0) };
        assert_eq!(chosen(&[gone.clone(), at("k", 300, 300, 90)]), "k");
        assert_eq!(chosen(&[gone]), "g");
        assert_eq!(chosen(&[at("f", 1, 1, 100), at("k", 300, 300, 90)]), "k");
        assert_eq!(nearest([]), None);
    }

    #[test]
    fn a_leg_is_tcp_so_stun_alone_reaches_nothing() {
        let rtt = |udp_us, tcp_us| GatewayRtt { gateway: "g".into(), udp_us, tcp_us };
        assert_eq!(Way::of(None), Way::Unknown);
        assert_eq!(Way::of(Some(&rtt(Some(5), None))), Way::Unreachable);
        assert_eq!(Way::of(Some(&rtt(Some(5), Some(7)))), Way::Rtt(5));
        assert_eq!(Way::of(Some(&rtt(None, Some(7)))), Way::Rtt(7));
    }
}
