//! Promises of the keeper, the lifetime probe and the TURN client, in virtual time.
use std::net::SocketAddr;
use std::time::Duration;

use super::fixture::{A, World, ms, nats};
use super::lab::NatKind;
use super::*;

fn kind_of(name: &str) -> NatKind {
    nats().into_iter().find(|(known, _)| *known == name).unwrap().1
}

fn behind(name: &str) -> World {
    World::new(21, ms(10), Some(kind_of(name)), None)
}

#[test]
fn a_server_that_was_silent_is_asked_afresh_on_another_network() {
    let mut now = std::time::Instant::now();
    let servers = vec!["192.0.2.1:443".parse().unwrap()];
    let mut keeper = Keeper::new(now, KeeperConfig::new(None, servers));
    let silent = |keeper: &mut Keeper| {
        std::iter::from_fn(|| keeper.poll_event()).any(|it| matches!(it, KeeperEvent::Silent(_)))
    };
    while !silent(&mut keeper) {
        now = keeper.poll_timeout().unwrap();
        keeper.handle_timeout(now);
    }
    while keeper.poll_transmit().is_some() {}
    keeper.network_changed(now);
    assert!(keeper.poll_transmit().is_some());
    assert!(keeper.poll_timeout().unwrap() <= now + ms(200), "it waits as for a silent server");
}

#[test]
fn reflexive_addresses_are_known_before_anybody_asks_and_kept() {
    let mut world = behind("port-restr");
    let wanted =
        Candidate::new(CandidateKind::ServerReflexive, "203.0.113.2:5000".parse().unwrap());
    assert_eq!(world.a.keeper.candidates(), [wanted]);
    let answered = world.server.answered;
    world.run(Duration::from_secs(600));
    assert_eq!(world.a.keeper.candidates(), [wanted]);
    // Two ends, two servers, one request in 15 s each, and now and then the other addresses.
    let asked = world.server.answered - answered;
    assert!((150..=190).contains(&asked), "{asked}");
}

#[test]
fn without_nat_there_is_nothing_to_add() {
    let world = World::new(22, ms(10), None, None);
    assert!(world.a.keeper.candidates().is_empty());
    assert_eq!(world.a.keeper.view().mapping, Mapping::None);
}

#[test]
fn mapping_and_ports_of_each_nat_are_named() {
    let expected = [
        ("fullcone", Mapping::EndpointIndependent, Ports::Preserved),
        ("port-restr", Mapping::EndpointIndependent, Ports::Preserved),
        ("eim-nopres", Mapping::EndpointIndependent, Ports::Random),
        ("adm-adf", Mapping::AddressDependent, Ports::Random),
        ("sym-random", Mapping::AddressAndPortDependent, Ports::Random),
        ("sym-seq", Mapping::AddressAndPortDependent, Ports::Sequential(1)),
    ];
    for (name, mapping, ports) in expected {
        let view = behind(name).a.keeper.view();
        assert_eq!((view.mapping, view.ports), (mapping, ports), "{name}");
    }
    let world = behind("sym-seq");
    let predicted = world.a.keeper.candidates();
    assert_eq!(predicted.iter().filter(|c| c.kind == CandidateKind::Predicted).count(), 8);
}

#[test]
fn a_server_with_one_address_and_two_ports_is_enough_to_predict_a_sequential_nat() {
    let around = |name: &str, other: &str| {
        let mut server = lab_server::Server::new();
        server.single = true;
        World::around(server, 25, ms(10), Some(kind_of(name)), Some(kind_of(other)))
    };
    let mut world = around("sym-seq", "port-restr");
    let view = world.a.keeper.view();
    assert_eq!(view.mapping, Mapping::AddressAndPortDependent);
    let predicted = world.a.keeper.candidates();
    assert_eq!(predicted.iter().filter(|c| c.kind == CandidateKind::Predicted).count(), 8);
    world.start(ms(5));
    let met = world.meet(crate::LegKind::UdpDirect, Duration::from_secs(2));
    assert!(met.is_some(), "prediction leads to the peer");
    // Nothing is claimed that one address cannot tell.
    for (name, mapping) in [
        ("port-restr", Mapping::Unknown),
        ("adm-adf", Mapping::Unknown),
        ("sym-random", Mapping::AddressAndPortDependent),
    ] {
        let keeper = around(name, "fullcone").a.keeper;
        assert_eq!(keeper.view().mapping, mapping, "{name}");
        let predicted = |c: &Candidate| c.kind == CandidateKind::Predicted;
        assert!(!keeper.candidates().iter().any(predicted), "{name}");
    }
}

