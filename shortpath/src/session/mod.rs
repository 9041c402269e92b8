//! The session's vocabulary; the core itself is being built.
mod close;
pub mod frame;
pub mod limits;
mod rtt;
mod words;

pub use close::{CLOSE_NORMAL, CLOSE_PROTOCOL, CloseReason, RESET_DROPPED};
pub use limits::SessionConfig;
pub use rtt::RttFigures;
pub use words::{ChannelError, ChannelId, LegId, LegKind, OpenError, Role};
