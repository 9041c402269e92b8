use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::lab::packet::{flow_of, samples};

const ROUTER: RouterAddresses = RouterAddresses { v4: Some(Ipv4Addr::new(192, 0, 2, 9)), v6: None };

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn wire(settings: &str) -> Wire {
    Wire::new(settings.parse().unwrap(), ROUTER, 7)
}

/// A packet that carries its number, of this many bytes.
fn numbered(number: u32, bytes: usize) -> Vec<u8> {
    let mut packet = vec![0; bytes];
    packet[..4].copy_from_slice(&number.to_be_bytes());
    packet
}

fn number(packet: &[u8]) -> u32 {
    u32::from_be_bytes(packet[..4].try_into().unwrap())
}

/// Takes everything that arrives until `end`, each at the moment the wire asks to be asked.
fn drain(wire: &mut Wire, end: Duration) -> Vec<(Duration, u32)> {
    let mut arrived = Vec::new();
    while let Some(due) = wire.next_due().filter(|due| *due <= end) {
        while let Some(packet) = wire.pop_due(due) {
            arrived.push((due, number(&packet)));
        }
    }
    arrived
}

/// Sends so many packets of 100 bytes, one each `gap`, and takes all arrivals.
fn run(wire: &mut Wire, packets: u32, gap: Duration) -> Vec<(Duration, u32)> {
    let mut arrived = Vec::new();
    for n in 0..packets {
        let now = gap * n;
        arrived.extend(drain(wire, now));
        match wire.push(now, numbered(n, 100)) {
            Pushed::Through(packet) => arrived.push((now, number(&packet))),
            Pushed::Queued | Pushed::Dropped => {}
            Pushed::Reply(_) => panic!("nothing is too big"),
        }
    }
    arrived.extend(drain(wire, Duration::from_secs(3600)));
    arrived
}

fn inversions(arrived: &[(Duration, u32)]) -> usize {
    arrived.windows(2).filter(|pair| pair[0].1 > pair[1].1).count()
}

#[test]
fn a_perfect_wire_hands_the_packet_back_at_once() {
    let mut wire = wire("");
    assert_eq!(wire.push(ms(1), vec![1, 2]), Pushed::Through(vec![1, 2]));
    assert_eq!((wire.next_due(), wire.stats().delivered), (None, 1));
}

#[test]
fn delay_is_exact() {
    let mut wire = wire("delay=20ms");
    let arrived = run(&mut wire, 500, ms(3));
    assert_eq!(arrived.len(), 500);
    assert!(arrived.iter().all(|(at, n)| *at == ms(3) * *n + ms(20)));
    assert_eq!(wire.pop_due(Duration::from_secs(9)), None);
}

#[test]
fn udp_alone_is_delayed_further_and_holds_up_nothing_else() {
    let (from, to) = ("10.0.0.1:5".parse().unwrap(), "192.0.2.1:6".parse().unwrap());
    let mut wire = wire("delay=20ms,udp-delay=15ms");
    let udp = samples::udp(from, to, &[1]);
    wire.push(ms(0), udp.clone());
    wire.push(ms(1), numbered(1, 40));
    assert_eq!(wire.pop_due(ms(21)), Some(numbered(1, 40)));
    assert_eq!((wire.pop_due(ms(34)), wire.pop_due(ms(35))), (None, Some(udp)));
}

#[test]
fn a_packet_is_not_there_before_its_time() {
    let mut wire = wire("delay=20ms");
    wire.push(ms(5), numbered(1, 40));
    assert_eq!(wire.pop_due(ms(24)), None);
    assert!(wire.pop_due(ms(25)).is_some());
}

#[test]
fn jitter_spreads_arrivals_and_keeps_order() {
    let arrived = run(&mut wire("delay=20ms,jitter=10ms"), 2000, ms(4));
    assert_eq!((arrived.len(), inversions(&arrived)), (2000, 0));
    let late: Vec<_> = arrived.iter().map(|(at, n)| *at - ms(4) * *n).collect();
    assert!(late.iter().all(|late| (ms(20)..=ms(30)).contains(late)));
    assert!(late.iter().any(|l| *l < ms(22)) && late.iter().any(|l| *l > ms(29)));
}

#[test]
fn reordered_packets_are_overtaken_and_none_is_lost() {
    let mut wire = wire("delay=20ms,reorder=5%");
    let arrived = run(&mut wire, 4000, ms(1));
    assert_eq!(arrived.len(), 4000);
    assert!((120..=280).contains(&inversions(&arrived)), "{}", inversions(&arrived));
    assert!(wire.stats().reordered >= inversions(&arrived) as u64);
}

