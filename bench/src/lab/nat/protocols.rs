//! What ICMP errors, TCP, echo and fragments meet at the box.

use super::tests::{
    ACK, EXTERNAL, FIN_ACK, HOST, RST, SERVER, STRANGER, SYN, at, ms, nat, send, tcp, tcp_back,
};
use super::*;
use crate::lab::packet::{flow_of, samples, too_big, unreachable};

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
