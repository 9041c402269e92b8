//! Every control message on one screen.
//!
//! Agents and clients each hold one WebSocket link to the broker ([`AGENT_LINK`], [`CLIENT_LINK`]) and exchange these
//! as JSON text messages. Unknown fields are ignored so that a newer peer may add some; an unknown `type` is
//! [`Code::MessageMalformed`](crate::Code). Times are Unix milliseconds, durations microseconds where the name says so.
mod gateways;
mod service;
mod shadow;
mod udp;

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use switchback_engine::Tuning;

pub use gateways::{
    FromGateway, GATEWAY_EVENTS_MAX, GATEWAY_LINK, GATEWAY_METERS_MAX, GATEWAY_PAIRS_MAX,
    GATEWAYS_MAX, GatewayPlace, GatewayRegister, GatewayRtt, HeldPair, LOCAL_GATEWAY, LegEvent,
    LegWish, PairFigures, PairName, PairView, RELAY_USERS_MAX, Side, ToGateway,
};
pub use service::{
    Balance, FOLDER_DEPTH_MAX, Look, PoolShare, TAGS_MAX, TITLE_CHARS_MAX, TargetHealth,
    WORD_CHARS_MAX,
};
pub use shadow::{SessionNotice, ShadowTarget, ShadowWish};
pub use udp::{
    AboutSession, CANDIDATES_MAX, Candidate, CandidateKind, IceCredentials, LossCounts, PathLeg,
    PathMove, PathPair, PathReport, REPORT_IGNORED_MAX, REPORT_LEGS_MAX, REPORT_MOVES_MAX,
    REPORT_PAIRS_MAX, REPORT_REASONS_MAX, RelayAccess, SessionPurpose, Standby, TransportPolicy,
    UdpAccess, UdpUse,
};

use crate::code::Code;
use crate::secret::Secret;

/// Version of the messages below. The links' paths and ALPNs carry it.
pub const PROTOCOL: u32 = 1;
/// Path of the agents' link.
pub const AGENT_LINK: &str = "/v1/link/agent";
/// Path of the clients' link.
pub const CLIENT_LINK: &str = "/v1/link/client";
/// Largest message in bytes. The largest honest one, an agent's register with 100 resources, is about 16 KiB.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Header of a client's request for a link: its first message, JSON in base64url, so that the answer comes right behind the
/// link. A broker that took the message says so by the same header in its answer; otherwise it is to be sent on the link.
pub const FIRST_WORD: &str = "switchback-first-word";
/// Longest message that travels so: with the rest of the request it fits a head of 16 KiB. A wish for a session with 32
/// candidates is about 4 KiB.
pub const FIRST_WORD_BYTES_MAX: usize = 8 * 1024;
/// Header of a refusal for an assertion's time: what the broker's clock shows, Unix milliseconds.
pub const BROKER_TIME: &str = "switchback-time";

/// Names a session. Chosen by the broker, stable over all legs and restarts. 12 lower-case base32 characters.
#[derive(
    utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct SessionId(pub String);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A DER SubjectPublicKeyInfo (RFC 7250 raw public key) in base64url: who the other end of a session must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PublicKey(pub String);

/// Proof, sealed by the broker, that a session was granted. Both ends keep it and show it to resume or re-register.
pub type SealedGrant = Secret;

/// What an agent offers under a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// Unique name in the feed: 1 to 63 of `a-z 0-9 - _ .`.
    pub name: String,
    /// What it carries.
    pub kind: ResourceKind,
    /// Where the agent reaches it, `HOST:PORT`; shown to administrators only.
    pub target: String,
    /// Socket options of its connections: the agent's to the target, and the legs of its sessions at both the agent and the
    /// gateway.
    #[serde(default, skip_serializing_if = "Tuning::is_empty")]
    pub tuning: Tuning,
    /// How the service is told whose connection it is; absent: not at all. Only then the broker tells the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyHeader>,
    /// What may carry its sessions.
    #[serde(default, skip_serializing_if = "TransportPolicy::is_default")]
    pub transport: TransportPolicy,
    /// Where watchers are connected, instead of to what the agent tees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowTarget>,
    /// How it looks in a feed.
    #[serde(default, skip_serializing_if = "Look::is_default")]
    pub look: Look,
    /// What this agent takes of its sessions.
    #[serde(default, skip_serializing_if = "PoolShare::is_default")]
    pub pool: PoolShare,
    /// The agent looks now and then whether its target can be reached, not only once it could not be.
    #[serde(default, skip_serializing_if = "is_false")]
    pub probe: bool,
}

