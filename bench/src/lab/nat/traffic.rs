//! Properties of the box under any traffic.

use proptest::prelude::*;

use super::tests::{EXTERNAL, HOST, SERVER, at, ms};
use super::*;
use crate::lab::packet::{flow_of, samples, too_big};

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
