//! What becomes of a session while it lives: who watches, who paused it, how much moves.
use serde::{Deserialize, Serialize};

use crate::wire::SessionId;

/// Someone who watches a session.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watcher {
    /// Who.
    pub user: String,
    /// By which session.
    pub session: SessionId,
    /// Whether input may be injected.
    pub control: bool,
}

/// Part of a [`SessionView`](super::SessionView).
#[derive(utoipa::ToSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionLife {
    /// The session that this one watches; absent if it is an ordinary one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watches: Option<SessionId>,
    /// Who watches it now.
    pub watchers: Vec<Watcher>,
    /// Who paused it; absent if nobody did: a paused session without is one that no path carries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_by: Option<String>,
    /// Since the last application byte, in milliseconds, as far as reports tell.
    pub idle_ms: u64,
    /// Jitter of the round trip end to end: its mean deviation, microseconds; absent until measured.
    pub jitter_us: Option<u32>,
    /// Packets in a million that the leg in use loses; absent where the transport does not tell.
    pub loss_ppm: Option<u32>,
    /// Application bytes a second from client to target, over the last second or two.
    pub rate_to_target: u64,
    /// Application bytes a second from target to client.
    pub rate_to_client: u64,
    /// The session that was lost and that this one took the place of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub continues: Option<SessionId>,
    /// Lost sessions in a row that this one goes on from.
    pub reconnects: u32,
}

/// A message to the user of a session.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewMessage {
    /// At most 500 characters; control characters are left out.
    pub text: String,
}
