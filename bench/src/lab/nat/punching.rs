//! Hole punching through two NATs, in made-up time: which pairs can, as theory and a lab of kernel
//! and user-space NATs have it. The oracle of every test that punches for real.
//!
//! Both ends ask a STUN server for their endpoint, exchange the answers, and send each other a
//! packet every 30 ms; who receives one answers its sender, too. Punched means that both know that
//! the other receives.

use std::collections::BTreeSet;

use super::*;
use crate::lab::packet::{flow_of, samples};

const STUN: &str = "192.0.2.1:3478";
const PACE: Duration = Duration::from_millis(30);
const ATTEMPTS: u32 = 20;

/// The payloads: "I send", and "I have received from you".
const CALL: &[u8] = b"call";
const HEARD: &[u8] = b"heard";

/// One end: a host behind NATs, the outermost last.
struct Host {
    address: SocketAddr,
    nats: Vec<Nat>,
    /// Where to send: the peer's STUN address, predictions, and whatever it was heard from.
    targets: BTreeSet<SocketAddr>,
    heard: bool,
    heard_back: bool,
}

impl Host {
    fn new(nats: &[&str], site: u8) -> Self {
        let boxes = nats.iter().enumerate().map(|(depth, settings)| {
            let last = depth + 1 == nats.len();
            let external = match last {
                true => Ipv4Addr::new(203, 0, 113, site),
                false => Ipv4Addr::new(100, 64, 0, site),
            };
            let seed = u64::from(site) * 10 + depth as u64;
            Nat::new(settings.parse().unwrap(), Some(external), RouterAddresses::default(), seed)
        });
        Host {
            address: SocketAddr::from(([192, 168, site, 2], 40_000 + u16::from(site))),
            nats: boxes.collect(),
            targets: BTreeSet::new(),
            heard: false,
            heard_back: false,
        }
    }

    /// The packet as it leaves the outermost NAT.
    fn emit(&mut self, now: Duration, to: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
        let mut packet = samples::udp(self.address, to, payload);
        let out = |nat: &mut Nat| nat.outbound(now, &mut packet) == Verdict::Forward;
        self.nats.iter_mut().all(out).then_some(packet)
    }

    /// What the STUN server would answer.
    fn reflexive(&mut self) -> SocketAddr {
        let packet = self.emit(Duration::ZERO, STUN.parse().unwrap(), b"binding").unwrap();
        flow_of(&packet).unwrap().source
    }

    fn take(&mut self, now: Duration, mut packet: Vec<u8>) {
        let inward = |nat: &mut Nat| nat.inbound(now, &mut packet) == Verdict::Forward;
        if self.nats.iter_mut().rev().all(inward) {
            let flow = flow_of(&packet).unwrap();
            assert_eq!(flow.destination, self.address);
            self.heard = true;
            self.heard_back |= packet.ends_with(HEARD);
            self.targets.insert(flow.source);
        }
    }
}

/// Whether the two ends find each other; each also tries so many ports after the peer's.
fn punch(a: &[&str], b: &[&str], predicted: u16) -> bool {
    let mut hosts = [Host::new(a, 2), Host::new(b, 3)];
    let reflexive = [hosts[0].reflexive(), hosts[1].reflexive()];
    for (host, peer) in hosts.iter_mut().zip([reflexive[1], reflexive[0]]) {
        host.targets = (0..=predicted)
            .map(|step| SocketAddr::new(peer.ip(), peer.port().saturating_add(step)))
            .collect();
    }
    for attempt in 1..=ATTEMPTS {
        let now = PACE * attempt;
        let mut flying = Vec::new();
        for host in &mut hosts {
            let payload = if host.heard { HEARD } else { CALL };
            for to in host.targets.clone() {
                flying.extend(host.emit(now, to, payload));
            }
        }
        for packet in flying {
            let to = flow_of(&packet).unwrap().destination.ip();
            let [a, b] = &mut hosts;
            let receiver =
                if a.nats.last().unwrap().external().map(IpAddr::V4) == Some(to) { a } else { b };
            receiver.take(now + PACE / 3, packet);
        }
        if hosts.iter().all(|host| host.heard_back) {
            return true;
        }
    }
    false
}

