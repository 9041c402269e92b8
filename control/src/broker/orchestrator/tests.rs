//! Stories of agents, clients and a gateway, in virtual time.
use std::time::{Duration, Instant};

use switchback_engine::{LegSide, PairId};

use super::*;
use crate::api::SessionState;
use crate::broker::orchestrator::sessions::SILENCE_MAX;
use crate::wire::{LossCounts, PathMove, PublicKey, Resource, SessionPurpose, SessionReport};

pub(super) const CLIENT: LinkId = LinkId(1);
pub(super) const AGENT: LinkId = LinkId(2);

/// An orchestrator, a clock that moves when told, and names that are never used twice.
pub(super) struct World {
    pub(super) orchestrator: Orchestrator,
    now: Instant,
    next: u32,
}

impl World {
    fn new() -> Self {
        let limits = SessionLimits { total_max: 8, per_user_max: 6 };
        Self { orchestrator: Orchestrator::new(limits), now: Instant::now(), next: 0 }
    }

    /// One user and one agent that offers `ssh`.
    pub(super) fn ready() -> Self {
        let mut world = Self::new();
        world.client_up(CLIENT, "ada");
        world.agent_up(AGENT, "lab", vec![]);
        world
    }

    pub(super) fn say(&mut self, input: Input) -> Vec<Output> {
        self.orchestrator.handle(self.now, input)
    }

    pub(super) const fn orchestrator(&self) -> &Orchestrator {
        &self.orchestrator
    }

    pub(super) const fn now(&self) -> Instant {
        self.now
    }

    pub(super) fn after(&mut self, seconds: u64) -> Vec<Output> {
        self.now += Duration::from_secs(seconds);
        self.say(Input::Tick)
    }

    pub(super) fn fresh_pair(&mut self) -> PairId {
        self.next += 1;
        let mut pair = [0; 16];
        pair[..4].copy_from_slice(&self.next.to_be_bytes());
        PairId(pair)
    }

    pub(super) fn client_up(&mut self, link: LinkId, user: &str) {
        let token = format!("token-of-{user}");
        let address =
            Some(ClientAddress::new(at("[::ffff:192.0.2.7]:9"), at("[::ffff:192.0.2.1]:443")));
        self.say(Input::ClientUp { link, user: user.into(), token, address });
    }

    pub(super) fn agent_up(
        &mut self,
        link: LinkId,
        name: &str,
        sessions: Vec<Grant>,
    ) -> Vec<Output> {
        let registration = Registration {
            name: name.into(),
            key: PublicKey(format!("key-of-{name}")),
            token: format!("token-of-{name}"),
            resources: vec![Resource::tcp("ssh", "127.0.0.1:22")],
            sessions,
            draining: false,
        };
        self.say(Input::AgentUp { link, registration })
    }

    pub(super) fn open_from(&mut self, link: LinkId) -> Vec<Output> {
        self.ask_from(link, false)
    }

    pub(super) fn ask_from(&mut self, link: LinkId, ready: bool) -> Vec<Output> {
        let pair = self.fresh_pair();
        let wish = Wish {
            request: 7,
            resource: "ssh".into(),
            client_key: PublicKey("client".into()),
            ready,
            session: SessionId(format!("s{}", self.next)),
            pair,
            created_ms: 1,
            udp: None,
            purpose: SessionPurpose::default(),
            consent: false,
            source: None,
            rights: Default::default(),
        };
        self.say(Input::Open { link, wish })
    }

    fn open(&mut self) -> (Grant, PairId) {
        granted(&self.open_from(CLIENT)).expect("granted")
    }

    pub(super) fn leg(&mut self, grant: &Grant) -> Vec<Output> {
        let pair = self.fresh_pair();
        self.say(Input::Leg {
            link: CLIENT,
            request: 8,
            grant: grant.clone(),
            pair,
            udp: None,
            wish: LegWish::default(),
        })
    }

