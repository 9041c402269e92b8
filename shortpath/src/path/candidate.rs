//! Candidates: addresses at which an end may be reachable, what they are worth, and which of a peer's are believed.
//!
//! A candidate that comes from the peer is somebody else's wish that we send packets there, so [`RemoteCandidates`]
//! takes few of them, each with a reason to exist, and counts what it refuses. What is taken is still only checked:
//! paced, bounded and signed (see [`super::Finder`]).
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::network::NetworkFilter;
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

/// Why a remote candidate was not taken. Each is counted under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum CandidateRefusal {
    /// It belongs to a leg of another kind; no fault of the peer.
    #[error("the candidate serves another kind of leg")]
    OtherLeg,
    /// Peer-reflexive candidates are learnt from checks, never told.
    #[error("a peer-reflexive candidate cannot be signalled")]
    Signalled,
    /// Port 0, or an unspecified, multicast, broadcast or reserved address.
    #[error("nobody can be reached at such an address")]
    NotUnicast,
    /// Loopback, while our own candidates are not.
    #[error("a loopback address means another machine to the peer than to us")]
    Loopback,
    /// 169.254/16 or fe80::/10: means nothing without the peer's interface.
    #[error("a link-local address means nothing on another link")]
    LinkLocal,
    /// A service of the gateway or the broker: a STUN or TURN port, or its HTTPS.
    #[error("the address is a server's, not a peer's")]
    Server,
    /// The policy's networks exclude it.
    #[error("policy does not allow this network")]
    Network,
    /// It is there already.
    #[error("known already")]
    Known,
    /// More than [`RemoteLimits::candidates`].
    #[error("too many candidates")]
    TooMany,
    /// More than [`RemoteLimits::per_host`] ports of one address.
    #[error("too many ports of one host")]
    TooManyOfHost,
}

impl CandidateRefusal {
    /// The label in metrics and views.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OtherLeg => "other_leg",
            Self::Signalled => "signalled_peer_reflexive",
            Self::NotUnicast => "not_unicast",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link_local",
            Self::Server => "server_address",
            Self::Network => "network_policy",
            Self::Known => "known",
            Self::TooMany => "too_many",
            Self::TooManyOfHost => "too_many_of_host",
        }
    }
}

/// What a peer may ask us to check.
#[derive(Clone, Debug)]
pub struct RemoteLimits {
    /// Signalled candidates in all. 32: three interfaces with both families, two reflexive addresses, and predictions
    /// fit twice.
    pub candidates: usize,
    /// Ports of one address: host or reflexive, mapped, and up to eight predicted ones, so that a list of ports is no
    /// port scan.
    pub per_host: usize,
    /// Whether loopback addresses are taken: only when our own candidates are loopback (tests and the demo on one
    /// machine), because for anybody else they mean this machine's own services. Link-local goes with it.
    pub loopback: bool,
    /// Exact addresses that are servers (the gateways' STUN, TURN and 443): checks there would use our authority to
    /// probe the service that signed us up. Other ports of the same host stay allowed: relayed candidates live there.
    pub servers: Vec<SocketAddr>,
    /// The networks policy allows.
    pub networks: NetworkFilter,
}

impl Default for RemoteLimits {
    fn default() -> Self {
        Self {
            candidates: 32,
            per_host: 12,
            loopback: false,
            servers: Vec::new(),
            networks: NetworkFilter::default(),
        }
    }
}

/// The peer's candidates that were taken, and how many were not, by reason.
#[derive(Debug, Default)]
pub struct RemoteCandidates {
    taken: Vec<Candidate>,
    refused: BTreeMap<CandidateRefusal, u64>,
}

impl RemoteCandidates {
    /// Takes the candidate or says why not.
    ///
    /// # Errors
    ///
    /// Every [`CandidateRefusal`].
    pub fn take(
        &mut self,
        limits: &RemoteLimits,
        leg: LegKind,
        candidate: Candidate,
    ) -> Result<Candidate, CandidateRefusal> {
        let candidate = Candidate::new(candidate.kind, candidate.address);
        match self.judge(limits, leg, candidate) {
            Ok(()) => {
                self.taken.push(candidate);
                Ok(candidate)
            }
            Err(refusal) => {
                *self.refused.entry(refusal).or_default() += 1;
                Err(refusal)
            }
        }
    }

    fn judge(
        &self,
        limits: &RemoteLimits,
        leg: LegKind,
        candidate: Candidate,
    ) -> Result<(), CandidateRefusal> {
        if candidate.kind == CandidateKind::PeerReflexive {
            return Err(CandidateRefusal::Signalled);
        }
        if !candidate.kind.serves(leg) {
            return Err(CandidateRefusal::OtherLeg);
        }
        reachable(limits, candidate.address)?;
        if self.taken.iter().any(|taken| taken.address == candidate.address) {
            return Err(CandidateRefusal::Known);
        }
        if self.taken.len() >= limits.candidates {
            return Err(CandidateRefusal::TooMany);
        }
        let ip = candidate.address.ip();
        if self.taken.iter().filter(|taken| taken.address.ip() == ip).count() >= limits.per_host {
            return Err(CandidateRefusal::TooManyOfHost);
        }
        Ok(())
    }

