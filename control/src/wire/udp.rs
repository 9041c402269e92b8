//! What the links say about UDP: where an end can be reached, what both need to find each other, and how it went.
//!
//! An agent keeps its candidates known at the broker, a client sends its own with the request for a session; so the grant
//! and the offer carry everything, and looking for a path costs no further round trip.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
pub use switchback_shortpath::path::{Candidate, CandidateKind, IceCredentials};

use crate::secret::Secret;
use crate::wire::{SessionId, ShadowWish};

/// Candidates of one end that are kept and passed on; as many addresses as an end with a dozen interfaces has.
pub const CANDIDATES_MAX: usize = 32;

/// What one end needs to look for the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpAccess {
    /// This end's credentials.
    pub local: IceCredentials,
    /// The other end's.
    pub remote: IceCredentials,
    /// Names the session in the first packet of a QUIC connection: 32 hex digits, the same for both ends.
    pub token: Secret,
    /// Where the other end may be, as far as is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Candidate>,
    /// A relay; absent if the gateway has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<RelayAccess>,
}

/// The right to use a TURN server for a while, in the form that coturn's `use-auth-secret` and others understand
/// (draft-uberti-behave-turn-rest-00 section 2.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayAccess {
    /// `HOST:PORT`, UDP; absent: the broker's own address, as the end dialled it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// `EXPIRY:NAME`, expiry in Unix seconds.
    pub username: String,
    /// Goes with the username.
    pub password: Secret,
}

/// From the broker to either end, about a session of its.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AboutSession {
    /// The other end can also be reached here.
    Candidates {
        /// Which session.
        session: SessionId,
        /// New ones.
        candidates: Vec<Candidate>,
    },
    /// The right to use the relay, renewed.
    Relay {
        /// Which session.
        session: SessionId,
        /// In place of the one before.
        relay: RelayAccess,
    },
    /// Policy changed: this may carry the session from now on.
    Policy {
        /// Which session.
        session: SessionId,
        /// What may carry it; never more than before.
        transport: TransportPolicy,
        /// Most bits a second in each direction.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rate_bits: Option<u64>,
    },
    /// Asks for `paths`.
    Explain {
        /// Which session.
        session: SessionId,
    },
    /// To the agent: no application byte passes from now on, or all do again.
    Hold {
        /// Which session.
        session: SessionId,
        /// By whom; absent: let go.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        held: Option<String>,
    },
}

/// What may carry a resource's sessions.
#[derive(utoipa::ToSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TransportPolicy {
    /// How UDP is used.
    pub udp: UdpUse,
    /// Whether TCP stays while UDP carries the session.
    pub standby: Standby,
}

impl TransportPolicy {
    /// Whether nothing special is asked.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a candidate of this kind may be told to the other end.
    #[must_use]
    pub const fn allows(&self, kind: CandidateKind) -> bool {
        match self.udp {
            UdpUse::Prefer | UdpUse::Require => true,
            UdpUse::RelayOnly => matches!(kind, CandidateKind::Relayed),
            UdpUse::Off => false,
        }
    }
}

/// How a resource uses UDP.
#[derive(utoipa::ToSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UdpUse {
    /// Whatever is best: direct, relayed or TCP.
    #[default]
    Prefer,
    /// Only a direct path carries the session; without one it ends.
    Require,
    /// Through the gateway only: the two ends do not learn each other's addresses.
    RelayOnly,
    /// TCP only.
    Off,
}

impl UdpUse {
    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::RelayOnly => "relay-only",
            Self::Off => "off",
        }
    }

    /// The use that is written so.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let all = [Self::Prefer, Self::Require, Self::RelayOnly, Self::Off];
        all.into_iter().find(|udp| udp.as_str() == text)
    }
}

/// Whether a session keeps TCP beside UDP.
#[derive(utoipa::ToSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standby {
    /// It does: a session whose UDP dies goes on within a round trip or two.
    #[default]
    Warm,
    /// It does not, and holds no place at the gateway; a session whose UDP dies dials TCP anew.
    Cold,
    /// It does, and TCP through a second gateway as well where there is one: when a gateway dies, the other carries at once.
    TwoGateways,
}

impl Standby {
    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Cold => "cold",
            Self::TwoGateways => "two-gateways",
        }
    }

    /// The standby that is written so.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let all = [Self::Warm, Self::Cold, Self::TwoGateways];
        all.into_iter().find(|standby| standby.as_str() == text)
    }
}

/// What a session is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionPurpose {
    /// To use the resource.
    #[default]
    Use,
    /// To measure the way to its agent, which sends back what it gets; the service behind is left alone.
    Echo,
    /// To watch another session at its agent.
    Shadow(ShadowWish),
}

impl SessionPurpose {
    /// Whether it is the ordinary one.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::Use
    }

    /// What is to be watched, if that is what it is for.
    #[must_use]
    pub const fn shadow(&self) -> Option<&ShadowWish> {
        match self {
            Self::Shadow(wish) => Some(wish),
            Self::Use | Self::Echo => None,
        }
    }
}

/// A session went over to another transport; with one and the same before and after, it waited for its own.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathMove {
    /// Since the session began at the end that tells, in milliseconds.
    pub at_ms: u64,
    /// Label of the transport before; absent if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Label of the transport after.
    pub to: String,
    /// Why, in one word.
    pub cause: String,
    /// How long the application waited, in microseconds.
    pub stall_us: u64,
    /// Round trip of the new transport, in microseconds; absent until measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u32>,
}