    fn warm(&mut self) -> PairId {
        let pair = self.fresh_pair();
        let out = self.say(Input::Warm { link: AGENT, pairs: vec![pair] });
        assert_eq!(out, [Output::WarmTickets { link: AGENT, pairs: vec![pair] }]);
        self.say(Input::LegWaiting { pair, side: LegSide::Agent });
        pair
    }

    fn state(&self, grant: &Grant) -> Option<SessionState> {
        self.orchestrator.session(&grant.session, self.now).map(|session| session.state)
    }

    pub(super) fn report(&mut self, link: LinkId, grant: &Grant, with_grant: bool) -> Vec<Output> {
        let report =
            SessionReport { transport: Some("TCP (Reverse-Connect)".into()), ..uncarried(grant) };
        let grant = with_grant.then(|| grant.clone());
        self.say(Input::Reports { link, reports: vec![Reported { report, grant }] })
    }

    /// An end reports that nothing carries the session.
    fn report_uncarried(&mut self, link: LinkId, grant: &Grant) {
        let reports = vec![Reported { report: uncarried(grant), grant: None }];
        self.say(Input::Reports { link, reports });
    }
}

fn uncarried(grant: &Grant) -> SessionReport {
    SessionReport {
        session: grant.session.clone(),
        grant: None,
        transport: None,
        rtt: None,
        client_to_target: 10,
        target_to_client: 20,
        channels: 3,
        resumes: 1,
        paths: vec![],
        loss: LossCounts::default(),
        jitter_us: None,
        loss_ppm: None,
        held: None,
    }
}

fn at(address: &str) -> std::net::SocketAddr {
    address.parse().unwrap()
}

pub(super) fn granted(outputs: &[Output]) -> Option<(Grant, PairId)> {
    outputs.iter().find_map(|output| match output {
        Output::Granted { grant, pair, .. } => Some((*grant.clone(), *pair)),
        _ => None,
    })
}

/// A client's word that its session is direct now.
pub(super) fn to_direct() -> Box<PathMove> {
    let (to, cause) = ("UDP (Shortpath)".into(), "better".into());
    Box::new(PathMove { at_ms: 1, from: None, to, cause, stall_us: 0, rtt_us: None })
}

pub(super) fn refused(outputs: &[Output]) -> Option<Code> {
    outputs.iter().find_map(|output| match output {
        Output::RefuseClient { fault, .. } | Output::RefuseAgent { fault, .. } => Some(fault.code),
        _ => None,
    })
}

fn offered(outputs: &[Output]) -> Option<(LinkId, PairId, How)> {
    outputs.iter().find_map(|output| match output {
        Output::Offer { link, pair, how, .. } => Some((*link, *pair, *how)),
        _ => None,
    })
}

#[test]
fn a_session_connects_pauses_resumes_and_closes() {
    let mut world = World::ready();
    let (grant, pair) = world.open();
    assert_eq!(world.state(&grant), Some(SessionState::Connecting));
    world.say(Input::PairStarted { pair });
    assert_eq!(world.state(&grant), Some(SessionState::Active));
    world.report(CLIENT, &grant, false);
    world.say(Input::PairEnded { pair });
    assert_eq!(world.state(&grant), Some(SessionState::Paused), "reports from before are void");
    let out = world.leg(&grant);
    let (_, next, how) = offered(&out).unwrap();
    assert_eq!(how, How::Dial);
    let again = Box::new(grant.clone());
    let leg = Output::ClientLeg { link: CLIENT, request: 8, grant: again, pair: next, udp: None };
    assert!(out.contains(&leg));
    world.say(Input::PairStarted { pair: next });
    assert_eq!(world.state(&grant), Some(SessionState::Active));
    let (session, code) = (grant.session.clone(), Code::SessionClosed);
    let out = world.say(Input::Ended { link: CLIENT, session: session.clone(), code });
    assert!(out.contains(&Output::EndAtAgent { link: AGENT, session, code }));
    assert!(!out.contains(&Output::EndPair { pair: next }), "the last bytes may cross");
    assert_eq!(world.state(&grant), None);
    assert_eq!(refused(&world.leg(&grant)), Some(code), "an ended session stays ended");
    assert!(world.after(30).contains(&Output::EndPair { pair: next }), "but not for ever");
}

