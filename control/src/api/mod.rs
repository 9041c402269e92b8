//! The broker's HTTP API: paths and bodies, shared by the broker that serves them and the commands that call them.
//!
//! Every request carries `Authorization: Bearer TOKEN` (a user's token). Every refusal is an [`ErrorBody`] with the
//! HTTP status that fits it.
//!
//! | method and path | who | answer |
//! |---|---|---|
//! | `GET /v1/whoami` | any user | [`WhoAmI`] |
//! | `GET /v1/resources` | any user | `[ResourceView]`, the feed; with an `ETag`; or as server-sent events |
//! | `GET /v1/agents` | admin | `[AgentView]` |
//! | `PUT /v1/agents/{name}/drain` | admin | 204; it gets no new sessions |
//! | `DELETE /v1/agents/{name}/drain` | admin | 204; it does again |
//! | `GET /v1/gateways` | any user | `[GatewayView]` |
//! | `PUT /v1/gateways/{name}/drain` | admin | 204; no new sessions go through it, and its own move away |
//! | `DELETE /v1/gateways/{name}/drain` | admin | 204; it is used again |
//! | `GET /v1/estimate` | any user | [`EstimateView`] |
//! | `GET /v1/sessions` | any user, own sessions; admins, all | `[SessionView]` |
//! | `GET /v1/sessions/{id}` | owner or admin | [`SessionView`] |
//! | `GET /v1/sessions/{id}/explain` | owner or admin | [`ExplainView`] |
//! | `DELETE /v1/sessions/{id}` | owner or admin | 204 |
//! | `POST /v1/sessions/{id}/message` [`NewMessage`] | owner or admin | 204 |
//! | `POST /v1/sessions/{id}/pause`, `.../resume` | owner or admin | 204 |
//! | `GET /v1/tokens` | admin | `[TokenView]` |
//! | `POST /v1/tokens` [`NewToken`] | admin | [`IssuedToken`] |
//! | `DELETE /v1/tokens/{id}?enrolments=` | admin | 204 |
//! | `GET /v1/grants` | admin | `[GrantView]` |
//! | `PUT /v1/grants` [`GrantView`] | admin | 204 |
//! | `DELETE /v1/grants` [`GrantView`] | admin | 204 |
//! | `POST /v1/test-pairs` [`NewTestPairs`] | admin | `[TestPair]` |
//! | `GET /v1/policy` | admin | [`PolicyStatus`] |
//! | `POST /v1/policy/explain` [`ExplainPolicy`] | admin | [`PolicyExplained`] |
//! | `GET /v1/audit?since_ms=&user=&limit=` | admin | `[AuditRecord]`, oldest first |
//! | `GET /metrics` | admin | Prometheus text |
//! | `GET /v1/events?after=ID` | any user, of own sessions and links; admins, all | [`EventPage`], or a stream of events |
//! | `GET /v1/openapi.json` | anyone | the OpenAPI document of all this |
//! | `GET /healthz` | anyone | `ok` |
//! | `GET /readyz` | anyone | [`Readiness`] |
//! | `/v1/signin`, `/v1/signout` | | see [`signin`] |
//! | `/v1/enrol`, `/v1/enrol/rotate`, `/v1/tokens/{id}/rotate` | | see [`enrol`] |
pub mod client;
pub mod enrol;
mod life;
mod operations;
mod policy;
pub mod signin;

pub use operations::*;
mod gateways;

pub use gateways::{EstimateView, GatewayState, GatewayView, ResourceWays};
pub use policy::{AuditRecord, ExplainPolicy, PolicyExplained, PolicyStatus, PolicyText};
use serde::{Deserialize, Serialize};

pub use life::{NewMessage, SessionLife, Watcher};

use crate::code::{Code, Fault};
use crate::firewall::{FirewallRule, Places};
use crate::secret::Secret;
use crate::wire::{
    Look, LossCounts, PathLeg, PathReport, ResourceKind, RttView, SessionId, TargetHealth,
    TransportPolicy,
};

