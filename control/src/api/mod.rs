//! The broker's HTTP API: paths and bodies, shared by the broker that serves them and the commands that call them.
//!
//! Every request carries `Authorization: Bearer TOKEN` (a user's token). Every refusal is an [`ErrorBody`] with the
//! HTTP status that fits it.
//!
//! | method and path | who | answer |
//! |---|---|---|
//! | `GET /v1/whoami` | any user | [`WhoAmI`] |
//! | `GET /v1/resources` | any user | `[ResourceView]`, the feed |
//! | `GET /v1/sessions` | any user, own sessions; admins, all | `[SessionView]` |
//! | `GET /v1/sessions/{id}` | owner or admin | [`SessionView`] |
//! | `GET /v1/sessions/{id}/explain` | owner or admin | [`ExplainView`] |
//! | `DELETE /v1/sessions/{id}` | owner or admin | 204 |
//! | `GET /v1/tokens` | admin | `[TokenView]` |
//! | `POST /v1/tokens` [`NewToken`] | admin | [`IssuedToken`] |
//! | `DELETE /v1/tokens/{id}` | admin | 204 |
//! | `GET /v1/grants` | admin | `[GrantView]` |
//! | `PUT /v1/grants` [`GrantView`] | admin | 204 |
//! | `DELETE /v1/grants` [`GrantView`] | admin | 204 |
//! | `POST /v1/test-pairs` [`NewTestPairs`] | admin | `[TestPair]` |
//! | `GET /metrics` | admin | Prometheus text |
//! | `GET /healthz` | anyone | `ok` |
pub mod client;

use serde::{Deserialize, Serialize};

use crate::code::{Code, Fault};
use crate::firewall::{FirewallRule, Places};
use crate::secret::Secret;
use crate::wire::{
    LossCounts, PathLeg, PathReport, ResourceKind, RttView, SessionId, TransportPolicy,
};

/// Body of every refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The refusal.
    pub error: ErrorDetail,
}

/// A [`Fault`] with its remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// Symbolic code.
    pub code: Code,
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl From<Fault> for ErrorBody {
    fn from(fault: Fault) -> Self {
        let remedy = fault.code.remedy().to_owned();
        Self { error: ErrorDetail { code: fault.code, message: fault.detail, remedy } }
    }
}

/// Who the token belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhoAmI {
    /// User name.
    pub user: String,
    /// Whether the user administers this broker.
    pub admin: bool,
}

/// A line of the feed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceView {
    /// Name to connect to.
    pub name: String,
    /// What it carries.
    pub kind: ResourceKind,
    /// Whether an agent that offers it is connected now.
    pub online: bool,
    /// Agents that offer it; empty unless the caller is an admin.
    #[serde(default)]
    pub agents: Vec<String>,
    /// What may carry its sessions; absent while it is offline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<TransportPolicy>,
}

/// State of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// Granted; its first leg is not up yet.
    Connecting,
    /// A leg carries it.
    Active,
    /// No leg carries it; it ends unless one does within the resume window.
    Paused,
}

impl SessionState {
    /// Lower-case name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Active => "active",
            Self::Paused => "paused",
        }
    }
}

/// A session as `switchback sessions` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionView {
    /// Its id.
    pub id: SessionId,
    /// Who uses it.
    pub user: String,
    /// What is used.
    pub resource: String,
    /// Which agent serves it.
    pub agent: String,
    /// Which gateway carries it.
    pub gateway: String,
    /// State.
    pub state: SessionState,
    /// Transport label, `TCP (Reverse-Connect)`; absent while no leg carries it.
    pub transport: Option<String>,
    /// Every leg that is attached, as an end sees it.
    #[serde(default)]
    pub paths: Vec<PathLeg>,
    /// Round-trip times.
    pub rtt: SessionRtt,
    /// What the gateway's kernel knows about the two legs.
    #[serde(default)]
    pub legs: SessionLegs,
    /// Which part holds the session back.
    #[serde(default)]
    pub slow: SlowView,
    /// Application bytes from client to target, as the endpoints count them.
    pub client_to_target: u64,
    /// Application bytes from target to client.
    pub target_to_client: u64,
    /// Since it was granted, in milliseconds.
    pub age_ms: u64,
    /// Open channels.
    pub channels: u32,
    /// Legs lost and replaced so far.
    pub resumes: u32,
    /// What its ends count about loss: second copies of small writes above all.
    #[serde(default)]
    pub loss: SessionLoss,
}

/// What the ends of a session count about loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionLoss {
    /// About what the client sends.
    pub client: LossCounts,
    /// About what the agent sends.
    pub agent: LossCounts,
}

/// Why a session takes the way it takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExplainView {
    /// The session.
    pub session: SessionView,
    /// What may carry it.
    pub policy: TransportPolicy,
    /// What its client sees; absent if it never said.
    pub client: Option<EndView>,
    /// What its agent sees; absent if it never said.
    pub agent: Option<EndView>,
    /// Where its packets have to get to.
    #[serde(default)]
    pub places: Places,
    /// Firewall rules that would mend what the ends report; for some reasons one way among others.
    #[serde(default)]
    pub rules: Vec<FirewallRule>,
}

