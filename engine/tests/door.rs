//! What many doors promise: any leg may come in at any worker, pairs go where there is time for them, and accepting can stop
//! while everything else goes on. Both backends.
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{
    ANY_PORT, Lab, PATIENCE, dial, expect_alert, expect_reset, pair_id, present, read_exactly,
};
use switchback_engine::{
    Cause, GatewayEvent, IoChoice, LegSide, Limits, Phase, Refusal, bind_listeners, hello,
};

on_both_backends![
    silent_connections_do_not_delay_a_session,
    a_hello_in_pieces_meets_a_mate_that_came_in_one,
    mates_on_different_workers_meet_and_their_events_are_in_order,
    a_leg_too_many_is_refused_at_any_worker,
    legs_on_any_worker_can_be_killed,
    a_loaded_worker_gives_new_pairs_away,
    any_number_of_listeners_serves_any_number_of_workers,
    stop_accepting_leaves_pairs_and_the_listening_sockets_alone,
    shutdown_leaves_shared_listening_sockets_alone,
    accept_survives_the_want_of_descriptors,
];

/// A gateway with two workers, each behind a port of its own, so that a test chooses the worker.
struct TwoDoors {
    lab: Lab,
    doors: [SocketAddr; 2],
}

impl TwoDoors {
    fn start(io: IoChoice) -> Option<Self> {
        let bind = || bind_listeners(ANY_PORT.parse().unwrap(), 1).unwrap().remove(0);
        let listeners = [bind(), bind()];
        let doors = [0, 1].map(|door: usize| listeners[door].local_addr().unwrap());
        Some(Self { lab: Lab::on(listeners.into(), 2, io, Limits::default())?, doors })
    }

    fn client(&self, door: usize, number: u32) -> (TcpStream, Vec<u8>) {
        present(self.doors[door], &format!("c-{number}-20000.t"))
    }

    fn agent(&self, door: usize, number: u32) -> TcpStream {
        present(self.doors[door], &format!("a-{number}-20000.t")).0
    }

    /// The numbers of pairs that the workers relay.
    fn pairs(&self) -> [usize; 2] {
        let workers = self.lab.gateway.metrics().workers;
        [workers[0].pairs, workers[1].pairs]
    }
}

fn silent_connections_do_not_delay_a_session(io: IoChoice) {
    let Some(lab) = Lab::start(io, Limits::default()) else { return };
    let silent: Vec<_> = (0..20).map(|_| lab.dial()).collect();
    lab.pair(1);
    lab.eventually("the desk has them", |gateway| gateway.metrics().hellos_in_flight == 20);
    lab.pair(2);
    assert_eq!(lab.gateway.metrics().hellos_in_flight, 20);
    drop(silent);
    lab.eventually("they are gone", |gateway| gateway.metrics().hellos_in_flight == 0);
}

fn a_hello_in_pieces_meets_a_mate_that_came_in_one(io: IoChoice) {
    let Some(two) = TwoDoors::start(io) else { return };
    for (number, door) in [(0, 0), (1, 1)] {
        let bytes = hello::encode(&format!("c-{number}-20000.t"), [1; 96]);
        let mut client = dial(two.doors[0]);
        client.write_all(&bytes[..100]).unwrap();
        two.lab.eventually("the desk waits for the rest", |gateway| {
            gateway.metrics().hellos_in_flight == 1
        });
        let mut agent = two.agent(door, number);
        client.write_all(&bytes[100..]).unwrap();
        assert_eq!(read_exactly(&mut agent, bytes.len()), bytes);
        agent.write_all(b"welcome").unwrap();
        assert_eq!(read_exactly(&mut client, 7), b"welcome");
    }
}

fn mates_on_different_workers_meet_and_their_events_are_in_order(io: IoChoice) {
    let Some(two) = TwoDoors::start(io) else { return };
    for number in 0..10 {
        let (agent_door, client_door) = (number as usize % 2, (number as usize + 1) % 2);
        let mut agent = two.agent(agent_door, number);
        let (mut client, hello) = two.client(client_door, number);
        assert_eq!(read_exactly(&mut agent, hello.len()), hello);
        agent.write_all(b"welcome").unwrap();
        assert_eq!(read_exactly(&mut client, 7), b"welcome");
        let wanted = pair_id(number);
        // Usually the agent is there first; on a busy machine its thread may be slower than the client's.
        let waiting = two.lab.event();
        assert!(matches!(waiting, GatewayEvent::LegWaiting { pair, .. } if pair == wanted));
        let started = two.lab.event();
        assert!(
            matches!(started, GatewayEvent::PairStarted { pair, agent: peer, .. }
                if pair == wanted && peer == agent.local_addr().unwrap()),
            "{started:?}"
        );
        drop((client, agent));
        assert!(matches!(two.lab.event(), GatewayEvent::PairEnded { pair, .. } if pair == wanted));
    }
}

