//! Control plane: who may reach what, and the conversation between broker, agent and client.
//!
//! * [`wire`] holds every message, [`api`] the HTTP API, [`code`] every error.
//! * `broker` signs in, decides, orchestrates; it owns the database, the registry of sessions and the gateway.
//! * `agent` keeps a link and warm legs, and connects sessions to targets.
//! * `client` asks for sessions and carries application connections into them.

pub mod agent;
pub mod api;
pub mod broker;
pub mod client;
pub mod code;
pub mod dial;
pub mod invite;
pub mod link;
pub mod path_reason;
pub mod reason;
pub mod secret;
pub mod ticket;
pub mod wire;

pub use code::{Code, Exit, Fault};
