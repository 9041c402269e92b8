//! TURN over real sockets, with a client made of another implementation's parts, and with stock clients.
mod support;

use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use stun_types::attribute::{AttributeType, ErrorCode, Nonce, RawAttribute, Realm, Username};
use stun_types::message::{
    IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageWrite, MessageWriteExt,
    MessageWriteVec, Method,
};
use switchback_engine::{
    Network, SharedSecret, UdpConfig, UdpDrop, UdpRefusal, UdpService, UdpSockets, bind_udp,
    relay_password,
};

const SECRET: &str = "north";
const ALLOCATE: u16 = 3;
const REFRESH: u16 = 4;
const CREATE_PERMISSION: u16 = 8;
const CHANNEL_BIND: u16 = 9;
const UDP: (u16, &[u8]) = (0x0019, &[17, 0, 0, 0]);
const RELAYED: u16 = 0x0016;
const LIFETIME: u16 = 0x000d;

/// A service whose peers may be on loopback.
fn service(change: impl FnOnce(&mut UdpConfig)) -> (UdpService, SocketAddr) {
    let loopback = |address: &str, prefix| Network { address: address.parse().unwrap(), prefix };
    let mut config = UdpConfig {
        allowed_peers: vec![loopback("127.0.0.0", 8), loopback("::1", 128)],
        relay_ports: 20_000..=29_999,
        ..UdpConfig::default()
    };
    change(&mut config);
    let sockets = UdpSockets {
        primary: bind_udp(support::ANY_PORT.parse().unwrap(), 1).unwrap(),
        alternate: Vec::new(),
    };
    let address = sockets.primary[0].local_addr().unwrap();
    let credentials = Arc::new(SharedSecret::new(SECRET.as_bytes()));
    (UdpService::start(sockets, config, credentials).unwrap(), address)
}

fn username(name: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    format!("{}:{name}", now.as_secs() + 600)
}

struct Client {
    socket: UdpSocket,
    username: String,
    password: String,
    realm_and_nonce: Option<(String, String)>,
}

impl Client {
    fn new(server: SocketAddr, name: &str) -> Self {
        let socket = socket();
        socket.connect(server).unwrap();
        let username = username(name);
        let password = relay_password(SECRET.as_bytes(), &username);
        Self { socket, username, password, realm_and_nonce: None }
    }

    fn once(&mut self, method: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut out = Message::builder_request(Method::new(method), MessageWriteVec::new());
        for (kind, value) in attributes {
            out.add_attribute(&RawAttribute::new(AttributeType::new(*kind), value)).unwrap();
        }
        if let Some((realm, nonce)) = &self.realm_and_nonce {
            out.add_attribute(&Username::new(&self.username).unwrap()).unwrap();
            out.add_attribute(&Realm::new(realm).unwrap()).unwrap();
            out.add_attribute(&Nonce::new(nonce).unwrap()).unwrap();
            out.add_message_integrity(&self.key(), IntegrityAlgorithm::Sha1).unwrap();
        }
        out.add_fingerprint().unwrap();
        self.socket.send(&out.finish()).unwrap();
        let mut reply = vec![0; 1500];
        let length = self.socket.recv(&mut reply).unwrap();
        reply.truncate(length);
        reply
    }

    fn key(&self) -> stun_types::message::MessageIntegrityCredentials {
        let realm =
            self.realm_and_nonce.as_ref().map(|(realm, _)| realm.clone()).unwrap_or_default();
        LongTermKeyCredentials::new(self.username.clone(), self.password.clone(), realm).into()
    }

    /// Asks, answers the challenge if there is one; the code, 0 for a success that is signed, and the reply.
    fn ask(&mut self, method: u16, attributes: &[(u16, &[u8])]) -> (u16, Vec<u8>) {
        let mut bytes = self.once(method, attributes);
        let challenge = Message::from_bytes(&bytes).unwrap();
        if let Ok(nonce) = challenge.attribute::<Nonce>() {
            let realm = challenge.attribute::<Realm>().unwrap().realm().to_owned();
            self.realm_and_nonce = Some((realm, nonce.nonce().to_owned()));
            bytes = self.once(method, attributes);
        }
        let reply = Message::from_bytes(&bytes).unwrap();
        let code = reply.attribute::<ErrorCode>().map_or(0, |error| error.code());
        if code != 401 && code != 438 {
            reply.validate_integrity(&self.key()).unwrap();
        }
        (code, bytes)
    }