#[test]
fn independent_losses_have_their_rate() {
    let mut wire = wire("loss=3%");
    let arrived = run(&mut wire, 20_000, ms(1));
    assert!((500..=700).contains(&wire.stats().lost), "{}", wire.stats().lost);
    assert_eq!(arrived.len() as u64 + wire.stats().lost, 20_000);
}

#[test]
fn bursty_losses_have_their_rate_and_their_length() {
    let arrived = run(&mut wire("loss=2%,burst=4"), 100_000, ms(1));
    let lost = 100_000 - arrived.len();
    let bursts = arrived.windows(2).filter(|pair| pair[1].1 > pair[0].1 + 1).count();
    let length = lost as f64 / bursts as f64;
    assert!((1700..=2300).contains(&lost), "{lost}");
    assert!((3.6..=4.4).contains(&length), "{length}");
}

#[test]
fn the_same_seed_loses_the_same_packets() {
    let once = run(&mut wire("loss=10%,jitter=3ms,duplicate=2%"), 500, ms(1));
    assert_eq!(once, run(&mut wire("loss=10%,jitter=3ms,duplicate=2%"), 500, ms(1)));
    let other = &mut Wire::new("loss=10%".parse().unwrap(), ROUTER, 8);
    assert_ne!(once, run(other, 500, ms(1)));
}

#[test]
fn duplicates_arrive_beside_the_original() {
    let mut wire = wire("duplicate=10%");
    let arrived = run(&mut wire, 5000, ms(1));
    assert_eq!(arrived.len() as u64, 5000 + wire.stats().duplicated);
    assert!((400..=600).contains(&wire.stats().duplicated));
    assert_eq!(inversions(&arrived), 0);
}