impl Resource {
    /// A TCP service at `target`, `HOST:PORT`, with nothing special about it.
    pub fn tcp(name: impl Into<String>, target: impl Into<String>) -> Self {
        let (name, target) = (name.into(), target.into());
        let (tuning, transport) = (Tuning::default(), TransportPolicy::default());
        let (look, pool) = (Look::default(), PoolShare::default());
        let (kind, proxy, shadow) = (ResourceKind::Tcp, None, None);
        Self { name, kind, target, tuning, proxy, transport, look, pool, probe: false, shadow }
    }

    /// A UDP service at `target`, `HOST:PORT`, with nothing special about it.
    pub fn udp(name: impl Into<String>, target: impl Into<String>) -> Self {
        Self { kind: ResourceKind::Udp, ..Self::tcp(name, target) }
    }
}

/// A header before the first byte of a connection to a service, which must expect it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyHeader {
    /// PROXY protocol version 2, the binary one.
    V2,
}

/// A client as its gateway sees it. Both are of the same family; IPv4 inside IPv6 is unwrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientAddress {
    /// Where the client's link comes from.
    pub client: SocketAddr,
    /// Where it arrived.
    pub gateway: SocketAddr,
}

impl ClientAddress {
    /// A connection from `client` to `gateway`.
    #[must_use]
    pub fn new(client: SocketAddr, gateway: SocketAddr) -> Self {
        let plain =
            |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        Self { client: plain(client), gateway: plain(gateway) }
    }
}

/// What a resource carries.
#[derive(utoipa::ToSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResourceKind {
    /// Byte streams: each application connection is a channel.
    #[default]
    Tcp,
    /// Datagrams: each local peer address is a flow.
    Udp,
}

impl ResourceKind {
    /// Lower-case name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// Whether it is byte streams.
    #[must_use]
    pub fn is_tcp(&self) -> bool {
        *self == Self::Tcp
    }
}

/// From an agent to the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromAgent {
    /// First message on a link.
    Register {
        /// [`PROTOCOL`].
        protocol: u32,
        /// Software version, for people.
        version: String,
        /// The agent's name.
        name: String,
        /// The agent's long-lived key.
        key: PublicKey,
        /// What it offers.
        resources: Vec<Resource>,
        /// Sessions it still holds: a restarted broker rebuilds its registry from these.
        sessions: Vec<SealedGrant>,
    },
    /// Asks for tickets for this many warm legs.
    WarmLegs {
        /// How many.
        count: u32,
    },
    /// Figures of sessions that moved since the last report.
    Report {
        /// One per session.
        sessions: Vec<SessionReport>,
    },
    /// The client of a ready session opened its first channel: from now on it is a session like any other.
    Begun {
        /// Which.
        session: SessionId,
    },
    /// A session is over at the agent.
    Ended {
        /// Which.
        session: SessionId,
        /// Why.
        code: Code,
    },
    /// Where the agent can be reached by UDP from now on; sent after `register`, and whenever it changes.
    Network {
        /// All that are good now.
        candidates: Vec<Candidate>,
    },
    /// More candidates for one session, for its client.
    Candidates {
        /// Which.
        session: SessionId,
        /// New ones.
        candidates: Vec<Candidate>,
    },
    /// How far the gateways are, all that were measured; sent whenever it changed much.
    Rtts {
        /// One per gateway.
        rtts: Vec<GatewayRtt>,
    },
    /// Which targets it reaches and how busy its machine is: after `register`, and whenever it changes.
    Health {
        /// All that have failed since the agent's start.
        targets: Vec<TargetHealth>,
        /// Load of the machine over the last minute, percent of its cores.
        load_percent: u32,
    },
    /// Answer to `explain`.
    Paths {
        /// Which.
        session: SessionId,
        /// What the agent sees.
        paths: Box<PathReport>,
    },
}

