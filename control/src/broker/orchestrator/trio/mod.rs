//! A client, a broker with its gateway and an agent in one virtual time: what each decides is the real thing, what carries
//! it from one to the other is not.
//!
//! Real: the orchestrator, and the credentials it mints; both ends' session cores, ICE finders and address keepers; NATs
//! that map and filter every datagram, of checks and of legs alike. Simulated: links and pairs are wires with a delay that
//! keep the order, the gateway joins the legs of a pair and answers STUN, and QUIC is a connection that sends again what was
//! lost and ends when it hears nothing for QUIC's idle time. Left out: seals and tickets,
//! as the orchestrator is asked only what passed them, and relays, which `shortpath/src/path/tests.rs` plays.
mod connection;
mod end;
#[path = "../../../../../shortpath/src/path/lab.rs"]
mod lab;
mod random;
mod wires;
mod world;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use bytes::Bytes;
use switchback_shortpath::LegKind;

use self::lab::{By, NatKind, PortRule};
use self::world::Trio;

const CLIENT: usize = 0;
const AGENT: usize = 1;
const STUN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 443));
/// Bytes of the application's messages.
const MESSAGE: usize = 64;
/// quinn's, as the endpoints set them.
const KEEPALIVE: Duration = Duration::from_secs(1);
const QUIC_IDLE: Duration = Duration::from_secs(30);
const QUIC_HANDSHAKE: Duration = Duration::from_secs(5);

