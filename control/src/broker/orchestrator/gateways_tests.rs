//! Stories of several gateways, in virtual time.
use switchback_engine::{LegSide, PairId};

use super::sessions::LEGS_MAX;
use super::tests::{AGENT, CLIENT, World, granted};
use super::*;
use crate::broker::seal::Grant;
use crate::wire::{GatewayPlace, LOCAL_GATEWAY};

fn id(name: &str) -> GatewayId {
    name.into()
}

fn up(world: &mut World, name: &str) -> Vec<Output> {
    let up = GatewayUp {
        name: id(name),
        address: format!("{name}.example:443"),
        region: None,
        version: "1".into(),
        capacity: 100,
        draining: false,
    };
    let out = world.say(Input::GatewayUp { up });
    holds(world, name, vec![]);
    out
}

fn holds(
    world: &mut World,
    name: &str,
    held: Vec<(PairId, Option<SessionId>, bool)>,
) -> Vec<Output> {
    world.say(Input::GatewayHolds { gateway: id(name), held, last: true })
}

fn rtts(world: &mut World, link: LinkId, ms: &[(&str, u32)]) {
    let rtt = |(name, ms): &(&str, u32)| GatewayRtt {
        gateway: (*name).into(),
        udp_us: Some(ms * 1000),
        tcp_us: Some(ms * 1000),
    };
    world.say(Input::Rtts { link, rtts: ms.iter().map(rtt).collect() });
}

/// `a` is the nearest to both, then `b`, then the broker's own.
fn two() -> World {
    let mut world = World::ready();
    up(&mut world, "a");
    up(&mut world, "b");
    for link in [CLIENT, AGENT] {
        rtts(&mut world, link, &[("a", 10), ("b", 30), (LOCAL_GATEWAY, 60)]);
    }
    world
}

fn open(world: &mut World) -> (Grant, PairId) {
    granted(&world.open_from(CLIENT)).expect("granted")
}

fn carried(world: &mut World) -> (Grant, PairId) {
    let (grant, pair) = open(world);
    world.say(Input::PairStarted { pair });
    (grant, pair)
}

fn place(world: &World, pair: PairId) -> String {
    world.orchestrator.gateway_of(pair).expect("it is known").to_string()
}

/// Another leg, and the gateway that it goes through.
fn leg(world: &mut World, grant: &Grant, wish: LegWish) -> (PairId, String) {
    let pair = world.fresh_pair();
    let grant = grant.clone();
    let out = world.say(Input::Leg { link: CLIENT, request: 8, grant, pair, udp: None, wish });
    let answered = out.iter().find_map(|output| match output {
        Output::ClientLeg { pair, .. } => Some(*pair),
        _ => None,
    });
    let pair = answered.expect("a leg");
    (pair, place(world, pair))
}

fn told_to_move(out: &[Output]) -> Vec<SessionId> {
    let told = out.iter().filter_map(|output| match output {
        Output::Relocate { link, session } if *link == CLIENT => Some(session.clone()),
        _ => None,
    });
    told.collect()
}

#[test]
fn with_the_brokers_own_gateway_alone_nobody_is_told_of_gateways() {
    let mut world = World::ready();
    let (_, pair) = open(&mut world);
    assert_eq!(place(&world, pair), LOCAL_GATEWAY);
    let out = up(&mut world, "a");
    let told = |output: &&Output| match output {
        Output::GatewaysAtClient { gateways, .. } | Output::GatewaysAtAgent { gateways, .. } => {
            let names: Vec<_> = gateways.iter().map(|GatewayPlace { name, .. }| &**name).collect();
            names == ["a", LOCAL_GATEWAY]
        }
        _ => false,
    };
    assert_eq!(out.iter().filter(told).count(), 2, "client and agent: {out:?}");
}

