//! The public door: listeners, hellos, the admission, and the desk for everything about them that takes time.
mod backend;
mod caps;
mod desk;
mod desk_io;
mod farewell;
pub mod hello;
mod listener;
mod pairing;
mod reception;
mod sources;
mod start;

pub use backend::{Backend, BackendKind};
pub(crate) use caps::Places;
pub(crate) use farewell::say_farewell;
pub use listener::bind_listeners;
pub(crate) use pairing::{Arrival, Pairing, Waiting};
pub use reception::ForeignPlace;
pub(crate) use reception::{Reception, new_leg};
pub(crate) use sources::Source;
pub use start::{Gateway, StartError};