    fn code(&mut self, method: u16, attributes: &[(u16, &[u8])]) -> u16 {
        self.ask(method, attributes).0
    }

    fn allocate(&mut self) -> SocketAddr {
        let (code, reply) = self.ask(ALLOCATE, &[UDP]);
        assert_eq!(code, 0);
        let relayed = raw(&reply, RELAYED);
        let port = u16::from_be_bytes([relayed[2], relayed[3]]) ^ 0x2112;
        ([127, 0, 0, 1], port).into()
    }

    fn bind(&mut self, number: u16, peer: SocketAddr) -> u16 {
        let number = [(number >> 8) as u8, number as u8, 0, 0];
        self.code(CHANNEL_BIND, &[(0x000c, &number), (0x0012, &xor(peer))])
    }

    fn permit(&mut self, peer: SocketAddr) -> u16 {
        self.code(CREATE_PERMISSION, &[(0x0012, &xor(peer))])
    }

    fn send_indication(&self, peer: SocketAddr, data: &[u8]) {
        let mut out = Message::builder_indication(Method::new(6), MessageWriteVec::new());
        out.add_attribute(&RawAttribute::new(AttributeType::new(0x0012), &xor(peer))).unwrap();
        out.add_attribute(&RawAttribute::new(AttributeType::new(0x0013), data)).unwrap();
        self.socket.send(&out.finish()).unwrap();
    }

    fn send_channel(&self, number: u16, data: &[u8]) {
        let length = (data.len() as u16).to_be_bytes();
        self.socket.send(&[&number.to_be_bytes()[..], &length, data].concat()).unwrap();
    }

    fn receive(&self) -> Vec<u8> {
        receive(&self.socket).0
    }
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind(support::ANY_PORT).unwrap();
    socket.set_read_timeout(Some(support::PATIENCE)).unwrap();
    socket
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut bytes = vec![0; 65_536];
    let (length, from) = socket.recv_from(&mut bytes).unwrap();
    bytes.truncate(length);
    (bytes, from)
}

fn raw(message: &[u8], kind: u16) -> Vec<u8> {
    let message = Message::from_bytes(message).unwrap();
    message.raw_attribute(AttributeType::new(kind)).unwrap().value.to_vec()
}

/// XOR-PEER-ADDRESS of an IPv4 address.
fn xor(peer: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(peer) = peer else { panic!("{peer} is not IPv4") };
    let port = (peer.port() ^ 0x2112).to_be_bytes();
    let ip = (u32::from(*peer.ip()) ^ 0x2112_a442).to_be_bytes();
    [&[0, 1][..], &port, &ip].concat()
}

