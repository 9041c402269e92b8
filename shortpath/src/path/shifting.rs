//! Promises of a finder whose base retires, with nothing between the ends but time.
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::fixture::ms;
use super::{
    Candidate, CandidateKind, Finder, FinderConfig, FinderEvent, IceCredentials, LocalId, Route,
};
use crate::LegKind;

/// One way.
const DELAY: Duration = Duration::from_millis(20);

fn bases(end: usize, count: usize) -> Vec<SocketAddr> {
    let host = [[203, 0, 113, 2], [198, 51, 100, 2]][end];
    (0..count).map(|base| (host, 5000 + base as u16).into()).collect()
}

/// Client (0) and agent (1), each with two sockets.
struct Pair {
    now: Instant,
    ends: [Finder; 2],
    bases: [Vec<SocketAddr>; 2],
    flying: VecDeque<(Instant, usize, Route, Vec<u8>)>,
    lost: usize,
}

impl Pair {
    fn new(count: usize) -> Self {
        let now = Instant::now();
        let credentials = |end: u8| IceCredentials {
            ufrag: format!("user{end}"),
            password: format!("password-of-the-end-number-{end}"),
        };
        let finder = |end: u8| {
            let (ours, theirs) = (credentials(end), credentials(1 - end));
            let config = FinderConfig::new(LegKind::UdpDirect, end == 0, ours, theirs);
            Finder::new(now, FinderConfig { seed: [end; 32], ..config })
        };
        let mut pair = Self {
            now,
            ends: [finder(0), finder(1)],
            bases: [bases(0, count), bases(1, count)],
            flying: VecDeque::new(),
            lost: 0,
        };
        for end in 0..2 {
            for (base, address) in pair.bases[end].clone().into_iter().enumerate() {
                let candidate = Candidate::new(CandidateKind::ServerReflexive, address);
                pair.ends[end].add_local(now, candidate, LocalId(base as u16));
                pair.ends[1 - end].add_remote(now, candidate).unwrap();
            }
        }
        pair.run(ms(3000));
        pair
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += ms(1);
            while self.flying.front().is_some_and(|(at, ..)| *at <= self.now) {
                let (_, to, route, bytes) = self.flying.pop_front().unwrap();
                self.ends[to].handle_packet(self.now, route, &bytes);
            }
            for from in 0..2 {
                self.ends[from].handle_timeout(self.now);
                while let Some((route, bytes)) = self.ends[from].poll_transmit() {
                    let to = self.bases[1 - from].iter().position(|base| *base == route.remote);
                    let remote = self.bases[from][usize::from(route.local.0)];
                    let route = Route { local: LocalId(to.unwrap() as u16), remote };
                    self.flying.push_back((self.now + DELAY, 1 - from, route, bytes));
                }
                let events = std::iter::from_fn(|| self.ends[from].poll_event());
                self.lost += events.filter(|it| matches!(it, FinderEvent::Lost(_))).count();
            }
        }
    }

    /// The bases in use: the client's and the agent's as the client sees them, and as the agent does.
    fn used(&self) -> [(LocalId, LocalId); 2] {
        let of = |end: usize| {
            let route = self.ends[end].selected().unwrap();
            let far = self.bases[1 - end].iter().position(|base| *base == route.remote).unwrap();
            (route.local, LocalId(far as u16))
        };
        let ((client, agent), (theirs, ours)) = (of(0), of(1));
        [(client, agent), (ours, theirs)]
    }
}

#[test]
fn a_base_that_retires_is_left_by_both_ends_within_three_round_trips() {
    for end in 0..2 {
        let mut pair = Pair::new(2);
        let mut bases = pair.used();
        assert_eq!(bases[0], bases[1]);
        for _ in 0..4 {
            let (client, agent) = bases[0];
            let goes = [client, agent][end];
            let now = pair.now;
            pair.ends[end].retire(now, Some(goes));
            pair.run(6 * DELAY);
            bases = pair.used();
            assert_eq!(bases[0], bases[1], "the ends agree");
            assert_ne!([bases[0].0, bases[0].1][end], goes);
            // And they stay there while it retires.
            pair.run(ms(20_000));
            assert_ne!([pair.used()[0].0, pair.used()[0].1][end], goes);
        }
        assert_eq!(pair.lost, 0);
    }
}

#[test]
fn the_only_base_is_used_although_it_retires() {
    for end in 0..2 {
        let mut pair = Pair::new(1);
        let (before, now) = (pair.used(), pair.now);
        pair.ends[end].retire(now, Some(LocalId(0)));
        pair.run(ms(20_000));
        assert_eq!((pair.used(), pair.lost), (before, 0));
    }
}