#[test]
fn a_warm_leg_is_used_once_and_a_lost_one_is_dialled_instead() {
    let mut world = World::ready();
    let warm = world.warm();
    let out = world.open_from(CLIENT);
    assert_eq!(offered(&out), Some((AGENT, warm, How::Warm)));
    assert_eq!(granted(&out).unwrap().1, warm, "the client's ticket names the warm pair");
    let out = world.say(Input::LegGone { pair: warm, side: LegSide::Agent });
    assert_eq!(offered(&out), Some((AGENT, warm, How::Dial)));
    assert_eq!(offered(&world.open_from(CLIENT)).unwrap().2, How::Dial);
}

#[test]
fn warm_legs_are_bounded_and_go_with_their_agent() {
    let mut world = World::ready();
    let pairs: Vec<_> = (0..=WARM_LEGS_MAX).map(|_| world.fresh_pair()).collect();
    let out = world.say(Input::Warm { link: AGENT, pairs: pairs.clone() });
    let expected = pairs[..WARM_LEGS_MAX].to_vec();
    assert_eq!(out, [Output::WarmTickets { link: AGENT, pairs: expected }]);
    let one_more = Input::Warm { link: AGENT, pairs: vec![pairs[WARM_LEGS_MAX]] };
    assert_eq!(refused(&world.say(one_more.clone())), Some(Code::LegLimit));
    world.after(90);
    assert_eq!(refused(&world.say(one_more)), None, "tickets that were never used make room");
    let out = world.say(Input::AgentDown { link: AGENT });
    assert_eq!(out, [Output::EndPair { pair: pairs[WARM_LEGS_MAX] }]);
}

#[test]
fn a_dropped_link_ends_no_session() {
    let mut world = World::ready();
    let (grant, pair) = world.open();
    world.say(Input::PairStarted { pair });
    world.say(Input::ClientDown { link: CLIENT });
    world.say(Input::AgentDown { link: AGENT });
    world.after(3600);
    // Carried, and without a byte for an hour.
    assert_eq!(world.state(&grant), Some(SessionState::Idle));
}

#[test]
fn a_session_on_udp_whose_client_is_gone_is_paused_as_soon_as_its_agent_says_so() {
    let mut world = World::ready();
    let (grant, pair) = world.open();
    world.say(Input::PairStarted { pair });
    world.say(Input::PairEnded { pair });
    world.report(CLIENT, &grant, true);
    world.report(AGENT, &grant, true);
    assert_eq!(world.state(&grant), Some(SessionState::Active));
    world.say(Input::ClientDown { link: CLIENT });
    assert_eq!(world.state(&grant), Some(SessionState::Active), "the link alone says nothing");
    world.report_uncarried(AGENT, &grant);
    assert_eq!(world.state(&grant), Some(SessionState::Paused));
}

#[test]
fn a_silent_session_without_legs_is_forgotten_but_may_come_back() {
    let mut world = World::ready();
    let (grant, pair) = world.open();
    world.say(Input::PairStarted { pair });
    world.say(Input::PairEnded { pair });
    world.after(SILENCE_MAX.as_secs() - 1);
    assert_eq!(world.state(&grant), Some(SessionState::Paused));
    let code = Code::SessionLost;
    let ended = Box::new(grant.clone());
    let over = Output::SessionOver { session: grant.session.clone(), grant: ended, code };
    assert_eq!(world.after(1), [over]);
    assert_eq!(world.state(&grant), None);
    assert_eq!(refused(&world.leg(&grant)), None);
    assert_eq!(world.state(&grant), Some(SessionState::Paused));
}