#[test]
fn a_mapping_that_expires_makes_keepalives_just_frequent_enough() {
    let mut kind = kind_of("eim-nopres");
    kind.timeout = Duration::from_secs(10);
    let mut world = World::new(23, ms(10), Some(kind), None);
    world.run(Duration::from_secs(300));
    let view = world.a.keeper.view();
    assert!(view.keepalive_ms < 10_000, "{view:?}");
    let rebounds = view.rebounds;
    let quiet = world.a.keeper_log.len();
    world.run(Duration::from_secs(900));
    let later = &world.a.keeper_log[quiet..];
    assert!(!later.iter().any(|(_, e)| matches!(e, KeeperEvent::Rebound { .. })), "{later:?}");
    assert!(world.a.keeper.view().keepalive_ms >= 4_000, "before: {rebounds}");
}

#[test]
fn a_rebound_nat_is_told_with_both_addresses() {
    let mut world = behind("eim-nopres");
    let before = world.a.keeper.candidates()[0].address;
    world.net.rebind(A, 0);
    world.run(Duration::from_secs(16));
    let after = world.a.keeper.candidates()[0].address;
    let told = world
        .a
        .keeper_log
        .iter()
        .any(|(_, event)| *event == KeeperEvent::Rebound { from: before, to: after });
    assert!(told && before != after);
}

#[test]
fn a_silent_server_is_told_once_and_asked_again_slowly() {
    let mut world = behind("port-restr");
    world.net.blocked.push(A.parse().unwrap());
    let now = world.net.now;
    world.a.keeper.network_changed(now);
    world.run(Duration::from_secs(60));
    let silent = |world: &World| {
        world.a.keeper_log.iter().filter(|(_, e)| matches!(e, KeeperEvent::Silent(_))).count()
    };
    let told = silent(&world);
    assert!(told >= 2);
    assert!(world.a.keeper.candidates().is_empty());
    world.run(Duration::from_secs(600));
    assert_eq!(silent(&world), told);
    world.net.blocked.clear();
    world.run(Duration::from_secs(31));
    assert!(!world.a.keeper.candidates().is_empty());
}

#[test]
fn a_change_of_network_gives_silent_servers_a_new_chance_at_once() {
    let mut world = behind("port-restr");
    world.net.blocked.push(A.parse().unwrap());
    world.run(Duration::from_secs(120));
    assert!(world.a.keeper.candidates().is_empty());
    world.net.blocked.clear();
    let now = world.net.now;
    world.a.keeper.network_changed(now);
    world.run(ms(100));
    assert!(!world.a.keeper.candidates().is_empty());
    // And if it stays silent, that is told anew.
    world.net.blocked.push(A.parse().unwrap());
    let (told, now) = (world.a.keeper_log.len(), world.net.now);
    world.a.keeper.network_changed(now);
    world.run(Duration::from_secs(5));
    let news = &world.a.keeper_log[told..];
    assert!(news.iter().any(|(_, event)| matches!(event, KeeperEvent::Silent(_))), "{news:?}");
}

#[test]
fn servers_that_were_silent_are_asked_as_at_first_when_the_owner_has_reached_them() {
    let mut world = behind("port-restr");
    world.net.blocked.push(A.parse().unwrap());
    world.run(Duration::from_secs(120));
    assert!(world.a.keeper.candidates().is_empty());
    let servers = world.a.keeper.view().servers.iter().map(|(server, ..)| *server).collect();
    let now = world.net.now;
    world.a.keeper.set_servers(now, servers);
    // The first request is lost, the second is not.
    world.run(ms(100));
    world.net.blocked.clear();
    world.run(ms(500));
    assert!(!world.a.keeper.candidates().is_empty());
}

