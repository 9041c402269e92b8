//! Promises of a session with several legs, kept in virtual time: what a death costs, what a move costs, what loss costs.
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::LegKind::{TcpReverse, UdpDirect, UdpRelay};
use super::frame::{DATAGRAM_MAX, Frame, Mark};
use super::pair::{AGENT, CLIENT, Pair, Weather, ms};
use super::tests::{agent, hello, id};
use super::{
    ChannelId, CloseReason, DatagramError, Event, LegKind, LegState, MoveCause, Session,
    SessionConfig,
};

const NOW: Duration = Duration::ZERO;

fn jittery(delay: u64) -> Weather {
    Weather { jitter: ms(1), ..Weather::fair(ms(delay)) }
}

fn lossy(delay: u64, loss: f64) -> Weather {
    Weather { loss, ..jittery(delay) }
}

/// A client that sends 64 bytes every `every`, and an agent that answers each.
struct Echo {
    pair: Pair,
    channel: ChannelId,
    every: Duration,
    next: Instant,
    sent: Vec<Instant>,
    arrived: Vec<Instant>,
}

const MESSAGE: u64 = 64;

impl Echo {
    fn new(mut pair: Pair, every: Duration) -> Self {
        let channel = pair.open(CLIENT).unwrap();
        let next = pair.now;
        Self { pair, channel, every, next, sent: Vec::new(), arrived: Vec::new() }
    }

    fn run(&mut self, time: Duration) {
        let until = self.pair.now + time;
        while self.pair.now < until {
            if self.next <= self.pair.now {
                assert_eq!(self.pair.write(CLIENT, self.channel, MESSAGE), MESSAGE);
                self.sent.push(self.next);
                self.next += self.every;
            }
            self.pair.run(ms(1));
            self.pair.read(AGENT, self.channel);
            let owed = self.pair.ends[AGENT].streams.get(&self.channel);
            let owed = owed.map_or(0, |stream| stream.read / MESSAGE * MESSAGE - stream.written);
            self.pair.write(AGENT, self.channel, owed);
            self.pair.read(CLIENT, self.channel);
            let done = self.pair.ends[CLIENT].streams[&self.channel].read / MESSAGE;
            self.arrived.resize(usize::try_from(done).unwrap(), self.pair.now);
        }
    }

    /// The longest time without an echo since `from`.
    fn stall(&self, from: Instant) -> Duration {
        let after = self.arrived.iter().filter(|at| **at >= from);
        let ends: Vec<_> =
            [from].into_iter().chain(after.copied()).chain([self.pair.now]).collect();
        ends.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
    }

    /// Latencies of echoes since message `from`, sorted.
    fn latencies(&self, from: usize) -> Vec<Duration> {
        let mut all: Vec<_> =
            self.arrived.iter().zip(&self.sent).skip(from).map(|(at, sent)| *at - *sent).collect();
        all.sort_unstable();
        all
    }

