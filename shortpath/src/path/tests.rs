//! Promises of the path search, in virtual time.
use std::time::Duration;

use super::fixture::{B, RELAY, SOCKET, World, ms, nats};
use super::lab::{By, NatKind, PortRule};
use super::*;
use crate::LegKind::{UdpDirect, UdpRelay};

fn kind_of(name: &str) -> NatKind {
    nats().into_iter().find(|(known, _)| *known == name).unwrap().1
}

/// Theory. A UDP flow needs one pair of outside addresses on which both sides agree. So one side, `x`, must send to the
/// other from one outside address whatever the port there; the other must come to know that address, by STUN, by
/// prediction or because a packet of `x` got through; and what it sends must pass `x`'s filter.
fn punchable(a: NatKind, b: NatKind) -> bool {
    let known = |n: NatKind, other: NatKind| {
        n.mapping == By::Nothing || n.ports == PortRule::Sequential && other.mapping == By::Nothing
    };
    let flows = |x: NatKind, y: NatKind| {
        let told = y.filter == By::Nothing || y.filter == By::Address && y.mapping == By::Nothing;
        let fixed = x.mapping != By::AddressAndPort;
        let learnt = known(x, y) || fixed && told;
        learnt && (x.filter != By::AddressAndPort || known(y, x))
    };
    flows(a, b) || flows(b, a)
}