#[test]
fn corruption_flips_exactly_one_bit() {
    let mut wire = wire("corrupt=100%");
    wire.push(ms(0), vec![0; 60]);
    let packet = wire.pop_due(ms(0)).unwrap();
    assert_eq!(packet.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
}

#[test]
fn a_rate_spaces_packets_by_their_length() {
    let mut wire = wire("delay=10ms,rate=8mbit"); // a byte each microsecond
    for n in 0..10 {
        assert_eq!(wire.push(ms(0), numbered(n, 1000)), Pushed::Queued);
    }
    let arrived = drain(&mut wire, ms(100));
    let expected: Vec<_> = (0..10).map(|n| (ms(11) + ms(1) * n, n)).collect();
    assert_eq!(arrived, expected);
}

#[test]
fn a_full_queue_drops_its_tail() {
    let mut wire = wire("rate=8mbit,queue=5kB");
    let fates: Vec<_> = (0..7).map(|n| wire.push(ms(0), numbered(n, 1000))).collect();
    assert_eq!(fates[..5], vec![Pushed::Queued; 5]);
    assert_eq!(fates[5..], vec![Pushed::Dropped; 2]);
    assert_eq!(wire.stats().queue_full, 2);
    assert_eq!(wire.push(ms(1), numbered(7, 1000)), Pushed::Queued, "one has left");
    let arrived: Vec<_> = drain(&mut wire, ms(50)).into_iter().map(|(_, n)| n).collect();
    assert_eq!(arrived, [0, 1, 2, 3, 4, 7]);
}

#[test]
fn a_raised_rate_empties_the_queue_at_once_faster() {
    let mut wire = wire("rate=80kbit,queue=1MB"); // 100 ms each
    for n in 0..20 {
        wire.push(ms(0), numbered(n, 1000));
    }
    assert_eq!(drain(&mut wire, ms(250)).len(), 2);
    let mut settings = *wire.settings();
    settings.update("rate=8mbit").unwrap();
    wire.set(ms(250), settings);
    assert_eq!(drain(&mut wire, ms(268)).len(), 18);
    assert_eq!(wire.push(ms(268), numbered(20, 1000)), Pushed::Queued);
    settings.update("rate=off").unwrap();
    wire.set(ms(268), settings);
    assert_eq!(drain(&mut wire, ms(268)), [(ms(268), 20)]);
}

#[test]
fn a_shortened_delay_does_not_let_later_packets_overtake() {
    let mut wire = wire("delay=100ms");
    wire.push(ms(0), numbered(1, 40));
    wire.set(ms(10), "delay=1ms".parse().unwrap());
    wire.push(ms(10), numbered(2, 40));
    wire.set(ms(20), LinkSettings::default());
    assert_eq!(wire.push(ms(20), numbered(3, 40)), Pushed::Queued);
    assert_eq!(drain(&mut wire, ms(100)), [(ms(100), 1), (ms(100), 2), (ms(100), 3)]);
    assert!(matches!(wire.push(ms(100), numbered(4, 40)), Pushed::Through(_)));
}

#[test]
fn a_blackhole_swallows_what_is_sent_and_nothing_that_is_on_its_way() {
    let mut wire = wire("delay=20ms");
    wire.push(ms(0), numbered(1, 40));
    wire.set(ms(5), "delay=20ms,blackhole".parse().unwrap());
    assert_eq!(wire.push(ms(5), numbered(2, 40)), Pushed::Queued);
    wire.set(ms(6), "delay=20ms".parse().unwrap());
    wire.push(ms(6), numbered(3, 40));
    assert_eq!(drain(&mut wire, ms(99)), [(ms(20), 1), (ms(26), 3)]);
    assert_eq!(wire.stats().blackholed, 1);
}

#[test]
fn what_is_too_big_is_answered_by_an_error_or_by_nothing() {
    let big =
        samples::udp("10.0.0.1:5".parse().unwrap(), "192.0.2.1:6".parse().unwrap(), &[0; 1400]);
    let fits = big.len();
    let mut loud = wire(&format!("mtu={}", fits - 1));
    let Pushed::Reply(error) = loud.push(ms(0), big.clone()) else { panic!("an error") };
    assert_eq!(flow_of(&error).unwrap().destination.ip(), Ipv4Addr::new(10, 0, 0, 1));
    assert_eq!(flow_of(&error).unwrap().source.ip(), Ipv4Addr::new(192, 0, 2, 9));
    let mut silent = wire(&format!("mtu={}/silent", fits - 1));
    assert_eq!(silent.push(ms(0), big.clone()), Pushed::Dropped);
    assert_eq!((loud.stats().too_big, silent.stats().too_big), (1, 1));
    assert_eq!(wire(&format!("mtu={fits}")).push(ms(0), big), Pushed::Queued);
}

#[test]
fn what_allows_fragmentation_goes_in_fragments() {
    let mut big =
        samples::udp("10.0.0.1:5".parse().unwrap(), "192.0.2.1:6".parse().unwrap(), &[0; 1400]);
    big[6] = 0;
    let mut narrow = wire("mtu=600");
    assert_eq!(narrow.push(ms(0), big.clone()), Pushed::Queued);
    let sizes: Vec<_> = std::iter::from_fn(|| narrow.pop_due(ms(0))).map(|p| p.len()).collect();
    assert_eq!((sizes, narrow.stats().fragments_added), (vec![596, 596, 276], 2));
    assert_eq!(wire("mtu=600/silent").push(ms(0), big), Pushed::Dropped);
}

#[test]
fn a_medium_that_is_full_drops_and_counts() {
    let mut wire = wire("delay=60s");
    let packet = vec![0; 1 << 20];
    for _ in 0..193 {
        wire.push(ms(0), packet.clone());
    }
    assert_eq!(wire.stats().overflowed, 1);
}

#[test]
fn an_update_changes_what_it_names_and_nothing_else() {
    let mut settings: LinkSettings =
        "delay=20ms,loss=1%,blackhole,mtu=1400/silent".parse().unwrap();
    settings.update("delay=30ms,blackhole=off").unwrap();
    assert_eq!(settings.to_string(), "delay=30ms,loss=1%,mtu=1400/silent");
    let before = settings;
    assert!(settings.update("delay=40ms,loss=2").is_err());
    assert_eq!(settings, before, "an error changes nothing");
}

#[test]
fn udp_beyond_its_own_rate_is_dropped_and_tcp_is_not() {
    let mut wire = wire("udp-rate=8mbit");
    let (a, b) = ("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap());
    let (udp, tcp) = (samples::udp(a, b, &[0; 972]), samples::tcp(a, b, 0, &[0; 960]));
    let mut passed = [0; 2];
    // A packet of each kind every 0.5 ms: 16 Mbit/s each.
    for step in 0..4000 {
        let now = Duration::from_micros(500) * step;
        for (count, packet) in passed.iter_mut().zip([&udp, &tcp]) {
            assert_eq!(packet.len(), 1000);
            *count += u32::from(wire.push(now, packet.clone()) == Pushed::Queued);
        }
    }
    // 2 s at 1000 packets a second, and a burst of 50 ms.
    assert!((2040..=2051).contains(&passed[0]), "{}", passed[0]);
    assert_eq!((passed[1], wire.stats().policed), (4000, u64::from(4000 - passed[0])));
}

#[test]
fn a_wrong_setting_is_refused_with_what_would_be_right() {
    for (text, remedy) in [
        ("delay=20", "as in 20ms"),
        ("delay=2h", "as in 20ms"),
        ("delay=90s", "at most 60s"),
        ("delay=99999999999999999999s", "as in 20ms"),
        ("jitter=-1ms", "as in 20ms"),
        ("delay=0.0001ms", "as in 20ms"),
        ("loss=101%", "0% to 100%"),
        ("loss=0.01", "0% to 100%"),
        ("burst=0", "1 to 10000"),
        ("loss=90%,burst=2", "at most loss=66.7%"),
        ("rate=20", "as in 20mbit"),
        ("rate=1bit", "300bit"),
        ("queue=1GB", "as in 200kB"),
        ("udp-rate=20", "as in 20mbit"),
        ("mtu=20", "1400/silent"),
        ("blackhole=yes", "on or off"),
        ("latency=3ms", "the keys are delay"),
        ("delay", "as in 20ms"),
    ] {
        let error = text.parse::<LinkSettings>().unwrap_err();
        assert!(error.contains(remedy), "{text}: {error}");
    }
}

fn settings() -> impl Strategy<Value = LinkSettings> {
    let chance = || (0u32..=1_000_000).prop_map(Chance::per_million);
    let time = || prop_oneof![Just(0), 0u64..=60_000_000].prop_map(Duration::from_micros);
    (
        (time(), time(), chance(), chance(), chance(), chance()),
        (300u64..=1_000_000_000_000, any::<bool>(), any::<bool>()),
        prop::option::of(1u64..=64_000_000),
        prop::option::of((68u16.., any::<bool>())),
        (time(), any::<bool>()),
    )
        .prop_map(
            |((delay, jitter, loss, reorder, duplicate, corrupt), rates, queue, mtu, last)| {
                let (rate, limited, policed) = rates;
                let (udp_delay, hole) = last;
                LinkSettings {
                    delay,
                    jitter,
                    loss,
                    burst: (loss.share() < 0.5).then_some(2),
                    rate: limited.then_some(rate),
                    queue,
                    udp_rate: policed.then_some(rate),
                    reorder,
                    duplicate,
                    corrupt,
                    mtu: mtu.map(|(mtu, silent)| MtuLimit { mtu, silent }),
                    udp_delay,
                    blackhole: hole,
                }
            },
        )
}

proptest! {
    #[test]
    fn settings_survive_their_text(settings in settings()) {
        prop_assert_eq!(settings.to_string().parse(), Ok(settings));
    }

    #[test]
    fn any_text_is_settings_or_a_message(text in "[a-z0-9.%=,/]{0,30}", key in 0usize..13) {
        let keys = ["delay", "jitter", "loss", "burst", "rate", "queue", "reorder", "duplicate",
            "corrupt", "mtu", "udp-rate", "udp-delay", "blackhole"];
        let _ = text.parse::<LinkSettings>();
        let _ = format!("{}={text}", keys[key]).parse::<LinkSettings>();
    }

    #[test]
    fn every_packet_has_exactly_one_fate(
        settings in settings(), seed: u64,
        sizes in prop::collection::vec(40usize..1500, 1..200),
    ) {
        let mut wire = Wire::new(settings, RouterAddresses::default(), seed);
        let mut out = 0;
        for (index, size) in sizes.iter().enumerate() {
            let now = ms(index as u64);
            let mut packet = vec![0; *size];
            packet[0] = 0x45;
            packet[9] = samples::UDP;
            packet[2..4].copy_from_slice(&(*size as u16).to_be_bytes());
            out += u64::from(matches!(wire.push(now, packet), Pushed::Through(_)));
            while wire.pop_due(now).is_some() {
                out += 1;
            }
        }
        while let Some(due) = wire.next_due() {
            while wire.pop_due(due).is_some() {
                out += 1;
            }
        }
        let stats = wire.stats();
        let refused = stats.queue_full + stats.policed;
        let gone = stats.lost + refused + stats.blackholed + stats.too_big;
        prop_assert_eq!(stats.delivered, out);
        let made = stats.pushed + stats.duplicated + stats.fragments_added;
        prop_assert_eq!(made, stats.delivered + gone);
    }
}
