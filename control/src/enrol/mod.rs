//! How agents and gateways are known to their broker: by keys of their own, enrolled with a join string.
//!
//! A join string is shown once, to [`POST /v1/enrol`](crate::api::enrol), with a public key and the proof that its private half
//! is at hand. From then on the end signs in with that key, makes itself a new one every 30 days, and needs no string.
mod end;
pub(crate) mod proof;
mod state;

pub use end::Enrolment;
pub use state::joining;