#[test]
fn every_cell_of_the_nat_matrix_ends_where_theory_says() {
    let mut wrong = Vec::new();
    for (seed, (name_a, a)) in nats().into_iter().enumerate() {
        for (name_b, b) in nats() {
            let mut world = World::new(seed as u64, ms(10), Some(a), Some(b)).with_relay();
            world.start(ms(3));
            let direct = world.meet(UdpDirect, Duration::from_secs(8));
            let relay = world.meet(UdpRelay, Duration::from_secs(8));
            // 40 ms is one RTT of the path. Symmetric NATs need a round more than cones, to learn the other's port.
            let late = world.reachable(UdpDirect).is_some_and(|took| took > ms(3 + 2 * 40 + 5))
                || world.reachable(UdpRelay).is_none_or(|took| took > ms(3 + 2 * 40 + 5));
            if direct.is_some() != punchable(a, b) || relay.is_none() || late {
                let took = [UdpDirect, UdpRelay].map(|kind| world.reachable(kind));
                wrong.push(format!("{name_a} x {name_b}: {direct:?}, {relay:?}, reached {took:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn ends_without_nat_meet_in_one_round_trip() {
    let mut world = World::new(1, ms(10), None, None);
    world.start(Duration::ZERO);
    world.meet(UdpDirect, Duration::from_secs(2)).unwrap();
    // Each end is 10 ms from the middle: the path's RTT is 40 ms.
    assert_eq!(world.reachable(UdpDirect), Some(ms(40)));
}

#[test]
fn punching_costs_one_and_a_half_round_trips_after_the_later_start_whatever_the_skew() {
    for nat in ["fullcone", "addr-restr", "port-restr", "eim-nopres"] {
        for skew in [0, 3, 15, 37, 60, 150, 400] {
            let mut world = World::new(2, ms(10), Some(kind_of(nat)), Some(kind_of("port-restr")));
            world.start(ms(skew));
            world.meet(UdpDirect, Duration::from_secs(2)).unwrap();
            let took = world.reachable(UdpDirect).unwrap();
            // Floor: 40 ms from the client's start, or 60 ms from the agent's. 5 ms of pacing on top.
            let floor = ms(40).max(ms(skew + 60).min(if skew < 20 { ms(40) } else { ms(9999) }));
            assert!(took <= floor + ms(5), "{nat}, skew {skew} ms: {took:?}");
        }
    }
}

#[test]
fn a_check_that_meets_a_nat_before_it_was_opened_is_soon_followed_by_one_that_passes() {
    for skew in [1, 4, 12] {
        let mut world =
            World::new(2, ms(10), Some(kind_of("port-restr")), Some(kind_of("port-restr")));
        world.start_agent_first(ms(skew));
        world.meet(UdpDirect, Duration::from_secs(2)).unwrap();
        let heard = world.a.when(UdpDirect, |e| matches!(e, FinderEvent::PeerAt(_))).unwrap();
        // One way, and the pause between the agent's checks; the answer to our own took 40 ms.
        assert!(
            heard - world.started <= ms(20 + 15),
            "skew {skew} ms: {:?}",
            heard - world.started
        );
    }
}

#[test]
fn a_fifth_of_all_packets_lost_delays_but_does_not_prevent() {
    let mut worst = Duration::ZERO;
    for seed in 0..40 {
        let nat = Some(kind_of("port-restr"));
        let mut world = World::new(seed, ms(10), nat, nat);
        world.net.loss = 0.2;
        world.start(ms(3));
        let took = world.meet(UdpDirect, Duration::from_secs(8));
        worst = worst.max(took.unwrap_or_else(|| panic!("seed {seed} never met")));
    }
    assert!(worst < Duration::from_secs(2), "{worst:?}");
}

pub(super) fn met(seed: u64, a: &str, b: &str) -> World {
    let mut world = World::new(seed, ms(10), Some(kind_of(a)), Some(kind_of(b)));
    world.start(ms(3));
    world.meet(UdpDirect, Duration::from_secs(3)).unwrap();
    world.run(ms(500));
    world
}

#[test]
fn the_other_end_follows_a_rebound_nat_within_three_round_trips() {
    for client_rebinds in [true, false] {
        // A filter by port keeps the other end from hearing the new address: see the next test.
        let mut world = if client_rebinds {
            met(5, "eim-nopres", "fullcone")
        } else {
            met(5, "fullcone", "eim-nopres")
        };
        world.net.rebind(if client_rebinds { super::fixture::A } else { B }, 0);
        let now = world.net.now;
        let (moving, other) = if client_rebinds {
            (&mut world.a, world.b.finders[0].selected())
        } else {
            (&mut world.b, world.a.finders[0].selected())
        };
        moving.finder(UdpDirect).doubt(now);
        let moved = world.run_until(now + ms(120), |world| {
            let end = if client_rebinds { &world.b } else { &world.a };
            end.finders[0].selected() != other
        });
        assert!(moved, "client rebinds: {client_rebinds}");
        let end = if client_rebinds { &world.b } else { &world.a };
        let route = end.finders[0].selected().unwrap();
        assert!(end.log.iter().any(|(.., event)| *event == FinderEvent::PeerAt(route)));
    }
}

#[test]
fn behind_strict_filters_a_rebound_address_works_as_soon_as_it_is_signalled() {
    let mut world = met(5, "eim-nopres", "port-restr");
    world.net.rebind(super::fixture::A, 0);
    let now = world.net.now;
    world.a.finder(UdpDirect).doubt(now);
    world.a.keeper.doubt(now);
    // The keeper knows the new address after one RTT to the server.
    world.run(ms(20));
    let signalled = world.net.now;
    for candidate in world.a.candidates() {
        let _ = world.b.finder(UdpDirect).add_remote(signalled, candidate);
    }
    let before = world.b.finders[0].selected();
    let moved =
        world.run_until(signalled + ms(120), |world| world.b.finders[0].selected() != before);
    assert!(moved);
}

#[test]
fn a_rebinding_that_nobody_doubts_is_found_by_the_next_consent_check() {
    let mut world = met(6, "eim-nopres", "fullcone");
    let before = world.b.finders[0].selected();
    world.net.rebind(super::fixture::A, 0);
    let end = world.net.now + Duration::from_secs(9);
    assert!(world.run_until(end, |world| world.b.finders[0].selected() != before));
}

/// A relay's finder with a socket and an allocation, and a peer with the same.
fn relays_finder(now: std::time::Instant) -> Finder {
    let credentials = |name: &str| IceCredentials { ufrag: name.into(), password: "p".repeat(24) };
    let config = FinderConfig::new(UdpRelay, true, credentials("ours"), credentials("theirs"));
    let mut finder = Finder::new(now, config);
    let candidate = |kind, address: &str| Candidate::new(kind, address.parse().unwrap());
    finder.add_local(now, candidate(CandidateKind::Host, "10.0.1.2:5000"), SOCKET);
    finder.add_local(now, candidate(CandidateKind::Relayed, "192.0.2.1:50000"), RELAY);
    let mapped = candidate(CandidateKind::ServerReflexive, "198.51.100.2:5000");
    finder.add_remote(now, mapped).unwrap();
    finder.add_remote(now, candidate(CandidateKind::Relayed, "192.0.2.1:50001")).unwrap();
    finder
}

#[test]
fn a_relays_pairs_lead_over_the_relay_of_either_end() {
    let finder = relays_finder(std::time::Instant::now());
    let mut pairs: Vec<_> =
        finder.pairs().iter().map(|pair| (LocalId(pair.local), pair.remote_kind)).collect();
    pairs.sort_by_key(|(local, kind)| (*local, kind.as_str()));
    let (mapped, relayed) = (CandidateKind::ServerReflexive, CandidateKind::Relayed);
    assert_eq!(pairs, [(SOCKET, relayed), (RELAY, relayed), (RELAY, mapped)]);
}

#[test]
fn an_allocation_made_anew_keeps_its_pairs_and_checks_them_at_once() {
    let now = std::time::Instant::now();
    let mut finder = relays_finder(now);
    while finder.poll_transmit().is_some() {}
    let (before, later) = (finder.pairs().len(), now + ms(4));
    let renewed = Candidate::new(CandidateKind::Relayed, "192.0.2.1:50009".parse().unwrap());
    finder.rename_local(later, renewed, RELAY);
    let mut checked: Vec<_> =
        std::iter::from_fn(|| finder.poll_transmit()).map(|(route, _)| route.local).collect();
    checked.dedup();
    assert_eq!((checked, finder.pairs().len()), (vec![RELAY], before));
}

#[test]
fn two_controlling_ends_agree_on_one() {
    for seed in [[7; 32], [8; 32]] {
        let mut world = World::new(7, ms(10), None, None);
        let now = world.net.now;
        let (ours, theirs) = (world.a.credentials.clone(), world.b.credentials.clone());
        let mut both = [
            FinderConfig::new(UdpDirect, true, ours.clone(), theirs.clone()),
            FinderConfig::new(UdpDirect, true, theirs, ours),
        ];
        both[0].seed = seed;
        both[1].seed = [11; 32];
        let (of_a, of_b) = (world.a.candidates(), world.b.candidates());
        let [a, b] = both.map(|config| Finder::new(now, config));
        world.a.finders.push(a);
        world.b.finders.push(b);
        for (end, own, other) in [(&mut world.a, &of_a, &of_b), (&mut world.b, &of_b, &of_a)] {
            end.finders[0].add_local(now, own[0], SOCKET);
            end.finders[0].add_remote(now, other[0]).unwrap();
        }
        assert!(world.meet(UdpDirect, Duration::from_secs(2)).is_some());
        let conflicts =
            [&world.a, &world.b].map(|end| end.finders[0].counters().conflicts).iter().sum::<u64>();
        assert_eq!(conflicts, 1);
    }
}

#[test]
fn consent_that_is_not_renewed_ends_and_is_found_again() {
    let mut world = met(10, "port-restr", "port-restr");
    world.net.blocked.push(super::fixture::B.parse().unwrap());
    let cut = world.net.now;
    let is_lost = |e: &FinderEvent| matches!(e, FinderEvent::Lost("consent_expired"));
    let lost = |world: &World| world.a.when(UdpDirect, is_lost).is_some();
    assert!(world.run_until(cut + Duration::from_secs(20), lost));
    assert!(world.net.now - cut > Duration::from_secs(5));
    assert_eq!(world.a.finders[0].selected(), None);
    world.run(Duration::from_secs(60));
    world.net.blocked.clear();
    let back = world.net.now;
    assert!(world.run_until(back + Duration::from_secs(31), |world| {
        world.a.finders[0].selected().is_some() && world.b.finders[0].selected().is_some()
    }));
}

#[test]
fn a_path_that_heals_is_found_within_one_pause_however_long_it_was_dead() {
    for (seed, dead) in [12, 25, 61, 180, 900].into_iter().enumerate() {
        let mut world = met(seed as u64, "port-restr", "port-restr");
        world.net.blocked.push(super::fixture::B.parse().unwrap());
        world.run(Duration::from_secs(dead));
        assert_eq!(world.a.finders[0].selected(), None);
        world.net.blocked.clear();
        let back = world.net.now;
        let found = world.run_until(back + Duration::from_secs(11), |world| {
            world.a.finders[0].selected().is_some() && world.b.finders[0].selected().is_some()
        });
        assert!(found, "{dead} s dead");
    }
}

#[test]
fn a_search_that_finds_nothing_says_so_once_and_goes_on_at_a_slow_pace() {
    let mut world = World::new(11, ms(10), None, None);
    world.net.blocked.push(super::fixture::B.parse().unwrap());
    world.start(Duration::ZERO);
    world.run(Duration::from_secs(120));
    let lost: Vec<_> = world.a.log.iter().map(|(.., event)| *event).collect();
    assert_eq!(lost, [FinderEvent::Lost("checks_unanswered")]);
    let before = world.a.finders[0].counters().checks;
    world.run(Duration::from_secs(600));
    let checks = world.a.finders[0].counters().checks - before;
    assert!((30..=100).contains(&checks), "{checks} checks in ten minutes");
    // The network changed: at once, not after the pause.
    world.net.blocked.clear();
    let now = world.net.now;
    world.a.finder(UdpDirect).network_changed(now);
    assert!(world.run_until(now + ms(50), |world| {
        world.a.when(UdpDirect, |e| matches!(e, FinderEvent::Reachable(_))).is_some()
    }));
}

#[test]
fn a_removed_base_gives_way_to_another_at_once() {
    let mut world = World::new(13, ms(10), None, None).with_relay();
    world.start(ms(3));
    world.meet(UdpDirect, Duration::from_secs(2)).unwrap();
    let now = world.net.now;
    world.a.finder(UdpDirect).remove_local(now, SOCKET);
    world.run(ms(1));
    assert_eq!(world.a.log.last().unwrap().2, FinderEvent::Lost("local_removed"));
    assert!(world.a.finders[0].pairs().is_empty());
}

#[test]
fn the_choice_is_stable_over_an_hour() {
    let mut world = met(14, "fullcone", "port-restr");
    let before = world.a.log.len();
    world.run(Duration::from_secs(3600));
    let changes: Vec<_> = world.a.log[before..].iter().map(|(.., event)| *event).collect();
    assert!(changes.is_empty(), "{changes:?}");
    let checks = world.a.finders[0].counters().checks;
    assert!(checks < 2200, "{checks} checks in an hour");
}

/// After whatever has happened, the two ends use the same pair of addresses in both directions, or say that none works.
#[test]
fn random_stories_end_with_both_ends_on_one_path() {
    for seed in 0..60_u64 {
        let names = ["fullcone", "addr-restr", "port-restr", "eim-nopres"];
        let pick = |at: u64| Some(kind_of(names[usize::try_from(at % 4).unwrap()]));
        let mut world = World::new(seed, ms(5 + seed % 40), pick(seed), pick(seed / 4));
        world.start(ms(seed % 90));
        for step in 0..20_u64 {
            let dice = (seed * 31 + step * 17) % 11;
            let now = world.net.now;
            match dice {
                0 => world.net.rebind(super::fixture::A, 0),
                1 => world.net.rebind(B, 0),
                2 => world.net.loss = 0.3,
                3 => world.net.loss = 0.0,
                4 => world.net.blocked.push(B.parse().unwrap()),
                5 | 6 => world.net.blocked.clear(),
                7 => world.a.finder(UdpDirect).doubt(now),
                8 => world.b.finder(UdpDirect).doubt(now),
                _ => {}
            }
            world.run(ms(200 + 613 * dice));
        }
        world.net.blocked.clear();
        world.net.loss = 0.0;
        let end = world.net.now + Duration::from_secs(50);
        // The broker would forward what the keepers have found.
        world.run(Duration::from_secs(16));
        world.signal();
        let agreed = world.run_until(end, |world| {
            let used = |end: &super::fixture::End| end.finders[0].selected().map(|r| r.remote);
            let rtt = |end: &super::fixture::End| {
                end.finders[0].pairs().iter().any(|p| p.selected && p.state == PairState::Succeeded)
            };
            used(&world.a).is_some() && used(&world.b).is_some() && rtt(&world.a) && rtt(&world.b)
        });
        assert!(agreed, "seed {seed}: {:?} {:?}", world.a.finders[0], world.b.finders[0].pairs());
    }
}