/// Body of every refusal.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The refusal.
    pub error: ErrorDetail,
}

/// A [`Fault`] with its remedy.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhoAmI {
    /// User name.
    pub user: String,
    /// Whether the user administers this broker.
    pub admin: bool,
    /// The OIDC provider that vouches for the user; absent for login strings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// When the sign-in ends unless renewed, Unix milliseconds; absent for login strings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
}

/// A line of the feed.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceView {
    /// Name to connect to.
    pub name: String,
    /// What it carries.
    pub kind: ResourceKind,
    /// How it looks: title, icon, folder, tags.
    #[serde(flatten)]
    pub look: Look,
    /// Whether an agent that offers it is connected now.
    pub online: bool,
    /// Agents that offer it; empty unless the caller is an admin.
    #[serde(default)]
    pub agents: Vec<String>,
    /// What may carry its sessions; absent while it is offline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<TransportPolicy>,
}

/// An agent as `switchback agents` shows it.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentView {
    /// Its name.
    pub name: String,
    /// Software version.
    pub version: String,
    /// It gets no new sessions.
    pub draining: bool,
    /// When it was connected last, Unix milliseconds; to a few minutes.
    pub seen_ms: u64,
    /// How it is; absent while it is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online: Option<AgentOnline>,
}

/// A connected agent.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentOnline {
    /// Since it registered, milliseconds.
    pub connected_ms: u64,
    /// Sessions it serves.
    pub sessions: usize,
    /// Load of its machine over the last minute, percent of its cores.
    pub load_percent: u32,
    /// Round trip of its link, microseconds; absent until the first ping is answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_rtt_us: Option<u64>,
    /// Whether it reaches what it offers.
    pub targets: Vec<TargetHealth>,
}

/// State of a session.
#[derive(utoipa::ToSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// Granted; its first leg is not up yet.
    Connecting,
    /// A leg carries it.
    Active,
    /// No leg carries it, and it ends unless one does within the resume window; or someone paused it, and no byte of its
    /// passes.
    Paused,
    /// A leg carries it, but no application byte has moved for a minute.
    Idle,
    /// Somebody watches it.
    Shadowed,
    /// Its ends said goodbye; the last bytes are on their way.
    Closing,
}

impl SessionState {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Connecting, Self::Active, Self::Paused, Self::Idle, Self::Shadowed, Self::Closing];

    /// Lower-case name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Idle => "idle",
            Self::Shadowed => "shadowed",
            Self::Closing => "closing",
        }
    }
}

/// A session as `switchback sessions` shows it.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionView {
    /// Its id.
    pub id: SessionId,
    /// Who uses it.
    pub user: String,
    /// What is used.
    pub resource: String,
    /// Which agent serves it.
    pub agent: String,
    /// Which gateway carries it: its name, or the address of the broker's own.
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
    /// Who watches, who paused it, how much moves, and what it goes on from.
    #[serde(flatten)]
    pub life: SessionLife,
}

/// What the ends of a session count about loss.
#[derive(utoipa::ToSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionLoss {
    /// About what the client sends.
    pub client: LossCounts,
    /// About what the agent sends.
    pub agent: LossCounts,
}

/// Why a session takes the way it takes.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
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
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndView {
    /// Since it said so, in milliseconds.
    pub age_ms: u64,
    /// What it sees.
    pub paths: PathReport,
}

/// Round-trip times of a session, each absent until measured.
#[derive(utoipa::ToSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRtt {
    /// Gateway to client and back, from TCP_INFO at the gateway.
    pub client_leg: Option<RttView>,
    /// Gateway to agent and back, from TCP_INFO at the gateway.
    pub agent_leg: Option<RttView>,
    /// Client to agent and back, from the session layer's PING.
    pub end_to_end: Option<RttView>,
}

