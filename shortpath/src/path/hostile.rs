//! What peers, strangers and routers may try, and what it gets them.
use std::time::Duration;

use super::fixture::{SOCKET, World, ms};
use super::*;
use crate::LegKind::UdpDirect;

#[test]
fn forged_replayed_and_reflected_checks_change_nothing() {
    let world = World::new(8, ms(10), None, None);
    let now = world.net.now;
    let config = |client: bool, ours: &IceCredentials, theirs: &IceCredentials| {
        FinderConfig::new(UdpDirect, client, ours.clone(), theirs.clone())
    };
    let (a, b) = (world.a.credentials.clone(), world.b.credentials.clone());
    let route = |text: &str| Route { local: SOCKET, remote: text.parse().unwrap() };
    let host = |text: &str| Candidate::new(CandidateKind::Host, text.parse().unwrap());
    let mut ours = Finder::new(now, config(true, &a, &b));
    ours.add_local(now, host("10.0.1.2:5000"), SOCKET);

    let check_by = |password: &str| {
        let liar = IceCredentials { password: password.into(), ..a.clone() };
        let mut peer = Finder::new(now, config(false, &b, &liar));
        peer.add_local(now, host("10.0.2.2:5000"), SOCKET);
        peer.add_remote(now, host("10.0.1.2:5000")).unwrap();
        peer.poll_transmit().unwrap().1
    };
    let forged = check_by("some-other-password-of-22-chars");
    assert!(ours.accepts(&forged));
    ours.handle_packet(now, route("10.0.2.2:5000"), &forged);
    assert_eq!((ours.counters().forged, ours.pairs().len()), (1, 0));
    assert!(ours.poll_transmit().is_none() && ours.poll_event().is_none());

    let honest = check_by(&a.password);
    ours.handle_packet(now, route("10.0.2.2:5000"), &honest);
    assert_eq!(ours.poll_event(), Some(FinderEvent::PeerAt(route("10.0.2.2:5000"))));
    ours.handle_packet(now, route("10.0.9.9:5000"), &honest);
    assert_eq!((ours.counters().replayed, ours.pairs().len()), (1, 1));
    assert!(ours.poll_event().is_none());

    // Our own check, sent back to us: it names the peer, not us.
    let sent: Vec<_> = std::iter::from_fn(|| ours.poll_transmit()).collect();
    let mine = sent.iter().find(|(_, bytes)| bytes[..2] == [0, 1]).unwrap();
    ours.handle_packet(now, mine.0, &mine.1);
    assert_eq!(ours.counters().requests, 1);

    for len in 0..honest.len() {
        ours.handle_packet(now, route("10.0.2.2:5000"), &honest[..len]);
    }
    assert_eq!(ours.counters().requests, 1);
    let told: Vec<_> = ours.counters().suspicious().into_iter().filter(|(_, n)| *n > 0).collect();
    assert_eq!(told, [("check_forged", 1), ("check_replayed", 1)]);
}

/// A finder with one socket, and nobody who answers.
fn lonely(world: &World) -> Finder {
    let config = FinderConfig::new(
        UdpDirect,
        true,
        world.a.credentials.clone(),
        world.b.credentials.clone(),
    );
    let mut finder = Finder::new(world.net.now, config);
    finder.add_local(world.net.now, Candidate::new(CandidateKind::Host, world.a.socket), SOCKET);
    finder
}

/// Lets a lonely finder run; every check with its time since the start.
fn checks_within(
    finder: &mut Finder,
    start: std::time::Instant,
    limit: Duration,
) -> Vec<(Duration, Route)> {
    let mut sent = Vec::new();
    let mut now = start;
    loop {
        sent.extend(std::iter::from_fn(|| finder.poll_transmit()).map(|(r, _)| (now - start, r)));
        match finder.poll_timeout().filter(|at| *at <= start + limit) {
            Some(at) => now = now.max(at),
            None => return sent,
        }
        finder.handle_timeout(now);
    }
}

/// The same with a session that is never heard.
fn checks_in_doubt(
    finder: &mut Finder,
    start: std::time::Instant,
    limit: Duration,
) -> Vec<(Duration, Route)> {
    let mut sent = Vec::new();
    let mut passed = Duration::ZERO;
    while passed < limit {
        finder.doubt(start + passed);
        let step = checks_within(finder, start + passed, ms(99));
        sent.extend(step.into_iter().map(|(at, route)| (passed + at, route)));
        passed += ms(100);
    }
    sent
}