#[test]
fn a_restarted_broker_learns_sessions_from_either_end() {
    let mut before = World::ready();
    let (grant, _) = before.open();
    let mut world = World::new();
    world.client_up(CLIENT, "ada");
    assert_eq!(refused(&world.leg(&grant)), Some(Code::AgentOffline), "temporary: it is retried");
    assert_eq!(world.state(&grant), Some(SessionState::Paused));
    let mut world = World::new();
    world.agent_up(AGENT, "lab", vec![grant.clone()]);
    assert_eq!(world.state(&grant), Some(SessionState::Paused));
    let mut world = World::ready();
    world.report(CLIENT, &grant, true);
    assert_eq!(world.state(&grant), Some(SessionState::Active));
}

#[test]
fn a_killed_session_is_cut_at_both_ends_and_stays_dead() {
    let mut world = World::ready();
    let (grant, pair) = world.open();
    world.say(Input::PairStarted { pair });
    let (session, code) = (grant.session.clone(), Code::SessionKilled);
    let out = world.say(Input::Kill { session: session.clone(), code });
    for expected in [
        Output::EndAtAgent { link: AGENT, session: session.clone(), code },
        Output::EndAtClient { link: CLIENT, session: session.clone(), code },
        Output::EndPair { pair },
    ] {
        assert!(out.contains(&expected), "{expected:?}");
    }
    assert_eq!(refused(&world.leg(&grant)), Some(code));
    let told = Output::EndAtAgent { link: LinkId(9), session, code };
    assert!(world.agent_up(LinkId(9), "lab", vec![grant.clone()]).contains(&told));
    assert_eq!(world.state(&grant), None);
}

#[test]
fn a_pair_that_meets_after_its_session_died_is_cut() {
    let mut world = World::ready();
    let (grant, pair) = world.open();
    world.say(Input::Kill { session: grant.session, code: Code::SessionKilled });
    world.after(60);
    assert_eq!(
        world.say(Input::LegWaiting { pair, side: LegSide::Client }),
        [Output::EndPair { pair }],
        "an unused ticket is good for a minute, but brings no leg that stays"
    );
    assert_eq!(world.say(Input::PairStarted { pair }), [Output::EndPair { pair }]);
    assert_eq!(world.after(30), [Output::EndPair { pair }]);
    assert_eq!(world.orchestrator.session_of(pair), None, "forgotten with its tickets");
}

#[test]
fn a_lost_warm_leg_is_dialled_over_the_agents_new_link_or_given_up() {
    let new = LinkId(3);
    for reconnected in [true, false] {
        let mut world = World::ready();
        let warm = world.warm();
        let (grant, pair) = world.open();
        assert_eq!(pair, warm);
        world.say(Input::AgentDown { link: AGENT });
        if reconnected {
            world.agent_up(new, "lab", vec![]);
        }
        let out = world.say(Input::LegGone { pair, side: LegSide::Agent });
        if reconnected {
            assert_eq!(offered(&out), Some((new, pair, How::Dial)));
            world.say(Input::PairStarted { pair });
            assert_eq!(world.state(&grant), Some(SessionState::Active));
        } else {
            assert_eq!(out, [Output::EndPair { pair }]);
            let late = world.say(Input::LegWaiting { pair, side: LegSide::Client });
            assert_eq!(late, [Output::EndPair { pair }], "the client learns at once");
            assert_eq!(world.state(&grant), Some(SessionState::Connecting), "it may ask again");
        }
    }
}

#[test]
fn one_name_belongs_to_one_key_while_it_is_connected() {
    let mut world = World::ready();
    let registration = Registration {
        name: "lab".into(),
        key: PublicKey("another".into()),
        token: "t".into(),
        resources: vec![],
        sessions: vec![],
        draining: false,
    };
    let other = LinkId(3);
    let out = world.say(Input::AgentUp { link: other, registration: registration.clone() });
    assert_eq!(refused(&out), Some(Code::AgentNameTaken));
    assert!(out.contains(&Output::Close { link: other }));
    let out = world.agent_up(LinkId(4), "lab", vec![]);
    assert!(out.contains(&Output::Close { link: AGENT }), "the same agent replaces its old link");
    world.say(Input::AgentDown { link: AGENT });
    assert!(
        world.orchestrator.transport("lab", "ssh").is_some(),
        "the old link's end does not count"
    );
}

