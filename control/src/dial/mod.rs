//! Reaching out: the connections that agent, client and commands make.
//!
//! [`connect_broker`] opens HTTPS to a broker whose key is pinned by the [`Invite`](crate::invite::Invite);
//! [`tcp`] dials by name or address under a deadline; [`Backoff`] decides when to try again.

mod backoff;
mod broker;
pub(crate) mod leg;
mod pin;
pub mod tcp;

pub use backoff::Backoff;
pub use broker::{BrokerAddress, BrokerStream, connect_broker, secure};