fn a_leg_too_many_is_refused_at_any_worker(io: IoChoice) {
    let Some(two) = TwoDoors::start(io) else { return };
    let mut agent = two.agent(0, 1);
    assert!(matches!(two.lab.event(), GatewayEvent::LegWaiting { side: LegSide::Agent, .. }));
    expect_alert(&mut two.agent(1, 1), Refusal::LegDuplicate);
    let (mut client, hello) = two.client(1, 1);
    assert_eq!(read_exactly(&mut agent, hello.len()), hello, "the first one stays");
    for door in [0, 1] {
        expect_alert(&mut two.client(door, 1).0, Refusal::LegDuplicate);
        expect_alert(&mut two.agent(door, 1), Refusal::LegDuplicate);
    }
    agent.write_all(b"undisturbed").unwrap();
    assert_eq!(read_exactly(&mut client, 11), b"undisturbed");
}

fn legs_on_any_worker_can_be_killed(io: IoChoice) {
    let Some(two) = TwoDoors::start(io) else { return };
    for door in [0, 1] {
        let mut waiting = two.agent(door, 1);
        assert!(matches!(two.lab.event(), GatewayEvent::LegWaiting { .. }));
        two.lab.gateway.end_pair(pair_id(1), Cause::Killed);
        expect_alert(&mut waiting, Refusal::LegUnpaired);
        assert!(matches!(two.lab.event(), GatewayEvent::LegGone { .. }));

        let mut agent = two.agent(door, 2);
        let (mut client, hello) = two.client(1 - door, 2);
        read_exactly(&mut agent, hello.len());
        two.lab.until_started(2);
        two.lab.gateway.end_pair(pair_id(2), Cause::Killed);
        expect_reset(&mut agent);
        expect_reset(&mut client);
        two.lab.expect_end(Cause::Killed, Phase::Relaying);
    }
}