#[test]
fn named_nats_punch_exactly_where_a_real_lab_did() {
    // Measured with kernel and user-space NATs. Rows and columns in this order, 1 is direct.
    const KINDS: [&str; 6] = [
        "full-cone",
        "address-restricted",
        "port-restricted",
        "eim/apdf/random",
        "symmetric",
        "symmetric-sequential",
    ];
    const DIRECT: [&str; 6] = ["111111", "111111", "111100", "111100", "110000", "110000"];
    for (row, a) in DIRECT.iter().zip(KINDS) {
        for (cell, b) in row.chars().zip(KINDS) {
            assert_eq!(punch(&[a], &[b], 0), cell == '1', "{a} x {b}");
        }
    }
}

#[test]
fn prediction_adds_sequential_nats_against_port_restricted_ones_and_nothing_else() {
    let sequential = "symmetric-sequential";
    for easy in ["port-restricted", "eim/apdf/random"] {
        assert!(punch(&[sequential], &[easy], 4) && punch(&[easy], &[sequential], 4));
    }
    assert!(!punch(&["symmetric"], &["port-restricted"], 4));
    assert!(!punch(&["symmetric"], &["symmetric"], 4));
    assert!(!punch(&["symmetric"], &[sequential], 4));
}

#[test]
fn every_mapping_and_filtering_punches_as_theory_says() {
    use Filtering::{AddressAndPortDependent as Apdf, EndpointIndependent as Eif};
    let behaviours = || {
        ["eim", "adm", "apdm"].into_iter().flat_map(|mapping| {
            ["eif", "adf", "apdf"].map(|filtering| format!("{mapping}/{filtering}/random"))
        })
    };
    // Towards the peer the box shows another endpoint than towards the server.
    let moves = |nat: &NatSettings| nat.mapping != Mapping::EndpointIndependent;
    let theory = |a: &NatSettings, b: &NatSettings| match (moves(a), moves(b)) {
        (false, false) => true,
        // The one that stays must admit an unexpected port.
        (true, false) => b.filtering != Apdf,
        (false, true) => a.filtering != Apdf,
        // One must admit strangers where the server saw it, the other an unexpected port.
        (true, true) => {
            (a.filtering == Eif && b.filtering != Apdf)
                || (b.filtering == Eif && a.filtering != Apdf)
        }
    };
    for a in behaviours() {
        for b in behaviours() {
            let expected = theory(&a.parse().unwrap(), &b.parse().unwrap());
            assert_eq!(punch(&[&a], &[&b], 0), expected, "{a} x {b}");
        }
    }
}

#[test]
fn a_carriers_nat_outside_the_home_router_behaves_as_the_stricter_of_both() {
    for (double, single, direct) in [
        (["port-restricted", "cgn"], "port-restricted", true),
        (["full-cone", "full-cone"], "symmetric", true),
        (["full-cone", "cgn"], "symmetric", false),
        (["port-restricted", "symmetric"], "address-restricted", true),
        (["port-restricted", "symmetric"], "port-restricted", false),
        (["symmetric", "full-cone"], "port-restricted", false),
    ] {
        assert_eq!(punch(&double, &[single], 0), direct, "{double:?} x {single}");
    }
}

#[test]
fn two_stateful_firewalls_let_a_simultaneous_punch_through() {
    let mut boxes =
        ["firewall"; 2].map(|text| Nat::new(text.parse().unwrap(), None, Default::default(), 1));
    let ends: [SocketAddr; 2] =
        ["[2001:db8:1::2]:5000".parse().unwrap(), "[2001:db8:2::2]:6000".parse().unwrap()];
    let mut cross = |from: usize, to: usize, now| {
        let mut packet = samples::udp(ends[from], ends[to], CALL);
        assert_eq!(boxes[from].outbound(now, &mut packet), Verdict::Forward);
        boxes[to].inbound(now, &mut packet)
    };
    assert_eq!(cross(0, 1, PACE), Verdict::Drop(Reason::NoMapping));
    assert_eq!(cross(1, 0, PACE), Verdict::Forward);
    assert_eq!(cross(0, 1, PACE * 2), Verdict::Forward);
}