#[test]
fn a_new_address_is_known_as_soon_as_the_owner_has_reached_its_servers_again() {
    let mut world = behind("eim-nopres");
    let before = world.a.keeper.candidates();
    let servers: Vec<_> = world.a.keeper.view().servers.iter().map(|(it, ..)| *it).collect();
    world.run(Duration::from_secs(1));
    world.net.rebind(A, 0);
    let now = world.net.now;
    world.a.keeper.set_servers(now, servers);
    world.run(ms(100));
    assert_ne!(world.a.keeper.candidates(), before);
}

#[test]
fn answers_nobody_asked_for_are_ignored() {
    let mut world = behind("port-restr");
    let (before, now, server) = (world.a.keeper.view(), world.net.now, world.server.stun());
    let liar = message::Writer::new(
        stun_types::message::MessageClass::Success,
        stun_types::message::BINDING,
        stun_types::message::TransactionId::from(4711),
    )
    .add_address(message::attribute::XOR_MAPPED_ADDRESS, "198.51.100.66:66".parse().unwrap())
    .finish(None);
    assert!(!world.a.keeper.accepts(server, &liar));
    world.a.keeper.handle_packet(now, server, &liar);
    assert_eq!(world.a.keeper.view(), before);
    assert_eq!(world.a.keeper.take_astray(), 0);
}

#[test]
fn an_answer_from_elsewhere_than_its_request_went_is_ignored_and_counted() {
    let mut world = behind("port-restr");
    let (before, now) = (world.a.keeper.view(), world.net.now);
    world.a.keeper.doubt(now);
    let (_, request) = world.a.keeper.poll_transmit().unwrap();
    let liar = message::Writer::new(
        stun_types::message::MessageClass::Success,
        stun_types::message::BINDING,
        message::transaction(&request).unwrap(),
    )
    .add_address(message::attribute::XOR_MAPPED_ADDRESS, "198.51.100.66:66".parse().unwrap())
    .finish(None);
    world.a.keeper.handle_packet(now, "198.51.100.66:3478".parse().unwrap(), &liar);
    assert_eq!(world.a.keeper.view(), before);
    assert_eq!((world.a.keeper.take_astray(), world.a.keeper.take_astray()), (1, 0));
}

#[test]
fn a_spare_socket_learns_how_long_a_mapping_lives() {
    let mut kind = kind_of("eim-nopres");
    kind.timeout = Duration::from_secs(40);
    let mut net = lab::Net::new(24);
    net.host(A, ms(10), Some(lab::Nat::new(kind, "203.0.113.2")));
    let mut server = lab_server::Server::new();
    for ip in server.addresses {
        net.host(&ip.to_string(), Duration::ZERO, None);
    }
    let socket: SocketAddr = "10.0.1.2:6000".parse().unwrap();
    let mut probe = LifetimeProbe::new(net.now, server.stun(), [5; 32]);
    while let Some(due) = [probe.poll_timeout(), net.next()].into_iter().flatten().min() {
        net.now = net.now.max(due);
        while let Some(datagram) = net.arrived() {
            if server.owns(datagram.to) {
                server.handle(&mut net, &datagram);
            } else {
                probe.handle_packet(net.now, datagram.from, &datagram.bytes);
            }
        }
        probe.handle_timeout(net.now);
        while let Some((to, bytes)) = probe.poll_transmit() {
            net.send(socket, to, bytes);
        }
    }
    let found = MappingLifetime {
        kept: Some(Duration::from_secs(32)),
        lost: Some(Duration::from_secs(45)),
    };
    assert_eq!(probe.found(), found);
    assert_eq!(found.keepalive(), Duration::from_millis(25_600));
}

