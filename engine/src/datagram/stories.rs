//! The server under virtual time, with sockets that are only numbers.
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::allocation::Tuple;
use super::binding::Site;
use super::counts::{Counters, UdpDrop, UdpMetrics, UdpRefusal};
use super::credentials::{RelayCredentials, RelayUser, SharedSecret, relay_password};
use super::forward::FromClient;
use super::nonce::Nonces;
use super::peers::Peers;
use super::server::{Common, Now, Opened, RelaySockets, Server, Wish};
use super::shared::{Limits, Shared};
use super::wire::{Key, Stun, Writer, attribute, decode_address, encode_address, kind};
use super::{RelayAddress, UdpConfig};

const SECRET: &[u8] = b"north";
const TRANSACTION: [u8; 16] = [0x21, 0x12, 0xa4, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const UDP: (u16, &[u8]) = (attribute::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
const PEER: &str = "198.51.100.1:4000";

#[derive(Default)]
struct Numbers {
    open: BTreeSet<usize>,
    wishes: Vec<Wish>,
    none_left: bool,
}

impl RelaySockets for Numbers {
    fn open(&mut self, wish: &Wish) -> Option<Opened> {
        self.wishes.push(*wish);
        let id = (0..).find(|id| !self.open.contains(id))?;
        (!self.none_left).then(|| self.open.insert(id))?;
        let token = wish.reserve.then_some([7; 8]);
        Some(Opened { id, bound: SocketAddr::new(wish.bind, 50_000 + id as u16), token })
    }

    fn close(&mut self, id: usize) {
        assert!(self.open.remove(&id), "closed twice");
    }
}

struct World {
    server: Server,
    counters: Arc<Counters>,
    sockets: Numbers,
    start: Instant,
    passed: Duration,
    /// What the wall clock showed at the start.
    wall_s: u64,
}

/// One client address with one user's credentials.
#[derive(Clone)]
struct Client {
    tuple: Tuple,
    username: String,
    password: String,
    nonce: Vec<u8>,
    transaction: u8,
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn client(port: u16, username: &str) -> Client {
    let tuple = Tuple {
        client: SocketAddr::from(([192, 0, 2, 7], port)),
        reached: at("203.0.113.1:1").ip(),
    };
    let password = relay_password(SECRET, username);
    Client { tuple, username: username.into(), password, nonce: Vec::new(), transaction: 0 }
}

/// `NAME-ACCOUNT`, or a name that is an account of its own.
struct Accounts(SharedSecret);

impl RelayCredentials for Accounts {
    fn user(&self, username: &str, unix_now: u64) -> Option<RelayUser> {
        let user = self.0.user(username, unix_now)?;
        let (name, account) = user.name.split_once('-').unwrap_or((&user.name, &user.name));
        Some(RelayUser { name: name.to_owned(), account: account.to_owned(), ..user })
    }
}

impl World {
    fn new(change: impl FnOnce(&mut UdpConfig)) -> Self {
        let mut config =
            UdpConfig { allocations_per_name: 2, allocations_max: 3, ..UdpConfig::default() };
        change(&mut config);
        let limits = Limits {
            total: config.allocations_max,
            account: config.allocations_per_user,
            name: config.allocations_per_name,
        };
        let common = Arc::new(Common {
            sites: [Some(at("203.0.113.1:443")), None, None, None],
            nonces: Nonces::new(&[1; 32], 3600),
            credentials: Arc::new(Accounts(SharedSecret::new(SECRET))),
            shared: Shared::new(limits),
            config,
        });
        let (counters, start) = (Arc::new(Counters::default()), Instant::now());
        let relays = common.config.relay_addresses.iter().flat_map(|it| [it.bind, it.public]);
        let local = relays.chain([at("203.0.113.1:1").ip()]).collect();
        let peers = Peers::new(local, common.config.allowed_peers.clone());
        let server = Server::new(common, counters.clone(), peers, start);
        let (sockets, passed, wall_s) = (Numbers::default(), Duration::ZERO, 1_000_000);
        Self { server, counters, sockets, start, passed, wall_s }
    }

    fn now(&self) -> Now {
        let uptime_s = u32::try_from(self.passed.as_secs()).unwrap();
        let unix_s = self.wall_s.saturating_add(u64::from(uptime_s));
        Now { instant: self.start + self.passed, unix_s, uptime_s }
    }

    fn pass(&mut self, seconds: u64) {
        self.passed += Duration::from_secs(seconds);
        self.server.expire(self.now().instant, &mut self.sockets);
    }

    fn metrics(&self) -> UdpMetrics {
        Counters::sum(std::slice::from_ref(&self.counters))
    }

    fn raw(&mut self, tuple: Tuple, bytes: &[u8]) -> Option<Vec<u8>> {
        let now = self.now();
        let reply = self.server.control(now, Site::PRIMARY, tuple, bytes, &mut self.sockets);
        reply.map(|(bytes, _)| bytes)
    }

    /// Asks once, with the nonce that the client has.
    fn try_once(&mut self, client: &mut Client, kind: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        client.transaction += 1;
        let bytes = client.request(kind, attributes);
        self.raw(client.tuple, &bytes).expect("a reply")
    }

    /// Asks, and once more with the nonce of the refusal.
    fn ask(&mut self, client: &mut Client, kind: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let reply = self.try_once(client, kind, attributes);
        match Stun::parse(&reply).unwrap().get(attribute::NONCE) {
            Some(nonce) => {
                client.nonce = nonce.to_vec();
                self.try_once(client, kind, attributes)
            }
            None => reply,
        }
    }

    fn code(&mut self, client: &mut Client, kind: u16, attributes: &[(u16, &[u8])]) -> u16 {
        code(&self.ask(client, kind, attributes))
    }

    fn allocate(&mut self, client: &mut Client) -> u16 {
        self.code(client, kind::ALLOCATE, &[UDP])
    }

    fn bind(&mut self, client: &mut Client, number: u16, peer: &str) -> u16 {
        let number = [(number >> 8) as u8, number as u8, 0, 0];
        let peer = client.peer(peer);
        let attributes =
            [(attribute::CHANNEL_NUMBER, &number[..]), (attribute::XOR_PEER_ADDRESS, &peer)];
        self.code(client, kind::CHANNEL_BIND, &attributes)
    }

    fn permit(&mut self, client: &mut Client, peer: &str) -> u16 {
        self.permit_all(client, &[peer])
    }

    fn permit_all(&mut self, client: &mut Client, peers: &[&str]) -> u16 {
        let peers: Vec<_> = peers.iter().map(|peer| client.peer(peer)).collect();
        let peers: Vec<_> =
            peers.iter().map(|peer| (attribute::XOR_PEER_ADDRESS, &peer[..])).collect();
        self.code(client, kind::CREATE_PERMISSION, &peers)
    }

    /// What becomes of a Send indication.
    fn send(&self, client: &Client, peer: &str) -> FromClient {
        let peer = encode_address(at(peer), &TRANSACTION);
        let bytes = Writer::new(kind::SEND_INDICATION, TRANSACTION)
            .put(attribute::XOR_PEER_ADDRESS, &peer.0[..peer.1])
            .put(attribute::DATA, b"hello")
            .finish();
        self.server.sort(self.now().instant, &client.tuple, &bytes)
    }

    fn channel(&self, client: &Client, number: u16) -> FromClient {
        let bytes = [&number.to_be_bytes()[..], &[0, 2], b"hi"].concat();
        self.server.sort(self.now().instant, &client.tuple, &bytes)
    }
}

impl Client {
    fn transaction(&self) -> [u8; 16] {
        let mut transaction = TRANSACTION;
        transaction[15] = self.transaction;
        transaction
    }

    /// XOR-PEER-ADDRESS, whose mask over IPv4 is the cookie alone.
    fn peer(&self, peer: &str) -> Vec<u8> {
        let mut transaction = self.transaction();
        // The request that `try_once` makes next; a second try changes the mask of IPv6 addresses, so those are asked for
        // with a nonce already known.
        transaction[15] += 1;
        let (value, length) = encode_address(at(peer), &transaction);
        value[..length].to_vec()
    }

    fn request(&self, kind: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut out = Writer::new(kind, self.transaction());
        for (kind, value) in attributes {
            out = out.put(*kind, value);
        }
        if self.nonce.is_empty() {
            return out.finish();
        }
        let key = Key::long_term(&self.username, "switchback", &self.password);
        out.put(attribute::USERNAME, self.username.as_bytes())
            .put(attribute::REALM, b"switchback")
            .put(attribute::NONCE, &self.nonce)
            .sign(&key)
            .finish_with_fingerprint()
    }
}

/// The error code of a reply, 0 for success.
fn code(reply: &[u8]) -> u16 {
    let error = Stun::parse(reply).unwrap().word(attribute::ERROR_CODE);
    error.map_or(0, |[_, _, class, number]| u16::from(class) * 100 + u16::from(number))
}

fn lifetime(reply: &[u8]) -> u32 {
    Stun::parse(reply).unwrap().word(attribute::LIFETIME).map_or(0, u32::from_be_bytes)
}

fn world() -> World {
    World::new(|_| {})
}

fn is_data(sorted: FromClient) -> bool {
    matches!(sorted, FromClient::Data(_))
}

#[test]
fn an_allocation_tells_its_address_its_lifetime_and_where_the_client_is() {
    let (mut world, mut client) = (world(), client(1, "2000000:a"));
    let reply = world.ask(&mut client, kind::ALLOCATE, &[UDP]);
    let stun = Stun::parse(&reply).unwrap();
    let address = |kind| decode_address(stun.get(kind).unwrap(), &stun.transaction()).unwrap();
    assert_eq!(address(attribute::XOR_RELAYED_ADDRESS), at("203.0.113.1:50000"));
    assert_eq!(address(attribute::XOR_MAPPED_ADDRESS), client.tuple.client);
    assert_eq!(lifetime(&reply), 600);
    assert!(stun.verify(&Key::long_term("2000000:a", "switchback", &client.password)));
    assert_eq!(world.metrics().refused(UdpRefusal::Challenged), 1);
    let again = client.request(kind::ALLOCATE, &[UDP]);
    assert_eq!(world.raw(client.tuple, &again).unwrap(), reply, "a retransmission");
    assert_eq!(world.allocate(&mut client), 437, "a second one");
    assert_eq!(world.metrics().allocations, 1);
}

#[test]
fn only_who_holds_good_credentials_allocates() {
    for (username, password) in [
        ("2000000:a", "wrong"),
        ("999999:a", &relay_password(SECRET, "999999:a")),
        ("a", &relay_password(SECRET, "a")),
        ("2000000:a", &relay_password(b"south", "2000000:a")),
    ] {
        let (mut world, mut client) = (world(), client(1, username));
        client.password = password.to_owned();
        assert_eq!(world.allocate(&mut client), 401, "{username}");
        assert_eq!(world.metrics().refused(UdpRefusal::Unauthorized), 1);
        assert!(world.sockets.open.is_empty());
    }
}

#[test]
fn a_signature_without_its_attributes_is_a_bad_request() {
    let mut world = world();
    let key = Key::long_term("2000000:a", "switchback", "p");
    let bytes = Writer::new(kind::ALLOCATE, TRANSACTION).put(UDP.0, UDP.1).sign(&key).finish();
    assert_eq!(code(&world.raw(client(1, "").tuple, &bytes).unwrap()), 400);
}

#[test]
fn nonces_grow_stale_and_are_nobody_elses() {
    let (mut world, mut client) = (world(), client(1, "2000000:a"));
    assert_eq!(world.allocate(&mut client), 0);
    for _ in 0..7 {
        world.pass(590);
        world.ask(&mut client, kind::REFRESH, &[]);
    }
    assert_eq!(world.metrics().refused(UdpRefusal::StaleNonce), 1);
    let mut stolen = client.clone();
    stolen.tuple.client.set_port(2);
    assert_eq!(code(&world.try_once(&mut stolen, kind::ALLOCATE, &[UDP])), 438);
    assert_eq!(world.metrics().allocations, 1);
}

#[test]
fn an_allocation_ends_with_its_lifetime_and_a_refresh_renews_it() {
    let (mut world, mut client) = (world(), client(1, "2000000:a"));
    assert_eq!(world.allocate(&mut client), 0);
    world.pass(599);
    let hour = 9999u32.to_be_bytes();
    assert_eq!(
        lifetime(&world.ask(&mut client, kind::REFRESH, &[(attribute::LIFETIME, &hour)])),
        3600
    );
    world.pass(3599);
    assert_eq!(world.metrics().allocations, 1);
    world.pass(1);
    assert!(world.sockets.open.is_empty());
    assert_eq!(world.code(&mut client, kind::REFRESH, &[]), 437);
    assert_eq!(world.allocate(&mut client), 0, "the place is free");
}

#[test]
fn an_allocation_outlives_its_credentials_but_a_new_one_does_not_come() {
    let (mut world, mut first) = (world(), client(1, "1000100:a"));
    assert_eq!(world.allocate(&mut first), 0);
    world.pass(500);
    assert_eq!(world.code(&mut first, kind::REFRESH, &[]), 0);
    assert_eq!(world.allocate(&mut client(2, "1000100:a")), 401);
}

#[test]
fn a_wall_clock_that_jumps_ends_no_allocation() {
    let (mut world, mut client) = (world(), client(1, "2000000:a"));
    assert_eq!(world.allocate(&mut client), 0);
    for wall_s in [0, 5_000_000, u64::MAX, 1_000_000] {
        world.wall_s = wall_s;
        world.pass(100);
        assert_eq!(world.permit(&mut client, PEER), 0, "{wall_s}");
        assert!(is_data(world.send(&client, PEER)), "{wall_s}");
        assert_eq!(world.code(&mut client, kind::REFRESH, &[]), 0, "{wall_s}");
    }
}

#[test]
fn a_refresh_with_no_lifetime_ends_it_at_once() {
    let (mut world, mut client) = (world(), client(1, "2000000:a"));
    assert_eq!(world.allocate(&mut client), 0);
    let wrong_family = [(attribute::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0][..])];
    assert_eq!(world.code(&mut client, kind::REFRESH, &wrong_family), 443);
    assert_eq!(world.code(&mut client, kind::REFRESH, &[(attribute::LIFETIME, &[0; 4])]), 0);
    assert!(world.sockets.open.is_empty());
    assert_eq!(world.permit(&mut client, PEER), 437);
    assert_eq!(world.bind(&mut client, 0x4000, PEER), 437);
}

#[test]
fn an_allocation_obeys_only_who_made_it() {
    let (mut world, mut owner) = (world(), client(1, "2000000:a"));
    assert_eq!(world.allocate(&mut owner), 0);
    let mut other = Client { nonce: owner.nonce.clone(), ..client(1, "2000000:b") };
    other.transaction = 100;
    for kind in [kind::REFRESH, kind::ALLOCATE, kind::CHANNEL_BIND] {
        assert_eq!(world.code(&mut other, kind, &[(attribute::LIFETIME, &[0; 4])]), 441);
    }
    assert_eq!(world.metrics().allocations, 1);
}

#[test]
fn a_revoked_users_allocations_end_and_no_new_ones_come() {
    let mut world = world();
    let (mut gone, mut stays) = (client(1, "2000000:a"), client(2, "2000000:b"));
    assert_eq!((world.allocate(&mut gone), world.allocate(&mut stays)), (0, 0));
    world.server.common.shared.revoke("a");
    world.pass(1);
    assert_eq!(world.sockets.open.len(), 1);
    assert_eq!(world.code(&mut gone, kind::REFRESH, &[]), 437);
    assert_eq!(world.allocate(&mut gone), 403, "credentials that have not expired");
    assert_eq!(world.allocate(&mut client(3, "1500000:a")), 403, "nor others of the same user");
    assert_eq!(world.code(&mut stays, kind::REFRESH, &[]), 0);
    let metrics = world.metrics();
    assert_eq!((metrics.allocations, metrics.allocations_revoked), (1, 1));
    assert_eq!(metrics.refused(UdpRefusal::Revoked), 2);
    world.pass(1);
    assert_eq!(world.metrics().allocations_revoked, 1);
}

#[test]
fn quotas_hold_for_a_user_and_for_all() {
    let mut world = world();
    let mut allocate = |port, user| world.allocate(&mut client(port, user));
    // Another expiry is another username of the same user.
    assert_eq!((allocate(1, "2000000:a"), allocate(2, "2000001:a")), (0, 0));
    assert_eq!(allocate(3, "2000002:a"), 486);
    assert_eq!((allocate(4, "2000000:b"), allocate(5, "2000000:b")), (0, 508));
    world.pass(601);
    assert_eq!(world.allocate(&mut client(6, "2000000:a")), 0);
    assert_eq!((world.metrics().allocations, world.sockets.open.len()), (1, 1));
}

#[test]
fn a_user_has_one_quota_over_all_sessions_and_may_not_take_all_places() {
    let mut world = World::new(|config| {
        (config.allocations_max, config.allocations_per_user) = (6, 4);
    });
    let names = ["s-ada", "t-ada", "u-ada", "v-ada", "w-ada"];
    let codes = (1..)
        .zip(names)
        .map(|(port, name)| world.allocate(&mut client(port, &format!("2000000:{name}"))));
    assert_eq!(codes.collect::<Vec<_>>(), [0, 0, 0, 0, 486]);
    assert_eq!(world.allocate(&mut client(9, "2000000:x-bob")), 0, "others are served");
    world.server.common.shared.revoke("s");
    world.pass(1);
    assert_eq!(world.allocate(&mut client(10, "2000000:s-ada")), 403, "the session is over");
    assert_eq!(world.allocate(&mut client(11, "2000000:y-ada")), 0, "it left a place");
}

#[test]
fn no_port_left_is_insufficient_capacity_and_takes_no_quota() {
    let mut world = world();
    world.sockets.none_left = true;
    for port in 0..5 {
        assert_eq!(world.allocate(&mut client(port, "2000000:a")), 508);
    }
    world.sockets.none_left = false;
    assert_eq!(world.allocate(&mut client(9, "2000000:a")), 0);
}

#[test]
fn what_an_allocate_may_ask_for_and_what_not() {
    let family = |family: &'static [u8]| (attribute::REQUESTED_ADDRESS_FAMILY, family);
    let token = (attribute::RESERVATION_TOKEN, &[1u8; 8][..]);
    let even = (attribute::EVEN_PORT, &[0x80u8][..]);
    for (attributes, wanted) in [
        (vec![], 400),
        (vec![(attribute::REQUESTED_TRANSPORT, &[6, 0, 0, 0][..])], 442),
        (vec![UDP, family(&[1, 0, 0, 0])], 0),
        (vec![UDP, family(&[2, 0, 0, 0])], 440),
        (vec![UDP, family(&[9, 0, 0, 0])], 440),
        (vec![UDP, token, even], 400),
        (vec![UDP, token, family(&[1, 0, 0, 0])], 400),
        (vec![UDP, (attribute::RESERVATION_TOKEN, &[1; 3])], 400),
        (vec![UDP, (0x7777, &[])], 420),
        (vec![UDP, (0x8777, &[])], 0),
    ] {
        let mut world = world();
        assert_eq!(
            world.code(&mut client(1, "2000000:a"), kind::ALLOCATE, &attributes),
            wanted,
            "{attributes:?}"
        );
    }
    let mut world = world();
    let reply = world.ask(
        &mut client(1, "2000000:a"),
        kind::ALLOCATE,
        &[UDP, even, (attribute::DONT_FRAGMENT, &[])],
    );
    assert_eq!(Stun::parse(&reply).unwrap().get(attribute::RESERVATION_TOKEN), Some(&[7; 8][..]));
    let wish = world.sockets.wishes[0];
    assert!(wish.even && wish.reserve && wish.whole);
}

#[test]
fn configured_addresses_serve_both_families_and_tell_their_public_side() {
    let address = |bind: &str, public: &str| RelayAddress {
        bind: bind.parse().unwrap(),
        public: public.parse().unwrap(),
    };
    let addresses = vec![address("10.0.0.5", "203.0.113.9"), address("2001:db8::5", "2001:db8::5")];
    let mut world = World::new(|config| config.relay_addresses = addresses);
    for (port, family, bind, public) in
        [(1, 1, "10.0.0.5", "203.0.113.9"), (2, 2, "2001:db8::5", "2001:db8::5")]
    {
        let mut client = client(port, "2000000:a");
        let family = (attribute::REQUESTED_ADDRESS_FAMILY, &[family, 0, 0, 0][..]);
        let reply = world.ask(&mut client, kind::ALLOCATE, &[UDP, family]);
        let stun = Stun::parse(&reply).unwrap();
        let relayed = stun.get(attribute::XOR_RELAYED_ADDRESS).unwrap();
        assert_eq!(
            decode_address(relayed, &stun.transaction()).unwrap().ip(),
            public.parse::<IpAddr>().unwrap()
        );
        assert_eq!(world.sockets.wishes.last().unwrap().bind, bind.parse::<IpAddr>().unwrap());
    }
    let mut two = client(1, "2000000:a");
    two.nonce = b"stale".to_vec();
    world.code(&mut two, kind::REFRESH, &[]);
    for (peer, wanted) in [
        ("203.0.113.9:50000", 0),
        ("10.0.0.5:50000", 400),
        ("203.0.113.9:50001", 403),
        ("203.0.113.1:50000", 403),
    ] {
        assert_eq!(world.bind(&mut two, 0x4000, peer), wanted, "{peer}");
    }
    let mut v6 = client(2, "2000000:a");
    v6.nonce = b"stale".to_vec();
    world.code(&mut v6, kind::REFRESH, &[]);
    assert_eq!(world.permit(&mut v6, PEER), 443);
    assert_eq!(world.permit(&mut v6, "[2001:db8::77]:5000"), 0);
    assert_eq!(world.permit(&mut v6, "[::1]:5000"), 403);
}

#[test]
fn data_needs_a_permission_or_a_channel_while_they_last() {
    let (mut world, mut client) = (world(), client(1, "2000000:a"));
    assert_eq!(world.send(&client, PEER), FromClient::Dropped(UdpDrop::NoAllocation));
    assert_eq!(world.channel(&client, 0x4000), FromClient::Dropped(UdpDrop::NoAllocation));
    world.allocate(&mut client);
    assert_eq!(world.send(&client, PEER), FromClient::Dropped(UdpDrop::NoPermission));
    assert_eq!(world.channel(&client, 0x4000), FromClient::Dropped(UdpDrop::NoChannel));
    let from_peer = |world: &World| world.server.route(world.now().instant, 0, at(PEER));
    assert_eq!(from_peer(&world), Err(UdpDrop::NoPermission));
    assert_eq!(world.permit(&mut client, PEER), 0);
    assert!(is_data(world.send(&client, PEER)) && from_peer(&world).is_ok());
    assert_eq!(world.bind(&mut client, 0x4000, PEER), 0);
    let FromClient::Data(data) = world.channel(&client, 0x4000) else { panic!("no data") };
    assert_eq!((data.peer, data.start, data.length), (at(PEER), 4, 2));
    world.pass(301);
    assert_eq!(from_peer(&world), Err(UdpDrop::NoPermission));
    assert_eq!(world.send(&client, PEER), FromClient::Dropped(UdpDrop::NoPermission));
    world.pass(400);
    assert_eq!(world.channel(&client, 0x4000), FromClient::Dropped(UdpDrop::NoAllocation));
}

#[test]
fn a_peers_data_comes_on_its_channel_or_as_an_indication() {
    let (mut world, mut client) = (world(), client(1, "2000000:a"));
    world.allocate(&mut client);
    world.permit(&mut client, PEER);
    world.bind(&mut client, 0x4001, "198.51.100.1:9999");
    let way = |peer| world.server.route(world.now().instant, 0, at(peer)).unwrap();
    let (head, length, padding) = way("198.51.100.1:9999").head(300, 1);
    assert_eq!((&head[..usize::from(length)], padding), (&[0x40, 1, 1, 44][..], 0));
    let (head, length, padding) = way(PEER).head(5, 1);
    let bytes = [&head[..usize::from(length)], b"hello", &vec![0; padding.into()]].concat();
    let stun = Stun::parse(&bytes).unwrap();
    assert_eq!(
        (stun.kind(), stun.get(attribute::DATA)),
        (kind::DATA_INDICATION, Some(&b"hello"[..]))
    );
    let peer = decode_address(stun.get(attribute::XOR_PEER_ADDRESS).unwrap(), &stun.transaction());
    assert_eq!(peer, Some(at(PEER)));
}

#[test]
fn channels_are_one_to_one_and_in_their_range() {
    let (mut world, mut client) = (world(), client(1, "2000000:a"));
    world.allocate(&mut client);
    assert_eq!(world.bind(&mut client, 0x4000, PEER), 0);
    assert_eq!(world.bind(&mut client, 0x4000, PEER), 0, "a renewal");
    assert_eq!(world.bind(&mut client, 0x4000, "198.51.100.2:4000"), 400);
    assert_eq!(world.bind(&mut client, 0x4001, PEER), 400);
    for number in [0x3fff, 0x8000, 0] {
        assert_eq!(world.bind(&mut client, number, "198.51.100.3:4000"), 400);
    }
    assert_eq!(world.code(&mut client, kind::CHANNEL_BIND, &[]), 400);
    assert_eq!(world.code(&mut client, kind::CREATE_PERMISSION, &[]), 400);
}

#[test]
fn forbidden_peers_get_403_and_no_data() {
    let (mut world, mut client) = (world(), client(1, "2000000:a"));
    world.allocate(&mut client);
    for peer in [
        "127.0.0.1:5000",
        "224.0.0.1:5000",
        "169.254.169.254:8000",
        "0.0.0.0:5000",
        "255.255.255.255:5000",
    ] {
        assert_eq!(world.permit(&mut client, peer), 403, "{peer}");
        assert_eq!(world.bind(&mut client, 0x4000, peer), 403, "{peer}");
    }
    assert_eq!(world.bind(&mut client, 0x4000, "198.51.100.1:53"), 403, "a service");
    assert_eq!(world.permit(&mut client, PEER), 0);
    assert_eq!(world.send(&client, "198.51.100.1:53"), FromClient::Dropped(UdpDrop::ForbiddenPeer));
    assert_eq!(world.metrics().refused(UdpRefusal::ForbiddenPeer), 11);
    assert_eq!(world.permit(&mut client, "[2001:db8::1]:5000"), 443);
}

#[test]
fn create_permission_installs_all_addresses_or_none() {
    let (mut world, mut client) = (world(), client(1, "2000000:a"));
    world.allocate(&mut client);
    let many: Vec<_> = (0..65).map(|last| format!("198.51.100.{last}:4000")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let sent = |world: &World, client: &Client| {
        many.iter().filter(|peer| is_data(world.send(client, peer))).count()
    };
    assert_eq!(world.permit_all(&mut client, &["198.51.100.1:4000", "127.0.0.1:4000"]), 403);
    assert_eq!(world.permit_all(&mut client, &["198.51.100.1:4000", "[2001:db8::1]:4000"]), 443);
    assert_eq!(world.permit_all(&mut client, &many), 508);
    assert_eq!(sent(&world, &client), 0);
    assert_eq!(world.permit_all(&mut client, &many[..60]), 0);
    assert_eq!(world.permit_all(&mut client, &many[59..]), 508, "five more have room for four");
    assert_eq!(sent(&world, &client), 60);
    assert_eq!(world.permit_all(&mut client, &many[59..64]), 0);
    assert_eq!(sent(&world, &client), 64);
}

#[test]
fn the_host_itself_is_reached_on_relayed_ports_only() {
    let mut world = world();
    let (mut one, mut two) = (client(1, "2000000:a"), client(2, "2000000:a"));
    assert_eq!((world.allocate(&mut one), world.allocate(&mut two)), (0, 0));
    assert_eq!(world.bind(&mut one, 0x4000, "203.0.113.1:50001"), 0, "the other allocation");
    assert_eq!(world.bind(&mut one, 0x4001, "203.0.113.1:50002"), 403);
    assert!(is_data(world.channel(&one, 0x4000)) && is_data(world.send(&one, "203.0.113.1:50001")));
    assert_eq!(world.send(&one, "203.0.113.1:443"), FromClient::Dropped(UdpDrop::ForbiddenPeer));
    world.code(&mut two, kind::REFRESH, &[(attribute::LIFETIME, &[0; 4])]);
    assert_eq!(world.channel(&one, 0x4000), FromClient::Dropped(UdpDrop::ForbiddenPeer));
}

#[test]
fn strangers_are_answered_within_a_rate_and_never_much_longer_than_they_asked() {
    let mut world = World::new(|config| (config.answers_per_s, config.answers_burst) = (1, 5));
    let bytes = client(1, "").request(kind::ALLOCATE, &[UDP]);
    let replies: Vec<_> = (0..50).filter_map(|_| world.raw(client(1, "").tuple, &bytes)).collect();
    assert_eq!(replies.len(), 5);
    assert_eq!(world.metrics().dropped(UdpDrop::RateLimited), 45);
    // With IPv4 and UDP headers. A challenge has to carry realm and nonce.
    assert!((replies[0].len() + 28) * 100 <= (bytes.len() + 28) * 165, "{}", replies[0].len());
}

#[test]
fn whatever_is_no_request_is_dropped_and_counted() {
    let mut world = world();
    let tuple = client(1, "").tuple;
    let success = Writer::new(kind::BINDING + kind::SUCCESS, TRANSACTION).finish();
    let long = Writer::new(kind::BINDING, TRANSACTION).put(attribute::PADDING, &[0; 4000]).finish();
    let unknown = Writer::new(0x000a, TRANSACTION).finish();
    for bytes in [&b"garbage"[..], &[], &success, &unknown, &long] {
        assert_eq!(world.raw(tuple, bytes), None);
    }
    let metrics = world.metrics();
    assert_eq!((metrics.dropped(UdpDrop::Malformed), metrics.dropped(UdpDrop::Oversized)), (4, 1));
}

proptest! {
    #[test]
    fn no_story_leaks_an_allocation_or_a_quota(steps in proptest::collection::vec((0u8..8, 0u16..5, 0u64..400), 1..60)) {
        let mut world = world();
        let mut clients: Vec<_> = (0..5).map(|port| client(port, ["2000000:a", "2000000:b"][usize::from(port % 2)])).collect();
        for (step, who, seconds) in steps {
            let client = &mut clients[usize::from(who)];
            client.transaction = client.transaction % 200 + 1;
            match step {
                0..=2 => drop(world.allocate(client)),
                3 => drop(world.code(client, kind::REFRESH, &[(attribute::LIFETIME, &[0; 4])])),
                4 => drop(world.bind(client, 0x4000 + who, PEER)),
                5 => drop(world.code(client, kind::REFRESH, &[])),
                _ => world.pass(seconds),
            }
            let metrics = world.metrics();
            prop_assert_eq!(metrics.allocations as usize, world.sockets.open.len());
            prop_assert!(metrics.allocations <= 3);
        }
        world.pass(4000);
        prop_assert!(world.sockets.open.is_empty());
        for port in 10..13 {
            let user = format!("2000000:{port}");
            prop_assert_eq!(world.allocate(&mut super::stories::client(port, &user)), 0);
        }
    }

    #[test]
    fn garbage_from_a_client_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), kind in 0u16..0x120) {
        let (mut world, mut client) = (world(), client(1, "2000000:a"));
        world.allocate(&mut client);
        if bytes.len() >= 20 {
            let length = (bytes.len() as u16 - 20).to_be_bytes();
            bytes[..2].copy_from_slice(&kind.to_be_bytes());
            bytes[2..4].copy_from_slice(&length);
            bytes[4..8].copy_from_slice(&TRANSACTION[..4]);
        }
        let _ = world.server.sort(world.now().instant, &client.tuple, &bytes);
        let _ = world.raw(client.tuple, &bytes);
    }
}
