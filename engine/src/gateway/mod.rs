//! The public door: connections are accepted, their hellos read, legs admitted and handed to the relay workers.
mod backend;
mod caps;
mod front;
mod front_io;
pub mod hello;
mod listener;
mod pairing;
mod sources;
mod start;
mod stun;
mod stun_reply;

pub use backend::{Backend, BackendKind};
pub(crate) use caps::Places;
pub use listener::bind_listener;
pub(crate) use pairing::{Arrival, Pairing, Waiting};
pub use start::{Gateway, StartError};
pub use stun::{StunCounters, StunResponder};
