use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;

use super::*;

const ROUTER: RouterAddresses = RouterAddresses {
    v4: Some(Ipv4Addr::new(203, 0, 113, 2)),
    v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1)),
};

/// An endpoint of the family that a host can have.
fn endpoint(v6: bool) -> BoxedStrategy<SocketAddr> {
    if v6 {
        (any::<[u8; 15]>(), any::<u16>())
            .prop_map(|(low, port)| {
                let mut octets = [0x20; 16];
                octets[1..].copy_from_slice(&low);
                SocketAddr::new(IpAddr::from(octets), port)
            })
            .boxed()
    } else {
        (1u8..=126, any::<[u8; 3]>(), any::<u16>())
            .prop_map(|(a, [b, c, d], port)| SocketAddr::new(IpAddr::from([a, b, c, d]), port))
            .boxed()
    }
}

/// A source, a destination, and another one of the same family.
fn three() -> impl Strategy<Value = (SocketAddr, SocketAddr, SocketAddr)> {
    any::<bool>().prop_flat_map(|v6| (endpoint(v6), endpoint(v6), endpoint(v6)))
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..200)
}

/// What builds a packet between two endpoints; an echo's identifier is the asking end's port.
fn build(kind: u8, source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    match kind % 4 {
        0 => samples::udp(source, destination, payload),
        1 => samples::tcp(source, destination, 0x18, payload),
        2 => samples::echo(source.ip(), destination.ip(), true, source.port(), payload),
        _ => samples::echo(source.ip(), destination.ip(), false, destination.port(), payload),
    }
}

proptest! {
    #[test]
    fn a_rewritten_packet_is_the_one_its_new_ends_would_have_sent(
        kind: u8, (source, destination, other) in three(), payload in payload(),
    ) {
        let mut packet = build(kind, source, destination, &payload);
        PacketView::parse(&mut packet).unwrap().set_source(other);
        prop_assert_eq!(&packet, &build(kind, other, destination, &payload));
        PacketView::parse(&mut packet).unwrap().set_destination(source);
        prop_assert_eq!(&packet, &build(kind, other, source, &payload));
        prop_assert_eq!(samples::verify(&packet), Ok(()));
    }

    #[test]
    fn a_damaged_packet_is_still_damaged_behind_the_router(
        kind: u8, (source, destination, other) in three(), mut payload in payload(),
    ) {
        payload.push(1);
        let mut packet = build(kind, source, destination, &payload);
        *packet.last_mut().unwrap() ^= 0x40;
        let mut view = PacketView::parse(&mut packet).unwrap();
        view.set_source(other);
        view.decrement_ttl();
        prop_assert!(samples::verify(&packet).is_err());
    }

    #[test]
    fn an_error_behind_the_nat_is_about_the_packet_as_the_host_sent_it(
        kind: u8, (inside, remote, external) in three(), payload in payload(),
    ) {
        let kind = kind % 3;
        let seen_outside = build(kind, external, remote, &payload);
        let mut error = unreachable(&seen_outside, Unreachable::Port, ROUTER).unwrap();
        prop_assert_eq!(samples::verify(&error), Ok(()));
        let mut view = PacketView::parse(&mut error).unwrap();
        prop_assert_eq!(view.flow().protocol, Protocol::Error);
        prop_assert_eq!(view.embedded(), flow_of(&seen_outside));
        view.set_destination(inside);
        view.set_embedded_source(inside);
        let as_sent = build(kind, inside, remote, &payload);
        prop_assert_eq!(error, unreachable(&as_sent, Unreachable::Port, ROUTER).unwrap());
    }

    #[test]
    fn time_to_live_runs_down_with_correct_checksums(
        kind: u8, (source, destination, _) in three(), payload in payload(),
    ) {
        let mut packet = build(kind, source, destination, &payload);
        for _ in 0..63 {
            prop_assert!(PacketView::parse(&mut packet).unwrap().decrement_ttl());
            prop_assert_eq!(samples::verify(&packet), Ok(()));
        }
        let mut view = PacketView::parse(&mut packet).unwrap();
        prop_assert!(!view.outlives_a_hop());
        prop_assert!(!view.decrement_ttl());
        let error = time_exceeded(&packet, ROUTER).unwrap();
        prop_assert_eq!(samples::verify(&error), Ok(()));
        prop_assert_eq!(flow_of(&error).unwrap().destination.ip(), source.ip());
    }

    #[test]
    fn garbage_never_panics(
        kind: u8, (source, destination, other) in three(), payload in payload(),
        flips in prop::collection::vec((0usize..80, any::<u8>()), 0..6), cut in 0usize..240,
        noise in prop::option::weighted(0.3, prop::collection::vec(any::<u8>(), 0..120)),
    ) {
        let inner = build(kind, source, destination, &payload);
        let mut bytes = match kind & 0x40 {
            0 => inner,
            _ => too_big(&inner, 1280, ROUTER).unwrap_or(inner),
        };
        if let Some(noise) = noise {
            bytes = noise;
        }
        bytes.truncate(cut);
        for (at, flip) in flips {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= flip;
            }
        }
        let _ = too_big(&bytes, 1280, ROUTER);
        let _ = (time_exceeded(&bytes, ROUTER), fragment(&bytes, cut as u16));
        if let Some(mut view) = PacketView::parse(&mut bytes) {
            let _ = (view.flow(), view.embedded(), view.part(), view.tcp_flags());
            view.set_source(other);
            view.set_destination(other);
            view.set_embedded_source(other);
            view.set_embedded_destination(other);
            view.decrement_ttl();
        }
    }
}

