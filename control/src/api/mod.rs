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
use crate::secret::Secret;
use crate::wire::{ResourceKind, RttView, SessionId};

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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Round-trip times.
    pub rtt: SessionRtt,
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
