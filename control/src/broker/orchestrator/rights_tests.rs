//! What an agent hears of the rights of sessions that it held while its link was away.
use super::tests::{AGENT, CLIENT, World, granted};
use super::*;
use crate::broker::policy::Rights;
use crate::broker::seal::Grant;
use crate::policy::Obligations;

fn bound(obligations: Obligations) -> Rights {
    Rights { obligations, ends: None }
}

fn capped() -> Obligations {
    Obligations { rate_bits: Some(8_000_000), ..Obligations::default() }
}

/// The rate and the use of UDP that the agent was told last.
fn told(out: &[Output]) -> Option<(Option<u64>, UdpUse)> {
    out.iter().rev().find_map(|output| match output {
        Output::Tell { link, notice: Notice::Policy { transport, rate_bits }, .. }
            if *link == AGENT =>
        {
            Some((*rate_bits, transport.udp))
        }
        _ => None,
    })
}

fn judged(world: &mut World, grant: &Grant, obligations: Obligations) -> Vec<Output> {
    let session = grant.session.clone();
    world.say(Input::Judged { session, verdict: Ok(bound(obligations)) })
}

/// A session with a rate, whose agent has gone.
fn away() -> (World, Grant) {
    let mut world = World::ready();
    let (grant, _) = granted(&world.open_from(CLIENT)).unwrap();
    assert_eq!(
        told(&judged(&mut world, &grant, capped())),
        Some((Some(8_000_000), UdpUse::Prefer))
    );
    world.say(Input::AgentDown { link: AGENT });
    (world, grant)
}

/// As the broker opens and judges it when it is shown.
fn shown(grant: &Grant, obligations: Obligations) -> Grant {
    Grant { rights: bound(obligations), ..grant.clone() }
}

#[test]
fn an_agent_that_was_away_as_a_rate_was_lifted_lifts_it_when_it_is_back() {
    let none = Obligations::default();
    let free = Some((None, UdpUse::Prefer));
    let (mut world, grant) = away();
    assert_eq!(told(&judged(&mut world, &grant, none)), None, "nobody to tell");
    let out = world.agent_up(AGENT, "lab", vec![shown(&grant, none)]);
    assert_eq!(told(&out), free, "it shows the session as it registers");

    let (mut world, grant) = away();
    judged(&mut world, &grant, none);
    assert_eq!(told(&world.agent_up(AGENT, "lab", vec![])), None);
    let out = world.report(AGENT, &shown(&grant, none), true);
    assert_eq!(told(&out), free, "a register has room for so many: it shows the session later");
}

#[test]
fn an_agent_that_was_away_as_rights_changed_has_those_of_now_when_it_is_back() {
    let slower = Obligations { rate_bits: Some(64_000), no_udp: true, ..Obligations::default() };
    let (mut world, grant) = away();
    judged(&mut world, &grant, slower);
    let out = world.agent_up(AGENT, "lab", vec![shown(&grant, slower)]);
    assert_eq!(told(&out), Some((Some(64_000), UdpUse::Off)));

    let (mut world, grant) = away();
    judged(&mut world, &grant, slower);
    judged(&mut world, &grant, capped());
    let out = world.agent_up(AGENT, "lab", vec![shown(&grant, capped())]);
    let expected = Some((Some(8_000_000), UdpUse::Off));
    assert_eq!(told(&out), expected, "what carries a live session is never widened");
}

#[test]
fn a_broker_that_was_started_anew_tells_an_agent_that_nothing_binds_its_session_any_more() {
    let (_, grant) = away();
    let mut next = World::ready();
    next.say(Input::AgentDown { link: AGENT });
    let out = next.agent_up(AGENT, "lab", vec![shown(&grant, Obligations::default())]);
    assert_eq!(told(&out), Some((None, UdpUse::Prefer)));
}