/// Two sockets in shifts before a NAT that ends mappings at an age; what is in use sends ten packets a second.
struct InShifts {
    net: lab::Net,
    server: lab_server::Server,
    keepers: [Option<Keeper>; 2],
    shifts: Shifts,
    used: usize,
    /// By which socket the last packet came, and from which port.
    seen: (usize, u16),
}

/// A port of the session's peer.
const PEER: u16 = 9;

impl InShifts {
    const SOCKETS: [&str; 2] = ["10.0.1.2:6000", "10.0.1.2:6001"];

    fn new(life: Duration) -> Self {
        let kind = NatKind { life, ..kind_of("eim-nopres") };
        let mut net = lab::Net::new(25);
        net.host(A, ms(10), Some(lab::Nat::new(kind, "203.0.113.2")));
        let server = lab_server::Server::new();
        for ip in server.addresses {
            net.host(&ip.to_string(), Duration::ZERO, None);
        }
        let first = Some(Self::keeper(&net, &server, 0));
        Self {
            net,
            server,
            keepers: [first, None],
            shifts: Shifts::default(),
            used: 0,
            seen: (0, 0),
        }
    }

    fn socket(at: usize) -> SocketAddr {
        Self::SOCKETS[at].parse().unwrap()
    }

    fn keeper(net: &lab::Net, server: &lab_server::Server, at: usize) -> Keeper {
        let config = KeeperConfig::new(Some(Self::socket(at)), vec![server.stun()]);
        Keeper::new(net.now, KeeperConfig { seed: [at as u8; 32], ..config })
    }

    fn step(&mut self) {
        self.net.now += ms(100);
        while let Some(datagram) = self.net.arrived() {
            if datagram.to.port() == PEER {
                self.seen = (usize::from(datagram.bytes[0]), datagram.from.port());
            } else if self.server.owns(datagram.to) {
                self.server.handle(&mut self.net, &datagram);
            } else if let Some(at) = (0..2).find(|at| Self::socket(*at) == datagram.to)
                && let Some(keeper) = &mut self.keepers[at]
            {
                keeper.handle_packet(self.net.now, datagram.from, &datagram.bytes);
            }
        }
        let (now, limit) = (self.net.now, self.keepers[0].as_ref().unwrap().age_limit());
        let age = |keeper: &Option<Keeper>| keeper.as_ref().and_then(|it| it.mapping_age(now));
        let roster = self.shifts.arrange(limit, age(&self.keepers[0]), age(&self.keepers[1]));
        if roster.twin != self.keepers[1].is_some() {
            self.keepers[1] = roster.twin.then(|| Self::keeper(&self.net, &self.server, 1));
        }
        self.used = match roster.retiring {
            Some(Shift::First) => 1,
            Some(Shift::Twin) => 0,
            None => self.used,
        };
        let peer = SocketAddr::new(self.server.addresses[0], PEER);
        for (at, keeper) in self.keepers.iter_mut().enumerate() {
            let Some(keeper) = keeper else { continue };
            keeper.learn_age_limit(limit.filter(|_| at == 1));
            keeper.handle_timeout(now);
            while let Some((to, bytes)) = keeper.poll_transmit() {
                self.net.send(Self::socket(at), to, bytes);
            }
            if at == self.used {
                self.net.send(Self::socket(at), peer, vec![at as u8]);
            }
        }
    }
}

#[test]
fn where_mappings_end_at_an_age_none_ends_that_is_in_use_once_that_is_learnt() {
    for life in [60, 300, 600, 3600].map(Duration::from_secs) {
        let mut two = InShifts::new(life);
        let (mut broken, mut moves) = (0, 0);
        let steps = u32::try_from(life.as_millis() / 100).unwrap();
        for step in 0..30 * steps {
            let was = two.seen;
            two.step();
            let seen = two.seen;
            // The third life is the first of which the end is known.
            if step > 3 * steps {
                moves += u32::from(was.0 != seen.0);
                broken += u32::from(was.0 == seen.0 && was.1 != seen.1);
            }
        }
        assert_eq!(broken, 0, "{life:?}");
        assert!((50..=56).contains(&moves), "{life:?}: {moves} moves in 27 lives");
    }
}

