//! What is special about a resource goes where it must, and nowhere else.
use switchback_engine::Tuning;

use super::tests::{AGENT, CLIENT, World};
use super::*;
use crate::wire::{ProxyHeader, PublicKey, Resource};

/// A client and an agent that offers this as `ssh`.
fn world(tuning: &str, proxy: Option<ProxyHeader>) -> World {
    let tuning: Tuning =
        if tuning.is_empty() { Tuning::default() } else { tuning.parse().unwrap() };
    let mut world = World::ready();
    let registration = Registration {
        name: "lab".into(),
        key: PublicKey("key-of-lab".into()),
        token: "token-of-lab".into(),
        resources: vec![Resource { tuning, proxy, ..Resource::tcp("ssh", "127.0.0.1:22") }],
        sessions: vec![],
        draining: false,
    };
    world.say(Input::AgentUp { link: AGENT, registration });
    world
}

#[test]
fn a_tuning_is_known_before_the_clients_ticket_leaves_on_every_leg() {
    let mut world = world("dscp=ef", None);
    let first = world.open_from(CLIENT);
    let [
        Output::Tune { pair, tuning },
        Output::Offer { .. },
        Output::Granted { grant, .. },
        Output::Began { .. },
    ] = &first[..]
    else {
        panic!("{first:?}")
    };
    assert_eq!(**tuning, "dscp=ef".parse().unwrap());
    assert!(first[1..3].iter().all(|output| match output {
        Output::Offer { pair: named, .. } | Output::Granted { pair: named, .. } => named == pair,
        _ => false,
    }));
    let again = world.leg(grant);
    assert!(matches!(again[0], Output::Tune { .. }), "{again:?}");
}

#[test]
fn a_clients_address_is_told_to_those_that_ask_and_to_nobody_else() {
    let told = |world: &mut World| {
        world.open_from(CLIENT).into_iter().find_map(|output| match output {
            Output::Offer { client_address, .. } => Some(client_address),
            Output::Tune { .. } => panic!("an untuned resource tunes nothing"),
            _ => None,
        })
    };
    let address = told(&mut world("", Some(ProxyHeader::V2))).unwrap().unwrap();
    assert_eq!(address.client, "192.0.2.7:9".parse().unwrap(), "unwrapped from IPv6");
    assert_eq!(address.gateway, "192.0.2.1:443".parse().unwrap());
    assert_eq!(told(&mut world("", None)), Some(None));
}

#[test]
fn an_agent_that_dials_instead_of_a_warm_leg_is_told_as_well() {
    let mut world = world("dscp=ef", Some(ProxyHeader::V2));
    let pair = world.fresh_pair();
    world.say(Input::Warm { link: AGENT, pairs: vec![pair] });
    world.say(Input::LegWaiting { pair, side: switchback_engine::LegSide::Agent });
    world.open_from(CLIENT);
    let out = world.say(Input::LegGone { pair, side: switchback_engine::LegSide::Agent });
    let [Output::Offer { how: How::Dial, client_address: Some(_), .. }] = out[..] else {
        panic!("{out:?}")
    };
}
