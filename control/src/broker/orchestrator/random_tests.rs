//! Random orders of events: nothing is lost, doubled or left behind.
use proptest::prelude::*;
use switchback_engine::{LegSide, PairId};

use super::sessions::{LEGS_MAX, SILENCE_MAX};
use super::tests::{AGENT, CLIENT, World};
use super::*;

#[derive(Clone, Debug)]
enum Move {
    Client(bool),
    Agent(bool),
    Open,
    Ready,
    Begun(usize),
    Leg(usize),
    Warm,
    Waiting(usize, bool),
    Gone(usize, bool),
    Started(usize),
    PairEnded(usize),
    Report(usize, bool),
    Ended(usize, bool),
    Kill(usize),
    Wait(u64),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        1 => any::<bool>().prop_map(Move::Client),
        1 => any::<bool>().prop_map(Move::Agent),
        4 => Just(Move::Open),
        2 => Just(Move::Ready),
        1 => (0..8usize).prop_map(Move::Begun),
        1 => (0..8usize).prop_map(Move::Leg),
        1 => Just(Move::Warm),
        1 => (0..16usize, any::<bool>()).prop_map(|(pair, agent)| Move::Waiting(pair, agent)),
        1 => (0..16usize, any::<bool>()).prop_map(|(pair, agent)| Move::Gone(pair, agent)),
        4 => (0..16usize).prop_map(Move::Started),
        2 => (0..16usize).prop_map(Move::PairEnded),
        1 => (0..8usize, any::<bool>()).prop_map(|(session, client)| Move::Report(session, client)),
        1 => (0..8usize, any::<bool>()).prop_map(|(session, client)| Move::Ended(session, client)),
        1 => (0..8usize).prop_map(Move::Kill),
        1 => (0..120u64).prop_map(Move::Wait),
    ];
    prop::collection::vec(one, 1..120)
}

/// Plays random moves and keeps what a gateway would: which pairs live.
struct Play {
    world: World,
    grants: Vec<Grant>,
    pairs: Vec<PairId>,
}

impl Play {
    fn pair(&self, index: usize) -> PairId {
        self.pairs.get(index % self.pairs.len().max(1)).copied().unwrap_or(PairId([0xee; 16]))
    }

    fn grant(&self, index: usize) -> Option<Grant> {
        self.grants.get(index % self.grants.len().max(1)).cloned()
    }

    fn make(&mut self, next: &Move) {
        let side = |agent: bool| if agent { LegSide::Agent } else { LegSide::Client };
        let link = |client: bool| if client { CLIENT } else { AGENT };
        let out = match *next {
            Move::Client(true) => {
                self.world.client_up(CLIENT, "ada");
                vec![]
            }
            Move::Client(false) => self.world.say(Input::ClientDown { link: CLIENT }),
            Move::Agent(true) => self.world.agent_up(AGENT, "lab", self.grants.clone()),
            Move::Agent(false) => self.world.say(Input::AgentDown { link: AGENT }),
            Move::Open => self.answered_once(|world| world.open_from(CLIENT)),
            Move::Ready => self.answered_once(|world| world.ask_from(CLIENT, true)),
            Move::Begun(index) => match self.grant(index) {
                Some(Grant { session, .. }) => {
                    self.world.say(Input::Begun { link: AGENT, session })
                }
                None => vec![],
            },
            Move::Leg(index) => match self.grant(index) {
                Some(grant) => self.answered_once(|world| world.leg(&grant)),
                None => vec![],
            },
            Move::Warm => {
                let pairs = vec![self.world.fresh_pair()];
                self.world.say(Input::Warm { link: AGENT, pairs })
            }
            Move::Waiting(index, agent) => {
                let pair = self.pair(index);
                self.world.say(Input::LegWaiting { pair, side: side(agent) })
            }
            Move::Gone(index, agent) => {
                let pair = self.pair(index);
                self.world.say(Input::LegGone { pair, side: side(agent) })
            }
            Move::Started(index) => {
                let pair = self.pair(index);
                self.world.say(Input::PairStarted { pair })
            }
            Move::PairEnded(index) => {
                let pair = self.pair(index);
                self.world.say(Input::PairEnded { pair })
            }
            Move::Report(index, client) => match self.grant(index) {
                Some(grant) => self.world.report(link(client), &grant, true),
                None => vec![],
            },
            Move::Ended(index, client) => match self.grant(index) {
                Some(Grant { session, .. }) => {
                    let code = Code::SessionClosed;
                    self.world.say(Input::Ended { link: link(client), session, code })
                }
                None => vec![],
            },
            Move::Kill(index) => match self.grant(index) {
                Some(Grant { session, .. }) => {
                    self.world.say(Input::Kill { session, code: Code::SessionKilled })
                }
                None => vec![],
            },
            Move::Wait(seconds) => self.world.after(seconds),
        };
        self.note(&out);
    }