#[test]
fn a_session_goes_through_the_gateway_with_the_smallest_sum() {
    let mut world = two();
    let (_, pair) = open(&mut world);
    assert_eq!(place(&world, pair), "a");
    rtts(&mut world, AGENT, &[("a", 90), ("b", 30), (LOCAL_GATEWAY, 60)]);
    let (_, pair) = open(&mut world);
    assert_eq!(place(&world, pair), "b");
}

#[test]
fn a_user_without_figures_has_those_of_the_last_link_from_the_same_address() {
    let mut world = two();
    rtts(&mut world, CLIENT, &[("a", 200), ("b", 20), (LOCAL_GATEWAY, 200)]);
    world.say(Input::ClientDown { link: CLIENT });
    world.client_up(LinkId(9), "ada");
    let (_, pair) = granted(&world.open_from(LinkId(9))).unwrap();
    assert_eq!(place(&world, pair), "b");
    world.client_up(LinkId(10), "bob");
    let (_, pair) = granted(&world.open_from(LinkId(10))).unwrap();
    assert_eq!(place(&world, pair), "a", "the agent's figures alone");
}

#[test]
fn warm_legs_wait_at_the_agents_nearest_gateway_and_are_used_there_only() {
    let mut world = two();
    let warm = world.fresh_pair();
    world.say(Input::Warm { link: AGENT, pairs: vec![warm] });
    assert_eq!(place(&world, warm), "a");
    world.say(Input::LegWaiting { pair: warm, side: LegSide::Agent });
    let (grant, _) = {
        rtts(&mut world, CLIENT, &[("a", 200), ("b", 1), (LOCAL_GATEWAY, 200)]);
        let (grant, pair) = open(&mut world);
        assert_eq!(place(&world, pair), "b");
        (grant, pair)
    };
    rtts(&mut world, CLIENT, &[("a", 1), ("b", 1), (LOCAL_GATEWAY, 200)]);
    assert_eq!(leg(&mut world, &grant, LegWish::default()), (warm, "a".into()));
}

#[test]
fn a_gateway_that_drains_sends_its_sessions_and_warm_legs_elsewhere() {
    let mut world = two();
    let warm = world.fresh_pair();
    let (grant, old) = carried(&mut world);
    world.say(Input::Warm { link: AGENT, pairs: vec![warm] });
    world.say(Input::LegWaiting { pair: warm, side: LegSide::Agent });
    let out = world.say(Input::GatewayDrains { gateway: id("a"), drain: true });
    assert_eq!(told_to_move(&out), std::slice::from_ref(&grant.session));
    assert!(out.contains(&Output::EndPairAt { gateway: id("a"), pair: warm }));
    assert_eq!(told_to_move(&world.after(1)), [], "once is enough for a while");
    let instead = LegWish { instead: true, ..LegWish::default() };
    let (next, place) = leg(&mut world, &grant, instead);
    assert_eq!(place, "b");
    world.say(Input::PairStarted { pair: next });
    world.say(Input::PairEnded { pair: old });
    assert_eq!(told_to_move(&world.after(60)), [], "it has moved");
    let shown = world.orchestrator.session(&grant.session, world.now()).unwrap();
    assert_eq!(shown.gateway, Some(id("b")));
    world.say(Input::GatewayDrains { gateway: id("a"), drain: false });
    let (_, pair) = open(&mut world);
    assert_eq!(super::gateways_tests::place(&world, pair), "a");
}

#[test]
fn a_session_that_did_not_move_is_told_again_and_one_that_has_nowhere_to_go_is_not() {
    let mut world = two();
    let (grant, _) = carried(&mut world);
    world.say(Input::GatewayDrains { gateway: id("b"), drain: true });
    world.say(Input::GatewayDrains { gateway: id(LOCAL_GATEWAY), drain: true });
    let out = world.say(Input::GatewayDrains { gateway: id("a"), drain: true });
    assert_eq!(told_to_move(&out), []);
    world.say(Input::GatewayDrains { gateway: id("b"), drain: false });
    assert_eq!(told_to_move(&world.after(1)), std::slice::from_ref(&grant.session));
    assert_eq!(told_to_move(&world.after(10)), std::slice::from_ref(&grant.session));
}

