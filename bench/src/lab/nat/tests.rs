use super::*;
use crate::lab::packet::{flow_of, samples};

pub(super) const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub(super) const SYN: u8 = 2;
pub(super) const ACK: u8 = 16;
pub(super) const FIN_ACK: u8 = 17;
pub(super) const RST: u8 = 4;

pub(super) const HOST: &str = "192.168.1.2:40001";
pub(super) const SERVER: &str = "192.0.2.1:3478";
/// The server's address, another port.
pub(super) const SERVER_ALTERNATE: &str = "192.0.2.1:3479";
pub(super) const STRANGER: &str = "198.51.100.2:9";

pub(super) fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(super) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) fn nat(settings: &str) -> Nat {
    let router = RouterAddresses { v4: None, v6: Some("2001:db8:1::1".parse().unwrap()) };
    Nat::new(settings.parse().unwrap(), Some(EXTERNAL), router, 1)
}

/// The inside host sends; the source that the outside sees.
pub(super) fn send(nat: &mut Nat, now: Duration, from: &str, to: &str) -> SocketAddr {
    let mut packet = samples::udp(at(from), at(to), b"ping");
    assert_eq!(nat.outbound(now, &mut packet), Verdict::Forward);
    assert_eq!(samples::verify(&packet), Ok(()));
    flow_of(&packet).unwrap().source
}

/// Someone outside sends: the inside endpoint it reached, or why not.
pub(super) fn receive(
    nat: &mut Nat,
    now: Duration,
    from: &str,
    to: SocketAddr,
) -> Result<SocketAddr, Reason> {
    let mut packet = samples::udp(at(from), to, b"pong");
    match nat.inbound(now, &mut packet) {
        Verdict::Forward => {
            assert_eq!(samples::verify(&packet), Ok(()));
            Ok(flow_of(&packet).unwrap().destination)
        }
        Verdict::Drop(reason) => Err(reason),
        other => panic!("{other:?}"),
    }
}

pub(super) fn tcp(nat: &mut Nat, now: Duration, from: &str, to: &str, flags: u8) -> Verdict {
    nat.outbound(now, &mut samples::tcp(at(from), at(to), flags, b""))
}

pub(super) fn tcp_back(nat: &mut Nat, now: Duration, from: &str, port: u16, flags: u8) -> Verdict {
    let to = SocketAddr::from((EXTERNAL, port));
    nat.inbound(now, &mut samples::tcp(at(from), to, flags, b""))
}

#[test]
fn a_mapping_depends_on_the_destination_as_its_behaviour_says() {
    for (settings, other_port, other_address) in [
        ("eim/apdf/random", true, true),
        ("adm/apdf/random", true, false),
        ("apdm/apdf/random", false, false),
    ] {
        let mut nat = nat(settings);
        let first = send(&mut nat, ms(0), HOST, SERVER);
        assert_eq!(first.ip(), EXTERNAL);
        assert_eq!(send(&mut nat, ms(1), HOST, SERVER), first);
        let same = |nat: &mut Nat, to| send(nat, ms(2), HOST, to) == first;
        assert_eq!(same(&mut nat, SERVER_ALTERNATE), other_port, "{settings}");
        assert_eq!(same(&mut nat, STRANGER), other_address, "{settings}");
    }
}

#[test]
fn a_filter_admits_whom_its_behaviour_names() {
    for (settings, other_port, other_address) in [
        ("eim/eif/keep", Ok(at(HOST)), Ok(at(HOST))),
        ("eim/adf/keep", Ok(at(HOST)), Err(Reason::Filtered)),
        ("eim/apdf/keep", Err(Reason::Filtered), Err(Reason::Filtered)),
    ] {
        let mut nat = nat(settings);
        let external = send(&mut nat, ms(0), HOST, SERVER);
        assert_eq!(receive(&mut nat, ms(1), SERVER, external), Ok(at(HOST)));
        assert_eq!(receive(&mut nat, ms(1), SERVER_ALTERNATE, external), other_port, "{settings}");
        assert_eq!(receive(&mut nat, ms(1), STRANGER, external), other_address, "{settings}");
        let nobody = SocketAddr::from((EXTERNAL, 5));
        assert_eq!(receive(&mut nat, ms(1), SERVER, nobody), Err(Reason::NoMapping));
    }
}

#[test]
fn a_kept_port_falls_back_on_collision_and_stays_endpoint_independent() {
    let mut nat = nat("port-restricted");
    assert_eq!(send(&mut nat, ms(0), HOST, SERVER).port(), 40001);
    let second = send(&mut nat, ms(0), "192.168.1.3:40001", SERVER);
    assert_ne!(second.port(), 40001);
    assert_eq!(send(&mut nat, ms(0), "192.168.1.3:40001", STRANGER), second);
    assert_eq!(receive(&mut nat, ms(1), SERVER, second), Ok(at("192.168.1.3:40001")));
}