    fn answered_once(&mut self, ask: impl FnOnce(&mut World) -> Vec<Output>) -> Vec<Output> {
        let out = ask(&mut self.world);
        let answers = out.iter().filter(|output| {
            matches!(
                output,
                Output::Granted { .. } | Output::ClientLeg { .. } | Output::RefuseClient { .. }
            )
        });
        assert_eq!(answers.count(), 1, "every request gets one answer");
        out
    }

    fn note(&mut self, out: &[Output]) {
        for output in out {
            match output {
                Output::Granted { grant, .. } => self.grants.push(*grant.clone()),
                Output::Offer { pair, .. } => self.pairs.push(*pair),
                Output::WarmTickets { pairs, .. } => self.pairs.extend(pairs),
                _ => {}
            }
        }
        self.check();
    }

    /// Books balance: counts match the table, and every leg is known as this session's.
    fn check(&self) {
        let core = &self.world.orchestrator;
        let (in_use, ready) = (core.sessions.in_use(), core.sessions.ready());
        assert_eq!(core.sessions.of_user("ada"), in_use);
        assert_eq!(core.sessions.ready_of_user("ada"), ready);
        assert_eq!(core.sessions.iter().filter(|session| session.ready).count(), ready);
        assert_eq!(core.sessions.of_agent("lab"), in_use, "ready ones take no place");
        assert!(in_use <= core.limits.total_max);
        for session in core.sessions.iter() {
            assert!(session.legs.len() <= LEGS_MAX);
            for leg in &session.legs {
                assert_eq!(core.session_of(leg.pair).as_ref(), Some(&session.grant.session));
            }
        }
        let lead = |pair: &super::legs::Pair| {
            pair.session().and_then(|id| core.sessions.get(id)).is_some()
        };
        let legs: usize = core.sessions.iter().map(|session| session.legs.len()).sum();
        assert!(legs <= core.pairs.iter().filter(|(_, pair)| lead(pair)).count());
    }
}

proptest! {
    #[test]
    fn no_order_of_events_leaves_anything_behind(moves in moves()) {
        let (grants, pairs) = (vec![], vec![]);
        let mut play = Play { world: World::ready(), grants, pairs };
        moves.iter().for_each(|next| play.make(next));
        for pair in play.pairs.clone() {
            play.world.say(Input::PairEnded { pair });
        }
        play.world.say(Input::ClientDown { link: CLIENT });
        play.world.say(Input::AgentDown { link: AGENT });
        play.world.after(SILENCE_MAX.as_secs());
        play.world.after(SILENCE_MAX.as_secs());
        let core = &play.world.orchestrator;
        prop_assert_eq!((core.sessions.in_use(), core.sessions.ready()), (0, 0));
        prop_assert_eq!(core.pairs.iter().count(), 0);
        prop_assert_eq!(core.links(), (0, 0, 0));
        prop_assert_eq!(core.sessions.of_user("ada"), 0);
    }
}
