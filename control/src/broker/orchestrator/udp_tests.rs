//! Stories of candidates, policies and questions, in virtual time.
use switchback_engine::LegSide;

use super::tests::{AGENT, CLIENT, World, to_direct};
use super::*;
use crate::broker::seal::Grant;
use crate::broker::udp::RELAY_TTL;
use crate::wire::{
    CandidateKind, PathReport, PublicKey, Resource, ResourceKind, SessionPurpose, Standby,
};

fn candidate(kind: CandidateKind, address: &str) -> Candidate {
    Candidate::new(kind, address.parse().unwrap())
}

fn host(port: u16) -> Candidate {
    candidate(CandidateKind::Host, &format!("192.0.2.7:{port}"))
}

fn relayed(port: u16) -> Candidate {
    candidate(CandidateKind::Relayed, &format!("198.51.100.1:{port}"))
}

/// A user, and an agent whose `ssh` has this policy.
fn world(udp: UdpUse) -> World {
    let mut world = World::ready();
    let transport = TransportPolicy { udp, standby: Standby::Warm };
    let registration = Registration {
        name: "lab".into(),
        key: PublicKey("key-of-lab".into()),
        token: "token-of-lab".into(),
        resources: vec![Resource { transport, ..Resource::udp("ssh", "127.0.0.1:22") }],
        sessions: vec![],
        draining: false,
    };
    world.say(Input::AgentUp { link: AGENT, registration });
    world
}

fn network(world: &mut World, candidates: &[Candidate]) -> Vec<Output> {
    world.say(Input::Network { link: AGENT, candidates: candidates.to_vec() })
}

fn open(world: &mut World, udp: Option<Vec<Candidate>>) -> Vec<Output> {
    let pair = world.fresh_pair();
    let wish = Wish {
        request: 7,
        resource: "ssh".into(),
        client_key: PublicKey("client".into()),
        session: SessionId(pair.to_string()),
        pair,
        created_ms: 1,
        udp,
        purpose: SessionPurpose::Echo,
        consent: false,
        source: None,
        rights: Default::default(),
        ready: false,
    };
    world.say(Input::Open { link: CLIENT, wish })
}

/// What the agent was told with the offer, and the client with the grant.
fn told(outputs: &[Output]) -> (Option<Vec<Candidate>>, Option<Vec<Candidate>>, Grant) {
    let [
        Output::Offer { udp: agent, .. },
        Output::Granted { udp: client, grant, kind, .. },
        Output::Began { .. },
    ] = outputs
    else {
        panic!("{outputs:?}")
    };
    assert_eq!(*kind, ResourceKind::Udp);
    (agent.clone(), client.clone(), *grant.clone())
}

/// What ends are told but for policy, which an agent hears with each session that it shows.
fn notices(outputs: &[Output]) -> Vec<(LinkId, LegSide, Notice)> {
    let told = outputs.iter().filter_map(|output| match output {
        Output::Tell { notice: Notice::Policy { .. }, .. } => None,
        Output::Tell { link, end, notice, .. } => Some((*link, *end, notice.clone())),
        _ => None,
    });
    told.collect()
}

#[test]
fn grant_and_offer_carry_the_other_ends_candidates() {
    let mut world = world(UdpUse::Prefer);
    assert_eq!(network(&mut world, &[host(1), relayed(2)]), []);
    let (agent, client, grant) = told(&open(&mut world, Some(vec![host(3)])));
    assert_eq!((agent, client), (Some(vec![host(3)]), Some(vec![host(1), relayed(2)])));
    assert_eq!(grant.purpose, SessionPurpose::Echo);
    let pair = world.fresh_pair();
    let udp = Some(vec![host(4)]);
    let out = world.say(Input::Leg {
        link: CLIENT,
        request: 8,
        grant,
        pair,
        udp,
        wish: LegWish::default(),
    });
    assert!(matches!(&out[0], Output::Offer { udp: Some(udp), .. } if udp[..] == [host(4)]));
    assert!(matches!(&out[1], Output::ClientLeg { udp: Some(udp), .. } if udp.len() == 2));
}

#[test]
fn without_udp_at_either_end_there_is_none() {
    let mut world = world(UdpUse::Prefer);
    let (agent, client, _) = told(&open(&mut world, Some(vec![host(3)])));
    assert_eq!((agent, client), (None, None), "the agent does without");
    network(&mut world, &[host(1)]);
    let (agent, client, _) = told(&open(&mut world, None));
    assert_eq!((agent, client), (None, None), "the client does without");
}

#[test]
fn the_policy_decides_what_the_ends_learn_of_each_other() {
    for (udp, expected) in [
        (UdpUse::Prefer, Some(vec![host(1), relayed(2)])),
        (UdpUse::Require, Some(vec![host(1), relayed(2)])),
        (UdpUse::RelayOnly, Some(vec![relayed(2)])),
        (UdpUse::Off, None),
    ] {
        let mut world = world(udp);
        network(&mut world, &[host(1), relayed(2)]);
        let (agent, client, _) = told(&open(&mut world, Some(vec![host(1), relayed(2)])));
        assert_eq!((agent, client), (expected.clone(), expected), "{udp:?}");
    }
}