    fn leg(&self) -> Option<LegKind> {
        self.pair.ends[CLIENT].session.figures(self.pair.now).leg
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

/// Direct at 40 ms, relay and TCP at 60 ms.
fn three_legs(seed: u64) -> Echo {
    let mut pair = Pair::seeded(&SessionConfig::default(), seed);
    pair.link_of(TcpReverse, jittery(30), NOW);
    pair.link_of(UdpRelay, jittery(30), NOW);
    pair.link_of(UdpDirect, jittery(20), NOW);
    Echo::new(pair, ms(5))
}

/// Stalls over 100 seeds when `links` go dark in the directions of `ends`.
fn stalls(links: &[usize], ends: &[usize]) -> Vec<Duration> {
    let mut stalls: Vec<_> = (0..100)
        .map(|seed| {
            let mut echo = three_legs(seed);
            echo.run(ms(1_000 + seed * 7));
            assert_eq!(echo.leg(), Some(UdpDirect), "seed {seed}");
            for link in links {
                ends.iter().for_each(|end| echo.pair.blackhole(*link, *end));
            }
            let cut = echo.pair.now;
            echo.run(ms(1_500));
            let silent = |end: usize| {
                let moves = &echo.pair.ends[end].moves;
                moves.iter().any(|(_, cause, _)| *cause == MoveCause::Silent)
            };
            assert!(silent(CLIENT) && silent(AGENT), "seed {seed} moves");
            echo.stall(cut)
        })
        .collect();
    stalls.sort_unstable();
    stalls
}

fn assert_stalls(stalls: &[Duration]) {
    let (p50, p99) = (percentile(stalls, 50), percentile(stalls, 99));
    println!("stall p50 {p50:?} p99 {p99:?}");
    assert!(p50 <= ms(2 * 40 + 20), "p50 {p50:?}");
    assert!(p99 <= ms(150), "p99 {p99:?}");
}

#[test]
fn a_blackholed_best_leg_stalls_an_echo_for_two_round_trips() {
    assert_stalls(&stalls(&[2], &[CLIENT, AGENT]));
}

#[test]
fn so_does_the_death_of_all_udp() {
    assert_stalls(&stalls(&[1, 2], &[CLIENT, AGENT]));
}

#[test]
fn so_does_a_hole_in_one_direction() {
    assert_stalls(&stalls(&[2], &[CLIENT]));
    assert_stalls(&stalls(&[2], &[AGENT]));
}

#[test]
fn a_rebinding_gap_stalls_no_longer_than_a_death_and_the_session_comes_back() {
    let mut echo = three_legs(3);
    echo.run(ms(2_000));
    [CLIENT, AGENT].into_iter().for_each(|end| echo.pair.blackhole(2, end));
    let cut = echo.pair.now;
    echo.run(ms(3_000));
    assert!(echo.stall(cut) <= ms(150));
    echo.pair.heal(2, ms(500));
    let healed = echo.pair.now;
    while echo.leg() != Some(UdpDirect) {
        echo.run(ms(10));
        assert!(echo.pair.now - healed < Duration::from_secs(15), "not back in time");
    }
    assert!(echo.stall(healed) <= ms(60), "coming back is a planned move");
    let last = echo.pair.ends[CLIENT].moves.last().unwrap();
    assert_eq!((last.1, last.2), (MoveCause::Better, NOW));
}

#[test]
fn a_killed_peers_session_pauses_soon_and_ends_with_its_resume_window() {
    let mut pair = Pair::new(&SessionConfig::default());
    let tcp = pair.link_of(TcpReverse, jittery(30), NOW);
    let udp = pair.link_of(UdpDirect, jittery(20), NOW);
    let mut echo = Echo::new(pair, ms(20));
    echo.run(Duration::from_secs(2));
    let mut pair = echo.pair;
    // Nothing moves any more; the kernel closes its TCP connections, and its UDP just ends.
    pair.run(Duration::from_secs(20));
    [CLIENT, AGENT].into_iter().for_each(|end| pair.blackhole(udp, end));
    pair.cut(tcp, AGENT);
    pair.run(Duration::from_secs(9));
    let end = &pair.ends[AGENT];
    assert!(end.downs == 1 && !end.session.figures(pair.now).connected, "not noticed in time");
    pair.run(Duration::from_secs(50));
    assert_eq!(pair.ends[AGENT].closed, None, "it may come back");
    pair.run(Duration::from_secs(2));
    assert_eq!(pair.ends[AGENT].closed, Some(CloseReason::Lost));
}

#[test]
fn a_broken_leg_costs_no_other_that_answers() {
    let mut pair = Pair::new(&SessionConfig::default());
    let tcp = pair.link_of(TcpReverse, jittery(30), NOW);
    pair.link_of(UdpDirect, jittery(20), NOW);
    pair.run(Duration::from_secs(20));
    [CLIENT, AGENT].into_iter().for_each(|end| pair.cut(tcp, end));
    pair.run(Duration::from_secs(600));
    for end in &pair.ends {
        assert_eq!((end.lost.len(), end.downs, end.closed.is_none()), (1, 0, true));
    }
}

#[test]
fn a_leg_is_let_go_only_while_another_does_well_and_nothing_is_on_its_way() {
    let mut pair = Pair::new(&SessionConfig::default());
    let tcp = pair.link_of(TcpReverse, Weather::fair(ms(30)), NOW);
    let mut echo = Echo::new(pair, ms(5));
    echo.run(ms(500));
    let leg = echo.pair.leg(tcp, CLIENT).unwrap();
    let now = echo.pair.now;
    assert!(!echo.pair.ends[CLIENT].session.let_go(now, leg), "it carries the session");
    let udp = echo.pair.link_of(UdpDirect, Weather::fair(ms(20)), NOW);
    echo.run(ms(1_500));
    assert_eq!(echo.leg(), Some(UdpDirect));
    let carrier = echo.pair.leg(udp, CLIENT).unwrap();
    let now = echo.pair.now;
    let session = &mut echo.pair.ends[CLIENT].session;
    assert!(!session.let_go(now, carrier) && session.let_go(now, leg) && !session.let_go(now, leg));
    echo.pair.cut(tcp, AGENT);
    let told = &echo.pair.ends[CLIENT].lost;
    assert!(told.is_empty(), "{told:?}");
    let cut = echo.pair.now;
    echo.run(ms(1_000));
    assert!(echo.stall(cut) <= ms(50), "{:?}", echo.stall(cut));
    // Without a spare the owner hears of silence soon, if it wants to.
    [CLIENT, AGENT].into_iter().for_each(|end| echo.pair.blackhole(udp, end));
    echo.run(ms(2_500));
    assert_eq!(echo.pair.ends[CLIENT].suspects, [carrier]);
}

#[test]
fn what_the_resume_window_leaves_is_at_least_its_half() {
    let resume_window = Duration::from_secs(10);
    let config = SessionConfig { resume_window, ..SessionConfig::default() };
    let mut pair = Pair::new(&config);
    let link = pair.link_of(UdpDirect, jittery(20), NOW);
    pair.run(ms(500));
    [CLIENT, AGENT].into_iter().for_each(|end| pair.blackhole(link, end));
    while pair.ends[CLIENT].downs == 0 {
        pair.run(ms(100));
    }
    pair.run(ms(4_800));
    assert_eq!(pair.ends[CLIENT].closed, None);
    pair.run(ms(400));
    assert_eq!(pair.ends[CLIENT].closed, Some(CloseReason::Lost));
}

#[test]
fn legs_that_lose_and_delay_are_not_left_for_silence() {
    for seed in 0..12 {
        let mut pair = Pair::seeded(&SessionConfig::default(), seed);
        pair.link_of(TcpReverse, lossy(20, 2.0), NOW);
        if seed % 2 == 0 {
            pair.link_of(UdpDirect, Weather { jitter: ms(8), ..lossy(15, 3.0) }, NOW);
        } else {
            pair.link_of(UdpRelay, lossy(60, 1.0), NOW);
        }
        let mut echo = Echo::new(pair, ms(20));
        echo.run(Duration::from_secs(30));
        for end in &echo.pair.ends {
            let left = end.moves.iter().filter(|(_, cause, _)| *cause == MoveCause::Silent).count();
            assert_eq!(left, 0, "seed {seed}: {:?}", end.moves);
            assert!(end.moves.len() <= 4, "seed {seed} flaps: {:?}", end.moves);
            assert!(end.suspects.is_empty() && end.lost.is_empty());
            let figures = end.session.figures(echo.pair.now);
            // Of suspicion and redundancy together.
            assert!(figures.dup_bytes < 30 * (8_000 + 64 * 1024) + 256 * 1024);
        }
    }
}

/// The 99th percentile of echoes under loss on every leg, as on a client's own link, over several seeds.
fn tail(loss: f64) -> Duration {
    let mut all = Vec::new();
    for seed in 1..=5 {
        let mut pair = Pair::seeded(&SessionConfig::default(), seed);
        pair.link_of(TcpReverse, lossy(20, loss), NOW);
        pair.link_of(UdpDirect, lossy(20, loss), NOW);
        let mut echo = Echo::new(pair, ms(20));
        echo.run(Duration::from_secs(60));
        let latencies = echo.latencies(100);
        let figures = echo.pair.ends[CLIENT].session.figures(echo.pair.now);
        println!(
            "loss {loss} %: p50 {:?} p99 {:?} dup_sent {} won {} saved {:?}",
            percentile(&latencies, 50),
            percentile(&latencies, 99),
            figures.dup_sent,
            figures.dup_won,
            figures.saved
        );
        assert!(loss == 0.0 || (figures.dup_won > 0 && figures.saved > Duration::ZERO));
        all.extend(latencies);
    }
    all.sort_unstable();
    percentile(&all, 99)
}

#[test]
fn a_path_without_fault_is_not_doubled_for_ever_beside_one_as_short() {
    let mut pair = Pair::new(&SessionConfig::default());
    for kind in [TcpReverse, UdpDirect, UdpRelay] {
        pair.link_of(kind, jittery(20), NOW);
    }
    let mut echo = Echo::new(pair, ms(20));
    echo.run(Duration::from_secs(60));
    for end in &echo.pair.ends {
        let figures = end.session.figures(echo.pair.now);
        // Until its estimate is sure, within the first second.
        assert!(figures.dup_sent < 100, "{} copies", figures.dup_sent);
    }
}

#[test]
fn a_lost_message_does_not_wait_for_the_next_one() {
    assert!(tail(0.0) <= ms(43));
    assert!(tail(1.0) <= ms(50));
    assert!(tail(3.0) <= ms(60));
    assert!(tail(5.0) <= ms(80));
}

#[test]
fn no_second_copies_leave_when_redundancy_is_off() {
    let config = SessionConfig { redundancy: None, ..SessionConfig::default() };
    let mut pair = Pair::seeded(&config, 1);
    pair.link_of(UdpDirect, jittery(20), NOW);
    let mut echo = Echo::new(pair, ms(20));
    echo.run(Duration::from_secs(5));
    let sent = |end: usize| echo.pair.ends[end].session.figures(echo.pair.now).dup_sent;
    assert_eq!((sent(CLIENT), sent(AGENT)), (0, 0));
}

#[test]
fn a_planned_move_stalls_nothing_and_sends_nothing_again() {
    let config = SessionConfig { redundancy: None, ..SessionConfig::default() };
    let mut pair = Pair::new(&config);
    pair.link_of(TcpReverse, Weather::fair(ms(30)), NOW);
    let mut echo = Echo::new(pair, ms(5));
    echo.run(ms(1_000));
    echo.pair.link_of(UdpDirect, Weather::fair(ms(20)), NOW);
    echo.run(ms(1_000));
    assert_eq!(echo.leg(), Some(UdpDirect));
    let slowest = *echo.latencies(20).last().unwrap();
    assert!(slowest <= ms(61), "{slowest:?}");
    let streams = [CLIENT, AGENT].map(|end| echo.pair.ends[end].streams[&echo.channel].written);
    assert_eq!(echo.pair.carried, streams.iter().sum::<u64>());
    for end in &echo.pair.ends {
        let moves: Vec<_> = end.moves.iter().map(|(to, cause, _)| (*to, *cause)).collect();
        assert_eq!(moves, [(TcpReverse, MoveCause::First), (UdpDirect, MoveCause::Better)]);
    }
}

#[test]
fn a_leg_that_stood_by_is_asked_before_the_session_moves_to_it() {
    for after in (500..6_500).step_by(500) {
        let mut echo = three_legs(after);
        echo.run(ms(after));
        assert_eq!(echo.leg(), Some(UdpDirect));
        // All UDP is slower from now on: direct 80 ms, relay 100 ms.
        echo.pair.set_delay(1, ms(50));
        echo.pair.set_delay(2, ms(40));
        let (slower, before) =
            (echo.sent.len(), echo.pair.ends.each_ref().map(|end| end.moves.len()));
        echo.run(Duration::from_secs(4));
        let slowest = *echo.latencies(slower).last().unwrap();
        assert!(slowest <= ms(83), "after {after} ms: {slowest:?}");
        for (end, before) in echo.pair.ends.iter().zip(before) {
            let to: Vec<_> = end.moves[before..].iter().map(|(to, ..)| *to).collect();
            assert_eq!(to, [TcpReverse], "after {after} ms");
        }
    }
}

/// Bulk from the client for `time`; bytes the agent read.
fn bulk(pair: &mut Pair, channel: ChannelId, time: Duration) -> u64 {
    let before = pair.ends[AGENT].streams.get(&channel).map_or(0, |stream| stream.read);
    let until = pair.now + time;
    while pair.now < until {
        pair.write(CLIENT, channel, 400_000);
        pair.run(ms(10));
        pair.read(AGENT, channel);
    }
    pair.ends[AGENT].streams[&channel].read - before
}

#[test]
fn a_throttled_direct_leg_loses_bulk_to_a_relay() {
    let mut pair = Pair::new(&SessionConfig::default());
    pair.link_of(UdpRelay, Weather { rate: Some(4_000_000), ..Weather::fair(ms(20)) }, NOW);
    pair.link_of(UdpDirect, Weather { rate: Some(250_000), ..Weather::fair(ms(10)) }, NOW);
    let channel = pair.open(CLIENT).unwrap();
    pair.run(ms(500));
    assert_eq!(pair.ends[CLIENT].session.figures(pair.now).leg, Some(UdpDirect));
    bulk(&mut pair, channel, Duration::from_secs(5));
    assert_eq!(pair.ends[CLIENT].session.figures(pair.now).leg, Some(UdpRelay));
    let moved = pair.ends[CLIENT]
        .moves
        .iter()
        .any(|(to, cause, stall)| (*to, *cause, *stall) == (UdpRelay, MoveCause::Throttled, NOW));
    assert!(moved, "{:?}", pair.ends[CLIENT].moves);
    let read = bulk(&mut pair, channel, Duration::from_secs(4));
    assert!(read > 12_000_000, "{read}");
}

/// Whether the client's leg on this link is given bulk.
fn takes_bulk(pair: &Pair, link: usize) -> bool {
    pair.leg(link, CLIENT).is_some_and(|leg| pair.ends[CLIENT].session.takes_bulk(leg))
}

#[test]
fn bulk_moves_to_a_faster_leg_that_starves_beside_the_present_one() {
    let mut pair = Pair::new(&SessionConfig::default());
    let fair = |delay| Weather { rate: Some(2_000_000), ..Weather::fair(delay) };
    let relayed = pair.link_of(TcpReverse, fair(ms(20)), NOW);
    let direct = pair.link_of(UdpDirect, fair(ms(10)), NOW);
    let channel = pair.open(CLIENT).unwrap();
    pair.run(ms(500));
    assert_eq!(pair.ends[CLIENT].session.figures(pair.now).leg, Some(UdpDirect));
    // One processor for both: alone the relayed one has twice the rate of the other.
    for _ in 0..400 {
        let both = takes_bulk(&pair, relayed) && takes_bulk(&pair, direct);
        pair.set_rate(relayed, if both { 1_000_000 } else { 4_000_000 });
        bulk(&mut pair, channel, ms(10));
    }
    assert_eq!(pair.ends[CLIENT].session.figures(pair.now).leg, Some(TcpReverse));
}

/// Where two legs of the client lead after some seconds of bulk, of which each has `rate` alone, and half of it beside the
/// other, as one processor works for both. The direct one is the nearer.
fn bulk_between(relayed_rate: u64, direct_rate: u64) -> (Pair, Option<LegKind>) {
    let mut pair = Pair::new(&SessionConfig::default());
    let weather = |rate, delay| Weather { rate: Some(rate), ..Weather::fair(delay) };
    let relayed = pair.link_of(TcpReverse, weather(relayed_rate, ms(20)), NOW);
    let direct = pair.link_of(UdpDirect, weather(direct_rate, ms(10)), NOW);
    let channel = pair.open(CLIENT).unwrap();
    pair.run(ms(500));
    assert_eq!(pair.ends[CLIENT].session.figures(pair.now).leg, Some(UdpDirect));
    for _ in 0..450 {
        let share = 1 + u64::from(takes_bulk(&pair, relayed) && takes_bulk(&pair, direct));
        pair.set_rate(relayed, relayed_rate / share);
        pair.set_rate(direct, direct_rate / share);
        bulk(&mut pair, channel, ms(10));
    }
    let leg = pair.ends[CLIENT].session.figures(pair.now).leg;
    (pair, leg)
}

#[test]
fn bulk_takes_a_leg_that_is_a_fifth_faster_and_stays_for_less_than_a_tenth() {
    assert_eq!(bulk_between(12_000_000, 10_000_000).1, Some(TcpReverse));
    assert_eq!(bulk_between(10_500_000, 10_000_000).1, Some(UdpDirect));
}

#[test]
fn bulk_stays_on_the_faster_leg_though_another_is_nearer() {
    let (mut pair, leg) = bulk_between(20_000_000, 10_000_000);
    let channel = pair.open(CLIENT).unwrap();
    let moves = pair.ends[CLIENT].moves.len();
    assert_eq!(leg, Some(TcpReverse));
    bulk(&mut pair, channel, Duration::from_secs(25));
    assert_eq!(pair.ends[CLIENT].moves.len(), moves, "{:?}", pair.ends[CLIENT].moves);
    // Without bulk nearness counts again.
    pair.run(Duration::from_secs(60));
    assert_eq!(pair.ends[CLIENT].session.figures(pair.now).leg, Some(UdpDirect));
}

#[test]
fn another_leg_is_tried_beside_one_that_brings_all_it_has_before_more_comes() {
    let mut pair = Pair::new(&SessionConfig::default());
    let relayed = pair.link_of(TcpReverse, Weather::fair(ms(2)), NOW);
    pair.link_of(UdpDirect, Weather::fair(ms(1)), NOW);
    let channel = pair.open(CLIENT).unwrap();
    pair.run(ms(500));
    assert_eq!(pair.ends[CLIENT].session.figures(pair.now).leg, Some(UdpDirect));
    let tried = (0..200).any(|_| {
        bulk(&mut pair, channel, ms(10));
        let leg = pair.leg(relayed, CLIENT).unwrap();
        pair.ends[CLIENT].session.takes_bulk(leg)
    });
    assert!(tried);
}

#[test]
fn bulk_moves_past_a_preferred_leg_that_has_not_shown_its_rate() {
    let mut pair = Pair::new(&SessionConfig::default());
    let fair = |rate, delay| Weather { rate: Some(rate), ..Weather::fair(delay) };
    pair.link_of(TcpReverse, fair(4_000_000, ms(20)), NOW);
    pair.link_of(UdpRelay, fair(250_000, ms(20)), NOW);
    pair.link_of(UdpDirect, fair(250_000, ms(10)), NOW);
    let channel = pair.open(CLIENT).unwrap();
    pair.run(ms(500));
    assert_eq!(pair.ends[CLIENT].session.figures(pair.now).leg, Some(UdpDirect));
    let before = pair.ends[CLIENT].moves.len();
    bulk(&mut pair, channel, Duration::from_secs(8));
    let moves: Vec<_> = pair.ends[CLIENT].moves[before..].iter().map(|(to, ..)| *to).collect();
    assert_eq!(moves, [TcpReverse]);
}

#[test]
fn bulk_moves_to_a_faster_leg_that_is_left_little_beside_one_with_a_long_queue() {
    let mut pair = Pair::new(&SessionConfig::default());
    let fair = |rate, delay| Weather { rate: Some(rate), ..Weather::fair(delay) };
    // Its queue takes a whole window of the session, and is filled first.
    pair.link_of(UdpDirect, fair(100_000_000, ms(1)), NOW);
    pair.link_of(TcpReverse, fair(300_000_000, ms(2)), NOW);
    let channel = pair.open(CLIENT).unwrap();
    pair.run(ms(500));
    assert_eq!(pair.ends[CLIENT].session.figures(pair.now).leg, Some(UdpDirect));
    let moved = (0..350).any(|_| {
        pair.write(CLIENT, channel, 4_000_000);
        pair.run(ms(10));
        pair.read(AGENT, channel);
        pair.ends[CLIENT].session.figures(pair.now).leg == Some(TcpReverse)
    });
    assert!(moved);
}

#[test]
fn a_leg_that_lost_bulk_is_not_tried_for_it_at_once() {
    let mut pair = Pair::new(&SessionConfig::default());
    let weather = |rate, delay| Weather { rate: Some(rate), ..Weather::fair(delay) };
    pair.link_of(TcpReverse, weather(4_000_000, ms(20)), NOW);
    let direct = pair.link_of(UdpDirect, weather(250_000, ms(10)), NOW);
    let channel = pair.open(CLIENT).unwrap();
    pair.run(ms(500));
    while pair.ends[CLIENT].session.figures(pair.now).leg != Some(TcpReverse) {
        bulk(&mut pair, channel, ms(10));
    }
    for _ in 0..500 {
        bulk(&mut pair, channel, ms(10));
        let leg = pair.leg(direct, CLIENT).unwrap();
        assert!(!pair.ends[CLIENT].session.takes_bulk(leg));
    }
}

#[test]
fn interactive_bytes_stay_on_the_selected_leg_while_another_has_all_bulk() {
    let mut pair = Pair::new(&SessionConfig::default());
    let fair = |delay| Weather { rate: Some(2_000_000), ..Weather::fair(delay) };
    let relayed = pair.link_of(TcpReverse, fair(ms(200)), NOW);
    let direct = pair.link_of(UdpDirect, fair(ms(10)), NOW);
    let (large, small) = (pair.open(CLIENT).unwrap(), pair.open(CLIENT).unwrap());
    pair.run(ms(1000));
    let alone = (0..400).find(|_| {
        bulk(&mut pair, large, ms(10));
        takes_bulk(&pair, relayed) && !takes_bulk(&pair, direct)
    });
    assert!(alone.is_some(), "the other leg never had all bulk");
    // What the direct leg still has in its queue goes first.
    bulk(&mut pair, large, ms(200));
    assert!(takes_bulk(&pair, relayed) && !takes_bulk(&pair, direct), "not for long enough");
    pair.write(CLIENT, small, 10);
    pair.run(ms(50));
    pair.read(AGENT, small);
    assert_eq!(pair.ends[AGENT].streams[&small].read, 10);
}

#[test]
fn a_fast_leg_keeps_its_bulk_and_trials_cost_little() {
    let mut pair = Pair::new(&SessionConfig::default());
    pair.link_of(TcpReverse, Weather { rate: Some(250_000), ..Weather::fair(ms(20)) }, NOW);
    pair.link_of(UdpDirect, Weather { rate: Some(4_000_000), ..Weather::fair(ms(10)) }, NOW);
    let channel = pair.open(CLIENT).unwrap();
    pair.run(ms(500));
    let read = bulk(&mut pair, channel, Duration::from_secs(20));
    assert!(read > 68_000_000, "{read}");
    assert_eq!(pair.ends[CLIENT].session.figures(pair.now).leg, Some(UdpDirect));
}

#[test]
fn bulk_survives_a_blackhole_and_stalls_for_less_than_half_a_second() {
    let mut pair = Pair::new(&SessionConfig::default());
    pair.link_of(TcpReverse, Weather { rate: Some(4_000_000), ..Weather::fair(ms(30)) }, NOW);
    pair.link_of(UdpDirect, Weather { rate: Some(4_000_000), ..Weather::fair(ms(20)) }, NOW);
    let channel = pair.open(CLIENT).unwrap();
    pair.run(ms(500));
    bulk(&mut pair, channel, Duration::from_secs(2));
    [CLIENT, AGENT].into_iter().for_each(|end| pair.blackhole(1, end));
    let read = bulk(&mut pair, channel, Duration::from_secs(2));
    assert!(read > 5_000_000, "{read}");
}

#[test]
fn a_path_that_swallows_large_packets_holds_up_no_keystroke_and_loses_nothing() {
    let mut pair = Pair::new(&SessionConfig::default());
    pair.link_of(TcpReverse, jittery(30), NOW);
    let direct = pair.link_of(UdpDirect, jittery(20), NOW);
    let heap = pair.open(CLIENT).unwrap();
    let mut echo = Echo::new(pair, ms(20));
    let feed = |echo: &mut Echo, time: u64| {
        for _ in 0..time / 10 {
            echo.pair.write(CLIENT, heap, 20_000);
            echo.run(ms(10));
            echo.pair.read(AGENT, heap);
        }
        echo.pair.ends[AGENT].streams[&heap].read
    };
    feed(&mut echo, 2_000);
    assert_eq!(echo.leg(), Some(UdpDirect));
    let shrunk = echo.pair.now;
    echo.pair.links[direct].weather.swallows = Some(1_200);
    let stuck = feed(&mut echo, 1_500);
    // The transport has found out by now, and makes small packets of everything.
    echo.pair.links[direct].weather.swallows = None;
    echo.pair.heal(direct, ms(0));
    let moved = feed(&mut echo, 2_000) - stuck;
    assert!(moved > 1_000_000, "bulk stands still: {moved}");
    let stall = echo.stall(shrunk);
    assert!(stall <= ms(150), "{stall:?}");
    let written = echo.pair.ends[CLIENT].streams[&heap].written;
    echo.run(Duration::from_secs(5));
    echo.pair.read(AGENT, heap);
    assert_eq!(echo.pair.ends[AGENT].streams[&heap].read, written);
    assert!(echo.pair.ends.iter().all(|end| end.closed.is_none() && end.lost.is_empty()));
}

#[test]
fn a_policy_keeps_a_kind_of_leg_from_carrying() {
    let config = SessionConfig { allowed: vec![TcpReverse], ..SessionConfig::default() };
    let mut pair = Pair::new(&config);
    pair.link_of(TcpReverse, jittery(60), NOW);
    pair.link_of(UdpDirect, jittery(5), NOW);
    let mut echo = Echo::new(pair, ms(20));
    echo.run(ms(3_000));
    let figures = echo.pair.ends[CLIENT].session.figures(echo.pair.now);
    assert_eq!(figures.leg, Some(TcpReverse));
    assert_eq!(figures.legs[1].state, LegState::Standby);
    assert_eq!(figures.legs[1].bytes_sent, 0);
}

#[test]
fn figures_show_every_leg_and_the_timeline_of_moves() {
    let mut echo = three_legs(1);
    echo.run(ms(2_000));
    [CLIENT, AGENT].into_iter().for_each(|end| echo.pair.blackhole(2, end));
    echo.run(ms(2_000));
    let figures = echo.pair.ends[CLIENT].session.figures(echo.pair.now);
    let states: Vec<_> = figures.legs.iter().map(|leg| leg.state).collect();
    assert_eq!(states, [LegState::Standby, LegState::Selected, LegState::Quarantined]);
    assert!(figures.legs.iter().all(|leg| leg.rtt.is_some() && leg.bytes_sent > 0));
    let last = figures.moves.last().unwrap();
    assert_eq!((last.from, last.to, last.cause), (Some(UdpDirect), UdpRelay, MoveCause::Silent));
    assert!((ms(20)..ms(150)).contains(&last.stall), "{:?}", last.stall);
    assert!(figures.dup_sent > 0 && figures.dup_won > 0);
}

/// What `end` was told of stalls without a move after the only leg, of `kind`, was gone for `gone` under an echo, and the
/// longest wait for an echo meanwhile.
fn outage(kind: LegKind, gone: Duration) -> (Echo, Duration) {
    let mut pair = Pair::new(&SessionConfig::default());
    pair.link_of(kind, jittery(20), NOW);
    let mut echo = Echo::new(pair, ms(5));
    echo.run(ms(2_000));
    [CLIENT, AGENT].into_iter().for_each(|end| echo.pair.blackhole(0, end));
    let cut = echo.pair.now;
    echo.run(gone);
    echo.pair.heal(0, ms(5));
    echo.run(ms(2_000));
    let stall = echo.stall(cut);
    (echo, stall)
}

#[test]
fn a_stall_that_ends_without_a_move_is_told_on_the_same_path_with_its_length() {
    for (kind, gone) in [(UdpDirect, ms(100)), (TcpReverse, ms(1_000)), (TcpReverse, ms(10_000))] {
        let (echo, stall) = outage(kind, gone);
        for end in &echo.pair.ends {
            assert_eq!(end.moves.len(), 1, "the first only: {:?}", end.moves);
            let told: Vec<_> = end.recovered.iter().filter(|(_, told)| *told >= gone).collect();
            let [(to, told)] = told[..] else { panic!("told once: {:?}", end.recovered) };
            assert_eq!(*to, kind);
            assert!(*told <= stall + ms(40), "{told:?} of {stall:?}");
            let last = *end.session.figures(echo.pair.now).moves.last().unwrap();
            assert_eq!((last.from, last.to), (Some(kind), kind));
            assert_eq!((last.cause, last.stall), (MoveCause::Recovered, *told));
        }
    }
}

#[test]
fn a_silence_that_holds_up_no_bytes_is_no_stall() {
    let mut pair = Pair::new(&SessionConfig::default());
    pair.link_of(TcpReverse, jittery(20), NOW);
    let mut echo = Echo::new(pair, ms(20));
    echo.run(ms(1_000));
    let mut pair = echo.pair;
    pair.run(ms(1_000));
    [CLIENT, AGENT].into_iter().for_each(|end| pair.blackhole(0, end));
    pair.run(ms(10_000));
    pair.heal(0, ms(5));
    pair.run(ms(1_000));
    assert!(pair.ends.iter().all(|end| end.recovered.is_empty()));
}

#[test]
fn stalls_without_a_move_push_no_move_out_of_the_timeline() {
    let (mut echo, _) = outage(TcpReverse, ms(300));
    for _ in 0..40 {
        [CLIENT, AGENT].into_iter().for_each(|end| echo.pair.blackhole(0, end));
        echo.run(ms(1_000));
        echo.pair.heal(0, ms(5));
        echo.run(ms(1_000));
    }
    let end = &echo.pair.ends[CLIENT];
    let moves = end.session.figures(echo.pair.now).moves;
    assert_eq!(moves[0].cause, MoveCause::First);
    assert_eq!(moves.len(), 1 + 16, "{} were told", end.recovered.len());
    assert!(end.recovered.len() > 16 && moves.is_sorted_by_key(|it| it.at));
}

fn flow(pair: &mut Pair) -> ChannelId {
    let channel = pair.ends[CLIENT].session.open_datagrams().unwrap();
    pair.settle();
    channel
}

fn throw(pair: &mut Pair, channel: ChannelId, len: usize) {
    let bytes = Bytes::from(vec![7; len]);
    pair.ends[CLIENT].session.send_datagram(channel, bytes).unwrap();
    pair.settle();
}

/// Lengths of the datagrams the agent has.
fn caught(pair: &mut Pair, channel: ChannelId) -> Vec<usize> {
    let session = &mut pair.ends[AGENT].session;
    std::iter::from_fn(|| session.read_datagram(channel).ok().flatten())
        .map(|one| one.len())
        .collect()
}

#[test]
fn datagrams_of_any_size_pass_with_and_without_udp() {
    for kind in [TcpReverse, UdpDirect] {
        let mut pair = Pair::new(&SessionConfig::default());
        pair.link_of(kind, Weather::fair(ms(10)), NOW);
        let channel = flow(&mut pair);
        [0, 1, 1_000, 1_193, DATAGRAM_MAX]
            .into_iter()
            .for_each(|len| throw(&mut pair, channel, len));
        pair.run(ms(100));
        assert!(pair.ends[AGENT].datagrams.contains_key(&channel));
        let mut lengths = caught(&mut pair, channel);
        lengths.sort_unstable();
        assert_eq!(lengths, [0, 1, 1_000, 1_193, DATAGRAM_MAX], "{kind:?}");
        let long = Bytes::from(vec![0; DATAGRAM_MAX + 1]);
        let refused = pair.ends[CLIENT].session.send_datagram(channel, long);
        assert_eq!(refused, Err(DatagramError::TooLong));
    }
}

#[test]
fn datagrams_without_a_leg_are_bounded_and_the_newest_win() {
    let mut pair = Pair::new(&SessionConfig::default());
    let channel = flow(&mut pair);
    (0..1_000).for_each(|len| throw(&mut pair, channel, len % 1_000));
    pair.link_of(UdpDirect, Weather::fair(ms(10)), NOW);
    pair.run(ms(100));
    let lengths = caught(&mut pair, channel);
    assert!(lengths.len() <= 256 && lengths.contains(&999) && !lengths.contains(&0));
    assert!(pair.ends[CLIENT].session.figures(pair.now).datagrams_dropped >= 700);
}

#[test]
fn a_flow_that_either_end_drops_is_over_for_both_and_forgotten() {
    let mut pair = Pair::new(&SessionConfig::default());
    pair.link_of(UdpDirect, Weather::fair(ms(10)), NOW);
    let channel = flow(&mut pair);
    throw(&mut pair, channel, 10);
    pair.run(ms(50));
    pair.ends[AGENT].session.release(channel);
    pair.settle();
    pair.run(ms(50));
    let sent = pair.ends[CLIENT].session.send_datagram(channel, Bytes::from_static(b"x"));
    assert!(matches!(sent, Err(DatagramError::Ended(_))));
    pair.ends[CLIENT].session.release(channel);
    pair.run(ms(100));
    assert!(pair.ends.iter().all(|end| end.session.figures(pair.now).channels == 0));
}

fn data(channel: u32, offset: u64, text: &'static [u8]) -> Frame {
    let bytes = Bytes::from_static(text);
    Frame::Data { channel: id(channel), offset, bytes, mark: Mark::Original }
}

fn events(session: &mut Session) -> Vec<Event> {
    std::iter::from_fn(|| session.poll_event()).collect()
}

#[test]
fn frames_that_overtake_the_hello_of_a_udp_leg_wait_for_it() {
    let (mut session, now) = (agent(), Instant::now());
    let leg = session.attach(now, UdpDirect);
    session.handle_frame(now, leg, data(3, 0, b"later"));
    session.handle_frame(now, leg, data(1, 0, b"first"));
    assert!(events(&mut session).is_empty());
    session.handle_frame(now, leg, Frame::Hello(hello()));
    let told = events(&mut session);
    let incoming: Vec<_> = told.iter().filter(|e| matches!(e, Event::Incoming(_))).collect();
    assert_eq!(incoming, [&Event::Incoming(id(3)), &Event::Incoming(id(1))]);
}

#[test]
fn what_overtakes_a_hello_is_bounded_and_costs_the_leg_alone() {
    let (mut session, now) = (agent(), Instant::now());
    let leg = session.attach(now, UdpDirect);
    for step in 0..100_000 {
        session.handle_frame(now, leg, data(1, step, b"x"));
    }
    let told = events(&mut session);
    assert!(matches!(told[..], [Event::LegLost { .. }]), "{told:?}");
}

#[test]
fn a_channel_overtaken_by_later_ones_is_announced_as_what_it_is() {
    let (mut session, now) = (agent(), Instant::now());
    let leg = session.attach(now, UdpDirect);
    session.handle_frame(now, leg, Frame::Hello(hello()));
    events(&mut session);
    session.handle_frame(now, leg, data(5, 0, b"x"));
    assert_eq!(events(&mut session), [Event::Incoming(id(5))]);
    session.handle_frame(now, leg, Frame::Open { channel: id(3), limit: 0, datagrams: true });
    assert_eq!(events(&mut session), [Event::IncomingDatagrams(id(3))]);
    session.handle_frame(now, leg, data(1, 0, b"x"));
    assert_eq!(events(&mut session), [Event::Incoming(id(1))]);
}

#[test]
fn a_close_that_overtakes_bytes_waits_for_them() {
    let (mut session, now) = (agent(), Instant::now());
    let leg = session.attach(now, UdpDirect);
    session.handle_frame(now, leg, Frame::Hello(hello()));
    let frame = data(1, 0, b"the last words");
    let after = frame.wire_len() as u64;
    session.handle_frame(now, leg, Frame::Close { code: 0, after });
    assert!(!session.is_closed());
    session.handle_frame(now, leg, frame);
    assert_eq!(events(&mut session).last(), Some(&Event::Closed(CloseReason::ByPeer(0))));
}

#[test]
fn a_close_on_an_idle_leg_cuts_off_nothing_that_another_still_carries() {
    let mut pair = Pair::new(&SessionConfig::default());
    pair.link_of(TcpReverse, Weather::fair(ms(30)), NOW);
    let direct = pair.link_of(UdpDirect, Weather::fair(ms(20)), NOW);
    pair.run(ms(500));
    assert_eq!(pair.ends[CLIENT].session.figures(pair.now).leg, Some(UdpDirect));
    let channel = pair.open(CLIENT).unwrap();
    // The direct path grows a queue just now.
    pair.links[direct].weather.delay = ms(150);
    assert_eq!(pair.write(CLIENT, channel, 40_000), 40_000);
    pair.finish(CLIENT, channel);
    let now = pair.now;
    pair.ends[CLIENT].session.close(now, 0);
    pair.settle();
    assert_eq!(pair.ends[CLIENT].closed, None, "bytes are on their way");
    pair.run(ms(600));
    pair.read(AGENT, channel);
    assert_eq!(pair.ends[AGENT].streams[&channel].read, 40_000);
    assert_eq!(pair.ends[CLIENT].closed, Some(CloseReason::ByUs(0)));
    assert_eq!(pair.ends[AGENT].closed, Some(CloseReason::ByPeer(0)));
}

#[test]
fn a_close_waits_no_longer_than_it_may_for_a_leg_that_is_deaf() {
    let config = SessionConfig::default();
    let mut pair = Pair::new(&config);
    for kind in [TcpReverse, UdpDirect] {
        pair.link_of(kind, Weather::fair(ms(20)), NOW);
    }
    pair.run(ms(500));
    let channel = pair.open(CLIENT).unwrap();
    (0..2).for_each(|link| pair.blackhole(link, CLIENT));
    pair.write(CLIENT, channel, 1000);
    let now = pair.now;
    pair.ends[CLIENT].session.close(now, 0);
    pair.settle();
    pair.run(config.close_within);
    assert_eq!(pair.ends[CLIENT].closed, Some(CloseReason::ByUs(0)));
}

#[test]
fn the_first_flight_on_a_leg_that_never_begins_leaves_again_on_the_first_that_does() {
    let mut pair = Pair::new(&SessionConfig::default());
    pair.link_of(UdpDirect, Weather::fair(ms(10)), NOW);
    (0..2).for_each(|end| pair.blackhole(0, end));
    let channel = pair.open(CLIENT).unwrap();
    assert_eq!(pair.write(CLIENT, channel, 1000), 1000);
    pair.finish(CLIENT, channel);
    pair.run(ms(5));
    pair.link_of(TcpReverse, Weather::fair(ms(20)), NOW);
    pair.run(ms(100));
    pair.read(AGENT, channel);
    assert_eq!(pair.ends[AGENT].streams[&channel].read, 1000);
}

#[test]
fn a_leg_that_cannot_write_remembers_few_of_the_channels_that_come_and_go() {
    let mut leg = super::leg::Leg::new(Instant::now(), TcpReverse);
    (1..100_000).for_each(|n| leg.echoes(id(n)));
    leg.check_bounds();
    assert!(leg.take_echo().contains(&id(99_999)), "the newest are kept");
}

#[test]
fn word_that_a_channel_is_over_goes_back_where_it_was_asked_for() {
    // Found by the random story: the agent takes a leg that is deaf on its way back for the newest there is.
    let mut pair = Pair::new(&SessionConfig::default());
    pair.skewed_link(NOW, ms(121));
    pair.link(NOW);
    pair.blackhole(0, AGENT);
    let channel = pair.open(CLIENT).unwrap();
    pair.run(ms(121));
    pair.release(AGENT, channel);
    pair.reset(CLIENT, channel, 7);
    pair.release(CLIENT, channel);
    pair.run(Duration::from_secs(2));
    assert!(pair.ends.iter().all(|end| end.session.figures(pair.now).channels == 0));
}

/// Steps of the random story: `SESSION_STEPS`, or enough for a daily run.
fn steps() -> u64 {
    std::env::var("SESSION_STEPS").ok().and_then(|text| text.parse().ok()).unwrap_or(300_000)
}

fn random_weather(random: &mut StdRng) -> Weather {
    Weather {
        delay: ms(random.random_range(0..150)),
        jitter: ms(random.random_range(0..20)),
        loss: if random.random_bool(0.5) { 0.0 } else { random.random_range(0.0..15.0) },
        doubles: random.random_range(0.0..5.0),
        rate: random.random_bool(0.3).then(|| random.random_range(50_000..5_000_000)),
        swallows: None,
    }
}

/// True when something happened to a path.
fn random_step(pair: &mut Pair, random: &mut StdRng) -> bool {
    let end = random.random_range(0..2);
    let kinds = [TcpReverse, UdpDirect, UdpRelay, LegKind::UdpManaged];
    let link = pair.links.len().checked_sub(1 + random.random_range(0..4));
    let streams: Vec<_> = pair.ends[end].streams.keys().copied().collect();
    let stream = streams.get(random.random_range(0..streams.len().max(1))).copied();
    let step = random.random_range(0..100);
    match (step, link, stream) {
        (0..3, ..) if pair.live_links() < 5 => {
            let skew = ms(if random.random_bool(0.8) { 0 } else { random.random_range(0..500) });
            pair.link_of(kinds[random.random_range(0..4)], random_weather(random), skew);
        }
        (3..4, Some(link), _) => {
            pair.cut(link, end);
            if random.random_bool(0.7) {
                pair.cut(link, 1 - end);
            }
        }
        (4..6, Some(link), _) => {
            pair.blackhole(link, end);
            if random.random_bool(0.6) {
                pair.blackhole(link, 1 - end);
            }
        }
        (6..10, Some(link), _) => pair.heal(link, ms(random.random_range(0..300))),
        (10..11, Some(link), _) => pair.links[link].weather = random_weather(random),
        (11..13, ..) if streams.len() < 8 => drop(pair.open(end)),
        (13..45, _, Some(id)) => {
            let big = random.random_bool(0.1);
            pair.write(end, id, random.random_range(1..if big { 200_000 } else { 300 }));
        }
        (45..75, _, Some(id)) => pair.read(end, id),
        (75..77, ..) => pair.run(ms(random.random_range(0..3_000))),
        _ => pair.run(ms(random.random_range(0..40))),
    }
    step < 11 && link.is_some()
}

/// Every stream is finished and read to its end over one good leg.
fn settle_all(pair: &mut Pair, seed: u64) {
    pair.link_of(TcpReverse, Weather::fair(ms(10)), NOW);
    for _ in 0..3_000 {
        for end in [CLIENT, AGENT] {
            let ids: Vec<_> = pair.ends[end].streams.keys().copied().collect();
            ids.into_iter()
                .filter(|id| !pair.ends[end].streams[id].finished)
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|id| pair.finish(end, id));
        }
        pair.run(ms(50));
        pair.read_all();
        if pair.ends.iter().all(|end| end.streams.values().all(|one| one.ended)) {
            return;
        }
    }
    let hanging = pair.ends.iter().flat_map(|end| end.streams.values()).filter(|one| !one.ended);
    panic!("seed {seed}: {} streams hang", hanging.count());
}

#[test]
fn every_byte_arrives_once_over_many_legs_that_lose_move_and_die() {
    const STORY: u64 = 1_000;
    let (stories, mut bytes, mut events) = (steps().div_ceil(STORY), 0, 0_u64);
    for seed in 0..stories {
        let config = SessionConfig {
            resume_window: Duration::from_secs(1_000_000),
            ..SessionConfig::default()
        };
        let mut random = StdRng::seed_from_u64(seed);
        let mut pair = Pair::seeded(&config, seed);
        events += (0..STORY).filter(|_| random_step(&mut pair, &mut random)).count() as u64;
        settle_all(&mut pair, seed);
        for end in &pair.ends {
            assert_eq!(end.closed, None, "seed {seed}");
        }
        let read = |end: &super::pair::End| end.streams.values().map(|one| one.read).sum::<u64>();
        bytes += pair.ends.iter().map(read).sum::<u64>();
    }
    println!(
        "{} random steps, {events} of them changes of a path, in {stories} stories: {bytes} bytes, each once and in order",
        stories * STORY
    );
}

/// An echo on TCP at 60 ms that gets a direct leg at 50 ms, whose agent's end is up when the client's last packet of the
/// handshake has come. Also the first message sent after that.
fn gets_direct(hole: bool) -> (Echo, usize) {
    let mut pair = Pair::new(&SessionConfig::default());
    pair.link_of(TcpReverse, Weather::fair(ms(30)), NOW);
    let mut echo = Echo::new(pair, ms(5));
    echo.run(ms(300));
    let direct = echo.pair.link_of(UdpDirect, Weather::fair(ms(25)), ms(25));
    if hole {
        [CLIENT, AGENT].into_iter().for_each(|end| echo.pair.blackhole(direct, end));
    }
    let first = echo.sent.len();
    echo.run(ms(700));
    (echo, first)
}

#[test]
fn a_better_udp_leg_carries_at_once_both_ways_without_waiting_for_the_peers_hello() {
    let (echo, first) = gets_direct(false);
    let slowest = *echo.latencies(first).last().unwrap();
    assert!(slowest <= ms(50 + 3), "{slowest:?}");
    for end in &echo.pair.ends {
        let to: Vec<_> = end.moves.iter().map(|(to, ..)| *to).collect();
        assert_eq!(to, [TcpReverse, UdpDirect]);
    }
}

#[test]
fn what_a_new_tcp_leg_holds_back_delays_nothing_on_the_udp_leg_that_follows() {
    let mut pair = Pair::new(&SessionConfig::default());
    let tcp = pair.link_of(TcpReverse, Weather::fair(ms(30)), NOW);
    let mut echo = Echo::new(pair, ms(5));
    echo.run(ms(40));
    // Its first ten segments have left: the rest waits for a round trip more.
    echo.pair.set_delay(tcp, ms(90));
    echo.run(ms(10));
    echo.pair.link_of(UdpDirect, Weather::fair(ms(25)), ms(25));
    let first = echo.sent.len();
    echo.run(ms(500));
    let slowest = *echo.latencies(first).last().unwrap();
    assert!(slowest <= ms(50 + 3), "{slowest:?}");
}

#[test]
fn a_leg_that_swallows_all_before_its_hello_is_left_like_any_other() {
    let (echo, first) = gets_direct(true);
    let slowest = *echo.latencies(first).last().unwrap();
    assert!(slowest <= ms(3 * 50 + 10), "{slowest:?}");
    assert_eq!(echo.leg(), Some(TcpReverse));
}

#[test]
fn a_paused_session_goes_on_with_a_new_leg_without_waiting_for_the_peers_hello() {
    let mut pair = Pair::new(&SessionConfig::default());
    let old = pair.link(ms(30));
    let channel = pair.open(CLIENT).unwrap();
    pair.run(ms(200));
    [CLIENT, AGENT].into_iter().for_each(|end| pair.cut(old, end));
    pair.write(CLIENT, channel, MESSAGE);
    pair.run(ms(100));
    pair.link(ms(30));
    pair.run(ms(31));
    pair.read(AGENT, channel);
    assert_eq!(pair.ends[AGENT].streams[&channel].read, MESSAGE);
    pair.run(ms(100));
    assert_eq!(pair.ends[CLIENT].resumes, 2, "told once the peer was heard");
}

#[test]
fn before_the_peers_hello_a_later_leg_is_given_no_more_than_a_first_flight() {
    let mut pair = Pair::new(&SessionConfig::default());
    let old = pair.link(ms(30));
    let channel = pair.open(CLIENT).unwrap();
    pair.write(CLIENT, channel, MESSAGE);
    pair.run(ms(200));
    pair.write(CLIENT, channel, 200_000);
    [CLIENT, AGENT].into_iter().for_each(|end| pair.cut(old, end));
    let before = pair.carried;
    pair.link(ms(30));
    pair.run(ms(29));
    let early = pair.carried - before;
    assert!((50_000..=64 * 1024 + 20_000).contains(&early), "{early}");
    pair.run(ms(300));
    pair.read(AGENT, channel);
    assert_eq!(pair.ends[AGENT].streams[&channel].read, MESSAGE + 200_000);
}

#[test]
fn first_legs_of_two_kinds_may_come_in_any_order_and_the_better_one_carries() {
    for (tcp, udp) in [(0, 40), (12, 0), (40, 0), (0, 0)] {
        let mut pair = Pair::new(&SessionConfig::default());
        // The agent's ends are up when the client's last packets of the handshakes have come.
        let attach = |pair: &mut Pair, after: u64, other: u64, kind, delay: u64| {
            if after > other {
                pair.run(ms(after - other));
            }
            pair.link_of(kind, Weather::fair(ms(delay)), ms(delay));
        };
        if tcp <= udp {
            attach(&mut pair, tcp, 0, TcpReverse, 30);
            attach(&mut pair, udp, tcp, UdpDirect, 25);
        } else {
            attach(&mut pair, udp, 0, UdpDirect, 25);
            attach(&mut pair, tcp, udp, TcpReverse, 30);
        }
        let mut echo = Echo::new(pair, ms(5));
        echo.run(Duration::from_secs(3));
        for end in &echo.pair.ends {
            assert_eq!(end.moves.last().map(|(to, ..)| *to), Some(UdpDirect), "{tcp} {udp}");
            assert!(end.moves.len() <= 2, "{tcp} {udp}: {:?}", end.moves);
        }
        let slowest = *echo.latencies(40).last().unwrap();
        assert!(slowest <= ms(50 + 3), "{tcp} {udp}: {slowest:?}");
    }
}

#[test]
fn doubt_is_raised_again_ever_more_rarely_while_nothing_carries_the_session_and_then_no_more() {
    let mut pair = Pair::new(&SessionConfig::default());
    let dead = pair.link(ms(20));
    let channel = pair.open(CLIENT).unwrap();
    pair.write(CLIENT, channel, MESSAGE);
    pair.run(ms(500));
    assert!(pair.ends.iter().all(|end| end.doubts.is_empty()));
    [CLIENT, AGENT].into_iter().for_each(|end| pair.blackhole(dead, end));
    let since = pair.now;
    pair.write(CLIENT, channel, MESSAGE);
    // First the leg is suspect, then it is given up and the session is paused.
    pair.run(Duration::from_secs(55));
    assert_eq!(pair.ends[CLIENT].downs, 1);
    for end in &pair.ends {
        let pauses: Vec<_> = end.doubts.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(8)), "{pauses:?}");
        let (soon, all) = (since + Duration::from_secs(35), end.doubts.len());
        assert!(end.doubts[0] < soon && (6..20).contains(&all), "{:?}", end.doubts);
    }
    pair.link(ms(20));
    pair.run(Duration::from_secs(9));
    let told = pair.ends[CLIENT].doubts.len();
    pair.run(Duration::from_secs(60));
    assert_eq!(pair.ends[CLIENT].doubts.len(), told);
    pair.read(AGENT, channel);
    assert_eq!(pair.ends[AGENT].streams[&channel].read, 2 * MESSAGE);
}