fn a_loaded_worker_gives_new_pairs_away(io: IoChoice) {
    let Some(two) = TwoDoors::start(io) else { return };
    let (client, hello) = two.client(0, 0);
    let mut agent = two.agent(0, 0);
    read_exactly(&mut agent, hello.len());
    two.lab.until_started(0);
    let (source, sink) = (client.try_clone().unwrap(), agent.try_clone().unwrap());
    let threads = [std::thread::spawn(|| pour(source)), std::thread::spawn(|| drain(sink))];
    two.lab.eventually("the first worker is loaded", |gateway| {
        let workers = gateway.metrics().workers;
        workers[0].busy.unwrap() > workers[1].busy.unwrap() + 0.3
    });
    let (give_up, mut number) = (Instant::now() + PATIENCE, 0);
    let (mut client, mut agent) = loop {
        number += 1;
        let mut agent = two.agent(0, number);
        let (client, hello) = two.client(0, number);
        assert_eq!(read_exactly(&mut agent, hello.len()), hello);
        two.lab.until_started(number);
        two.lab.eventually("both are counted", |_| two.pairs().iter().sum::<usize>() == 2);
        if two.pairs() == [1, 1] {
            break (client, agent);
        }
        assert!(Instant::now() < give_up, "never given away");
        drop((client, agent));
        two.lab.until_ended();
    };
    agent.write_all(b"welcome").unwrap();
    assert_eq!(read_exactly(&mut client, 7), b"welcome");
    two.lab.gateway.end_pair(pair_id(number), Cause::Killed);
    expect_reset(&mut client);
    two.lab.expect_end(Cause::Killed, Phase::Relaying);
    two.lab.gateway.end_pair(pair_id(0), Cause::Killed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Writes until cut off.
fn pour(mut source: TcpStream) {
    while source.write_all(&[1; 4096]).is_ok() {}
}

/// Reads until the end, whatever it is.
fn drain(mut sink: TcpStream) {
    while matches!(sink.read(&mut [0; 65536]), Ok(1..)) {}
}

fn any_number_of_listeners_serves_any_number_of_workers(io: IoChoice) {
    for (listeners, workers) in [(1, 3), (3, 1), (2, 3), (1, 1)] {
        let listeners = bind_listeners(ANY_PORT.parse().unwrap(), listeners).unwrap();
        let Some(lab) = Lab::on(listeners, workers, io, Limits::default()) else { return };
        let pairs: Vec<_> = (0..10).map(|number| lab.pair(number)).collect();
        assert_eq!(lab.gateway.metrics().workers.len(), workers);
        assert_eq!(lab.gateway.metrics().pairs_active, pairs.len());
    }
}

/// The duplicates that another process would get.
fn duplicates(lab: &Lab) -> Vec<TcpListener> {
    lab.gateway.listeners().unwrap().into_iter().map(TcpListener::from).collect()
}

fn stop_accepting_leaves_pairs_and_the_listening_sockets_alone(io: IoChoice) {
    let Some(old) = Lab::start(io, Limits::default()) else { return };
    let (mut client, mut agent) = old.pair(1);
    let mut waiting = old.agent(2);
    assert!(matches!(old.event(), GatewayEvent::LegWaiting { .. }));
    let mut unfinished = old.dial();
    old.eventually("the hello is in flight", |gateway| gateway.metrics().hellos_in_flight == 1);
    let Some(new) = Lab::on(duplicates(&old), 2, io, Limits::default()) else { return };

    old.gateway.stop_accepting();
    old.gateway.stop_accepting();
    expect_alert(&mut waiting, Refusal::Draining);
    let gone = old.event();
    assert!(
        matches!(gone, GatewayEvent::LegGone { pair, refusal: Some(Refusal::Draining), .. } if pair == pair_id(2)),
        "{gone:?}"
    );
    expect_alert(&mut unfinished, Refusal::Draining);
    old.eventually("it has let go", |gateway| gateway.listeners().unwrap().is_empty());
    let accepted = old.gateway.metrics().accepted;

    (10..30).for_each(|number| drop(new.pair(number)));
    assert_eq!(old.gateway.metrics().accepted, accepted, "all came in at the new one");
    assert_eq!(old.gateway.metrics().pairs_active, 1);
    client.write_all(b"still here").unwrap();
    assert_eq!(read_exactly(&mut agent, 10), b"still here");
    drop((client, agent));
    old.eventually("the drain is over", |gateway| gateway.metrics().pairs_active == 0);
    old.gateway.shutdown();
    new.pair(40);
}

fn shutdown_leaves_shared_listening_sockets_alone(io: IoChoice) {
    let Some(old) = Lab::start(io, Limits::default()) else { return };
    let listeners = duplicates(&old);
    assert_eq!(listeners.len(), 2);
    drop(old);
    let Some(new) = Lab::on(listeners, 2, io, Limits::default()) else { return };
    (0..10).for_each(|number| drop(new.pair(number)));
}

/// Runs in a process of its own, because it takes all descriptors there are.
fn accept_survives_the_want_of_descriptors(io: IoChoice) {
    if !support::alone("accept_survives_the_want_of_descriptors", io) {
        return;
    }
    let Some(lab) = Lab::start(io, Limits::default()) else { return };
    let (mut client, mut agent) = lab.pair(1);
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(200), maximum }).unwrap();
    let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let peer = socket().unwrap();
    let mut ballast = Vec::new();
    while let Ok(socket) = socket() {
        ballast.push(socket);
    }
    peer.connect(&lab.address.into()).unwrap();
    let mut peer = TcpStream::from(peer);
    peer.write_all(&hello::encode("refused.t", [1; 96])).unwrap();
    lab.eventually("accept fails", |gateway| gateway.metrics().accept_errors > 0);
    std::thread::sleep(Duration::from_millis(300));
    let errors = lab.gateway.metrics().accept_errors;
    assert!(errors < 20, "{errors} errors: it tries again now and then, not all the time");
    client.write_all(b"undisturbed").unwrap();
    assert_eq!(read_exactly(&mut agent, 11), b"undisturbed");
    drop(ballast);
    expect_alert(&mut peer, Refusal::TicketExpired);
}
