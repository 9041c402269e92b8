//! Which addresses an end may have the other one send to. Pure.
//!
//! An end that is told a candidate sends it a few small, paced checks. That is no amplification, but it is traffic on
//! command; so what can be no honest candidate is taken out here, and counted.
use std::net::{IpAddr, SocketAddr};

use crate::wire::{CANDIDATES_MAX, Candidate};

/// Judges candidates of an end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judge {
    /// The end reaches the gateway on loopback: that is where it lives, and where its relayed address is. To whoever is far
    /// away, the same address would be a way into the machines of those that are near.
    near: bool,
    /// The broker's and gateway's own address and port.
    gateway: SocketAddr,
}

impl Judge {
    /// For an end whose link comes from `end`, at a gateway that it reaches at `gateway`.
    pub(crate) fn new(end: SocketAddr, gateway: SocketAddr) -> Self {
        Self { near: end.ip().to_canonical().is_loopback(), gateway }
    }

    /// The candidates that may be passed on, each address once, and how many may not.
    pub(crate) fn admit(&self, candidates: Vec<Candidate>) -> (Vec<Candidate>, usize) {
        let offered = candidates.len();
        let mut admitted: Vec<Candidate> = Vec::new();
        let mut refused = offered.saturating_sub(CANDIDATES_MAX);
        for mut candidate in candidates.into_iter().take(CANDIDATES_MAX) {
            let address = &mut candidate.address;
            address.set_ip(address.ip().to_canonical());
            if !self.is_honest(candidate.address) {
                refused += 1;
            } else if admitted.iter().all(|known| known.address != candidate.address) {
                admitted.push(candidate);
            }
        }
        (admitted, refused)
    }

    fn is_honest(&self, address: SocketAddr) -> bool {
        let gateway = self.gateway;
        let is_gateway =
            address.port() == gateway.port() && address.ip() == gateway.ip().to_canonical();
        let unicast = match address.ip() {
            IpAddr::V4(ip) => {
                !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast()
                    // 0.0.0.0/8 and 240.0.0.0/4 are no addresses of hosts (RFC 6890).
                    && !matches!(ip.octets()[0], 0 | 240..)
            }
            // A link-local address means nothing without its interface, which the other end does not have.
            IpAddr::V6(ip) => {
                !ip.is_unspecified() && !ip.is_multicast() && !ip.is_unicast_link_local()
            }
        };
        address.port() != 0 && unicast && !is_gateway && (self.near || !address.ip().is_loopback())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::CandidateKind;

    fn candidate(address: &str) -> Candidate {
        Candidate { kind: CandidateKind::Host, address: address.parse().unwrap() }
    }

    fn judge(end: &str) -> Judge {
        Judge::new(end.parse().unwrap(), "198.51.100.1:443".parse().unwrap())
    }

    #[test]
    fn what_can_be_no_honest_candidate_is_refused() {
        let judge = judge("192.0.2.9:1000");
        for bad in [
            "127.0.0.1:5000",
            "[::1]:5000",
            "0.0.0.0:5000",
            "[::]:5000",
            "224.0.0.1:5000",
            "[ff02::1]:5000",
            "255.255.255.255:5000",
            "0.1.2.3:5000",
            "245.0.0.1:5000",
            "192.0.2.9:0",
            "[fe80::1]:5000",
            "198.51.100.1:443",
            "[::ffff:127.0.0.1]:5000",
            "[::ffff:198.51.100.1]:443",
        ] {
            assert_eq!(judge.admit(vec![candidate(bad)]), (vec![], 1), "{bad}");
        }
        for good in ["192.168.1.5:5000", "198.51.100.1:50000", "[2001:db8::1]:5000"] {
            let candidate = candidate(good);
            assert_eq!(judge.admit(vec![candidate]), (vec![candidate], 0), "{good}");
        }
    }

    #[test]
    fn loopback_is_for_ends_on_this_machine() {
        let candidate = candidate("127.0.0.1:5000");
        let (admitted, refused) = judge("[::ffff:127.0.0.1]:1000").admit(vec![candidate]);
        assert_eq!((admitted, refused), (vec![candidate], 0));
    }

    #[test]
    fn whoever_is_far_away_names_no_loopback_address_whatever_it_calls_it() {
        use CandidateKind::{Host, Managed, Mapped, Predicted, Relayed, ServerReflexive};
        for kind in [Host, Managed, Mapped, Predicted, Relayed, ServerReflexive] {
            for address in ["127.0.0.1:22", "127.9.9.9:8080", "[::1]:53", "[::ffff:127.0.0.1]:53"] {
                let named = Candidate { kind, ..candidate(address) };
                assert_eq!(judge("192.0.2.9:1000").admit(vec![named]), (vec![], 1), "{named:?}");
                assert_eq!(judge("127.0.0.1:1000").admit(vec![named]).1, 0, "{named:?}");
            }
        }
    }

    #[test]
    fn their_number_is_bounded_and_each_is_there_once() {
        let many = (1..=100u16).map(|port| candidate(&format!("192.0.2.9:{port}")));
        let (admitted, refused) = judge("192.0.2.9:1").admit(many.collect());
        assert_eq!((admitted.len(), refused), (CANDIDATES_MAX, 100 - CANDIDATES_MAX));
        let twice = vec![candidate("192.0.2.9:5"), candidate("[::ffff:192.0.2.9]:5")];
        assert_eq!(judge("192.0.2.9:1").admit(twice), (vec![candidate("192.0.2.9:5")], 0));
    }
}
