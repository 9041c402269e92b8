//! Which of the agents that offer a resource gets the next session.
//!
//! Agents that drain, or are full, get none. Of the rest those that reach their target come first; of these the one that the
//! user comes from, then by the pool's way of balancing, then the less loaded machine, then the shorter round trip.
use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::io::LinkId;
use crate::code::{Code, Fault};
use crate::wire::Balance;

/// A user who comes back within this finds the agent of before: longer than a machine's restart or a walk to another room,
/// shorter than a service keeps what nobody uses.
const STICKY: Duration = Duration::from_secs(15 * 60);
/// Last agents remembered, about 150 bytes each.
const STICKY_MAX: usize = 65_536;
/// Loads within a quarter of a machine are alike: they change faster than sessions do.
const LOAD_STEP: u32 = 25;
/// Round trips within this are alike.
const RTT_STEP: Duration = Duration::from_millis(10);

/// An agent that offers the resource.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) link: LinkId,
    /// Sessions it serves, of whatever resource.
    pub(super) sessions: usize,
    /// Sessions of this resource, and how many of them it takes.
    pub(super) share: (usize, Option<u32>),
    pub(super) balance: Balance,
    pub(super) draining: bool,
    /// It reaches its target, as far as is known.
    pub(super) healthy: bool,
    /// The user's last session to the resource was there.
    pub(super) known_to_user: bool,
    pub(super) load_percent: u32,
    /// Of its link to the broker.
    pub(super) rtt: Option<Duration>,
}

/// Whether a service of so many sessions, and of so many places, takes one more.
pub(super) fn has_room((sessions, most): (usize, Option<u32>)) -> bool {
    most.is_none_or(|most| sessions < usize::try_from(most).unwrap_or(usize::MAX))
}

impl Member {
    /// What is alike in all that is measured is told apart by who is connected longest.
    fn merit(&self, balance: Balance) -> impl Ord + use<> {
        let sessions = match balance {
            Balance::Breadth => (self.sessions, Reverse(0)),
            Balance::Depth => (0, Reverse(self.sessions)),
        };
        let rtt = self.rtt.unwrap_or(Duration::MAX).as_millis() / RTT_STEP.as_millis();
        (
            !self.healthy,
            !self.known_to_user,
            sessions,
            self.load_percent / LOAD_STEP,
            rtt,
            self.link,
        )
    }
}

/// The agent for the next session.
///
/// # Errors
/// [`Code::AgentOffline`], [`Code::AgentDraining`], [`Code::PoolFull`].
pub(super) fn choose(members: &[Member]) -> Result<LinkId, Fault> {
    let oldest = members.iter().min_by_key(|member| member.link).ok_or(Code::AgentOffline)?;
    let balance = oldest.balance;
    let mut serving = members.iter().filter(|member| !member.draining).peekable();
    serving.peek().ok_or(Code::AgentDraining)?;
    let with_room = serving.filter(|member| has_room(member.share));
    let best = with_room.min_by_key(|member| member.merit(balance)).ok_or(Code::PoolFull)?;
    Ok(best.link)
}

/// Which agent served a user last, by resource.
#[derive(Debug, Default)]
pub(super) struct LastAgents {
    of: HashMap<(String, String), (String, Instant)>,
    order: VecDeque<(Instant, (String, String))>,
}

impl LastAgents {
    /// A session of `user` to `resource` at `agent` is over.
    pub(super) fn remember(&mut self, now: Instant, user: &str, resource: &str, agent: &str) {
        self.forget(now);
        if self.order.len() >= STICKY_MAX {
            self.forget_oldest();
        }
        let key = (user.to_owned(), resource.to_owned());
        self.of.insert(key.clone(), (agent.to_owned(), now));
        self.order.push_back((now, key));
    }

    /// The agent to come back to.
    pub(super) fn of(&self, now: Instant, user: &str, resource: &str) -> Option<&str> {
        let (agent, at) = self.of.get(&(user.to_owned(), resource.to_owned()))?;
        (now.saturating_duration_since(*at) < STICKY).then_some(agent.as_str())
    }