#[test]
fn a_udp_datagram_without_checksum_gets_none() {
    let mut packet =
        samples::udp("10.0.0.1:5".parse().unwrap(), "192.0.2.1:6".parse().unwrap(), b"x");
    packet[26..28].fill(0);
    let mut view = PacketView::parse(&mut packet).unwrap();
    view.set_source("203.0.113.2:7".parse().unwrap());
    assert_eq!(packet[26..28], [0, 0]);
    assert_eq!(samples::verify(&packet), Ok(()));
}

#[test]
fn fragments_are_told_apart_and_only_the_first_has_ports() {
    let whole = samples::udp(
        "10.0.0.1:5000".parse().unwrap(),
        "192.0.2.1:6000".parse().unwrap(),
        &[7; 100],
    );
    let [mut first, mut later] = samples::fragments_v4(&whole, 48);
    let first = PacketView::parse(&mut first).unwrap();
    assert_eq!(first.part(), Part::First(0x1234));
    assert_eq!(first.flow().source.port(), 5000);
    let later = PacketView::parse(&mut later).unwrap();
    assert_eq!(later.part(), Part::Later(0x1234));
    assert_eq!(later.flow().source, "10.0.0.1:0".parse().unwrap());
}

#[test]
fn ports_are_found_behind_ipv6_extension_headers() {
    let mut packet =
        samples::udp("[2001:db8::1]:5".parse().unwrap(), "[2001:db8::2]:6".parse().unwrap(), b"hi");
    packet[6] = 60; // destination options, then a fragment header of a whole datagram
    packet[5] += 16;
    packet.splice(40..40, [44, 0, 1, 4, 0, 0, 0, 0, samples::UDP, 0, 0, 0, 0, 0, 0, 9]);
    let view = PacketView::parse(&mut packet).unwrap();
    assert_eq!((view.part(), view.flow().destination.port()), (Part::Whole, 6));
}

#[test]
fn fragments_of_fragments_put_together_are_the_packet() {
    let mut packet =
        samples::udp("10.0.0.1:5".parse().unwrap(), "192.0.2.1:6".parse().unwrap(), &[9; 1400]);
    assert_eq!(fragment(&packet, 600), None, "it forbids fragmentation");
    packet[6] = 0;
    packet[10..12].copy_from_slice(&[0; 2]);
    let header = !checksum::sum(&packet[..20]);
    packet[10..12].copy_from_slice(&header.to_be_bytes());
    let coarse = fragment(&packet, 600).unwrap();
    let fine: Vec<_> = coarse.iter().flat_map(|part| fragment(part, 100).unwrap()).collect();
    assert!((coarse.len(), fine.len()) == (3, 20) && fine.iter().all(|part| part.len() <= 100));
    let mut rebuilt = vec![0; 1408];
    for (index, part) in fine.iter().enumerate() {
        assert_eq!(checksum::sum(&part[..20]), 0xffff, "header checksum");
        let field = u16::from_be_bytes([part[6], part[7]]);
        assert_eq!(field & 0x2000 == 0, index + 1 == fine.len(), "only the last is the last");
        let at = usize::from(field & 0x1fff) * 8;
        rebuilt[at..at + part.len() - 20].copy_from_slice(&part[20..]);
    }
    assert_eq!(rebuilt, packet[20..]);
}

#[test]
fn too_big_tells_the_mtu_and_only_who_forbade_fragmentation() {
    let mut packet =
        samples::udp("10.0.0.1:5".parse().unwrap(), "192.0.2.1:6".parse().unwrap(), &[0; 1400]);
    let error = too_big(&packet, 1280, ROUTER).unwrap();
    assert_eq!((error[20], error[21], &error[26..28]), (3, 4, &1280u16.to_be_bytes()[..]));
    assert_eq!((samples::verify(&error), error.len()), (Ok(()), 576));
    packet[6] = 0;
    assert_eq!(too_big(&packet, 1280, ROUTER), None);
    let packet = samples::udp(
        "[2001:db8::1]:5".parse().unwrap(),
        "[2001:db8::2]:6".parse().unwrap(),
        &[0; 1400],
    );
    let error = too_big(&packet, 1400, ROUTER).unwrap();
    assert_eq!((error[40], &error[44..48]), (2, &1400u32.to_be_bytes()[..]));
    assert_eq!((samples::verify(&error), error.len()), (Ok(()), 1280));
}

#[test]
fn no_error_answers_an_error_a_later_fragment_or_a_crowd() {
    let unicast =
        samples::udp("10.0.0.1:5".parse().unwrap(), "192.0.2.1:6".parse().unwrap(), &[0; 100]);
    let error = unreachable(&unicast, Unreachable::Host, ROUTER).unwrap();
    assert_eq!(unreachable(&error, Unreachable::Host, ROUTER), None);
    assert_eq!(
        unreachable(&samples::fragments_v4(&unicast, 48)[1], Unreachable::Host, ROUTER),
        None
    );
    let multicast =
        samples::udp("10.0.0.1:5".parse().unwrap(), "224.0.0.251:6".parse().unwrap(), b"");
    assert_eq!(unreachable(&multicast, Unreachable::Prohibited, ROUTER), None);
    assert_eq!(unreachable(&unicast, Unreachable::Host, RouterAddresses::default()), None);
}