fn wait_for(service: &UdpService, done: impl Fn(&UdpService) -> bool) {
    let give_up = Instant::now() + support::PATIENCE;
    while !done(service) {
        assert!(Instant::now() < give_up, "{:?}", service.metrics());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn data_passes_both_ways_on_a_channel_and_in_indications() {
    let (service, server) = service(|_| {});
    let (mut client, peer) = (Client::new(server, "a"), socket());
    let peer_address = peer.local_addr().unwrap();
    let relayed = client.allocate();
    assert!((20_000..30_000).contains(&relayed.port()));
    assert_eq!(client.permit(peer_address), 0);
    for length in [0, 1, 5, 1200, 9000] {
        let data = vec![7; length];
        client.send_indication(peer_address, &data);
        assert_eq!(receive(&peer), (data.clone(), relayed));
        peer.send_to(&data, relayed).unwrap();
        let indication = client.receive();
        assert_eq!((raw(&indication, 0x0013), raw(&indication, 0x0012)), (data, xor(peer_address)));
    }
    assert_eq!(client.bind(0x4001, peer_address), 0);
    for length in [0, 1, 5, 1200, 9000] {
        let data = vec![9; length];
        client.send_channel(0x4001, &data);
        assert_eq!(receive(&peer), (data.clone(), relayed));
        peer.send_to(&data, relayed).unwrap();
        let head = [&[0x40, 1][..], &(length as u16).to_be_bytes()].concat();
        assert_eq!(client.receive(), [head, data].concat());
    }
    wait_for(&service, |service| service.metrics().to_clients.packets == 10);
    let metrics = service.metrics();
    assert_eq!((metrics.to_peers.packets, metrics.to_peers.bytes), (10, 20_412));
    assert_eq!((metrics.to_clients.bytes, metrics.allocations), (20_412, 1));
}

#[test]
fn a_burst_arrives_whole_in_order_and_unmixed() {
    let (_service, server) = service(|_| {});
    let peer = socket();
    let mut clients: Vec<_> = (0..4).map(|n| Client::new(server, &format!("u{n}"))).collect();
    let relayed: Vec<_> = clients.iter_mut().map(Client::allocate).collect();
    for client in &mut clients {
        assert_eq!(client.bind(0x4000, peer.local_addr().unwrap()), 0);
    }
    for number in 0..25u8 {
        for (client, mark) in clients.iter().zip(0u8..) {
            client.send_channel(0x4000, &[mark, number, 0, 0][..usize::from(2 + number % 3)]);
        }
    }
    let mut next = [0; 4];
    for _ in 0..100 {
        let (data, from) = receive(&peer);
        let mark = usize::from(data[0]);
        assert_eq!((from, data[1]), (relayed[mark], next[mark]));
        next[mark] += 1;
        peer.send_to(&data, from).unwrap();
    }
    for (client, mark) in clients.iter().zip(0u8..) {
        for number in 0..25u8 {
            let data = client.receive();
            assert_eq!(&data[4..6], [mark, number]);
            assert_eq!(data.len(), usize::from(6 + number % 3));
        }
    }
}

#[test]
fn two_relayed_ends_meet_although_the_host_itself_is_no_peer() {
    // Not loopback, which is never a peer: an address of this host that the test may use.
    let Some(own) = own_address() else { return println!("skipped: no address but loopback") };
    let sockets =
        UdpSockets { primary: bind_udp((own, 0).into(), 1).unwrap(), alternate: Vec::new() };
    let server = sockets.primary[0].local_addr().unwrap();
    let credentials = Arc::new(SharedSecret::new(SECRET.as_bytes()));
    let config = UdpConfig { relay_ports: 20_000..=29_999, ..UdpConfig::default() };
    let service = UdpService::start(sockets, config, credentials).unwrap();
    let client = |name: &str| {
        let mut client = Client::new_at(server, name);
        let relayed = SocketAddr::new(own.into(), client.allocate().port());
        (client, relayed)
    };
    let ((mut one, at_one), (mut two, at_two)) = (client("one"), client("two"));
    assert_eq!((one.bind(0x4000, at_two), two.bind(0x4000, at_one)), (0, 0));
    assert_eq!(one.bind(0x4001, server), 403);
    one.send_channel(0x4000, b"hello");
    assert_eq!(two.receive(), b"\x40\x00\x00\x05hello");
    assert_eq!(service.metrics().refused(UdpRefusal::ForbiddenPeer), 1);
}

fn own_address() -> Option<std::net::Ipv4Addr> {
    let probe = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: connecting asks for a route.
    probe.connect("192.0.2.1:9").ok()?;
    match probe.local_addr().ok()? {
        SocketAddr::V4(own) if !own.ip().is_loopback() && !own.ip().is_unspecified() => {
            Some(*own.ip())
        }
        _ => None,
    }
}

impl Client {
    /// From any address that reaches `server`.
    fn new_at(server: SocketAddr, name: &str) -> Self {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(support::PATIENCE)).unwrap();
        socket.connect(server).unwrap();
        let username = username(name);
        let password = relay_password(SECRET.as_bytes(), &username);
        Self { socket, username, password, realm_and_nonce: None }
    }
}

#[test]
fn loopback_is_no_peer_unless_it_is_allowed() {
    let (service, server) = service(|config| config.allowed_peers.clear());
    let (mut client, peer) = (Client::new(server, "a"), socket());
    client.allocate();
    assert_eq!(client.permit(peer.local_addr().unwrap()), 403);
    assert_eq!(client.bind(0x4000, peer.local_addr().unwrap()), 403);
    client.send_indication(peer.local_addr().unwrap(), b"hello");
    wait_for(&service, |service| service.metrics().dropped(UdpDrop::NoPermission) == 1);
    assert_eq!(service.metrics().to_peers.packets, 0);
}

#[test]
fn wrong_credentials_quotas_and_second_allocations_are_refused() {
    let (service, server) = service(|config| config.allocations_per_name = 1);
    let mut wrong = Client::new(server, "a");
    wrong.password = "wrong".into();
    assert_eq!(wrong.code(ALLOCATE, &[UDP]), 401);
    let (mut first, mut second) = (Client::new(server, "a"), Client::new(server, "a"));
    first.allocate();
    assert_eq!(first.code(ALLOCATE, &[UDP]), 437);
    assert_eq!(second.code(ALLOCATE, &[UDP]), 486);
    assert_eq!(second.code(REFRESH, &[]), 437);
    assert_eq!(Client::new(server, "b").code(ALLOCATE, &[(0x0019, &[6, 0, 0, 0])]), 442);
    let six = (0x0017, &[2, 0, 0, 0][..]);
    assert_eq!(Client::new(server, "b").code(ALLOCATE, &[UDP, six]), 440);
    assert_eq!(first.code(REFRESH, &[(LIFETIME, &[0; 4])]), 0);
    second.allocate();
    assert_eq!(service.metrics().refused(UdpRefusal::QuotaReached), 1);
}

#[test]
fn a_client_that_is_gone_harms_nobody_and_its_allocation_goes_when_it_is_revoked() {
    let (service, server) = service(|_| {});
    let (mut gone, mut stays) = (Client::new(server, "gone"), Client::new(server, "stays"));
    let (peer, relayed) = (socket(), [gone.allocate(), stays.allocate()]);
    for client in [&mut gone, &mut stays] {
        assert_eq!(client.bind(0x4000, peer.local_addr().unwrap()), 0);
    }
    // From now on the kernel answers what the gateway sends there with ICMP errors.
    drop(gone);
    for round in 0..20 {
        for address in relayed {
            peer.send_to(&[round; 100], address).unwrap();
        }
        assert_eq!(stays.receive()[4..], [round; 100]);
    }
    assert_eq!(service.metrics().allocations, 2, "it might come back");
    service.revoke("gone");
    service.revoke("never seen");
    wait_for(&service, |service| service.metrics().allocations == 1);
    UdpSocket::bind(relayed[0]).expect("the port is free");
    peer.send_to(b"still there", relayed[1]).unwrap();
    assert_eq!(stays.receive()[4..15], *b"still there");
    assert_eq!(Client::new(server, "gone").code(ALLOCATE, &[UDP]), 403);
    assert_eq!(service.metrics().refused(UdpRefusal::Revoked), 1);
}

#[test]
fn what_is_sent_for_others_or_to_others_is_dropped_and_counted() {
    let (service, server) = service(|_| {});
    let (mut owner, thief, peer) = (Client::new(server, "a"), Client::new(server, "b"), socket());
    let relayed = owner.allocate();
    let address = peer.local_addr().unwrap();
    // A peer that nobody permitted, data on a channel that nobody bound, and on one of somebody else's.
    peer.send_to(b"unasked", relayed).unwrap();
    owner.send_channel(0x4000, b"unbound");
    assert_eq!(owner.bind(0x4000, address), 0);
    thief.send_channel(0x4000, b"stolen");
    thief.send_indication(address, b"stolen");
    // A success response, as a reflected one would be, and an oversized request.
    let mut reflected = vec![1, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    reflected.resize(20, 9);
    thief.socket.send(&reflected).unwrap();
    let mut oversized = vec![0, 1, 0x0f, 0xa0, 0x21, 0x12, 0xa4, 0x42];
    oversized.resize(20 + 4000, 0);
    thief.socket.send(&oversized).unwrap();
    let drops = [
        (UdpDrop::NoPermission, 1),
        (UdpDrop::NoChannel, 1),
        (UdpDrop::NoAllocation, 2),
        (UdpDrop::Malformed, 1),
        (UdpDrop::Oversized, 1),
    ];
    let counted = |service: &UdpService| drops.map(|(why, _)| service.metrics().dropped(why));
    wait_for(&service, |service| counted(service) == drops.map(|(_, count)| count));
    assert_eq!(service.metrics().to_peers.packets, 0);
    peer.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(peer.recv(&mut [0; 100]).is_err(), "nothing came through");
}

#[test]
fn an_allocation_that_is_over_frees_its_port() {
    let second = Duration::from_secs(1);
    let (service, server) = service(|config| config.lifetime_default = second);
    let relayed = Client::new(server, "a").allocate();
    assert!(UdpSocket::bind(relayed).is_err());
    wait_for(&service, |service| service.metrics().allocations == 0);
    UdpSocket::bind(relayed).expect("the port is free");
}

#[test]
fn an_ipv6_peer_is_reached_from_an_ipv4_client() {
    let Ok(peer) = UdpSocket::bind("[::1]:0") else { return println!("skipped: no IPv6") };
    peer.set_read_timeout(Some(support::PATIENCE)).unwrap();
    let six = "::1".parse().unwrap();
    let address = switchback_engine::RelayAddress { bind: six, public: six };
    let (_service, server) = service(|config| config.relay_addresses = vec![address]);
    let mut client = Client::new(server, "a");
    let (code, reply) = client.ask(ALLOCATE, &[UDP, (0x0017, &[2, 0, 0, 0])]);
    assert_eq!((code, raw(&reply, RELAYED).len()), (0, 20));
    assert_eq!(client.permit("127.0.0.1:5000".parse().unwrap()), 443);
    // The mask of an IPv6 address is the transaction id, which Send indications choose; RFC 8489's example is not needed
    // to be random here.
    let mut message = vec![0, 0x16, 0, 36, 0x21, 0x12, 0xa4, 0x42];
    let mask = [0x21, 0x12, 0xa4, 0x42, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1];
    message.extend_from_slice(&mask[4..]);
    let port = peer.local_addr().unwrap().port() ^ 0x2112;
    let mut octets = [0; 16];
    octets[15] = 1;
    let value: Vec<u8> =
        octets.iter().zip(mask).map(|(octet, mask): (&u8, u8)| octet ^ mask).collect();
    message.extend_from_slice(&[&[0, 0x12, 0, 20, 0, 2][..], &port.to_be_bytes(), &value].concat());
    message.extend_from_slice(&[0, 0x13, 0, 5, b'h', b'e', b'l', b'l', b'o', 0, 0, 0]);
    client.permit_v6(port, octets);
    client.socket.send(&message).unwrap();
    assert_eq!(receive(&peer).0, b"hello");
}

impl Client {
    fn permit_v6(&mut self, xored_port: u16, octets: [u8; 16]) {
        let mut out =
            Message::builder_request(Method::new(CREATE_PERMISSION), MessageWriteVec::new());
        let mask = out.data()[4..20].to_vec();
        let value: Vec<u8> = octets.iter().zip(mask).map(|(octet, mask)| octet ^ mask).collect();
        let value = [&[0, 2][..], &xored_port.to_be_bytes(), &value].concat();
        out.add_attribute(&RawAttribute::new(AttributeType::new(0x0012), &value)).unwrap();
        let (realm, nonce) = self.realm_and_nonce.clone().unwrap();
        out.add_attribute(&Username::new(&self.username).unwrap()).unwrap();
        out.add_attribute(&Realm::new(&realm).unwrap()).unwrap();
        out.add_attribute(&Nonce::new(&nonce).unwrap()).unwrap();
        out.add_message_integrity(&self.key(), IntegrityAlgorithm::Sha1).unwrap();
        self.socket.send(&out.finish()).unwrap();
        let reply = self.receive();
        assert!(Message::from_bytes(&reply).unwrap().attribute::<ErrorCode>().is_err());
    }
}

/// coturn's echoing peer.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn stock_peer() -> Option<(Peer, u16)> {
    let port = UdpSocket::bind(support::ANY_PORT).unwrap().local_addr().unwrap().port();
    let mut command = Command::new("turnutils_peer");
    command.args(["-L", "127.0.0.1", "-p", &port.to_string()]);
    match command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
        Err(error) => {
            println!("skipped: turnutils_peer: {error}");
            None
        }
        Ok(child) => Some((Peer(child), port)),
    }
}

#[test]
fn coturns_client_relays_all_its_messages() {
    let Some((_peer, peer_port)) = stock_peer() else { return };
    let (service, server) = service(|config| config.allocations_per_name = 100);
    for flags in [&["-c"][..], &["-c", "-s"], &[], &["-y", "-c"], &["-c", "-g", "-G"]] {
        let output = Command::new("turnutils_uclient")
            .args(flags)
            .args([
                "-m",
                "4",
                "-n",
                "50",
                "-l",
                "170",
                "-e",
                "127.0.0.1",
                "-r",
                &peer_port.to_string(),
            ])
            .args(["-W", SECRET, "-u", "tester", "-p", &server.port().to_string(), "127.0.0.1"])
            .output();
        let Ok(output) = output else { return println!("skipped: turnutils_uclient") };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let last = text.lines().rev().find(|line| line.contains("Total lost packets"));
        let last =
            last.unwrap_or_else(|| panic!("{flags:?}: {text}{:?} {output:?}", service.metrics()));
        assert!(
            last.contains("Total lost packets 0 "),
            "{flags:?}: {text} {:?}",
            service.metrics()
        );
    }
}
