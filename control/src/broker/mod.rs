//! The broker: signs in, decides, orchestrates; owns the database, the registry of sessions and the gateway.
//!
//! ```text
//!  gateway's port ─► engine ── ticket? ─► admission ─► pair
//!                      └─ anything else ─► door (TLS, HTTP) ─► http (API) / links (WebSocket)
//!                                                                │ store: may they?
//!  gateway's events ───────────────────────────────────────► hub ◄┘
//!                                                             └─ orchestrator (pure): what now? ─► messages, end_pair
//! ```
//!
//! Pure: `orchestrator`, `seal`, `rate`, and [`crate::ticket`]. The rest acts.

mod admission;
mod app;
mod candidates;
mod clock;
mod config;
mod counters;
mod data;
mod door;
mod gateway;
mod http;
mod hub;
mod identity;
mod limits;
mod links;
mod metrics;
mod moves;
mod orchestrator;
mod rate;
mod seal;
mod shares;
mod start;
mod store;
mod takeover;
#[cfg(test)]
mod tests;
mod tuning;
mod udp;

pub use config::{Relay, ServeConfig};
pub use identity::TlsFiles;
pub use orchestrator::SessionLimits;
pub use start::{Broker, FirstInvites, Handover};
pub use takeover::{Draining, Successor};