#[test]
fn a_leg_that_falls_silent_before_its_hello_is_replaced_after_two_seconds() {
    let mut pair = Pair::new(&SessionConfig::default());
    let dead = pair.link(ms(20));
    [CLIENT, AGENT].into_iter().for_each(|end| pair.blackhole(dead, end));
    pair.run(ms(1_900));
    assert!(pair.ends[CLIENT].suspects.is_empty());
    pair.run(ms(200));
    assert_eq!(pair.ends[CLIENT].suspects, [pair.leg(dead, CLIENT).unwrap()]);
}

#[test]
fn what_a_leg_in_quarantine_had_to_carry_leaves_again_when_another_takes_over() {
    let mut pair = Pair::new(&SessionConfig::default());
    let tcp = pair.link_of(TcpReverse, jittery(30), NOW);
    let direct = pair.link_of(UdpDirect, jittery(20), NOW);
    let mut echo = Echo::new(pair, ms(10));
    echo.run(Duration::from_secs(2));
    assert_eq!(echo.leg(), Some(UdpDirect));
    [CLIENT, AGENT].into_iter().for_each(|end| echo.pair.blackhole(direct, end));
    echo.run(ms(600));
    assert_eq!(echo.leg(), Some(TcpReverse));
    echo.pair.heal(direct, ms(20));
    echo.run(ms(200));
    [CLIENT, AGENT].into_iter().for_each(|end| echo.pair.cut(tcp, end));
    echo.run(ms(200));
    assert_eq!(echo.leg(), Some(UdpDirect), "there is no other");
    [CLIENT, AGENT].into_iter().for_each(|end| echo.pair.blackhole(direct, end));
    let cut = echo.pair.now;
    echo.run(ms(100));
    echo.pair.link_of(TcpReverse, jittery(30), NOW);
    echo.run(Duration::from_secs(3));
    assert_eq!(echo.leg(), Some(TcpReverse));
    assert!(echo.stall(cut) < ms(400), "{:?}", echo.stall(cut));
}

