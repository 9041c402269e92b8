//! What operators ask: what happened, and is it ready.
use serde::{Deserialize, Serialize};

use crate::code::Code;
use crate::wire::SessionId;

/// Something that happened at the broker. What does not apply is absent.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// Grows with time, over restarts too; numbers may be left out.
    pub id: u64,
    /// When, in Unix milliseconds.
    pub at_ms: u64,
    /// What happened.
    pub kind: EventKind,
    /// Whom it concerns; only administrators see events that concern nobody or somebody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Which session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// Which resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// Which agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Transport label, after a move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
    /// Why, as a symbolic code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// The particulars, for people. Never holds a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

macro_rules! kinds {
    ($($variant:ident $text:literal $about:literal;)+) => {
        /// Kinds of events.
        #[derive(utoipa::ToSchema)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum EventKind {
            $(#[doc = $about] $variant,)+
            /// One that this program does not know: the broker is newer.
            #[serde(other)]
            Other,
        }

        impl EventKind {
            /// As it is written.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ Self::Other => "other" }
            }

            /// Every kind that this program makes.
            pub const ALL: &[Self] = &[$(Self::$variant),+];
        }
    };
}

kinds! {
    BrokerStarted "broker_started" "The broker serves.";
    Draining "draining" "A gateway gets no new sessions, and its own move away.";
    GatewayOnline "gateway_online" "A gateway's link is up.";
    GatewayOffline "gateway_offline" "A gateway's link is down; sessions through it go on.";
    AgentOnline "agent_online" "An agent's link is up.";
    AgentOffline "agent_offline" "An agent's link is down.";
    ClientOnline "client_online" "A client's link is up.";
    ClientOffline "client_offline" "A client's link is down.";
    SessionGranted "session_granted" "A session begins.";
    SessionMoved "session_moved" "A session went over to another transport.";
    SessionEnded "session_ended" "A session is over.";
    Enrolled "enrolled" "An agent or a gateway spent a use of a join string, and is known by its key.";
    KeyReplaced "key_replaced" "An agent or a gateway is known by a new key.";
    EnrolmentRevoked "enrolment_revoked" "An agent or a gateway is known no more; its sessions have ended or move.";
    TokenRevoked "token_revoked" "A token was revoked; what it held up has ended.";
    GrantsChanged "grants_changed" "A user may use less than before.";
    CertificateReloaded "certificate_reloaded" "The certificate files hold another pair, which is used now.";
    CertificateRefused "certificate_refused" "The certificate files hold no usable pair; the one before is used on.";
    PolicyReloaded "policy_reloaded" "The policies were read anew.";
    PolicyRefused "policy_refused" "The policies hold an error; those before are used on.";
}

/// Events, oldest first.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventPage {
    /// Those that the caller may see.
    pub events: Vec<EventView>,
    /// Whether some were forgotten between `after` and the first of these: the broker keeps the last 4,096 since its start.
    pub lost: bool,
    /// Ask with `after` set to this for what comes next.
    pub next: u64,
}

/// Whether the broker can do its work.
#[derive(utoipa::ToSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Nothing is missing.
    pub ready: bool,
    /// What is, one sentence each; empty when ready.
    pub missing: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_written_as_they_are_called() {
        for &kind in EventKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        let newer: EventKind = serde_json::from_str(r#""moon_phase""#).unwrap();
        assert_eq!(newer, EventKind::Other);
    }
}
