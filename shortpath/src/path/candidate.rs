//! Candidates: addresses at which an end may be reachable, what they are worth, and the credentials to check them.
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::LegKind;

/// A socket or a TURN allocation of this process. The underlay hands the numbers out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalId(pub u16);

/// A local base and a remote address: where a packet leaves, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// The socket or allocation that sends.
    pub local: LocalId,
    /// Who receives.
    pub remote: SocketAddr,
}

/// How an address was found (RFC 8445 section 5.1.1, and three kinds of ours).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CandidateKind {
    /// An address of one of the machine's interfaces.
    Host,
    /// What a STUN server saw.
    ServerReflexive,
    /// What the peer saw in a check. Never signalled.
    PeerReflexive,
    /// A TURN allocation.
    Relayed,
    /// A fixed UDP listener in a network that routes to it.
    Managed,
    /// Opened on the NAT by PCP, NAT-PMP or UPnP.
    Mapped,
    /// A port that a NAT with sequential ports will probably give next.
    Predicted,
}

impl CandidateKind {
    /// The type preference of RFC 8445 section 5.1.2.1 (126 host, 110 peer-reflexive, 100 server-reflexive, 0 relayed).
    /// Managed ranks as host, mapped just below peer-reflexive (it is a promise of the NAT, but UPnP's are often
    /// wrong), predicted below everything that was seen.
    #[must_use]
    pub const fn type_preference(self) -> u32 {
        match self {
            Self::Host | Self::Managed => 126,
            Self::PeerReflexive => 110,
            Self::Mapped => 105,
            Self::ServerReflexive => 100,
            Self::Predicted => 60,
            Self::Relayed => 0,
        }
    }

    /// The name on the wire and in views.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::ServerReflexive => "server_reflexive",
            Self::PeerReflexive => "peer_reflexive",
            Self::Relayed => "relayed",
            Self::Managed => "managed",
            Self::Mapped => "mapped",
            Self::Predicted => "predicted",
        }
    }

    /// Whether a *remote* candidate of this kind may be checked by the finder of that leg kind. The underlay can hand
    /// the whole list to every finder.
    #[must_use]
    pub const fn serves(self, leg: LegKind) -> bool {
        match leg {
            LegKind::TcpReverse => false,
            LegKind::UdpManaged => matches!(self, Self::Managed),
            LegKind::UdpDirect => !matches!(self, Self::Managed | Self::Relayed),
            LegKind::UdpRelay => !matches!(self, Self::Managed | Self::Predicted),
        }
    }
}

/// An address at which an end may be reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// How it was found.
    pub kind: CandidateKind,
    /// Where it is.
    pub address: SocketAddr,
}

impl Candidate {
    /// A candidate; an IPv4 address in IPv6 clothes is undressed.
    #[must_use]
    pub fn new(kind: CandidateKind, address: SocketAddr) -> Self {
        Self { kind, address: canonical(address) }
    }

    /// Priority of RFC 8445 section 5.1.2.1 for one component. IPv6 before IPv4 within a kind (RFC 8421); `order` is
    /// the place among our own candidates of the same kind and family (0 first).
    #[must_use]
    pub fn priority(&self, order: u16) -> u32 {
        priority(self.kind, self.address.is_ipv6(), order)
    }
}

/// See [`Candidate::priority`].
pub(super) fn priority(kind: CandidateKind, ipv6: bool, order: u16) -> u32 {
    let family = u32::from(ipv6);
    let local = 65_534 + family - 2 * u32::from(order.min(32_000));
    (kind.type_preference() << 24) | (local << 8) | 255
}

/// Priority of a pair (RFC 8445 section 6.1.2.3).
pub(super) fn pair_priority(controlling: bool, local: u32, remote: u32) -> u64 {
    let (ours, theirs) = (u64::from(local), u64::from(remote));
    let wins = if controlling { local > remote } else { remote > local };
    (ours.min(theirs) << 32).saturating_add(2 * ours.max(theirs)).saturating_add(u64::from(wins))
}

/// IPv4 in IPv6 clothes undressed, flow label and scope dropped: routes compare equal wherever they come from.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => address,
        ip => SocketAddr::new(ip, address.port()),
    }
}

/// One end's ICE credentials (RFC 8445 section 5.3). `Debug` shows neither part.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IceCredentials {
    /// Username fragment, at least 4 characters: letters, digits, `+`, `/`.
    pub ufrag: String,
    /// Password, at least 22 such characters.
    pub password: String,
}

/// Letters, digits, `+` and `/` (RFC 8445 section 5.3 `ice-char`).
fn is_ice_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/'
}

impl IceCredentials {
    /// Lengths and characters as RFC 8445 section 5.3 has them (4 to 255, 22 to 255).
    #[must_use]
    pub fn is_valid(&self) -> bool {
        (4..=255).contains(&self.ufrag.len())
            && (22..=255).contains(&self.password.len())
            && self.ufrag.bytes().chain(self.password.bytes()).all(is_ice_char)
    }

    /// The credentials of one leg kind: the same password, and a username fragment with the kind's letter behind.
    #[must_use]
    pub fn of_kind(&self, kind: LegKind) -> Self {
        let letter = match kind {
            LegKind::TcpReverse => 't',
            LegKind::UdpDirect => 'd',
            LegKind::UdpManaged => 'm',
            LegKind::UdpRelay => 'r',
        };
        Self { ufrag: format!("{}{letter}", self.ufrag), password: self.password.clone() }
    }
}

impl fmt::Debug for IceCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IceCredentials(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(kind: CandidateKind, address: &str) -> Candidate {
        Candidate::new(kind, address.parse().unwrap())
    }

    #[test]
    fn the_wire_form_is_kind_and_address() {
        let text = r#"{"kind":"server_reflexive","address":"192.0.2.1:5000"}"#;
        let read: Candidate = serde_json::from_str(text).unwrap();
        assert_eq!(read, candidate(CandidateKind::ServerReflexive, "192.0.2.1:5000"));
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        assert!(
            serde_json::from_str::<Candidate>(
                r#"{"kind":"host","address":"192.0.2.1:5000","x":1}"#
            )
            .is_err()
        );
    }

    #[test]
    fn priorities_follow_rfc_8445() {
        let host = candidate(CandidateKind::Host, "192.0.2.1:1").priority(0);
        assert_eq!(host, (126 << 24) | (65_534 << 8) | 255);
        assert!(candidate(CandidateKind::Host, "[2001:db8::1]:1").priority(0) > host);
        assert!(candidate(CandidateKind::Host, "192.0.2.1:1").priority(1) < host);
        assert!(host < 1 << 31);
        assert_eq!(pair_priority(true, 5, 3), (3 << 32) + 10 + 1);
        assert_eq!(pair_priority(false, 3, 5), pair_priority(true, 5, 3));
        let _no_overflow = pair_priority(true, u32::MAX, u32::MAX);
    }

    #[test]
    fn credentials_are_never_shown_and_differ_by_leg() {
        let base =
            IceCredentials { ufrag: "abcd".into(), password: "secretsecretsecretsecret".into() };
        assert!(base.is_valid());
        assert!(!format!("{base:?}").contains("secret"));
        assert_eq!(base.of_kind(LegKind::UdpRelay).ufrag, "abcdr");
        assert_ne!(base.of_kind(LegKind::UdpDirect), base.of_kind(LegKind::UdpManaged));
        assert!(!IceCredentials { ufrag: "a:b".into(), ..base }.is_valid());
    }
}