#[test]
fn the_agent_with_the_fewest_sessions_serves() {
    let mut world = World::ready();
    world.agent_up(LinkId(3), "annex", vec![]);
    let agents: Vec<_> = (0..4).map(|_| world.open().0.agent).collect();
    assert_eq!(agents, ["lab", "annex", "lab", "annex"]);
}

#[test]
fn limits_refuse_and_ending_makes_room() {
    let mut world = World::ready();
    let first = world.open().0;
    (0..5).for_each(|_| drop(world.open()));
    assert_eq!(refused(&world.open_from(CLIENT)), Some(Code::SessionLimit));
    let code = Code::SessionClosed;
    world.say(Input::Ended { link: AGENT, session: first.session, code });
    world.open();
}

#[test]
fn nobody_speaks_for_anothers_session() {
    let mut world = World::ready();
    world.client_up(LinkId(5), "eve");
    world.agent_up(LinkId(6), "eve-lab", vec![]);
    let (grant, _) = world.open();
    for link in [LinkId(5), LinkId(6)] {
        let (session, code) = (grant.session.clone(), Code::SessionClosed);
        assert_eq!(world.say(Input::Ended { link, session, code }), []);
        world.report(link, &grant, true);
    }
    let pair = world.fresh_pair();
    let out = world.say(Input::Leg {
        link: LinkId(5),
        request: 1,
        grant: grant.clone(),
        pair,
        udp: None,
        wish: LegWish::default(),
    });
    assert_eq!(refused(&out), Some(Code::GrantInvalid));
    assert_eq!(world.state(&grant), Some(SessionState::Connecting));
}

#[test]
fn revoking_cuts_links_and_sessions_of_the_token_only() {
    let mut world = World::ready();
    world.client_up(LinkId(5), "bob");
    let (of_ada, _) = world.open();
    let (of_bob, _) = granted(&world.open_from(LinkId(5))).unwrap();
    let out = world.say(Input::TokenRevoked { token: "token-of-ada".into() });
    assert_eq!(refused(&out), Some(Code::TokenRevoked));
    assert!(out.contains(&Output::Close { link: CLIENT }));
    assert_eq!((world.state(&of_ada), world.state(&of_bob).is_some()), (None, true));
    let out = world.say(Input::TokenRevoked { token: "token-of-lab".into() });
    assert!(out.contains(&Output::Close { link: AGENT }));
    assert_eq!(world.state(&of_bob), None, "an agent that is not trusted serves nobody");
}

#[test]
fn revoking_an_agents_token_ends_its_sessions_while_its_link_is_down() {
    let mut world = World::ready();
    let (grant, pair) = world.open();
    world.say(Input::PairStarted { pair });
    world.say(Input::AgentDown { link: AGENT });
    let out = world.say(Input::TokenRevoked { token: "token-of-lab".into() });
    let (session, code) = (grant.session.clone(), Code::TokenRevoked);
    assert!(out.contains(&Output::EndAtClient { link: CLIENT, session, code }));
    assert!(out.contains(&Output::EndPair { pair }));
    assert_eq!(world.state(&grant), None);
}

#[test]
fn a_withdrawn_grant_ends_the_sessions_it_carried() {
    let mut world = World::ready();
    let (grant, _) = world.open();
    let user = || "ada".to_owned();
    world.say(Input::GrantsChanged { user: user(), resources: vec!["*".into()] });
    assert!(world.state(&grant).is_some());
    world.say(Input::GrantsChanged { user: user(), resources: vec!["web".into()] });
    assert_eq!(world.state(&grant), None);
}