/// One end's view of a session's paths.
#[derive(utoipa::ToSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PathReport {
    /// Every leg that is attached.
    pub legs: Vec<PathLeg>,
    /// This end's own candidates, kind and address, as far as the resource's policy lets the other end know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<String>,
    /// Candidate pairs that were or are tried.
    pub pairs: Vec<PathPair>,
    /// Why it is not better, as codes; see [`crate::path_reason`].
    pub reasons: Vec<String>,
    /// The last moves and stalls without one, oldest first, and pauses: moves to `paused`.
    pub moves: Vec<PathMove>,
    /// What was ignored or refused of the other end and of strangers, by name: `check_*` and `candidate*` of this session, the
    /// others of all UDP of this end's process.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ignored: BTreeMap<String, u64>,
}

/// Legs, reasons, pairs and moves that a [`PathReport`] holds at most: eight legs is what a session has, and a screen of
/// pairs and moves is what a person reads.
pub const REPORT_LEGS_MAX: usize = 8;
/// See [`REPORT_LEGS_MAX`].
pub const REPORT_PAIRS_MAX: usize = 48;
/// See [`REPORT_LEGS_MAX`].
pub const REPORT_REASONS_MAX: usize = 16;
/// See [`REPORT_LEGS_MAX`].
pub const REPORT_IGNORED_MAX: usize = 32;
/// See [`REPORT_LEGS_MAX`].
pub const REPORT_MOVES_MAX: usize = 32;

/// A leg as an end sees it.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathLeg {
    /// Transport label.
    pub transport: String,
    /// Whether it carries the session now.
    pub carries: bool,
    /// Its round trip, in microseconds; absent until measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u32>,
}

/// What an end of a session counts about loss, since the session began at that end.
#[derive(utoipa::ToSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LossCounts {
    /// Second copies of frames that it sent: of small writes while a path is lossy or little known, and of what a silent
    /// leg carries.
    pub dup_sent: u64,
    /// Their payload bytes.
    pub dup_bytes: u64,
    /// Copies of its that came before their originals, as the other end says.
    pub dup_won: u64,
    /// Estimate of the milliseconds that those saved: for each, the least that re-sending would have taken.
    pub ms_saved: u64,
    /// Times that QUIC found packets of full size vanishing on a path that carries small ones, and went back to small ones.
    pub black_holes: u64,
    /// Datagrams of UDP services that it dropped, as they would have been late or too many.
    pub datagrams_dropped: u64,
}

impl LossCounts {
    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// What came on top of `before`; nothing, where a count fell, as it is of an end that was started anew.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            dup_sent: self.dup_sent.saturating_sub(before.dup_sent),
            dup_bytes: self.dup_bytes.saturating_sub(before.dup_bytes),
            dup_won: self.dup_won.saturating_sub(before.dup_won),
            ms_saved: self.ms_saved.saturating_sub(before.ms_saved),
            black_holes: self.black_holes.saturating_sub(before.black_holes),
            datagrams_dropped: self.datagrams_dropped.saturating_sub(before.datagrams_dropped),
        }
    }
}

/// A candidate pair as an end sees it.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathPair {
    /// Transport label of what it would carry.
    pub transport: String,
    /// This end's side: kind and, where it is known and the other end may know it, address.
    pub local: String,
    /// The other end's side: kind and address.
    pub remote: String,
    /// How far it came, in one word.
    pub state: String,
    /// Round trip of its checks, in microseconds; absent if none was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{ToAgent, ToClient};

    #[test]
    fn policies_are_read_as_they_are_written() {
        for udp in [UdpUse::Prefer, UdpUse::Require, UdpUse::RelayOnly, UdpUse::Off] {
            assert_eq!(UdpUse::from_text(udp.as_str()), Some(udp));
            assert_eq!(serde_json::to_value(udp).unwrap(), udp.as_str());
        }
        for standby in [Standby::Warm, Standby::Cold, Standby::TwoGateways] {
            assert_eq!(Standby::from_text(standby.as_str()), Some(standby));
            assert_eq!(serde_json::to_value(standby).unwrap(), standby.as_str());
        }
        assert_eq!((UdpUse::from_text("on"), Standby::from_text("hot")), (None, None));
    }

    #[test]
    fn both_ends_are_told_in_the_same_words() {
        let session = SessionId("s".into());
        let about = AboutSession::Candidates { session: session.clone(), candidates: vec![] };
        for about in [about, AboutSession::Explain { session }] {
            let plain = serde_json::to_value(&about).unwrap();
            let (agent, client) = (ToAgent::About(about.clone()), ToClient::About(about));
            assert_eq!(serde_json::to_value(&agent).unwrap(), plain);
            assert_eq!(serde_json::to_value(&client).unwrap(), plain);
            assert_eq!(serde_json::from_value::<ToAgent>(plain.clone()).unwrap(), agent);
            assert_eq!(serde_json::from_value::<ToClient>(plain).unwrap(), client);
        }
        assert!(serde_json::from_str::<ToAgent>(r#"{"type":"sunspots"}"#).is_err());
    }

    #[test]
    fn relay_only_shows_no_address_of_an_end() {
        let policy = TransportPolicy { udp: UdpUse::RelayOnly, ..TransportPolicy::default() };
        assert!(policy.allows(CandidateKind::Relayed));
        assert!(!policy.allows(CandidateKind::Host) && !policy.allows(CandidateKind::Mapped));
    }

    #[test]
    fn credentials_never_show_in_debug() {
        let password = Secret::new("hidden");
        let relay = RelayAccess { server: None, username: "1:a".into(), password };
        let local = IceCredentials { ufrag: "abcd".into(), password: "hidden".into() };
        let shown = format!("{local:?} {relay:?}");
        assert!(!shown.contains("hidden"), "{shown}");
    }
}