#[test]
fn a_second_leg_stands_by_at_another_gateway_and_is_shown_when_the_first_ones_is_gone() {
    let mut world = two();
    let (grant, pair) = carried(&mut world);
    let wish =
        LegWish { not_via: Some("a.example:443".into()), second: true, ..LegWish::default() };
    let (second, place) = leg(&mut world, &grant, wish.clone());
    assert_eq!(place, "b");
    world.say(Input::PairStarted { pair: second });
    let shown = |world: &World| {
        let shown = world.orchestrator.session(&grant.session, world.now()).unwrap();
        (shown.pair, shown.gateway)
    };
    assert_eq!(shown(&world), (Some(pair), Some(id("a"))), "it stands by");
    world.say(Input::GatewayDown { gateway: id("a") });
    assert_eq!(shown(&world), (Some(second), Some(id("b"))));
    // The one that is left must not be the only one that there is.
    world.say(Input::GatewayDrains { gateway: id(LOCAL_GATEWAY), drain: true });
    let wish = LegWish { not_via: Some("b.example:443".into()), ..wish };
    let (pair, grant) = (world.fresh_pair(), grant.clone());
    let out = world.say(Input::Leg { link: CLIENT, request: 9, grant, pair, udp: None, wish });
    let refused = |output: &Output| matches!(output, Output::RefuseClient { fault, .. } if fault.code == Code::GatewayUnknown);
    assert!(out.iter().any(refused), "{out:?}");
}

#[test]
fn after_a_gateways_death_the_next_leg_goes_through_another() {
    let mut world = two();
    let (grant, _) = carried(&mut world);
    // The client saw it before the broker did.
    let wish = LegWish { not_via: Some("a.example:443".into()), ..LegWish::default() };
    let (next, place) = leg(&mut world, &grant, wish.clone());
    assert_eq!(place, "b");
    world.say(Input::GatewayDown { gateway: id("a") });
    assert_eq!(leg(&mut world, &grant, LegWish::default()).1, "b");
    world.say(Input::PairStarted { pair: next });
    // Nothing else is there: better the one that failed than none.
    world.say(Input::GatewayDown { gateway: id("b") });
    world.say(Input::GatewayDrains { gateway: id(LOCAL_GATEWAY), drain: true });
    let wish = LegWish { not_via: Some(String::new()), ..wish };
    assert_eq!(leg(&mut world, &grant, wish).1, LOCAL_GATEWAY);
    assert_eq!(world.orchestrator.gateways().len(), 3);
    world.after(90);
    assert_eq!(world.orchestrator.gateways().len(), 1, "those that are gone are forgotten");
}

#[test]
fn a_gateways_link_may_break_without_harm_to_what_it_relays() {
    let mut world = two();
    let (grant, pair) = carried(&mut world);
    let (_, over) = carried(&mut world);
    world.say(Input::GatewayDown { gateway: id("a") });
    world.after(30);
    let up = GatewayUp {
        name: id("a"),
        address: "a.example:443".into(),
        region: None,
        version: "1".into(),
        capacity: 100,
        draining: false,
    };
    world.say(Input::GatewayUp { up });
    let unknown = world.fresh_pair();
    let held = vec![(pair, Some(grant.session.clone()), true), (unknown, None, false)];
    let out = holds(&mut world, "a", held);
    assert_eq!(out, [Output::EndPairAt { gateway: id("a"), pair: unknown }]);
    assert_eq!(place(&world, pair), "a");
    assert_eq!(world.orchestrator.gateway_of(over), None, "it ended meanwhile");
}

#[test]
fn a_broker_that_was_started_anew_learns_of_pairs_and_sessions_in_any_order() {
    for pairs_first in [true, false] {
        let (grant, pair) = carried(&mut two());
        let mut world = World::ready();
        up(&mut world, "a");
        let held = vec![(pair, Some(grant.session.clone()), true)];
        if pairs_first {
            holds(&mut world, "a", held.clone());
        }
        world.report(AGENT, &grant, true);
        if !pairs_first {
            holds(&mut world, "a", held);
        }
        let shown = world.orchestrator.session(&grant.session, world.now()).unwrap();
        assert_eq!((shown.pair, shown.gateway), (Some(pair), Some(id("a"))));
    }
}

