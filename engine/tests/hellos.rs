//! What hellos may expect: bad ones get a named refusal and cost little, foreign connections reach the broker whole, and a
//! shutdown leaves nothing behind. Both backends.
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use support::{Lab, expect_alert, expect_reset, pair_id, read_all, read_exactly};
use switchback_engine::{Cause, GatewayEvent, IoChoice, LegSide, Limits, Phase, Refusal, hello};

on_both_backends![
    garbage_is_refused,
    malformed_hello_is_refused,
    oversized_hello_is_refused_before_it_is_all_here,
    one_byte_at_a_time_is_too_slow,
    silent_connection_is_too_slow,
    truncated_hello_is_counted,
    too_many_hellos_of_one_source_are_refused,
    verdict_of_the_admission_reaches_the_peer,
    refused_peer_that_still_sends_reads_its_alert,
    hello_in_many_pieces_is_understood,
    foreign_connection_is_handed_over_with_its_first_bytes,
    hello_without_a_name_is_foreign,
    leg_without_a_mate_expires,
    leg_that_hangs_up_is_forgotten,
    second_leg_of_a_side_is_a_duplicate,
    third_leg_of_a_running_pair_is_a_duplicate,
    waiting_room_is_bounded_and_mates_still_enter,
    pairs_are_bounded,
    a_full_house_is_refused_at_the_door,
    shutdown_ends_everything_and_leaks_nothing,
    dropped_gateway_frees_its_port,
];

fn lab(io: IoChoice) -> Option<Lab> {
    Lab::start(io, Limits::default())
}

fn garbage_is_refused(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    for garbage in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"SSH-2.0-OpenSSH\r\n", &[0; 3000]] {
        let mut peer = lab.dial();
        peer.write_all(garbage).unwrap();
        expect_alert(&mut peer, Refusal::HelloNotTls);
    }
    assert_eq!(lab.refused(Refusal::HelloNotTls), 3);
    lab.pair(1);
}

fn malformed_hello_is_refused(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let mut bytes = hello::encode("c-1-1000.t", [1; 96]);
    bytes[5] = 2; // a ServerHello
    let mut peer = lab.dial();
    peer.write_all(&bytes).unwrap();
    expect_alert(&mut peer, Refusal::HelloMalformed);
    assert_eq!(lab.refused(Refusal::HelloMalformed), 1);
}

fn oversized_hello_is_refused_before_it_is_all_here(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let mut peer = lab.dial();
    peer.write_all(&[22, 3, 1, 0x40, 0, 1, 0, 0x90, 0]).unwrap(); // a handshake message of 36 KiB
    expect_alert(&mut peer, Refusal::HelloTooLarge);
    assert_eq!(lab.refused(Refusal::HelloTooLarge), 1);
}

