//! Which of a peer's candidates are believed.
//!
//! A candidate that comes from the peer is somebody else's wish that we send packets there, so [`RemoteCandidates`]
//! takes few of them, each with a reason to exist, and counts what it refuses. What is taken is still only checked:
//! paced, bounded and signed (see [`super::Finder`]).
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::candidate::{Candidate, CandidateKind, canonical};
use super::network::NetworkFilter;
use crate::LegKind;

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
            Self::OtherLeg => "candidate_other_leg",
            Self::Signalled => "candidate_signalled_peer_reflexive",
            Self::NotUnicast => "candidate_not_unicast",
            Self::Loopback => "candidate_loopback",
            Self::LinkLocal => "candidate_link_local",
            Self::Server => "candidate_server_address",
            Self::Network => "candidate_network_policy",
            Self::Known => "candidate_known",
            Self::TooMany => "candidates_too_many",
            Self::TooManyOfHost => "candidates_too_many_of_host",
        }
    }

    /// Whether the peer has named what it should not have.
    #[must_use]
    pub const fn is_fault(self) -> bool {
        !matches!(self, Self::OtherLeg | Self::Known)
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

    /// Whether the candidate would be taken if there were room.
    pub(super) fn lacks_room(
        &self,
        limits: &RemoteLimits,
        leg: LegKind,
        candidate: Candidate,
    ) -> Option<CandidateRefusal> {
        use CandidateRefusal::{TooMany, TooManyOfHost};
        self.judge(limits, leg, candidate)
            .err()
            .filter(|why| matches!(why, TooMany | TooManyOfHost))
    }

    /// Makes room: the address is no candidate any more.
    pub(super) fn forget(&mut self, address: SocketAddr) {
        self.taken.retain(|taken| taken.address != address);
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
}