#[test]
fn sequential_ports_go_up_by_one_whoever_asks() {
    let mut nat = nat("symmetric-sequential");
    let first = send(&mut nat, ms(0), HOST, SERVER).port();
    assert_eq!(send(&mut nat, ms(0), HOST, STRANGER).port(), first + 1);
    assert_eq!(send(&mut nat, ms(0), "192.168.1.3:7", STRANGER).port(), first + 2);
    assert_eq!(send(&mut nat, ms(0), HOST, SERVER_ALTERNATE).port(), first + 3);
}

#[test]
fn an_unsolicited_packet_poisons_no_port() {
    let mut nat = nat("port-restricted");
    let external = SocketAddr::from((EXTERNAL, 40001));
    assert_eq!(receive(&mut nat, ms(0), STRANGER, external), Err(Reason::NoMapping));
    assert_eq!(nat.mappings(ms(0)), []);
    assert_eq!(send(&mut nat, ms(1), HOST, STRANGER), external);
    assert_eq!(receive(&mut nat, ms(2), STRANGER, external), Ok(at(HOST)));
}

#[test]
fn an_idle_udp_mapping_ends_and_inbound_keeps_it_only_when_told() {
    for (settings, kept) in
        [("full-cone,timeout=2s", false), ("full-cone,timeout=2s,inbound-refresh", true)]
    {
        let mut nat = nat(settings);
        let external = send(&mut nat, ms(0), HOST, SERVER);
        assert!(receive(&mut nat, ms(1999), SERVER, external).is_ok());
        assert_eq!(receive(&mut nat, ms(2000), SERVER, external).is_ok(), kept);
        let external = send(&mut nat, ms(9000), HOST, SERVER);
        send(&mut nat, ms(10_500), HOST, SERVER);
        assert!(receive(&mut nat, ms(12_000), SERVER, external).is_ok(), "outbound refreshes");
    }
}

#[test]
fn each_peer_of_a_port_restricted_mapping_has_its_own_timer() {
    let mut nat = nat("port-restricted,timeout=2s");
    let external = send(&mut nat, ms(0), HOST, SERVER);
    send(&mut nat, ms(1500), HOST, STRANGER);
    assert_eq!(receive(&mut nat, ms(2500), SERVER, external), Err(Reason::Filtered));
    assert_eq!(receive(&mut nat, ms(2500), STRANGER, external), Ok(at(HOST)));
}

#[test]
fn an_absolute_lifetime_ends_a_busy_mapping_and_moves_it() {
    let mut nat = nat("port-restricted,lifetime=10s");
    let first = send(&mut nat, ms(0), HOST, SERVER);
    for second in 1..10 {
        assert_eq!(send(&mut nat, ms(second * 1000), HOST, SERVER), first);
    }
    assert_eq!(receive(&mut nat, ms(10_000), SERVER, first), Err(Reason::NoMapping));
    let second = send(&mut nat, ms(10_001), HOST, SERVER);
    assert_ne!(second, first);
    assert_eq!((nat.stats().mappings_expired, nat.mappings(ms(10_002)).len()), (1, 1));
}

#[test]
fn rebinding_moves_every_flow_to_another_port_or_address() {
    for settings in ["port-restricted", "symmetric", "symmetric-sequential"] {
        let mut nat = nat(settings);
        let old = send(&mut nat, ms(0), HOST, SERVER);
        nat.rebind(None);
        assert_eq!(receive(&mut nat, ms(1), SERVER, old), Err(Reason::NoMapping), "{settings}");
        let new = send(&mut nat, ms(2), HOST, SERVER);
        assert!(new.ip() == old.ip() && new.port() != old.port(), "{settings}");
        nat.rebind(Some(Ipv4Addr::new(203, 0, 113, 77)));
        let newest = send(&mut nat, ms(3), HOST, SERVER);
        assert_eq!(newest.ip(), Ipv4Addr::new(203, 0, 113, 77));
        assert_eq!(receive(&mut nat, ms(4), SERVER, newest), Ok(at(HOST)));
    }
}

