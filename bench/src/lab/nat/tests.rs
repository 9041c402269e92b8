use proptest::prelude::*;

use super::*;
use crate::lab::packet::{flow_of, samples, too_big, unreachable};

const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const SYN: u8 = 2;
const ACK: u8 = 16;
const FIN_ACK: u8 = 17;
const RST: u8 = 4;

const HOST: &str = "192.168.1.2:40001";
const SERVER: &str = "192.0.2.1:3478";
/// The server's address, another port.
const SERVER_ALTERNATE: &str = "192.0.2.1:3479";
const STRANGER: &str = "198.51.100.2:9";

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn nat(settings: &str) -> Nat {
    let router = RouterAddresses { v4: None, v6: Some("2001:db8:1::1".parse().unwrap()) };
    Nat::new(settings.parse().unwrap(), Some(EXTERNAL), router, 1)
}

/// The inside host sends; the source that the outside sees.
fn send(nat: &mut Nat, now: Duration, from: &str, to: &str) -> SocketAddr {
    let mut packet = samples::udp(at(from), at(to), b"ping");
    assert_eq!(nat.outbound(now, &mut packet), Verdict::Forward);
    assert_eq!(samples::verify(&packet), Ok(()));
    flow_of(&packet).unwrap().source
}

/// Someone outside sends: the inside endpoint it reached, or why not.
fn receive(nat: &mut Nat, now: Duration, from: &str, to: SocketAddr) -> Result<SocketAddr, Reason> {
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

fn tcp(nat: &mut Nat, now: Duration, from: &str, to: &str, flags: u8) -> Verdict {
    nat.outbound(now, &mut samples::tcp(at(from), at(to), flags, b""))
}

fn tcp_back(nat: &mut Nat, now: Duration, from: &str, port: u16, flags: u8) -> Verdict {
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
fn path_mtu_discovery_works_through_the_nat() {
    let router = RouterAddresses { v4: Some(Ipv4Addr::new(203, 0, 113, 1)), v6: None };
    for settings in ["port-restricted", "symmetric"] {
        let mut nat = nat(settings);
        let mut packet = samples::udp(at(HOST), at(SERVER), &[0; 1400]);
        let sent = packet.clone();
        assert_eq!(nat.outbound(ms(0), &mut packet), Verdict::Forward);
        let mut error = too_big(&packet, 1280, router).unwrap();
        assert_eq!(nat.inbound(ms(1), &mut error), Verdict::Forward);
        assert_eq!(samples::verify(&error), Ok(()));
        assert_eq!(flow_of(&error).unwrap().destination.ip(), at(HOST).ip());
        let about = PacketView::parse(&mut error).unwrap().embedded();
        assert_eq!(about, flow_of(&sent));
    }
}

#[test]
fn port_unreachable_goes_out_through_the_nat() {
    let mut nat = nat("port-restricted");
    let external = send(&mut nat, ms(0), HOST, SERVER);
    let mut packet = samples::udp(at(SERVER), external, b"late answer");
    let arrived_outside = flow_of(&packet);
    assert_eq!(nat.inbound(ms(1), &mut packet), Verdict::Forward);
    let host = RouterAddresses { v4: Some(Ipv4Addr::new(192, 168, 1, 2)), v6: None };
    let mut error = unreachable(&packet, Unreachable::Port, host).unwrap();
    assert_eq!(nat.outbound(ms(2), &mut error), Verdict::Forward);
    assert_eq!(samples::verify(&error), Ok(()));
    assert_eq!(flow_of(&error).unwrap().source.ip(), EXTERNAL);
    assert_eq!(PacketView::parse(&mut error).unwrap().embedded(), arrived_outside);
}

#[test]
fn an_error_about_a_hairpinned_packet_comes_back_to_its_sender() {
    let mut nat = nat("full-cone,hairpin");
    let external = send(&mut nat, ms(0), HOST, SERVER);
    let mut packet = samples::udp(at("192.168.1.3:5000"), external, b"hello");
    let sent = flow_of(&packet);
    assert_eq!(nat.outbound(ms(1), &mut packet), Verdict::Hairpin);
    // The host answers only once it has spoken to the sender, or the error is about nothing.
    send(&mut nat, ms(1), "192.168.1.3:5000", SERVER);
    let mut answer = samples::udp(at(HOST), flow_of(&packet).unwrap().source, b"hello");
    assert_eq!(nat.outbound(ms(1), &mut answer), Verdict::Hairpin);
    let host = RouterAddresses { v4: Some(Ipv4Addr::new(192, 168, 1, 2)), v6: None };
    let mut error = unreachable(&packet, Unreachable::Port, host).unwrap();
    assert_eq!(nat.outbound(ms(2), &mut error), Verdict::Hairpin);
    assert_eq!(samples::verify(&error), Ok(()));
    assert_eq!(PacketView::parse(&mut error).unwrap().embedded(), sent);
}

#[test]
fn an_error_about_nothing_known_is_dropped() {
    let mut nat = nat("full-cone");
    let external = send(&mut nat, ms(0), HOST, SERVER);
    let outside = RouterAddresses { v4: Some(Ipv4Addr::new(198, 51, 100, 9)), v6: None };
    for (source, destination) in
        [(external, at(STRANGER)), (SocketAddr::from((EXTERNAL, 9)), at(SERVER))]
    {
        let forged = samples::udp(source, destination, b"never sent");
        let mut error = unreachable(&forged, Unreachable::Port, outside).unwrap();
        assert_eq!(nat.inbound(ms(1), &mut error), Verdict::Drop(Reason::IcmpUnrelated));
    }
}

#[test]
fn a_tcp_connection_outlives_udp_timers_and_ends_with_reset_or_both_fins() {
    for ending in [&[(RST, true)][..], &[(FIN_ACK, true), (FIN_ACK, false)], &[(RST, false)]] {
        let mut nat = nat("port-restricted,timeout=2s");
        assert_eq!(tcp(&mut nat, ms(0), HOST, SERVER, SYN), Verdict::Forward);
        assert_eq!(tcp_back(&mut nat, ms(9), SERVER, 40001, SYN | ACK), Verdict::Forward);
        let hour = 3_600_000;
        assert_eq!(tcp(&mut nat, ms(hour), HOST, SERVER, ACK), Verdict::Forward);
        assert_eq!(tcp_back(&mut nat, ms(2 * hour), SERVER, 40001, ACK), Verdict::Forward);
        for (flags, outbound) in ending {
            let verdict = match outbound {
                true => tcp(&mut nat, ms(2 * hour), HOST, SERVER, *flags),
                false => tcp_back(&mut nat, ms(2 * hour), SERVER, 40001, *flags),
            };
            assert_eq!(verdict, Verdict::Forward);
        }
        assert_eq!(tcp(&mut nat, ms(2 * hour + 9999), HOST, SERVER, ACK), Verdict::Forward);
        assert_eq!(nat.mappings(ms(2 * hour + 30_000)), [], "{ending:?}");
    }
}

#[test]
fn tcp_without_a_connection_goes_nowhere() {
    let mut nat = nat("full-cone");
    let no_state = Verdict::Drop(Reason::TcpWithoutState);
    assert_eq!(tcp(&mut nat, ms(0), HOST, SERVER, ACK), no_state);
    assert_eq!(tcp(&mut nat, ms(0), HOST, SERVER, SYN), Verdict::Forward);
    assert_eq!(tcp_back(&mut nat, ms(1), STRANGER, 40001, ACK), no_state);
    assert_eq!(tcp_back(&mut nat, ms(1), STRANGER, 40001, SYN), Verdict::Forward, "a full cone");
    nat.rebind(None);
    assert_eq!(tcp(&mut nat, ms(2), HOST, SERVER, ACK), no_state, "forgotten by the rebinding");
    assert_eq!(tcp(&mut nat, ms(3), HOST, SERVER, SYN), Verdict::Forward);
    assert_eq!(nat.mappings(ms(240_003)), [], "never answered");
}

#[test]
fn pings_are_translated_by_their_identifier() {
    let mut nat = nat("symmetric");
    let (host, server) = (at(HOST).ip(), at(SERVER).ip());
    let mut request = samples::echo(host, server, true, 77, b"data");
    assert_eq!(nat.outbound(ms(0), &mut request), Verdict::Forward);
    let id = flow_of(&request).unwrap().source.port();
    let mut reply = samples::echo(server, IpAddr::V4(EXTERNAL), false, id, b"data");
    assert_eq!(nat.inbound(ms(50_000), &mut reply), Verdict::Forward);
    assert_eq!(samples::verify(&reply), Ok(()));
    assert_eq!(flow_of(&reply).unwrap().destination, SocketAddr::new(host, 77));
    let mut probe = samples::echo(server, IpAddr::V4(EXTERNAL), true, 5, b"");
    assert_eq!(nat.inbound(ms(1), &mut probe), Verdict::Drop(Reason::NoMapping));
}

#[test]
fn fragments_follow_their_first_and_strays_are_dropped() {
    let mut nat = nat("port-restricted");
    let packet = samples::udp(at(HOST), at(SERVER), &[5; 200]);
    let [mut first, later] = samples::fragments_v4(&packet, 104);
    let stray = Verdict::Drop(Reason::UntrackedFragment);
    assert_eq!(nat.outbound(ms(0), &mut later.clone()), stray);
    assert_eq!(nat.outbound(ms(1), &mut first), Verdict::Forward);
    let mut follower = later.clone();
    assert_eq!(nat.outbound(ms(2), &mut follower), Verdict::Forward);
    assert_eq!(flow_of(&follower).unwrap().source.ip(), EXTERNAL);
    let mut whole = first[..20].to_vec();
    whole.extend(&first[20..]);
    whole.extend(&follower[20..]);
    whole[..8].copy_from_slice(&packet[..8]);
    whole[10..12].fill(0);
    let rebuilt = samples::udp(flow_of(&first).unwrap().source, at(SERVER), &[5; 200]);
    assert_eq!(whole[20..], rebuilt[20..], "the checksum over the whole datagram is right");
    assert_eq!(nat.outbound(ms(31_000), &mut later.clone()), stray, "long forgotten");

    let answer = samples::udp(at(SERVER), at("203.0.113.2:40001"), &[6; 200]);
    let [mut first, mut later] = samples::fragments_v4(&answer, 104);
    send(&mut nat, ms(31_000), HOST, SERVER);
    assert_eq!(nat.inbound(ms(31_001), &mut first), Verdict::Forward);
    assert_eq!(nat.inbound(ms(31_002), &mut later), Verdict::Forward);
    assert_eq!(flow_of(&later).unwrap().destination.ip(), at(HOST).ip());
    assert_eq!(nat.stats().dropped(Reason::UntrackedFragment), 2);
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
fn settings_have_names_and_explicit_forms() {
    for (name, explicit, what) in NAMED {
        let named: NatSettings = name.parse().unwrap();
        assert_eq!(explicit.parse(), Ok(named), "{what}");
        assert_eq!(named.to_string(), name);
    }
    let explicit: NatSettings =
        "adm/adf/sequential,hairpin,timeout=2s,lifetime=1.5s".parse().unwrap();
    assert_eq!(explicit.to_string(), "adm/adf/sequential,hairpin,timeout=2s,lifetime=1.5s");
    let mut changed = explicit;
    changed.update("lifetime=off,hairpin=off").unwrap();
    assert_eq!(changed.to_string(), "adm/adf/sequential,timeout=2s");
    changed.update("symmetric").unwrap();
    assert_eq!(changed.to_string(), "symmetric,timeout=2s", "the rest stays");
    for (text, remedy) in [
        ("", "start with none, firewall, full-cone"),
        ("cone", "start with none, firewall, full-cone"),
        ("eim/open/keep", "use eif"),
        ("eim/apdf", "keep, random or sequential"),
        ("none/apdf/keep", "no ports"),
        ("xim/apdf/keep", "none, eim, adm or apdm"),
        ("symmetric,timeout=0s", "more than 0s"),
        ("symmetric,mappings=0", "1 to 30000"),
        ("symmetric,full-cone", "unknown"),
    ] {
        let error = text.parse::<NatSettings>().unwrap_err();
        assert!(error.contains(remedy), "{text}: {error}");
    }
}

#[test]
fn policies_survive_their_text_and_refuse_nonsense() {
    for text in [
        "",
        "udp=drop",
        "udp=reject,tcp=443+8443",
        "udp=only:192.0.2.1+2001:db8::1,tcp=drop",
        "udp=drop-in",
        "udp=drop-out,blackhole=both",
        "blackhole=in",
        "blackhole=out",
    ] {
        assert_eq!(text.parse::<Policy>().unwrap().to_string(), text);
    }
    let mut policy: Policy = "udp=drop,tcp=443".parse().unwrap();
    policy.update("udp=allow").unwrap();
    assert_eq!(policy.to_string(), "tcp=443");
    for text in ["udp=only:", "udp=no", "tcp=70000", "blackhole=up", "icmp=drop"] {
        let error = text.parse::<Policy>().unwrap_err();
        assert!(error.contains("needs") || error.contains("the keys are"), "{text}: {error}");
    }
}

fn behaviours() -> impl Strategy<Value = NatSettings> {
    let mapping = prop_oneof![
        Just(Mapping::EndpointIndependent),
        Just(Mapping::AddressDependent),
        Just(Mapping::AddressAndPortDependent),
    ];
    let filtering = prop_oneof![
        Just(Filtering::EndpointIndependent),
        Just(Filtering::AddressDependent),
        Just(Filtering::AddressAndPortDependent),
    ];
    let ports = prop_oneof![
        Just(PortAssignment::Keep),
        Just(PortAssignment::Random),
        Just(PortAssignment::Sequential),
    ];
    (mapping, filtering, ports, any::<bool>(), any::<bool>(), prop::option::of(1u64..100_000))
        .prop_map(|(mapping, filtering, ports, hairpin, inbound_refresh, lifetime)| NatSettings {
            hairpin,
            inbound_refresh,
            lifetime: lifetime.map(Duration::from_millis),
            mappings_max: 50,
            ..NatSettings::new(mapping, filtering, ports)
        })
}

proptest! {
    #[test]
    fn settings_survive_their_text(settings in behaviours()) {
        prop_assert_eq!(settings.to_string().parse(), Ok(settings));
    }

    #[test]
    fn every_answer_finds_the_host_that_asked(
        settings in behaviours(), seed: u64,
        steps in prop::collection::vec((0u8..3, 1u16..6, 0u8..3, 1u16..4, 0u64..20_000), 1..200),
    ) {
        let mut nat = Nat::new(settings, Some(EXTERNAL), RouterAddresses::default(), seed);
        let mut now = Duration::ZERO;
        for (host, port, server, server_port, wait) in steps {
            now += ms(wait);
            let from = SocketAddr::from(([192, 168, 1, 2 + host], 4000 + port));
            let to = SocketAddr::from(([192, 0, 2, 1 + server], server_port));
            let mut packet = samples::udp(from, to, b"ask");
            prop_assert_eq!(nat.outbound(now, &mut packet), Verdict::Forward);
            prop_assert_eq!(samples::verify(&packet), Ok(()));
            let seen = flow_of(&packet).unwrap();
            prop_assert_eq!((seen.source.ip(), seen.destination), (IpAddr::V4(EXTERNAL), to));
            let mut answer = samples::udp(to, seen.source, b"answer");
            prop_assert_eq!(nat.inbound(now, &mut answer), Verdict::Forward);
            prop_assert_eq!(samples::verify(&answer), Ok(()));
            prop_assert_eq!(flow_of(&answer).unwrap().destination, from);
        }
        let mappings = nat.mappings(now);
        prop_assert!(mappings.len() <= 50);
        let mut ends: Vec<_> = mappings.iter().map(|mapping| mapping.external).collect();
        ends.sort();
        ends.dedup();
        prop_assert_eq!(ends.len(), mappings.len(), "no two share an external endpoint");
    }

    #[test]
    fn garbage_never_panics_and_is_counted_once(
        settings in behaviours(),
        packets in prop::collection::vec(
            (any::<bool>(), prop::collection::vec((0usize..60, any::<u8>()), 0..5), 0usize..120),
            1..60,
        ),
    ) {
        let mut nat = Nat::new(settings, Some(EXTERNAL), RouterAddresses::default(), 3);
        let error = |about: &[u8]| too_big(about, 600, RouterAddresses {
            v4: Some(Ipv4Addr::new(192, 0, 2, 200)), v6: None,
        }).unwrap_or_default();
        for (index, (outbound, flips, cut)) in packets.iter().enumerate() {
            let (from, to) = match outbound {
                true => (at(HOST), at(SERVER)),
                false => (at(SERVER), SocketAddr::from((EXTERNAL, 40001))),
            };
            let mut bytes = match index % 4 {
                0 => samples::udp(from, to, &[1; 40]),
                1 => samples::tcp(from, to, (index % 32) as u8, &[1; 20]),
                2 => error(&samples::udp(to, from, &[1; 20])),
                _ => samples::echo(from.ip(), to.ip(), *outbound, 40001, b"x"),
            };
            for (at, flip) in flips {
                if let Some(byte) = bytes.get_mut(*at) {
                    *byte ^= flip;
                }
            }
            bytes.truncate(bytes.len().min(cut + 20));
            let now = ms(index as u64 * 500);
            let _ = if *outbound { nat.outbound(now, &mut bytes) } else { nat.inbound(now, &mut bytes) };
        }
        let stats = nat.stats();
        let dropped: u64 = stats.drops().map(|(_, count)| count).sum();
        let passed = stats.outbound + stats.inbound + stats.hairpinned + stats.replied;
        prop_assert_eq!(dropped + passed, packets.len() as u64);
    }
}