/// What an end of a session sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndView {
    /// Since it said so, in milliseconds.
    pub age_ms: u64,
    /// What it sees.
    pub paths: PathReport,
}

/// Round-trip times of a session, each absent until measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRtt {
    /// Gateway to client and back, from TCP_INFO at the gateway.
    pub client_leg: Option<RttView>,
    /// Gateway to agent and back, from TCP_INFO at the gateway.
    pub agent_leg: Option<RttView>,
    /// Client to agent and back, from the session layer's PING.
    pub end_to_end: Option<RttView>,
}

/// Both legs of a session, each absent until sampled. An active leg is sampled about once a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SessionLegs {
    /// Between gateway and client.
    pub client: Option<LegView>,
    /// Between gateway and agent.
    pub agent: Option<LegView>,
}

/// What TCP_INFO at the gateway says about one leg, beside its [`SessionRtt`]. Sending is the gateway's sending on this leg.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LegView {
    /// Mean deviation of the round trip (RTTVAR of RFC 6298), microseconds.
    pub rttvar_us: u32,
    /// Segments sent again since the leg began.
    pub retransmits: u32,
    /// Segments sent and not yet acknowledged.
    pub unacked_segments: u32,
    /// Congestion window, segments.
    pub cwnd_segments: u32,
    /// From the last acknowledgement to the sample, milliseconds.
    pub since_ack_ms: u64,
    /// More about sending; absent if the gateway's kernel is older than 4.19.
    pub sending: Option<SendingView>,
    /// Share of the segments received in the interval that came behind a gap, 0 to 1: something before them was lost or
    /// overtaken on the way to the gateway. Absent if the kernel is older than 5.4.
    pub out_of_order_share: Option<f32>,
    /// Between the last two samples, milliseconds: the interval that shares and rates refer to.
    pub interval_ms: u64,
    /// Since the sample, milliseconds.
    pub age_ms: u64,
}

/// How sending on a leg goes. Shares are 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SendingView {
    /// Bytes sent again since the leg began.
    pub retransmitted_bytes: u64,
    /// Share of the bytes sent in the interval that had been sent before.
    pub retransmitted_share: f32,
    /// Best recent rate of delivery by the kernel's estimate.
    pub delivery_bits_per_second: u64,
    /// That rate was bounded by what there was to send: the path may carry more.
    pub app_limited: bool,
    /// What was delivered in the interval.
    pub acked_bits_per_second: u64,
    /// Bytes in the gateway's send buffer that were never sent.
    pub notsent_bytes: u32,
    /// Share of the interval with bytes queued or unacknowledged.
    pub busy_share: f32,
    /// Share of the busy time in which the receiver's window was the limit.
    pub rwnd_limited_share: f32,
    /// Share of the busy time in which the gateway's send buffer was the limit.
    pub sndbuf_limited_share: f32,
}

/// Who is slow, and why we say so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowView {
    /// The culprit.
    pub who: SlowPart,
    /// The reason with its figures, for people.
    pub because: String,
}

/// Which part of a session holds it back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlowPart {
    /// Not known: no leg was sampled yet.
    #[default]
    Unmeasured,
    /// Nobody: no bytes move.
    Idle,
    /// Neither leg: whoever sends sets the pace.
    Sender,
    /// The network between gateway and client.
    ClientPath,
    /// The client does not read fast enough.
    ClientReceiver,
    /// The network between gateway and agent.
    AgentPath,
    /// The agent does not read fast enough.
    AgentReceiver,
    /// The gateway's send buffer.
    Gateway,
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// Signs a user in.
    User,
    /// Lets an agent join.
    Agent,
}

/// Asks for a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewToken {
    /// What for.
    pub kind: TokenKind,
    /// User name, or the only name the agent may use. A user is created if new.
    pub name: String,
    /// Make the user an administrator. Users only.
    #[serde(default)]
    pub admin: bool,
    /// Grant these resources to the user at once; `*` is all. Users only.
    #[serde(default)]
    pub grants: Vec<String>,
}

/// A new token; its text is shown this once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedToken {
    /// For `token revoke`.
    pub id: String,
    /// What for.
    pub kind: TokenKind,
    /// User or agent name.
    pub name: String,
    /// The login or join string.
    pub invite: Secret,
}

/// A token as lists show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// For `token revoke`.
    pub id: String,
    /// What for.
    pub kind: TokenKind,
    /// User or agent name; `*` for a join string that any agent may use.
    pub name: String,
    /// Whether the user administers this broker.
    pub admin: bool,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Unix milliseconds; absent while the token is good.
    pub revoked_ms: Option<u64>,
}

/// Who may use what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantView {
    /// User name.
    pub user: String,
    /// Resource name; `*` is all.
    pub resource: String,
}

/// Asks for tickets to test or load the gateway with legs of one's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewTestPairs {
    /// How many, 1 to 1,000.
    pub count: u32,
}

/// Two legs' opening bytes: dial the gateway twice, send one on each, and the two are joined.
///
/// The gateway forwards the client's opening to the agent's leg, so the agent's end first reads those bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestPair {
    /// The meeting, 32 hex digits.
    pub pair: String,
    /// The client leg's ClientHello, base64.
    pub client_hello: Secret,
    /// The agent leg's ClientHello, base64.
    pub agent_hello: Secret,
}
