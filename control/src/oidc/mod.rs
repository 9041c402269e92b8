//! OpenID Connect: users whom a provider of the organisation vouches for.
//!
//! Both ends of a sign-in live here. The broker's: `document` reads what the provider publishes, `verify` judges its
//! tokens, `cache` decides when its keys are asked for (all pure), `provider` does it. The user's: `flow` holds what
//! is said to the provider (pure), `login` says it, `loopback` hears the browser's answer. `http` is the HTTPS client
//! of both, `endpoint` says which addresses it may be sent to.
pub(crate) mod cache;
pub mod config;
pub(crate) mod document;
pub(crate) mod endpoint;
pub mod flow;
pub(crate) mod http;
pub mod login;
mod loopback;
pub(crate) mod provider;
pub(crate) mod verify;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
pub(crate) mod test_tokens;

pub use config::{OidcConfig, TakenNames, UserClaim};
