//! STUN over real sockets.
mod support;

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use switchback_engine::{NoRelay, UdpConfig, UdpDrop, UdpService, UdpSockets, bind_udp};

const REQUEST: [u8; 20] =
    [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

fn serve(primary: Vec<UdpSocket>, alternate: Vec<UdpSocket>) -> UdpService {
    let sockets = UdpSockets { primary, alternate };
    UdpService::start(sockets, UdpConfig::default(), Arc::new(NoRelay)).unwrap()
}

fn started() -> (UdpService, UdpSocket) {
    let sockets = bind_udp(support::ANY_PORT.parse().unwrap(), 1).unwrap();
    let client = client_of(sockets[0].local_addr().unwrap());
    (serve(sockets, Vec::new()), client)
}

fn client_of(server: SocketAddr) -> UdpSocket {
    let client = UdpSocket::bind(support::ANY_PORT).unwrap();
    client.set_read_timeout(Some(support::PATIENCE)).unwrap();
    client.connect(server).unwrap();
    client
}

/// The port that a reply to [`REQUEST`] tells.
fn told_port(client: &UdpSocket) -> u16 {
    let mut reply = [0; 100];
    client.send(&REQUEST).unwrap();
    let length = client.recv(&mut reply).unwrap();
    assert_eq!((length, &reply[..2], &reply[4..20]), (40, &[1, 1][..], &REQUEST[4..20]));
    u16::from_be_bytes([reply[26], reply[27]]) ^ 0x2112
}

#[test]
fn binding_requests_are_answered_and_garbage_is_dropped() {
    let (service, client) = started();
    client.send(b"garbage").unwrap();
    assert_eq!(told_port(&client), client.local_addr().unwrap().port());
    let give_up = Instant::now() + support::PATIENCE;
    let done = || {
        let metrics = service.metrics();
        (metrics.bindings_answered, metrics.dropped(UdpDrop::Malformed)) == (1, 1)
    };
    while !done() {
        assert!(Instant::now() < give_up, "{:?}", service.metrics());
        std::thread::sleep(Duration::from_millis(5));
    }
    service.shutdown();
}

#[test]
fn shutdown_closes_the_socket() {
    let (service, client) = started();
    let address = client.peer_addr().unwrap();
    service.shutdown();
    UdpSocket::bind(address).expect("the port is free");
}

#[test]
fn a_successor_answers_what_waits_in_a_socket_it_was_given() {
    let sockets = bind_udp(support::ANY_PORT.parse().unwrap(), 1).unwrap();
    let kept = sockets[0].try_clone().unwrap();
    let client = client_of(kept.local_addr().unwrap());
    serve(sockets, Vec::new()).shutdown();
    client.send(&REQUEST).unwrap();
    let _successor = serve(vec![kept], Vec::new());
    assert!(client.recv(&mut [0; 100]).is_ok());
}

#[test]
fn several_workers_share_a_port_that_nobody_else_gets() {
    let address = {
        let sockets = bind_udp(support::ANY_PORT.parse().unwrap(), 1).unwrap();
        let address = sockets[0].local_addr().unwrap();
        let config = UdpConfig { workers: 3, ..UdpConfig::default() };
        let sockets = UdpSockets { primary: sockets, alternate: Vec::new() };
        let service = UdpService::start(sockets, config, Arc::new(NoRelay)).unwrap();
        for _ in 0..32 {
            let client = client_of(address);
            assert_eq!(told_port(&client), client.local_addr().unwrap().port());
        }
        assert!(bind_udp(address, 1).is_err(), "a second server");
        assert_eq!(service.metrics().bindings_answered, 32);
        address
    };
    bind_udp(address, 1).expect("the port is free");
}

#[test]
fn a_wildcard_socket_answers_from_the_address_that_was_asked() {
    let sockets = bind_udp("0.0.0.0:0".parse().unwrap(), 1).unwrap();
    let port = sockets[0].local_addr().unwrap().port();
    let _service = serve(sockets, Vec::new());
    // A connected client takes replies from that address only.
    let client = client_of(([127, 0, 0, 9], port).into());
    assert_eq!(told_port(&client), client.local_addr().unwrap().port());
}

#[test]
fn sockets_of_the_same_role_are_refused() {
    let bind = |address: &str| UdpSocket::bind(address).unwrap();
    let start = |alternate| {
        let sockets = UdpSockets { primary: vec![bind("127.0.0.1:0")], alternate };
        UdpService::start(sockets, UdpConfig::default(), Arc::new(NoRelay)).map(drop)
    };
    assert!(start(vec![bind("127.0.0.1:0"), bind("127.0.0.1:0")]).is_err());
    assert!(start(vec![bind("127.0.0.1:0")]).is_ok());
    let nothing = UdpSockets { primary: Vec::new(), alternate: Vec::new() };
    assert!(UdpService::start(nothing, UdpConfig::default(), Arc::new(NoRelay)).is_err());
}

/// Four sockets of two addresses and two ports.
fn four_sites() -> (UdpService, SocketAddr) {
    for _ in 0..50 {
        let sockets = bind_udp(support::ANY_PORT.parse().unwrap(), 1).unwrap();
        let address = sockets[0].local_addr().unwrap();
        let (port, other) = (address.port(), address.port() ^ 1);
        let others = [([127, 0, 0, 1], other), ([127, 0, 0, 2], port), ([127, 0, 0, 2], other)];
        let bound: Result<Vec<_>, _> =
            others.into_iter().map(|other| UdpSocket::bind(SocketAddr::from(other))).collect();
        if let Ok(alternate) = bound {
            return (serve(sockets, alternate), address);
        }
    }
    panic!("no free ports");
}

#[test]
fn a_changed_address_and_port_answer_from_there() {
    let (_service, address) = four_sites();
    let client = UdpSocket::bind(support::ANY_PORT).unwrap();
    client.set_read_timeout(Some(support::PATIENCE)).unwrap();
    for (flags, from) in [(0, (1, 0)), (2, (1, 1)), (4, (2, 0)), (6, (2, 1))] {
        let mut request = [&REQUEST[..], &[0, 3, 0, 4, 0, 0, 0, flags]].concat();
        request[3] = 8;
        client.send_to(&request, address).unwrap();
        let (_, source) = client.recv_from(&mut [0; 200]).unwrap();
        let wanted = ([127, 0, 0, from.0], address.port() ^ from.1);
        assert_eq!(source, SocketAddr::from(wanted), "{flags}");
    }
}

/// What a stock client prints, if it is installed.
fn stock(program: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(program).args(arguments).output() {
        Err(error) => {
            println!("skipped: {program}: {error}");
            None
        }
        Ok(output) => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
    }
}

#[test]
fn coturns_client_understands_the_answer() {
    let (_service, client) = started();
    let port = client.peer_addr().unwrap().port().to_string();
    if let Some(text) = stock("turnutils_stunclient", &["127.0.0.1", "-p", &port]) {
        assert!(text.contains("UDP reflexive addr: 127.0.0.1:"), "{text}");
    }
}

#[test]
fn coturns_nat_discovery_finds_no_nat_here() {
    let (_service, address) = four_sites();
    let port = address.port().to_string();
    let arguments = ["-m", "-f", "-p", &port, "-L", "127.0.0.1", "127.0.0.1"];
    if let Some(text) = stock("turnutils_natdiscovery", &arguments) {
        assert!(text.contains("Endpoint Independent Mapping") || text.contains("No NAT"), "{text}");
        assert!(text.contains("Endpoint Independent Filtering"), "{text}");
    }
}