/// From the broker to an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToAgent {
    /// Answer to `register`.
    Registered,
    /// The enrolment is to have another key soon; see `POST /v1/enrol/rotate`.
    Rotate,
    /// The broker refuses the link or a request; after this on an unregistered link it closes.
    Refused {
        /// Symbolic code.
        code: Code,
        /// What happened.
        message: String,
    },
    /// Answer to `warm_legs`: dial the gateway with each, and let the leg wait.
    WarmTickets {
        /// One per leg.
        tickets: Vec<LegTicket>,
    },
    /// Expect a leg for this session.
    Offer {
        /// The session, whole, so that an agent that does not know it can create it.
        session: Box<SessionOffer>,
        /// How the leg comes about.
        leg: AgentLeg,
    },
    /// The client of a ready session says that it is used from now on.
    Begun {
        /// Which.
        session: SessionId,
    },
    /// End this session now.
    End {
        /// Which.
        session: SessionId,
        /// Why.
        code: Code,
    },
    /// The gateways there are, whenever that changes; not told while there is only the broker's own.
    Gateways {
        /// All of them.
        gateways: Vec<GatewayPlace>,
    },
    /// What either end may be told.
    #[serde(untagged)]
    About(AboutSession),
}

/// A session as its agent must know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOffer {
    /// Its id.
    pub id: SessionId,
    /// Who uses it.
    pub user: String,
    /// What is used.
    pub resource: String,
    /// The client's key for this session.
    pub client_key: PublicKey,
    /// To be shown in `register` after a broker restart.
    pub grant: SealedGrant,
    /// Where its client is now, for a resource with [`Resource::proxy`]; absent if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_address: Option<ClientAddress>,
    /// What may carry it.
    #[serde(default, skip_serializing_if = "TransportPolicy::is_default")]
    pub transport: TransportPolicy,
    /// How to find the client by UDP; absent if that is not allowed, not possible, or already told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<Box<UdpAccess>>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "SessionPurpose::is_default")]
    pub purpose: SessionPurpose,
    /// Nobody uses it yet: `begun` is due when its client opens a channel, unless the broker says so before.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ready: bool,
    /// The leg replaces those of its kind that work.
    #[serde(default, skip_serializing_if = "is_false")]
    pub instead: bool,
    /// Most bits a second in each direction, if policy limits them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_bits: Option<u64>,
}

const fn is_false(flag: &bool) -> bool {
    !*flag
}

/// How an agent's leg for an offer comes about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum AgentLeg {
    /// Dial the gateway with this ticket.
    Dial {
        /// The ticket.
        ticket: LegTicket,
    },
    /// The warm leg under this pair will be used.
    Warm {
        /// [`LegTicket::pair`] of the warm leg.
        pair: String,
    },
}

/// One-time admission to a gateway for one leg.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegTicket {
    /// The meeting, 32 hex digits.
    pub pair: String,
    /// The ticket's server name: goes into the ClientHello.
    pub server_name: Secret,
    /// `HOST:PORT` of the gateway; absent: the broker's own address, as the peer dialled it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
}

/// From a client to the broker. `request` numbers are the client's own and come back in the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromClient {
    /// Asks for a session.
    Open {
        /// Request number.
        request: u64,
        /// [`PROTOCOL`].
        protocol: u32,
        /// Resource name.
        resource: String,
        /// The client's key for this session.
        key: PublicKey,
        /// Where the client can be reached by UDP; absent if it does without.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        udp: Option<Vec<Candidate>>,
        /// What the session is for.
        #[serde(default, skip_serializing_if = "SessionPurpose::is_default")]
        purpose: SessionPurpose,
        /// To be held ready, and to begin with its first channel.
        #[serde(default, skip_serializing_if = "is_false")]
        ready: bool,
    },
    /// Asks for another leg for a session that was granted before.
    Leg {
        /// Request number.
        request: u64,
        /// The session's proof.
        grant: SealedGrant,
        /// Where the client can be reached by UDP now; absent if it does without.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        udp: Option<Vec<Candidate>>,
        /// Which one.
        #[serde(default, skip_serializing_if = "LegWish::is_default")]
        wish: LegWish,
    },
    /// How far the gateways are, all that were measured; sent whenever it changed much.
    Rtts {
        /// One per gateway.
        rtts: Vec<GatewayRtt>,
    },
    /// A ready session is used from now on.
    Begun {
        /// Which.
        session: SessionId,
    },
    /// Figures of sessions that moved since the last report.
    Report {
        /// One per session.
        sessions: Vec<SessionReport>,
    },
    /// The client ended a session.
    Ended {
        /// Which.
        session: SessionId,
        /// Why.
        code: Code,
    },
    /// The client can also be reached here, for the session's agent.
    Candidates {
        /// Which session.
        session: SessionId,
        /// New ones.
        candidates: Vec<Candidate>,
    },
    /// The session went over to another transport, or waited for its own.
    Moved {
        /// Which session.
        session: SessionId,
        /// How.
        moved: Box<PathMove>,
    },
    /// Answer to `explain`.
    Paths {
        /// Which session.
        session: SessionId,
        /// What the client sees.
        paths: Box<PathReport>,
    },
    /// Answer to `consent_asked`.
    Consent {
        /// Names the question.
        id: u64,
        /// What the user says.
        yes: bool,
    },
}

