//! Stories of sessions that are held ready.
use switchback_engine::PairId;

use super::super::tests::{AGENT, CLIENT, World, granted, to_direct};
use super::*;
use crate::broker::orchestrator::Input;
use crate::broker::seal::Grant;

fn ready(world: &mut World) -> (Grant, PairId) {
    let out = world.ask_from(CLIENT, true);
    assert!(!out.iter().any(|output| matches!(output, Output::Began { .. })));
    assert!(out.iter().any(|output| matches!(output, Output::Offer { ready: true, .. })));
    let (grant, pair) = granted(&out).expect("granted");
    world.say(Input::PairStarted { pair });
    (grant, pair)
}

fn shown(world: &World) -> usize {
    world.orchestrator.sessions(None, world.now()).len()
}

fn began(out: &[Output]) -> bool {
    out.iter().any(|output| matches!(output, Output::Began { .. }))
}

#[test]
fn a_ready_session_is_shown_nowhere_until_either_end_says_it_began() {
    for link in [CLIENT, AGENT] {
        let mut world = World::ready();
        let (grant, _) = ready(&mut world);
        let session = grant.session.clone();
        assert_eq!(shown(&world), 0);
        assert!(world.orchestrator.session(&session, world.now()).is_none());
        let out = world.say(Input::Begun { link, session: session.clone() });
        assert!(began(&out));
        let told = Output::BegunAtAgent { link: AGENT, session: session.clone() };
        assert_eq!(out.contains(&told), link == CLIENT, "the agent hears what it did not say");
        assert_eq!(shown(&world), 1);
        assert!(world.say(Input::Begun { link, session }).is_empty(), "it begins once");
    }
}

#[test]
fn moves_of_a_ready_session_are_counted_once_it_begins_and_its_time_to_direct_never() {
    let mut world = World::ready();
    let (grant, _) = ready(&mut world);
    let session = grant.session;
    let moved = to_direct();
    let moved = || Input::Moved {
        link: CLIENT,
        session: session.clone(),
        moved: moved.clone(),
        direct: true,
    };
    assert!(world.say(moved()).is_empty());
    world.say(Input::Begun { link: CLIENT, session: session.clone() });
    let out = world.say(moved());
    assert!(matches!(out[..], [Output::Moved { first_direct: false, .. }]), "{out:?}");
}

#[test]
fn ready_sessions_take_no_room_from_those_in_use_and_have_limits_of_their_own() {
    let mut world = World::ready();
    ready(&mut world);
    let out = world.ask_from(CLIENT, true);
    let refused = |output: &Output| matches!(output, Output::RefuseClient { fault, .. } if fault.code == Code::SessionLimit);
    assert!(out.iter().any(refused), "an eighth of eight");
    for _ in 0..6 {
        assert!(granted(&world.open_from(CLIENT)).is_some());
    }
    assert!(granted(&world.open_from(CLIENT)).is_none(), "six are ada's limit");
}

#[test]
fn a_ready_session_that_begins_beyond_the_limit_is_ended() {
    let mut world = World::ready();
    let (grant, pair) = ready(&mut world);
    for _ in 0..6 {
        world.open_from(CLIENT);
    }
    let out = world.say(Input::Begun { link: AGENT, session: grant.session });
    assert!(!began(&out));
    assert!(out.contains(&Output::EndPair { pair }));
    assert_eq!(shown(&world), 6);
}

#[test]
fn a_ready_session_goes_with_a_link_a_right_or_its_time_and_nobody_hears_of_it() {
    let ends = [
        Some(Input::ClientDown { link: CLIENT }),
        Some(Input::AgentDown { link: AGENT }),
        Some(Input::TokenRevoked { token: "token-of-ada".into() }),
        Some(Input::GrantsChanged { user: "ada".into(), resources: vec![] }),
        None,
    ];
    for (number, end) in ends.into_iter().enumerate() {
        let mut world = World::ready();
        let (grant, pair) = ready(&mut world);
        let out = match end {
            Some(input) => world.say(input),
            None => world.after(AGE_MAX.as_secs()),
        };
        assert!(out.contains(&Output::EndPair { pair }), "{number}");
        let over = out.iter().any(|output| matches!(output, Output::SessionOver { .. }));
        assert!(!over, "{number}: it never began");
        assert_eq!(world.orchestrator.sessions.ready(), 0, "{number}");
        world.say(Input::Begun { link: AGENT, session: grant.session });
        assert_eq!(shown(&world), 0, "{number}");
    }
}

#[test]
fn nobody_elses_word_begins_a_session() {
    let mut world = World::ready();
    let (grant, _) = ready(&mut world);
    let (stranger, other) = (LinkId(8), LinkId(9));
    world.client_up(stranger, "eve");
    world.agent_up(other, "attic", vec![]);
    for link in [stranger, other, LinkId(99)] {
        assert!(world.say(Input::Begun { link, session: grant.session.clone() }).is_empty());
    }
    assert_eq!(shown(&world), 0);
}

#[test]
fn a_ready_session_that_began_outlives_its_links() {
    let mut world = World::ready();
    let (grant, _) = ready(&mut world);
    world.say(Input::Begun { link: CLIENT, session: grant.session });
    world.say(Input::ClientDown { link: CLIENT });
    world.say(Input::AgentDown { link: AGENT });
    world.after(AGE_MAX.as_secs());
    assert_eq!(shown(&world), 1);
}