#[test]
fn hairpinned_packets_come_from_outside_and_obey_the_filter() {
    let hairpin = |nat: &mut Nat, from: &str, to: SocketAddr| {
        let mut packet = samples::udp(at(from), to, b"hello");
        let verdict = nat.outbound(ms(1), &mut packet);
        assert_eq!(samples::verify(&packet), Ok(()));
        (verdict, flow_of(&packet).unwrap())
    };
    let other = "192.168.1.3:5000";
    for (settings, first_verdict) in [
        ("full-cone", Verdict::Drop(Reason::HairpinOff)),
        ("full-cone,hairpin", Verdict::Hairpin),
        ("port-restricted,hairpin", Verdict::Drop(Reason::Filtered)),
    ] {
        let mut nat = nat(settings);
        let host = send(&mut nat, ms(0), HOST, SERVER);
        let peer = send(&mut nat, ms(0), other, SERVER);
        let (verdict, flow) = hairpin(&mut nat, other, host);
        assert_eq!(verdict, first_verdict, "{settings}");
        if verdict == Verdict::Hairpin {
            assert_eq!((flow.source, flow.destination), (peer, at(HOST)));
        }
        if first_verdict == Verdict::Drop(Reason::Filtered) {
            assert_eq!(hairpin(&mut nat, HOST, peer).0, Verdict::Hairpin, "it was sent to");
            assert_eq!(hairpin(&mut nat, other, host).0, Verdict::Hairpin, "now both have");
        }
    }
}

#[test]
fn a_firewall_admits_answers_only_and_changes_no_address() {
    let (host, peer) = ("[2001:db8:1::2]:5000", "[2001:db8:2::2]:6000");
    let v4 = ("192.168.1.2:5000", STRANGER);
    for (settings, (host, peer)) in
        [("firewall", (host, peer)), ("firewall", v4), ("full-cone", (host, peer))]
    {
        let mut nat = nat(settings);
        assert_eq!(receive(&mut nat, ms(0), peer, at(host)), Err(Reason::NoMapping));
        assert_eq!(send(&mut nat, ms(1), host, peer), at(host));
        assert_eq!(receive(&mut nat, ms(2), peer, at(host)), Ok(at(host)));
        let mut other = at(peer);
        other.set_port(1);
        assert_eq!(receive(&mut nat, ms(2), &other.to_string(), at(host)), Err(Reason::Filtered));
    }
}

#[test]
fn a_plain_router_forwards_everything_and_counts_down() {
    let mut nat = nat("none");
    assert_eq!(receive(&mut nat, ms(0), STRANGER, at(HOST)), Ok(at(HOST)));
    assert_eq!(send(&mut nat, ms(0), HOST, SERVER), at(HOST));
    let mut packet = samples::udp(at(HOST), at(SERVER), b"");
    packet[8] = 1;
    let Verdict::Reply(error) = nat.outbound(ms(0), &mut packet) else { panic!("an error") };
    assert_eq!((error[20], flow_of(&error).unwrap().source.ip()), (11, IpAddr::V4(EXTERNAL)));
    assert_eq!(nat.mappings(ms(0)), []);
}

#[test]
fn a_policy_bites_at_once_and_lets_the_rest_pass() {
    let out =
        |nat: &mut Nat, to: &str| nat.outbound(ms(1), &mut samples::udp(at(HOST), at(to), b"x"));
    let dropped = Verdict::Drop(Reason::UdpPolicy);
    for (policy, to_server, to_stranger, from_server) in [
        ("", Verdict::Forward, Verdict::Forward, Ok(at(HOST))),
        ("udp=drop", dropped.clone(), dropped.clone(), Err(Reason::UdpPolicy)),
        ("udp=drop-in", Verdict::Forward, Verdict::Forward, Err(Reason::UdpPolicy)),
        ("udp=drop-out", dropped.clone(), dropped.clone(), Ok(at(HOST))),
        ("udp=only:192.0.2.1", Verdict::Forward, dropped.clone(), Ok(at(HOST))),
        ("blackhole=in", Verdict::Forward, Verdict::Forward, Err(Reason::Blackhole)),
    ] {
        let mut nat = nat("port-restricted");
        let external = send(&mut nat, ms(0), HOST, SERVER);
        nat.set_policy(policy.parse().unwrap());
        assert_eq!(out(&mut nat, SERVER), to_server, "{policy}");
        assert_eq!(out(&mut nat, STRANGER), to_stranger, "{policy}");
        assert_eq!(receive(&mut nat, ms(2), SERVER, external), from_server, "{policy}");
    }
}

#[test]
fn rejected_udp_is_answered_and_tcp_ports_are_chosen() {
    let mut nat = nat("port-restricted");
    nat.set_policy("udp=reject,tcp=443".parse().unwrap());
    let mut packet = samples::udp(at(HOST), at(SERVER), b"x");
    let Verdict::Reply(mut error) = nat.outbound(ms(0), &mut packet) else { panic!("an error") };
    assert_eq!((error[20], error[21], samples::verify(&error)), (3, 3, Ok(())));
    let about = PacketView::parse(&mut error).unwrap().embedded().unwrap();
    assert_eq!((about.source, about.destination), (at(HOST), at(SERVER)));
    assert_eq!(tcp(&mut nat, ms(0), HOST, "192.0.2.1:443", SYN), Verdict::Forward);
    let forbidden = Verdict::Drop(Reason::TcpPolicy);
    assert_eq!(tcp(&mut nat, ms(0), HOST, "192.0.2.1:8080", SYN), forbidden);
    assert_eq!(nat.stats().drops().collect::<Vec<_>>(), [(Reason::TcpPolicy, 1)]);
}