fn content(offset: u64, count: usize) -> Bytes {
    let byte = |at: u64| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    (offset..).take(count).map(byte).collect()
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Ends 10 ms from the gateway and, as the NATs are there too, 20 ms from each other.
const DELAY: Duration = ms(10);

fn cone() -> Option<NatKind> {
    Some(NatKind::new(By::Nothing, By::AddressAndPort, PortRule::Keep))
}

fn address_restricted() -> Option<NatKind> {
    Some(NatKind::new(By::Nothing, By::Address, PortRule::Random))
}

fn symmetric() -> Option<NatKind> {
    Some(NatKind::new(By::AddressAndPort, By::AddressAndPort, PortRule::Random))
}

fn sequential() -> Option<NatKind> {
    Some(NatKind::new(By::AddressAndPort, By::AddressAndPort, PortRule::Sequential))
}

impl Trio {
    fn carried(&self) -> [Option<LegKind>; 2] {
        [CLIENT, AGENT].map(|end| self.ends[end].carried_by(self.net.now))
    }

    /// Until both ends are carried by this; how long that took.
    fn until_on(&mut self, kind: LegKind, limit: Duration) -> Duration {
        let started = self.net.now;
        let there = self.run_until(started + limit, |trio| trio.carried() == [Some(kind); 2]);
        assert!(there, "not on {kind:?} but on {:?}", self.carried());
        self.net.now - started
    }

    /// A session on its direct path.
    fn direct(seed: u64) -> Self {
        let mut trio = Self::new(seed, DELAY, [cone(), cone()]);
        trio.open();
        trio.until_on(LegKind::UdpDirect, Duration::from_secs(2));
        trio.run(ms(500));
        trio
    }

    /// The longest wait of the application since the last time that it was asked for.
    fn longest(&mut self) -> Duration {
        std::mem::take(&mut self.ends[CLIENT].longest)
    }

    /// All that was said has come back by then, byte for byte.
    fn catches_up(&mut self, within: Duration) {
        let (until, sent) = (self.net.now + within, self.ends[CLIENT].sent);
        let back = self.run_until(until, |trio| trio.ends[CLIENT].back >= sent);
        let carried = self.carried();
        assert!(back, "{} of {sent} bytes are back, on {carried:?}", self.ends[CLIENT].back);
        assert!(self.ends.iter().all(|end| !end.closed));
    }

    fn is_known(&self) -> bool {
        let grant = self.ends[CLIENT].grant.as_ref().expect("a session");
        self.broker.session(&grant.session, self.net.now).is_some()
    }
}

#[test]
fn a_session_echoes_over_tcp_first_and_then_directly_without_a_stall() {
    for nats in [[None, None], [cone(), cone()], [address_restricted(), symmetric()]] {
        let mut trio = Trio::new(1, DELAY, nats);
        let asked = trio.net.now;
        trio.open();
        assert!(trio.run_until(asked + Duration::from_secs(2), |trio| trio.ends[CLIENT].back > 0));
        let first = trio.net.now - asked;
        // Granted and offered, the agent's dial, and the echo's own way: five times client - gateway and back.
        assert!(first <= 10 * DELAY, "{first:?}");
        trio.longest();
        trio.until_on(LegKind::UdpDirect, Duration::from_secs(2));
        trio.run(Duration::from_secs(5));
        let longest = trio.longest();
        assert!(longest <= ms(60), "{longest:?}");
        trio.catches_up(ms(200));
    }
}

#[test]
fn where_nats_forbid_the_direct_path_tcp_carries_on() {
    let mut trio = Trio::new(2, DELAY, [symmetric(), sequential()]);
    trio.open();
    trio.until_on(LegKind::TcpReverse, Duration::from_secs(1));
    trio.run(Duration::from_secs(30));
    assert_eq!(trio.carried(), [Some(LegKind::TcpReverse); 2]);
    trio.catches_up(ms(200));
}

#[test]
fn when_udp_dies_tcp_takes_over_within_a_few_round_trips_and_udp_comes_back() {
    for blocked in ["10.0.1.2", "10.0.2.2"] {
        let mut trio = Trio::direct(3);
        trio.longest();
        trio.net.blocked.push(blocked.parse().unwrap());
        trio.until_on(LegKind::TcpReverse, Duration::from_secs(3));
        trio.catches_up(Duration::from_secs(1));
        let longest = trio.longest();
        assert!(longest <= ms(150), "{longest:?}");
        trio.run(Duration::from_secs(20));
        trio.net.blocked.clear();
        trio.until_on(LegKind::UdpDirect, Duration::from_secs(45));
        trio.catches_up(ms(300));
    }
}

#[test]
fn a_broker_restart_in_the_middle_is_no_gap_for_a_session_on_udp() {
    let mut trio = Trio::direct(4);
    trio.longest();
    trio.kill_broker();
    trio.run(Duration::from_secs(5));
    assert_eq!(trio.carried(), [Some(LegKind::UdpDirect); 2]);
    trio.start_broker();
    trio.run(Duration::from_secs(5));
    let longest = trio.longest();
    assert!(longest <= ms(60), "{longest:?}");
    // The new broker has heard of the session, and TCP stands by again.
    assert!(trio.is_known() && trio.ends.iter().all(|end| end.has_tcp()));
    trio.net.blocked.push("10.0.2.2".parse().unwrap());
    trio.until_on(LegKind::TcpReverse, Duration::from_secs(3));
    trio.catches_up(Duration::from_secs(1));
}

#[test]
fn a_session_on_tcp_resumes_after_a_broker_restart() {
    let mut trio = Trio::new(5, DELAY, [symmetric(), symmetric()]);
    trio.open();
    trio.run(Duration::from_secs(2));
    trio.kill_broker();
    trio.run(ms(400));
    trio.start_broker();
    trio.run(ms(2500));
    trio.catches_up(ms(500));
    assert!(trio.is_known());
}

#[test]
fn lost_links_and_cut_pairs_end_no_session() {
    let mut trio = Trio::direct(6);
    for end in [CLIENT, AGENT, CLIENT] {
        trio.lose_link(end);
        trio.run(ms(300));
        trio.cut_pairs();
        trio.run(Duration::from_secs(4));
        assert!(trio.ends.iter().all(|end| end.has_tcp()));
    }
    trio.catches_up(ms(200));
    assert!(trio.is_known());
}

#[test]
fn a_rebound_nat_costs_a_moment_and_the_path_is_direct_again() {
    for inside in ["10.0.1.2", "10.0.2.2"] {
        let mut trio = Trio::new(7, DELAY, [address_restricted(), address_restricted()]);
        trio.open();
        trio.until_on(LegKind::UdpDirect, Duration::from_secs(2));
        trio.run(ms(500));
        trio.longest();
        trio.net.rebind(inside, 0);
        trio.run(Duration::from_secs(30));
        trio.until_on(LegKind::UdpDirect, Duration::from_secs(30));
        let longest = trio.longest();
        assert!(longest <= ms(200), "{longest:?}");
        trio.catches_up(ms(300));
    }
}

#[test]
fn where_an_end_went_while_the_other_had_no_link_is_told_when_that_is_back() {
    let mut trio = Trio::new(8, DELAY, [cone(), address_restricted()]);
    trio.open();
    trio.until_on(LegKind::UdpDirect, Duration::from_secs(2));
    trio.run(ms(500));
    // The agent's new address is of no use to a client that is not told of it, as the client's NAT keeps it out.
    trio.lose_link(CLIENT);
    trio.net.rebind("10.0.2.2", 0);
    trio.until_on(LegKind::TcpReverse, Duration::from_secs(1));
    trio.until_on(LegKind::UdpDirect, Duration::from_secs(5));
    trio.catches_up(ms(300));
}

#[test]
fn after_an_outage_of_all_in_which_nats_bound_anew_the_path_is_found_as_soon_as_links_are_back() {
    let mut trio = Trio::new(9, DELAY, [address_restricted(), address_restricted()]);
    trio.open();
    trio.until_on(LegKind::UdpDirect, Duration::from_secs(2));
    trio.run(ms(500));
    trio.kill_broker();
    ["10.0.1.2", "10.0.2.2"].into_iter().for_each(|inside| trio.net.rebind(inside, 0));
    trio.run(Duration::from_secs(12));
    trio.start_broker();
    trio.until_on(LegKind::UdpDirect, Duration::from_secs(8));
    trio.catches_up(ms(300));
}