#[test]
fn a_hostile_list_of_candidates_is_no_scan_on_command() {
    let world = World::new(9, ms(10), None, None);
    let (mut finder, now) = (lonely(&world), world.net.now);
    finder.limits.servers = vec![world.server.stun()];
    for n in 0..1000_u32 {
        let address = match n % 4 {
            0 => format!("224.0.0.{}:{}", n % 250, 1000 + n),
            1 => format!("127.0.0.1:{}", 1000 + n),
            2 => "192.0.2.1:3478".into(),
            _ => format!("198.51.{}.{}:{}", n / 250, n % 250 + 1, 1000 + n),
        };
        let candidate = Candidate::new(CandidateKind::Host, address.parse().unwrap());
        let _ = finder.add_remote(now, candidate);
    }
    assert_eq!(finder.refused().map(|(_, count)| count).sum::<u64>(), 968);
    let sent = checks_in_doubt(&mut finder, now, Duration::from_secs(600));
    assert!(sent.iter().all(|(_, route)| route.remote.ip().to_string().starts_with("198.51.")));
    let within = |limit| sent.iter().filter(|(at, _)| *at < limit).count();
    assert!(within(ms(1)) <= 10, "the burst");
    assert!(within(Duration::from_secs(1)) <= 10 + 200, "the pace");
    assert_eq!(within(Duration::from_secs(10)), 32 * 14, "the first round");
    // Afterwards 16 pairs, three checks each, every 10 s at most: a doubt that does not end makes that no more.
    let mut of: std::collections::HashMap<_, Vec<_>> = std::collections::HashMap::new();
    sent.iter().for_each(|(at, route)| of.entry(*route).or_default().push(*at));
    assert_eq!(of.values().filter(|checks| checks.len() > 14).count(), 16);
    for checks in of.values().map(|checks| &checks[14..]) {
        let rounds = checks.iter().zip(checks.iter().skip(3));
        rounds.for_each(|(first, fourth)| assert!(*fourth - *first >= Duration::from_secs(10)));
    }
}

#[test]
fn strangers_with_the_password_cannot_make_us_keep_more_than_a_few() {
    let world = World::new(9, ms(10), None, None);
    let (mut finder, now) = (lonely(&world), world.net.now);
    for n in 0..500_u16 {
        let (a, b) = (world.a.credentials.clone(), world.b.credentials.clone());
        let mut peer = Finder::new(now, FinderConfig::new(UdpDirect, false, b, a));
        let host = Candidate::new(CandidateKind::Host, "10.0.2.2:1".parse().unwrap());
        peer.add_local(now, host, SOCKET);
        peer.add_remote(now, Candidate::new(CandidateKind::Host, world.a.socket)).unwrap();
        let check = peer.poll_transmit().unwrap().1;
        let remote = std::net::SocketAddr::new("198.51.100.7".parse().unwrap(), 2000 + n);
        finder.handle_packet(now, Route { local: SOCKET, remote }, &check);
    }
    assert!(finder.pairs().len() <= 8);
    assert!(finder.counters().refused > 0 && finder.counters().requests <= 64);
}

#[test]
fn ever_new_addresses_are_taken_slowly_and_only_in_place_of_dead_ones() {
    let world = World::new(15, ms(10), None, None);
    let (mut finder, start) = (lonely(&world), world.net.now);
    let mut taken = 0;
    let mut checks = 0;
    for second in 0..600_u32 {
        let now = start + Duration::from_secs(u64::from(second));
        for port in 0..10 {
            let address = format!("198.51.100.{}:{}", second % 250 + 1, 2000 + 10 * second + port);
            let host = Candidate::new(CandidateKind::Host, address.parse().unwrap());
            taken += usize::from(finder.add_remote(now, host).is_ok());
        }
        checks += checks_within(&mut finder, now, Duration::from_millis(999)).len();
    }
    assert!((33..=32 + 120).contains(&taken), "{taken} of 6000");
    // The first 32, one more each 5 s, and the retries: 14 checks or rounds of 3.
    let most = 32 * 14 + 120 * 14 + 16 * 3 * 30;
    assert!(checks <= most, "{checks} checks in ten minutes");
}