fn one_byte_at_a_time_is_too_slow(io: IoChoice) {
    let limits = Limits { hello_deadline: Duration::from_millis(400), ..Limits::default() };
    let Some(lab) = Lab::start(io, limits) else { return };
    let (mut peer, begun) = (lab.dial(), Instant::now());
    for byte in hello::encode("c-1-1000.t", [1; 96]) {
        if lab.refused(Refusal::HelloTimeout) > 0 || peer.write_all(&[byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "the deadline is total, not per read");
    assert_eq!(read_alert(&mut peer), Some(Refusal::HelloTimeout));
    lab.eventually("nothing is in flight", |gateway| gateway.metrics().hellos_in_flight == 0);
}

fn silent_connection_is_too_slow(io: IoChoice) {
    let limits = Limits { hello_deadline: Duration::from_millis(200), ..Limits::default() };
    let Some(lab) = Lab::start(io, limits) else { return };
    let mut peer = lab.dial();
    lab.eventually("it is counted", |gateway| gateway.metrics().hellos_in_flight == 1);
    expect_alert(&mut peer, Refusal::HelloTimeout);
    assert_eq!(lab.refused(Refusal::HelloTimeout), 1);
}

/// The alert at the front of what the peer gets, whatever comes after it.
fn read_alert(peer: &mut TcpStream) -> Option<Refusal> {
    let mut alert = [0; 7];
    peer.read_exact(&mut alert).ok()?;
    assert_eq!(alert[..6], [21, 3, 3, 0, 2, 2]);
    Refusal::from_alert(alert[6])
}

fn truncated_hello_is_counted(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let bytes = hello::encode("c-1-1000.t", [1; 96]);
    for cut in [0, 1, 100] {
        let mut peer = lab.dial();
        peer.write_all(&bytes[..cut]).unwrap();
    }
    let mut peer = lab.dial();
    peer.write_all(&bytes[..50]).unwrap();
    support::reset(peer);
    lab.eventually("all four are counted", |gateway| {
        gateway.metrics().refused.contains(&(Refusal::HelloTruncated, 4))
    });
}

fn too_many_hellos_of_one_source_are_refused(io: IoChoice) {
    let limits = Limits { hellos_per_source_max: 3, ..Limits::default() };
    let Some(lab) = Lab::start(io, limits) else { return };
    let idle: Vec<_> = (0..3).map(|_| lab.dial()).collect();
    lab.eventually("three are in flight", |gateway| gateway.metrics().hellos_in_flight == 3);
    let mut fourth = lab.dial();
    fourth.write_all(&[22, 3]).unwrap();
    expect_alert(&mut fourth, Refusal::HelloLimit);
    drop(idle);
    lab.eventually("they are gone", |gateway| gateway.metrics().hellos_in_flight == 0);
    lab.pair(1);
}

fn verdict_of_the_admission_reaches_the_peer(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let (mut peer, _) = lab.present("refused.t");
    expect_alert(&mut peer, Refusal::TicketExpired);
    assert_eq!(lab.refused(Refusal::TicketExpired), 1);
}

fn refused_peer_that_still_sends_reads_its_alert(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    for _ in 0..20 {
        let (mut peer, _) = lab.present("refused.t");
        peer.write_all(&[23; 5000]).unwrap(); // what the gateway never asked for
        assert_eq!(read_alert(&mut peer), Some(Refusal::TicketExpired));
    }
}

fn hello_in_many_pieces_is_understood(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let bytes = hello::encode("c-1-20000.t", [1; 96]);
    let mut client = lab.dial();
    for piece in bytes.chunks(40) {
        client.write_all(piece).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut agent = lab.agent(1);
    assert_eq!(read_exactly(&mut agent, bytes.len()), bytes);
}

fn foreign_connection_is_handed_over_with_its_first_bytes(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let (mut peer, hello) = lab.present("broker.example");
    let handed = lab.foreign.recv_timeout(support::PATIENCE).unwrap();
    assert_eq!(handed.peer, peer.local_addr().unwrap());
    assert_eq!(handed.head, hello);
    let mut stream = handed.stream;
    assert!(
        matches!(stream.read(&mut [0]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock),
        "non-blocking"
    );
    stream.write_all(b"hello from the broker").unwrap();
    peer.write_all(b"more").unwrap();
    stream.set_nonblocking(false).unwrap();
    assert_eq!(read_exactly(&mut stream, 4), b"more");
    drop(stream);
    assert_eq!(read_all(&mut peer), b"hello from the broker");
    assert_eq!(lab.gateway.metrics().foreign, 1);
}

fn hello_without_a_name_is_foreign(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let mut bytes = vec![22, 3, 1, 0, 45, 1, 0, 0, 41, 3, 3];
    bytes.extend_from_slice(&[9; 32]);
    bytes.extend_from_slice(&[0, 0, 2, 0x13, 1, 1, 0]); // no session id, one suite, no compression, no extensions
    let mut peer = lab.dial();
    peer.write_all(&bytes).unwrap();
    assert_eq!(lab.foreign.recv_timeout(support::PATIENCE).unwrap().head, bytes);
}

fn leg_without_a_mate_expires(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let (mut peer, _) = lab.present("a-1-150.t");
    expect_alert(&mut peer, Refusal::LegUnpaired);
    assert!(matches!(lab.event(), GatewayEvent::LegWaiting { side: LegSide::Agent, .. }));
    let gone = lab.event();
    assert!(
        matches!(gone, GatewayEvent::LegGone { pair, refusal: Some(Refusal::LegUnpaired), .. } if pair == pair_id(1)),
        "{gone:?}"
    );
    assert_eq!((lab.refused(Refusal::LegUnpaired), lab.gateway.metrics().legs_waiting), (1, 0));
}

fn leg_that_hangs_up_is_forgotten(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    for abrupt in [false, true] {
        let peer = lab.agent(1);
        assert!(matches!(lab.event(), GatewayEvent::LegWaiting { .. }));
        if abrupt {
            support::reset(peer)
        } else {
            drop(peer)
        }
        let gone = lab.event();
        assert!(
            matches!(gone, GatewayEvent::LegGone { refusal: None, side: LegSide::Agent, .. }),
            "{gone:?}"
        );
    }
    assert_eq!(lab.gateway.metrics().legs_waiting, 0);
    lab.pair(1);
}

fn second_leg_of_a_side_is_a_duplicate(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let mut first = lab.agent(1);
    assert!(matches!(lab.event(), GatewayEvent::LegWaiting { .. }));
    let mut second = lab.agent(1);
    expect_alert(&mut second, Refusal::LegDuplicate);
    let (_client, hello) = lab.client(1);
    assert_eq!(read_exactly(&mut first, hello.len()), hello, "the first one stays");
}

fn third_leg_of_a_running_pair_is_a_duplicate(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let (mut client, mut agent) = lab.pair(1);
    let (mut third, _) = lab.client(1);
    expect_alert(&mut third, Refusal::LegDuplicate);
    agent.write_all(b"undisturbed").unwrap();
    assert_eq!(read_exactly(&mut client, 11), b"undisturbed");
}

fn waiting_room_is_bounded_and_mates_still_enter(io: IoChoice) {
    let Some(lab) = Lab::start(io, Limits { waiting_legs_max: 2, ..Limits::default() }) else {
        return;
    };
    let waiting: Vec<_> = (0..2).map(|n| lab.agent(n)).collect();
    lab.eventually("two wait", |gateway| gateway.metrics().legs_waiting == 2);
    let mut third = lab.agent(2);
    expect_alert(&mut third, Refusal::LegLimit);
    let (_client, hello) = lab.client(0);
    assert_eq!(read_exactly(&mut waiting[0].try_clone().unwrap(), hello.len()), hello);
    lab.eventually("a place is free", |gateway| gateway.metrics().legs_waiting == 1);
}

fn a_full_house_is_refused_at_the_door(io: IoChoice) {
    let Some(lab) = Lab::start(io, Limits { sockets_max: 32, ..Limits::default() }) else { return };
    let pairs: Vec<_> = (0..16).map(|n| lab.pair(n)).collect();
    expect_alert(&mut lab.dial(), Refusal::HelloLimit);
    drop(pairs);
    lab.eventually("the pairs have ended", |gateway| gateway.metrics().pairs_active == 0);
    lab.pair(16);
}

fn pairs_are_bounded(io: IoChoice) {
    let Some(lab) = Lab::start(io, Limits { pairs_max: 1, ..Limits::default() }) else { return };
    let first = lab.pair(1);
    let (mut client, mut agent) = (lab.client(2).0, lab.agent(2));
    expect_alert(&mut client, Refusal::PairLimit);
    expect_alert(&mut agent, Refusal::PairLimit);
    drop(first);
    lab.eventually("the first has ended", |gateway| gateway.metrics().pairs_active == 0);
    lab.pair(3);
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// Runs in a process of its own, because other tests of this binary open descriptors at the same time.
fn shutdown_ends_everything_and_leaks_nothing(io: IoChoice) {
    if !support::alone("shutdown_ends_everything_and_leaks_nothing", io) {
        return;
    }
    // tokio keeps two descriptors per process for signals, from its first runtime on.
    drop(lab(io));
    let before = (descriptors(), threads());
    let Some(lab) = lab(io) else { return };
    let mut waiting = lab.agent(100);
    let mut unfinished = lab.dial();
    let mut pairs: Vec<_> = (0..20).map(|n| lab.pair(n)).collect();
    for (client, agent) in &mut pairs {
        client.write_all(&[1; 100_000]).unwrap();
        read_exactly(agent, 100_000);
    }
    // One sink reads nothing: its pipe or spill is full when the end comes.
    pairs[0].0.set_nonblocking(true).unwrap();
    while pairs[0].0.write(&[1; 1 << 20]).is_ok() {}
    lab.eventually("the hello is in flight", |gateway| gateway.metrics().hellos_in_flight == 1);
    let (events, begun) = (lab.events, Instant::now());
    lab.gateway.shutdown();
    assert!(begun.elapsed() < Duration::from_secs(10), "bounded");
    expect_alert(&mut waiting, Refusal::Draining);
    assert_eq!(read_alert(&mut unfinished), Some(Refusal::Draining));
    for (_, agent) in &mut pairs {
        expect_reset(agent);
    }
    let ends = events.try_iter().filter(|event| match event {
        GatewayEvent::PairEnded { outcome, .. } => {
            assert_eq!((outcome.cause, outcome.phase), (Cause::Shutdown, Phase::Relaying));
            true
        }
        _ => false,
    });
    assert_eq!(ends.count(), 20);
    drop((waiting, unfinished, pairs, lab.foreign, events));
    let give_up = Instant::now() + support::PATIENCE;
    while (descriptors(), threads()) != before {
        assert!(
            Instant::now() < give_up,
            "{before:?} before, {:?} after",
            (descriptors(), threads())
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn dropped_gateway_frees_its_port(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let address = lab.address;
    drop(lab.gateway);
    assert!(TcpStream::connect(address).is_err());
    switchback_engine::bind_listeners(address, 2).unwrap();
}