#[test]
fn a_session_that_must_be_direct_is_refused_where_an_end_does_without_udp() {
    let mut world = world(UdpUse::Require);
    let refused = |out: &[Output]| matches!(out, [Output::RefuseClient { fault, .. }] if fault.code == Code::DirectRequired);
    assert!(refused(&open(&mut world, Some(vec![host(3)]))), "the agent does without");
    network(&mut world, &[host(1)]);
    assert!(refused(&open(&mut world, None)), "the client does without");
    told(&open(&mut world, Some(vec![])));
}

#[test]
fn later_candidates_reach_the_other_end_within_policy_and_rate() {
    let mut world = world(UdpUse::RelayOnly);
    network(&mut world, &[]);
    let (_, _, grant) = told(&open(&mut world, Some(vec![])));
    let session = grant.session.clone();
    let mut say = |link, candidates: &[Candidate]| {
        let (session, candidates) = (session.clone(), candidates.to_vec());
        world.say(Input::Candidates { link, session, candidates })
    };
    let told = Notice::Candidates(vec![relayed(5)]);
    assert_eq!(
        notices(&say(CLIENT, &[relayed(5), host(6)])),
        [(AGENT, LegSide::Agent, told.clone())]
    );
    assert_eq!(notices(&say(AGENT, &[relayed(5)])), [(CLIENT, LegSide::Client, told)]);
    assert_eq!(say(AGENT, &[host(6)]), [], "nothing is left to tell");
    assert_eq!(say(LinkId(77), &[relayed(5)]), [], "a stranger");
    let ignored = [Output::Ignored { code: Code::RateLimited }];
    let flood = (0..40).filter(|_| say(CLIENT, &[relayed(5)]) == ignored).count();
    assert_eq!(flood, 40 - 15);
}

#[test]
fn an_agent_that_moved_is_told_to_the_clients_of_its_sessions_and_not_without_end() {
    let mut world = world(UdpUse::Prefer);
    network(&mut world, &[host(1)]);
    told(&open(&mut world, Some(vec![])));
    assert_eq!(network(&mut world, &[host(1)]), [], "nothing new");
    let told = |port| [(CLIENT, LegSide::Client, Notice::Candidates(vec![host(port)]))];
    for port in 2..5 {
        assert_eq!(notices(&network(&mut world, &[host(port)])), told(port));
    }
    assert_eq!(notices(&network(&mut world, &[host(5)])), []);
    assert_eq!(notices(&network(&mut world, &[host(6)])), [], "too many changes wait");
    assert_eq!(notices(&world.after(5)), told(6), "and the last is told");
    assert_eq!(notices(&world.after(5)), []);
}

#[test]
fn where_one_end_went_while_the_other_had_no_link_is_told_on_its_next() {
    let mut world = world(UdpUse::Prefer);
    network(&mut world, &[host(1)]);
    let (_, _, grant) = told(&open(&mut world, Some(vec![host(2)])));
    let session = grant.session.clone();
    let say = |world: &mut World, link, candidates: &[Candidate]| {
        let (session, candidates) = (session.clone(), candidates.to_vec());
        world.say(Input::Candidates { link, session, candidates })
    };

    world.say(Input::ClientDown { link: CLIENT });
    assert_eq!(notices(&network(&mut world, &[host(3)])), []);
    assert_eq!(notices(&say(&mut world, AGENT, &[relayed(4)])), []);
    assert_eq!(notices(&say(&mut world, AGENT, &[relayed(5)])), []);
    world.client_up(LinkId(9), "ada");
    let moved = Notice::Candidates(vec![host(3), relayed(5)]);
    let back = world.report(LinkId(9), &grant, true);
    assert_eq!(notices(&back), [(LinkId(9), LegSide::Client, moved)]);
    assert_eq!(notices(&world.report(LinkId(9), &grant, true)), [], "once is enough");

    world.say(Input::AgentDown { link: AGENT });
    assert_eq!(notices(&say(&mut world, LinkId(9), &[host(6), relayed(7)])), []);
    assert_eq!(notices(&say(&mut world, LinkId(9), &[host(8)])), []);
    let moved = Notice::Candidates(vec![relayed(7), host(8)]);
    let back = world.agent_up(LinkId(10), "lab", vec![grant.clone()]);
    assert_eq!(notices(&back), [(LinkId(10), LegSide::Agent, moved)]);
    assert_eq!(notices(&world.report(LinkId(10), &grant, true)), []);
}

#[test]
fn relay_rights_are_renewed_long_before_they_end() {
    let mut world = world(UdpUse::Prefer);
    network(&mut world, &[host(1)]);
    let (_, _, grant) = told(&open(&mut world, Some(vec![])));
    let mut renewed = 0;
    for _ in 0..RELAY_TTL / 60 {
        let told = notices(&world.after(60));
        world.report(CLIENT, &grant, false);
        renewed +=
            told.iter().filter(|(_, _, notice)| matches!(notice, Notice::Relay { .. })).count();
    }
    assert_eq!(renewed, 4, "both ends, twice in the time that they are good");
}