#[test]
fn an_idle_session_is_back_on_a_healed_direct_path_within_seconds() {
    for (dead, seed) in [2, 5, 12, 25].into_iter().zip(0..) {
        let mut pair = Pair::seeded(&SessionConfig::default(), seed);
        pair.link_of(TcpReverse, jittery(20), NOW);
        let direct = pair.link_of(UdpDirect, jittery(20), NOW);
        let mut echo = Echo::new(pair, ms(5));
        echo.run(Duration::from_secs(3));
        assert_eq!(echo.leg(), Some(UdpDirect));
        [CLIENT, AGENT].into_iter().for_each(|end| echo.pair.blackhole(direct, end));
        echo.run(ms(500));
        assert_eq!(echo.leg(), Some(TcpReverse));
        // Nobody says anything any more; the transport's own probe finds that it is well again, and what was lost.
        echo.pair.run(Duration::from_secs(dead));
        echo.pair.heal(direct, ms(100));
        echo.pair.finds_lost(direct, 60);
        let healed = echo.pair.now;
        while echo.leg() != Some(UdpDirect) {
            echo.pair.run(ms(100));
            let took = echo.pair.now - healed;
            assert!(took < Duration::from_secs(8), "{dead} s dead: {took:?}");
        }
        echo.pair.run(Duration::from_secs(60));
        assert_eq!(echo.leg(), Some(UdpDirect), "{dead} s dead: it stays there");
    }
}