    /// Those taken, in the order they came.
    #[must_use]
    pub fn taken(&self) -> &[Candidate] {
        &self.taken
    }

    /// How often each refusal happened.
    pub fn refused(&self) -> impl Iterator<Item = (CandidateRefusal, u64)> + '_ {
        self.refused.iter().map(|(&refusal, &count)| (refusal, count))
    }
}

/// Whether an address, signalled or seen, may be sent checks at all.
///
/// # Errors
///
/// The reasons that concern the address alone.
pub(super) fn reachable(
    limits: &RemoteLimits,
    address: SocketAddr,
) -> Result<(), CandidateRefusal> {
    let ip = address.ip();
    if address.port() == 0 || !is_unicast(ip) {
        return Err(CandidateRefusal::NotUnicast);
    }
    if ip.is_loopback() && !limits.loopback {
        return Err(CandidateRefusal::Loopback);
    }
    if is_link_local(ip) && !limits.loopback {
        return Err(CandidateRefusal::LinkLocal);
    }
    if limits.servers.iter().any(|server| canonical(*server) == address) {
        return Err(CandidateRefusal::Server);
    }
    if !limits.networks.allows(ip) {
        return Err(CandidateRefusal::Network);
    }
    Ok(())
}

fn is_unicast(ip: IpAddr) -> bool {
    match ip {
        // 0/8 is "this network", 240/4 reserved, which holds the broadcast address (RFC 1122, RFC 1112).
        IpAddr::V4(ip) => ip.octets()[0] != 0 && ip.octets()[0] < 224,
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast(),
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(kind: CandidateKind, address: &str) -> Candidate {
        Candidate::new(kind, address.parse().unwrap())
    }

    fn refusal(address: &str) -> Option<CandidateRefusal> {
        let limits = RemoteLimits {
            servers: vec!["192.0.2.1:443".parse().unwrap()],
            ..RemoteLimits::default()
        };
        RemoteCandidates::default()
            .take(&limits, LegKind::UdpDirect, candidate(CandidateKind::Host, address))
            .err()
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
    fn addresses_that_reach_nobody_are_refused() {
        for address in ["0.0.0.0:1", "0.1.2.3:9", "224.0.0.1:5", "255.255.255.255:5", "240.0.0.1:5"]
        {
            assert_eq!(refusal(address), Some(CandidateRefusal::NotUnicast), "{address}");
        }
        assert_eq!(refusal("192.0.2.9:0"), Some(CandidateRefusal::NotUnicast));
        assert_eq!(refusal("[ff02::1]:5"), Some(CandidateRefusal::NotUnicast));
        assert_eq!(refusal("[::]:5"), Some(CandidateRefusal::NotUnicast));
        assert_eq!(refusal("127.0.0.1:5"), Some(CandidateRefusal::Loopback));
        assert_eq!(refusal("[::ffff:127.0.0.1]:5"), Some(CandidateRefusal::Loopback));
        assert_eq!(refusal("[::1]:5"), Some(CandidateRefusal::Loopback));
        assert_eq!(refusal("169.254.1.1:5"), Some(CandidateRefusal::LinkLocal));
        assert_eq!(refusal("[fe80::1]:5"), Some(CandidateRefusal::LinkLocal));
        assert_eq!(refusal("192.0.2.1:443"), Some(CandidateRefusal::Server));
        assert_eq!(refusal("192.0.2.1:50000"), None);
    }

    #[test]
    fn a_thousand_candidates_become_thirty_two_and_a_count() {
        let (mut remote, limits) = (RemoteCandidates::default(), RemoteLimits::default());
        for n in 0..1000_u32 {
            let address = format!("198.51.{}.{}:4000", n / 250, n % 250 + 1);
            let _ =
                remote.take(&limits, LegKind::UdpDirect, candidate(CandidateKind::Host, &address));
        }
        assert_eq!(remote.taken().len(), 32);
        assert_eq!(remote.refused().collect::<Vec<_>>(), [(CandidateRefusal::TooMany, 968)]);
    }

    #[test]
    fn a_list_of_ports_is_no_port_scan() {
        let (mut remote, limits) = (RemoteCandidates::default(), RemoteLimits::default());
        for port in 1..=30 {
            let address = format!("198.51.100.1:{port}");
            let _ = remote.take(
                &limits,
                LegKind::UdpDirect,
                candidate(CandidateKind::Predicted, &address),
            );
        }
        assert_eq!(remote.taken().len(), 12);
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