fn turn_config(world: &World, password: &str) -> TurnConfig {
    let config =
        TurnConfig::new(world.server.stun(), world.server.username.clone(), password.to_owned());
    assert!(!format!("{config:?}").contains(password));
    TurnConfig { seed: [6; 32], ..config }
}

fn turn(world: &World, password: &str) -> TurnClient {
    TurnClient::new(world.net.now, turn_config(world, password))
}

/// The client's fate in a world where it asks for an allocation.
fn fate(mut world: World, password: &str) -> Vec<TurnEvent> {
    world.a.turn = Some(turn(&world, password));
    world.run(Duration::from_secs(20));
    world.a.turn_log
}

#[test]
fn an_allocation_that_is_refused_says_why() {
    let failed = |reason| vec![TurnEvent::Failed(reason)];
    assert_eq!(fate(behind("port-restr"), "wrong"), failed(TurnFailure::Unauthorized));
    let mut full = behind("port-restr");
    full.server.refuses = Some(486);
    assert_eq!(fate(full, "relay-secret"), failed(TurnFailure::Full));
    let mut blocked = behind("port-restr");
    blocked.net.blocked.push(A.parse().unwrap());
    assert_eq!(fate(blocked, "relay-secret"), failed(TurnFailure::Unreachable));
}

#[test]
fn an_allocation_is_asked_for_no_more_often_than_it_is_worth() {
    let mut world = behind("port-restr");
    world.net.blocked.push(A.parse().unwrap());
    let mut turn = turn(&world, "relay-secret");
    let start = world.net.now;
    let few = TurnConfig { tries: 3, ..turn_config(&world, "relay-secret") };
    for (client, most) in [(&mut turn, 12_600), (&mut TurnClient::new(start, few), 1_400)] {
        let mut now = start;
        while let Some(at) = client.poll_timeout() {
            now = at;
            client.handle_timeout(now);
        }
        assert_eq!(now - start, ms(most));
        assert_eq!(client.poll_event(), Some(TurnEvent::Failed(TurnFailure::Unreachable)));
    }
}

#[test]
fn an_allocation_lives_through_hours_new_nonces_and_its_servers_restart() {
    let mut world = behind("port-restr").with_relay();
    let peer: SocketAddr = "10.0.2.2:5000".parse().unwrap();
    let now = world.net.now;
    world.a.turn.as_mut().unwrap().permit(now, peer);
    for _ in 0..8 {
        world.run(Duration::from_secs(900));
        world.server.nonce += 1;
    }
    let turn = world.a.turn.as_ref().unwrap();
    assert!(turn.relayed().is_some() && turn.wrap(peer, 100).is_some());
    assert_eq!(world.a.turn_log.len(), 2, "{:?}", world.a.turn_log);
    world.server.restart();
    world.run(Duration::from_secs(900));
    let [.., TurnEvent::Allocated { .. }, TurnEvent::Bound(bound)] = world.a.turn_log[..] else {
        panic!("{:?}", world.a.turn_log)
    };
    assert_eq!(bound, peer);
}

#[test]
fn a_doubted_allocation_is_made_anew_behind_a_rebound_nat_and_left_alone_otherwise() {
    let mut world = behind("eim-nopres").with_relay();
    let peer: SocketAddr = "10.0.2.2:5000".parse().unwrap();
    let now = world.net.now;
    world.a.turn.as_mut().unwrap().permit(now, peer);
    world.run(ms(1100));
    let relayed = |world: &World| world.a.turn.as_ref().unwrap().relayed().unwrap();
    let before = relayed(&world);
    let now = world.net.now;
    world.a.turn.as_mut().unwrap().doubt(now);
    world.run(ms(1100));
    assert_eq!(relayed(&world), before);
    world.net.rebind(A, 0);
    let now = world.net.now;
    world.a.turn.as_mut().unwrap().doubt(now);
    world.run(ms(300));
    assert_ne!(relayed(&world), before);
    assert!(world.a.turn.as_ref().unwrap().wrap(peer, 100).is_some(), "its peers stay");
}