#[test]
fn keepalives_lost_while_nothing_is_said_demote_nothing() {
    for quiet in [1, 8, 25] {
        let mut pair = Pair::new(&SessionConfig::default());
        pair.link_of(TcpReverse, Weather::fair(ms(20)), NOW);
        let direct = pair.link_of(UdpDirect, Weather::fair(ms(10)), NOW);
        let mut echo = Echo::new(pair, ms(20));
        echo.run(Duration::from_secs(3));
        echo.pair.run(Duration::from_secs(2));
        let before = echo.pair.ends.each_ref().map(|end| end.moves.len());
        [CLIENT, AGENT].into_iter().for_each(|end| echo.pair.blackhole(direct, end));
        echo.pair.run(Duration::from_secs(quiet));
        echo.pair.heal(direct, ms(200));
        echo.pair.finds_lost(direct, 3);
        assert_eq!(echo.leg(), Some(UdpDirect), "{quiet} s");
        echo.run(Duration::from_secs(30));
        assert_eq!(echo.leg(), Some(UdpDirect), "{quiet} s");
        let moves = echo.pair.ends.each_ref().map(|end| end.moves.clone());
        assert_eq!(moves.each_ref().map(Vec::len), before, "{quiet} s: {moves:?}");
    }
}

#[test]
fn legs_that_are_as_good_as_each_other_do_not_take_turns() {
    for seed in 0..6 {
        let mut pair = Pair::seeded(&SessionConfig::default(), seed);
        let fair = |jitter| Weather { jitter: ms(jitter), ..Weather::fair(ms(20)) };
        pair.link_of(TcpReverse, fair(3), NOW);
        pair.link_of(if seed % 2 == 0 { UdpRelay } else { UdpDirect }, fair(3), NOW);
        let mut echo = Echo::new(pair, ms(50));
        echo.run(Duration::from_secs(5));
        let before = echo.pair.ends.each_ref().map(|end| end.moves.len());
        echo.run(Duration::from_secs(120));
        for (end, before) in echo.pair.ends.iter().zip(before) {
            assert!(end.moves.len() <= before + 1, "seed {seed}: {:?}", end.moves);
        }
    }
}

