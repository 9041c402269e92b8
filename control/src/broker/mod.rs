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

pub(crate) mod admission;
mod app;
mod audit;
mod bus;
mod candidates;
mod certificate;
pub(crate) mod clock;
mod config;
mod counters;
mod data;
mod door;
mod enrolment;
mod events;
pub(crate) mod gateway;
mod gateways;
mod http;
mod hub;
mod identity;
mod limits;
mod links;
mod locations;
mod looks;
mod metrics;
mod moves;
mod orchestrator;
mod policy;
mod rate;
mod reload;
mod seal;
mod shadow;
mod shares;
mod signin;
mod start;
mod store;
mod takeover;
#[cfg(test)]
mod tests;
pub(crate) mod tuning;
pub(crate) mod udp;

/// The OpenAPI document of the broker's API, JSON.
///
/// # Errors
/// [`Code::Internal`](crate::Code::Internal) if it cannot be written.
pub fn openapi() -> Result<String, crate::Fault> {
    let written = http::document().to_pretty_json();
    written.map_err(|error| crate::Code::Internal.because(format!("the document: {error}")))
}

pub(crate) use config::advertised;
pub use config::{Relay, ServeConfig};
pub(crate) use http::pair_view;
pub use identity::TlsFiles;
pub(crate) use limits::is_user_name;
pub use locations::Location;
pub use orchestrator::SessionLimits;
pub use policy::read_policies;
pub use start::{Broker, FirstInvites, Handover};
pub use store::{Saved, backup, restore};
pub use takeover::{Draining, Successor};
