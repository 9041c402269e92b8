//! Pools: who serves, who is passed over, and what users are told.
use super::tests::{AGENT, CLIENT, World, granted, refused};
use super::*;
use crate::wire::{LegWish, PublicKey, Resource, TargetHealth};

const ANNEX: LinkId = LinkId(3);

fn pool() -> World {
    let mut world = World::ready();
    world.agent_up(ANNEX, "annex", vec![]);
    world
}

fn open(world: &mut World) -> Grant {
    granted(&world.open_from(CLIENT)).expect("a session").0
}

fn health(world: &mut World, link: LinkId, fault: Option<Code>) {
    let targets = vec![TargetHealth { resource: "ssh".into(), fault }];
    world.say(Input::Health { link, targets, load_percent: 0 });
}

fn end(world: &mut World, grant: &Grant) {
    let (session, code) = (grant.session.clone(), Code::SessionClosed);
    world.say(Input::Ended { link: CLIENT, session, code });
}

#[test]
fn an_agent_that_drains_keeps_its_sessions_and_gets_no_new_ones() {
    let mut world = pool();
    let kept = open(&mut world);
    assert_eq!(kept.agent, "lab");
    world.say(Input::Drain { agent: "lab".into(), draining: true });
    assert!((0..3).all(|_| open(&mut world).agent == "annex"));
    let now = world.now();
    assert!(world.orchestrator().session(&kept.session, now).is_some());
    assert!(!world.leg(&kept).iter().any(|out| matches!(out, Output::RefuseClient { .. })));
    world.say(Input::Drain { agent: "annex".into(), draining: true });
    assert_eq!(refused(&world.open_from(CLIENT)), Some(Code::AgentDraining));
    world.say(Input::Drain { agent: "lab".into(), draining: false });
    assert_eq!(open(&mut world).agent, "lab");
}

#[test]
fn an_agent_that_lost_its_target_is_passed_over_until_it_reaches_it_again() {
    let mut world = pool();
    health(&mut world, AGENT, Some(Code::TargetRefused));
    assert!((0..3).all(|_| open(&mut world).agent == "annex"));
    health(&mut world, AGENT, None);
    assert_eq!(open(&mut world).agent, "lab");
}

#[test]
fn a_user_comes_back_to_the_agent_of_the_session_before() {
    let mut world = pool();
    let (first, second) = (open(&mut world), open(&mut world));
    assert_eq!((&*first.agent, &*second.agent), ("lab", "annex"));
    end(&mut world, &second);
    assert_eq!(open(&mut world).agent, "annex");
    end(&mut world, &first);
    assert_eq!(open(&mut world).agent, "lab");
}

#[test]
fn a_dead_agents_sessions_are_told_why_and_where_to() {
    let mut world = pool();
    let session = open(&mut world);
    world.say(Input::AgentDown { link: AGENT });
    let told = |world: &mut World| {
        let refusal = world.leg(&session).into_iter().find_map(|out| match out {
            Output::RefuseClient { fault, .. } => Some(fault),
            _ => None,
        });
        refusal.expect("a refusal")
    };
    let fault = told(&mut world);
    assert_eq!(fault.code, Code::AgentOffline);
    assert!(fault.detail.contains("lab") && fault.detail.contains("annex"), "{fault}");
    world.say(Input::AgentDown { link: ANNEX });
    assert!(!told(&mut world).detail.contains("annex"));
}

#[test]
fn a_links_round_trip_is_smoothed_and_shown() {
    let mut world = pool();
    for ms in [80, 40] {
        world.say(Input::LinkRtt { link: AGENT, rtt: std::time::Duration::from_millis(ms) });
    }
    let now = world.now();
    let state = world.orchestrator().agent_state("lab", now).unwrap();
    assert_eq!(state.link_rtt, Some(std::time::Duration::from_millis(75)));
    assert!(world.orchestrator().agent_state("nobody", now).is_none());
}

#[test]
fn what_is_held_ready_takes_no_place_until_it_begins() {
    let mut world = World::ready();
    world.say(Input::AgentDown { link: AGENT });
    let mut resource = Resource::tcp("ssh", "127.0.0.1:22");
    resource.pool.sessions_max = Some(1);
    let registration = Registration {
        name: "lab".into(),
        key: PublicKey("key-of-lab".into()),
        token: "token-of-lab".into(),
        resources: vec![resource],
        sessions: vec![],
        draining: false,
    };
    world.say(Input::AgentUp { link: AGENT, registration });
    let (ready, _) = granted(&world.ask_from(CLIENT, true)).expect("ready");
    let first = open(&mut world);
    assert_eq!(refused(&world.open_from(CLIENT)), Some(Code::PoolFull));
    let out = world.say(Input::Begun { link: CLIENT, session: ready.session });
    let told = |out: &Output| matches!(out, Output::EndAtClient { code: Code::PoolFull, .. });
    assert!(out.iter().any(told), "{out:?}");
    end(&mut world, &first);
    open(&mut world);
}

#[test]
fn a_session_that_was_granted_without_udp_gets_none_with_a_later_leg() {
    let mut world = World::ready();
    let candidates = || Some(Vec::new());
    world.say(Input::Network { link: AGENT, candidates: Vec::new() });
    let grant = open(&mut world);
    assert!(!grant.udp);
    let (pair, wish) = (world.fresh_pair(), LegWish::default());
    let shown = grant.clone();
    let leg = Input::Leg { link: CLIENT, request: 8, grant: shown, pair, udp: candidates(), wish };
    let out = world.say(leg);
    let peering = out.iter().find_map(|output| match output {
        Output::ClientLeg { udp, .. } => Some(udp.clone()),
        _ => None,
    });
    assert_eq!(peering, Some(None), "{out:?}");
}

#[test]
fn a_session_ends_when_one_of_its_ends_shows_that_it_may_not_go_on_and_by_no_other() {
    let mut world = World::ready();
    let other = LinkId(9);
    world.client_up(other, "eve");
    let grant = open(&mut world);
    let condemn = |world: &mut World, link| {
        let grant = Box::new(grant.clone());
        world.say(Input::Condemned { link, grant, code: Code::PolicyDenied })
    };
    assert!(condemn(&mut world, other).is_empty());
    let out = condemn(&mut world, CLIENT);
    let told = |out: &Output| matches!(out, Output::EndAtAgent { code: Code::PolicyDenied, .. });
    assert!(out.iter().any(told), "{out:?}");
    let now = world.now();
    assert!(world.orchestrator().session(&grant.session, now).is_none());
}
