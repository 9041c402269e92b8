//! A worker that does nothing by itself, so that a test decides what it finds together.
use super::super::binding::Sites;
use super::super::credentials::{SharedSecret, relay_password};
use super::super::nonce::Nonces;
use super::super::server::Common;
use super::super::shared::{Limits, Shared};
use super::super::wire::{Key, Stun, Writer, attribute, decode_address, encode_address, kind};
use super::super::{Network, UdpConfig, bind_udp};
use super::*;
use crate::ring::prepare_datagrams;

const TRANSACTION: [u8; 16] = [0x21, 0x12, 0xa4, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const UDP: (u16, &[u8]) = (attribute::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);

fn worker() -> (Worker, SocketAddr) {
    let socket = bind_udp(SocketAddr::from(([127, 0, 0, 1], 0)), 1).unwrap().remove(0);
    let address = socket.local_addr().unwrap();
    prepare_datagrams(&socket, true).unwrap();
    let loopback = Network { address: address.ip(), prefix: 8 };
    let config = UdpConfig { allowed_peers: vec![loopback], ..UdpConfig::default() };
    let (ready, started) = (Arc::new(Ready::new().unwrap()), Instant::now());
    let sites: Sites = [Some(address), None, None, None];
    let relays = Relays::new(ready.clone(), config.relay_ports.clone(), Arc::default());
    let judge = Judge { allowed: vec![loopback], own: Vec::new(), at: started };
    let common = Arc::new(Common {
        sites,
        nonces: Nonces::new(&[1; 32], 3600),
        credentials: Arc::new(SharedSecret::new(b"north")),
        shared: Shared::new(Limits { total: 9, account: 9, name: 9 }),
        config,
    });
    let counters = Arc::new(Counters::default());
    let server = Server::new(common, counters.clone(), judge.peers(), started);
    let (clock, desk) = (Clock { started }, Desk::new(0));
    let sites = [Some(socket), None, None, None];
    (Worker { ready, sites, relays, server, counters, clock, judge, desk }, address)
}

struct Client {
    socket: UdpSocket,
    nonce: Vec<u8>,
}

impl Client {
    /// One that knows its nonce.
    fn new(worker: &mut Worker, server: SocketAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let client = Self { socket, nonce: Vec::new() };
        let bytes = Writer::new(kind::ALLOCATE, TRANSACTION).put(UDP.0, UDP.1).finish();
        client.socket.send(&bytes).unwrap();
        let (refusal, _) = client.after(worker);
        let nonce = Stun::parse(&refusal).unwrap().get(attribute::NONCE).unwrap().to_vec();
        Self { nonce, ..client }
    }

    fn ask(&self, kind: u16, attributes: &[(u16, &[u8])]) {
        let (username, realm) = ("9999999999:a", "switchback");
        let key = Key::long_term(username, realm, &relay_password(b"north", username));
        let mut out = Writer::new(kind, TRANSACTION);
        for (kind, value) in attributes {
            out = out.put(*kind, value);
        }
        let out = out.put(attribute::USERNAME, username.as_bytes());
        let out = out.put(attribute::REALM, realm.as_bytes()).put(attribute::NONCE, &self.nonce);
        self.socket.send(&out.sign(&key).finish()).unwrap();
    }

    /// The reply, after the worker's turn, and whether it is a success.
    fn after(&self, worker: &mut Worker) -> (Vec<u8>, bool) {
        worker.clients(worker.clock.now(), Site::PRIMARY);
        let mut reply = [0; 1000];
        let length = self.socket.recv(&mut reply).unwrap();
        let reply = reply[..length].to_vec();
        let success = Stun::parse(&reply).unwrap().kind() & 0x110 == kind::SUCCESS;
        (reply, success)
    }
}

#[test]
fn what_a_client_sent_before_it_let_go_does_not_leave_by_anothers_allocation() {
    let (mut worker, server) = worker();
    let (first, second) = (Client::new(&mut worker, server), Client::new(&mut worker, server));
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    first.ask(kind::ALLOCATE, &[UDP]);
    let (reply, _) = first.after(&mut worker);
    let reply = Stun::parse(&reply).unwrap();
    let relayed = reply.get(attribute::XOR_RELAYED_ADDRESS).unwrap();
    let relayed = decode_address(relayed, &TRANSACTION).unwrap();
    let (to, length) = encode_address(peer.local_addr().unwrap(), &TRANSACTION);
    let to = (attribute::XOR_PEER_ADDRESS, &to[..length]);
    first.ask(kind::CHANNEL_BIND, &[(attribute::CHANNEL_NUMBER, &[0x40, 0, 0, 0]), to]);
    assert!(first.after(&mut worker).1);
    // All of it waits when the worker has its turn.
    first.socket.send(b"\x40\x00\x00\x05hello").unwrap();
    first.ask(kind::REFRESH, &[(attribute::LIFETIME, &[0; 4])]);
    second.ask(kind::ALLOCATE, &[UDP]);
    assert!(first.after(&mut worker).1);
    assert_eq!(worker.server.allocations.len(), 1, "the second one has the place of the first");
    let mut data = [0; 9];
    let (length, from) = peer.recv_from(&mut data).unwrap();
    assert_eq!((&data[..length], from), (&b"hello"[..], relayed));
}