#[test]
fn both_ends_are_asked_and_their_answers_kept() {
    let mut world = world(UdpUse::Prefer);
    let (_, _, grant) = told(&open(&mut world, None));
    let session = grant.session;
    let asked = notices(&world.say(Input::Explain { session: session.clone() }));
    let ask = Notice::Explain;
    assert_eq!(asked, [(CLIENT, LegSide::Client, ask.clone()), (AGENT, LegSide::Agent, ask)]);
    let paths = Box::new(PathReport { reasons: vec!["searching".into()], ..Default::default() });
    world.say(Input::Paths { link: AGENT, session: session.clone(), paths: paths.clone() });
    world.say(Input::Paths { link: LinkId(77), session: session.clone(), paths: Box::default() });
    let ([client, agent], there) = world.orchestrator.explained(&session).unwrap();
    assert_eq!((client, agent.map(|(_, said)| said)), (None, Some(*paths)));
    assert_eq!(there, [true, true]);
}

#[test]
fn hard_nats_at_both_ends_are_told_as_what_they_are_together() {
    let mut world = world(UdpUse::Prefer);
    let (_, _, grant) = told(&open(&mut world, None));
    let session = grant.session;
    let mut say = |link| {
        let paths = PathReport { reasons: vec!["hard_nat".into()], ..Default::default() };
        let paths = Box::new(paths);
        world.say(Input::Paths { link, session: session.clone(), paths });
        let (said, _) = world.orchestrator.explained(&session).unwrap();
        said.map(|said| said.map(|(_, paths)| paths.reasons.join(" ")))
    };
    assert_eq!(say(AGENT), [None, Some("hard_nat".into())]);
    let both = Some("hard_nat hard_nat_both_sides".to_owned());
    assert_eq!(say(CLIENT), [both.clone(), both]);
}

#[test]
fn an_end_whose_candidates_were_refused_is_told_so_by_explain() {
    let mut world = world(UdpUse::Prefer);
    let (_, _, grant) = told(&open(&mut world, None));
    let session = grant.session;
    for link in [CLIENT, AGENT] {
        world.say(Input::Paths { link, session: session.clone(), paths: Box::default() });
    }
    let reasons = |world: &mut World| {
        let (said, _) = world.orchestrator.explained(&session).unwrap();
        said.map(|said| said.unwrap().1.reasons.join(" "))
    };
    assert_eq!(reasons(&mut world), ["", ""]);
    world.say(Input::CandidatesRefused { link: CLIENT });
    assert_eq!(reasons(&mut world), ["candidate_refused", ""]);
    world.say(Input::CandidatesRefused { link: AGENT });
    world.say(Input::CandidatesRefused { link: LinkId(77) });
    assert_eq!(reasons(&mut world), ["candidate_refused", "candidate_refused"]);
}

#[test]
fn the_managed_port_of_an_agent_is_known_for_firewall_rules_unless_policy_hides_it() {
    for (udp, known) in [(UdpUse::Prefer, true), (UdpUse::RelayOnly, false)] {
        let mut world = world(udp);
        let managed = candidate(CandidateKind::Managed, "10.0.0.5:3390");
        network(&mut world, &[host(1), managed]);
        let managed = world.orchestrator.managed("lab", "ssh");
        let expected = if known { vec!["10.0.0.5:3390".parse().unwrap()] } else { vec![] };
        assert_eq!(managed, expected, "{udp:?}");
        assert!(world.orchestrator.managed("lab", "web").is_empty());
    }
}

#[test]
fn a_client_counts_its_first_direct_move_once() {
    let mut world = world(UdpUse::Prefer);
    let (_, _, grant) = told(&open(&mut world, None));
    let moved = to_direct();
    let mut say = |link, direct| {
        let (session, moved) = (grant.session.clone(), moved.clone());
        let out = world.say(Input::Moved { link, session, moved, direct });
        out.iter().map(|out| matches!(out, Output::Moved { first_direct: true, .. })).collect()
    };
    let answers: [Vec<bool>; 4] =
        [say(CLIENT, false), say(CLIENT, true), say(CLIENT, true), say(AGENT, true)];
    assert_eq!(answers, [vec![false], vec![true], vec![false], vec![]]);
}

#[test]
fn a_session_that_moves_all_the_time_is_counted_all_the_time_and_told_of_now_and_then() {
    let mut world = world(UdpUse::Prefer);
    let (_, _, grant) = told(&open(&mut world, None));
    let (_, _, other) = told(&open(&mut world, None));
    let say = |world: &mut World, grant: &Grant| {
        let (session, moved) = (grant.session.clone(), to_direct());
        let out = world.say(Input::Moved { link: CLIENT, session, moved, direct: true });
        let [Output::Moved { told, .. }] = out[..] else { panic!("{out:?}") };
        told
    };
    let events = (0..1000).filter(|_| say(&mut world, &grant)).count();
    assert_eq!(events, 8, "a burst");
    assert!(say(&mut world, &other), "another session has its own");
    world.after(41);
    let events = (0..1000).filter(|_| say(&mut world, &grant)).count();
    assert_eq!(events, 2, "one each 20 s");
}
