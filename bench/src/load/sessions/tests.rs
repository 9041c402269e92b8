use std::io::{Read, Write};
use std::thread;

use super::*;
use crate::peers::socket::accept;

const MANY: Limit = Limit { time: Duration::from_secs(20), sessions: 40 };
const CHURN: Task = Task { bytes: 64, echo: true, concurrency: 8, hold: false };

fn direct() -> (Dialling, Dialer) {
    let dialer = Dialer::system_default();
    let far = dialer.listen().unwrap();
    (Dialling::Proxied { relay: far.local_addr().unwrap(), far }, dialer)
}

#[test]
fn every_session_is_timed_and_ends() {
    let (dialling, dialer) = direct();
    let tally = run(dialling, &dialer, CHURN, MANY).unwrap();
    assert_eq!((tally.sessions, tally.latency_ns.len(), tally.held.len()), (40, 40, 0));
}

#[test]
fn flows_larger_than_the_socket_buffers_arrive_whole() {
    let (dialling, dialer) = direct();
    let task = Task { bytes: 20 << 20, echo: false, concurrency: 2, hold: false };
    let tally = run(dialling, &dialer, task, Limit { sessions: 3, ..MANY }).unwrap();
    assert_eq!(tally.sessions, 3);
}

#[test]
fn held_sessions_stay_open_at_both_ends() {
    let (dialling, dialer) = direct();
    let task = Task { hold: true, ..CHURN };
    let tally = run(dialling, &dialer, task, MANY).unwrap();
    assert_eq!((tally.sessions, tally.held.len()), (40, 80));
    for socket in &tally.held {
        let mut byte = [0];
        let error = { socket }.read(&mut byte).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "nothing to read, not its end");
    }
}

#[test]
fn a_peer_that_holds_no_more_is_left_with_what_it_holds() {
    let dialer = Dialer::system_default();
    let relay = dialer.listen().unwrap();
    let (addr, far) = (relay.local_addr().unwrap(), dialer.listen().unwrap());
    // Echoes on three connections and closes the fourth.
    thread::spawn(move || {
        let mut kept = Vec::new();
        while let Ok(mut near) = accept(&relay) {
            if kept.len() == 3 {
                return;
            }
            let mut message = [0; 64];
            near.read_exact(&mut message).unwrap();
            near.write_all(&message).unwrap();
            kept.push(near);
        }
    });
    let task = Task { hold: true, concurrency: 1, ..CHURN };
    let tally = run(Dialling::Proxied { relay: addr, far }, &dialer, task, MANY).unwrap();
    assert_eq!(tally.sessions, 3);
    assert!(tally.stopped.is_some());
}

fn pairs(count: usize) -> Vec<Pair> {
    (0..count)
        .map(|_| Pair { client_hello: b"client".to_vec(), agent_hello: b"agent".to_vec() })
        .collect()
}

/// Serves legs, agent and client in turn, with `serve`.
fn gateway(serve: fn(TcpStream, TcpStream)) -> SocketAddr {
    let listener = Dialer::system_default().listen().unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        while let (Ok(mut agent), Ok(mut client)) = (accept(&listener), accept(&listener)) {
            agent.read_exact(&mut [0; 5]).unwrap();
            client.read_exact(&mut [0; 6]).unwrap();
            thread::spawn(move || serve(agent, client));
        }
    });
    addr
}

fn relay(mut agent: TcpStream, client: TcpStream) {
    agent.write_all(b"client").unwrap();
    let ends = (agent.try_clone().unwrap(), client.try_clone().unwrap());
    let back = thread::spawn(move || copy(&ends.0, &ends.1));
    copy(&client, &agent);
    back.join().unwrap();
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    std::io::copy(&mut from, &mut to).unwrap();
    // The other side may have gone: the test judges what it saw.
    let _ = to.shutdown(std::net::Shutdown::Write);
}

#[test]
fn legs_run_as_many_sessions_as_there_are_pairs() {
    let dialling = Dialling::Legs { gateway: gateway(relay), pairs: pairs(10) };
    let task = Task { concurrency: 1, ..CHURN };
    let tally = run(dialling, &Dialer::system_default(), task, MANY).unwrap();
    assert_eq!((tally.sessions, tally.latency_ns.len()), (10, 10));
}

#[test]
fn a_refused_leg_ends_the_run_with_the_refusals_name() {
    let refuse = |_agent: TcpStream, mut client: TcpStream| {
        client.write_all(&[21, 3, 3, 0, 2, 2, 231]).unwrap();
        // The rest is read, so that the refusal is not overtaken by a reset.
        client.shutdown(std::net::Shutdown::Write).unwrap();
        std::io::copy(&mut &client, &mut std::io::sink()).unwrap();
    };
    let dialling = Dialling::Legs { gateway: gateway(refuse), pairs: pairs(1) };
    let error = run(dialling, &Dialer::system_default(), CHURN, MANY).unwrap_err();
    assert!(format!("{error:#}").contains("TICKET_EXPIRED"), "{error:#}");
}