/// Both legs of a session, each absent until sampled. An active leg is sampled about once a second.
#[derive(utoipa::ToSchema, Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SessionLegs {
    /// Between gateway and client.
    pub client: Option<LegView>,
    /// Between gateway and agent.
    pub agent: Option<LegView>,
}

/// What TCP_INFO at the gateway says about one leg, beside its [`SessionRtt`]. Sending is the gateway's sending on this leg.
#[derive(utoipa::ToSchema, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
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
#[derive(utoipa::ToSchema, Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
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
#[derive(utoipa::ToSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowView {
    /// The culprit.
    pub who: SlowPart,
    /// The reason with its figures, for people.
    pub because: String,
}

/// Which part of a session holds it back.
#[derive(utoipa::ToSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// What a token or an enrolment is for.
#[derive(utoipa::ToSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// Signs a user in.
    User,
    /// Lets an agent join.
    Agent,
    /// Lets a gateway on another machine join.
    Gateway,
}

impl TokenKind {
    /// Lower-case name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Agent => "agent",
            Self::Gateway => "gateway",
        }
    }
}

/// Asks for a token.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewToken {
    /// What for.
    pub kind: TokenKind,
    /// User name, or the only name the agent may use. A user is created if new.
    #[schema(min_length = 1, max_length = 63, pattern = "^[A-Za-z0-9._@+*-]+$")]
    pub name: String,
    /// Make the user an administrator. Users only.
    #[serde(default)]
    pub admin: bool,
    /// Grant these resources to the user at once; `*` is all. Users only.
    #[serde(default)]
    #[schema(max_items = 256)]
    pub grants: Vec<String>,
    /// How many ends may enrol with it; 0 is any number, absent is one. Join strings only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// For how long ends may enrol with it, seconds; 0 is for ever, absent is a day. Join strings only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 315360000)]
    pub lasts_s: Option<u64>,
}

impl NewToken {
    /// By default one enrolment within a day, or a user who is granted nothing.
    pub fn new(kind: TokenKind, name: impl Into<String>) -> Self {
        let (admin, grants, uses, lasts_s) = (false, Vec::new(), None, None);
        Self { kind, name: name.into(), admin, grants, uses, lasts_s }
    }
}

/// A new token; its text is shown this once.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedToken {
    /// For `token revoke`.
    pub id: String,
    /// What for.
    pub kind: TokenKind,
    /// User, agent or gateway name.
    pub name: String,
    /// The login or join string.
    pub invite: Secret,
    /// How many ends may enrol with it; absent for any number, and for login strings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// Until when, Unix milliseconds; absent if for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
}

/// A token or an enrolment as lists show it.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// For `token revoke`.
    pub id: String,
    /// What for.
    pub kind: TokenKind,
    /// User, agent or gateway name; `*` for a join string of any name.
    pub name: String,
    /// Whether the user administers this broker.
    pub admin: bool,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Unix milliseconds; absent while the token is good.
    pub revoked_ms: Option<u64>,
    /// When it ends by itself, Unix milliseconds; absent if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// How many more ends may enrol with this join string; absent if any number, and for all else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses_left: Option<u32>,
    /// It is no string, but an end that enrolled with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolment: Option<enrol::EnrolmentView>,
}

/// Who may use what.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantView {
    /// User name.
    pub user: String,
    /// Resource name; `*` is all.
    pub resource: String,
}

/// Asks for tickets to test or load the gateway with legs of one's own.
#[derive(utoipa::ToSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewTestPairs {
    /// How many, 1 to 1,000.
    #[schema(minimum = 1, maximum = 1000)]
    pub count: u32,
}

/// Two legs' opening bytes: dial the gateway twice, send one on each, and the two are joined.
///
/// The gateway forwards the client's opening to the agent's leg, so the agent's end first reads those bytes.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestPair {
    /// The meeting, 32 hex digits.
    pub pair: String,
    /// The client leg's ClientHello, base64.
    pub client_hello: Secret,
    /// The agent leg's ClientHello, base64.
    pub agent_hello: Secret,
}