fn peer(n: u16) -> SocketAddr {
    SocketAddr::new(super::fixture::B.parse().unwrap(), 5000 + n)
}

#[test]
fn messages_in_the_name_of_a_relay_are_not_believed_without_its_signature_and_counted() {
    use message::{Writer, attribute};
    use stun_types::message::{MessageClass, Method};
    let mut world = behind("port-restr").with_relay();
    let now = world.net.now;
    let turn = world.a.turn.as_mut().unwrap();
    assert_eq!(turn.take_forged(), 0, "an honest server's answers");
    turn.permit(now, peer(0));
    let request = turn.poll_transmit().unwrap();
    let answer =
        |class| Writer::new(class, Method::new(9), message::transaction(&request).unwrap());
    let bound = answer(MessageClass::Success).finish_bare();
    let forbidden =
        answer(MessageClass::Error).add(attribute::ERROR_CODE, &[0, 0, 4, 3]).finish_bare();
    let data = Writer::new(
        MessageClass::Indication,
        Method::new(7),
        message::transaction(&bound).unwrap(),
    )
    .add_address(attribute::XOR_PEER_ADDRESS, "198.51.100.66:66".parse().unwrap())
    .add(attribute::DATA, b"x")
    .finish_bare();
    for forged in [bound, forbidden, data] {
        assert!(turn.accepts(turn.server(), &forged));
        assert_eq!(turn.handle_packet(now, &forged), None);
        assert_eq!(turn.take_forged(), 1);
    }
    assert!(turn.poll_event().is_none() && turn.wrap(peer(0), 5).is_none());
}

#[test]
fn a_stale_nonce_costs_no_peer_its_channel_however_many_there_are() {
    let mut world = behind("port-restr").with_relay();
    world.server.nonce += 1;
    let now = world.net.now;
    (0..20).for_each(|n| world.a.turn.as_mut().unwrap().permit(now, peer(n)));
    world.run(ms(500));
    let turn = world.a.turn.as_ref().unwrap();
    let without: Vec<_> = (0..20).filter(|n| turn.wrap(peer(*n), 5).is_none()).collect();
    assert!(without.is_empty(), "{without:?} of 20: {:?}", world.a.turn_log);
}

#[test]
fn a_channel_outlives_a_server_that_is_silent_while_it_is_renewed() {
    let mut world = behind("port-restr").with_relay();
    let now = world.net.now;
    world.a.turn.as_mut().unwrap().permit(now, peer(0));
    world.run(Duration::from_secs(239));
    world.net.blocked.push(A.parse().unwrap());
    world.run(Duration::from_secs(20));
    let lost = TurnEvent::PeerRefused(peer(0), TurnFailure::Unreachable);
    assert_eq!(world.a.turn_log.last(), Some(&lost));
    world.net.blocked.clear();
    // Renewed within the life of the permission, which began with the channel: nothing is cut off.
    let asked = world.server.bound;
    world.run(Duration::from_secs(20));
    assert!(world.server.bound > asked, "not asked for again");
    let turn = world.a.turn.as_mut().unwrap();
    assert!(turn.wrap(peer(0), 5).is_some() && turn.indication(peer(0), b"x").is_some());
}

#[test]
fn a_peer_whose_address_is_forbidden_is_not_asked_for_again() {
    let mut world = behind("port-restr").with_relay();
    world.server.forbids = true;
    let now = world.net.now;
    world.a.turn.as_mut().unwrap().permit(now, peer(0));
    world.run(Duration::from_secs(60));
    let refused = TurnEvent::PeerRefused(peer(0), TurnFailure::Forbidden);
    assert_eq!(world.a.turn_log.iter().filter(|event| **event == refused).count(), 1);
    let turn = world.a.turn.as_mut().unwrap();
    assert!(turn.wrap(peer(0), 5).is_none() && turn.indication(peer(0), b"x").is_none());
}