#[test]
fn a_network_that_is_gone_for_a_while_costs_one_leg_and_not_those_that_may_come_back() {
    for broke in [false, true] {
        let mut pair = Pair::new(&SessionConfig::default());
        let tcp = pair.link(ms(20));
        let udp = pair.link_of(UdpDirect, Weather::fair(ms(20)), NOW);
        let channel = pair.open(CLIENT).unwrap();
        pair.write(CLIENT, channel, MESSAGE);
        pair.run(ms(500));
        for end in [CLIENT, AGENT] {
            [tcp, udp].into_iter().for_each(|link| pair.blackhole(link, end));
        }
        pair.write(CLIENT, channel, MESSAGE);
        pair.run(Duration::from_secs(9));
        let (leg, now) = (pair.leg(tcp, CLIENT).unwrap(), pair.now);
        let session = &mut pair.ends[CLIENT].session;
        if broke {
            session.detach(now, leg, "Connection reset by peer");
        } else {
            session.give_up(now, leg, "Network is unreachable");
        }
        pair.run(ms(10));
        assert_eq!(pair.leg(udp, CLIENT).is_none(), broke, "only the peer's end ends both");
    }
}

#[test]
fn a_leg_that_takes_the_place_of_another_carries_all_and_the_other_can_be_let_go() {
    let mut echo = Echo::new(Pair::new(&SessionConfig::default()), ms(5));
    let old = echo.pair.link(ms(10));
    echo.run(ms(1000));
    // The new one is slower: it is not chosen for its own sake.
    let new = echo.pair.link(ms(40));
    let (from, first) = (echo.pair.now, echo.sent.len());
    for end in [CLIENT, AGENT] {
        let (now, leg) = (echo.pair.now, echo.pair.leg(new, end).unwrap());
        echo.pair.ends[end].session.supersede(now, leg);
    }
    echo.run(ms(2000));
    let slowest = *echo.latencies(first).last().unwrap();
    assert!(slowest <= ms(100), "nothing waited for more than the new way takes: {slowest:?}");
    assert!(echo.stall(from) <= ms(100), "{:?}", echo.stall(from));
    for end in [CLIENT, AGENT] {
        let (now, leg) = (echo.pair.now, echo.pair.leg(old, end).unwrap());
        assert!(echo.pair.ends[end].session.let_go(now, leg), "end {end}");
    }
}