#[test]
fn packets_that_never_leave_their_link_are_not_forwarded() {
    let mut nat = nat("none");
    for (from, to) in [
        (HOST, "224.0.0.251:5353"),
        ("0.0.0.0:68", "255.255.255.255:67"),
        ("[fe80::1]:5", "[ff02::2]:5"),
        ("127.0.0.1:5", SERVER),
    ] {
        let mut packet = samples::udp(at(from), at(to), b"");
        assert_eq!(nat.outbound(ms(0), &mut packet), Verdict::Drop(Reason::Martian));
    }
    let mut spoofed = samples::udp(SocketAddr::from((EXTERNAL, 5)), at(SERVER), b"");
    nat.set("full-cone".parse().unwrap());
    assert_eq!(nat.outbound(ms(0), &mut spoofed), Verdict::Drop(Reason::Martian));
}

#[test]
fn memory_is_bounded_and_the_idlest_mapping_makes_room() {
    let mut nat = nat("full-cone,mappings=100");
    send(&mut nat, ms(0), HOST, SERVER);
    for n in 0..1000u16 {
        send(&mut nat, ms(u64::from(n) + 1), &format!("192.168.1.3:{}", 1024 + n), SERVER);
        send(&mut nat, ms(u64::from(n) + 1), HOST, &format!("192.0.2.1:{}", 1 + n));
    }
    let mappings = nat.mappings(ms(1001));
    assert_eq!((mappings.len(), nat.stats().mappings_evicted), (100, 901));
    let busy = mappings.iter().find(|mapping| mapping.inside == at(HOST)).unwrap();
    assert_eq!(busy.peers, 512, "peers are bounded, too");
}

#[test]
fn a_dead_mapping_gives_its_port_back() {
    let mut nat = nat("port-restricted,timeout=1s");
    send(&mut nat, ms(0), HOST, SERVER);
    let second = send(&mut nat, ms(1000), "192.168.1.3:40001", SERVER);
    assert_eq!(second.port(), 40001);
    assert_eq!(receive(&mut nat, ms(1001), SERVER, second), Ok(at("192.168.1.3:40001")));
    assert_ne!(send(&mut nat, ms(1002), HOST, SERVER), second);
}

#[test]
fn a_port_is_found_even_after_the_fullest_box_was_rebound() {
    let mut nat = nat("apdm/apdf/random,mappings=30000");
    for n in 0..60_000u32 {
        if n == 30_000 {
            nat.rebind(None);
        }
        let to = SocketAddr::from((Ipv4Addr::from(0x0100_0000 + n), 1));
        let mut packet = samples::udp(at(HOST), to, b"");
        assert_eq!(nat.outbound(ms(0), &mut packet), Verdict::Forward);
    }
    assert_eq!((nat.stats().mappings_created, nat.stats().mappings_evicted), (60_000, 0));
}

#[test]
fn a_port_asked_for_admits_anyone_and_is_left_from_however_symmetric_the_box_is() {
    let router = RouterAddresses::default();
    let settings = "symmetric,portmap=nat-pmp".parse().unwrap();
    let mut nat = Nat::new(settings, Some(EXTERNAL), router, 1);
    let inside = at(HOST);
    let [high, low] = inside.port().to_be_bytes();
    let wanted = [0, 1, 0, 0, high, low, high, low, 0, 0, 0, 60];
    let request = samples::udp(inside, at("192.168.1.1:5351"), &wanted);
    let answer = nat.serve(ms(0), &request).unwrap();
    assert_eq!(samples::verify(&answer), Ok(()));
    assert_eq!(flow_of(&answer).unwrap().destination, inside);
    let external = SocketAddr::from((EXTERNAL, inside.port()));
    assert_eq!(receive(&mut nat, ms(1), STRANGER, external), Ok(inside));
    for to in [SERVER, SERVER_ALTERNATE, STRANGER] {
        assert_eq!(send(&mut nat, ms(2), HOST, to), external);
    }
    assert_ne!(send(&mut nat, ms(2), "192.168.1.2:40002", SERVER), external);
    assert_eq!(receive(&mut nat, ms(60_000), STRANGER, external), Err(Reason::NoMapping));
    let elsewhere = samples::udp(inside, at("192.168.1.1:53"), &wanted);
    assert_eq!(nat.serve(ms(3), &elsewhere), None, "port mapping is all it offers");
    nat.rebind(None);
    assert_eq!(receive(&mut nat, ms(4), STRANGER, external), Err(Reason::NoMapping));
}