#[test]
fn a_peer_whose_nat_ends_mappings_each_half_minute_is_let_in_for_hours() {
    let mut world = behind("port-restr").with_relay();
    for n in 1..=300 {
        let now = world.net.now;
        let turn = world.a.turn.as_mut().unwrap();
        turn.permit(now, peer(0));
        turn.permit(now, peer(n));
        world.run(Duration::from_secs(30));
        let turn = world.a.turn.as_ref().unwrap();
        assert!(turn.wrap(peer(0), 5).is_some(), "the address that stays, after {n}");
        assert!(turn.wrap(peer(n), 5).is_some(), "{n}: {:?}", world.a.turn_log.last());
    }
    let refused = |event: &&TurnEvent| matches!(event, TurnEvent::PeerRefused(..));
    assert_eq!(world.a.turn_log.iter().find(refused), None);
}

#[test]
fn channel_data_is_framed_in_four_bytes_and_nothing_else_is_taken_for_it() {
    let mut world = behind("port-restr").with_relay();
    let peer: SocketAddr = "10.0.2.2:5000".parse().unwrap();
    let now = world.net.now;
    let turn = world.a.turn.as_mut().unwrap();
    assert_eq!(turn.wrap(peer, 5), None);
    turn.permit(now, peer);
    world.run(ms(100));
    let turn = world.a.turn.as_mut().unwrap();
    let header = turn.wrap(peer, 5).unwrap();
    assert_eq!(header, [0x40, 0, 0, 5]);
    assert_eq!(turn.wrap(peer, 70_000), None);
    let datagram = [&header[..], b"hello"].concat();
    assert_eq!(turn.unwrap(&datagram), Some((peer, 4..9)));
    assert_eq!(turn.unwrap(&datagram[..8]), None);
    assert_eq!(turn.unwrap(&[0x40, 9, 0, 0]), None);
    assert_eq!(turn.unwrap(&[0x40]), None);
    let (server, other) = (turn.server(), "192.0.2.1:9".parse().unwrap());
    assert!(turn.accepts(server, &datagram) && !turn.accepts(other, &datagram));
    turn.release(now);
    assert_eq!((turn.wrap(peer, 5), turn.relayed()), (None, None));
}

#[test]
fn a_nat_that_ends_busy_mappings_at_an_age_is_told_from_one_that_ends_idle_ones() {
    let mut world = behind("eim-nopres");
    // A rebinding at every 300 s, as where mappings live no longer.
    for _ in 0..3 {
        world.run(Duration::from_secs(300));
        world.net.rebind(A, 0);
    }
    world.run(Duration::from_secs(60));
    let view = world.a.keeper.view();
    let limit = view.age_limit_ms.expect("three ends at one age");
    assert!((270_000..=300_000).contains(&limit), "{limit}");
    assert_eq!(view.keepalive_ms, 15_000, "more keepalives would not help");
}

#[test]
fn a_port_that_the_router_forwards_is_no_lost_mapping() {
    let server: SocketAddr = "192.0.2.1:443".parse().unwrap();
    let (before, after) = ("203.0.113.2:5000", "203.0.113.2:6000");
    let lost = |forwarded: bool| {
        let mut now = std::time::Instant::now();
        let mut keeper = Keeper::new(now, KeeperConfig::new(None, vec![server]));
        for seen in [before, after] {
            let (_, request) = keeper.poll_transmit().unwrap();
            let answer = message::Writer::new(
                stun_types::message::MessageClass::Success,
                stun_types::message::BINDING,
                message::transaction(&request).unwrap(),
            )
            .add_address(message::attribute::XOR_MAPPED_ADDRESS, seen.parse().unwrap())
            .finish(None);
            keeper.handle_packet(now, server, &answer);
            keeper.set_forwarded(forwarded.then(|| after.parse().unwrap()));
            now = keeper.poll_timeout().unwrap();
            keeper.handle_timeout(now);
        }
        keeper.view().lifetime.lost
    };
    assert_eq!(lost(true), None);
    assert_eq!(lost(false), Some(Duration::from_secs(15)));
}
