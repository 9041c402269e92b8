//! Control plane: who may reach what, and the conversation between broker, agent and client.
//!
//! * [`wire`] holds every message, [`api`] the HTTP API, [`code`] every error.
//! * `broker` signs in, decides, orchestrates; it owns the database, the registry of sessions and the gateway.
//! * `agent` keeps a link and warm legs, and connects sessions to targets.
//! * `client` asks for sessions and carries application connections into them.
//! * [`udp`] is what both ends do to find each other by UDP.

pub mod agent;
pub mod api;
pub mod broker;
pub mod claims;
pub mod client;
pub mod code;
pub mod dial;
pub mod enrol;
pub mod firewall;
pub mod gateway;
pub mod invite;
pub mod link;
pub mod nearest;
pub mod netcheck;
pub mod oidc;
pub mod path_reason;
pub mod policy;
pub mod reason;
pub mod secret;
pub mod shadow;
pub mod survey;
#[cfg(test)]
mod test_channel;
pub mod ticket;
pub mod udp;
pub mod wire;

pub use code::{Code, Exit, Fault};

/// Whether a transport of this label leads from end to end without the gateway.
#[must_use]
pub fn is_direct(label: &str) -> bool {
    use switchback_shortpath::LegKind;
    [LegKind::UdpDirect, LegKind::UdpManaged].iter().any(|kind| kind.label() == label)
}