    fn forget(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= STICKY)
        {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((at, key)) = self.order.pop_front() else { return };
        // A later session has its own place in the order.
        if self.of.get(&key).is_some_and(|(_, last)| *last == at) {
            self.of.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member(link: u64, sessions: usize) -> Member {
        Member {
            link: LinkId(link),
            sessions,
            share: (sessions, None),
            balance: Balance::Breadth,
            draining: false,
            healthy: true,
            known_to_user: false,
            load_percent: 0,
            rtt: None,
        }
    }

    fn chosen(members: &[Member]) -> u64 {
        choose(members).unwrap().0
    }

    #[test]
    fn breadth_takes_the_agent_with_the_fewest_and_depth_the_one_with_the_most_that_has_room() {
        let breadth = [member(1, 3), member(2, 1), member(3, 2)];
        assert_eq!(chosen(&breadth), 2);
        let mut depth = breadth.map(|one| Member { balance: Balance::Depth, ..one });
        assert_eq!(chosen(&depth), 1);
        depth[0].share = (3, Some(3));
        assert_eq!(chosen(&depth), 3);
        let full = depth.map(|one| Member { share: (one.sessions, Some(1)), ..one });
        assert_eq!(choose(&full).unwrap_err().code, Code::PoolFull);
    }

    #[test]
    fn an_agent_that_drains_gets_nothing_even_from_those_it_knows() {
        let known = Member { draining: true, known_to_user: true, ..member(1, 0) };
        assert_eq!(chosen(&[known, member(2, 9)]), 2);
        assert_eq!(choose(&[known]).unwrap_err().code, Code::AgentDraining);
        assert_eq!(choose(&[]).unwrap_err().code, Code::AgentOffline);
    }

    #[test]
    fn a_user_comes_back_to_the_agent_of_before_unless_it_has_lost_its_target() {
        let known = Member { known_to_user: true, ..member(1, 9) };
        assert_eq!(chosen(&[known, member(2, 0)]), 1);
        let ill = Member { healthy: false, ..known };
        assert_eq!(chosen(&[ill, member(2, 0)]), 2);
        assert_eq!(chosen(&[ill]), 1, "better an agent that may have recovered than none");
    }

    #[test]
    fn load_and_then_distance_decide_among_agents_with_as_many_sessions() {
        let busy = Member { load_percent: 90, ..member(1, 1) };
        let far = Member { rtt: Some(Duration::from_millis(80)), ..member(2, 1) };
        let near = Member { rtt: Some(Duration::from_millis(12)), ..member(3, 1) };
        assert_eq!(chosen(&[busy, far, near]), 3);
        assert_eq!(chosen(&[busy, far]), 2);
        let alike = Member { rtt: Some(Duration::from_millis(18)), ..member(0, 1) };
        assert_eq!(chosen(&[near, alike]), 0, "the longest connected");
    }

    #[test]
    fn the_last_agent_is_forgotten_in_time_and_bounded_in_number() {
        let (start, mut last) = (Instant::now(), LastAgents::default());
        last.remember(start, "ann", "ssh", "a");
        let later = start + STICKY / 2;
        last.remember(later, "ann", "ssh", "b");
        assert_eq!(last.of(start + STICKY, "ann", "ssh"), Some("b"));
        assert_eq!(last.of(later + STICKY, "ann", "ssh"), None);
        assert_eq!(last.of(later, "bob", "ssh"), None);
        for number in 0..STICKY_MAX + 10 {
            last.remember(later, &number.to_string(), "ssh", "a");
        }
        assert!(last.of.len() <= STICKY_MAX && last.order.len() <= STICKY_MAX);
        last.remember(later + STICKY, "eve", "ssh", "a");
        assert_eq!((last.of.len(), last.order.len()), (1, 1));
    }

    proptest! {
        #[test]
        fn whoever_is_chosen_serves_and_has_room(
            members in proptest::collection::vec(
                (0..4_usize, proptest::option::of(0..4_u32), any::<[bool; 4]>(), 0..200_u32), 0..6,
            ),
        ) {
            let members: Vec<_> = members.into_iter().zip(1..).map(|(it, link)| {
                let (sessions, most, [draining, healthy, known_to_user, depth], load_percent) = it;
                let balance = if depth { Balance::Depth } else { Balance::Breadth };
                let share = (sessions, most);
                let one = member(link, sessions);
                Member { share, balance, draining, healthy, known_to_user, load_percent, ..one }
            }).collect();
            let fits = |one: &Member| !one.draining && has_room(one.share);
            match choose(&members) {
                Ok(link) => prop_assert!(members.iter().any(|one| one.link == link && fits(one))),
                Err(_) => prop_assert!(!members.iter().any(fits)),
            }
        }
    }
}
