//! The STUN responder over real sockets.
mod support;

use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use switchback_engine::{StunCounters, StunResponder};

const REQUEST: [u8; 20] =
    [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

fn responder() -> (StunResponder, UdpSocket) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(support::PATIENCE)).unwrap();
    client.connect(socket.local_addr().unwrap()).unwrap();
    (StunResponder::start(socket).unwrap(), client)
}

#[test]
fn request_is_answered_and_garbage_is_dropped() {
    let (responder, client) = responder();
    client.send(b"garbage").unwrap();
    client.send(&REQUEST).unwrap();
    let mut reply = [0; 100];
    let length = client.recv(&mut reply).unwrap();
    assert_eq!((length, &reply[..2], &reply[4..20]), (40, &[1, 1][..], &REQUEST[4..20]));
    let port = u16::from_be_bytes([reply[26], reply[27]]) ^ 0x2112;
    assert_eq!(port, client.local_addr().unwrap().port());
    let give_up = Instant::now() + support::PATIENCE;
    let wanted = StunCounters { answered: 1, dropped: 1, ..StunCounters::default() };
    while responder.counters() != wanted {
        assert!(Instant::now() < give_up, "{:?}", responder.counters());
        std::thread::sleep(Duration::from_millis(5));
    }
    responder.shutdown();
}

#[test]
fn shutdown_closes_the_socket() {
    let (responder, client) = responder();
    let address = client.peer_addr().unwrap();
    responder.shutdown();
    UdpSocket::bind(address).expect("the port is free");
}

#[test]
fn coturns_client_understands_the_answer() {
    let (_responder, client) = responder();
    let port = client.peer_addr().unwrap().port().to_string();
    match Command::new("turnutils_stunclient").args(["127.0.0.1", "-p", &port]).output() {
        Err(error) => println!("skipped: turnutils_stunclient: {error}"),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains("UDP reflexive addr: 127.0.0.1:"), "{text}");
        }
    }
}