#[test]
fn a_pair_whose_session_nobody_speaks_of_is_ended() {
    let (grant, pair) = carried(&mut two());
    let mut world = World::ready();
    up(&mut world, "a");
    holds(&mut world, "a", vec![(pair, Some(grant.session), true)]);
    assert!(!world.after(60).contains(&Output::EndPairAt { gateway: id("a"), pair }));
    assert!(world.after(30).contains(&Output::EndPairAt { gateway: id("a"), pair }));
}

/// How many pairs of this gateway are cut.
fn cut_at(out: &[Output], name: &str) -> usize {
    let cut = |output: &&Output| match output {
        Output::EndPairAt { gateway, .. } => **gateway == *name,
        _ => false,
    };
    out.iter().filter(cut).count()
}

#[test]
fn a_gateway_is_believed_no_more_pairs_than_it_may_hold() {
    let mut world = World::ready();
    up(&mut world, "a");
    let held: Vec<_> = (0..150)
        .map(|number| (world.fresh_pair(), Some(SessionId(format!("x{number}"))), true))
        .collect();
    for part in held.chunks(50) {
        let (gateway, held) = (id("a"), part.to_vec());
        let out = world.say(Input::GatewayHolds { gateway, held, last: false });
        assert!(cut_at(&out, "a") == 0 || world.orchestrator.pairs.iter().count() == 100);
    }
    assert_eq!(world.orchestrator.pairs.iter().count(), 100);
    let held = vec![(world.fresh_pair(), Some(SessionId("y".into())), true)];
    assert_eq!(cut_at(&holds(&mut world, "a", held), "a"), 1);
    assert_eq!(world.orchestrator.pairs.iter().count(), 100);
}

#[test]
fn a_gateway_adds_no_more_pairs_to_a_session_than_it_may_have_and_moves_it_nowhere() {
    let mut world = two();
    let (grant, _) = carried(&mut world);
    let unknown = SessionId("x".into());
    for (session, room) in [(grant.session.clone(), LEGS_MAX - 1), (unknown, LEGS_MAX)] {
        let held = (0..10).map(|_| (world.fresh_pair(), Some(session.clone()), true)).collect();
        let (gateway, last) = (id("b"), false);
        let out = world.say(Input::GatewayHolds { gateway, held, last });
        assert_eq!(cut_at(&out, "b"), 10 - room, "{session}");
    }
    assert_eq!(world.orchestrator.sessions.get(&grant.session).unwrap().legs.len(), LEGS_MAX);
    let shown = world.orchestrator.session(&grant.session, world.now()).unwrap();
    assert_eq!(shown.gateway, Some(id("a")));
}

#[test]
fn further_pairs_give_a_session_that_nobody_speaks_of_no_more_time() {
    let mut world = World::ready();
    up(&mut world, "a");
    let session = Some(SessionId("x".into()));
    let mut held = vec![(world.fresh_pair(), session.clone(), true)];
    holds(&mut world, "a", held.clone());
    assert_eq!(cut_at(&world.after(60), "a"), 0);
    held.push((world.fresh_pair(), session, true));
    assert_eq!(cut_at(&holds(&mut world, "a", held), "a"), 0);
    assert_eq!(cut_at(&world.after(30), "a"), 2);
}

#[test]
fn round_trips_to_what_can_be_no_gateway_are_not_kept() {
    let mut world = two();
    let long = "x".repeat(64);
    rtts(&mut world, AGENT, &[(&*long, 1), ("a", 10), ("no name", 2)]);
    let kept = world.orchestrator.rtts_of_agent("lab");
    assert_eq!(kept.iter().map(|rtt| &*rtt.gateway).collect::<Vec<_>>(), ["a"]);
}