/// From the broker to a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToClient {
    /// Answer to `open`.
    Granted {
        /// Request number.
        request: u64,
        /// The new session's id.
        session: SessionId,
        /// Name of the agent that serves it.
        agent: String,
        /// The agent's key.
        agent_key: PublicKey,
        /// The session's proof, for `leg`.
        grant: SealedGrant,
        /// Admission of the first leg.
        ticket: LegTicket,
        /// What may carry it.
        #[serde(default, skip_serializing_if = "TransportPolicy::is_default")]
        transport: TransportPolicy,
        /// How to find the agent by UDP; absent if that is not allowed or not possible.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        udp: Option<Box<UdpAccess>>,
        /// What the resource carries.
        #[serde(default, skip_serializing_if = "ResourceKind::is_tcp")]
        kind: ResourceKind,
        /// A watch is connected to the resource's shadow target, and sees bytes rather than frames.
        #[serde(default, skip_serializing_if = "is_false")]
        shadow_target: bool,
    },
    /// Answer to `leg`.
    Leg {
        /// Request number.
        request: u64,
        /// Admission of the leg.
        ticket: LegTicket,
        /// How to find the agent by UDP from now on; absent if that is not allowed or not possible.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        udp: Option<Box<UdpAccess>>,
    },
    /// The request is refused.
    Refused {
        /// Request number; 0 when the refusal answers no particular request.
        request: u64,
        /// Symbolic code.
        code: Code,
        /// What happened.
        message: String,
    },
    /// End this session now.
    End {
        /// Which.
        session: SessionId,
        /// Why.
        code: Code,
    },
    /// The gateways there are, whenever that changes; not told while there is only the broker's own.
    Gateways {
        /// All of them.
        gateways: Vec<GatewayPlace>,
    },
    /// The gateway that carries this session is about to go: ask for a leg `instead`, and leave the old one after that.
    Relocate {
        /// Which.
        session: SessionId,
    },
    /// What the user is to be told.
    #[serde(untagged)]
    Notice(SessionNotice),
    /// What either end may be told.
    #[serde(untagged)]
    About(AboutSession),
}

/// An endpoint's view of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionReport {
    /// Which.
    pub session: SessionId,
    /// The session's proof; sent in the first report on each link, so that a restarted broker knows the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<SealedGrant>,
    /// Transport label, e.g. `TCP (Reverse-Connect)`; absent while no leg carries the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
    /// End-to-end round trip, measured by the session layer's PING.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt: Option<RttView>,
    /// Application bytes from client to target.
    pub client_to_target: u64,
    /// Application bytes from target to client.
    pub target_to_client: u64,
    /// Open channels.
    pub channels: u32,
    /// Legs lost and replaced so far.
    pub resumes: u32,
    /// Every leg that is attached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathLeg>,
    /// What this end counts about loss.
    #[serde(default, skip_serializing_if = "LossCounts::is_zero")]
    pub loss: LossCounts,
    /// Mean deviation of the round trip (RTTVAR of RFC 6298), microseconds: the jitter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_us: Option<u32>,
    /// Packets in a million that the leg in use loses; absent where the transport does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_ppm: Option<u32>,
    /// Who paused it; agents only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
}

/// A round-trip time over its recent samples.
#[derive(utoipa::ToSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RttView {
    /// Exponentially smoothed (RFC 6298 weights), microseconds.
    pub smoothed_us: u32,
    /// Smallest ever, microseconds.
    pub min_us: u32,
    /// Median of the recent samples, microseconds.
    pub p50_us: u32,
    /// 99th percentile of the recent samples, microseconds.
    pub p99_us: u32,
}
